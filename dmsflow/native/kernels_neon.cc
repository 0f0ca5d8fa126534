// Kernels for 64-bit ARM: 4 channels to the vector. Bytes are counted until they could overflow.

#include "kernels.h"

#if defined(__aarch64__)

#include "neon.h"

namespace {

struct Neon : NeonOutputs {
  static constexpr bool kFlush = true;

  using Word = uint8x16_t;
  using Counter = uint8x16_t;
  using Total = uint16x8_t;

  static Counter no_counter() { return vdupq_n_u8(0); }
  static Total no_total() { return vdupq_n_u16(0); }
  static Word spread(const uint32_t* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }
  static Word weights(const uint32_t* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }
  static Counter count(Counter c, Word x, Word w) { return vaddq_u8(c, vcntq_u8(veorq_u8(x, w))); }
  static Total flush(Total total, Counter c) { return vpadalq_u8(total, c); }
  static Counts finish(Total total, Counter c) { return vpaddlq_u16(vpadalq_u8(total, c)); }
};

const dmsflow::Kernels kKernels = {
    "neon",
    Neon::kLanes,
    Neon::kVectors,
    Neon::kCopies,
    31,
    UINT16_MAX / 16,  // a word adds up to 16 to each half of a lane
    {convolve<Neon, Output::kFloat>, convolve<Neon, Output::kInt8>, convolve<Neon, Output::kBits>},
    quantize,
};

}  // namespace

const dmsflow::Kernels* dmsflow::neon_kernels() { return &kKernels; }

#else

const dmsflow::Kernels* dmsflow::neon_kernels() { return nullptr; }

#endif
