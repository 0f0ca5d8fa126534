// See benchmark_floats.h.
#include "benchmark_floats.h"

#include <cmath>
#include <cstring>

namespace dmsflow {
namespace {

constexpr int kFilters = 16, kPixels = 4;  // outputs that are summed up at once: 16 registers of 4 numbers
constexpr int kLanes = 4, kVectors = kFilters / kLanes;

template <typename T>
typename Numbers<T>::Vector load(const T* from) {
  typename Numbers<T>::Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

float limited(float value, const Limits& limits) {
  value = value < limits.least ? limits.least : value;
  return value > limits.most ? limits.most : value;
}

float number(float stored, int) { return stored; }
uint32_t number(int8_t stored, int zero_point) { return static_cast<uint32_t>(stored - zero_point); }

// What lies inside the image, of a window at `begin`.
struct Span {
  int begin, end;
};

Span inside(int begin, int filter, int size) {
  const int64_t end = int64_t{begin} + filter;
  return {begin > 0 ? begin : 0, end < size ? static_cast<int>(end) : size};
}

}  // namespace

void Limits::put(const float* sums, int count, int, float* out) const { limit(*this, sums, count, out); }

// --- the convolution ------------------------------------------------------------------------------------

template <typename T>
bool PlainConv<T>::prepare(const Window& window, int channels, int groups, int filters, const Stored* filter,
                           const T* bias, int zero_point, const Finish& finish) {
  window_ = window;
  channels_ = channels;
  groups_ = groups;
  filters_ = filters;
  zero_point_ = zero_point;
  finish_ = &finish;
  const int in_group = filters / groups;
  blocks_ = (in_group + kFilters - 1) / kFilters;
  const Window& w = window_;
  const int reach_y = (w.out_height - 1) * w.stride_height + (w.filter_height - 1) * w.dilation_height + 1;
  const int reach_x = (w.out_width - 1) * w.stride_width + (w.filter_width - 1) * w.dilation_width + 1;
  padded_height_ = reach_y > w.pad_top + w.height ? reach_y : w.pad_top + w.height;
  padded_width_ = reach_x > w.pad_left + w.width ? reach_x : w.pad_left + w.width;
  const bool pads = padded_height_ > w.height || padded_width_ > w.width || sizeof(Stored) != sizeof(T);
  const size_t taps = static_cast<size_t>(w.filter_height) * w.filter_width * (channels / groups);
  const size_t blocks = static_cast<size_t>(groups) * blocks_;
  if (!weights_.resize(blocks * taps * kFilters) || !bias_.resize(blocks * kFilters) ||
      (pads && !padded_.resize(static_cast<size_t>(w.batch) * padded_height_ * padded_width_ * channels)))
    return false;
  for (int f = 0; f < filters; ++f) {
    const size_t block = static_cast<size_t>(f / in_group) * blocks_ + f % in_group / kFilters;
    const int place = f % in_group % kFilters;
    T* weights = weights_.data() + block * taps * kFilters + place;
    for (size_t tap = 0; tap < taps; ++tap)
      weights[tap * kFilters] = number(filter[static_cast<size_t>(f) * taps + tap], 0);
    if (bias) bias_[block * kFilters + place] = bias[f];
  }
  return true;
}

template <typename T>
void PlainConv<T>::pad(const Stored* in) {
  const size_t row = static_cast<size_t>(window_.width) * channels_;
  for (int b = 0; b < window_.batch; ++b)
    for (int y = 0; y < window_.height; ++y, in += row) {
      const size_t at = static_cast<size_t>(b) * padded_height_ + window_.pad_top + y;
      T* to = padded_.data() + (at * padded_width_ + window_.pad_left) * channels_;
      for (size_t i = 0; i < row; ++i) to[i] = number(in[i], zero_point_);
    }
}

template <typename T>
void PlainConv<T>::run_row_of(void* self, int row) {
  static_cast<PlainConv*>(self)->run_row(row);
}

template <typename T>
void PlainConv<T>::run(const Stored* in, Stored* out, Workers* workers) {
  out_ = out;
  if (padded_.size()) {
    pad(in);
    image_ = padded_.data();
  } else {
    image_ = reinterpret_cast<const T*>(in);  // they are of one type: see `prepare`
  }
  share(workers, window_.batch * window_.out_height, run_row_of, this);
}

// One row of outputs: all filters of a group, 16 at a time, of 4 pixels at a time.
template <typename T>
void PlainConv<T>::run_row(int row) const {
  using Vector = typename Numbers<T>::Vector;
  const Window& w = window_;
  const size_t line = static_cast<size_t>(padded_.size() ? padded_width_ : w.width) * channels_;
  const int height = padded_.size() ? padded_height_ : w.height;
  const size_t top = static_cast<size_t>(row / w.out_height) * height + (row % w.out_height) * w.stride_height;
  const int read = channels_ / groups_, in_group = filters_ / groups_;
  const size_t taps = static_cast<size_t>(w.filter_height) * w.filter_width * read;
  // Then a row of the filter is one run of numbers in the image.
  const bool dense = w.dilation_width == 1 && groups_ == 1;
  const int runs = dense ? 1 : w.filter_width, length = dense ? w.filter_width * read : read;
  for (int block = 0; block < groups_ * blocks_; ++block) {
    const int group = block / blocks_, first = group * in_group + block % blocks_ * kFilters;
    const int left = (group + 1) * in_group - first, count = left < kFilters ? left : kFilters;
    const T* image = image_ + top * line + static_cast<size_t>(group) * read;
    Stored* out = out_ + static_cast<size_t>(row) * w.out_width * filters_ + first;
    const T* weights = weights_.data() + block * taps * kFilters;
    for (int x = 0; x < w.out_width; x += kPixels) {
      const T* pixels[kPixels];
      for (int p = 0; p < kPixels; ++p) {
        const int at = x + p < w.out_width ? x + p : w.out_width - 1;
        pixels[p] = image + static_cast<size_t>(at) * w.stride_width * channels_;
      }
      Vector sums[kPixels][kVectors];
      for (int v = 0; v < kVectors; ++v)
        for (int p = 0; p < kPixels; ++p) sums[p][v] = load(bias_.data() + block * kFilters + v * kLanes);
      const T* weight = weights;
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
      for (int p = 0; p < kPixels && x + p < w.out_width; ++p) {
        T totals[kFilters];
        std::memcpy(totals, sums[p], sizeof totals);
        finish_->put(totals, count, first, out + static_cast<size_t>(x + p) * filters_);
      }
    }
  }
}

template class PlainConv<float>;
template class PlainConv<uint32_t>;

namespace {

constexpr int kBlock = 64;  // channels of a depthwise convolution that are summed up at once

template <typename T>
void run_depthwise_row(void* context, int row) {
  const auto& d = *static_cast<const Depthwise<T>*>(context);
  const Window& w = d.window;
  const int filters = d.channels * d.multiplier;
  const int top = row % w.out_height * w.stride_height - w.pad_top;
  const auto* image = d.in + static_cast<size_t>(row / w.out_height) * w.height * w.width * d.channels;
  auto* out = d.out + static_cast<size_t>(row) * w.out_width * filters;
  for (int x = 0; x < w.out_width; ++x, out += filters)
    for (int first = 0; first < filters; first += kBlock) {
      const int count = filters - first < kBlock ? filters - first : kBlock;
      T sums[kBlock];
      for (int i = 0; i < count; ++i) sums[i] = d.bias ? d.bias[first + i] : 0;
      for (int tap = 0; tap < w.filter_height * w.filter_width; ++tap) {
        const int at_y = top + tap / w.filter_width * w.dilation_height;
        const int at_x = x * w.stride_width - w.pad_left + tap % w.filter_width * w.dilation_width;
        if (at_y < 0 || at_y >= w.height || at_x < 0 || at_x >= w.width) continue;
        const auto* pixel = image + (static_cast<size_t>(at_y) * w.width + at_x) * d.channels;
        const auto* weights = d.filter + static_cast<size_t>(tap) * filters + first;
        if (d.multiplier == 1)
          for (int i = 0; i < count; ++i) sums[i] += number(pixel[first + i], d.zero_point) * number(weights[i], 0);
        else
          for (int i = 0; i < count; ++i)
            sums[i] += number(pixel[(first + i) / d.multiplier], d.zero_point) * number(weights[i], 0);
      }
      d.finish.put(sums, count, first, out + first);
    }
}

}  // namespace

template <typename T>
void Depthwise<T>::run(Workers* workers) {
  share(workers, window.batch * window.out_height, run_depthwise_row<T>, this);
}

template struct Depthwise<float>;
template struct Depthwise<uint32_t>;

// --- the others -------------------------------------------------------------------------------------------

void fully_connected(const float* in, int64_t rows, int channels, int filters, const float* filter, const float* bias,
                     const Limits& limits, float* out) {
  for (int64_t row = 0; row < rows; ++row, in += channels, out += filters) {
    for (int f = 0; f < filters; ++f) {
      const float* weights = filter + static_cast<size_t>(f) * channels;
      Numbers<float>::Vector sums[kVectors] = {};
      int c = 0;
      for (; c + kFilters <= channels; c += kFilters)
        for (int v = 0; v < kVectors; ++v) sums[v] += load(in + c + v * kLanes) * load(weights + c + v * kLanes);
      const Numbers<float>::Vector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      float total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      for (; c < channels; ++c) total += in[c] * weights[c];
      out[f] = bias ? total + bias[f] : total;
    }
    limits.put(out, filters, 0, out);
  }
}

void fully_connected(const int8_t* in, int64_t rows, int channels, int filters, const int8_t* filter, int zero_point,
                     const uint32_t* bias, const Requantize& finish, int8_t* out) {
  for (int64_t row = 0; row < rows; ++row, in += channels, out += filters)
    for (int f = 0; f < filters; ++f) {
      const int8_t* weights = filter + static_cast<size_t>(f) * channels;
      uint32_t total = bias ? bias[f] : 0;
      for (int c = 0; c < channels; ++c) total += number(in[c], zero_point) * number(weights[c], 0);
      finish.put(&total, 1, f, out + f);
    }
}

namespace {

// Calls row(out, left, right) with the offsets of each run along the last side.
template <typename Row>
void walk(const Strided& shape, Row row) {
  int64_t at[kMostRank] = {}, out = 0, left = 0, right = 0;
  for (;;) {
    row(out, left, right);
    int side = kMostRank - 2;
    for (; side >= 0 && ++at[side] == shape.sides[side]; --side) {  // back to the beginning of this side
      at[side] = 0;
      out -= (shape.sides[side] - 1) * shape.out[side];
      left -= (shape.sides[side] - 1) * shape.left[side];
      right -= (shape.sides[side] - 1) * shape.right[side];
    }
    if (side < 0) return;
    out += shape.out[side];
    left += shape.left[side];
    right += shape.right[side];
  }
}

}  // namespace

void Strided::merge() {
  Strided merged = kPoint;
  int last = kMostRank;
  for (int side = kMostRank - 1; side >= 0; --side) {
    if (sides[side] == 1) continue;
    if (last < kMostRank && out[side] == merged.out[last] * merged.sides[last] &&
        left[side] == merged.left[last] * merged.sides[last] && right[side] == merged.right[last] * merged.sides[last]) {
      merged.sides[last] *= sides[side];
      continue;
    }
    --last;
    merged.sides[last] = sides[side];
    merged.out[last] = out[side];
    merged.left[last] = left[side];
    merged.right[last] = right[side];
  }
  *this = merged;
}

namespace {

template <typename T, typename Operation>
void calculate_all(Operation operation, const Strided& shape, const T* left, const T* right, T* out) {
  constexpr int kLast = kMostRank - 1;
  const int64_t count = shape.sides[kLast], left_step = shape.left[kLast], right_step = shape.right[kLast];
  walk(shape, [=](int64_t to, int64_t from_left, int64_t from_right) {
    T* __restrict row = out + to;
    const T *first = left + from_left, *second = right + from_right;
    if (left_step && right_step)  // each is 0 or 1 along the last side
      for (int64_t i = 0; i < count; ++i) row[i] = operation(first[i], second[i]);
    else if (left_step)
      for (int64_t i = 0; i < count; ++i) row[i] = operation(first[i], *second);
    else if (right_step)
      for (int64_t i = 0; i < count; ++i) row[i] = operation(*first, second[i]);
    else
      for (int64_t i = 0; i < count; ++i) row[i] = operation(*first, *second);
  });
}

}  // namespace

void calculate(Arithmetic arithmetic, const Strided& shape, const float* left, const float* right, float* out) {
  switch (arithmetic) {
    case Arithmetic::kAdd:
      return calculate_all([](float a, float b) { return a + b; }, shape, left, right, out);
    case Arithmetic::kSub:
      return calculate_all([](float a, float b) { return a - b; }, shape, left, right, out);
    case Arithmetic::kMul:
      return calculate_all([](float a, float b) { return a * b; }, shape, left, right, out);
    case Arithmetic::kDiv:
      return calculate_all([](float a, float b) { return a / b; }, shape, left, right, out);
    case Arithmetic::kMaximum:
      return calculate_all([](float a, float b) { return a > b ? a : b; }, shape, left, right, out);
    case Arithmetic::kMinimum:
      return calculate_all([](float a, float b) { return a < b ? a : b; }, shape, left, right, out);
    case Arithmetic::kPrelu:
      return calculate_all([](float a, float b) { return a >= 0 ? a : a * b; }, shape, left, right, out);
  }
}

void calculate(Arithmetic arithmetic, const Strided& shape, const uint32_t* left, const uint32_t* right, uint32_t* out) {
  switch (arithmetic) {
    case Arithmetic::kAdd:
      return calculate_all([](uint32_t a, uint32_t b) { return a + b; }, shape, left, right, out);
    case Arithmetic::kSub:
      return calculate_all([](uint32_t a, uint32_t b) { return a - b; }, shape, left, right, out);
    default:
      return calculate_all([](uint32_t a, uint32_t b) { return a * b; }, shape, left, right, out);
  }
}

void limit(const Limits& limits, const float* in, int64_t count, float* out) {
  if (limits.none && in != out) std::memcpy(out, in, sizeof(float) * static_cast<size_t>(count));
  if (!limits.none)
    for (int64_t i = 0; i < count; ++i) out[i] = limited(in[i], limits);
}

void logistic(const float* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = 1 / (1 + std::exp(-in[i]));
}

void hyperbolic_tangent(const float* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = std::tanh(in[i]);
}

void leaky_relu(float slope, const float* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = in[i] > 0 ? in[i] : in[i] * slope;
}

void softmax(float beta, const float* in, int64_t rows, int64_t columns, float* out) {
  for (; rows > 0; --rows, in += columns, out += columns) {
    float most = in[0], total = 0;
    for (int64_t i = 1; i < columns; ++i) most = in[i] > most ? in[i] : most;
    for (int64_t i = 0; i < columns; ++i) total += out[i] = std::exp((in[i] - most) * beta);
    for (int64_t i = 0; i < columns; ++i) out[i] /= total;
  }
}

void sum(const Strided& shape, const float* in, int64_t count, float divisor, float* out) {
  constexpr int kLast = kMostRank - 1;
  std::memset(out, 0, sizeof(float) * static_cast<size_t>(count));
  walk(shape, [&](int64_t to, int64_t from, int64_t) {
    if (shape.out[kLast]) {
      for (int64_t i = 0; i < shape.sides[kLast]; ++i) out[to + i] += in[from + i];
    } else {
      float total = 0;
      for (int64_t i = 0; i < shape.sides[kLast]; ++i) total += in[from + i];
      out[to] += total;
    }
  });
  for (int64_t i = 0; i < count; ++i) out[i] /= divisor;
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
        limit(limits, to, channels, to);
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
      [=, &limits](float* to, int) { limit(limits, to, channels, to); });
}

namespace {

template <typename T>
void copy_elements(const Strided& shape, const T* in, T* out) {
  constexpr int kLast = kMostRank - 1;
  const int64_t count = shape.sides[kLast], in_step = shape.left[kLast], out_step = shape.out[kLast];
  walk(shape, [=](int64_t to, int64_t from, int64_t) {
    if (in_step == 1 && out_step == 1)
      std::memcpy(out + to, in + from, sizeof(T) * static_cast<size_t>(count));
    else
      for (int64_t i = 0; i < count; ++i) out[to + i * out_step] = in[from + i * in_step];
  });
}

}  // namespace

void copy(const Strided& shape, size_t width, const void* in, void* out) {
  if (width == 1)
    copy_elements(shape, static_cast<const uint8_t*>(in), static_cast<uint8_t*>(out));
  else
    copy_elements(shape, static_cast<const uint32_t*>(in), static_cast<uint32_t*>(out));
}

// --- other sizes of an image --------------------------------------------------------------------------------

namespace {

float scale_of(const Resize& r, int in, int out) {
  return r.align_corners && out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1)
                                    : static_cast<float>(in) / static_cast<float>(out);
}

// Between which two rows (or columns) a new one lies, and how far it is from the first.
struct Between {
  int low, high;
  float part;
};

Between between(const Resize& r, int at, int in, int out) {
  const float scale = scale_of(r, in, out), place = static_cast<float>(at);
  const float found = r.half_pixels ? (place + 0.5f) * scale - 0.5f : place * scale;
  const int low = static_cast<int>(std::floor(found)), high = static_cast<int>(std::ceil(found));
  const int first = low < 0 ? 0 : low < in ? low : in - 1;
  return {first, high < in ? high : in - 1, found - static_cast<float>(first)};
}

int nearest(const Resize& r, int at, int in, int out) {
  const float found = (static_cast<float>(at) + (r.half_pixels ? 0.5f : 0)) * scale_of(r, in, out);
  const int pixel = static_cast<int>(r.align_corners ? std::round(found) : std::floor(found));
  return pixel < in ? pixel : in - 1;
}

}  // namespace

