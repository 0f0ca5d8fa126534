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

// Of bytes: products of 16 bits, pairs of which are added to lanes of 32.
struct NeonDot : NeonOutputs<NeonDot> {
  static constexpr int kTile = 2, kCopies = 1;  // its sums take two registers
  static constexpr bool kFlush = false, kDots = true;

  struct Total {};
  struct Counter {
    int32x4_t low, high;  // two lanes for each of four channels
  };
  using Word = int8x16_t;

  static Counter no_counter() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static Total no_total() { return {}; }
  static Word spread(const uint32_t* p) { return vreinterpretq_s8_u32(vld1q_dup_u32(p)); }
  static Word weights(const uint32_t* p) { return vld1q_s8(reinterpret_cast<const int8_t*>(p)); }
  static Counter dot(Counter c, Word x, Word w) {
    return {vpadalq_s16(c.low, vmull_s8(vget_low_s8(x), vget_low_s8(w))),
            vpadalq_s16(c.high, vmull_high_s8(x, w))};
  }
  static Total flush(Total total, Counter) { return total; }

  template <int M, int N>
  static void store_bits(char* out, const Counted<NeonDot, M, N>& counted, const Work& work) {
    int32x4_t sums[M][N];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[m][n] = vpaddq_s32(counted.counter[m][n].low, counted.counter[m][n].high);
    store_sums(out, sums, work);
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
    {NeonDot::kLanes, NeonDot::kVectors, 1, false, convolve<NeonDot, Output::kBits>},
    quantize,
    quantize_bytes,
};

}  // namespace

const dmsflow::Kernels* dmsflow::neon_kernels() { return &kKernels; }

#else

const dmsflow::Kernels* dmsflow::neon_kernels() { return nullptr; }

#endif
