// Numbers in int8 tensors, scale * (value - zero_point), as TFLite's reference kernels calculate them.
#pragma once

#include <cstdint>

#include "memory.h"
#include "tflite_abi.h"

namespace dmsflow {

// A number from 0 on as multiplier * 2^(shift - 31).
struct Factor {
  int32_t multiplier;
  int shift;
};

bool make_factor(double value, Factor& factor);      // false: it is too large, or no number
int32_t multiply(int32_t value, const Factor& factor);  // rounded

// From sums of products to int8.
struct Requantize {
  Buffer<Factor> factors;  // of each filter
  int zero_point = 0, least = INT8_MIN, most = INT8_MAX;

  // Writes finished sums, those of the filters from `first` on.
  void put(const uint32_t* sums, int count, int first, int8_t* out) const;
};

void quantize(const Quantization& to, const float* in, int64_t count, int8_t* out);
void dequantize(const Quantization& from, const int8_t* in, int64_t count, float* out);
// From one scale to another: `factor` is how many steps of the new one a step of the old one has.
template <typename T>  // int8_t or uint8_t
void rescale(const Factor& factor, int from, int to, const T* in, int64_t count, int8_t* out);

}  // namespace dmsflow
