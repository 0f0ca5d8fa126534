// See benchmark_model.h. A file may be damaged: every index, shape and size is checked before it is used.
#include "benchmark_model.h"

#include <time.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

extern "C" {
dmsflow::Delegate* tflite_plugin_create_delegate(char** keys, char** values, size_t count,
                                                 void (*report_error)(const char*));
void tflite_plugin_destroy_delegate(dmsflow::Delegate* delegate);
}

namespace dmsflow {

namespace {

constexpr int kMostTensors = 1 << 16, kMostSteps = 1 << 14;
constexpr size_t kMostMemory = size_t{1} << 30;
bool g_said = false;  // an error, whose line is not at its end

// What the format calls types of numbers, and what the delegate's interface does; 0: this program does not take it.
constexpr struct {
  const char* name;
  int type;
} kTypes[] = {{"float32", kFloat32}, {"float16", 0}, {"int32", kInt32},    {"uint8", kUint8}, {"int64", 0},
              {"string", 0},         {"bool", 0},    {"int16", 0},         {"complex64", 0}, {"int8", kInt8}};

// All that is wrong is one line: what an operator says, and which one it is.
void say(const char* format, va_list arguments) {
  std::fputs(g_said ? "; " : "ERROR: ", stderr);
  g_said = true;
  std::vfprintf(stderr, format, arguments);
}

size_t padded(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

IntArray* make_array(int count) {
  auto* array = static_cast<IntArray*>(std::calloc(1, sizeof(int) * (static_cast<size_t>(count) + 1)));
  if (array) array->size = count;
  return array;
}

IntArray* copy_array(const IntArray& from) {
  IntArray* array = make_array(from.size);
  if (array) std::memcpy(array->data, from.data, sizeof(int) * static_cast<size_t>(from.size));
  return array;
}

}  // namespace

void end_error() {
  if (g_said) std::fputc('\n', stderr);
}

bool fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  say(format, arguments);
  va_end(arguments);
  return false;
}

int64_t count_of(const IntArray& dims) {
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

size_t size_of(int type) { return type == kInt8 || type == kUint8 ? 1 : 4; }
int64_t elements(const Tensor* tensor) { return static_cast<int64_t>(tensor->bytes / size_of(tensor->type)); }

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

  // Nodes that follow each other become their last one, which reads what the first does.
  static Status replace(Context* context, Registration ours, const IntArray* nodes, Delegate* delegate) {
    Model& model = of(context);
    const int last = nodes->size - 1;
    Step &first = *model.steps_[static_cast<size_t>(nodes->data[0])];
    Step &step = *model.steps_[static_cast<size_t>(nodes->data[last])];
    IntArray* copy = copy_array(*nodes);
    if (!copy) return kError;
    const DelegateParams params = {delegate, copy, first.node.inputs, step.node.outputs};
    step.node.user_data = ours.init(context, reinterpret_cast<const char*>(&params), 0);
    std::free(copy);
    step.delegated = ours;
    if (!step.node.user_data) return kError;
    for (int i = 0; i < last; ++i) model.steps_[static_cast<size_t>(nodes->data[i])]->taken = true;
    if (last > 0) std::swap(first.node.inputs, step.node.inputs);
    return kOk;
  }

  // One part, whose outputs are all that other nodes read, or that the graph puts out.
  static Status preview(Context* context, const IntArray* nodes, DelegateParams** parts, int* count) {
    Model& model = of(context);
    std::free(model.preview_.nodes);
    std::free(model.preview_.outputs);
    model.preview_.nodes = copy_array(*nodes);
    model.preview_.outputs = make_array(nodes->size);
    if (!model.preview_.nodes || !model.preview_.outputs) return kError;
    model.preview_.outputs->size = 0;
    for (int i = 0; i < nodes->size; ++i) {
      const IntArray& made = *model.steps_[static_cast<size_t>(nodes->data[i])]->node.outputs;
      if (made.size != 1) return kError;
      if (model.is_read(made.data[0], *nodes)) model.preview_.outputs->data[model.preview_.outputs->size++] = made.data[0];
    }
    *parts = &model.preview_;
    *count = 1;
    return kOk;
  }
};

// Whether the graph puts a tensor out, or an operator reads it that is not among `nodes`.
bool Model::is_read(int tensor, const IntArray& nodes) const {
  const auto holds = [](const IntArray& array, int number) {
    for (int i = 0; i < array.size; ++i)
      if (array.data[i] == number) return true;
    return false;
  };
  for (int s = 0; s < step_count_; ++s)
    if (!holds(nodes, s) && holds(*steps_[static_cast<size_t>(s)]->node.inputs, tensor)) return true;
  return holds(*outputs_, tensor);
}

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
  context_.PreviewDelegatePartitioning = Host::preview;
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
  for (int i = 0; i < tensor_count_; ++i) {
    std::free(tensors_[static_cast<size_t>(i)].dims);
    std::free(scales_[static_cast<size_t>(i)].affine.scale);
    std::free(scales_[static_cast<size_t>(i)].affine.zero_point);
  }
  std::free(preview_.nodes);
  std::free(preview_.outputs);
  std::free(plan_);
  std::free(inputs_);
  std::free(outputs_);
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

// The scale of a tensor, as the delegate reads it, and all those of a filter. Bytes without one are not taken.
// False: there is no memory.
bool Model::read_scales(const Table& table, Tensor& tensor, Scales& scales) {
  const Table quantization = table.table(4);
  const List found = quantization.list(2, 4), zeros = quantization.list(3, 8);
  const int64_t zero = zeros.count ? file_.read<int64_t>(zeros.first) : 0;
  const int least = tensor.type == kUint8 ? 0 : INT8_MIN;
  tensor.quantization.scale = found.count ? file_.read<float>(found.first) : 0;
  tensor.quantization.zero_point = zero >= least && zero <= least + 255 ? static_cast<int32_t>(zero) : 0;
  const auto count = static_cast<int>(file_.damaged ? 0 : found.count);
  scales.affine = {static_cast<FloatArray*>(std::calloc(1, sizeof(int) + sizeof(float) * static_cast<size_t>(count))),
                   make_array(count), quantization.number<int32_t>(6)};
  scales.count = count;
  scales.centred = true;
  if (!scales.affine.scale || !scales.affine.zero_point) return fail("there is no memory");
  scales.affine.scale->size = count;
  for (int i = 0; i < count; ++i) scales.affine.scale->data[i] = file_.read<float>(found.first + 4 * static_cast<size_t>(i));
  for (uint32_t i = 0; i < zeros.count; ++i) {
    const int64_t each = file_.read<int64_t>(zeros.first + 8 * size_t{i});
    scales.centred = scales.centred && each == 0;
    if (static_cast<int>(i) < count) scales.affine.zero_point->data[i] = each != 0;  // the delegate wants to know no more
  }
  tensor.affine = {count ? kAffine : 0, &scales};
  const bool scaled = tensor.quantization.scale > 0 && tensor.quantization.scale <= 3e38f;
  const bool bytes = tensor.type == kInt8 || tensor.type == kUint8;
  if (bytes && (zero != tensor.quantization.zero_point || !(scaled || count > 1))) tensor.type = 0;
  return true;
}

bool Model::read_tensors(const Table& graph, const List& buffers) {
  const List tensors = graph.list(0, 4);
  if (file_.damaged || tensors.count < 1 || tensors.count > kMostTensors) return fail("the file is damaged");
  if (!tensors_.resize(tensors.count) || !names_.resize(tensors.count) || !last_use_.resize(tensors.count) ||
      !scales_.resize(tensors.count))
    return fail("there is no memory");
  for (uint32_t i = 0; i < tensors.count; ++i) {
    const Table table(file_, tensors.first + 4 * size_t{i});
    Tensor& tensor = tensors_[i];
    const List shape = table.list(0, 4);
    const int type = table.number<uint8_t>(1);
    const uint32_t number = table.number<uint32_t>(2);
    names_[i] = table.list(3, 1);
    if (file_.damaged || shape.count > kMostRank || number >= buffers.count) return fail("tensor %u is damaged", i);
    tensor.dims = make_array(static_cast<int>(shape.count));
    if (!tensor.dims) return fail("there is no memory");
    tensor_count_ = static_cast<int>(i) + 1;
    for (uint32_t d = 0; d < shape.count; ++d) tensor.dims->data[d] = file_.read<int32_t>(shape.first + 4 * size_t{d});
    tensor.buffer_handle = type;
    tensor.type = static_cast<size_t>(type) < sizeof kTypes / sizeof *kTypes ? kTypes[type].type : 0;
    tensor.bytes = static_cast<size_t>(count_of(*tensor.dims)) * size_of(tensor.type);
    if (!read_scales(table, tensor, scales_[i])) return false;
    const List data = Table(file_, buffers.first + 4 * size_t{number}).list(0, 1);
    if (file_.damaged) return fail("the file is damaged");
    if (!data.count) continue;
    if (tensor.type && tensor.bytes && (data.count != tensor.bytes || data.first % size_of(tensor.type)))
      return fail("constant %u does not have the size of its shape", i);
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

}  // namespace

namespace {

// As the delegate takes them from a runtime.
void read_conv_options(const Table& options, Step& step) {
  step.conv_options = {options.number<int8_t>(0) == 0 ? kSamePadding : kValidPadding,
                       options.number<int32_t>(1), options.number<int32_t>(2), options.number<int8_t>(3),
                       options.number<int32_t>(4, 1), options.number<int32_t>(5, 1)};
  step.node.builtin_data = &step.conv_options;
}

}  // namespace

bool Model::read_step(Step& step, const List& codes) {
  const Table table(file_, step.place);
  const uint32_t kind = table.number<uint32_t>(0);
  step.node.inputs = read_numbers(file_, table.list(1, 4), tensor_count_);
  step.node.outputs = read_numbers(file_, table.list(2, 4), tensor_count_);
  if (!step.node.inputs || !step.node.outputs || file_.damaged || kind >= codes.count) return fail("the file is damaged");
  const Table code(file_, codes.first + 4 * size_t{kind});
  const int old = code.number<int8_t>(0), now = code.number<int32_t>(3);
  const int builtin = old > now ? old : now;
  const List custom = code.list(1, 1), custom_options = table.list(5, 1);
  if (file_.damaged) return fail("the file is damaged");
  step.found.builtin_code = builtin;
  if (builtin == kCustomOp) {
    read_text(custom, step.custom, sizeof step.custom);
    step.found.custom_name = step.type = step.custom;
    step.node.options = file_.data + custom_options.first;
    step.node.options_size = static_cast<int>(custom_options.count);
    return true;
  }
  step.op = find_op(builtin);
  if (builtin == kConvOp) read_conv_options(table.number<uint8_t>(3) ? table.table(4) : Table(file_), step);
  step.type = name_of_op(builtin);
  if (!step.type) return fail("operator %d is not in the file format", builtin);
  const int options = table.number<uint8_t>(3);
  return !step.op || !options || options == step.op->options || fail("%s has options of another operator", step.type);
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
    steps_[i]->place = operators.first + 4 * size_t{i};
    if (!read_step(*steps_[i], codes)) return false;
  }
  return true;
}

// All that this program lacks is named at once.
bool Model::check_operators() {
  constexpr int kMostNames = 20;
  const char* names[kMostNames];
  int count = 0;
  for (int s = 0; s < step_count_ && count < kMostNames; ++s) {
    const Step& step = *steps_[static_cast<size_t>(s)];
    if (step.op || step.delegated.invoke) continue;
    int i = 0;
    while (i < count && std::strcmp(names[i], step.type) != 0) ++i;
    if (i < count) continue;
    std::fprintf(stderr, "%s%s%s", count ? ", " : "ERROR: it needs operators that dmsflow's benchmark program lacks: ",
                 step.type == step.custom ? "custom " : "", step.type);
    names[count++] = step.type;
  }
  if (count)
    std::fputs("; run it on LiteRT, or where there is none (a phone) give LCE's lce_benchmark_model as --runner-file\n",
               stderr);
  return count == 0;
}

bool Model::check_tensor(int number) {
  const Tensor& tensor = tensors_[static_cast<size_t>(number)];
  const auto type = static_cast<size_t>(tensor.buffer_handle);
  if (!tensor.bytes) return fail("tensor %d is empty or too large", number);
  if (tensor.type) return true;
  if (type < sizeof kTypes / sizeof *kTypes && (kTypes[type].type == kInt8 || kTypes[type].type == kUint8))
    return fail("tensor %d is %s without a scale", number, kTypes[type].name);
  return fail("tensor %d is %s; this program takes float32, int32 and int8", number,
              type < sizeof kTypes / sizeof *kTypes ? kTypes[type].name : "of an unknown type");
}

// Every tensor is written once, and before it is read.
bool Model::check_order() {
  Buffer<uint8_t> written;
  if (!written.resize(static_cast<size_t>(tensor_count_))) return fail("there is no memory");
  for (size_t i = 0; i < written.size(); ++i) written[i] = tensors_[i].data != nullptr;
  for (int i = 0; i < inputs_->size; ++i) {
    const int number = inputs_->data[i];
    if (number == kAbsent || written[static_cast<size_t>(number)]) return fail("an input is there already");
    if (!check_tensor(number)) return false;
    written[static_cast<size_t>(number)] = 1;
  }
  for (int s = 0; s < step_count_; ++s) {
    const Step& step = *steps_[static_cast<size_t>(s)];
    if (step.taken) continue;
    for (int i = 0; i < step.node.inputs->size; ++i) {
      const int number = step.node.inputs->data[i];
      if (number == kAbsent) continue;
      if (!written[static_cast<size_t>(number)]) return fail("%s (operator %d) reads what nothing wrote", step.type, s);
      if (!check_tensor(number)) return false;
      last_use_[static_cast<size_t>(number)] = s;
    }
    const int most = step.op ? step.op->outputs : 1;
    if (step.node.outputs->size < 1 || step.node.outputs->size > most)
      return fail("%s (operator %d) has %d outputs", step.type, s, step.node.outputs->size);
    for (int i = 0; i < step.node.outputs->size; ++i) {
      const int number = step.node.outputs->data[i];
      if (number == kAbsent || written[static_cast<size_t>(number)])
        return fail("%s (operator %d) writes what is there already", step.type, s);
      if (!check_tensor(number)) return false;
      written[static_cast<size_t>(number)] = 1;
      last_use_[static_cast<size_t>(number)] = s;
    }
  }
  for (int i = 0; i < outputs_->size; ++i) {
    const int number = outputs_->data[i];
    if (number == kAbsent || !written[static_cast<size_t>(number)]) return fail("an output is not there");
    if (!check_tensor(number)) return false;
    last_use_[static_cast<size_t>(number)] = step_count_;
  }
  for (int i = 0; i < inputs_->size; ++i) last_use_[static_cast<size_t>(inputs_->data[i])] = step_count_;
  return true;
}

bool Model::load(const char* path, int threads, const char* kernels) {
  if (!read_file(path)) return false;
  const Table model(file_, 0);
  const List graphs = model.list(2, 4), codes = model.list(1, 4), buffers = model.list(4, 4);
  if (file_.damaged || graphs.count != 1) return fail("the file is damaged, or has %u graphs", graphs.count);
  const Table graph(file_, graphs.first);
  if (!read_tensors(graph, buffers) || !read_steps(graph, codes)) return false;
  inputs_ = read_numbers(file_, graph.list(1, 4), tensor_count_);
  outputs_ = read_numbers(file_, graph.list(2, 4), tensor_count_);
  if (!inputs_ || !outputs_ || file_.damaged || !inputs_->size || !outputs_->size)
    return fail("the file is damaged, or has no input or output");
  if (!delegate(threads, kernels) || !check_operators() || !check_order()) return false;
  if (threads > 1) workers_ = make_workers(threads);
  for (int i = 0; i < step_count_; ++i)
    if (!prepare(*steps_[static_cast<size_t>(i)]))
      return fail("%s (operator %d) cannot be run", steps_[static_cast<size_t>(i)]->type, i);
  return place();
}

// Float32 tensors in place of an operator's int8 ones. What they hold is in `scratch_`, which all steps share.
bool Model::make_shadows(Step& step) {
  const int count = step.in_count + step.out_count;
  size_t size = 0;
  for (int i = 0; i < count; ++i) {
    Tensor*& operand = i < step.in_count ? step.in[i] : step.out[i - step.in_count];
    if (!operand || operand->type != kInt8) continue;
    if (!step.shadows.size() && !step.shadows.resize(static_cast<size_t>(count))) return fail("there is no memory");
    Tensor& shadow = step.shadows[static_cast<size_t>(i)];
    shadow.type = kFloat32;
    shadow.dims = operand->dims;
    shadow.bytes = operand->bytes * sizeof(float);
    size += padded(shadow.bytes);
    operand = &shadow;
  }
  scratch_size_ = scratch_size_ > size ? scratch_size_ : size;
  return scratch_size_ <= kMostMemory || fail("it needs more than 1 GiB of memory");
}

// Bytes have a type that the operator takes, and one scale; only filters may have more.
bool Model::check_bytes(const Step& step) const {
  const bool filters = step.found.builtin_code == kConvOp || step.found.builtin_code == 4 || step.found.builtin_code == 9;
  for (int i = 0; i < step.in_count + step.out_count; ++i) {
    const Tensor* operand = i < step.in_count ? step.in[i] : step.out[i - step.in_count];
    if (!operand || (operand->type != kInt8 && operand->type != kUint8)) continue;
    if (operand->type == kUint8 && step.found.builtin_code != kQuantizeOp && step.found.builtin_code != kCastOp)
      return fail("%s on uint8, which this program only takes to make int8 or float32 of it", step.type);
    if (static_cast<const Scales*>(operand->affine.params)->count > 1 && !(filters && i == 1))
      return fail("%s with a scale for each channel", step.type);
  }
  return true;
}

// Calculates now what is made of a constant.
bool Model::make_constant(Step& step) {
  Tensor& out = *step.out[0];
  if (!step.constant.resize(out.bytes)) return fail("there is no memory");
  out.data = step.constant.data();
  out.allocation = kInFile;
  run(step);
  return true;
}

bool Model::prepare(Step& step) {
  if (step.taken) return true;
  if (step.delegated.invoke) return step.delegated.prepare(&context_, &step.node) == kOk;
  const IntArray &inputs = *step.node.inputs, &outputs = *step.node.outputs;
  if (inputs.size < step.op->least || inputs.size > step.op->most) return fail("%s has %d inputs", step.type, inputs.size);
  step.in_count = inputs.size;
  step.out_count = outputs.size;
  for (int i = 0; i < inputs.size; ++i) {
    if (inputs.data[i] != kAbsent) step.in[i] = &tensors_[static_cast<size_t>(inputs.data[i])];
    if (i < step.op->least && !step.in[i]) return fail("%s lacks an input", step.type);
  }
  for (int i = 0; i < outputs.size; ++i) step.out[i] = &tensors_[static_cast<size_t>(outputs.data[i])];
  if (!check_bytes(step) || (step.op->bytes == Bytes::kAsFloats && !make_shadows(step))) return false;
  const Table table(file_, step.place);
  const bool prepared = step.op->prepare(step, table.number<uint8_t>(3) ? table.table(4) : Table(file_));
  if (!prepared || file_.damaged) return prepared && fail("the file is damaged");
  return step.found.builtin_code != kDequantizeOp || step.in[0]->allocation != kInFile || make_constant(step);
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
  if (!live.resize(static_cast<size_t>(tensor_count_) + 1) || !places.resize(static_cast<size_t>(tensor_count_)))
    return fail("there is no memory");
  size_t count = 0, top = 0;
  for (int s = -1; s < step_count_; ++s) {
    if (s >= 0 && !steps_[static_cast<size_t>(s)]->makes_anew()) continue;
    const IntArray& made = s < 0 ? *inputs_ : *steps_[static_cast<size_t>(s)]->node.outputs;
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i)
      if (live[i].last_use >= s) live[kept++] = live[i];
    count = kept;
    for (int m = 0; m < made.size; ++m) {
      const auto number = static_cast<size_t>(made.data[m]);
      const size_t bytes = padded(tensors_[number].bytes);
      size_t at = 0, slot = 0;
      while (slot < count && live[slot].begin < at + bytes) at = live[slot++].end;
      for (size_t i = count++; i > slot; --i) live[i] = live[i - 1];
      live[slot] = {at, at + bytes, last_use_[number]};
      places[number] = at;
      top = top > at + bytes ? top : at + bytes;
      if (top > kMostMemory) return fail("it needs more than 1 GiB of memory");
    }
  }
  if (!arena_.resize(top) || !scratch_.resize(scratch_size_)) return fail("there is no memory");
  for (int s = -1; s < step_count_; ++s) {
    if (s >= 0 && !steps_[static_cast<size_t>(s)]->makes_anew()) continue;
    const IntArray& made = s < 0 ? *inputs_ : *steps_[static_cast<size_t>(s)]->node.outputs;
    for (int m = 0; m < made.size; ++m) {
      const auto number = static_cast<size_t>(made.data[m]);
      tensors_[number].data = arena_.data() + places[number];
    }
  }
  for (int s = 0; s < step_count_; ++s) {
    Buffer<Tensor>& shadows = steps_[static_cast<size_t>(s)]->shadows;
    size_t at = 0;
    for (size_t i = 0; i < shadows.size(); ++i) {
      if (!shadows[i].dims) continue;
      shadows[i].data = scratch_.data() + at;
      at += padded(shadows[i].bytes);
    }
  }
  return true;
}

