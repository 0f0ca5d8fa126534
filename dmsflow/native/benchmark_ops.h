// The operators that the benchmark program calculates itself: how each is checked, and run.
#pragma once

#include <cstdint>

#include "benchmark_bytes.h"
#include "benchmark_floats.h"
#include "flatbuffer.h"
#include "memory.h"
#include "ops.h"
#include "tflite_abi.h"
#include "workers.h"

namespace dmsflow {

constexpr int kMostOperands = 64;
constexpr int64_t kMostElements = 1 << 28;  // of a tensor

struct Step;

// What int8 tensors of an operator are: calculated with; or made float32 before, and int8 again behind.
enum class Bytes { kOwn, kAsFloats };

struct Op {
  int code;         // of the file format
  int options;      // and the table of options that it has there
  int least, most;  // inputs
  int outputs;      // at most
  Bytes bytes;
  bool (*prepare)(Step& step, const Table& options);  // false: it says what is wrong
  void (*run)(Step& step, Workers* workers);
};

const Op* find_op(int code);        // null: it is not in this program
const char* name_of_op(int code);   // null: it is not in the file format either

// The scales of a tensor; of a filter there may be one for each of its filters.
struct Scales {
  AffineQuantization affine;  // first: the delegate has a pointer to it
  int count;
  bool centred;  // all zero points are 0
};

// Elements from one tensor to another, of one type.
struct Copy {
  Strided shape;
  int in, out;
  int64_t in_offset, out_offset;
};

struct Step {  // one operator of the file
  Node node = {};
  Registration delegated = {};
  Registration found = {};  // the operator of the file
  const Op* op = nullptr;
  const char* type = "";
  char custom[32] = "";
  size_t place = 0;  // of its table in the file
  Tensor *in[kMostOperands] = {}, *out[kMostOperands] = {};  // null: left out
  int in_count = 0, out_count = 0;
  Conv2DOptions conv_options = {};  // for the delegate
  bool taken = false;               // by the delegate, into a later step
  Buffer<uint8_t> constant;         // what was calculated once, from constants; empty: it is calculated in each run
  Buffer<Tensor> shadows;  // float32 in place of int8: of the inputs, then of the outputs
  // What `prepare` leaves to `run`:
  Window window;
  Limits limits;
  Requantize requantize;
  PlainConv<float> conv;
  PlainConv<uint32_t> byte_conv;
  Strided shape = kPoint;
  Buffer<Copy> copies;
  Resize resize = {};
  Factor factor = {};
  float number = 0;   // a slope, a divisor, an exponent's factor
  uint32_t fill = 0;  // what stands between copies
  bool fills = false;

  bool makes_anew() const { return !taken && !constant.size(); }  // something in each run
};

__attribute__((format(printf, 1, 2))) bool fail(const char* format, ...);  // says it on stderr
void end_error();  // ends the line of what was said

int64_t count_of(const IntArray& dims);  // 0: it has a side below 1, or is too large
bool same(const IntArray& left, const IntArray& right);
size_t size_of(int type);  // of an element, in bytes
int64_t elements(const Tensor* tensor);

}  // namespace dmsflow
