// Kernels in plain C++, for processors without kernels of their own: the compiler may vectorise them.

#include <cmath>

#include "kernels.h"
#include "tiles.h"

namespace {

struct Portable {
  static constexpr int kLanes = 16, kVectors = 1, kTile = 1, kCopies = 1;
  static constexpr bool kFlush = false;

  struct Counter {
    uint32_t lane[kLanes];
  };
  struct Total {};
  using Word = Counter;
  using Counts = Counter;

  static Counter no_counter() { return {}; }
  static Total no_total() { return {}; }

  static Word spread(const uint32_t* p) {
    Word word;
    for (uint32_t& lane : word.lane) lane = *p;
    return word;
  }

  static Word weights(const uint32_t* p) {
    Word word;
    for (int i = 0; i < kLanes; ++i) word.lane[i] = p[i];
    return word;
  }

  static Counter count(Counter counter, const Word& x, const Word& w) {
    for (int i = 0; i < kLanes; ++i) {  // pairs of bits, then nibbles, then bytes, then their sum
      uint32_t v = x.lane[i] ^ w.lane[i];
      v -= v >> 1 & 0x55555555u;
      v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
      v = (v + (v >> 4)) & 0x0F0F0F0Fu;
      v += v >> 8;
      v += v >> 16;
      counter.lane[i] += v & 0x3F;
    }
    return counter;
  }

  static Total flush(Total total, const Counter&) { return total; }
  static Counts finish(Total, const Counter& counter) { return counter; }

  static float transform(const Work& work, uint32_t count, int channel) {
    int32_t x = static_cast<int32_t>(count << 1);
    x = x < work.clamp_max ? x : work.clamp_max;
    x = x > work.clamp_min ? x : work.clamp_min;
    return static_cast<float>(x) * work.multiplier[channel] + work.bias[channel];
  }

  static void store_float(float* out, const Counts& counts, const Work& work, int) {
    for (int i = 0; i < work.channels; ++i) out[i] = transform(work, counts.lane[i], i);
  }

  static void store_int8(int8_t* out, const Counts& counts, const Work& work, int) {
    for (int i = 0; i < work.channels; ++i) {
      const float y = transform(work, counts.lane[i], i);
      out[i] = static_cast<int8_t>(y <= -128.0f ? -128 : y >= 127.0f ? 127 : static_cast<int>(std::round(y)));
    }
  }

  template <int N>
  static void store_bits(uint16_t* out, const Counts* counts, const Work& work) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i)
      bits |= static_cast<uint32_t>(static_cast<int32_t>(counts[0].lane[i]) > work.thresholds[i]) << i;
    out[0] = static_cast<uint16_t>(bits);
    if (work.halves > 1) out[1] = 0;
  }
};

void quantize(const float* in, int64_t pixels, int channels, uint32_t* out) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, in += channels)
    for (int begin = 0; begin < channels; begin += 32) {
      uint32_t bits = 0;
      for (int c = begin; c < channels && c < begin + 32; ++c) bits |= static_cast<uint32_t>(in[c] < 0) << (c - begin);
      *out++ = bits;
    }
}

const dmsflow::Kernels kKernels = {
    "portable",
    Portable::kLanes,
    Portable::kVectors,
    Portable::kCopies,
    INT32_MAX,
    INT32_MAX,
    {convolve<Portable, Output::kFloat>, convolve<Portable, Output::kInt8>, convolve<Portable, Output::kBits>},
    quantize,
};

}  // namespace

const dmsflow::Kernels* dmsflow::portable_kernels() { return &kKernels; }
