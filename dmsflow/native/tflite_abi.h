// What a delegate shares with TensorFlow Lite, declared by hand: nothing of TFLite is needed to compile
// or to link, and the library works in every runtime that kept this layout (2.3 to LiteRT 2.3 and on).
//
// Source: tensorflow/lite/core/c/common.h, and tflite_plugin_create_delegate of the external delegate
// interface. Fields keep their order and their type; structures of which only pointers are passed end
// where our use of them ends.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dmsflow {

enum Status : int { kOk = 0, kError = 1 };

enum Type : int { kFloat32 = 1, kInt32 = 2, kUint8 = 3, kInt8 = 9 };

enum Allocation : int { kInFile = 1, kPreparedOnce = 5 };  // the two kinds of constants

constexpr int kConvOp = 3, kDequantizeOp = 6, kCustomOp = 32, kPadOp = 34, kSubOp = 41, kDelegateOp = 51, kCastOp = 53;  // codes
constexpr int kPadV2Op = 60, kQuantizeOp = 114;
constexpr int kAbsent = -1;                      // in place of an optional input
constexpr int64_t kAllowDynamicTensors = 1;      // with no flags the runtime gives up before it asks us

struct IntArray {
  int size;
  int data[];
};

struct Quantization {  // of a whole tensor
  float scale;
  int32_t zero_point;
};

struct FloatArray {
  int size;
  float data[];
};

constexpr int kAffine = 1;  // the kind of this:
struct AffineQuantization {  // of a whole tensor, or of each index of one side
  FloatArray* scale;
  IntArray* zero_point;
  int32_t side;
};

constexpr int kSamePadding = 1, kValidPadding = 2;
struct Conv2DOptions {  // of TFLite's CONV_2D
  int padding, stride_width, stride_height, activation, dilation_width, dilation_height;
};

struct Delegate;

// The runtime keeps an array of these: its size counts too.
struct Tensor {
  int type;
  void* data;
  IntArray* dims;
  Quantization quantization;
  int allocation;
  size_t bytes;
  const void* file;
  const char* name;
  Delegate* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  struct {
    int kind;
    void* params;
  } affine;
  void* sparsity;
  const IntArray* signature;
};
static_assert(sizeof(void*) != 8 || sizeof(Tensor) == 112, "the layout of TfLiteTensor");

struct Node {
  IntArray* inputs;
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;
  void* builtin_data;
  const void* options;
  int options_size;
};

struct Context;

// Handed over by value, and it has grown: this is its newest layout. Older runtimes read its beginning,
// where calls pass a structure of this size by its address (x86-64, AArch64).
struct Registration {
  void* (*init)(Context*, const char* buffer, size_t length);
  void (*free)(Context*, void* user_data);
  Status (*prepare)(Context*, Node*);
  Status (*invoke)(Context*, Node*);
  const char* (*profiling_string)(const Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* external;
  void* (*async_kernel)(Context*, Node*);
  uint64_t inplace;
};

struct DelegateParams {  // what `init` of a delegate's kernel gets
  Delegate* delegate;
  IntArray* nodes;
  IntArray* inputs;
  IntArray* outputs;
};

struct Context {
  size_t tensors_size;
  Status (*GetExecutionPlan)(Context*, IntArray** plan);
  Tensor* tensors;
  void* impl;
  Status (*ResizeTensor)(Context*, Tensor*, IntArray* dims);  // takes dims, and frees them with free()
  void (*ReportError)(Context*, const char* format, ...);
  Status (*AddTensors)(Context*, int count, int* first);
  Status (*GetNodeAndRegistration)(Context*, int index, Node**, Registration**);
  Status (*ReplaceNodeSubsetsWithDelegateKernels)(Context*, Registration, const IntArray* nodes, Delegate*);
  int recommended_num_threads;
  void *GetExternalContext, *SetExternalContext;
  bool allow_fp32_relax_to_fp16;
  void *profiler, *AllocatePersistentBuffer, *AllocateBufferForEval, *RequestScratchBufferInArena, *GetScratchBuffer,
      *ResizeTensorExplicit;
  // Which parts of the graph ReplaceNodeSubsetsWithDelegateKernels would make of these nodes; the runtime's own.
  Status (*PreviewDelegatePartitioning)(Context*, const IntArray* nodes, DelegateParams** parts, int* count);
};

struct Delegate {
  void* data;
  Status (*Prepare)(Context*, Delegate*);
  Status (*CopyFromBufferHandle)(Context*, Delegate*, int handle, Tensor*);
  Status (*CopyToBufferHandle)(Context*, Delegate*, int handle, Tensor*);
  void (*FreeBufferHandle)(Context*, Delegate*, int* handle);
  int64_t flags;
  void* opaque_builder;  // must be null
};

}  // namespace dmsflow
