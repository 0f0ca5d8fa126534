// Random convolutions and quantisations by every set of kernels that this processor has, against loops
// that are written as ops.h says. Exit status 1 and a line where they differ.
//
//   kernels SEED CASES

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "../../dmsflow/native/ops.h"

using namespace dmsflow;

namespace {

uint64_t state;

uint32_t random_word() {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return static_cast<uint32_t>(state * 0x2545F4914F6CDD1DULL >> 32);
}

int between(int low, int high) { return low + static_cast<int>(random_word() % (high - low + 1)); }

float random_float() { return (static_cast<float>(random_word()) / 4294967296.0f - 0.5f) * 2; }

struct Case {
  ConvParams params;
  Buffer<uint32_t> filter, in;
  Buffer<float> multiplier, bias, correction;
  Buffer<int32_t> thresholds;
};

// Bits of `channels` channels, those beyond them 0.
void fill_bits(Buffer<uint32_t>& to, size_t pixels, int channels) {
  const int words = words_of(channels);
  to.resize(pixels * words);
  for (size_t pixel = 0; pixel < pixels; ++pixel)
    for (int i = 0; i < words; ++i) {
      const int left = channels - 32 * i;
      to[pixel * words + i] = random_word() & (left >= 32 ? ~0u : (1u << left) - 1);
    }
}

bool make_case(Case& c) {
  ConvParams& p = c.params;
  Window& w = p.window;
  const bool wide = between(0, 5) == 0;
  p.groups = between(0, 5) ? 1 : between(2, 3);
  p.output = static_cast<Output>(between(0, 2));
  p.channels = p.groups > 1 ? 32 * p.groups * between(1, 2) : between(1, wide ? 700 : 140);
  p.filters = p.groups * (p.output == Output::kBits && p.groups > 1 ? 32 * between(1, 2) : between(1, wide ? 40 : 150));
  w.batch = between(1, 2);
  w.height = between(1, 9);
  w.width = between(1, 9);
  w.filter_height = between(1, 5);
  w.filter_width = between(1, 5);
  w.stride_height = between(1, 3);
  w.stride_width = between(1, 3);
  w.dilation_height = between(0, 3) ? 1 : 2;
  w.dilation_width = between(0, 3) ? 1 : between(2, 3);
  const bool same = between(0, 1);
  if (!place(w, same)) return false;
  const int group_channels = p.channels / p.groups;
  fill_bits(c.filter, static_cast<size_t>(p.filters) * w.filter_height * w.filter_width, group_channels);
  fill_bits(c.in, static_cast<size_t>(w.batch) * w.height * w.width, p.channels);
  c.multiplier.resize(p.filters);
  c.bias.resize(p.filters);
  c.correction.resize(p.filters);
  c.thresholds.resize(p.filters);
  const int depth = group_channels * w.filter_height * w.filter_width;
  const float scale = p.output == Output::kInt8 ? 100.0f / static_cast<float>(depth) : 1.0f;
  for (int f = 0; f < p.filters; ++f) {
    c.multiplier[f] = scale * (between(0, 3) ? random_float() : static_cast<float>(between(-2, 2)) / 2);
    c.bias[f] = between(0, 3) ? random_float() * 50 : static_cast<float>(between(-9, 9)) / 2;
    c.correction[f] = random_float();
    c.thresholds[f] = between(0, 9) ? between(0, depth) : static_cast<int32_t>(random_word());
  }
  p.filter = c.filter.data();
  p.multiplier = c.multiplier.data();
  p.bias = c.bias.data();
  p.thresholds = c.thresholds.data();
  p.correction_multiplier = same && p.output == Output::kFloat && between(0, 1) ? c.correction.data() : nullptr;
  if (between(0, 2) == 0) {
    p.clamp_min = between(0, depth);
    p.clamp_max = p.clamp_min + between(0, depth);
  }
  return true;
}

// How many bits differ between a window and a filter, and the sum of the weights outside the image.
int count(const Case& c, int b, int y, int x, int f, int& outside) {
  const ConvParams& p = c.params;
  const Window& w = p.window;
  const int words = words_of(p.channels), each = words_of(p.channels / p.groups);
  const int group = f / (p.filters / p.groups);
  const uint32_t* weight = p.filter + static_cast<size_t>(f) * w.filter_height * w.filter_width * each;
  int total = 0;
  outside = 0;
  for (int i = 0; i < w.filter_height; ++i)
    for (int j = 0; j < w.filter_width; ++j) {
      const int at_y = y * w.stride_height + i * w.dilation_height - w.pad_top;
      const int at_x = x * w.stride_width + j * w.dilation_width - w.pad_left;
      const bool inside = at_y >= 0 && at_y < w.height && at_x >= 0 && at_x < w.width;
      if (!inside) outside += p.channels / p.groups;
      for (int k = 0; k < each; ++k, ++weight) {
        const size_t pixel = (static_cast<size_t>(b) * w.height + at_y) * w.width + at_x;
        total += __builtin_popcount(*weight ^ (inside ? c.in[pixel * words + group * each + k] : 0));
        if (!inside) outside -= 2 * __builtin_popcount(*weight);
      }
    }
  return total;
}

void expect(const Case& c, char* out) {
  const ConvParams& p = c.params;
  const Window& w = p.window;
  for (int b = 0; b < w.batch; ++b)
    for (int y = 0; y < w.out_height; ++y)
      for (int x = 0; x < w.out_width; ++x) {
        const size_t pixel = (static_cast<size_t>(b) * w.out_height + y) * w.out_width + x;
        for (int f = 0; f < p.filters; ++f) {
          int outside;
          const int n = count(c, b, y, x, f, outside);
          int clamped = 2 * n < p.clamp_max ? 2 * n : p.clamp_max;
          clamped = clamped > p.clamp_min ? clamped : p.clamp_min;
          float value = 0;
          if (p.output != Output::kBits) value = static_cast<float>(clamped) * p.multiplier[f] + p.bias[f];
          if (p.correction_multiplier) value += p.correction_multiplier[f] * static_cast<float>(outside);
          if (p.output == Output::kFloat) reinterpret_cast<float*>(out)[pixel * p.filters + f] = value;
          const float rounded = std::round(value);
          if (p.output == Output::kInt8)
            out[pixel * p.filters + f] = static_cast<int8_t>(rounded < -128 ? -128 : rounded > 127 ? 127 : rounded);
          if (p.output == Output::kBits && n > p.thresholds[f])
            reinterpret_cast<uint32_t*>(out)[pixel * words_of(p.filters) + f / 32] |= 1u << f % 32;
        }
      }
}

size_t out_bytes(const ConvParams& p) {
  const Window& w = p.window;
  const size_t pixels = static_cast<size_t>(w.batch) * w.out_height * w.out_width;
  return pixels * (p.output == Output::kInt8 ? p.filters : 4 * (p.output == Output::kFloat ? p.filters : words_of(p.filters)));
}

void describe(const char* kernels, const ConvParams& p, size_t byte) {
  const Window& w = p.window;
  std::printf("%s: image %dx%dx%dx%d, %d filters %dx%d, strides %d %d, dilations %d %d, pads %d %d, groups %d, "
              "output %d, clamp %d %d: byte %zu differs\n",
              kernels, w.batch, w.height, w.width, p.channels, p.filters, w.filter_height, w.filter_width,
              w.stride_height, w.stride_width, w.dilation_height, w.dilation_width, w.pad_top, w.pad_left, p.groups,
              static_cast<int>(p.output), p.clamp_min, p.clamp_max, byte);
}

bool check_conv(const Kernels* kernels, const Case& c, const Buffer<char>& expected, Workers* workers) {
  constexpr char kUntouched = 0x55;
  const size_t bytes = out_bytes(c.params);
  Buffer<char> out;
  out.resize(bytes + 64);
  std::memset(out.data(), kUntouched, bytes + 64);
  Conv* conv = make_conv(kernels, c.params);
  for (int run = 0; run < 2; ++run) run_conv(conv, c.in.data(), out.data(), workers);
  free_conv(conv);
  for (size_t i = 0; i < bytes + 64; ++i)
    if (out[i] != (i < bytes ? expected[i] : kUntouched)) {
      describe(name_of(kernels), c.params, i);
      return false;
    }
  return true;
}

// Whether the bits are those of `below`, by pixel and channel, and nothing is written behind them.
template <class Below>
bool check_bits(const Kernels* kernels, const Buffer<uint32_t>& out, int pixels, int channels, Below below) {
  for (int pixel = 0; pixel < pixels; ++pixel)
    for (int c = 0; c < 32 * words_of(channels); ++c) {
      const bool bit = out[static_cast<size_t>(pixel) * words_of(channels) + c / 32] >> c % 32 & 1;
      if (bit != (c < channels && below(static_cast<size_t>(pixel) * channels + c))) {
        std::printf("%s: quantize %d x %d, channel %d of pixel %d differs\n", name_of(kernels), pixels, channels, c, pixel);
        return false;
      }
    }
  return out[out.size() - 1] == 0x55555555;
}

bool check_quantize(const Kernels* kernels) {
  const int pixels = between(1, 9), channels = between(1, 200);
  const int zero_point = between(0, 9) ? between(-128, 127) : between(-400, 400);
  Buffer<float> in;
  Buffer<int8_t> bytes;
  in.resize(static_cast<size_t>(pixels) * channels);
  bytes.resize(in.size());
  for (size_t i = 0; i < in.size(); ++i) {
    in[i] = between(0, 9) ? random_float() : between(0, 1) ? -0.0f : NAN;
    bytes[i] = static_cast<int8_t>(between(-128, 127));
  }
  Buffer<uint32_t> out, of_bytes;
  for (Buffer<uint32_t>* each : {&out, &of_bytes}) {
    each->resize(static_cast<size_t>(pixels) * words_of(channels) + 1);
    std::memset(each->data(), 0x55, each->size() * 4);
  }
  quantize_float(kernels, in.data(), pixels, channels, out.data());
  quantize_int8(kernels, bytes.data(), pixels, channels, zero_point, of_bytes.data());
  return check_bits(kernels, out, pixels, channels, [&](size_t at) { return in[at] < 0; }) &&
         check_bits(kernels, of_bytes, pixels, channels, [&](size_t at) { return bytes[at] < zero_point; });
}

struct ByteCase {
  ByteParams params;
  Buffer<int8_t> filter, in;  // the image without 128
  Buffer<int32_t> bias;

