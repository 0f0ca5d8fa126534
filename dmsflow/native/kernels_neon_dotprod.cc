// Kernels for 64-bit ARM with the dot product instructions: they add bytes up to lanes, so nothing can overflow.

#include "kernels.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "neon.h"

namespace {

struct NeonDotprod : NeonOutputs<NeonDotprod> {
  static constexpr bool kFlush = false, kDots = false;

  struct Total {};
  using Word = uint8x16_t;
  using Counter = uint32x4_t;

  static Counter no_counter() { return vdupq_n_u32(0); }
  static Total no_total() { return {}; }
  static Word spread(const uint32_t* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }
  static Word weights(const uint32_t* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }
  static Word differ(Word x, Word w) { return vcntq_u8(veorq_u8(x, w)); }
  static Counter add(Counter c, Word differ) { return vdotq_u32(c, differ, vdupq_n_u8(1)); }
  static Total flush(Total total, Counter) { return total; }

  static uint32x4_t counts(Total, Counter c) { return c; }

  template <int M, int N>
  static uint16x8_t narrow_counts(const Counted<NeonDotprod, M, N>& counted, int m, int n) {
    return narrow(counted.counter[m][n], counted.counter[m][n + 1 < N ? n + 1 : n]);
  }
};

struct NeonDotprodDot : NeonOutputs<NeonDotprodDot> {
  static constexpr int kCopies = 1, kWords = 4;  // the words of one vector
  static constexpr bool kFlush = false, kDots = true;

  struct Total {};
  using Counter = int32x4_t;

  static Counter start(const int32_t* p) { return vld1q_s32(p); }
  static Total no_total() { return {}; }
  static Total flush(Total total, Counter) { return total; }

  // Word kWord of each vector, and those behind it.
  template <int kCount, int M, int N, int kWord = 0>
  __attribute__((always_inline)) static void dot(Counter (&counter)[M][N], const int8x16_t (&words)[M],
                                                 const uint32_t* panel) {
    int8x16_t weights[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) weights[n] = vld1q_s8(reinterpret_cast<const int8_t*>(panel + n * kLanes));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) counter[m][n] = vdotq_laneq_s32(counter[m][n], weights[n], words[m], kWord);
    if constexpr (kWord + 1 < kCount) dot<kCount, M, N, kWord + 1>(counter, words, panel + N * kLanes);
  }

  // Fewer words are read as four: behind a window is another, or room.
  template <int kCount, int M, int N>
  __attribute__((always_inline)) static void count_words(Counter (&counter)[M][N], const uint32_t* const (&window)[M],
                                                         uint64_t at, const uint32_t* panel) {
    int8x16_t words[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) words[m] = vld1q_s8(reinterpret_cast<const int8_t*>(window[m] + at));
    dot<kCount>(counter, words, panel);
  }

  template <int M, int N>
  static void store_bits(char* out, const Counted<NeonDotprodDot, M, N>& counted, const Work& work) {
    store_sums(out, counted.counter, work);
  }

  template <Output, bool, bool kFull, int M, int N>
  static void store_numbers(char* out, const Counted<NeonDotprodDot, M, N>& counted, const Work& work) {
    store_whole<kFull>(out, counted.counter, work);
  }
};

const dmsflow::Kernels kKernels = {
    "neon-dotprod",
    NeonDotprod::kLanes,
    NeonDotprod::kVectors,
    NeonDotprod::kCopies,
    INT32_MAX,
    NeonDotprod::kMostWords,
    {convolve<NeonDotprod, Output::kFloat>, convolve<NeonDotprod, Output::kInt8>,
     convolve<NeonDotprod, Output::kBits>},
    {NeonDotprodDot::kLanes, NeonDotprodDot::kVectors, 1, false, convolve<NeonDotprodDot, Output::kBits>,
     convolve<NeonDotprodDot, Output::kFloat>},
    quantize,
    quantize_bytes,
};

bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
  int there = 0;
  size_t size = sizeof(there);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &there, &size, nullptr, 0) == 0 && there;
#else
  return false;
#endif
}

}  // namespace

const dmsflow::Kernels* dmsflow::neon_dotprod_kernels() { return has_dotprod() ? &kKernels : nullptr; }

#else

const dmsflow::Kernels* dmsflow::neon_dotprod_kernels() { return nullptr; }

#endif
