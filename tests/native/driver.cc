// Drives the delegate as a TFLite interpreter does, with damaged nodes: options, shapes, types, tensors that
// are missing, too short, empty, or no constants. Built together with the library under AddressSanitizer and
// UndefinedBehaviorSanitizer, which end it at the first wrong step.
//
//   driver CASES [SEED]
//
// Prints how many nodes were prepared and run, and how many refused.

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tflite_abi.h"

extern "C" {
dmsflow::Delegate* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*));
void tflite_plugin_destroy_delegate(dmsflow::Delegate* delegate);
}

using namespace dmsflow;

namespace {

std::mt19937_64 random_bits;

int64_t between(int64_t least, int64_t most) {
  return least + static_cast<int64_t>(random_bits() % static_cast<uint64_t>(most - least + 1));
}
bool chance(int percent) { return between(1, 100) <= percent; }

[[noreturn]] void stop(const std::string& what) {
  std::fprintf(stderr, "driver: %s\n", what.c_str());
  std::abort();
}

int pick(const std::vector<int>& values) { return values[static_cast<size_t>(between(0, values.size() - 1))]; }
int absurd() {
  return pick({0, 1, 2, 3, -1, -2, 7, 31, 32, 33, 255, 256, 65535, 65536, 1 << 20, 1 << 28, 1 << 30, INT32_MAX, INT32_MIN});
}

IntArray* array(const std::vector<int>& values) {
  auto* made = static_cast<IntArray*>(std::malloc(sizeof(int) * (values.size() + 1)));
  made->size = static_cast<int>(values.size());
  if (!values.empty()) std::memcpy(made->data, values.data(), sizeof(int) * values.size());
  return made;
}

// --- FlexBuffer maps ------------------------------------------------------------------------------------

using Options = std::vector<std::pair<std::string, int64_t>>;

void put(std::vector<uint8_t>& bytes, uint64_t value, int width) {
  for (int i = 0; i < width; ++i) bytes.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

// Whole numbers of `width` bytes (1 to 8) throughout.
std::vector<uint8_t> flexible(const Options& options, int width) {
  const int log = width == 1 ? 0 : width == 2 ? 1 : width == 4 ? 2 : 3;
  std::vector<uint8_t> bytes;
  std::vector<size_t> keys;
  for (const auto& [name, value] : options) {
    keys.push_back(bytes.size());
    bytes.insert(bytes.end(), name.c_str(), name.c_str() + name.size() + 1);
  }
  while (bytes.size() % static_cast<size_t>(width)) bytes.push_back(0);
  put(bytes, options.size(), width);
  const size_t key_vector = bytes.size();
  for (const size_t key : keys) put(bytes, bytes.size() - key, width);
  put(bytes, bytes.size() - key_vector, width);
  put(bytes, static_cast<uint64_t>(width), width);
  put(bytes, options.size(), width);
  const size_t values = bytes.size();
  for (const auto& option : options) put(bytes, static_cast<uint64_t>(option.second), width);
  for (size_t i = 0; i < options.size(); ++i) bytes.push_back(static_cast<uint8_t>(1 << 2 | log));
  put(bytes, bytes.size() - values, width);
  bytes.push_back(static_cast<uint8_t>(9 << 2 | log));
  bytes.push_back(static_cast<uint8_t>(width));
  return bytes;
}

// --- the runtime ----------------------------------------------------------------------------------------

struct Fake : Context {
  std::vector<Tensor> values;
  std::vector<Node> nodes;
  std::vector<Registration> kinds;
  std::vector<std::unique_ptr<uint8_t[]>> options;
  std::vector<void*> data;
  std::string reported;
  IntArray* plan = nullptr;
};

Fake& fake(Context* context) { return *static_cast<Fake*>(context); }

Status get_plan(Context* context, IntArray** plan) {
  *plan = fake(context).plan;
  return kOk;
}

Status get_node(Context* context, int index, Node** node, Registration** kind) {
  Fake& self = fake(context);
  if (index < 0 || static_cast<size_t>(index) >= self.nodes.size()) return kError;
  *node = &self.nodes[static_cast<size_t>(index)];
  *kind = &self.kinds[static_cast<size_t>(index)];
  return kOk;
}

// As the runtime does: a new node takes the place of the file's, which stays where it is.
Status replace(Context* context, Registration kind, const IntArray* nodes, Delegate* delegate) {
  Fake& self = fake(context);
  if (nodes->size != 1) stop("more than one node taken at once");
  const size_t index = static_cast<size_t>(nodes->data[0]);
  IntArray* taken = array({nodes->data[0]});
  DelegateParams params = {delegate, taken, self.nodes[index].inputs, self.nodes[index].outputs};
  self.nodes.push_back(Node{});
  self.kinds.push_back(kind);
  void* made = kind.init(context, reinterpret_cast<const char*>(&params), 0);
  std::free(taken);
  self.nodes.back().user_data = made;
  std::vector<int> order(self.plan->data, self.plan->data + self.plan->size);
  for (int& entry : order)
    if (entry == static_cast<int>(index)) entry = static_cast<int>(self.nodes.size()) - 1;
  std::free(self.plan);
  self.plan = array(order);
  return kOk;
}

void report(Context* context, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fake(context).reported = text;
}

int64_t bytes_of(const IntArray* dims, int type) {
  int64_t bytes = type == kInt8 ? 1 : 4;
  for (int i = 0; i < dims->size; ++i) {
    if (dims->data[i] < 0 || (dims->data[i] && bytes > (int64_t{1} << 40) / dims->data[i])) return -1;
    bytes *= dims->data[i];
  }
  return bytes;
}

Status resize(Context* context, Tensor* tensor, IntArray* dims) {
  if (tensor->allocation == kInFile) {
    std::free(dims);
    context->ReportError(context, "a constant is not resized");
    return kError;
  }
  std::free(tensor->dims);
  tensor->dims = dims;
  const int64_t bytes = bytes_of(dims, tensor->type);
  if (bytes < 1 || bytes > INT32_MAX) stop("a senseless size");
  return kOk;
}

void set_up(Fake& self) {
  self.GetExecutionPlan = get_plan;
  self.ResizeTensor = resize;
  self.ReportError = report;
  self.GetNodeAndRegistration = get_node;
  self.ReplaceNodeSubsetsWithDelegateKernels = replace;
  self.recommended_num_threads = pick({-1, 0, 1, 1, 2, 3});
  std::vector<int> order(self.nodes.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  self.plan = array(order);
  self.nodes.reserve(16);
  self.kinds.reserve(16);
}

// --- graphs ---------------------------------------------------------------------------------------------

constexpr int kArena = 2;

int add_tensor(Fake& self, int type, const std::vector<int>& dims, bool constant = false) {
  Tensor tensor = {};
  tensor.type = type;
  tensor.dims = array(dims);
  tensor.allocation = constant ? kInFile : kArena;
  tensor.quantization = {0.5f, 3};
  if (constant) {
    tensor.bytes = static_cast<size_t>(bytes_of(tensor.dims, type));
    tensor.data = std::malloc(tensor.bytes);
    for (size_t i = 0; i < tensor.bytes / 4; ++i) {
      const float number = static_cast<float>(between(-100, 100));
      if (type == kFloat32) static_cast<float*>(tensor.data)[i] = number;
      if (type == kInt32) static_cast<uint32_t*>(tensor.data)[i] = static_cast<uint32_t>(random_bits());
    }
  }
  self.data.push_back(tensor.data);
  self.values.push_back(tensor);
  return static_cast<int>(self.values.size()) - 1;
}

void add_node(Fake& self, const char* name, const std::vector<int>& inputs, const std::vector<int>& outputs,
              const Options& options) {
  Node node = {};
  node.inputs = array(inputs);
  node.outputs = array(outputs);
  const std::vector<uint8_t> bytes = options.empty() ? std::vector<uint8_t>() : flexible(options, pick({4, 4, 8}));
  self.options.emplace_back(new uint8_t[bytes.size()]);
  if (!bytes.empty()) std::memcpy(self.options.back().get(), bytes.data(), bytes.size());
  node.options = self.options.back().get();
  node.options_size = static_cast<int>(bytes.size());
  Registration kind = {};
  kind.builtin_code = kCustomOp;
  kind.custom_name = name;
  self.nodes.push_back(node);
  self.kinds.push_back(kind);
}

int words(int channels) { return (channels + 31) / 32; }

void add_conv(Fake& self, Options& options) {
  const int groups = pick({1, 1, 1, 2}), channels = groups > 1 ? 32 * groups : pick({1, 31, 32, 33, 64, 100});
  const int type = pick({kFloat32, kInt8, kInt32}), filters = groups > 1 ? 64 : pick({1, 8, 17, 32, 40});
  const int side = pick({1, 3, 6, 9}), kernel = pick({1, 3, 5}), same = side < kernel || chance(60);
  const int stride = pick({1, 1, 2, 3}), dilation = same ? pick({1, 1, 2}) : 1;
  options = {{"channels_in", channels}, {"dilation_height_factor", dilation}, {"dilation_width_factor", dilation},
             {"fused_activation_function", 0}, {"pad_values", type == kFloat32 ? pick({0, 1}) : 1},
             {"padding", same ? 0 : 1}, {"stride_height", stride}, {"stride_width", stride}};
  const int image = add_tensor(self, kInt32, {pick({1, 2}), side, side, words(channels)});
  const int filter = add_tensor(self, kInt32, {filters, kernel, kernel, words(channels) / groups}, true);
  const bool bits = type == kInt32;
  const int multiplier = bits ? kAbsent : add_tensor(self, kFloat32, {filters}, true);
  const int bias = bits ? kAbsent : add_tensor(self, kFloat32, {filters}, true);
  const int threshold = bits ? add_tensor(self, kInt32, {filters}, true) : kAbsent;
  const int output = add_tensor(self, type, {1, 1, 1, bits ? words(filters) : filters});
  add_node(self, "LceBconv2d", {image, filter, multiplier, bias, threshold}, {output}, options);
}

void add_any(Fake& self, Options& options) {
  const int kind = pick({0, 0, 0, 1, 2, 3}), channels = pick({1, 31, 32, 33, 64, 100}), side = pick({1, 2, 7});
  if (kind == 0) return add_conv(self, options);
  if (kind == 1) {
    const int window = pick({1, 2}), in = add_tensor(self, kInt32, {2, side, side, words(channels)});
    options = {{"filter_height", window}, {"filter_width", window}, {"padding", window > side ? 0 : pick({0, 1})},
               {"stride_height", pick({1, 2})}, {"stride_width", pick({1, 2, 3})}};
    return add_node(self, "LceBMaxPool2d", {in}, {add_tensor(self, kInt32, {1, 1, 1, 1})}, options);
  }
  std::vector<int> dims(static_cast<size_t>(between(1, 5)), side), packed = dims;
  dims.back() = channels;
  packed.back() = words(channels);
  const int type = pick({kFloat32, kInt8});
  if (kind == 2) {
    const int in = add_tensor(self, type, dims);
    return add_node(self, "LceQuantize", {in}, {add_tensor(self, kInt32, packed)}, {});
  }
  const int in = add_tensor(self, kInt32, packed);
  add_node(self, "LceDequantize", {in}, {add_tensor(self, type, dims)}, {});
}

// --- damage ---------------------------------------------------------------------------------------------

void damage_options(Fake& self, Node& node, Options options) {
  const int how = static_cast<int>(between(0, 5));
  std::vector<uint8_t> bytes(static_cast<const uint8_t*>(node.options),
                             static_cast<const uint8_t*>(node.options) + node.options_size);
  if (how == 0 && !options.empty()) {  // an absurd value
    options[static_cast<size_t>(between(0, options.size() - 1))].second = absurd();
    bytes = flexible(options, pick({1, 2, 4, 8}));
  } else if (how == 1 && !options.empty()) {  // one too few, or another name
    auto& option = options[static_cast<size_t>(between(0, options.size() - 1))];
    if (chance(50)) option.first = "stride"; else option = options.back();
    bytes = flexible(options, 4);
  } else if (how == 2 && !bytes.empty()) {
    bytes.resize(static_cast<size_t>(between(0, bytes.size() - 1)));
  } else if (how == 3) {
    bytes.resize(static_cast<size_t>(between(0, 40)));
    for (auto& byte : bytes) byte = static_cast<uint8_t>(random_bits());
  } else if (!bytes.empty()) {
    for (int64_t flips = between(1, 4); flips > 0; --flips) {
      const int64_t from = chance(50) ? static_cast<int64_t>(bytes.size()) * 2 / 3 : 0;
      bytes[static_cast<size_t>(between(from, bytes.size() - 1))] ^= static_cast<uint8_t>(1 << between(0, 7));
    }
  }
  self.options.emplace_back(new uint8_t[bytes.size()]);
  if (!bytes.empty()) std::memcpy(self.options.back().get(), bytes.data(), bytes.size());
  node.options = bytes.empty() && chance(50) ? nullptr : self.options.back().get();
  node.options_size = static_cast<int>(bytes.size());
}

void damage_tensor(Fake& self) {
  Tensor& tensor = self.values[static_cast<size_t>(between(0, self.values.size() - 1))];
  switch (between(0, 7)) {
    case 0:
      if (tensor.dims && tensor.dims->size) tensor.dims->data[between(0, tensor.dims->size - 1)] = absurd();
      break;
    case 1:
      std::free(tensor.dims);
      tensor.dims = nullptr;
      break;
    case 2: {
      std::vector<int> dims(static_cast<size_t>(between(0, 9)), pick({1, 2, 8}));
      std::free(tensor.dims);
      tensor.dims = array(dims);
      break;
    }
    case 3: tensor.type = pick({0, 1, 2, 3, 4, 9, 10, -1, 99}); break;
    case 4: tensor.allocation = pick({0, 1, 2, 3, 4, 5, 6}); break;
    case 5: tensor.data = nullptr; break;
    case 6: tensor.bytes = tensor.bytes ? static_cast<size_t>(between(0, static_cast<int64_t>(tensor.bytes) - 1)) : 0; break;
    default: {
      constexpr float kScales[] = {0, -1, 1e-45f, 1e-30f, 3e38f, HUGE_VALF, -HUGE_VALF, NAN, 0.1f};
      tensor.quantization = {kScales[between(0, 8)], absurd()};
    }
  }
}

void damage_node(Fake& self, Node& node) {
  IntArray*& list = chance(80) ? node.inputs : node.outputs;
  std::vector<int> indices(list->data, list->data + list->size);
  switch (between(0, 3)) {
    case 0: indices.resize(static_cast<size_t>(between(0, 7)), kAbsent); break;
    case 1:
      if (!indices.empty()) indices[static_cast<size_t>(between(0, indices.size() - 1))] = absurd();
      break;
    case 2:
      if (!indices.empty())
        indices[static_cast<size_t>(between(0, indices.size() - 1))] = static_cast<int>(between(0, self.values.size() - 1));
      break;
    default: indices.push_back(0);
  }
  std::free(list);
  list = array(indices);
}

// --- a case ---------------------------------------------------------------------------------------------

struct Counts {
  int64_t run = 0, refused = 0, unloaded = 0;
};

// The memory of all that is no constant, of exactly its size; false: too much for a test.
bool allocate(Fake& self, std::vector<std::unique_ptr<uint8_t[]>>& arena) {
  for (Tensor& tensor : self.values) {
    if (!tensor.dims || tensor.allocation == kInFile || tensor.allocation == kPreparedOnce) continue;
    const int64_t bytes = bytes_of(tensor.dims, tensor.type);
    if (bytes < 0 || bytes > (1 << 26)) return false;
    arena.emplace_back(new uint8_t[static_cast<size_t>(bytes)]());
    tensor.data = arena.back().get();
    tensor.bytes = static_cast<size_t>(bytes);
    if (tensor.type != kInt32 || !tensor.bytes) continue;
    for (int64_t i = 0; i < bytes; i += 7) arena.back()[static_cast<size_t>(i)] = static_cast<uint8_t>(random_bits());
  }
  return true;
}

bool run_node(Fake& self, bool sound, Counts& counts) {
  self.tensors = self.values.data();
  self.tensors_size = self.values.size();
  for (int i = 0; i < self.plan->size; ++i) {
    const size_t index = static_cast<size_t>(self.plan->data[i]);
    self.reported.clear();
    std::vector<std::unique_ptr<uint8_t[]>> arena;
    Status status = self.kinds[index].prepare(&self, &self.nodes[index]);
    const bool prepared = status == kOk;
    if (prepared && !allocate(self, arena)) return false;
    if (prepared) status = self.kinds[index].invoke(&self, &self.nodes[index]);
    if (sound && status != kOk) stop("a sound node was refused: " + self.reported);
    if (!prepared && self.reported.empty()) stop("a node was refused without a word");
    ++(status == kOk ? counts.run : counts.refused);
    if (status != kOk) return false;
  }
  return true;
}

void resize_input(Fake& self) {
  Tensor& input = self.values[0];
  if (!input.dims || input.allocation != kArena || !input.dims->size) return;
  input.dims->data[between(0, input.dims->size - 1)] = pick({1, 2, 3, 5, 9, 12});
}

Delegate* load(std::vector<int64_t>& times) {
  std::vector<std::string> keys, values;
  auto add = [&](const char* key, const std::string& value) { keys.push_back(key), values.push_back(value); };
  if (chance(40)) add("threads", chance(90) ? std::to_string(between(1, 4)) : std::to_string(absurd()));
  if (chance(40)) add("kernels", chance(90) ? "portable" : "magic");
  if (chance(20)) add("times", std::to_string(reinterpret_cast<uintptr_t>(times.data())));
  if (chance(2)) add(chance(50) ? "" : "speed", std::string(static_cast<size_t>(between(0, 600)), 'x'));
  std::vector<char*> key_texts, value_texts;
  for (auto& key : keys) key_texts.push_back(key.data());
  for (auto& value : values) value_texts.push_back(value.data());
  return tflite_plugin_create_delegate(key_texts.data(), value_texts.data(), keys.size(), nullptr);
}

void clear(Fake& self) {
  for (size_t i = 0; i < self.nodes.size(); ++i) {
    if (self.kinds[i].free) self.kinds[i].free(&self, self.nodes[i].user_data);
    std::free(self.nodes[i].inputs);
    std::free(self.nodes[i].outputs);
  }
  for (Tensor& tensor : self.values) std::free(tensor.dims);
  for (void* data : self.data) std::free(data);
  std::free(self.plan);
}

void run_case(Counts& counts) {
  Fake self = {};
  Options options;
  add_any(self, options);
  const bool sound = chance(10);
  for (int64_t count = sound ? 0 : between(1, 2); count > 0; --count) {
    const int64_t what = between(0, 9);
    if (what < 4) damage_options(self, self.nodes[0], options);
    else if (what < 8) damage_tensor(self);
    else damage_node(self, self.nodes[0]);
  }
  set_up(self);
  std::vector<int64_t> times = {0, between(0, 3), 0, 0, 0, 0, 0, 0, 0, 0, 0};
  Delegate* delegate = load(times);
  self.tensors = self.values.data();
  self.tensors_size = self.values.size();
  if (!delegate) {
    ++counts.unloaded;
  } else if (delegate->flags != 1 || delegate->opaque_builder || delegate->Prepare(&self, delegate) != kOk) {
    stop("the delegate does not take a graph");
  } else {
    tflite_plugin_destroy_delegate(delegate);  // its nodes outlive it
    const bool first = run_node(self, sound, counts);
    for (int64_t again = between(0, 2); first && again > 0; --again) {
      resize_input(self);
      run_node(self, false, counts);
    }
    if (times[0] > times[1]) stop("more times than there is room for");
  }
  clear(self);
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t cases = count > 1 ? std::atoll(arguments[1]) : 1000;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0;
  Counts counts;
  for (int64_t i = 0; i < cases; ++i) {
    random_bits.seed(seed * 1000003 + static_cast<uint64_t>(i));
    run_case(counts);
  }
  std::printf("%lld run, %lld refused, %lld not loaded\n", static_cast<long long>(counts.run),
              static_cast<long long>(counts.refused), static_cast<long long>(counts.unloaded));
  return 0;
}