  int64_t sum(int b, int y, int x, int f) const {
    const ByteParams& p = params;
    const Window& w = p.window;
    int64_t total = p.bias[f];
    for (int tap = 0; tap < w.filter_height * w.filter_width; ++tap)
      for (int c = 0; c < p.channels; ++c) {
        const int at_y = y * w.stride_height - w.pad_top + tap / w.filter_width;
        const int at_x = x * w.stride_width - w.pad_left + tap % w.filter_width;
        const bool inside = at_y >= 0 && at_y < w.height && at_x >= 0 && at_x < w.width;
        const int64_t pixel = (static_cast<int64_t>(b) * w.height + at_y) * w.width + at_x;
        const int number = inside ? in[static_cast<size_t>(pixel * p.channels + c)] : p.fill;
        const size_t weight = (static_cast<size_t>(f) * w.filter_height * w.filter_width + tap) * p.channels + c;
        total += static_cast<int64_t>(number - p.zero_point) * filter[weight];
      }
    return total;
  }
};

// With some sums that are exactly 0.
void make_byte_case(ByteCase& c) {
  ByteParams& p = c.params;
  Window& w = p.window;
  w.batch = between(1, 2);
  w.height = between(1, 20);
  w.width = between(1, 20);
  w.filter_height = between(1, 7);
  w.filter_width = between(1, 7);
  w.stride_height = between(1, 2);
  w.stride_width = between(1, 2);
  place(w, true);
  w.pad_top = between(0, w.filter_height);
  w.pad_left = between(0, w.filter_width);
  w.out_height = between(1, w.out_height);
  w.out_width = between(1, w.out_width);
  p.channels = between(0, 2) ? 3 : between(1, 10);
  p.filters = between(1, 150);
  p.zero_point = between(-128, 127);
  p.fill = between(-128, 127);
  p.is_unsigned = between(0, 1);
  c.in.resize(static_cast<size_t>(w.batch) * w.height * w.width * p.channels);
  c.filter.resize(static_cast<size_t>(p.filters) * w.filter_height * w.filter_width * p.channels);
  c.bias.resize(static_cast<size_t>(p.filters));
  const bool extreme = between(0, 3) == 0;
  for (size_t i = 0; i < c.in.size(); ++i) c.in[i] = static_cast<int8_t>(extreme ? -128 : between(-128, 127));
  for (size_t i = 0; i < c.filter.size(); ++i)
    c.filter[i] = static_cast<int8_t>(extreme ? between(0, 1) * 254 - 127 : between(-127, 127));
  p.filter = c.filter.data();
  p.bias = c.bias.data();
  for (int f = 0; f < p.filters; ++f)
    c.bias[static_cast<size_t>(f)] = static_cast<int32_t>(
        between(-1, 1) - c.sum(between(0, w.batch - 1), between(0, w.out_height - 1), between(0, w.out_width - 1), f));
}

bool check_bytes(const Kernels* kernels, const ByteCase& c, Workers* workers) {
  const ByteParams& p = c.params;
  const Window& w = p.window;
  if (!has_byte_conv(kernels) || 2 * w.filter_height * w.filter_width * p.channels > kMostByteWindow) return true;
  Buffer<uint8_t> in;  // of its exact size, for the sanitizer
  in.resize(c.in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(c.in[i] + (p.is_unsigned ? 128 : 0));
  const int words = words_of(p.filters), pixels = w.batch * w.out_height * w.out_width;
  Buffer<uint32_t> out;
  out.resize(static_cast<size_t>(pixels) * words + 1);
  std::memset(out.data(), 0x55, out.size() * 4);
  ByteConv* conv = make_byte_conv(kernels, p);
  for (int run = 0; run < 2; ++run) run_byte_conv(conv, in.data(), out.data(), workers);
  free_byte_conv(conv);
  for (int pixel = 0; pixel < pixels; ++pixel)
    for (int f = 0; f < 32 * words; ++f) {
      const int x = pixel % w.out_width, y = pixel / w.out_width % w.out_height, b = pixel / w.out_width / w.out_height;
      const bool bit = out[static_cast<size_t>(pixel) * words + f / 32] >> f % 32 & 1;
      if (bit != (f < p.filters && c.sum(b, y, x, f) < 0)) {
        std::printf("%s: bytes %dx%dx%dx%d, %d filters %dx%d, strides %d %d, pads %d %d, unsigned %d: filter %d of "
                    "pixel %d differs\n", name_of(kernels), w.batch, w.height, w.width, p.channels, p.filters,
                    w.filter_height, w.filter_width, w.stride_height, w.stride_width, w.pad_top, w.pad_left,
                    p.is_unsigned, f, pixel);
        return false;
      }
    }
  return out[out.size() - 1] == 0x55555555;
}

// The same sums without their bias, which floats hold.
bool check_byte_floats(const Kernels* kernels, const ByteCase& c, Workers* workers) {
  ByteParams p = c.params;
  const Window& w = p.window;
  if (!has_byte_conv(kernels) || 2 * w.filter_height * w.filter_width * p.channels > kMostByteWindow) return true;
  Buffer<uint8_t> in;
  in.resize(c.in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint8_t>(c.in[i] + (p.is_unsigned ? 128 : 0));
  const int pixels = w.batch * w.out_height * w.out_width;
  Buffer<float> out;
  out.resize(static_cast<size_t>(pixels) * p.filters);
  p.bias = nullptr;
  p.floats = true;
  ByteConv* conv = make_byte_conv(kernels, p);
  for (int run = 0; run < 2; ++run) run_byte_conv(conv, in.data(), out.data(), workers);
  free_byte_conv(conv);
  for (int pixel = 0; pixel < pixels; ++pixel)
    for (int f = 0; f < p.filters; ++f) {
      const int x = pixel % w.out_width, y = pixel / w.out_width % w.out_height, b = pixel / w.out_width / w.out_height;
      const int64_t sum = c.sum(b, y, x, f) - c.bias[static_cast<size_t>(f)];
      if (out[static_cast<size_t>(pixel) * p.filters + f] != static_cast<float>(sum)) {
        std::printf("%s: floats of bytes: filter %d of pixel %d differs\n", name_of(kernels), f, pixel);
        return false;
      }
    }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  state = argc > 1 ? std::strtoull(argv[1], nullptr, 10) * 2 + 1 : 1;
  const int cases = argc > 2 ? std::atoi(argv[2]) : 200;
  for (int i = 0; i < 8; ++i) random_word();
  Workers* workers = make_workers(2);
  int failed = 0, done = 0;
  for (int i = 0; i < cases && failed < 20; ++i) {
    Case c;
    if (!make_case(c)) continue;
    Buffer<char> expected;
    expected.resize(out_bytes(c.params));
    expect(c, expected.data());
    ByteCase bytes;
    if (i % 4 == 0) make_byte_case(bytes);
    for (const char* name : {"portable", "avx2", "avx512", "neon", "neon-dotprod"})
      if (const Kernels* kernels = find_kernels(name)) {
        failed += !check_conv(kernels, c, expected, i % 2 ? workers : nullptr) + !check_quantize(kernels);
        if (i % 4 == 0) {
          failed += !check_bytes(kernels, bytes, i % 8 ? workers : nullptr);
          failed += !check_byte_floats(kernels, bytes, i % 8 ? workers : nullptr);
        }
        ++done;
      }
  }
  free_workers(workers);
  std::printf("%d cases, %d failed\n", done, failed);
  return failed != 0;
}
