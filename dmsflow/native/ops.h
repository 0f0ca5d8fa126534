// The operations of Larq Compute Engine (LCE), on plain arrays.
//
// Bits: 32 channels to the word, channel c is bit c % 32 of word c / 32; bit 1 stands for -1, bit 0 for
// +1. Unused bits of a pixel's last word are 0. Images are NHWC.
//
// What a caller must see to (the delegate and the benchmark program do): sizes are positive, products of
// them fit into 31 bits, and pointers have room for what the shapes say.
#pragma once

#include <cstdint>

#include "memory.h"
#include "workers.h"

namespace dmsflow {

struct Kernels;

constexpr int words_of(int channels) { return (channels + 31) / 32; }

// The kernels that suit this processor best: "avx512", "avx2", "neon-dotprod", "neon" or "portable".
// The environment variable DMSFLOW_KERNELS names others; an unknown or unsupported name is ignored.
const Kernels* best_kernels();
// Of this name; null: unknown here, or the processor lacks the instructions.
const Kernels* find_kernels(const char* name);
const char* name_of(const Kernels* kernels);

// LceQuantize: bit 1 where in < 0, of `pixels` rows of `channels`.
void quantize_float(const Kernels* kernels, const float* in, int64_t pixels, int channels, uint32_t* out);
// Bit 1 where in < zero_point.
void quantize_int8(const Kernels* kernels, const int8_t* in, int64_t pixels, int channels, int32_t zero_point,
                   uint32_t* out);
// LceDequantize: zero_bit where a bit is 0, one_bit where it is 1.
void dequantize_float(const uint32_t* in, int64_t pixels, int channels, float* out);
void dequantize_int8(const uint32_t* in, int64_t pixels, int channels, int8_t zero_bit, int8_t one_bit, int8_t* out);

// A window that moves over an image.
struct Window {
  int batch = 1, height = 0, width = 0;            // the image
  int filter_height = 1, filter_width = 1;
  int stride_height = 1, stride_width = 1;
  int dilation_height = 1, dilation_width = 1;
  int pad_top = 0, pad_left = 0;                   // rows and columns in front of the image
  int out_height = 0, out_width = 0;
};

// Output sizes and padding in front, as TFLite computes them; false: the window fits nowhere.
// Takes everything but pad_* and out_* from `window`.
bool place(Window& window, bool same_padding);

// LceBMaxPool2d: the AND of all words of a window; what lies outside the image does not count.
void max_pool(const Window& window, const uint32_t* in, int words, uint32_t* out);

enum class Output { kFloat, kInt8, kBits };

// LceBconv2d. With `count` the number of bits in which a window and a filter differ (popcount of XOR):
//   kFloat: y = float(clamp(2 * count)) * multiplier + bias, in this order and without fused operations
//   kInt8:  y rounded half away from zero, and saturated
//   kBits:  bit 1 where count > threshold
// Outside the image all bits are 0 (+1: one-padding); zero-padding adds a correction to a float y.
struct ConvParams {
  Window window;
  int channels = 0;  // of the image; with groups > 1 a multiple of 32 * groups
  int filters = 0;   // output channels; a multiple of groups; with kBits and groups > 1 of 32 * groups
  int groups = 1;
  Output output = Output::kFloat;
  const uint32_t* filter = nullptr;    // [filters, filter_height, filter_width, words_of(channels / groups)]
  const float* multiplier = nullptr;   // [filters], kFloat and kInt8
  const float* bias = nullptr;         // [filters], kFloat and kInt8
  const int32_t* thresholds = nullptr; // [filters], kBits
  int32_t clamp_min = INT32_MIN, clamp_max = INT32_MAX;
  // Zero-padding, kFloat only: what to multiply the sum of the weights outside the image with, and add
  // last; null: one-padding.
  const float* correction_multiplier = nullptr;  // [filters]
};

class Conv;

// Packs the weights; nothing of `params` need stay alive after it. Null: there is no memory.
Conv* make_conv(const Kernels* kernels, const ConvParams& params);
// Another image size with the same weights; false: there is no memory.
bool resize_conv(Conv* conv, const Window& window);
// in [batch, height, width, words_of(channels)]; out [batch, out_height, out_width, filters], or
// words_of(filters) with kBits. One run at a time.
void run_conv(Conv* conv, const uint32_t* in, void* out, Workers* workers);
void free_conv(Conv* conv);  // null is fine

constexpr int kMostByteWindow = 1024;  // bytes, of a window of 16-bit numbers too

// A convolution of int8, and LceQuantize: bit 1 where bias + the sum of weight * (number - zero_point) is below 0. Or these
// sums as floats. What callers must see to, too: no such sum is beyond 31 bits, or, of floats, 24.
struct ByteParams {
  Window window;  // of dilation 1
  int channels = 0, filters = 0;
  const int8_t* filter = nullptr;  // [filters, filter_height, filter_width, channels], -127 at least
  const int32_t* bias = nullptr;   // [filters]; null: zeros
  bool floats = false;
  int zero_point = 0, fill = 0;    // int8; `fill` stands around the image
  bool is_unsigned = false;        // the image holds uint8, each number + 128
};

class ByteConv;

bool has_byte_conv(const Kernels* kernels);
// As those of Conv, with kernels that have one.
ByteConv* make_byte_conv(const Kernels* kernels, const ByteParams& params);
bool resize_byte_conv(ByteConv* conv, const Window& window);
void run_byte_conv(ByteConv* conv, const void* in, void* out, Workers* workers);
void free_byte_conv(ByteConv* conv);

}  // namespace dmsflow
