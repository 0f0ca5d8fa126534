// The delegate: runs the operators of Larq Compute Engine (LCE) in a stock TFLite or LiteRT interpreter.
//
// The runtime asks `prepare_delegate` for a graph, which claims LCE's nodes one by one, so that tensors stay
// in the runtime's arena and every node is timed. A stem of int8 is one node: [QUANTIZE of uint8,] [PAD,] CONV_2D and
// LceQuantize, where only the bits are read, and scales are such that no sum is rounded; or CAST of uint8, SUB, [PAD,]
// DEQUANTIZE and CONV_2D of floats that are whole numbers. From then on a node is an `Op`: made by `init`, checked and
// given its shapes by `prepare` each time that these change, run by `invoke`. A file may hold anything:
// `prepare` follows no index and believes no size that it has not checked.
//
// An operation that one thread ends in less than kShort is not shared: to wake others takes as long. So its first run
// is shared, and the next three are timed without.
//
// Options of load_delegate, all of them text:
//   threads  how many to use at most; else what the interpreter recommends, else 1
//   kernels  a name from ops.h: avx512, avx2, neon-dotprod, neon, portable
//   times    address of an int64 array of the caller, for the times of each node: [records so far, room for
//            records, then per record: the (last) node's place in the file, begin and end in ns of CLOCK_MONOTONIC]
// Where the environment variable DMSFLOW_MARK is set on loading, each node's work stands between two system
// calls clock_gettime(CLOCK_BOOTTIME): an emulator sees these, and counts apart what lies between them.

#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "denormals.h"
#include "flexbuffer.h"
#include "memory.h"
#include "ops.h"
#include "tflite_abi.h"
#include "workers.h"

namespace dmsflow {
namespace {

constexpr int kMostThreads = 1024;
constexpr int kTimedRuns = 3;
constexpr int64_t kShort = 30000;  // ns
constexpr int kMostPads = 1 << 20;             // pixels at a side
constexpr int64_t kMostSteps = 1 << 28;        // strides, dilations, the reach of a filter, sides of an image
constexpr int64_t kMostPadded = 1 << 22;       // words of an image with its padding, where that is most of it
constexpr int64_t kMostBytes = INT32_MAX - 31;  // of a tensor; words may then be counted by rounding up
constexpr int64_t kMostCount = INT32_MAX / 4;  // channels that meet a filter: twice as many fit into 31 bits

// --- what a graph's nodes have in common --------------------------------------------------------------

struct Settings {
  int threads = 0;  // 0: as the interpreter recommends
  const Kernels* kernels = nullptr;
  int64_t* times = nullptr;
  bool marked = false;
};

// Of one graph; it ends with its last node, so that the delegate may go before the interpreter does.
struct Shared {
  Settings settings;
  Workers* workers = nullptr;  // null: one thread
  int users = 1;
};

struct Loaded {
  Delegate delegate;
  Settings settings;
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;  // of `current`
  Shared* current = nullptr;                          // of the graph that is being prepared
};

template <typename T>
T* make() {
  void* memory = std::malloc(sizeof(T));
  return memory ? new (memory) T : nullptr;
}

template <typename T>
void unmake(T* object) {
  object->~T();
  std::free(object);
}

void leave(Shared* shared) {
  if (!shared || --shared->users > 0) return;
  free_workers(shared->workers);
  unmake(shared);
}

// --- nodes ----------------------------------------------------------------------------------------------

constexpr int kMostInputs = 5;
constexpr const char* kNames[] = {"LceQuantize", "LceBconv2d", "LceBMaxPool2d", "LceDequantize", "CONV_2D of int8"};
enum Kind { kQuantize, kConv, kPool, kDequantize, kStem, kKinds };  // all but the stem are custom operators
constexpr int kMostNodes = 5;  // of a stem
enum ConvInput { kImage, kFilter, kMultiplier, kBias, kThresholds };

struct Op {
  ~Op() {
    free_conv(conv);
    free_byte_conv(stem.conv);
    leave(shared);
  }

  Shared* shared = nullptr;
  Kind kind = kQuantize;
  int node = 0;  // its place in the file
  int inputs[kMostInputs];
  int input_count = 0, output_count = 0, output = kAbsent;
  const void* options = nullptr;  // in the file's bytes, which outlive the interpreter
  size_t options_size = 0;
  // By `prepare`:
  bool ready = false;
  int timed = -1;  // runs by one thread; -1: none yet at all
  int64_t alone_ns = INT64_MAX;
  Workers* workers = nullptr;  // of this run
  size_t in_bytes = 0, out_bytes = 0;
  int64_t pixels = 0;  // of quantize and dequantize
  int channels = 0;
  int8_t zero_bit = 0, one_bit = 0;
  Window window;
  int words = 0;
  Conv* conv = nullptr;  // with its weights, which are packed once
  const void* packed = nullptr;  // the filter that they come from

