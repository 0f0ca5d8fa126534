// A small runtime for the benchmark program: it reads a .tflite file, lets the delegate take LCE's
// operators, as TFLite does, and calculates the others itself. Shapes are those written in the file.
#pragma once

#include <cstdint>

#include "benchmark_ops.h"
#include "flatbuffer.h"
#include "memory.h"
#include "tflite_abi.h"
#include "workers.h"

namespace dmsflow {

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
  bool runs(int step) const { return steps_[static_cast<size_t>(step)]->makes_anew(); }  // or is it done by another
  const char* type(int step) const;  // what TFLite calls the operator
  void name(int step, char* text, size_t size) const;
  int inputs() const { return inputs_->size; }
  int outputs() const { return outputs_->size; }
  const Tensor& input(int number) const { return tensors_[static_cast<size_t>(inputs_->data[number])]; }
  const Tensor& output(int number) const { return tensors_[static_cast<size_t>(outputs_->data[number])]; }

 private:
  friend struct Host;
  bool read_file(const char* path);
  bool read_tensors(const Table& graph, const List& buffers);
  bool read_scales(const Table& table, Tensor& tensor, Scales& scales);
  void read_text(const List& list, char* text, size_t size) const;  // of printable letters
  bool read_steps(const Table& graph, const List& codes);
  bool read_step(Step& step, const List& codes);
  bool check_operators();
  bool check_tensor(int number);
  bool check_order();
  bool delegate(int threads, const char* kernels);
  bool is_read(int tensor, const IntArray& nodes) const;
  bool prepare(Step& step);
  bool check_bytes(const Step& step) const;
  bool make_constant(Step& step);
  bool make_shadows(Step& step);
  bool place();
  void run(Step& step);

  Buffer<uint8_t> content_;
  File file_;
  Buffer<Tensor> tensors_;
  Buffer<Scales> scales_;
  Buffer<List> names_;
  Buffer<Step*> steps_;
  Buffer<int> last_use_;  // of each tensor: the last step that reads it
  Buffer<uint8_t> arena_;
  Buffer<uint8_t> scratch_;  // of one step's shadows
  size_t scratch_size_ = 0;
  int tensor_count_ = 0, step_count_ = 0;
  IntArray *inputs_ = nullptr, *outputs_ = nullptr;
  Workers* workers_ = nullptr;
  Context context_ = {};
  Delegate* delegate_ = nullptr;
  IntArray* plan_ = nullptr;
  DelegateParams preview_ = {};
};

}  // namespace dmsflow
