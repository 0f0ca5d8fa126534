// Kernels in plain C++, for processors without kernels of their own: the compiler may vectorise them.

#include <cmath>

#include "kernels.h"
#include "tiles.h"

namespace {

struct Portable {
  static constexpr int kLanes = 16, kVectors = 1, kTile = 1, kCopies = 1, kWords = 1;
  static constexpr bool kFlush = false, kDots = false;

  struct Counter {
    uint32_t lane[kLanes];
  };
  struct Total {};
  using Word = Counter;

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

  static Word differ(const Word& x, const Word& w) {
    Word differ;
    for (int i = 0; i < kLanes; ++i) {  // pairs of bits, then nibbles, then bytes, then their sum
      uint32_t v = x.lane[i] ^ w.lane[i];
      v -= v >> 1 & 0x55555555u;
      v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
      v = (v + (v >> 4)) & 0x0F0F0F0Fu;
      v += v >> 8;
      v += v >> 16;
      differ.lane[i] = v & 0x3F;
    }
    return differ;
  }

  static Counter add(Counter counter, const Word& differ) {
    for (int i = 0; i < kLanes; ++i) counter.lane[i] += differ.lane[i];
    return counter;
  }

  static Total flush(Total total, const Counter&) { return total; }

  template <bool kClamps>
  static float transform(const Work& work, int32_t count, int channel) {
    if constexpr (kClamps) {
      count = 2 * count < work.clamp_max ? 2 * count : work.clamp_max;
      count = count > work.clamp_min ? count : work.clamp_min;
    }
    return static_cast<float>(count) * work.multiplier[channel] + work.bias[channel];
  }

  template <int M, int N>
  static void store_bits(char* out, const Counted<Portable, M, N>& counted, const Work& work) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i)
      bits |= static_cast<uint32_t>(static_cast<int32_t>(counted.counter[0][0].lane[i]) > work.thresholds[i]) << i;
    reinterpret_cast<uint16_t*>(out)[0] = static_cast<uint16_t>(bits);
    if (work.halves > 1) reinterpret_cast<uint16_t*>(out)[1] = 0;
  }

  template <Output kOutput, bool kClamps, bool kFull, int M, int N>
  static void store_numbers(char* out, const Counted<Portable, M, N>& counted, const Work& work) {
    const int channels = kFull ? kLanes : work.channels;
    for (int i = 0; i < channels; ++i) {
      const float y = transform<kClamps>(work, static_cast<int32_t>(counted.counter[0][0].lane[i]), i);
      if constexpr (kOutput == Output::kFloat)
        reinterpret_cast<float*>(out)[i] = y;
      else
        out[i] = static_cast<char>(y <= -128.0f ? -128 : y >= 127.0f ? 127 : static_cast<int>(std::round(y)));
    }
  }
};

template <class T>
void quantize_below(const T* in, int64_t pixels, int channels, T zero, uint32_t* out) {
  quantize_rows<32>(in, pixels, channels, zero, out, [zero](const T* from, uint32_t* to) {
    *to = 0;
    for (int c = 0; c < 32; ++c) *to |= static_cast<uint32_t>(from[c] < zero) << c;
  });
}

void quantize(const float* in, int64_t pixels, int channels, uint32_t* out) {
  quantize_below(in, pixels, channels, 0.0f, out);
}

void quantize_bytes(const int8_t* in, int64_t pixels, int channels, int8_t zero_point, uint32_t* out) {
  quantize_below(in, pixels, channels, zero_point, out);
}

const dmsflow::Kernels kKernels = {
    "portable",
    Portable::kLanes,
    Portable::kVectors,
    Portable::kCopies,
    INT32_MAX,
    INT32_MAX,
    {convolve<Portable, Output::kFloat>, convolve<Portable, Output::kInt8>, convolve<Portable, Output::kBits>},
    {},  // here runtimes have better ones
    quantize,
    quantize_bytes,
};

}  // namespace

const dmsflow::Kernels* dmsflow::portable_kernels() { return &kKernels; }
