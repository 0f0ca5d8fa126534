// See benchmark_floats.h.
#include "benchmark_floats.h"

#include <cstring>

namespace dmsflow {
namespace {

constexpr int kFilters = 16, kPixels = 4;  // outputs that are summed up at once: 16 registers of 4 numbers
constexpr int kLanes = 4, kVectors = kFilters / kLanes;
typedef float Vector __attribute__((vector_size(16)));

Vector load(const float* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

float limited(float value, const Limits& limits) {
  value = value < limits.least ? limits.least : value;
  return value > limits.most ? limits.most : value;
}

void limit(float* values, int64_t count, const Limits& limits) {
  if (limits.none) return;
  for (int64_t i = 0; i < count; ++i) values[i] = limited(values[i], limits);
}

// What lies inside the image, of a window at `begin`.
struct Span {
  int begin, end;
};

Span inside(int begin, int filter, int size) {
  const int64_t end = int64_t{begin} + filter;
  return {begin > 0 ? begin : 0, end < size ? static_cast<int>(end) : size};
}

}  // namespace

// --- the convolution ------------------------------------------------------------------------------------

bool FloatConv::prepare(const Window& window, int channels, int filters, const float* filter, const float* bias,
                        const Limits& limits) {
  window_ = window;
  channels_ = channels;
  filters_ = filters;
  limits_ = limits;
  blocks_ = (filters + kFilters - 1) / kFilters;
  const Window& w = window_;
  const int reach_y = (w.out_height - 1) * w.stride_height + (w.filter_height - 1) * w.dilation_height + 1;
  const int reach_x = (w.out_width - 1) * w.stride_width + (w.filter_width - 1) * w.dilation_width + 1;
  padded_height_ = reach_y > w.pad_top + w.height ? reach_y : w.pad_top + w.height;
  padded_width_ = reach_x > w.pad_left + w.width ? reach_x : w.pad_left + w.width;
  const bool pads = padded_height_ > w.height || padded_width_ > w.width;
  const size_t taps = static_cast<size_t>(w.filter_height) * w.filter_width * channels;
  if (!weights_.resize(blocks_ * taps * kFilters) || !bias_.resize(static_cast<size_t>(blocks_) * kFilters) ||
      (pads && !padded_.resize(static_cast<size_t>(w.batch) * padded_height_ * padded_width_ * channels)))
    return false;
  for (int f = 0; f < filters; ++f) {
    float* block = weights_.data() + static_cast<size_t>(f / kFilters) * taps * kFilters + f % kFilters;
    for (size_t tap = 0; tap < taps; ++tap) block[tap * kFilters] = filter[static_cast<size_t>(f) * taps + tap];
    if (bias) bias_[static_cast<size_t>(f)] = bias[f];
  }
  return true;
}

void FloatConv::pad(const float* in) {
  const size_t row = static_cast<size_t>(window_.width) * channels_;
  for (int b = 0; b < window_.batch; ++b)
    for (int y = 0; y < window_.height; ++y, in += row) {
      const size_t at = static_cast<size_t>(b) * padded_height_ + window_.pad_top + y;
      std::memcpy(padded_.data() + (at * padded_width_ + window_.pad_left) * channels_, in, row * sizeof(float));
    }
}

void FloatConv::run_row_of(void* self, int row) { static_cast<FloatConv*>(self)->run_row(row); }

void FloatConv::run(const float* in, float* out, Workers* workers) {
  image_ = in;
  out_ = out;
  if (padded_.size()) {
    pad(in);
    image_ = padded_.data();
  }
  share(workers, window_.batch * window_.out_height, run_row_of, this);
}

// One row of outputs: all filters, 16 at a time, of 4 pixels at a time.
void FloatConv::run_row(int row) const {
  const Window& w = window_;
  const size_t line = static_cast<size_t>(padded_.size() ? padded_width_ : w.width) * channels_;
  const int height = padded_.size() ? padded_height_ : w.height;
  const size_t top = static_cast<size_t>(row / w.out_height) * height + (row % w.out_height) * w.stride_height;
  const float* image = image_ + top * line;
  float* out = out_ + static_cast<size_t>(row) * w.out_width * filters_;
  const bool dense = w.dilation_width == 1;  // then a row of the filter is one run of numbers in the image
  const int runs = dense ? 1 : w.filter_width, length = dense ? w.filter_width * channels_ : channels_;
  for (int block = 0; block < blocks_; ++block) {
    const size_t taps = static_cast<size_t>(w.filter_height) * w.filter_width * channels_;
    const float* weights = weights_.data() + block * taps * kFilters;
    for (int x = 0; x < w.out_width; x += kPixels) {
      const float* pixels[kPixels];
      for (int p = 0; p < kPixels; ++p) {
        const int at = x + p < w.out_width ? x + p : w.out_width - 1;
        pixels[p] = image + static_cast<size_t>(at) * w.stride_width * channels_;
      }
      Vector sums[kPixels][kVectors];
      for (int v = 0; v < kVectors; ++v)
        for (int p = 0; p < kPixels; ++p) sums[p][v] = load(bias_.data() + block * kFilters + v * kLanes);
      const float* weight = weights;
      for (int y = 0; y < w.filter_height; ++y)
        for (int r = 0; r < runs; ++r) {
          const size_t skip = static_cast<size_t>(y) * w.dilation_height * line +
                              static_cast<size_t>(r) * w.dilation_width * channels_;
          for (int i = 0; i < length; ++i, weight += kFilters)
            for (int v = 0; v < kVectors; ++v) {
              const Vector of = load(weight + v * kLanes);
              for (int p = 0; p < kPixels; ++p) sums[p][v] += of * pixels[p][skip + i];
            }
        }
      const int count = filters_ - block * kFilters < kFilters ? filters_ - block * kFilters : kFilters;
      for (int p = 0; p < kPixels && x + p < w.out_width; ++p) {
        float* to = out + static_cast<size_t>(x + p) * filters_ + block * kFilters;
        std::memcpy(to, sums[p], sizeof(float) * static_cast<size_t>(count));
        limit(to, count, limits_);
      }
    }
  }
}

// --- the others -------------------------------------------------------------------------------------------

void fully_connected(const float* in, int64_t rows, int channels, int filters, const float* filter, const float* bias,
                     const Limits& limits, float* out) {
  for (int64_t row = 0; row < rows; ++row, in += channels, out += filters) {
    for (int f = 0; f < filters; ++f) {
      const float* weights = filter + static_cast<size_t>(f) * channels;
      Vector sums[kVectors] = {};
      int c = 0;
      for (; c + kFilters <= channels; c += kFilters)
        for (int v = 0; v < kVectors; ++v) sums[v] += load(in + c + v * kLanes) * load(weights + c + v * kLanes);
      const Vector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      for (; c < channels; ++c) total += in[c] * weights[c];
      out[f] = bias ? total + bias[f] : total;
    }
    limit(out, filters, limits);
  }
}

namespace {

struct Add {
  template <typename T>
  T operator()(T left, T right) const {
    return left + right;
  }
};
struct Sub {
  template <typename T>
  T operator()(T left, T right) const {
    return left - right;
  }
};
struct Mul {
  template <typename T>
  T operator()(T left, T right) const {
    return left * right;
  }
};

// Along the last side; each step is 0 or 1.
template <typename T, typename Operation>
void calculate_row(Operation operation, int64_t count, const T* left, int64_t left_step, const T* right,
                   int64_t right_step, T* __restrict out) {
  if (left_step && right_step)
    for (int64_t i = 0; i < count; ++i) out[i] = operation(left[i], right[i]);
  else if (left_step)
    for (int64_t i = 0; i < count; ++i) out[i] = operation(left[i], *right);
  else if (right_step)
    for (int64_t i = 0; i < count; ++i) out[i] = operation(*left, right[i]);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = operation(*left, *right);
}

template <typename T, typename Operation>
void calculate_all(Operation operation, const Stretched& shape, const T* left, const T* right, T* out) {
  const int64_t* sides = shape.sides;
  for (int64_t a = 0; a < sides[0]; ++a)
    for (int64_t b = 0; b < sides[1]; ++b)
      for (int64_t c = 0; c < sides[2]; ++c, out += sides[3])
        calculate_row(operation, sides[3], left + a * shape.left[0] + b * shape.left[1] + c * shape.left[2],
                      shape.left[3], right + a * shape.right[0] + b * shape.right[1] + c * shape.right[2],
                      shape.right[3], out);
}

template <typename T>
void calculate_any(Arithmetic arithmetic, const Stretched& shape, const T* left, const T* right, T* out) {
  switch (arithmetic) {
    case Arithmetic::kAdd:
      return calculate_all(Add(), shape, left, right, out);
    case Arithmetic::kSub:
      return calculate_all(Sub(), shape, left, right, out);
    case Arithmetic::kMul:
      return calculate_all(Mul(), shape, left, right, out);
  }
}

}  // namespace

void calculate(Arithmetic arithmetic, const Stretched& shape, const float* left, const float* right,
               const Limits& limits, float* out) {
  calculate_any(arithmetic, shape, left, right, out);
  limit(out, shape.sides[0] * shape.sides[1] * shape.sides[2] * shape.sides[3], limits);
}

void calculate(Arithmetic arithmetic, const Stretched& shape, const uint32_t* left, const uint32_t* right,
               uint32_t* out) {
  calculate_any(arithmetic, shape, left, right, out);
}

void relu(const float* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = in[i] > 0 ? in[i] : 0;
}

namespace {

// Calls begin(out), add(out, pixel) for each pixel of the window that lies in the image, end(out, pixels).
template <typename Begin, typename Each, typename End>
void pool(const Window& w, const float* in, int channels, float* out, Begin begin, Each each, End end) {
  for (int b = 0; b < w.batch; ++b, in += static_cast<size_t>(w.height) * w.width * channels)
    for (int y = 0; y < w.out_height; ++y) {
      const Span rows = inside(y * w.stride_height - w.pad_top, w.filter_height, w.height);
      for (int x = 0; x < w.out_width; ++x, out += channels) {
        const Span columns = inside(x * w.stride_width - w.pad_left, w.filter_width, w.width);
        begin(out);
        for (int at_y = rows.begin; at_y < rows.end; ++at_y)
          for (int at_x = columns.begin; at_x < columns.end; ++at_x)
            each(out, in + (static_cast<size_t>(at_y) * w.width + at_x) * channels);
        end(out, (rows.end - rows.begin) * (columns.end - columns.begin));
      }
    }
}

}  // namespace

void average_pool(const Window& window, const float* in, int channels, const Limits& limits, float* out) {
  pool(
      window, in, channels, out, [=](float* to) { std::memset(to, 0, sizeof(float) * static_cast<size_t>(channels)); },
      [=](float* to, const float* pixel) {
        for (int c = 0; c < channels; ++c) to[c] += pixel[c];
      },
      [=, &limits](float* to, int pixels) {
        for (int c = 0; c < channels; ++c) to[c] /= static_cast<float>(pixels);
        limit(to, channels, limits);
      });
}

void max_pool(const Window& window, const float* in, int channels, const Limits& limits, float* out) {
  pool(
      window, in, channels, out,
      [=](float* to) {
        for (int c = 0; c < channels; ++c) to[c] = -__builtin_huge_valf();
      },
      [=](float* to, const float* pixel) {
        for (int c = 0; c < channels; ++c) to[c] = pixel[c] > to[c] ? pixel[c] : to[c];
      },
      [=, &limits](float* to, int) { limit(to, channels, limits); });
}

void pad(const uint32_t* in, const int64_t (&sides)[kMostRank], const int64_t (&front)[kMostRank],
         const int64_t (&back)[kMostRank], uint32_t fill, uint32_t* out) {
  int64_t grown[kMostRank], count = 1;
  for (int i = 0; i < kMostRank; ++i) count *= grown[i] = front[i] + sides[i] + back[i];
  for (int64_t i = 0; i < count; ++i) out[i] = fill;
  for (int64_t a = 0; a < sides[0]; ++a)
    for (int64_t b = 0; b < sides[1]; ++b)
      for (int64_t c = 0; c < sides[2]; ++c, in += sides[3]) {
        const int64_t row = ((a + front[0]) * grown[1] + b + front[1]) * grown[2] + c + front[2];
        std::memcpy(out + row * grown[3] + front[3], in, sizeof(uint32_t) * static_cast<size_t>(sides[3]));
      }
}

}  // namespace dmsflow