  struct {  // by `read_stem`; inputs are image, filter and bias
    Conv2DOptions options;
    int zero_point, fill;
    int above, below, left, right;  // pixels that a PAD puts around the image
    bool floats;  // its sums are the output
    ByteConv* conv;  // by `prepare`
  } stem = {};
};

// Reports what is wrong with a node, and gives false.
__attribute__((format(printf, 3, 4))) bool refuse(Context* context, const Op& op, const char* format, ...) {
  char message[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  context->ReportError(context, "%s (node %d): %s", kNames[op.kind], op.node, message);
  return false;
}

// --- tensors --------------------------------------------------------------------------------------------

Tensor* tensor_at(Context* context, int index) {
  if (index < 0 || static_cast<size_t>(index) >= context->tensors_size) return nullptr;
  Tensor* tensor = &context->tensors[index];
  return tensor->dims ? tensor : nullptr;
}

size_t size_of(int type) { return type == kInt8 || type == kUint8 ? 1 : 4; }

bool constant(const Tensor& tensor) {
  return (tensor.allocation == kInFile || tensor.allocation == kPreparedOnce) && tensor.data;
}

// The bytes that a shape takes; 0: it has a side below 1, or is too large.
int64_t bytes_of(const int* sides, int rank, int type) {
  int64_t bytes = static_cast<int64_t>(size_of(type));
  for (int i = 0; i < rank; ++i) {
    if (sides[i] < 1 || sides[i] > kMostBytes / bytes) return 0;
    bytes *= sides[i];
  }
  return bytes;
}

int64_t bytes_of(const Tensor& tensor) { return bytes_of(tensor.dims->data, tensor.dims->size, tensor.type); }

bool holds(const Tensor& tensor, size_t bytes) {
  return tensor.data && tensor.bytes >= bytes && reinterpret_cast<uintptr_t>(tensor.data) % size_of(tensor.type) == 0;
}

// An input or output of this type (or, with a second one, of either) and rank; rank 0 is any but a scalar.
bool check_tensor(Context* context, const Op& op, const Tensor* tensor, const char* name, int rank, int type,
                  int other_type = 0, int third_type = 0) {
  if (!tensor) return refuse(context, op, "its %s is missing", name);
  const int size = tensor->dims->size;
  if (rank ? size != rank : size < 1) return refuse(context, op, "its %s has %d dimensions", name, size);
  if (tensor->type != type && tensor->type != other_type && tensor->type != third_type)
    return refuse(context, op, "its %s is of type %d", name, tensor->type);
  if (!bytes_of(*tensor)) return refuse(context, op, "its %s is empty or too large", name);
  return true;
}

bool check_counts(Context* context, const Op& op, int inputs) {
  if (op.input_count != inputs || op.output_count != 1)
    return refuse(context, op, "it has %d inputs and %d outputs; it takes %d and 1", op.input_count, op.output_count,
                  inputs);
  for (int i = 0; i < inputs; ++i)
    if (op.inputs[i] == op.output) return refuse(context, op, "its output is its input too");
  return true;
}

bool resize_output(Context* context, Op& op, const int* sides, int rank) {
  Tensor* output = tensor_at(context, op.output);
  if (!output || constant(*output)) return refuse(context, op, "its output is a constant");
  op.out_bytes = static_cast<size_t>(bytes_of(sides, rank, output->type));
  if (!op.out_bytes) return refuse(context, op, "its output would be empty or too large");
  auto* dims = static_cast<IntArray*>(std::malloc(sizeof(int) * (1 + static_cast<size_t>(rank))));
  if (!dims) return refuse(context, op, "there is no memory");
  dims->size = rank;
  std::memcpy(dims->data, sides, sizeof(int) * static_cast<size_t>(rank));
  return context->ResizeTensor(context, output, dims) == kOk;
}

// --- options --------------------------------------------------------------------------------------------

bool read(Context* context, const Op& op, Option* options, int count) {
  if (!read_options(op.options, op.options_size, options, count)) return refuse(context, op, "damaged options");
  for (int i = 0; i < count; ++i)
    if (!options[i].found) return refuse(context, op, "it has no option %s", options[i].name);
  return true;
}

bool in_range(Context* context, const Op& op, const Option& option, int64_t least, int64_t most) {
  if (option.value >= least && option.value <= most) return true;
  return refuse(context, op, "%s is %lld; it must be from %lld to %lld", option.name,
                static_cast<long long>(option.value), static_cast<long long>(least), static_cast<long long>(most));
}

constexpr int64_t kSame = 0, kValid = 1;  // as in TFLite's schema

// Puts `window` on the input, an image.
bool place_window(Context* context, const Op& op, const Tensor& image, bool same, Window& window) {
  window.batch = image.dims->data[0];
  window.height = image.dims->data[1];
  window.width = image.dims->data[2];
  const int64_t reach_y = (window.filter_height - int64_t{1}) * window.dilation_height + 1;
  const int64_t reach_x = (window.filter_width - int64_t{1}) * window.dilation_width + 1;
  const int64_t rows = window.height + reach_y, columns = window.width + reach_x;
  const int64_t pixels = window.height * int64_t{window.width}, most = kMostPadded / image.dims->data[3];
  if (rows > kMostSteps || columns > kMostSteps || (rows * columns > most && rows * columns > 16 * pixels))
    return refuse(context, op, "its filter reaches over %lld x %lld of %d x %d pixels", static_cast<long long>(reach_y),
                  static_cast<long long>(reach_x), window.height, window.width);
  if (!place(window, same))
    return refuse(context, op, "its filter does not fit into %d x %d pixels", window.height, window.width);
  return true;
}

// --- LceQuantize, LceDequantize ---------------------------------------------------------------------------

bool prepare_quantize(Context* context, Op& op) {
  if (!check_counts(context, op, 1)) return false;
  const Tensor *in = tensor_at(context, op.inputs[0]), *out = tensor_at(context, op.output);
  if (!check_tensor(context, op, in, "input", 0, kFloat32, kInt8)) return false;
  if (!out || out->type != kInt32) return refuse(context, op, "its output is not int32");
  const int rank = in->dims->size, last = rank - 1;
  constexpr int kMostRank = 8;
  if (rank > kMostRank) return refuse(context, op, "its input has %d dimensions", rank);
  int sides[kMostRank];
  std::memcpy(sides, in->dims->data, sizeof(int) * static_cast<size_t>(rank));
  op.channels = sides[last];
  op.in_bytes = static_cast<size_t>(bytes_of(*in));
  op.pixels = static_cast<int64_t>(op.in_bytes / size_of(in->type)) / op.channels;
  sides[last] = words_of(op.channels);
  return resize_output(context, op, sides, rank);
}

void invoke_quantize(const Op& op, const Tensor& in, Tensor& out) {
  auto* bits = static_cast<uint32_t*>(out.data);
  if (in.type == kInt8)
    quantize_int8(op.shared->settings.kernels, static_cast<const int8_t*>(in.data), op.pixels, op.channels,
                  in.quantization.zero_point, bits);
  else
    quantize_float(op.shared->settings.kernels, static_cast<const float*>(in.data), op.pixels, op.channels, bits);
}

// What +1 and -1 are in an int8 tensor.
bool find_ones(Context* context, Op& op, const Quantization& quantization) {
  const float scale = quantization.scale;
  const int zero = quantization.zero_point;
  if (!(scale > 0 && scale <= 3e38f) || zero < INT8_MIN || zero > INT8_MAX)
    return refuse(context, op, "its output has scale %g and zero point %d", static_cast<double>(scale), zero);
  const double one = static_cast<double>(1.0f / scale) + 0.5;
  const int steps = one < 256 ? static_cast<int>(one) : 256;
  op.zero_bit = static_cast<int8_t>(zero + steps < INT8_MAX ? zero + steps : INT8_MAX);
  op.one_bit = static_cast<int8_t>(zero - steps > INT8_MIN ? zero - steps : INT8_MIN);
  return true;
}

bool prepare_dequantize(Context* context, Op& op) {
  if (!check_counts(context, op, 1)) return false;
  const Tensor *in = tensor_at(context, op.inputs[0]), *out = tensor_at(context, op.output);
  if (!check_tensor(context, op, in, "input", 0, kInt32)) return false;
  const int rank = in->dims->size, last = rank - 1;
  constexpr int kMostRank = 8;
  if (rank > kMostRank) return refuse(context, op, "its input has %d dimensions", rank);
  if (!check_tensor(context, op, out, "output", rank, kFloat32, kInt8)) return false;
  op.channels = out->dims->data[last];  // the input does not tell how many of its bits are channels
  if (op.channels > INT32_MAX - 31 || words_of(op.channels) != in->dims->data[last])
    return refuse(context, op, "%d words do not hold %d channels", in->dims->data[last], op.channels);
  if (out->type == kInt8 && !find_ones(context, op, out->quantization)) return false;
  int sides[kMostRank];
  std::memcpy(sides, in->dims->data, sizeof(int) * static_cast<size_t>(rank));
  sides[last] = op.channels;
  op.in_bytes = static_cast<size_t>(bytes_of(*in));
  op.pixels = static_cast<int64_t>(op.in_bytes) / 4 / in->dims->data[last];
  return resize_output(context, op, sides, rank);
}

void invoke_dequantize(const Op& op, const Tensor& in, Tensor& out) {
  const auto* bits = static_cast<const uint32_t*>(in.data);
  if (out.type == kInt8)
    dequantize_int8(bits, op.pixels, op.channels, op.zero_bit, op.one_bit, static_cast<int8_t*>(out.data));
  else
    dequantize_float(bits, op.pixels, op.channels, static_cast<float*>(out.data));
}

// --- LceBMaxPool2d ----------------------------------------------------------------------------------------

bool prepare_pool(Context* context, Op& op) {
  if (!check_counts(context, op, 1)) return false;
  const Tensor *in = tensor_at(context, op.inputs[0]), *out = tensor_at(context, op.output);
  if (!check_tensor(context, op, in, "input", 4, kInt32)) return false;
  if (!out || out->type != kInt32) return refuse(context, op, "its output is not int32");
  Option options[] = {{"filter_height"}, {"filter_width"}, {"stride_height"}, {"stride_width"}, {"padding"}};
  if (!read(context, op, options, 5) || !in_range(context, op, options[4], kSame, kValid)) return false;
  for (int i = 0; i < 4; ++i)
    if (!in_range(context, op, options[i], 1, kMostSteps)) return false;
  op.window = Window();
  op.window.filter_height = static_cast<int>(options[0].value);
  op.window.filter_width = static_cast<int>(options[1].value);
  op.window.stride_height = static_cast<int>(options[2].value);
  op.window.stride_width = static_cast<int>(options[3].value);
  if (!place_window(context, op, *in, options[4].value == kSame, op.window)) return false;
  op.words = in->dims->data[3];
  op.in_bytes = static_cast<size_t>(bytes_of(*in));
  const int sides[] = {op.window.batch, op.window.out_height, op.window.out_width, op.words};
  return resize_output(context, op, sides, 4);
}

void invoke_pool(const Op& op, const Tensor& in, Tensor& out) {
  max_pool(op.window, static_cast<const uint32_t*>(in.data), op.words, static_cast<uint32_t*>(out.data));
}

// --- LceBconv2d -------------------------------------------------------------------------------------------

struct ConvOptions {
  bool same = false, zero_padding = false;
  int32_t act_min = INT32_MIN, act_max = INT32_MAX;
};

// Also fills in the window's strides and dilations, and the channels.
bool read_conv_options(Context* context, Op& op, ConvParams& params, ConvOptions& settings) {
  Option options[] = {{"stride_height"},         {"stride_width"}, {"dilation_height_factor"},
                      {"dilation_width_factor"}, {"channels_in"},  {"padding"},
                      {"pad_values"},            {"fused_activation_function"}};
  if (!read(context, op, options, 8)) return false;
  for (int i = 0; i < 5; ++i)
    if (!in_range(context, op, options[i], 1, kMostSteps)) return false;
  if (!in_range(context, op, options[5], kSame, kValid) || !in_range(context, op, options[6], 0, 1)) return false;
  constexpr int64_t kActivations = 4;  // none, ReLU, ReLU to 1 from -1, ReLU to 6
  if (!in_range(context, op, options[7], 0, kActivations - 1)) return false;
  constexpr int32_t kFrom[kActivations] = {INT32_MIN, 0, -1, 0}, kTo[kActivations] = {INT32_MAX, INT32_MAX, 1, 6};
  params.window.stride_height = static_cast<int>(options[0].value);
  params.window.stride_width = static_cast<int>(options[1].value);
  params.window.dilation_height = static_cast<int>(options[2].value);
  params.window.dilation_width = static_cast<int>(options[3].value);
  params.channels = static_cast<int>(options[4].value);
  settings.same = options[5].value == kSame;
  settings.zero_padding = settings.same && options[6].value == 0;
  settings.act_min = kFrom[options[7].value];
  settings.act_max = kTo[options[7].value];
  return true;
}

// The filter's shape, and with it the groups.
bool check_filter(Context* context, const Op& op, const Tensor& filter, ConvParams& params) {
  const int* sides = filter.dims->data;
  if (!constant(filter) || !holds(filter, static_cast<size_t>(bytes_of(filter))))
    return refuse(context, op, "its filter is no constant");
  params.filters = sides[0];
  params.window.filter_height = sides[1];
  params.window.filter_width = sides[2];
  const int words = words_of(params.channels);
  params.groups = words % sides[3] == 0 ? words / sides[3] : 0;
  if (params.groups != 1 && (!params.groups || params.channels % (32 * int64_t{params.groups}) ||
                             params.filters % params.groups))
    return refuse(context, op, "filters of %d words do not divide %d channels", sides[3], params.channels);
  if (int64_t{32} * sides[3] * sides[2] > kMostCount / sides[1]) return refuse(context, op, "its filters are too large");
  if (params.groups > 1 && params.output == Output::kBits && params.filters % (32 * int64_t{params.groups}))
    return refuse(context, op, "%d filters in %d groups do not end at whole words", params.filters, params.groups);
  return true;
}

// One constant number per filter.
template <typename T>
bool check_vector(Context* context, const Op& op, ConvInput input, const char* name, int type, int filters,
                  const T*& values) {
  const Tensor* tensor = tensor_at(context, op.inputs[input]);
  if (!check_tensor(context, op, tensor, name, 1, type)) return false;
  if (tensor->dims->data[0] != filters)
    return refuse(context, op, "its %s has %d values for %d filters", name, tensor->dims->data[0], filters);
  if (!constant(*tensor) || !holds(*tensor, static_cast<size_t>(bytes_of(*tensor))))
    return refuse(context, op, "its %s is no constant", name);
  values = static_cast<const T*>(tensor->data);
  return true;
}

// LCE's output transform: with x the sum of products, x = K - 2 * count; it is clamped, scaled and moved,
// and for int8 brought to the tensor's scale. In doubles, then rounded once.
struct Transform {
  Buffer<float> multiplier, bias, correction;
};

bool fuse(Context* context, const Op& op, const Tensor& out, const ConvOptions& settings, ConvParams& params,
          Transform& transform) {
  const float *multiplier = nullptr, *bias = nullptr;
  const int filters = params.filters;
  if (!check_vector(context, op, kMultiplier, "multiplier", kFloat32, filters, multiplier)) return false;
  if (!check_vector(context, op, kBias, "bias", kFloat32, filters, bias)) return false;
  const bool bytes = params.output == Output::kInt8;
  const double scale = bytes ? out.quantization.scale : 1.0, zero = bytes ? out.quantization.zero_point : 0.0;
  if (!(scale > 0 && scale <= 3e38)) return refuse(context, op, "its output has scale %g", scale);
  const size_t size = static_cast<size_t>(filters);
  if (!transform.multiplier.resize(size) || !transform.bias.resize(size) || !transform.correction.resize(size))
    return refuse(context, op, "there is no memory");
  const Window& window = params.window;
  const int32_t count = window.filter_height * window.filter_width * (params.channels / params.groups);
  for (size_t i = 0; i < size; ++i) {
    const double scaled = multiplier[i], moved = bias[i];
    transform.multiplier[i] = static_cast<float>(-scaled / scale);
    transform.bias[i] = static_cast<float>((moved + count * scaled) / scale + zero);
    transform.correction[i] = -multiplier[i];
  }
  params.clamp_min = count - (settings.act_max < count ? settings.act_max : count);
  params.clamp_max = count - (settings.act_min > -count ? settings.act_min : -count);
  params.multiplier = transform.multiplier.data();
  params.bias = transform.bias.data();
  params.correction_multiplier = settings.zero_padding ? transform.correction.data() : nullptr;
  return true;
}

// Packs the weights, or where they are packed gives them another image size.
bool pack_conv(Context* context, Op& op, const Tensor& filter, const Tensor& out, const ConvOptions& settings,
               ConvParams& params) {
  if (op.conv && op.packed == filter.data) {
    if (resize_conv(op.conv, params.window)) return true;
    return refuse(context, op, "there is no memory");
  }
  Transform transform;
  if (params.output == Output::kBits) {
    const int filters = params.filters;
    if (!check_vector(context, op, kThresholds, "threshold", kInt32, filters, params.thresholds)) return false;
  } else if (!fuse(context, op, out, settings, params, transform)) {
    return false;
  }
  params.filter = static_cast<const uint32_t*>(filter.data);
  free_conv(op.conv);
  op.conv = make_conv(op.shared->settings.kernels, params);
  op.packed = filter.data;
  return op.conv || refuse(context, op, "there is no memory");
}

bool prepare_conv(Context* context, Op& op) {
  if (!check_counts(context, op, 5)) return false;
  const Tensor *in = tensor_at(context, op.inputs[kImage]), *filter = tensor_at(context, op.inputs[kFilter]);
  const Tensor* out = tensor_at(context, op.output);
  if (!check_tensor(context, op, in, "input", 4, kInt32)) return false;
  if (!check_tensor(context, op, filter, "filter", 4, kInt32)) return false;
  if (!out || (out->type != kFloat32 && out->type != kInt8 && out->type != kInt32))
    return refuse(context, op, "its output is neither float32 nor int8 nor bits");
  ConvParams params;
  ConvOptions settings;
  params.output = out->type == kFloat32 ? Output::kFloat : out->type == kInt8 ? Output::kInt8 : Output::kBits;
  if (!read_conv_options(context, op, params, settings) || !check_filter(context, op, *filter, params)) return false;
  if (words_of(params.channels) != in->dims->data[3])
    return refuse(context, op, "%d channels are not in %d words", params.channels, in->dims->data[3]);
  if (settings.zero_padding && (params.output != Output::kFloat || settings.act_min != INT32_MIN ||
                                settings.act_max != INT32_MAX))
    return refuse(context, op, "zero-padding is there for float32 outputs without an activation only");
  if (!place_window(context, op, *in, settings.same, params.window)) return false;
  op.in_bytes = static_cast<size_t>(bytes_of(*in));
  const Window& window = params.window;
  const int channels = params.output == Output::kBits ? words_of(params.filters) : params.filters;
  const int sides[] = {window.batch, window.out_height, window.out_width, channels};
  if (!bytes_of(sides, 4, out->type)) return refuse(context, op, "its output would be empty or too large");
  return pack_conv(context, op, *filter, *out, settings, params) && resize_output(context, op, sides, 4);
}

void invoke_conv(const Op& op, const Tensor& in, Tensor& out) {
  run_conv(op.conv, static_cast<const uint32_t*>(in.data), out.data, op.workers);
}

// --- a stem of int8 ---------------------------------------------------------------------------------------

// Whether the runtime's sums are whole steps of the output: then no rounding is left to it, and a number is below the
// zero point where its sum is below 0.
bool is_exact(const Tensor& in, const Tensor& filter, const Tensor& out) {
  const auto* affine = static_cast<const AffineQuantization*>(filter.affine.params);
  if (filter.affine.kind != kAffine || !affine || !affine->scale || !affine->zero_point) return false;
  const int scales = affine->scale->size, filters = filter.dims->data[0];
  if (scales < 1 || (scales > 1 && (scales != filters || affine->side != 0))) return false;
  const double from = in.quantization.scale, to = out.quantization.scale;
  for (int i = 0; i < scales; ++i)
    if (!(from > 0 && to > 0 && from * static_cast<double>(affine->scale->data[i]) == to)) return false;
  for (int i = 0; i < affine->zero_point->size; ++i)
    if (affine->zero_point->data[i]) return false;
  const int zero = in.quantization.zero_point, out_zero = out.quantization.zero_point;
  return zero >= INT8_MIN && zero <= INT8_MAX && out_zero > INT8_MIN && out_zero <= INT8_MAX;
}

// Whether no sum can leave 30 bits, as TFLite's own kernels need it, and two products of bytes fit into 16 bits.
bool fits_bytes(const Tensor& filter, const Tensor& bias) {
  const int64_t weights = bytes_of(filter);
  constexpr int kMostBias = 1 << 29;
  const auto* weight = static_cast<const int8_t*>(filter.data);
  for (int64_t i = 0; i < weights; ++i)
    if (weight[i] == INT8_MIN) return false;
  for (int i = 0; i < filter.dims->data[0]; ++i) {
    const int32_t each = static_cast<const int32_t*>(bias.data)[i];
    if (each > kMostBias || each < -kMostBias) return false;
  }
  return 2 * weights / filter.dims->data[0] <= kMostByteWindow;
}

// A constant of this type and shape.
bool is_constant(const Tensor* tensor, int type, int rank, int64_t bytes = 0) {
  if (!tensor || tensor->type != type || tensor->dims->size != rank || !constant(*tensor)) return false;
  const int64_t size = bytes_of(*tensor);
  return size && (!bytes || size == bytes) && holds(*tensor, static_cast<size_t>(size));
}

bool same_scale(const Tensor& left, const Tensor& right, int shift = 0) {
  return left.quantization.scale == right.quantization.scale &&
         left.quantization.zero_point - shift == right.quantization.zero_point;
}

// What a PAD puts around an image; false: something that a convolution cannot take along.
bool read_pad(Context* context, const Node& node, Op& op) {
  const Tensor *in = tensor_at(context, node.inputs->data[0]), *out = tensor_at(context, node.outputs->data[0]);
  const Tensor* amounts = node.inputs->size > 1 ? tensor_at(context, node.inputs->data[1]) : nullptr;
  if (!in || !out || in->type != out->type || !same_scale(*in, *out)) return false;
  if (in->type != (op.stem.floats ? kFloat32 : kInt8) || !is_constant(amounts, kInt32, 2, 8 * sizeof(int32_t))) return false;
  const auto* pixels = static_cast<const int32_t*>(amounts->data);
  for (int i = 0; i < 8; ++i)
    if (pixels[i] < 0 || pixels[i] > (i < 2 || i > 5 ? 0 : kMostPads)) return false;
  op.stem.above = pixels[2];
  op.stem.below = pixels[3];
  op.stem.left = pixels[4];
  op.stem.right = pixels[5];
  op.stem.fill = op.stem.floats ? op.stem.zero_point : out->quantization.zero_point;
  if (node.inputs->size == 2) return true;
  if (op.stem.floats) return false;
  const Tensor* fill = tensor_at(context, node.inputs->data[2]);
  if (!fill || fill->type != kInt8 || !constant(*fill) || fill->bytes != 1) return false;
  op.stem.fill = *static_cast<const int8_t*>(fill->data);
  return true;
}

bool takes_window(const Conv2DOptions& o) {
  return (o.padding == kSamePadding || o.padding == kValidPadding) && !o.activation && o.dilation_width == 1 &&
         o.dilation_height == 1 && o.stride_width >= 1 && o.stride_width <= kMostSteps && o.stride_height >= 1 &&
         o.stride_height <= kMostSteps;
}

bool read_stem_conv(Context* context, const Node& node, Op& op) {
  if (node.inputs->size != 3 || !node.builtin_data) return false;
  const Tensor *in = tensor_at(context, node.inputs->data[0]), *filter = tensor_at(context, node.inputs->data[1]);
  const Tensor *bias = tensor_at(context, node.inputs->data[2]), *out = tensor_at(context, node.outputs->data[0]);
  if (!in || !out || in->type != kInt8 || out->type != kInt8 || !is_constant(filter, kInt8, 4)) return false;
  if (!is_constant(bias, kInt32, 1, filter->dims->data[0] * int64_t{4})) return false;
  if (!is_exact(*in, *filter, *out) || !fits_bytes(*filter, *bias)) return false;
  op.inputs[1] = node.inputs->data[1];
  op.inputs[2] = node.inputs->data[2];
  op.stem.options = *static_cast<const Conv2DOptions*>(node.builtin_data);
  op.stem.zero_point = in->quantization.zero_point;
  return takes_window(op.stem.options);
}

// The pixel that a SUB takes off all channels, as int8; false: it does something else.
bool read_mean(Context* context, const Node& node, Op& op) {
  const Tensor* means = node.inputs->size == 2 ? tensor_at(context, node.inputs->data[1]) : nullptr;
  if (!is_constant(means, kFloat32, 1) || !node.builtin_data || *static_cast<const int*>(node.builtin_data)) return false;
  const auto* mean = static_cast<const float*>(means->data);
  for (int i = 0; i < means->dims->data[0]; ++i)
    if (!(mean[i] == mean[0] && mean[0] >= 0 && mean[0] <= 255 && mean[0] == static_cast<float>(static_cast<int>(mean[0]))))
      return false;
  op.stem.zero_point = static_cast<int>(mean[0]) - 128;
  return true;
}

// Filters of whole numbers: int8 with a scale of 1.
bool read_whole_filter(Context* context, const Node& node, Op& op) {
  const Tensor* filter = tensor_at(context, node.inputs->data[0]);
  if (!is_constant(filter, kInt8, 4) || filter->quantization.scale != 1.0f || filter->quantization.zero_point) return false;
  const int64_t weights = bytes_of(*filter);
  for (int64_t i = 0; i < weights; ++i)
    if (static_cast<const int8_t*>(filter->data)[i] == INT8_MIN) return false;
  op.inputs[1] = node.inputs->data[0];
  return 2 * weights / filter->dims->data[0] <= kMostByteWindow;  // so no sum is beyond 24 bits either
}

// A float convolution with a bias of zeros.
bool read_float_conv(Context* context, const Node& node, Op& op) {
  if (node.inputs->size != 3 || !node.builtin_data) return false;
  const Tensor* bias = tensor_at(context, node.inputs->data[2]);
  if (!is_constant(bias, kFloat32, 1)) return false;
  for (int i = 0; i < bias->dims->data[0]; ++i)
    if (static_cast<const float*>(bias->data)[i] != 0.0f) return false;
  op.inputs[2] = node.inputs->data[2];
  op.stem.options = *static_cast<const Conv2DOptions*>(node.builtin_data);
  return takes_window(op.stem.options);
}

// As read_stem, of CAST, SUB, [PAD,] DEQUANTIZE and CONV_2D: sums of whole numbers, which float32 holds in any order.
bool read_float_stem(Context* context, const int* nodes, int count, Op& op) {
  op.stem.floats = true;
  for (int i = 0; i < count; ++i) {
    Node* node = nullptr;
    Registration* found = nullptr;
    if (context->GetNodeAndRegistration(context, nodes[i], &node, &found) != kOk) return false;
    if (!node->inputs || !node->inputs->size || !node->outputs || node->outputs->size != 1) return false;
    const Tensor* in = tensor_at(context, node->inputs->data[0]);
    const Tensor* out = tensor_at(context, node->outputs->data[0]);
    if (!in || !out || out->type != kFloat32) return false;
    bool reads = false;
    if (found->builtin_code == kCastOp) {
      op.inputs[0] = node->inputs->data[0];
      reads = in->type == kUint8;
    } else if (found->builtin_code == kSubOp) {
      const IntArray &from = *in->dims, &to = *out->dims;  // one channel may become several
      reads = from.size == 4 && to.size == 4 && from.data[3] == to.data[3] && read_mean(context, *node, op);
    } else if (found->builtin_code == kPadOp) {
      reads = read_pad(context, *node, op);
    } else if (found->builtin_code == kDequantizeOp) {
      reads = read_whole_filter(context, *node, op);
    } else if (found->builtin_code == kConvOp) {
      reads = read_float_conv(context, *node, op);
      op.node = nodes[i];
      op.output = node->outputs->data[0];
    }
    if (!reads) return false;
  }
  const bool padded = count == kMostNodes;
  if (!padded) op.stem.fill = op.stem.zero_point;
  op.kind = kStem;
  op.input_count = 3;
  op.output_count = 1;
  return !(padded && op.stem.options.padding == kSamePadding);
}

// Fills in `op` from nodes that follow each other, the last an LceQuantize; false: they are no stem that it can run.
bool read_stem(Context* context, const int* nodes, int count, Op& op) {
  bool padded = false, filtered = false;
  for (int i = 0; i < count; ++i) {
    Node* node = nullptr;
    Registration* found = nullptr;
    if (context->GetNodeAndRegistration(context, nodes[i], &node, &found) != kOk) return false;
    if (!node->inputs || !node->inputs->size || !node->outputs || node->outputs->size != 1) return false;
    if (i == 0) op.inputs[0] = node->inputs->data[0];
    if (found->builtin_code == kQuantizeOp) {
      const Tensor *in = tensor_at(context, node->inputs->data[0]), *out = tensor_at(context, node->outputs->data[0]);
      if (i || !in || !out || in->type != kUint8 || out->type != kInt8 || !same_scale(*in, *out, 128)) return false;
    } else if (found->builtin_code == kPadOp || found->builtin_code == kPadV2Op) {
      padded = true;
      if (!read_pad(context, *node, op)) return false;
    } else if (found->builtin_code == kConvOp) {
      filtered = true;
      if (!read_stem_conv(context, *node, op)) return false;
    }
    op.node = nodes[i];
    op.output = node->outputs->data[0];
  }
  if (!padded) op.stem.fill = op.stem.zero_point;
  op.kind = kStem;
  op.input_count = 3;
  op.output_count = 1;
  return filtered && !(padded && op.stem.options.padding == kSamePadding);
}

bool prepare_stem(Context* context, Op& op) {
  if (!check_counts(context, op, 3)) return false;
  const Tensor *in = tensor_at(context, op.inputs[0]), *filter = tensor_at(context, op.inputs[1]);
  const Tensor *bias = tensor_at(context, op.inputs[2]), *out = tensor_at(context, op.output);
  if (!check_tensor(context, op, in, "input", 4, kInt8, kUint8)) return false;
  const int bias_type = op.stem.floats ? kFloat32 : kInt32, out_type = bias_type;
  if (!check_tensor(context, op, filter, "filter", 4, kInt8) || !check_tensor(context, op, bias, "bias", 1, bias_type))
    return false;
  if (!out || out->type != out_type) return refuse(context, op, "its output is of type %d", out ? out->type : 0);
  const int *sides = in->dims->data, *taps = filter->dims->data;
  if (taps[3] != sides[3]) return refuse(context, op, "filters of %d channels on %d", taps[3], sides[3]);
  ByteParams params;
  Window& w = params.window;
  w.batch = sides[0];
  w.filter_height = taps[1];
  w.filter_width = taps[2];
  w.stride_height = op.stem.options.stride_height;
  w.stride_width = op.stem.options.stride_width;
  if (sides[1] > kMostSteps || sides[2] > kMostSteps) return refuse(context, op, "its input is too large");
  w.height = sides[1] + op.stem.above + op.stem.below;
  w.width = sides[2] + op.stem.left + op.stem.right;
  if (!place(w, op.stem.options.padding == kSamePadding))
    return refuse(context, op, "its filter does not fit into %d x %d pixels", w.height, w.width);
  w.height = sides[1];
  w.width = sides[2];
  w.pad_top += op.stem.above;
  w.pad_left += op.stem.left;
  params.channels = sides[3];
  params.filters = taps[0];
  params.filter = static_cast<const int8_t*>(filter->data);
  params.bias = op.stem.floats ? nullptr : static_cast<const int32_t*>(bias->data);
  params.floats = op.stem.floats;
  params.zero_point = op.stem.zero_point;
  params.fill = op.stem.fill;
  params.is_unsigned = in->type == kUint8;
  op.in_bytes = static_cast<size_t>(bytes_of(*in));
  if (!op.stem.conv || op.packed != filter->data) {
    free_byte_conv(op.stem.conv);
    op.stem.conv = make_byte_conv(op.shared->settings.kernels, params);
    op.packed = filter->data;
    if (!op.stem.conv) return refuse(context, op, "there is no memory");
  } else if (!resize_byte_conv(op.stem.conv, w)) {
    return refuse(context, op, "there is no memory");
  }
  const int out_sides[] = {w.batch, w.out_height, w.out_width, params.floats ? params.filters : words_of(params.filters)};
  return resize_output(context, op, out_sides, 4);
}

void invoke_stem(const Op& op, const Tensor& in, Tensor& out) {
  run_byte_conv(op.stem.conv, in.data, out.data, op.workers);
}

// --- what the runtime calls -------------------------------------------------------------------------------

constexpr bool (*kPrepare[kKinds])(Context*, Op&) = {prepare_quantize, prepare_conv, prepare_pool, prepare_dequantize,
                                                     prepare_stem};
constexpr void (*kInvoke[kKinds])(const Op&, const Tensor&, Tensor&) = {invoke_quantize, invoke_conv, invoke_pool,
                                                                        invoke_dequantize, invoke_stem};

int kind_of(const Registration& registration) {
  if (registration.builtin_code != kCustomOp || !registration.custom_name) return kKinds;
  int kind = 0;
  while (kind < kStem && std::strcmp(registration.custom_name, kNames[kind]) != 0) ++kind;
  return kind < kStem ? kind : kKinds;
}

// The file's node, as it was before we took its place: its inputs, absent ones too, and its options.
bool read_node(Context* context, int index, Op& op) {
  Node* node = nullptr;
  Registration* found = nullptr;
  if (context->GetNodeAndRegistration(context, index, &node, &found) != kOk || kind_of(*found) == kKinds) return false;
  op.kind = static_cast<Kind>(kind_of(*found));
  op.node = index;
  op.input_count = node->inputs ? node->inputs->size : 0;
  op.output_count = node->outputs ? node->outputs->size : 0;
  for (int i = 0; i < kMostInputs; ++i) op.inputs[i] = i < op.input_count ? node->inputs->data[i] : kAbsent;
  op.output = op.output_count ? node->outputs->data[0] : kAbsent;
  op.options = node->options;
  op.options_size = node->options_size > 0 ? static_cast<size_t>(node->options_size) : 0;
  return true;
}

bool read_any_stem(Context* context, const IntArray& nodes, Op& op) {
  Node* last = nullptr;
  Registration* found = nullptr;
  if (context->GetNodeAndRegistration(context, nodes.data[nodes.size - 1], &last, &found) != kOk) return false;
  return found->builtin_code == kConvOp ? read_float_stem(context, nodes.data, nodes.size, op)
                                        : read_stem(context, nodes.data, nodes.size, op);
}

void* init(Context* context, const char* buffer, size_t) {
  const auto* params = reinterpret_cast<const DelegateParams*>(buffer);
  Shared* shared = static_cast<Loaded*>(params->delegate->data)->current;
  Op* op = shared ? make<Op>() : nullptr;
  if (!op) return nullptr;
  const IntArray& nodes = *params->nodes;
  const bool reads = nodes.size == 1 ? read_node(context, nodes.data[0], *op) : read_any_stem(context, nodes, *op);
  if (!reads) {
    unmake(op);
    return nullptr;
  }
  op->shared = shared;
  ++shared->users;
  return op;
}

void free_op(Context*, void* user_data) {
  if (user_data) unmake(static_cast<Op*>(user_data));
}

Status prepare(Context* context, Node* node) {
  Op* op = static_cast<Op*>(node->user_data);
  if (!op) {
    context->ReportError(context, "dmsflow: there is no memory");
    return kError;
  }
  const NoDenormals none;
  op->ready = kPrepare[op->kind](context, *op);
  op->timed = -1;
  op->alone_ns = INT64_MAX;
  return op->ready ? kOk : kError;
}

int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

void mark() {
  timespec time;
  syscall(SYS_clock_gettime, CLOCK_BOOTTIME, &time);
}

// Runs an operation by as many threads as are of use.
void run(Op& op, const Tensor& in, Tensor& out) {
  const NoDenormals none;
  const bool times = op.shared->workers && op.timed >= 0 && op.timed < kTimedRuns;
  op.workers = times || op.alone_ns < kShort ? nullptr : op.shared->workers;
  const int64_t begin = times ? now() : 0;
  kInvoke[op.kind](op, in, out);
  if (times) {
    const int64_t taken = now() - begin;
    if (taken < op.alone_ns) op.alone_ns = taken;
  }
  if (op.timed < kTimedRuns) ++op.timed;
}

Status invoke(Context* context, Node* node) {
  Op* op = static_cast<Op*>(node->user_data);
  const Tensor* in = op ? tensor_at(context, op->inputs[0]) : nullptr;
  Tensor* out = op ? tensor_at(context, op->output) : nullptr;
  if (!in || !out) return kError;
  if (!op->ready || !holds(*in, op->in_bytes) || !holds(*out, op->out_bytes)) {
    refuse(context, *op, "its tensors are not those that it was prepared for");
    return kError;
  }
  const Settings& settings = op->shared->settings;
  const int64_t begin = settings.times ? now() : 0;
  if (settings.marked) mark();
  run(*op, *in, *out);
  if (settings.marked) mark();
  int64_t* times = settings.times;
  if (times && times[0] >= 0 && times[0] < times[1]) {
    int64_t* record = times + 2 + 3 * times[0]++;
    record[0] = op->node;
    record[1] = begin;
    record[2] = now();
  }
  return kOk;
}

// What becomes one node of ours.
struct Nodes {
  int size = 0;
  int data[kMostNodes];

  const IntArray* array() const { return reinterpret_cast<const IntArray*>(this); }
};

Status take(Context* context, Delegate* delegate, Kind kind, const Nodes& nodes) {
  Registration ours = {};
  ours.init = init;
  ours.free = free_op;
  ours.prepare = prepare;
  ours.invoke = invoke;
  ours.builtin_code = kDelegateOp;
  ours.custom_name = kNames[kind];
  ours.version = 1;
  return context->ReplaceNodeSubsetsWithDelegateKernels(context, ours, nodes.array(), delegate);
}

// Of the plan's nodes, the first that writes a tensor, or reads it as its first input; its kind, and -1: none does.
struct Found {
  int node = -1, code = 0, kind = kKinds, input = kAbsent;
};

Found find(Context* context, const Buffer<int>& plan, int tensor, bool writes) {
  for (size_t i = 0; i < plan.size(); ++i) {
    Node* node = nullptr;
    Registration* found = nullptr;
    if (plan[i] < 0 || context->GetNodeAndRegistration(context, plan[i], &node, &found) != kOk) continue;
    const IntArray* tensors = writes ? node->outputs : node->inputs;
    if (tensors && tensors->size && tensors->data[0] == tensor)
      return {plan[i], found->builtin_code, kind_of(*found),
              node->inputs && node->inputs->size ? node->inputs->data[0] : kAbsent};
  }
  return {};
}

// Whether nobody else reads what these nodes hand to each other: then the runtime makes one part of them.
bool stand_alone(Context* context, const Nodes& nodes, int output) {
  DelegateParams* parts = nullptr;
  int count = 0;
  return context->PreviewDelegatePartitioning(context, nodes.array(), &parts, &count) == kOk && count == 1 &&
         parts[0].nodes->size == nodes.size && parts[0].outputs->size == 1 && parts[0].outputs->data[0] == output;
}

// The longest stem around a CONV_2D, [QUANTIZE,] [PAD,] CONV_2D, LceQuantize; empty: it is in none.
Nodes find_stem(Context* context, const Buffer<int>& plan, int conv, const Node& node) {
  if (!node.inputs || !node.inputs->size || !node.outputs || node.outputs->size != 1) return {};
  const Tensor* out = tensor_at(context, node.outputs->data[0]);
  const Found bits = out && out->type == kInt8 ? find(context, plan, node.outputs->data[0], false) : Found();
  if (bits.kind != kQuantize) return {};
  constexpr int kChain = 4;
  int chain[kChain] = {0, 0, conv, bits.node}, begin = kChain - 2;
  Found before = find(context, plan, node.inputs->data[0], true);
  if (before.code == kPadOp || before.code == kPadV2Op) {
    chain[--begin] = before.node;
    before = find(context, plan, before.input, true);
  }
  if (before.code == kQuantizeOp) chain[--begin] = before.node;
  for (; begin <= kChain - 2; ++begin) {
    Nodes nodes;
    for (int i = begin; i < kChain; ++i) nodes.data[nodes.size++] = chain[i];
    Op op;
    if (read_stem(context, nodes.data, nodes.size, op) && stand_alone(context, nodes, op.output)) return nodes;
  }
  return {};
}

// CAST, SUB, [PAD,] DEQUANTIZE and CONV_2D of floats; empty: it is no such stem.
Nodes find_float_stem(Context* context, const Buffer<int>& plan, int conv, const Node& node) {
  if (!node.inputs || node.inputs->size != 3 || !node.outputs || node.outputs->size != 1) return {};
  const Found filter = find(context, plan, node.inputs->data[1], true);
  Found before = find(context, plan, node.inputs->data[0], true);
  if (filter.code != kDequantizeOp) return {};
  Nodes nodes;
  nodes.data[nodes.size++] = conv;
  nodes.data[nodes.size++] = filter.node;
  if (before.code == kPadOp) {
    nodes.data[nodes.size++] = before.node;
    before = find(context, plan, before.input, true);
  }
  if (before.code != kSubOp) return {};
  nodes.data[nodes.size++] = before.node;
  before = find(context, plan, before.input, true);
  if (before.code != kCastOp) return {};
  nodes.data[nodes.size++] = before.node;
  for (int i = 1; i < nodes.size; ++i)  // in the order of the file
    for (int j = i; j && nodes.data[j - 1] > nodes.data[j]; --j) std::swap(nodes.data[j - 1], nodes.data[j]);
  Op op;
  const bool reads = read_float_stem(context, nodes.data, nodes.size, op);
  return reads && stand_alone(context, nodes, op.output) ? nodes : Nodes();
}

// `plan` loses the nodes that are taken together.
Status claim(Context* context, Delegate* delegate, Buffer<int>& plan, int index) {
  Node* node = nullptr;
  Registration* found = nullptr;
  if (context->GetNodeAndRegistration(context, index, &node, &found) != kOk) return kError;
  const int kind = kind_of(*found);
  if (kind != kKinds) {
    Nodes nodes;
    nodes.data[nodes.size++] = index;
    return take(context, delegate, static_cast<Kind>(kind), nodes);
  }
  const Settings& settings = static_cast<Loaded*>(delegate->data)->settings;
  if (found->builtin_code != kConvOp || !has_byte_conv(settings.kernels)) return kOk;
  Nodes nodes = find_stem(context, plan, index, *node);
  if (!nodes.size) nodes = find_float_stem(context, plan, index, *node);
  for (int i = 0; i < nodes.size; ++i)
    for (size_t at = 0; at < plan.size(); ++at)
      if (plan[at] == nodes.data[i]) plan[at] = -1;
  return nodes.size ? take(context, delegate, kStem, nodes) : kOk;
}

Status claim_all(Context* context, Delegate* delegate) {
  IntArray* plan = nullptr;
  if (context->GetExecutionPlan(context, &plan) != kOk) return kError;
  const size_t count = plan->size > 0 ? static_cast<size_t>(plan->size) : 0;
  Buffer<int> indices;  // the runtime changes its plan with every node that we take
  if (!count) return kOk;
  if (!indices.resize(count)) return kError;
  std::memcpy(indices.data(), plan->data, count * sizeof(int));
  for (size_t i = 0; i < count; ++i)
    if (indices[i] >= 0 && claim(context, delegate, indices, indices[i]) != kOk) return kError;
  return kOk;
}

Status prepare_delegate(Context* context, Delegate* delegate) {
  Loaded& loaded = *static_cast<Loaded*>(delegate->data);
  Shared* shared = make<Shared>();
  if (!shared) return kError;
  shared->settings = loaded.settings;
  const int wanted = loaded.settings.threads ? loaded.settings.threads : context->recommended_num_threads;
  if (wanted > 1) shared->workers = make_workers(wanted < kMostThreads ? wanted : kMostThreads);
  pthread_mutex_lock(&loaded.mutex);  // two interpreters may be made from one delegate at once
  loaded.current = shared;
  const Status status = claim_all(context, delegate);
  loaded.current = nullptr;
  pthread_mutex_unlock(&loaded.mutex);
  leave(shared);
  return status;
}

// --- options of load_delegate -------------------------------------------------------------------------------

bool parse(const char* text, uint64_t most, uint64_t& value) {
  value = 0;
  for (const char* digit = text; *digit; ++digit) {
    if (*digit < '0' || *digit > '9') return false;
    const uint64_t next = static_cast<uint64_t>(*digit - '0');
    if (value > (most - next) / 10) return false;
    value = value * 10 + next;
  }
  return *text && value > 0;
}

// What is wrong with an option; null: nothing.
const char* set(Settings& settings, const char* key, const char* text) {
  uint64_t value;
  if (std::strcmp(key, "threads") == 0) {
    if (!parse(text, kMostThreads, value)) return "give a whole number from 1 to 1024";
    settings.threads = static_cast<int>(value);
  } else if (std::strcmp(key, "kernels") == 0) {
    settings.kernels = find_kernels(text);
    if (!settings.kernels) return "give avx512, avx2, neon-dotprod, neon or portable, as this processor can run";
  } else if (std::strcmp(key, "times") == 0) {
    if (!parse(text, UINTPTR_MAX, value) || value % alignof(int64_t)) return "give the address of an int64 array";
    settings.times = reinterpret_cast<int64_t*>(static_cast<uintptr_t>(value));
  } else {
    return "there is no such option; there are threads, kernels and times";
  }
  return nullptr;
}

Loaded* load(char** keys, char** values, size_t count, void (*report_error)(const char*)) {
  Settings settings;
  settings.kernels = best_kernels();
  settings.marked = std::getenv("DMSFLOW_MARK") != nullptr;
  for (size_t i = 0; i < count; ++i) {
    const char *key = keys[i] ? keys[i] : "", *value = values[i] ? values[i] : "";
    if (const char* right = set(settings, key, value)) {
      char message[256];
      std::snprintf(message, sizeof message, "dmsflow delegate: %.40s is '%.40s'; %s", key, value, right);
      if (report_error) report_error(message);
      return nullptr;
    }
  }
  Loaded* loaded = make<Loaded>();
  if (!loaded) return nullptr;
  loaded->delegate = {};
  loaded->delegate.data = loaded;
  loaded->delegate.Prepare = prepare_delegate;
  loaded->delegate.flags = kAllowDynamicTensors;
  loaded->settings = settings;
  return loaded;
}

}  // namespace
}  // namespace dmsflow

extern "C" {

__attribute__((visibility("default"))) dmsflow::Delegate* tflite_plugin_create_delegate(
    char** keys, char** values, size_t count, void (*report_error)(const char*)) {
  dmsflow::Loaded* loaded = dmsflow::load(keys, values, count, report_error);
  return loaded ? &loaded->delegate : nullptr;
}

__attribute__((visibility("default"))) void tflite_plugin_destroy_delegate(dmsflow::Delegate* delegate) {
  if (delegate) dmsflow::unmake(static_cast<dmsflow::Loaded*>(delegate->data));
}

}  // extern "C"
