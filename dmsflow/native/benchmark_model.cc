// See benchmark_model.h. A file may be damaged: every index, shape and size is checked before it is used.
#include "benchmark_model.h"

#include <time.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" {
dmsflow::Delegate* tflite_plugin_create_delegate(char** keys, char** values, size_t count,
                                                 void (*report_error)(const char*));
void tflite_plugin_destroy_delegate(dmsflow::Delegate* delegate);
}

namespace dmsflow {

namespace {

constexpr int kMostTensors = 1 << 16, kMostSteps = 1 << 14, kMostOperands = 16;
constexpr int64_t kMostElements = 1 << 28;      // of a tensor
constexpr int64_t kMostReach = 1 << 20;         // of strides, dilations, filters, paddings
constexpr int64_t kMostWork = int64_t{1} << 38;  // multiplications or comparisons of one operator
constexpr size_t kMostMemory = size_t{1} << 30;

// What the format calls operators, and the table of options that each has.
struct Known {
  int code;
  const char* name;
  int options;
};
enum { kAdd = 0, kAveragePool = 1, kConv2d = 3, kDense = 9, kMaxPool = 17, kMul = 18, kRelu = 19, kPad = 34 };
enum { kSub = 41, kPadV2 = 60 };
constexpr Known kKnown[] = {
    {kAdd, "ADD", 11},        {kAveragePool, "AVERAGE_POOL_2D", 5},
    {kConv2d, "CONV_2D", 1},  {kDense, "FULLY_CONNECTED", 8},
    {kMaxPool, "MAX_POOL_2D", 5}, {kMul, "MUL", 21},
    {kRelu, "RELU", 0},       {kPad, "PAD", 22},
    {kSub, "SUB", 28},        {kPadV2, "PADV2", 43},
};

void say(const char* format, va_list arguments) {
  std::fputs("ERROR: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
}

__attribute__((format(printf, 1, 2))) bool fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  say(format, arguments);
  va_end(arguments);
  return false;
}

IntArray* make_array(int count) {
  auto* array = static_cast<IntArray*>(std::calloc(1, sizeof(int) * (static_cast<size_t>(count) + 1)));
  if (array) array->size = count;
  return array;
}

int64_t count_of(const IntArray& dims) {  // 0: it has a side below 1, or is too large
  int64_t count = 1;
  for (int i = 0; i < dims.size; ++i) {
    if (dims.data[i] < 1 || dims.data[i] > kMostElements / count) return 0;
    count *= dims.data[i];
  }
  return count;
}

bool same(const IntArray& left, const IntArray& right) {
  return left.size == right.size && std::memcmp(left.data, right.data, sizeof(int) * static_cast<size_t>(left.size)) == 0;
}

}  // namespace

struct Step {
  Node node = {};
  Registration delegated = {};
  Registration found = {};  // the operator of the file
  const Known* known = nullptr;
  const char* type = "";
  char custom[32] = "";
  Window window;
  bool same_padding = false, unusable = false;
  int activation = 0;
  Limits limits;
  FloatConv conv;
  Stretched stretched;
  int64_t sides[kMostRank] = {}, front[kMostRank] = {}, back[kMostRank] = {};
  uint32_t fill = 0;
};

// --- what the delegate calls ------------------------------------------------------------------------------

struct Host {
  static Model& of(Context* context) { return *static_cast<Model*>(context->impl); }

  static Status plan(Context* context, IntArray** plan) {
    *plan = of(context).plan_;
    return kOk;
  }

  static Status resize(Context* context, Tensor* tensor, IntArray* dims) {
    const bool fits = same(*tensor->dims, *dims);
    std::free(dims);
    if (!fits) context->ReportError(context, "an output has another shape than its operator makes");
    return fits ? kOk : kError;
  }

  static void report(Context*, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
  }

  static Status node(Context* context, int index, Node** node, Registration** registration) {
    Model& model = of(context);
    if (index < 0 || index >= model.step_count_) return kError;
    Step& step = *model.steps_[static_cast<size_t>(index)];
    *node = &step.node;
    *registration = &step.found;
    return kOk;
  }

