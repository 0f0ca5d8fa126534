// Which kernels to use, and the operations that need none.

#include "ops.h"

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace dmsflow {

// --- kernels ----------------------------------------------------------------------------------

namespace {

const Kernels* (*const kAll[])() = {  // the best ones first
    avx512_kernels, avx2_kernels, neon_dotprod_kernels, neon_kernels, portable_kernels,
};

}  // namespace

const Kernels* find_kernels(const char* name) {
  for (const auto kernels : kAll)
    if (const Kernels* found = kernels())
      if (std::strcmp(found->name, name) == 0) return found;
  return nullptr;
}

const Kernels* best_kernels() {
  if (const char* name = std::getenv("DMSFLOW_KERNELS"))
    if (const Kernels* found = find_kernels(name)) return found;
  for (const auto kernels : kAll)
    if (const Kernels* found = kernels()) return found;
  return portable_kernels();
}

const char* name_of(const Kernels* kernels) { return kernels->name; }

bool has_byte_conv(const Kernels* kernels) { return kernels->bytes.convolve; }

// --- bits from numbers, and back ----------------------------------------------------------------

namespace {

// Rows without gaps between them may be taken for longer ones, which have fewer ends.
void join_rows(int64_t& pixels, int& channels) {
  if (channels % 32 == 0)
    for (; pixels % 2 == 0 && channels <= INT32_MAX / 2; pixels /= 2) channels *= 2;
}

}  // namespace

void quantize_float(const Kernels* kernels, const float* in, int64_t pixels, int channels, uint32_t* out) {
  join_rows(pixels, channels);
  kernels->quantize(in, pixels, channels, out);
}

void quantize_int8(const Kernels* kernels, const int8_t* in, int64_t pixels, int channels, int32_t zero_point,
                   uint32_t* out) {
  join_rows(pixels, channels);
  if (zero_point >= INT8_MIN && zero_point <= INT8_MAX) {
    kernels->quantize_bytes(in, pixels, channels, static_cast<int8_t>(zero_point), out);
    return;
  }
  for (int64_t pixel = 0; pixel < pixels; ++pixel)  // all numbers are on one side of it
    for (int left = channels; left > 0; left -= 32)
      *out++ = zero_point < 0 ? 0 : left < 32 ? (1u << left) - 1 : ~0u;
}

namespace {

template <typename T>
void dequantize(const uint32_t* in, int64_t pixels, int channels, T zero_bit, T one_bit, T* out) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, in += words_of(channels))
    for (int c = 0; c < channels; ++c) *out++ = in[c / 32] >> (c % 32) & 1 ? one_bit : zero_bit;
}

}  // namespace

void dequantize_float(const uint32_t* in, int64_t pixels, int channels, float* out) {
  dequantize(in, pixels, channels, 1.0f, -1.0f, out);
}

void dequantize_int8(const uint32_t* in, int64_t pixels, int channels, int8_t zero_bit, int8_t one_bit, int8_t* out) {
  dequantize(in, pixels, channels, zero_bit, one_bit, out);
}

// --- windows ------------------------------------------------------------------------------------

namespace {

// Output size, and padding in front, along one side; false: there is no output.
bool place_side(int size, int filter, int stride, int dilation, bool same, int& out, int& pad) {
  const int64_t reach = (static_cast<int64_t>(filter) - 1) * dilation + 1;
  const int64_t count = same ? (static_cast<int64_t>(size) + stride - 1) / stride : (size - reach + stride) / stride;
  if (count < 1 || count > INT32_MAX || (!same && size < reach)) return false;
  const int64_t missing = (count - 1) * stride + reach - size;
  if (missing > INT32_MAX) return false;
  out = static_cast<int>(count);
  pad = missing > 0 ? static_cast<int>(missing / 2) : 0;
  return true;
}

}  // namespace

bool place(Window& window, bool same_padding) {
  Window& w = window;
  return place_side(w.height, w.filter_height, w.stride_height, w.dilation_height, same_padding, w.out_height,
                    w.pad_top) &&
         place_side(w.width, w.filter_width, w.stride_width, w.dilation_width, same_padding, w.out_width, w.pad_left);
}

namespace {

// The AND of `rows` x `columns` pixels; in parts of kWords words, each held in registers.
template <int kWords>
int and_pixels(const uint32_t* in, int64_t row, int words, int rows, int columns, int begin, uint32_t* out) {
  for (; begin + kWords <= words; begin += kWords) {
    uint32_t all[kWords];
    for (uint32_t& word : all) word = ~0u;
    for (int y = 0; y < rows; ++y) {
      const uint32_t* pixel = in + y * row + begin;
      for (int x = 0; x < columns; ++x, pixel += words)
        for (int i = 0; i < kWords; ++i) all[i] &= pixel[i];
    }
    for (int i = 0; i < kWords; ++i) out[begin + i] = all[i];
  }
  return begin;
}

}  // namespace

void max_pool(const Window& w, const uint32_t* in, int words, uint32_t* out) {
  const int64_t row = static_cast<int64_t>(w.width) * words;
  for (int b = 0; b < w.batch; ++b, in += row * w.height)
    for (int y = 0; y < w.out_height; ++y) {
      const int top = y * w.stride_height - w.pad_top, first_y = top > 0 ? top : 0;
      const int end_y = top + w.filter_height < w.height ? top + w.filter_height : w.height;
      for (int x = 0; x < w.out_width; ++x, out += words) {
        const int left = x * w.stride_width - w.pad_left, first_x = left > 0 ? left : 0;
        const int end_x = left + w.filter_width < w.width ? left + w.filter_width : w.width;
        const uint32_t* from = in + first_y * row + static_cast<int64_t>(first_x) * words;
        const int done = and_pixels<4>(from, row, words, end_y - first_y, end_x - first_x, 0, out);
        and_pixels<1>(from, row, words, end_y - first_y, end_x - first_x, done, out);
      }
    }
}

}  // namespace dmsflow
