// The operations on numbers that stand around the 1-bit ones, for the benchmark program: the few that
// dmsflow's own files hold, as plain loops. The convolution alone, of a network's first layer, is blocked.
#pragma once

#include <cstdint>

#include "memory.h"
#include "ops.h"
#include "workers.h"

namespace dmsflow {

struct Limits {  // a fused activation
  float least = -3.402823466e38f, most = 3.402823466e38f;
  bool none = true;
};

// image [batch, height, width, channels], filter [filters, filter_height, filter_width, channels].
class FloatConv {
 public:
  // False: there is no memory. `bias` may be null.
  bool prepare(const Window& window, int channels, int filters, const float* filter, const float* bias,
               const Limits& limits);
  void run(const float* in, float* out, Workers* workers);

 private:
  void pad(const float* in);
  void run_row(int row) const;
  static void run_row_of(void* self, int row);

  Window window_;
  int channels_ = 0, filters_ = 0, blocks_ = 0;
  int padded_height_ = 0, padded_width_ = 0;
  Limits limits_;
  Buffer<float> weights_;  // [block, filter_height, filter_width * channels, kFilters]
  Buffer<float> bias_;
  Buffer<float> padded_;
  const float* image_ = nullptr;
  float* out_ = nullptr;
};

// out [rows, filters] = in [rows, channels] times filter [filters, channels], transposed, + bias or null.
void fully_connected(const float* in, int64_t rows, int channels, int filters, const float* filter, const float* bias,
                     const Limits& limits, float* out);

enum class Arithmetic { kAdd, kSub, kMul };
constexpr int kMostRank = 4;

// Two operands, stretched along sides where they have 1, to the shape `sides`.
struct Stretched {
  int64_t sides[kMostRank] = {1, 1, 1, 1};
  int64_t left[kMostRank] = {}, right[kMostRank] = {};  // steps along each side, 0 where stretched
};

void calculate(Arithmetic arithmetic, const Stretched& shape, const float* left, const float* right,
               const Limits& limits, float* out);
void calculate(Arithmetic arithmetic, const Stretched& shape, const uint32_t* left, const uint32_t* right,
               uint32_t* out);

void relu(const float* in, int64_t count, float* out);
void average_pool(const Window& window, const float* in, int channels, const Limits& limits, float* out);
void max_pool(const Window& window, const float* in, int channels, const Limits& limits, float* out);

// Words of 32 bits, of whatever type.
void pad(const uint32_t* in, const int64_t (&sides)[kMostRank], const int64_t (&front)[kMostRank],
         const int64_t (&back)[kMostRank], uint32_t fill, uint32_t* out);

}  // namespace dmsflow
