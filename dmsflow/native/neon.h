// What the NEON kernels share: from counts to outputs, and bits from floats. As tiles.h, for one kernels_*.cc each.
#pragma once

#include <arm_neon.h>

#include "tiles.h"

namespace {

// Lanes that are all ones or all zeros, 16 to a vector, as bits: 16 for each of four vectors.
inline uint16x4_t bits_of(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
  static const uint8_t kBit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t bit = vld1q_u8(kBit);
  const uint8x16_t ab = vpaddq_u8(vandq_u8(a, bit), vandq_u8(b, bit));
  const uint8x16_t cd = vpaddq_u8(vandq_u8(c, bit), vandq_u8(d, bit));
  const uint8x16_t pairs = vpaddq_u8(ab, cd);
  return vreinterpret_u16_u8(vget_low_u8(vpaddq_u8(pairs, pairs)));
}

inline uint8x16_t narrow(uint16x8_t low, uint16x8_t high) {
  return vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
}

inline uint16x8_t narrow(uint32x4_t low, uint32x4_t high) {
  return vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
}

// `I` is the set of kernels; beside what tiles.h asks for it offers
//   counts(total, counter)    by lane
//   narrow_counts(...)        of two neighbours, 8 lanes of 16 bits
template <class I>
struct NeonOutputs {
  static constexpr int kLanes = 4, kVectors = 4, kTile = 4, kCopies = 4, kWords = 1;
  static constexpr int kMostWords = INT16_MAX / 32;  // so that every count is a positive 16-bit number

  template <bool kClamps>
  static float32x4_t transform(const Work& work, uint32x4_t counts, float32x4_t multiplier, float32x4_t bias) {
    int32x4_t x = vreinterpretq_s32_u32(counts);
    if constexpr (kClamps) {
      x = vminq_s32(vshlq_n_s32(x, 1), vdupq_n_s32(work.clamp_max));
      x = vmaxq_s32(x, vdupq_n_s32(work.clamp_min));
    }
    return vaddq_f32(vmulq_f32(vcvtq_f32_s32(x), multiplier), bias);
  }

  // Bits of the signs of sums of bytes times bytes.
  template <int M, int N>
  static void store_sums(char* out, const int32x4_t (&sums)[M][N], const Work& work) {
    uint8x16_t below[4];
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      uint16x8_t upper[2] = {vdupq_n_u16(0), vdupq_n_u16(0)};  // halves of lanes, which have the sign
#pragma GCC unroll 2
      for (int n = 0; m < M && n < N; n += 2) {
        const int32x4_t next = n + 1 < N ? sums[m][n + 1 < N ? n + 1 : n] : vdupq_n_s32(0);
        upper[n / 2] = vuzp2q_u16(vreinterpretq_u16_s32(sums[m][n]), vreinterpretq_u16_s32(next));
      }
      const uint8x16_t bytes = vuzp2q_u8(vreinterpretq_u8_u16(upper[0]), vreinterpretq_u8_u16(upper[1]));
      below[m] = vcltzq_s8(vreinterpretq_s8_u8(bytes));
    }
    store_halves<M>(out, below, work);
  }