void resize_bilinear(const Resize& r, const float* in, float* out) {
  const size_t line = static_cast<size_t>(r.width) * r.channels;
  for (int b = 0; b < r.batch; ++b, in += line * r.height)
    for (int y = 0; y < r.out_height; ++y) {
      const Between rows = between(r, y, r.height, r.out_height);
      const float *upper = in + rows.low * line, *lower = in + rows.high * line;
      for (int x = 0; x < r.out_width; ++x, out += r.channels) {
        const Between columns = between(r, x, r.width, r.out_width);
        const size_t left = static_cast<size_t>(columns.low) * r.channels;
        const size_t right = static_cast<size_t>(columns.high) * r.channels;
        for (int c = 0; c < r.channels; ++c) {
          const float above = upper[left + c] * (1 - columns.part) + upper[right + c] * columns.part;
          const float below = lower[left + c] * (1 - columns.part) + lower[right + c] * columns.part;
          out[c] = above * (1 - rows.part) + below * rows.part;
        }
      }
    }
}

void resize_nearest(const Resize& r, size_t width, const void* in, void* out) {
  const size_t pixel = width * r.channels;
  const auto* from = static_cast<const uint8_t*>(in);
  auto* to = static_cast<uint8_t*>(out);
  for (int b = 0; b < r.batch; ++b)
    for (int y = 0; y < r.out_height; ++y) {
      const size_t row = static_cast<size_t>(b) * r.height + nearest(r, y, r.height, r.out_height);
      for (int x = 0; x < r.out_width; ++x, to += pixel)
        std::memcpy(to, from + (row * r.width + nearest(r, x, r.width, r.out_width)) * pixel, pixel);
    }
}

}  // namespace dmsflow
