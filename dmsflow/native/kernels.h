// What a set of kernels offers to conv.cc and ops.cc; each kernels_*.cc fills one for its instructions.
//
// A convolution is counted without im2col. Output channels lie in the lanes of vectors: a panel holds the
// weights of up to `vectors * lanes` filters, word by word, and a word of the image is spread over all
// lanes. So counts need no sum across lanes, and bits come out in the order in which they are stored.
#pragma once

#include <cstdint>

#include "ops.h"

namespace dmsflow {

constexpr int kPanelChannels = 16;  // a full panel has a multiple of these, so that bits fill whole halves of words

// Words of a window that lie one behind the other, in the image and in a panel.
struct Segment {
  uint32_t offset;  // from the window's first word, in words of the image
  uint32_t words;
  bool flush;       // behind it byte counters are added up: they hold no more than 31 words
};

// Some pixels of an output, and the channels of one panel.
struct Work {
  const uint32_t* image;    // each word `copies` times
  const uint32_t* offsets;  // of each pixel's window, in words of the image
  int pixels;
  const Segment* segments;
  int segment_count;
  const uint32_t* panel;    // [words, vectors, lanes]
  int vectors;
  void* out;                // of the first pixel, at the panel's first channel
  int64_t out_stride;       // bytes from pixel to pixel
  int channels;             // that are put out, of those in the panel
  int halves;               // kBits: how many 16-bit halves of words to write, the last ones may have no channels
  bool clamps;              // else no count can lie beyond these:
  int32_t clamp_min, clamp_max;
  const float* multiplier;  // these have room for a whole panel; twice what ops.h says unless it clamps
  const float* bias;
  const int32_t* thresholds;
};

// Sums of bytes times bytes instead of counts, for kBits: the words of image and panel hold 2 or 4 numbers each, and bit 1
// is where a threshold and a sum are below 0 together.
struct ByteKernels {
  int lanes, vectors;  // as below
  int size;            // bytes of a number in a word: 2, or 1
  bool is_unsigned;    // what the image holds; weights have a sign
  void (*convolve)(const Work& work);  // null: there are none
  void (*convolve_floats)(const Work& work);  // for kFloat: the sums themselves
};

struct Kernels {
  const char* name;
  int lanes;
  int vectors;         // of a full panel
  int copies;          // of each word in the image: as many as lanes where spreading it costs an instruction
  int segment_words;   // at most, from flush to flush
  int64_t most_words;  // of a window, that its counters can hold
  void (*convolve[3])(const Work& work);  // by Output
  ByteKernels bytes;
  void (*quantize)(const float* in, int64_t pixels, int channels, uint32_t* out);
  void (*quantize_bytes)(const int8_t* in, int64_t pixels, int channels, int8_t zero_point, uint32_t* out);
};

// Null where they were not compiled, or the processor lacks the instructions.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* neon_kernels();
const Kernels* neon_dotprod_kernels();

}  // namespace dmsflow
