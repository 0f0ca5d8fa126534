// A small runtime for the benchmark program: it reads a .tflite file, lets the delegate take LCE's
// operators, as TFLite does, and calculates the others itself. Shapes are those written in the file.
#pragma once

#include <cstdint>

#include "benchmark_floats.h"
#include "flatbuffer.h"
#include "memory.h"
#include "tflite_abi.h"
#include "workers.h"

namespace dmsflow {

struct Step;  // one operator of the file

class Model {
 public:
  Model() = default;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model();

  // False: it says on stderr what is wrong. `kernels` may be null.
  bool load(const char* path, int threads, const char* kernels);
  bool run(int64_t* times_ns);  // one for each step, or null

  int steps() const { return step_count_; }
  const char* type(int step) const;  // what TFLite calls the operator
  void name(int step, char* text, size_t size) const;
  float* input() { return static_cast<float*>(tensors_[input_].data); }
  const float* output() const { return static_cast<const float*>(tensors_[output_].data); }
  size_t input_size() const { return tensors_[input_].bytes / sizeof(float); }
  size_t output_size() const { return tensors_[output_].bytes / sizeof(float); }

 private:
  friend struct Host;
  bool read_file(const char* path);
  bool read_tensors(const Table& graph, const List& buffers);
  bool read_steps(const Table& graph, const List& codes);
  bool read_step(Step& step, size_t pointer, const List& codes);
  bool check_order();
  bool delegate(int threads, const char* kernels);
  bool prepare(Step& step);
  bool place();

  Buffer<uint8_t> content_;
  File file_;
  Buffer<Tensor> tensors_;
  Buffer<List> names_;
  Buffer<Step*> steps_;
  Buffer<int> last_use_;  // of each tensor: the last step that reads it
  Buffer<uint8_t> arena_;
  int tensor_count_ = 0, step_count_ = 0;
  size_t input_ = 0, output_ = 0;
  Workers* workers_ = nullptr;
  Context context_ = {};
  Delegate* delegate_ = nullptr;
  IntArray* plan_ = nullptr;
};

}  // namespace dmsflow
