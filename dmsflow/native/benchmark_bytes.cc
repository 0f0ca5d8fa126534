// See benchmark_bytes.h.
//
// Source: the reference kernels of TFLite, and gemmlowp's fixed-point arithmetic, which they round with.
#include "benchmark_bytes.h"

#include <cmath>

namespace dmsflow {
namespace {

int8_t saturated(int64_t value, int least, int most) {
  return static_cast<int8_t>(value < least ? least : value > most ? most : value);
}

}  // namespace

bool make_factor(double value, Factor& factor) {
  if (!(value >= 0 && value < 1 << 30)) return false;
  factor = {0, 0};
  int shift = 0;
  auto multiplier = static_cast<int64_t>(std::round(std::frexp(value, &shift) * 2147483648.0));
  if (multiplier == int64_t{1} << 31) {
    multiplier /= 2;
    ++shift;
  }
  if (shift >= -31) factor = {static_cast<int32_t>(multiplier), shift};
  return true;
}

// Rounded twice: to 32 bits, a half up, and to the end, a half away from zero.
int32_t multiply(int32_t value, const Factor& factor) {
  const int left = factor.shift > 0 ? factor.shift : 0, right = factor.shift > 0 ? 0 : -factor.shift;
  const auto shifted = static_cast<int32_t>(static_cast<uint32_t>(value) << left);
  const int64_t product = int64_t{shifted} * factor.multiplier;
  const auto high = static_cast<int32_t>((product + (product >= 0 ? 1 << 30 : 1 - (1 << 30))) / (int64_t{1} << 31));
  if (right == 0) return high;
  const int64_t mask = (int64_t{1} << right) - 1, rest = high & mask;
  return static_cast<int32_t>((int64_t{high} >> right) + (rest > (mask >> 1) + (high < 0 ? 1 : 0) ? 1 : 0));
}

void Requantize::put(const uint32_t* sums, int count, int first, int8_t* out) const {
  for (int i = 0; i < count; ++i) {
    const int32_t scaled = multiply(static_cast<int32_t>(sums[i]), factors[static_cast<size_t>(first + i)]);
    out[i] = saturated(int64_t{scaled} + zero_point, least, most);
  }
}

void quantize(const Quantization& to, const float* in, int64_t count, int8_t* out) {
  constexpr float kFar = 1024;  // outside of int8, whatever the zero point; and for what is no number
  for (int64_t i = 0; i < count; ++i) {
    const float value = std::round(in[i] / to.scale);
    const float near = value < kFar ? (value > -kFar ? value : -kFar) : kFar;
    out[i] = saturated(static_cast<int>(near) + to.zero_point, INT8_MIN, INT8_MAX);
  }
}

void dequantize(const Quantization& from, const int8_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = from.scale * static_cast<float>(in[i] - from.zero_point);
}

template <typename T>
void rescale(const Factor& factor, int from, int to, const T* in, int64_t count, int8_t* out) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = saturated(int64_t{multiply(in[i] - from, factor)} + to, INT8_MIN, INT8_MAX);
}

template void rescale(const Factor&, int, int, const int8_t*, int64_t, int8_t*);
template void rescale(const Factor&, int, int, const uint8_t*, int64_t, int8_t*);

}  // namespace dmsflow