  static Status replace(Context* context, Registration ours, const IntArray* nodes, Delegate* delegate) {
    Step& step = *of(context).steps_[static_cast<size_t>(nodes->data[0])];
    IntArray* index = make_array(1);
    if (!index) return kError;
    index->data[0] = nodes->data[0];
    const DelegateParams params = {delegate, index, step.node.inputs, step.node.outputs};
    step.node.user_data = ours.init(context, reinterpret_cast<const char*>(&params), 0);
    std::free(index);
    step.delegated = ours;
    return step.node.user_data ? kOk : kError;
  }
};

bool Model::delegate(int threads, const char* kernels) {
  char count[16], threads_key[] = "threads", kernels_key[] = "kernels", name[32];
  std::snprintf(count, sizeof count, "%d", threads);
  std::snprintf(name, sizeof name, "%s", kernels ? kernels : "");
  char *keys[] = {threads_key, kernels_key}, *values[] = {count, name};
  delegate_ = tflite_plugin_create_delegate(keys, values, kernels ? 2 : 1, [](const char* text) { fail("%s", text); });
  if (!delegate_) return false;
  plan_ = make_array(step_count_);
  if (!plan_) return fail("there is no memory");
  for (int i = 0; i < step_count_; ++i) plan_->data[i] = i;
  context_.tensors_size = static_cast<size_t>(tensor_count_);
  context_.tensors = tensors_.data();
  context_.impl = this;
  context_.GetExecutionPlan = Host::plan;
  context_.ResizeTensor = Host::resize;
  context_.ReportError = Host::report;
  context_.GetNodeAndRegistration = Host::node;
  context_.ReplaceNodeSubsetsWithDelegateKernels = Host::replace;
  context_.recommended_num_threads = threads;
  return delegate_->Prepare(&context_, delegate_) == kOk || fail("the delegate could not take its operators");
}

Model::~Model() {
  for (int i = 0; i < step_count_; ++i) {
    Step* step = steps_[static_cast<size_t>(i)];
    if (!step) continue;
    if (step->node.user_data) step->delegated.free(&context_, step->node.user_data);
    std::free(step->node.inputs);
    std::free(step->node.outputs);
    step->~Step();
    std::free(step);
  }
  if (delegate_) tflite_plugin_destroy_delegate(delegate_);
  for (int i = 0; i < tensor_count_; ++i) std::free(tensors_[static_cast<size_t>(i)].dims);
  std::free(plan_);
  free_workers(workers_);
}

// --- the file -----------------------------------------------------------------------------------------------

bool Model::read_file(const char* path) {
  std::FILE* stream = std::fopen(path, "rb");
  if (!stream) return fail("cannot open %s", path);
  bool read = std::fseek(stream, 0, SEEK_END) == 0;
  const long size = read ? std::ftell(stream) : -1;
  read = size > 0 && static_cast<size_t>(size) <= kMostMemory && std::fseek(stream, 0, SEEK_SET) == 0 &&
         content_.resize(static_cast<size_t>(size)) &&
         std::fread(content_.data(), 1, static_cast<size_t>(size), stream) == static_cast<size_t>(size);
  std::fclose(stream);
  if (!read) return fail("cannot read %s", path);
  file_.data = content_.data();
  file_.size = content_.size();
  return (file_.size >= 8 && std::memcmp(file_.data + 4, "TFL3", 4) == 0) || fail("%s is no .tflite file", path);
}

bool Model::read_tensors(const Table& graph, const List& buffers) {
  const List tensors = graph.list(0, 4);
  if (file_.damaged || tensors.count < 1 || tensors.count > kMostTensors) return fail("the file is damaged");
  if (!tensors_.resize(tensors.count) || !names_.resize(tensors.count) || !last_use_.resize(tensors.count))
    return fail("there is no memory");
  for (uint32_t i = 0; i < tensors.count; ++i) {
    const Table table(file_, tensors.first + 4 * size_t{i});
    Tensor& tensor = tensors_[i];
    const List shape = table.list(0, 4);
    const int type = table.number<int8_t>(1);
    const uint32_t number = table.number<uint32_t>(2);
    names_[i] = table.list(3, 1);
    if (file_.damaged || shape.count > 8 || number >= buffers.count) return fail("tensor %u is damaged", i);
    tensor.dims = make_array(static_cast<int>(shape.count));
    if (!tensor.dims) return fail("there is no memory");
    tensor_count_ = static_cast<int>(i) + 1;
    for (uint32_t d = 0; d < shape.count; ++d) tensor.dims->data[d] = file_.read<int32_t>(shape.first + 4 * size_t{d});
    const int64_t count = count_of(*tensor.dims);
    if (!count) return fail("tensor %u is empty or too large", i);
    if (type != 0 && type != 2) return fail("tensor %u is neither float32 nor int32 (type %d)", i, type);
    tensor.type = type == 0 ? kFloat32 : kInt32;
    tensor.bytes = static_cast<size_t>(count) * 4;
    const List data = Table(file_, buffers.first + 4 * size_t{number}).list(0, 1);
    if (file_.damaged) return fail("the file is damaged");
    if (!data.count) continue;
    if (data.count != tensor.bytes || data.first % 4) return fail("constant %u does not have the size of its shape", i);
    tensor.data = content_.data() + data.first;
    tensor.allocation = kInFile;
  }
  return true;
}

namespace {

// A list of tensors' numbers; null: damaged.
IntArray* read_numbers(File& file, const List& list, int tensors) {
  if (file.damaged || list.count > kMostOperands) return nullptr;
  IntArray* array = make_array(static_cast<int>(list.count));
  for (uint32_t i = 0; array && i < list.count; ++i) {
    array->data[i] = file.read<int32_t>(list.first + 4 * size_t{i});
    if (array->data[i] < kAbsent || array->data[i] >= tensors) file.damaged = true;
  }
  return array;
}

// Options of the operators that this program calculates itself.
void read_options_of(const Known& known, const Table& options, Step& step) {
  Window& w = step.window;
  const bool conv = known.code == kConv2d, pool = known.code == kMaxPool || known.code == kAveragePool;
  if (conv || pool) {
    step.same_padding = options.number<int8_t>(0) == 0;
    w.stride_width = options.number<int32_t>(1);
    w.stride_height = options.number<int32_t>(2);
  }
  if (conv) {
    step.activation = options.number<int8_t>(3);
    w.dilation_width = options.number<int32_t>(4, 1);
    w.dilation_height = options.number<int32_t>(5, 1);
  } else if (pool) {
    w.filter_width = options.number<int32_t>(3);
    w.filter_height = options.number<int32_t>(4);
    step.activation = options.number<int8_t>(5);
  } else if (known.options && known.code != kPad && known.code != kPadV2) {
    step.activation = options.number<int8_t>(0);
  }
  if (known.code == kDense && options.number<int8_t>(1) != 0) step.unusable = true;  // shuffled weights
}

bool limits_of(int activation, Limits& limits) {
  limits.none = activation == 0;
  if (activation == 1 || activation == 3) limits.least = 0;
  if (activation == 3) limits.most = 6;
  if (activation == 2) limits.least = -1, limits.most = 1;
  return activation >= 0 && activation <= 3;
}

}  // namespace

bool Model::read_step(Step& step, size_t pointer, const List& codes) {
  const Table table(file_, pointer);
  const uint32_t kind = table.number<uint32_t>(0);
  step.node.inputs = read_numbers(file_, table.list(1, 4), tensor_count_);
  step.node.outputs = read_numbers(file_, table.list(2, 4), tensor_count_);
  if (!step.node.inputs || !step.node.outputs || file_.damaged || kind >= codes.count) return fail("the file is damaged");
  const Table code(file_, codes.first + 4 * size_t{kind});
  const int old = code.number<int8_t>(0), now = code.number<int32_t>(3);
  const int builtin = old > now ? old : now;
  const List custom = code.list(1, 1), custom_options = table.list(5, 1);
  if (file_.damaged) return fail("the file is damaged");
  if (builtin == kCustomOp) {
    const size_t length = custom.count < sizeof step.custom ? custom.count : sizeof step.custom - 1;
    std::memcpy(step.custom, file_.data + custom.first, length);
    step.found.builtin_code = kCustomOp;
    step.found.custom_name = step.type = step.custom;
    step.node.options = file_.data + custom_options.first;
    step.node.options_size = static_cast<int>(custom_options.count);
    return true;
  }
  for (const Known& known : kKnown)
    if (known.code == builtin) step.known = &known;
  if (!step.known) return fail("operator %d of the file format is not in this program; run the file on LiteRT", builtin);
  step.type = step.known->name;
  step.found.builtin_code = builtin;
  const int options = table.number<uint8_t>(3);
  if (options && options != step.known->options) return fail("%s has options of another operator", step.type);
  read_options_of(*step.known, options ? table.table(4) : Table(file_), step);
  if (file_.damaged) return fail("the file is damaged");
  return limits_of(step.activation, step.limits) || fail("%s has activation %d", step.type, step.activation);
}

bool Model::read_steps(const Table& graph, const List& codes) {
  const List operators = graph.list(3, 4);
  if (file_.damaged || operators.count < 1 || operators.count > kMostSteps) return fail("the file is damaged");
  if (!steps_.resize(operators.count)) return fail("there is no memory");
  for (uint32_t i = 0; i < operators.count; ++i) {
    void* memory = std::malloc(sizeof(Step));
    if (!memory) return fail("there is no memory");
    steps_[i] = new (memory) Step;
    step_count_ = static_cast<int>(i) + 1;
    if (!read_step(*steps_[i], operators.first + 4 * size_t{i}, codes)) return false;
  }
  return true;
}

// Every tensor is written once, and before it is read.
bool Model::check_order() {
  Buffer<uint8_t> written;
  if (!written.resize(static_cast<size_t>(tensor_count_))) return fail("there is no memory");
  for (size_t i = 0; i < written.size(); ++i) written[i] = tensors_[i].data != nullptr;
  if (written[input_] || tensors_[input_].type != kFloat32) return fail("the input is no image of float32");
  written[input_] = 1;
  for (int s = 0; s < step_count_; ++s) {
    const Step& step = *steps_[static_cast<size_t>(s)];
    for (int i = 0; i < step.node.inputs->size; ++i) {
      const int number = step.node.inputs->data[i];
      if (number == kAbsent) continue;
      if (!written[static_cast<size_t>(number)]) return fail("%s (operator %d) reads what nothing wrote", step.type, s);
      last_use_[static_cast<size_t>(number)] = s;
    }
    if (step.node.outputs->size != 1) return fail("%s (operator %d) has not one output", step.type, s);
    const int number = step.node.outputs->data[0];
    if (number == kAbsent || written[static_cast<size_t>(number)])
      return fail("%s (operator %d) writes what is there already", step.type, s);
    written[static_cast<size_t>(number)] = 1;
    last_use_[static_cast<size_t>(number)] = s;
  }
  if (!written[output_] || tensors_[output_].type != kFloat32) return fail("the output is no row of float32");
  last_use_[input_] = last_use_[output_] = step_count_;
  return true;
}

bool Model::load(const char* path, int threads, const char* kernels) {
  if (!read_file(path)) return false;
  const Table model(file_, 0);
  const List graphs = model.list(2, 4), codes = model.list(1, 4), buffers = model.list(4, 4);
  if (file_.damaged || graphs.count != 1) return fail("the file is damaged, or has %u graphs", graphs.count);
  const Table graph(file_, graphs.first);
  if (!read_tensors(graph, buffers) || !read_steps(graph, codes)) return false;
  const List inputs = graph.list(1, 4), outputs = graph.list(2, 4);
  if (file_.damaged || inputs.count != 1 || outputs.count != 1) return fail("the file has not one input and one output");
  input_ = file_.read<uint32_t>(inputs.first);
  output_ = file_.read<uint32_t>(outputs.first);
  const size_t count = static_cast<size_t>(tensor_count_);
  if (input_ >= count || output_ >= count) return fail("the file is damaged");
  if (!check_order() || !delegate(threads, kernels)) return false;
  if (threads > 1) workers_ = make_workers(threads);
  for (int i = 0; i < step_count_; ++i)
    if (!prepare(*steps_[static_cast<size_t>(i)]))
      return fail("%s (operator %d) cannot be run", steps_[static_cast<size_t>(i)]->type, i);
  return place();
}

// --- checks of one operator -----------------------------------------------------------------------------------

namespace {

// The inputs and the output of a step, once they are known to be there.
struct Operands {
  Tensor* in[3] = {};
  Tensor* out = nullptr;
};

bool find(Step& step, Tensor* tensors, int least, int most, Operands& found) {
  const IntArray& inputs = *step.node.inputs;
  if (inputs.size < least || inputs.size > most) return fail("%s has %d inputs", step.type, inputs.size);
  for (int i = 0; i < inputs.size; ++i) {
    if (inputs.data[i] != kAbsent) found.in[i] = &tensors[inputs.data[i]];
    if (i < least && !found.in[i]) return fail("%s lacks an input", step.type);
  }
  found.out = &tensors[step.node.outputs->data[0]];
  return true;
}

bool floats(const Tensor* tensor) { return tensor->type == kFloat32; }
int64_t elements(const Tensor* tensor) { return static_cast<int64_t>(tensor->bytes / 4); }

bool has_shape(const Tensor* tensor, int a, int b, int c, int d) {
  const int sides[] = {a, b, c, d};
  return tensor->dims->size == 4 && std::memcmp(tensor->dims->data, sides, sizeof sides) == 0;
}

bool place_window(Step& step, const Tensor* image) {
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
  return place(w, step.same_padding) || fail("%s does not fit into its image", step.type);
}

bool prepare_conv(Step& step, const Operands& o) {
  const Tensor *in = o.in[0], *filter = o.in[1], *bias = o.in[2];
  if (!floats(in) || !floats(filter) || !floats(o.out) || (bias && !floats(bias))) return fail("CONV_2D on integers");
  if (in->dims->size != 4 || filter->dims->size != 4 || filter->allocation != kInFile ||
      (bias && bias->allocation != kInFile) || filter->dims->data[3] != in->dims->data[3])
    return fail("CONV_2D with a filter that does not fit");
  const int filters = filter->dims->data[0], channels = in->dims->data[3];
  step.window.filter_height = filter->dims->data[1];
  step.window.filter_width = filter->dims->data[2];
  if ((bias && elements(bias) != filters) || !place_window(step, in)) return fail("CONV_2D with a bias that does not fit");
  const Window& w = step.window;
  if (!has_shape(o.out, w.batch, w.out_height, w.out_width, filters)) return fail("CONV_2D with an output of another shape");
  if (elements(o.out) > kMostWork / elements(filter)) return fail("CONV_2D with too much to calculate");
  return step.conv.prepare(w, channels, filters, static_cast<const float*>(filter->data),
                           bias ? static_cast<const float*>(bias->data) : nullptr, step.limits) ||
         fail("there is no memory");
}

bool prepare_dense(Step& step, const Operands& o) {
  const Tensor *in = o.in[0], *filter = o.in[1], *bias = o.in[2];
  if (!floats(in) || !floats(filter) || !floats(o.out) || (bias && !floats(bias)) || filter->dims->size != 2 || step.unusable)
    return fail("FULLY_CONNECTED of another kind than float32");
  const int filters = filter->dims->data[0], channels = filter->dims->data[1];
  if (elements(in) % channels || (bias && elements(bias) != filters) ||
      elements(o.out) != elements(in) / channels * filters)
    return fail("FULLY_CONNECTED with shapes that do not fit");
  return true;
}

bool prepare_pool(Step& step, const Operands& o) {
  const Tensor* in = o.in[0];
  if (!floats(in) || !floats(o.out) || in->dims->size != 4) return fail("%s on no image of float32", step.type);
  if (!place_window(step, in)) return false;
  const Window& w = step.window;
  if (!has_shape(o.out, w.batch, w.out_height, w.out_width, in->dims->data[3]))
    return fail("%s with an output of another shape", step.type);
  const int64_t rows = w.filter_height < w.height ? w.filter_height : w.height;
  const int64_t columns = w.filter_width < w.width ? w.filter_width : w.width;
  return elements(o.out) <= kMostWork / (rows * columns) || fail("%s with too much to calculate", step.type);
}

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

bool prepare_arithmetic(Step& step, const Operands& o) {
  if (o.in[0]->type != o.out->type || o.in[1]->type != o.out->type) return fail("%s on two types", step.type);
  if (!floats(o.out) && step.activation) return fail("%s of integers with an activation", step.type);
  const IntArray &left = *o.in[0]->dims, &right = *o.in[1]->dims, &out = *o.out->dims;
  bool fits = out.size <= kMostRank && left.size <= out.size && right.size <= out.size;
  for (int d = 1; fits && d <= out.size; ++d) {
    const int of_left = d <= left.size ? left.data[left.size - d] : 1, of_right = d <= right.size ? right.data[right.size - d] : 1;
    fits = out.data[out.size - d] == (of_left == 1 ? of_right : of_left);
    step.stretched.sides[kMostRank - d] = out.data[out.size - d];
  }
  fits = fits && stretch(left, step.stretched.sides, step.stretched.left) &&
         stretch(right, step.stretched.sides, step.stretched.right);
  if (!fits) return fail("%s with shapes that do not fit", step.type);
  if (same(left, right)) {  // one long row
    step.stretched = Stretched();
    step.stretched.sides[kMostRank - 1] = elements(o.out);
    step.stretched.left[kMostRank - 1] = step.stretched.right[kMostRank - 1] = 1;
  }
  return true;
}

bool prepare_pad(Step& step, const Operands& o) {
  const Tensor *in = o.in[0], *amounts = o.in[1], *fill = o.in[2];
  const int rank = in->dims->size;
  if (rank > kMostRank || o.out->dims->size != rank || in->type != o.out->type || amounts->type != kInt32 ||
      amounts->allocation != kInFile || elements(amounts) != 2 * rank)
    return fail("%s of another kind than this program knows", step.type);
  if (step.known->code == kPadV2) {
    if (!fill || fill->type != in->type || fill->allocation != kInFile || elements(fill) != 1)
      return fail("PADV2 without a constant to pad with");
    std::memcpy(&step.fill, fill->data, sizeof step.fill);
  } else if (fill) {
    return fail("PAD has 3 inputs");
  }
  for (int i = 0; i < kMostRank; ++i) step.sides[i] = 1;
  for (int i = 0; i < rank; ++i) {
    const int at = kMostRank - rank + i;
    int32_t pair[2];
    std::memcpy(pair, static_cast<const uint8_t*>(amounts->data) + 8 * i, sizeof pair);
    step.sides[at] = in->dims->data[i];
    step.front[at] = pair[0];
    step.back[at] = pair[1];
    if (pair[0] < 0 || pair[1] < 0 || o.out->dims->data[i] != int64_t{pair[0]} + in->dims->data[i] + pair[1])
      return fail("%s with an output of another shape", step.type);
  }
  return true;
}

bool prepare_relu(const Operands& o) {
  return (floats(o.in[0]) && floats(o.out) && same(*o.in[0]->dims, *o.out->dims)) || fail("RELU on two types or shapes");
}

}  // namespace

bool Model::prepare(Step& step) {
  if (step.delegated.invoke) return step.delegated.prepare(&context_, &step.node) == kOk;
  if (!step.known) return fail("custom operator %s is unknown", step.type);
  Operands operands;
  const int code = step.known->code;
  const int least = code == kRelu || code == kMaxPool || code == kAveragePool ? 1 : 2;
  const int most = code == kConv2d || code == kDense || code == kPadV2 ? 3 : least;
  if (!find(step, tensors_.data(), least, most, operands)) return false;
  switch (code) {
    case kConv2d:
      return prepare_conv(step, operands);
    case kDense:
      return prepare_dense(step, operands);
    case kMaxPool:
    case kAveragePool:
      return prepare_pool(step, operands);
    case kAdd:
    case kSub:
    case kMul:
      return prepare_arithmetic(step, operands);
    case kPad:
    case kPadV2:
      return prepare_pad(step, operands);
    default:
      return prepare_relu(operands);
  }
}

// --- memory -----------------------------------------------------------------------------------------------------

// Each tensor gets the first gap that is large enough, for as long as it is read.
bool Model::place() {
  struct Block {
    size_t begin, end;
    int last_use;
  };
  Buffer<Block> live;  // in the order of their place
  Buffer<size_t> places;
  if (!live.resize(static_cast<size_t>(step_count_) + 2) || !places.resize(static_cast<size_t>(tensor_count_)))
    return fail("there is no memory");
  size_t count = 0, top = 0;
  for (int s = -1; s < step_count_; ++s) {
    const size_t number = s < 0 ? input_ : static_cast<size_t>(steps_[static_cast<size_t>(s)]->node.outputs->data[0]);
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i)
      if (live[i].last_use >= s) live[kept++] = live[i];
    count = kept;
    const size_t bytes = (tensors_[number].bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    size_t at = 0, slot = 0;
    while (slot < count && live[slot].begin < at + bytes) at = live[slot++].end;
    for (size_t i = count++; i > slot; --i) live[i] = live[i - 1];
    live[slot] = {at, at + bytes, last_use_[number]};
    places[number] = at;
    top = top > at + bytes ? top : at + bytes;
    if (top > kMostMemory) return fail("it needs more than 1 GiB of memory");
  }
  if (!arena_.resize(top)) return fail("there is no memory");
  tensors_[input_].data = arena_.data() + places[input_];
  for (int s = 0; s < step_count_; ++s) {
    const size_t number = static_cast<size_t>(steps_[static_cast<size_t>(s)]->node.outputs->data[0]);
    tensors_[number].data = arena_.data() + places[number];
  }
  return true;
}

// --- running ------------------------------------------------------------------------------------------------------

namespace {

void run_step(Step& step, Tensor* tensors, Workers* workers) {
  const IntArray& inputs = *step.node.inputs;
  Tensor& out = tensors[step.node.outputs->data[0]];
  const Tensor& first = tensors[inputs.data[0]];
  const Tensor* second = inputs.size > 1 ? &tensors[inputs.data[1]] : nullptr;
  const float* bias = inputs.size > 2 && inputs.data[2] >= 0 ? static_cast<const float*>(tensors[inputs.data[2]].data) : nullptr;
  const auto* in = static_cast<const float*>(first.data);
  auto* to = static_cast<float*>(out.data);
  const int channels = first.dims->size ? first.dims->data[first.dims->size - 1] : 1;
  switch (step.known->code) {
    case kConv2d:
      return step.conv.run(in, to, workers);
    case kDense: {
      const int* sides = second->dims->data;
      return fully_connected(in, elements(&first) / sides[1], sides[1], sides[0], static_cast<const float*>(second->data),
                             bias, step.limits, to);
    }
    case kMaxPool:
      return max_pool(step.window, in, channels, step.limits, to);
    case kAveragePool:
      return average_pool(step.window, in, channels, step.limits, to);
    case kRelu:
      return relu(in, elements(&out), to);
    case kPad:
    case kPadV2:
      return pad(static_cast<const uint32_t*>(first.data), step.sides, step.front, step.back, step.fill,
                 static_cast<uint32_t*>(out.data));
    default:
      break;
  }
  const int code = step.known->code;
  const Arithmetic arithmetic = code == kAdd ? Arithmetic::kAdd : code == kSub ? Arithmetic::kSub : Arithmetic::kMul;
  if (floats(&out)) return calculate(arithmetic, step.stretched, in, static_cast<const float*>(second->data), step.limits, to);
  calculate(arithmetic, step.stretched, static_cast<const uint32_t*>(first.data),
            static_cast<const uint32_t*>(second->data), static_cast<uint32_t*>(out.data));
}

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

}  // namespace

bool Model::run(int64_t* times_ns) {
  int64_t begin = times_ns ? now_ns() : 0;
  for (int i = 0; i < step_count_; ++i) {
    Step& step = *steps_[static_cast<size_t>(i)];
    if (step.delegated.invoke) {
      if (step.delegated.invoke(&context_, &step.node) != kOk) return fail("%s (operator %d) failed", step.type, i);
    } else {
      run_step(step, tensors_.data(), workers_);
    }
    if (times_ns) {
      const int64_t end = now_ns();
      times_ns[i] = end - begin;
      begin = end;
    }
  }
  return true;
}

const char* Model::type(int step) const { return steps_[static_cast<size_t>(step)]->type; }

void Model::name(int step, char* text, size_t size) const {
  const List& name = names_[static_cast<size_t>(steps_[static_cast<size_t>(step)]->node.outputs->data[0])];
  size_t count = 0;
  for (; count < name.count && count + 1 < size; ++count) {
    const uint8_t letter = file_.data[name.first + count];
    text[count] = letter > ' ' && letter < 127 ? static_cast<char>(letter) : '_';
  }
  text[count] = 0;
}

}  // namespace dmsflow
