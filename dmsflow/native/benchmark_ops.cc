// See benchmark_ops.h. A file may hold anything: `prepare` checks all that `run` relies on.
#include "benchmark_ops.h"

#include <cmath>
#include <cstring>

namespace dmsflow {
namespace {

constexpr int64_t kMostReach = 1 << 20;          // of strides, dilations, filters, paddings
constexpr int64_t kMostWork = int64_t{1} << 38;  // multiplications or comparisons of one operator

// --- what operators have in common ----------------------------------------------------------------------------

bool floats(const Tensor* tensor) { return tensor->type == kFloat32; }
bool bytes(const Tensor* tensor) { return tensor->type == kInt8; }
int rank_of(const Tensor* tensor) { return tensor->dims->size; }
int side_of(const Tensor* tensor, int side) { return tensor->dims->data[side]; }
int last_side(const Tensor* tensor) { return rank_of(tensor) ? side_of(tensor, rank_of(tensor) - 1) : 1; }

template <typename T>
const T* read(const Tensor* tensor) {
  return tensor ? static_cast<const T*>(tensor->data) : nullptr;
}
template <typename T>
T* write(const Tensor* tensor) {
  return static_cast<T*>(tensor->data);
}

bool wrong(const Step& step, const char* what) { return fail("%s %s", step.type, what); }
bool misfit(const Step& step) { return wrong(step, "with shapes that do not fit"); }
bool untyped(const Step& step) { return wrong(step, "on types of numbers that this program does not take together"); }

bool has_shape(const Tensor* tensor, int a, int b, int c, int d) {
  const int sides[] = {a, b, c, d};
  return rank_of(tensor) == 4 && std::memcmp(tensor->dims->data, sides, sizeof sides) == 0;
}

bool same_scale(const Tensor* left, const Tensor* right) {
  const Quantization &a = left->quantization, &b = right->quantization;
  return left->type == right->type && (!bytes(left) || (a.scale == b.scale && a.zero_point == b.zero_point));
}

// The whole numbers of a constant; null: it is none, or has another number of them (-1: any).
const int32_t* integers(const Tensor* tensor, int64_t count) {
  const bool fits = tensor && tensor->type == kInt32 && tensor->allocation == kInFile;
  return fits && (count < 0 || elements(tensor) == count) ? read<int32_t>(tensor) : nullptr;
}

// A side's number counts from the end if it is below 0; false: there is no such side.
bool find_side(int64_t number, int rank, int& side) {
  side = static_cast<int>(number < 0 ? number + rank : number);
  return number >= -rank && number < rank;
}

bool read_activation(Step& step, int activation) {
  step.limits.none = activation == 0;
  if (activation == 1 || activation == 3) step.limits.least = 0;
  if (activation == 3) step.limits.most = 6;
  if (activation == 2) step.limits.least = -1, step.limits.most = 1;
  return (activation >= 0 && activation <= 3) || fail("%s has activation %d", step.type, activation);
}

bool place_window(Step& step, const Tensor* image, bool same_padding) {
  Window& w = step.window;
  const int values[] = {w.filter_height, w.filter_width, w.stride_height, w.stride_width, w.dilation_height, w.dilation_width};
  for (const int value : values)
    if (value < 1 || value > kMostReach) return fail("%s has a stride, dilation or filter of %d", step.type, value);
  const int* sides = image->dims->data;
  w.batch = sides[0];
  w.height = sides[1];
  w.width = sides[2];
  const int64_t rows = w.height + (w.filter_height - int64_t{1}) * w.dilation_height;
  const int64_t columns = w.width + (w.filter_width - int64_t{1}) * w.dilation_width;
  if (rows > kMostReach || columns > kMostReach || rows * columns > kMostElements / w.batch / sides[3])
    return fail("%s reaches over %lld x %lld pixels", step.type, static_cast<long long>(rows),
                static_cast<long long>(columns));
  return place(w, same_padding) || wrong(step, "does not fit into its image");
}

// --- sums of products -------------------------------------------------------------------------------------------

// Input, filter and an optional bias, all float32 or all int8; the filter's filters lie along `side`.
bool check_products(Step& step, int filters, int side) {
  const Tensor *in = step.in[0], *filter = step.in[1], *bias = step.in[2], *out = step.out[0];
  if (filter->allocation != kInFile || (bias && (bias->allocation != kInFile || elements(bias) != filters)))
    return wrong(step, "with a filter or bias that is no constant, or does not fit");
  if (floats(in)) return (floats(filter) && floats(out) && (!bias || floats(bias))) || untyped(step);
  if (!bytes(in) || !bytes(filter) || !bytes(out) || (bias && bias->type != kInt32)) return untyped(step);
  const auto* scales = static_cast<const Scales*>(filter->affine.params);
  if (!scales->centred || (scales->count != 1 && (scales->affine.side != side || scales->count != filters)))
    return wrong(step, "with a filter whose scales do not fit");
  Requantize& r = step.requantize;
  if (!r.factors.resize(static_cast<size_t>(filters))) return fail("there is no memory");
  const double from = in->quantization.scale, to = out->quantization.scale;
  for (int f = 0; f < filters; ++f) {
    const double scale = scales->affine.scale->data[scales->count == 1 ? 0 : f];
    if (!make_factor(from * scale / to, r.factors[static_cast<size_t>(f)]))
      return wrong(step, "with scales that int8 cannot hold");
  }
  r.zero_point = out->quantization.zero_point;
  int8_t ends[2];
  const float limits[] = {step.limits.least, step.limits.most};
  quantize(out->quantization, limits, 2, ends);
  r.least = step.limits.none ? INT8_MIN : ends[0];
  r.most = step.limits.none ? INT8_MAX : ends[1];
  return true;
}

bool prepare_conv(Step& step, const Table& options) {
  const Tensor *in = step.in[0], *filter = step.in[1], *out = step.out[0];
  Window& w = step.window;
  w.stride_width = options.number<int32_t>(1);
  w.stride_height = options.number<int32_t>(2);
  w.dilation_width = options.number<int32_t>(4, 1);
  w.dilation_height = options.number<int32_t>(5, 1);
  if (!read_activation(step, options.number<int8_t>(3))) return false;
  if (rank_of(in) != 4 || rank_of(filter) != 4 || side_of(in, 3) % side_of(filter, 3)) return misfit(step);
  const int filters = side_of(filter, 0), channels = side_of(in, 3), groups = channels / side_of(filter, 3);
  if (filters % groups) return misfit(step);
  w.filter_height = side_of(filter, 1);
  w.filter_width = side_of(filter, 2);
  if (!place_window(step, in, options.number<int8_t>(0) == 0) || !check_products(step, filters, 0)) return false;
  if (!has_shape(out, w.batch, w.out_height, w.out_width, filters)) return misfit(step);
  if (elements(out) > kMostWork / elements(filter)) return wrong(step, "with too much to calculate");
  const bool ready = floats(in) ? step.conv.prepare(w, channels, groups, filters, read<float>(filter),
                                                    read<float>(step.in[2]), 0, step.limits)
                                : step.byte_conv.prepare(w, channels, groups, filters, read<int8_t>(filter),
                                                         read<uint32_t>(step.in[2]), in->quantization.zero_point,
                                                         step.requantize);
  return ready || fail("there is no memory");
}

void run_conv(Step& step, Workers* workers) {
  if (floats(step.in[0]))
    step.conv.run(read<float>(step.in[0]), write<float>(step.out[0]), workers);
  else
    step.byte_conv.run(read<int8_t>(step.in[0]), write<int8_t>(step.out[0]), workers);
}

bool prepare_depthwise(Step& step, const Table& options) {
  const Tensor *in = step.in[0], *filter = step.in[1], *out = step.out[0];
  Window& w = step.window;
  w.stride_width = options.number<int32_t>(1);
  w.stride_height = options.number<int32_t>(2);
  w.dilation_width = options.number<int32_t>(5, 1);
  w.dilation_height = options.number<int32_t>(6, 1);
  if (!read_activation(step, options.number<int8_t>(4))) return false;
  if (rank_of(in) != 4 || rank_of(filter) != 4 || side_of(filter, 0) != 1 || side_of(filter, 3) % side_of(in, 3))
    return misfit(step);
  const int filters = side_of(filter, 3);
  w.filter_height = side_of(filter, 1);
  w.filter_width = side_of(filter, 2);
  if (!place_window(step, in, options.number<int8_t>(0) == 0) || !check_products(step, filters, 3)) return false;
  if (!has_shape(out, w.batch, w.out_height, w.out_width, filters)) return misfit(step);
  return elements(out) <= kMostWork / (w.filter_height * int64_t{w.filter_width}) ||
         wrong(step, "with too much to calculate");
}

template <typename T>
void run_depthwise(Step& step, const typename Numbers<T>::Finish& finish, Workers* workers) {
  using Stored = typename Numbers<T>::Stored;
  const Tensor* in = step.in[0];
  const int channels = side_of(in, 3);
  Depthwise<T>{step.window, channels, side_of(step.in[1], 3) / channels, in->quantization.zero_point, read<Stored>(in),
               read<Stored>(step.in[1]), read<T>(step.in[2]), finish, write<Stored>(step.out[0])}
      .run(workers);
}

void run_depthwise(Step& step, Workers* workers) {
  if (floats(step.in[0]))
    run_depthwise<float>(step, step.limits, workers);
  else
    run_depthwise<uint32_t>(step, step.requantize, workers);
}

bool prepare_dense(Step& step, const Table& options) {
  const Tensor *in = step.in[0], *filter = step.in[1];
  if (!read_activation(step, options.number<int8_t>(0))) return false;
  if (options.number<int8_t>(1)) return wrong(step, "with shuffled weights");
  if (rank_of(filter) != 2) return misfit(step);
  const int filters = side_of(filter, 0), channels = side_of(filter, 1);
  if (elements(in) % channels || elements(step.out[0]) != elements(in) / channels * filters) return misfit(step);
  return check_products(step, filters, 0);
}

void run_dense(Step& step, Workers*) {
  const Tensor *in = step.in[0], *filter = step.in[1], *bias = step.in[2];
  const int filters = side_of(filter, 0), channels = side_of(filter, 1);
  const int64_t rows = elements(in) / channels;
  if (floats(in))
    fully_connected(read<float>(in), rows, channels, filters, read<float>(filter), read<float>(bias), step.limits,
                    write<float>(step.out[0]));
  else
    fully_connected(read<int8_t>(in), rows, channels, filters, read<int8_t>(filter), in->quantization.zero_point,
                    read<uint32_t>(bias), step.requantize, write<int8_t>(step.out[0]));
}

// --- pools --------------------------------------------------------------------------------------------------------

bool prepare_pool(Step& step, const Table& options) {
  const Tensor *in = step.in[0], *out = step.out[0];
  Window& w = step.window;
  w.stride_width = options.number<int32_t>(1);
  w.stride_height = options.number<int32_t>(2);
  w.filter_width = options.number<int32_t>(3);
  w.filter_height = options.number<int32_t>(4);
  if (!read_activation(step, options.number<int8_t>(5))) return false;
  if (!floats(in) || !floats(out)) return untyped(step);
  if (rank_of(in) != 4) return misfit(step);
  if (!place_window(step, in, options.number<int8_t>(0) == 0)) return false;
  if (!has_shape(out, w.batch, w.out_height, w.out_width, side_of(in, 3))) return misfit(step);
  const int64_t rows = w.filter_height < w.height ? w.filter_height : w.height;
  const int64_t columns = w.filter_width < w.width ? w.filter_width : w.width;
  return elements(out) <= kMostWork / (rows * columns) || wrong(step, "with too much to calculate");
}

template <void (*pool)(const Window&, const float*, int, const Limits&, float*)>
void run_pool(Step& step, Workers*) {
  pool(step.window, read<float>(step.in[0]), side_of(step.in[0], 3), step.limits, write<float>(step.out[0]));
}

bool prepare_sum(Step& step, const Table& options) {
  const Tensor *in = step.in[0], *axes = step.in[1], *out = step.out[0];
  const int rank = rank_of(in);
  const bool keeps = options.number<uint8_t>(0);
  const int32_t* numbers = integers(axes, -1);
  if (!floats(in) || !floats(out)) return untyped(step);
  if (!numbers) return wrong(step, "along sides that are no constant");
  bool summed[kMostRank] = {};
  for (int64_t i = 0; i < elements(axes); ++i) {
    int side;
    if (!find_side(numbers[i], rank, side)) return fail("%s along side %d of %d", step.type, numbers[i], rank);
    summed[side] = true;
  }
  int64_t in_step = 1, out_step = 1;
  int place = rank_of(out) - 1;  // of the output's sides, from the last on
  step.number = 1;
  for (int side = rank - 1; side >= 0; --side) {
    const int at = kMostRank - rank + side, length = side_of(in, side);
    step.shape.sides[at] = length;
    step.shape.left[at] = in_step;
    in_step *= length;
    if (summed[side]) {
      step.number *= static_cast<float>(length);
    } else {
      step.shape.out[at] = out_step;
      out_step *= length;
    }
    if (summed[side] && !keeps) continue;
    if (place < 0 || side_of(out, place) != (summed[side] ? 1 : length)) return misfit(step);
    --place;
  }
  step.shape.merge();
  return place == -1 || misfit(step);
}

template <bool kMean>
void run_sum(Step& step, Workers*) {
  const Tensor* out = step.out[0];
  sum(step.shape, read<float>(step.in[0]), elements(out), kMean ? step.number : 1, write<float>(out));
}

// --- number by number -----------------------------------------------------------------------------------------------

// Steps along the sides of an operand that is stretched to `sides`.
bool stretch(const IntArray& dims, const int64_t* sides, int64_t* steps) {
  int64_t step = 1;
  for (int i = kMostRank - 1, d = dims.size - 1; i >= 0; --i, --d) {
    const int64_t side = d >= 0 ? dims.data[d] : 1;
    if (side != sides[i] && side != 1) return false;
    steps[i] = side == 1 ? 0 : step;
    step *= side;
  }
  return true;
}

bool prepare_stretched(Step& step) {
  const IntArray &left = *step.in[0]->dims, &right = *step.in[1]->dims, &out = *step.out[0]->dims;
  if (left.size > out.size || right.size > out.size) return misfit(step);
  for (int d = 1; d <= out.size; ++d) {
    const int of_left = d <= left.size ? left.data[left.size - d] : 1;
    const int of_right = d <= right.size ? right.data[right.size - d] : 1;
    if (out.data[out.size - d] != (of_left == 1 ? of_right : of_left)) return misfit(step);
    step.shape.sides[kMostRank - d] = out.data[out.size - d];
  }
  Strided& shape = step.shape;
  if (!stretch(left, shape.sides, shape.left) || !stretch(right, shape.sides, shape.right) ||
      !stretch(out, shape.sides, shape.out))
    return misfit(step);
  shape.merge();
  return true;
}

bool prepare_arithmetic(Step& step, const Table& options) {
  const int type = step.out[0]->type;
  if (step.in[0]->type != type || step.in[1]->type != type || type == kInt8) return untyped(step);
  if (!read_activation(step, options.number<int8_t>(0))) return false;
  return type == kFloat32 || step.limits.none ? prepare_stretched(step) : untyped(step);
}

bool prepare_float_arithmetic(Step& step, const Table&) {  // without an activation
  return floats(step.in[0]) && floats(step.in[1]) && floats(step.out[0]) ? prepare_stretched(step) : untyped(step);
}

bool prepare_division(Step& step, const Table& options) {
  return read_activation(step, options.number<int8_t>(0)) && prepare_float_arithmetic(step, options);
}

template <Arithmetic kArithmetic>
void run_arithmetic(Step& step, Workers*) {
  const Tensor *left = step.in[0], *right = step.in[1], *out = step.out[0];
  if (floats(out)) {
    calculate(kArithmetic, step.shape, read<float>(left), read<float>(right), write<float>(out));
    step.limits.put(write<float>(out), static_cast<int>(elements(out)), 0, write<float>(out));
  } else {
    calculate(kArithmetic, step.shape, read<uint32_t>(left), read<uint32_t>(right), write<uint32_t>(out));
  }
}

bool prepare_each(Step& step, const Table&) {
  if (!floats(step.in[0]) || !floats(step.out[0])) return untyped(step);
  return same(*step.in[0]->dims, *step.out[0]->dims) || misfit(step);
}

template <int kActivation>
bool prepare_relu(Step& step, const Table& options) {
  return read_activation(step, kActivation) && prepare_each(step, options);
}

bool prepare_leaky_relu(Step& step, const Table& options) {
  step.number = options.number<float>(0);
  return prepare_each(step, options);
}

void run_relu(Step& step, Workers*) {
  limit(step.limits, read<float>(step.in[0]), elements(step.out[0]), write<float>(step.out[0]));
}

void run_leaky_relu(Step& step, Workers*) {
  leaky_relu(step.number, read<float>(step.in[0]), elements(step.out[0]), write<float>(step.out[0]));
}

template <void (*each)(const float*, int64_t, float*)>
void run_each(Step& step, Workers*) {
  each(read<float>(step.in[0]), elements(step.out[0]), write<float>(step.out[0]));
}

bool prepare_softmax(Step& step, const Table& options) {
  step.number = options.number<float>(0);
  return prepare_each(step, options);
}

void run_softmax(Step& step, Workers*) {
  const Tensor* in = step.in[0];
  const int columns = last_side(in);
  softmax(step.number, read<float>(in), elements(in) / columns, columns, write<float>(step.out[0]));
}

// --- other places ---------------------------------------------------------------------------------------------------

// Copies a box of a tensor, from `begin` on every `stride`th element, to all of another, or the other way round.
bool add_copy(Step& step, int in, int out, bool from_box, const int* begin, const int* strides = nullptr) {
  const Tensor *box = from_box ? step.in[in] : step.out[out], *all = from_box ? step.out[out] : step.in[in];
  if (!same_scale(box, all)) return untyped(step);
  if (rank_of(box) != rank_of(all)) return misfit(step);
  Copy made = {kPoint, in, out, 0, 0};
  int64_t box_step = 1, all_step = 1, offset = 0;
  for (int side = rank_of(box) - 1; side >= 0; --side) {
    const int64_t stride = strides ? strides[side] : 1, count = side_of(all, side), at = kMostRank - rank_of(box) + side;
    const int64_t first = begin[side], last = first + (count - 1) * stride;
    if (first < 0 || first >= side_of(box, side) || last < 0 || last >= side_of(box, side)) return misfit(step);
    made.shape.sides[at] = count;
    (from_box ? made.shape.left : made.shape.out)[at] = box_step * stride;
    (from_box ? made.shape.out : made.shape.left)[at] = all_step;
    offset += box_step * first;
    box_step *= side_of(box, side);
    all_step *= count;
  }
  (from_box ? made.in_offset : made.out_offset) = offset;
  made.shape.merge();
  step.copies[static_cast<size_t>(from_box ? out : in)] = made;
  return true;
}

bool make_room(Step& step, int copies) {
  return step.copies.resize(static_cast<size_t>(copies)) || fail("there is no memory");
}

void run_copies(Step& step, Workers*) {
  const size_t width = size_of(step.out[0]->type);
  if (step.fills && width == 1) std::memset(step.out[0]->data, static_cast<int>(step.fill), step.out[0]->bytes);
  if (step.fills && width == 4)
    for (int64_t i = 0; i < elements(step.out[0]); ++i) write<uint32_t>(step.out[0])[i] = step.fill;
  for (size_t i = 0; i < step.copies.size(); ++i) {
    const Copy& made = step.copies[i];
    copy(made.shape, width, read<uint8_t>(step.in[made.in]) + width * static_cast<size_t>(made.in_offset),
         write<uint8_t>(step.out[made.out]) + width * static_cast<size_t>(made.out_offset));
  }
}

bool prepare_reshape(Step& step, const Table&) {
  const Tensor *in = step.in[0], *out = step.out[0];
  return (same_scale(in, out) && elements(in) == elements(out)) || misfit(step);
}

void run_reshape(Step& step, Workers*) { std::memcpy(step.out[0]->data, step.in[0]->data, step.out[0]->bytes); }

bool prepare_pad(Step& step, const Table&) {
  const Tensor *in = step.in[0], *fill = step.in[2], *out = step.out[0];
  const int32_t* amounts = integers(step.in[1], int64_t{2} * rank_of(in));
  if (!amounts) return wrong(step, "by amounts that are no constant, or do not fit");
  if (fill && (!same_scale(fill, out) || fill->allocation != kInFile || elements(fill) != 1))
    return wrong(step, "without a constant to pad with");
  step.fills = true;
  if (bytes(out))
    step.fill = static_cast<uint8_t>(fill ? *read<int8_t>(fill) : out->quantization.zero_point);
  else if (fill)
    step.fill = *read<uint32_t>(fill);
  int begin[kMostRank];
  if (rank_of(in) != rank_of(out)) return misfit(step);
  for (int side = 0; side < rank_of(in); ++side) {
    const int64_t before = begin[side] = amounts[2 * side], behind = amounts[2 * side + 1];
    if (before < 0 || behind < 0 || before + side_of(in, side) + behind != side_of(out, side)) return misfit(step);
  }
  return make_room(step, 1) && add_copy(step, 0, 0, false, begin);
}

bool prepare_concatenation(Step& step, const Table& options) {
  const Tensor* out = step.out[0];
  int begin[kMostRank] = {}, side;
  if (!find_side(options.number<int32_t>(0), rank_of(out), side) || options.number<int8_t>(1))
    return wrong(step, "along a side that is not there, or with an activation");
  if (!make_room(step, step.in_count)) return false;
  for (int i = 0; i < step.in_count; ++i) {
    if (!step.in[i]) return wrong(step, "lacks an input");
    if (!add_copy(step, i, 0, false, begin)) return false;
    for (int other = 0; other < rank_of(out); ++other)
      if (other != side && side_of(step.in[i], other) != side_of(out, other)) return misfit(step);
    begin[side] += side_of(step.in[i], side);
  }
  return begin[side] == side_of(out, side) || misfit(step);
}

// Input `in` in pieces along the side that input `axis` names.
bool prepare_pieces(Step& step, int in, int axis) {
  const Tensor* whole = step.in[in];
  const int32_t* number = integers(step.in[axis], 1);
  int begin[kMostRank] = {}, side;
  if (!number || !find_side(*number, rank_of(whole), side)) return wrong(step, "along a side that is not there");
  if (!make_room(step, step.out_count)) return false;
  for (int i = 0; i < step.out_count; ++i) {
    if (!add_copy(step, in, i, true, begin)) return false;
    for (int other = 0; other < rank_of(whole); ++other)
      if (other != side && side_of(step.out[i], other) != side_of(whole, other)) return misfit(step);
    begin[side] += side_of(step.out[i], side);
  }
  return begin[side] == side_of(whole, side) || misfit(step);
}

bool prepare_split(Step& step, const Table&) { return prepare_pieces(step, 1, 0); }
bool prepare_split_v(Step& step, const Table&) { return prepare_pieces(step, 0, 2); }

bool prepare_slice(Step& step, const Table&) {
  const int32_t* begin = integers(step.in[1], rank_of(step.in[0]));
  if (!begin) return wrong(step, "from a place that is no constant");
  return make_room(step, 1) && add_copy(step, 0, 0, true, begin);
}

bool prepare_strided_slice(Step& step, const Table& options) {
  const Tensor *in = step.in[0], *out = step.out[0];
  const int rank = rank_of(in);
  const int32_t *begins = integers(step.in[1], rank), *ends = integers(step.in[2], rank), *strides = integers(step.in[3], rank);
  if (!begins || !ends || !strides) return wrong(step, "from places that are no constants");
  const int begin_mask = options.number<int32_t>(0), end_mask = options.number<int32_t>(1);
  const int shrink_mask = options.number<int32_t>(4);
  if (options.number<int32_t>(2) || options.number<int32_t>(3) || options.number<uint8_t>(5))
    return wrong(step, "with an ellipsis, new sides or offsets");
  Copy made = {kPoint, 0, 0, 0, 0};
  int64_t step_in = 1, step_out = 1;
  int place = rank_of(out) - 1;
  if (!same_scale(in, out)) return untyped(step);
  for (int side = rank - 1; side >= 0; --side) {
    const int64_t length = side_of(in, side), stride = strides[side];
    const bool shrinks = shrink_mask >> side & 1;
    if (stride == 0) return wrong(step, "with a stride of 0");
    // The first place of all and the last: outside the image by one, so that a range can be empty.
    const int64_t low = stride > 0 ? 0 : -1, high = stride > 0 ? length : length - 1;
    const auto within = [=](int64_t at) { return at < low ? low : at > high ? high : at; };
    const auto counted = [=](int64_t at) { return at < 0 ? at + length : at; };
    const int64_t begin = begin_mask >> side & 1 ? (stride > 0 ? low : high) : within(counted(begins[side]));
    const int64_t end = end_mask >> side & 1 ? (stride > 0 ? high : low) : within(counted(ends[side]));
    const int64_t count = shrinks ? 1 : (end - begin + stride - (stride > 0 ? 1 : -1)) / stride;
    if (count < 1 || begin < 0 || begin >= length) return misfit(step);
    const int at = kMostRank - rank + side;
    made.shape.sides[at] = count;
    made.shape.left[at] = step_in * stride;
    made.shape.out[at] = step_out;
    made.in_offset += step_in * begin;
    step_in *= length;
    step_out *= count;
    if (shrinks) continue;
    if (place < 0 || side_of(out, place--) != count) return misfit(step);
  }
  if (place != -1 || !make_room(step, 1)) return misfit(step);
  made.shape.merge();
  step.copies[0] = made;
  return true;
}

bool prepare_transpose(Step& step, const Table&) {
  const Tensor *in = step.in[0], *out = step.out[0];
  const int rank = rank_of(in);
  const int32_t* order = integers(step.in[1], rank);
  if (!order) return wrong(step, "in an order that is no constant, or does not fit");
  if (!same_scale(in, out)) return untyped(step);
  if (rank_of(out) != rank || !make_room(step, 1)) return misfit(step);
  int64_t in_steps[kMostRank], in_step = 1, out_step = 1;
  bool taken[kMostRank] = {};
  for (int side = rank - 1; side >= 0; --side) {
    in_steps[side] = in_step;
    in_step *= side_of(in, side);
  }
  Copy made = {kPoint, 0, 0, 0, 0};
  for (int side = rank - 1; side >= 0; --side) {
    int from;
    if (!find_side(order[side], rank, from) || taken[from] || side_of(in, from) != side_of(out, side)) return misfit(step);
    taken[from] = true;
    const int at = kMostRank - rank + side;
    made.shape.sides[at] = side_of(out, side);
    made.shape.left[at] = in_steps[from];
    made.shape.out[at] = out_step;
    out_step *= side_of(out, side);
  }
  made.shape.merge();
  step.copies[0] = made;
  return true;
}

template <int kFirst>  // of its options that this program knows
bool prepare_resize(Step& step, const Table& options) {
  const Tensor *in = step.in[0], *out = step.out[0];
  const bool align = options.number<uint8_t>(kFirst), half = options.number<uint8_t>(kFirst + 1);
  if (align && half) return wrong(step, "with corners aligned, and half pixels");
  if (!same_scale(in, out)) return untyped(step);
  if (rank_of(in) != 4 || rank_of(out) != 4 ||
      !has_shape(out, side_of(in, 0), side_of(out, 1), side_of(out, 2), side_of(in, 3)))
    return misfit(step);
  step.resize = {side_of(in, 0), side_of(in, 1), side_of(in, 2), side_of(in, 3), side_of(out, 1), side_of(out, 2),
                 align, half};
  return true;
}

bool prepare_bilinear(Step& step, const Table& options) {
  return floats(step.in[0]) ? prepare_resize<2>(step, options) : untyped(step);
}

void run_bilinear(Step& step, Workers*) {
  resize_bilinear(step.resize, read<float>(step.in[0]), write<float>(step.out[0]));
}

void run_nearest(Step& step, Workers*) {
  resize_nearest(step.resize, size_of(step.out[0]->type), step.in[0]->data, step.out[0]->data);
}

// --- other scales -----------------------------------------------------------------------------------------------------

bool prepare_quantize(Step& step, const Table&) {
  const Tensor *in = step.in[0], *out = step.out[0];
  if (!bytes(out) || (!floats(in) && !bytes(in) && in->type != kUint8)) return untyped(step);
  if (!same(*in->dims, *out->dims)) return misfit(step);
  return floats(in) || make_factor(static_cast<double>(in->quantization.scale) / out->quantization.scale, step.factor) ||
         wrong(step, "with scales that int8 cannot hold");
}

void run_quantize(Step& step, Workers*) {
  const Tensor *in = step.in[0], *out = step.out[0];
  if (floats(in))
    quantize(out->quantization, read<float>(in), elements(in), write<int8_t>(out));
  else if (in->type == kUint8)
    rescale(step.factor, in->quantization.zero_point, out->quantization.zero_point, read<uint8_t>(in), elements(in),
            write<int8_t>(out));
  else
    rescale(step.factor, in->quantization.zero_point, out->quantization.zero_point, read<int8_t>(in), elements(in),
            write<int8_t>(out));
}

bool prepare_dequantize(Step& step, const Table&) {
  if (!bytes(step.in[0]) || !floats(step.out[0])) return untyped(step);
  return same(*step.in[0]->dims, *step.out[0]->dims) || misfit(step);
}

void run_dequantize(Step& step, Workers*) {
  const Tensor* in = step.in[0];
  dequantize(in->quantization, read<int8_t>(in), elements(in), write<float>(step.out[0]));
}

bool prepare_cast(Step& step, const Table&) {
  if ((step.in[0]->type != kUint8 && !bytes(step.in[0])) || !floats(step.out[0])) return untyped(step);
  return same(*step.in[0]->dims, *step.out[0]->dims) || misfit(step);
}

template <typename T>
void cast(const Tensor* in, float* out) {
  for (int64_t i = 0; i < elements(in); ++i) out[i] = read<T>(in)[i];
}

void run_cast(Step& step, Workers*) {
  const Tensor* in = step.in[0];
  bytes(in) ? cast<int8_t>(in, write<float>(step.out[0])) : cast<uint8_t>(in, write<float>(step.out[0]));
}

// --- all of them --------------------------------------------------------------------------------------------------------

constexpr Bytes kOwn = Bytes::kOwn, kAsFloats = Bytes::kAsFloats;
constexpr Op kOps[] = {
    {0, 11, 2, 2, 1, kAsFloats, prepare_arithmetic, run_arithmetic<Arithmetic::kAdd>},
    {1, 5, 1, 1, 1, kAsFloats, prepare_pool, run_pool<average_pool>},
    {2, 10, 1, kMostOperands, 1, kOwn, prepare_concatenation, run_copies},
    {3, 1, 2, 3, 1, kOwn, prepare_conv, run_conv},
    {4, 2, 2, 3, 1, kOwn, prepare_depthwise, run_depthwise},
    {6, 38, 1, 1, 1, kOwn, prepare_dequantize, run_dequantize},
    {9, 8, 2, 3, 1, kOwn, prepare_dense, run_dense},
    {14, 0, 1, 1, 1, kAsFloats, prepare_each, run_each<logistic>},
    {17, 5, 1, 1, 1, kAsFloats, prepare_pool, run_pool<max_pool>},
    {18, 21, 2, 2, 1, kAsFloats, prepare_arithmetic, run_arithmetic<Arithmetic::kMul>},
    {19, 0, 1, 1, 1, kAsFloats, prepare_relu<1>, run_relu},
    {20, 0, 1, 1, 1, kAsFloats, prepare_relu<2>, run_relu},
    {21, 0, 1, 1, 1, kAsFloats, prepare_relu<3>, run_relu},
    {22, 17, 1, 2, 1, kOwn, prepare_reshape, run_reshape},
    {23, 15, 2, 2, 1, kAsFloats, prepare_bilinear, run_bilinear},
    {25, 9, 1, 1, 1, kAsFloats, prepare_softmax, run_softmax},
    {28, 0, 1, 1, 1, kAsFloats, prepare_each, run_each<hyperbolic_tangent>},
    {34, 22, 2, 2, 1, kOwn, prepare_pad, run_copies},
    {39, 26, 2, 2, 1, kOwn, prepare_transpose, run_copies},
    {40, 27, 2, 2, 1, kAsFloats, prepare_sum, run_sum<true>},
    {41, 28, 2, 2, 1, kAsFloats, prepare_arithmetic, run_arithmetic<Arithmetic::kSub>},
    {42, 29, 2, 2, 1, kAsFloats, prepare_division, run_arithmetic<Arithmetic::kDiv>},
    {43, 30, 1, 1, 1, kOwn, prepare_reshape, run_reshape},
    {45, 32, 4, 4, 1, kOwn, prepare_strided_slice, run_copies},
    {49, 35, 2, 2, kMostOperands, kOwn, prepare_split, run_copies},
    {53, 37, 1, 1, 1, kOwn, prepare_cast, run_cast},
    {54, 0, 2, 2, 1, kAsFloats, prepare_float_arithmetic, run_arithmetic<Arithmetic::kPrelu>},
    {55, 39, 2, 2, 1, kAsFloats, prepare_float_arithmetic, run_arithmetic<Arithmetic::kMaximum>},
    {57, 39, 2, 2, 1, kAsFloats, prepare_float_arithmetic, run_arithmetic<Arithmetic::kMinimum>},
    {60, 43, 3, 3, 1, kOwn, prepare_pad, run_copies},
    {65, 48, 3, 3, 1, kOwn, prepare_slice, run_copies},
    {70, 52, 2, 2, 1, kOwn, prepare_reshape, run_reshape},
    {74, 27, 2, 2, 1, kAsFloats, prepare_sum, run_sum<false>},
    {97, 74, 2, 2, 1, kOwn, prepare_resize<0>, run_nearest},
    {98, 75, 1, 1, 1, kAsFloats, prepare_leaky_relu, run_leaky_relu},
    {102, 79, 3, 3, kMostOperands, kOwn, prepare_split_v, run_copies},
    {114, 89, 1, 1, 1, kOwn, prepare_quantize, run_quantize},
};

// What the file format calls operators, in the order of their codes.
constexpr const char* kNames[] = {
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DEQUANTIZE",
    "EMBEDDING_LOOKUP", "FLOOR", "FULLY_CONNECTED", "HASHTABLE_LOOKUP", "L2_NORMALIZATION", "L2_POOL_2D",
    "LOCAL_RESPONSE_NORMALIZATION", "LOGISTIC", "LSH_PROJECTION", "LSTM", "MAX_POOL_2D", "MUL", "RELU", "RELU_N1_TO_1",
    "RELU6", "RESHAPE", "RESIZE_BILINEAR", "RNN", "SOFTMAX", "SPACE_TO_DEPTH", "SVDF", "TANH", "CONCAT_EMBEDDINGS",
    "SKIP_GRAM", "CALL", "CUSTOM", "EMBEDDING_LOOKUP_SPARSE", "PAD", "UNIDIRECTIONAL_SEQUENCE_RNN", "GATHER",
    "BATCH_TO_SPACE_ND", "SPACE_TO_BATCH_ND", "TRANSPOSE", "MEAN", "SUB", "DIV", "SQUEEZE",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "STRIDED_SLICE", "BIDIRECTIONAL_SEQUENCE_RNN", "EXP", "TOPK_V2", "SPLIT",
    "LOG_SOFTMAX", "DELEGATE", "BIDIRECTIONAL_SEQUENCE_LSTM", "CAST", "PRELU", "MAXIMUM", "ARG_MAX", "MINIMUM", "LESS",
    "NEG", "PADV2", "GREATER", "GREATER_EQUAL", "LESS_EQUAL", "SELECT", "SLICE", "SIN", "TRANSPOSE_CONV",
    "SPARSE_TO_DENSE", "TILE", "EXPAND_DIMS", "EQUAL", "NOT_EQUAL", "LOG", "SUM", "SQRT", "RSQRT", "SHAPE", "POW",
    "ARG_MIN", "FAKE_QUANT", "REDUCE_PROD", "REDUCE_MAX", "PACK", "LOGICAL_OR", "ONE_HOT", "LOGICAL_AND", "LOGICAL_NOT",
    "UNPACK", "REDUCE_MIN", "FLOOR_DIV", "REDUCE_ANY", "SQUARE", "ZEROS_LIKE", "FILL", "FLOOR_MOD", "RANGE",
    "RESIZE_NEAREST_NEIGHBOR", "LEAKY_RELU", "SQUARED_DIFFERENCE", "MIRROR_PAD", "ABS", "SPLIT_V", "UNIQUE", "CEIL",
    "REVERSE_V2", "ADD_N", "GATHER_ND", "COS", "WHERE", "RANK", "ELU", "REVERSE_SEQUENCE", "MATRIX_DIAG", "QUANTIZE",
    "MATRIX_SET_DIAG", "ROUND", "HARD_SWISH", "IF", "WHILE", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5",
    "SCATTER_ND", "SELECT_V2", "DENSIFY", "SEGMENT_SUM", "BATCH_MATMUL", "PLACEHOLDER_FOR_GREATER_OP_CODES", "CUMSUM",
    "CALL_ONCE", "BROADCAST_TO", "RFFT2D", "CONV_3D", "IMAG", "REAL", "COMPLEX_ABS", "HASHTABLE", "HASHTABLE_FIND",
    "HASHTABLE_IMPORT", "HASHTABLE_SIZE", "REDUCE_ALL", "CONV_3D_TRANSPOSE", "VAR_HANDLE", "READ_VARIABLE",
    "ASSIGN_VARIABLE", "BROADCAST_ARGS", "RANDOM_STANDARD_NORMAL", "BUCKETIZE", "RANDOM_UNIFORM", "MULTINOMIAL", "GELU",
    "DYNAMIC_UPDATE_SLICE", "RELU_0_TO_1", "UNSORTED_SEGMENT_PROD", "UNSORTED_SEGMENT_MAX", "UNSORTED_SEGMENT_SUM",
    "ATAN2", "UNSORTED_SEGMENT_MIN", "SIGN", "BITCAST", "BITWISE_XOR", "RIGHT_SHIFT", "STABLEHLO_LOGISTIC",
    "STABLEHLO_ADD", "STABLEHLO_DIVIDE", "STABLEHLO_MULTIPLY", "STABLEHLO_MAXIMUM", "STABLEHLO_RESHAPE",
    "STABLEHLO_CLAMP", "STABLEHLO_CONCATENATE", "STABLEHLO_BROADCAST_IN_DIM", "STABLEHLO_CONVOLUTION",
    "STABLEHLO_SLICE", "STABLEHLO_CUSTOM_CALL", "STABLEHLO_REDUCE", "STABLEHLO_ABS", "STABLEHLO_AND",
    "STABLEHLO_COSINE", "STABLEHLO_EXPONENTIAL", "STABLEHLO_FLOOR", "STABLEHLO_LOG", "STABLEHLO_MINIMUM",
    "STABLEHLO_NEGATE", "STABLEHLO_OR", "STABLEHLO_POWER", "STABLEHLO_REMAINDER", "STABLEHLO_RSQRT", "STABLEHLO_SELECT",
    "STABLEHLO_SUBTRACT", "STABLEHLO_TANH", "STABLEHLO_SCATTER", "STABLEHLO_COMPARE", "STABLEHLO_CONVERT",
    "STABLEHLO_DYNAMIC_SLICE", "STABLEHLO_DYNAMIC_UPDATE_SLICE", "STABLEHLO_PAD", "STABLEHLO_IOTA",
    "STABLEHLO_DOT_GENERAL", "STABLEHLO_REDUCE_WINDOW", "STABLEHLO_SORT", "STABLEHLO_WHILE", "STABLEHLO_GATHER",
    "STABLEHLO_TRANSPOSE", "DILATE", "STABLEHLO_RNG_BIT_GENERATOR", "REDUCE_WINDOW", "STABLEHLO_COMPOSITE",
    "STABLEHLO_SHIFT_LEFT", "STABLEHLO_CBRT", "STABLEHLO_CASE",
};

}  // namespace

const char* name_of_op(int code) {
  return code >= 0 && static_cast<size_t>(code) < sizeof kNames / sizeof *kNames ? kNames[code] : nullptr;
}

const Op* find_op(int code) {
  for (const Op& op : kOps)
    if (op.code == code) return &op;
  return nullptr;
}

}  // namespace dmsflow