  // The sums themselves.
  template <bool kFull, int M, int N>
  static void store_whole(char* out, const int32x4_t (&sums)[M][N], const Work& work) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m, out += work.out_stride)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n)
        store_floats(reinterpret_cast<float*>(out) + n * kLanes, vcvtq_f32_s32(sums[m][n]),
                     kFull ? kLanes : work.channels - n * kLanes);
  }

  // The bits of 16 lanes of M pixels.
  template <int M>
  static void store_halves(char* out, const uint8x16_t (&above)[4], const Work& work) {
    uint16_t values[4];
    vst1_u16(values, bits_of(above[0], above[1], above[2], above[3]));
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m, out += work.out_stride) {
      reinterpret_cast<uint16_t*>(out)[0] = values[m];
      if (work.halves > 1) reinterpret_cast<uint16_t*>(out)[1] = 0;
    }
  }

  static void store_floats(float* out, float32x4_t y, int channels) {
    if (channels >= kLanes) {
      vst1q_f32(out, y);
      return;
    }
    float values[kLanes];
    vst1q_f32(values, y);
    store_some(out, values, channels);
  }

  static void store_bytes(int8_t* out, float32x4_t y, int channels) {
    const int32x4_t rounded = vcvtaq_s32_f32(y);  // half away from zero
    int8_t values[8];
    vst1_s8(values, vqmovn_s16(vcombine_s16(vqmovn_s32(rounded), vdup_n_s16(0))));
    store_some(out, values, channels >= kLanes ? kLanes : channels);
  }

  // All of a tile's bits at once: the last steps take four pixels in one vector.
  template <int M, int N>
  static void store_bits(char* out, const Counted<I, M, N>& counted, const Work& work) {
    uint8x16_t above[4];
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      uint16x8_t side[2] = {vdupq_n_u16(0), vdupq_n_u16(0)};
#pragma GCC unroll 2
      for (int n = 0; m < M && n < N; n += 2) {
        const int16x8_t counts = vreinterpretq_s16_u16(I::template narrow_counts<M, N>(counted, m, n));
        // Saturated thresholds compare as the others would: counts lie well within 16 bits.
        const int16x8_t least = vcombine_s16(vqmovn_s32(vld1q_s32(work.thresholds + n * kLanes)),
                                             n + 1 < N ? vqmovn_s32(vld1q_s32(work.thresholds + (n + 1) * kLanes))
                                                       : vdup_n_s16(INT16_MAX));
        side[n / 2] = vcgtq_s16(counts, least);
      }
      above[m] = narrow(side[0], side[1]);
    }
    store_halves<M>(out, above, work);
  }

  template <Output kOutput, bool kClamps, bool kFull, int M, int N>
  __attribute__((always_inline)) static void store_numbers(char* out, const Counted<I, M, N>& counted,
                                                           const Work& work) {
    float32x4_t multiplier[N], bias[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      multiplier[n] = vld1q_f32(work.multiplier + n * kLanes);
      bias[n] = vld1q_f32(work.bias + n * kLanes);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m, out += work.out_stride)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const uint32x4_t counts = I::counts(counted.total[m][n], counted.counter[m][n]);
        const float32x4_t y = transform<kClamps>(work, counts, multiplier[n], bias[n]);
        const int channels = kFull ? kLanes : work.channels - n * kLanes;
        if constexpr (kOutput == Output::kFloat)
          store_floats(reinterpret_cast<float*>(out) + n * kLanes, y, channels);
        else
          store_bytes(reinterpret_cast<int8_t*>(out) + n * kLanes, y, channels);
      }
  }
};

// Bits of 64 floats.
inline void quantize_64(const float* in, uint32_t* out) {
  uint8x16_t below[4];
  for (int i = 0; i < 4; ++i, in += 16)
    below[i] = narrow(narrow(vcltzq_f32(vld1q_f32(in)), vcltzq_f32(vld1q_f32(in + 4))),
                      narrow(vcltzq_f32(vld1q_f32(in + 8)), vcltzq_f32(vld1q_f32(in + 12))));
  vst1_u32(out, vreinterpret_u32_u16(bits_of(below[0], below[1], below[2], below[3])));
}

inline void quantize(const float* in, int64_t pixels, int channels, uint32_t* out) {
  quantize_rows<64>(in, pixels, channels, 0.0f, out, quantize_64);
}

inline void quantize_bytes(const int8_t* in, int64_t pixels, int channels, int8_t zero_point, uint32_t* out) {
  const int8x16_t zero = vdupq_n_s8(zero_point);
  quantize_rows<64>(in, pixels, channels, int8_t{INT8_MAX}, out, [zero](const int8_t* from, uint32_t* to) {
    const auto below = [&](int at) { return vcltq_s8(vld1q_s8(from + at), zero); };
    vst1_u32(to, vreinterpret_u32_u16(bits_of(below(0), below(16), below(32), below(48))));
  });
}

}  // namespace
