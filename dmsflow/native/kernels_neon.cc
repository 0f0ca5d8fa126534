// Kernels for 64-bit ARM: 4 channels to the vector. Bytes are counted until they could overflow.

#include "kernels.h"

#if defined(__aarch64__)

#include "neon.h"

namespace {

struct Neon : NeonOutputs<Neon> {
  static constexpr bool kFlush = true;

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

const dmsflow::Kernels kKernels = {
    "neon",
    Neon::kLanes,
    Neon::kVectors,
    Neon::kCopies,
    31,
    Neon::kMostWords,
    {convolve<Neon, Output::kFloat>, convolve<Neon, Output::kInt8>, convolve<Neon, Output::kBits>},
    quantize,
};

}  // namespace

const dmsflow::Kernels* dmsflow::neon_kernels() { return &kKernels; }

#else

const dmsflow::Kernels* dmsflow::neon_kernels() { return nullptr; }

#endif