// --- running ------------------------------------------------------------------------------------------------------

namespace {

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

}  // namespace

void Model::run(Step& step) {
  const IntArray &inputs = *step.node.inputs, &outputs = *step.node.outputs;
  const auto count = static_cast<size_t>(inputs.size);
  for (size_t i = 0; i < step.shadows.size(); ++i) {
    const Tensor& shadow = step.shadows[i];
    if (i >= count || !shadow.dims) continue;
    const Tensor& tensor = tensors_[static_cast<size_t>(inputs.data[i])];
    dequantize(tensor.quantization, static_cast<const int8_t*>(tensor.data), elements(&tensor),
               static_cast<float*>(shadow.data));
  }
  step.op->run(step, workers_);
  for (size_t i = count; i < step.shadows.size(); ++i) {
    const Tensor& shadow = step.shadows[i];
    if (!shadow.dims) continue;
    const Tensor& tensor = tensors_[static_cast<size_t>(outputs.data[i - count])];
    quantize(tensor.quantization, static_cast<const float*>(shadow.data), elements(&tensor),
             static_cast<int8_t*>(tensor.data));
  }
}

bool Model::run(int64_t* times_ns) {
  int64_t begin = times_ns ? now_ns() : 0;
  for (int i = 0; i < step_count_; ++i) {
    Step& step = *steps_[static_cast<size_t>(i)];
    if (!step.makes_anew()) {
      if (times_ns) times_ns[i] = 0;
      continue;
    }
    if (step.delegated.invoke) {
      if (step.delegated.invoke(&context_, &step.node) != kOk) return fail("%s (operator %d) failed", step.type, i);
    } else {
      run(step);
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
  read_text(names_[static_cast<size_t>(steps_[static_cast<size_t>(step)]->node.outputs->data[0])], text, size);
}

void Model::read_text(const List& list, char* text, size_t size) const {
  size_t count = 0;
  for (; count < list.count && count + 1 < size; ++count) {
    const uint8_t letter = file_.data[list.first + count];
    text[count] = letter > ' ' && letter < 127 ? static_cast<char>(letter) : '_';
  }
  text[count] = 0;
}

}  // namespace dmsflow
