// The operations on numbers that stand around the 1-bit ones, for the benchmark program, as plain loops.
// The convolution alone, of a network's first layer, is blocked.
#pragma once

#include <cstdint>

#include "benchmark_bytes.h"
#include "memory.h"
#include "ops.h"
#include "workers.h"

namespace dmsflow {

struct Limits {  // a fused activation
  float least = -3.402823466e38f, most = 3.402823466e38f;
  bool none = true;

  // Writes finished sums, those of the filters from `first` on.
  void put(const float* sums, int count, int first, float* out) const;
};

// What sums of products are made of: floats, or int8 without its zero point, modulo 2^32 as TFLite's.
template <typename T>
struct Numbers;
template <>
struct Numbers<float> {
  typedef float Vector __attribute__((vector_size(16)));
  using Stored = float;
  using Finish = Limits;
};
template <>
struct Numbers<uint32_t> {
  typedef uint32_t Vector __attribute__((vector_size(16)));
  using Stored = int8_t;
  using Finish = Requantize;
};

// image [batch, height, width, channels], filter [filters, filter_height, filter_width, channels / groups].
template <typename T>
class PlainConv {
 public:
  using Stored = typename Numbers<T>::Stored;
  using Finish = typename Numbers<T>::Finish;

  // False: there is no memory. `bias` may be null; `finish` must stay alive; `zero_point` is the image's.
  bool prepare(const Window& window, int channels, int groups, int filters, const Stored* filter, const T* bias,
               int zero_point, const Finish& finish);
  void run(const Stored* in, Stored* out, Workers* workers);

 private:
  void pad(const Stored* in);
  void run_row(int row) const;
  static void run_row_of(void* self, int row);

  Window window_;
  int channels_ = 0, groups_ = 1, filters_ = 0, blocks_ = 0, zero_point_ = 0;  // blocks of each group
  int padded_height_ = 0, padded_width_ = 0;
  const Finish* finish_ = nullptr;
  Buffer<T> weights_;  // [group, block, filter_height, filter_width * channels of the group, kFilters]
  Buffer<T> bias_;     // [group, block, kFilters]
  Buffer<T> padded_;  // without a zero point; empty where the image can be read as it is
  const T* image_ = nullptr;
  Stored* out_ = nullptr;
};

// filter [filter_height, filter_width, channels * multiplier]; `bias` may be null.
template <typename T>
struct Depthwise {
  using Stored = typename Numbers<T>::Stored;
  const Window& window;
  int channels, multiplier, zero_point;
  const Stored *in, *filter;
  const T* bias;
  const typename Numbers<T>::Finish& finish;
  Stored* out;

  void run(Workers* workers);
};

// out [rows, filters] = in [rows, channels] times filter [filters, channels], transposed, + bias or null.
void fully_connected(const float* in, int64_t rows, int channels, int filters, const float* filter, const float* bias,
                     const Limits& limits, float* out);
void fully_connected(const int8_t* in, int64_t rows, int channels, int filters, const int8_t* filter, int zero_point,
                     const uint32_t* bias, const Requantize& finish, int8_t* out);

constexpr int kMostRank = 8;

// Up to three arrays that are walked along the same sides: of each its steps, 0 along a side where it has 1.
struct Strided {
  int64_t sides[kMostRank], out[kMostRank], left[kMostRank], right[kMostRank];

  void merge();  // sides that can be walked as one
};
constexpr Strided kPoint = {{1, 1, 1, 1, 1, 1, 1, 1}, {}, {}, {}};

enum class Arithmetic { kAdd, kSub, kMul, kDiv, kMaximum, kMinimum, kPrelu };

void calculate(Arithmetic arithmetic, const Strided& shape, const float* left, const float* right, float* out);
void calculate(Arithmetic arithmetic, const Strided& shape, const uint32_t* left, const uint32_t* right, uint32_t* out);

void limit(const Limits& limits, const float* in, int64_t count, float* out);
void logistic(const float* in, int64_t count, float* out);
void hyperbolic_tangent(const float* in, int64_t count, float* out);
void leaky_relu(float slope, const float* in, int64_t count, float* out);
void softmax(float beta, const float* in, int64_t rows, int64_t columns, float* out);
// Adds up what falls on one place of `out`, which has `count` of them, and divides.
void sum(const Strided& shape, const float* in, int64_t count, float divisor, float* out);
void average_pool(const Window& window, const float* in, int channels, const Limits& limits, float* out);
void max_pool(const Window& window, const float* in, int channels, const Limits& limits, float* out);

// Elements of 1 or 4 bytes; from shape.left to shape.out.
void copy(const Strided& shape, size_t width, const void* in, void* out);

struct Resize {
  int batch, height, width, channels, out_height, out_width;
  bool align_corners, half_pixels;
};
void resize_bilinear(const Resize& resize, const float* in, float* out);
void resize_nearest(const Resize& resize, size_t width, const void* in, void* out);

}  // namespace dmsflow
