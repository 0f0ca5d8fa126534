// What the NEON kernels share: from counts to outputs, and bits from floats. As tiles.h, for one kernels_*.cc each.
#pragma once

#include <arm_neon.h>

#include "tiles.h"

namespace {

// Bit i of the result is the sign of 16 lanes, all ones or all zeros each.
inline uint16_t bits_of(uint32x4_t a, uint32x4_t b, uint32x4_t c, uint32x4_t d) {
  static const uint8_t kBit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
  const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(c), vreinterpretq_u16_u32(d));
  const uint8x16_t lanes = vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
  uint8x16_t bits = vandq_u8(lanes, vld1q_u8(kBit));
  for (int i = 0; i < 3; ++i) bits = vpaddq_u8(bits, bits);
  return vgetq_lane_u16(vreinterpretq_u16_u8(bits), 0);
}

struct NeonOutputs {
  static constexpr int kLanes = 4, kVectors = 4, kTile = 4, kCopies = 4;
  using Counts = uint32x4_t;

  static float32x4_t transform(const Work& work, Counts counts, int channel) {
    int32x4_t x = vshlq_n_s32(vreinterpretq_s32_u32(counts), 1);
    x = vminq_s32(x, vdupq_n_s32(work.clamp_max));
    x = vmaxq_s32(x, vdupq_n_s32(work.clamp_min));
    const float32x4_t scaled = vmulq_f32(vcvtq_f32_s32(x), vld1q_f32(work.multiplier + channel));
    return vaddq_f32(scaled, vld1q_f32(work.bias + channel));
  }

  static void store_float(float* out, Counts counts, const Work& work, int channel) {
    const float32x4_t y = transform(work, counts, channel);
    const int left = work.channels - channel;
    if (left >= kLanes) {
      vst1q_f32(out, y);
      return;
    }
    float values[kLanes];
    vst1q_f32(values, y);
    store_some(out, values, left);
  }

  static void store_int8(int8_t* out, Counts counts, const Work& work, int channel) {
    const int32x4_t rounded = vcvtaq_s32_f32(transform(work, counts, channel));  // half away from zero
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(vqmovn_s32(rounded), vdup_n_s16(0)));
    int8_t values[8];
    vst1_s8(values, bytes);
    const int left = work.channels - channel;
    if (left >= kLanes)
      store_some(out, values, kLanes);
    else
      store_some(out, values, left);
  }

  template <int N>
  static void store_bits(uint16_t* out, const Counts* counts, const Work& work) {
    uint32x4_t above[kVectors];
    for (int n = 0; n < kVectors; ++n)
      above[n] = n < N ? vcgtq_s32(vreinterpretq_s32_u32(counts[n < N ? n : 0]), vld1q_s32(work.thresholds + n * kLanes))
                       : vdupq_n_u32(0);
    out[0] = bits_of(above[0], above[1], above[2], above[3]);
    if (work.halves > 1) out[1] = 0;
  }
};

inline uint16_t negative(const float* in) {
  return bits_of(vcltzq_f32(vld1q_f32(in)), vcltzq_f32(vld1q_f32(in + 4)), vcltzq_f32(vld1q_f32(in + 8)),
                 vcltzq_f32(vld1q_f32(in + 12)));
}

inline uint32_t negative_of_32(const float* in) {
  return negative(in) | static_cast<uint32_t>(negative(in + 16)) << 16;
}

inline void quantize(const float* in, int64_t pixels, int channels, uint32_t* out) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, in += channels) {
    int c = 0;
    for (; c + 32 <= channels; c += 32) *out++ = negative_of_32(in + c);
    if (c == channels) continue;
    float last[32] = {};
    store_some(last, in + c, channels - c);
    *out++ = negative_of_32(last);
  }
}

}  // namespace
