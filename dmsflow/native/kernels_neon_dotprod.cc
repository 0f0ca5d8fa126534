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
  static constexpr int kCopies = 1;
  static constexpr bool kFlush = false, kDots = true;

  struct Total {};
  using Word = int8x16_t;
  using Counter = int32x4_t;

  static Counter no_counter() { return vdupq_n_s32(0); }
  static Total no_total() { return {}; }
  static Word spread(const uint32_t* p) { return vreinterpretq_s8_u32(vld1q_dup_u32(p)); }
  static Word weights(const uint32_t* p) { return vld1q_s8(reinterpret_cast<const int8_t*>(p)); }
  static Counter dot(Counter c, Word x, Word w) { return vdotq_s32(c, x, w); }
  static Total flush(Total total, Counter) { return total; }

  template <int M, int N>
  static void store_bits(char* out, const Counted<NeonDotprodDot, M, N>& counted, const Work& work) {
    store_sums(out, counted.counter, work);
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
    {NeonDotprodDot::kLanes, NeonDotprodDot::kVectors, 1, false, convolve<NeonDotprodDot, Output::kBits>},
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
