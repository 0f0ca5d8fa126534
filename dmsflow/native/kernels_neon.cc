// Kernels for 64-bit ARM: 4 channels to the vector. Bytes are counted until they could overflow.

#include "kernels.h"

#if defined(__aarch64__)

#include "neon.h"

namespace {

struct Neon : NeonOutputs<Neon> {
  static constexpr bool kFlush = true, kDots = false;

  using Word = uint8x16_t;
  using Counter = uint8x16_t;
  using Total = uint16x8_t;

  static Counter no_counter() { return vdupq_n_u8(0); }
  static Total no_total() { return vdupq_n_u16(0); }
  static Word spread(const uint32_t* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }
  static Word weights(const uint32_t* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }
  static Word differ(Word x, Word w) { return vcntq_u8(veorq_u8(x, w)); }
  static Counter add(Counter c, Word differ) { return vaddq_u8(c, differ); }
  static Total flush(Total total, Counter c) { return vpadalq_u8(total, c); }

  static uint32x4_t counts(Total total, Counter c) { return vpaddlq_u16(flush(total, c)); }

  template <int M, int N>
  static uint16x8_t narrow_counts(const Counted<Neon, M, N>& counted, int m, int n) {
    const uint16x8_t first = flush(counted.total[m][n], counted.counter[m][n]);
    if (n + 1 == N) return vpaddq_u16(first, first);
    return vpaddq_u16(first, flush(counted.total[m][n + 1], counted.counter[m][n + 1]));
  }
};

// Of bytes: products of 16 bits, of two words together, and pairs of these are added to lanes of 32.
struct NeonDot : NeonOutputs<NeonDot> {
  static constexpr int kTile = 2, kCopies = 1, kWords = 2;  // a sum takes two registers
  static constexpr bool kFlush = false, kDots = true;

  struct Total {};
  struct Counter {
    int32x4_t low, high;  // two lanes for each of four channels
  };

  static Counter start(const int32_t* p) {
    const int32x4_t all = vld1q_s32(p), none = vdupq_n_s32(0);
    return {vzip1q_s32(all, none), vzip2q_s32(all, none)};
  }
  static Total no_total() { return {}; }
  static Total flush(Total total, Counter) { return total; }

  // Weights are -127 at least, so that two products fit into 16 bits.
  template <int kCount, int M, int N>
  __attribute__((always_inline)) static void count_words(Counter (&counter)[M][N], const uint32_t* const (&window)[M],
                                                         uint64_t at, const uint32_t* panel) {
    int8x16_t weights[kCount][N];
#pragma GCC unroll 2
    for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n)
        weights[i][n] = vld1q_s8(reinterpret_cast<const int8_t*>(panel + (i * N + n) * kLanes));
#pragma GCC unroll 2
    for (int m = 0; m < M; ++m) {
      int8x16_t words[kCount];
#pragma GCC unroll 2
      for (int i = 0; i < kCount; ++i) words[i] = vreinterpretq_s8_u32(vld1q_dup_u32(window[m] + at + i));
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        int16x8_t low = vmull_s8(vget_low_s8(words[0]), vget_low_s8(weights[0][n]));
        int16x8_t high = vmull_high_s8(words[0], weights[0][n]);
        if constexpr (kCount > 1) {
          low = vmlal_s8(low, vget_low_s8(words[1]), vget_low_s8(weights[1][n]));
          high = vmlal_high_s8(high, words[1], weights[1][n]);
        }
        Counter& c = counter[m][n];
        c = {vpadalq_s16(c.low, low), vpadalq_s16(c.high, high)};
      }
    }
  }

  template <int M, int N>
  static void add_pairs(int32x4_t (&sums)[M][N], const Counted<NeonDot, M, N>& counted) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[m][n] = vpaddq_s32(counted.counter[m][n].low, counted.counter[m][n].high);
  }

  template <int M, int N>
  static void store_bits(char* out, const Counted<NeonDot, M, N>& counted, const Work& work) {
    int32x4_t sums[M][N];
    add_pairs(sums, counted);
    store_sums(out, sums, work);
  }

  template <Output, bool, bool kFull, int M, int N>
  static void store_numbers(char* out, const Counted<NeonDot, M, N>& counted, const Work& work) {
    int32x4_t sums[M][N];
    add_pairs(sums, counted);
    store_whole<kFull>(out, sums, work);
  }
};

const dmsflow::Kernels kKernels = {
    "neon",
    Neon::kLanes,
    Neon::kVectors,
    Neon::kCopies,
    31,
    Neon::kMostWords,
    {convolve<Neon, Output::kFloat>, convolve<Neon, Output::kInt8>, convolve<Neon, Output::kBits>},
    {NeonDot::kLanes, NeonDot::kVectors, 1, false, convolve<NeonDot, Output::kBits>, convolve<NeonDot, Output::kFloat>},
    quantize,
    quantize_bytes,
};

}  // namespace

const dmsflow::Kernels* dmsflow::neon_kernels() { return &kKernels; }

#else

const dmsflow::Kernels* dmsflow::neon_kernels() { return nullptr; }

#endif
