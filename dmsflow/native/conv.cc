// Binary convolutions: weights packed once into panels, the image padded once a run, then tiles of pixels
// counted panel by panel (see kernels.h).

#include <cfloat>
#include <cmath>
#include <cstring>
#include <new>

#include "kernels.h"
#include "memory.h"
#include "ops.h"
#include "panels.h"

namespace dmsflow {

namespace {

constexpr int kChunkPixels = 24;     // at least: a multiple of all tiles
constexpr size_t kFewWords = 32768;  // of an image, that are copied sooner than a thread is woken

}  // namespace

class Conv {
 public:
  ConvParams params;  // its pointers are not used after make_conv
  const Kernels* kernels = nullptr;
  int words = 0;          // of a pixel of the image
  int group_words = 0;    // of these, what one group reads
  int filter_words = 0;   // of a window
  bool clamps = false;    // whether a count can lie beyond the clamps
  Buffer<Panel> panels;
  Buffer<uint32_t> weights;
  Buffer<float> multiplier, bias;
  Buffer<int32_t> thresholds;
  // By image size:
  int row_pixels = 0, rows = 0;  // of the padded image
  bool padded = false;           // whether there is one: else the image is read where it lies
  Buffer<uint32_t> image;
  Buffer<uint32_t> offsets;
  Buffer<Segment> segments;
  size_t segment_count = 0;
  // Zero-padding: what to add by filter, for each kind of row and column of the output.
  bool corrects = false;
  Buffer<float> correction_multiplier;
  Buffer<int32_t> tap_sums;       // [taps, filters]: sum of a filter's weights at one place
  Buffer<float> corrections;      // [row kinds, column kinds, filters]
  Buffer<int32_t> row_kind, column_kind;
  int column_kinds = 0;
};

namespace {

// --- weights ------------------------------------------------------------------------------------

void pack_panel(Conv& conv, const Panel& panel) {
  const size_t lanes = static_cast<size_t>(panel.vectors) * conv.kernels->lanes;
  for (int c = 0; c < panel.channels; ++c) {
    const uint32_t* filter = conv.params.filter + static_cast<size_t>(panel.first + c) * conv.filter_words;
    uint32_t* to = conv.weights.data() + panel.weights + c;
    for (int word = 0; word < conv.filter_words; ++word) to[word * lanes] = filter[word];
  }
  for (size_t c = 0; c < lanes; ++c) {
    const bool there = c < static_cast<size_t>(panel.channels);
    if (conv.params.output == Output::kBits) {
      conv.thresholds[panel.slot + c] = there ? conv.params.thresholds[panel.first + c] : INT32_MAX;
    } else if (there) {
      conv.multiplier[panel.slot + c] = conv.params.multiplier[panel.first + c] * (conv.clamps ? 1.0f : 2.0f);
      conv.bias[panel.slot + c] = conv.params.bias[panel.first + c];
    }
  }
}

// Doubling a multiplier instead of a count gives the same product, unless the multiplier overflows.
bool must_clamp(const ConvParams& p) {
  if (p.output == Output::kBits) return false;
  const int64_t most = static_cast<int64_t>(p.channels / p.groups) * p.window.filter_height * p.window.filter_width;
  bool overflows = false;
  for (int f = 0; f < p.filters; ++f) overflows |= !(std::fabs(p.multiplier[f]) <= FLT_MAX / 2);
  return p.clamp_min > 0 || p.clamp_max < 2 * most || overflows;
}

bool pack(Conv& conv) {
  conv.clamps = must_clamp(conv.params);
  size_t words, slots;
  const ConvParams& p = conv.params;
  if (!list_panels(conv.kernels->lanes, conv.kernels->vectors, p.filters, p.groups, conv.filter_words, conv.panels, words,
                   slots) ||
      !conv.weights.resize(words))
    return false;
  const bool bits = p.output == Output::kBits;
  if (bits ? !conv.thresholds.resize(slots) : !conv.multiplier.resize(slots) || !conv.bias.resize(slots)) return false;
  for (size_t i = 0; i < conv.panels.size(); ++i) pack_panel(conv, conv.panels[i]);
  return true;
}

// --- zero-padding -------------------------------------------------------------------------------

bool sum_taps(Conv& conv) {
  const ConvParams& p = conv.params;
  if (!conv.correction_multiplier.resize(p.filters)) return false;
  std::memcpy(conv.correction_multiplier.data(), p.correction_multiplier, p.filters * sizeof(float));
  conv.corrects = true;
  const int taps = p.window.filter_height * p.window.filter_width, channels = p.channels / p.groups;
  if (!conv.tap_sums.resize(static_cast<size_t>(taps) * p.filters)) return false;
  const uint32_t* word = p.filter;
  for (int f = 0; f < p.filters; ++f)
    for (int tap = 0; tap < taps; ++tap) {
      int negative = 0;
      for (int i = 0; i < conv.group_words; ++i) negative += __builtin_popcount(*word++);
      conv.tap_sums[static_cast<size_t>(tap) * p.filters + f] = channels - 2 * negative;
    }
  return true;
}

// One side of the image: each output's first and last tap inside it, kinds of equal ones numbered.
struct Side {
  Buffer<int32_t> first, end;  // by kind
  int kinds = 0;
};

bool sort_side(int outs, int size, int taps, int stride, int dilation, int pad, Buffer<int32_t>& kind, Side& side) {
  if (!kind.resize(outs) || !side.first.resize(outs) || !side.end.resize(outs)) return false;
  for (int at = 0; at < outs; ++at) {
    const int64_t origin = static_cast<int64_t>(at) * stride - pad;
    int first = 0, end = taps;
    while (first < taps && origin + static_cast<int64_t>(first) * dilation < 0) ++first;
    while (end > first && origin + static_cast<int64_t>(end - 1) * dilation >= size) --end;
    int same = 0;
    while (same < side.kinds && (side.first[same] != first || side.end[same] != end)) ++same;
    if (same == side.kinds) {
      side.first[same] = first;
      side.end[same] = end;
      ++side.kinds;
    }
    kind[at] = same;
  }
  return true;
}

bool correct(Conv& conv) {
  const ConvParams& p = conv.params;
  const Window& w = p.window;
  Side rows, columns;
  if (!sort_side(w.out_height, w.height, w.filter_height, w.stride_height, w.dilation_height, w.pad_top, conv.row_kind,
                 rows) ||
      !sort_side(w.out_width, w.width, w.filter_width, w.stride_width, w.dilation_width, w.pad_left, conv.column_kind,
                 columns))
    return false;
  conv.column_kinds = columns.kinds;
  if (!conv.corrections.resize(static_cast<size_t>(rows.kinds) * columns.kinds * p.filters)) return false;
  float* to = conv.corrections.data();
  for (int r = 0; r < rows.kinds; ++r)
    for (int c = 0; c < columns.kinds; ++c)
      for (int f = 0; f < p.filters; ++f) {
        int32_t sum = 0;
        for (int y = 0; y < w.filter_height; ++y)
          for (int x = 0; x < w.filter_width; ++x)
            if (y < rows.first[r] || y >= rows.end[r] || x < columns.first[c] || x >= columns.end[c])
              sum += conv.tap_sums[static_cast<size_t>(y * w.filter_width + x) * p.filters + f];
        *to++ = conv.correction_multiplier[f] * static_cast<float>(sum);
      }
  return true;
}

void add_corrections(const Conv& conv, float* out) {
  const Window& w = conv.params.window;
  const int filters = conv.params.filters;
  for (int y = 0; y < w.out_height; ++y)
    for (int x = 0; x < w.out_width; ++x, out += filters) {
      const int kind = conv.row_kind[y] * conv.column_kinds + conv.column_kind[x];
      const float* add = conv.corrections.data() + static_cast<size_t>(kind) * filters;
      for (int f = 0; f < filters; ++f) out[f] += add[f];
    }
}

// --- the image ----------------------------------------------------------------------------------

bool list_segments(Conv& conv) {
  const Window& w = conv.params.window;
  const bool whole_rows = w.dilation_width == 1 && conv.params.groups == 1;
  const int run_words = whole_rows ? w.filter_width * conv.group_words : conv.group_words;
  const int runs = whole_rows ? 1 : w.filter_width, limit = conv.kernels->segment_words;
  const size_t most = static_cast<size_t>(w.filter_height) * runs * (run_words / limit + 2) + conv.filter_words / limit;
  if (!conv.segments.resize(most)) return false;
  size_t count = 0;
  int counted = 0;  // since the last flush
  for (int y = 0; y < w.filter_height; ++y)
    for (int run = 0; run < runs; ++run) {
      uint32_t offset = static_cast<uint32_t>((static_cast<int64_t>(y) * w.dilation_height * conv.row_pixels +
                                               static_cast<int64_t>(run) * w.dilation_width) * conv.words);
      for (int left = run_words; left > 0;) {
        const int take = left < limit - counted ? left : limit - counted;
        counted += take;
        left -= take;
        conv.segments[count++] = {offset, static_cast<uint32_t>(take), counted == limit};
        offset += take;
        if (counted == limit) counted = 0;
      }
    }
  conv.segment_count = count;
  return true;
}

bool list_offsets(Conv& conv) {
  const Window& w = conv.params.window;
  if (!conv.offsets.resize(static_cast<size_t>(w.out_height) * w.out_width)) return false;
  uint32_t* to = conv.offsets.data();
  for (int64_t y = 0; y < w.out_height; ++y)
    for (int64_t x = 0; x < w.out_width; ++x)
      *to++ = static_cast<uint32_t>((y * w.stride_height * conv.row_pixels + x * w.stride_width) * conv.words);
  return true;
}

struct Run {
  Conv* conv;
  const uint32_t* in;  // one image
  char* out;
  int chunk, chunks;  // pixels in a chunk, and chunks in an image
};

// Row `index` of the padded image, between its edges: these stay 0.
void pad_row(void* context, int index) {
  const Conv& conv = *static_cast<Run*>(context)->conv;
  const Window& w = conv.params.window;
  const int y = index - w.pad_top;
  if (y < 0 || y >= w.height) return;
  const int room = conv.row_pixels - w.pad_left, pixels = w.width < room ? w.width : room;
  const int copies = conv.kernels->copies;
  const uint32_t* from = static_cast<Run*>(context)->in + static_cast<size_t>(y) * w.width * conv.words;
  const size_t count = static_cast<size_t>(pixels > 0 ? pixels : 0) * conv.words;
  uint32_t* to = static_cast<Run*>(context)->conv->image.data() +
                 (static_cast<size_t>(index) * conv.row_pixels + w.pad_left) * conv.words * copies;
  if (copies == 4) {
    for (size_t i = 0; i < count; ++i)
      for (int copy = 0; copy < 4; ++copy) to[4 * i + copy] = from[i];
  } else if (count) {
    std::memcpy(to, from, count * sizeof(uint32_t));
  }
}

void convolve_chunk(void* context, int index) {
  const Run& run = *static_cast<Run*>(context);
  const Conv& conv = *run.conv;
  const ConvParams& p = conv.params;
  const Panel& panel = conv.panels[index / run.chunks];
  const int first = index % run.chunks * run.chunk, pixels = p.window.out_height * p.window.out_width;
  const bool bits = p.output == Output::kBits;
  const int64_t element = p.output == Output::kInt8 ? 1 : 4;
  Work work;
  work.image = (conv.padded ? conv.image.data() : run.in) +
               static_cast<size_t>(panel.group) * conv.group_words * (conv.padded ? conv.kernels->copies : 1);
  work.offsets = conv.offsets.data() + first;
  work.pixels = pixels - first < run.chunk ? pixels - first : run.chunk;
  work.segments = conv.segments.data();
  work.segment_count = static_cast<int>(conv.segment_count);
  work.panel = conv.weights.data() + panel.weights;
  work.vectors = panel.vectors;
  work.out_stride = element * (bits ? words_of(p.filters) : p.filters);
  work.out = run.out + first * work.out_stride + (bits ? panel.first / 8 : element * panel.first);
  work.channels = panel.channels;
  work.halves = panel.halves;
  work.clamps = conv.clamps;
  work.multiplier = conv.multiplier.data() + (bits ? 0 : panel.slot);
  work.bias = conv.bias.data() + (bits ? 0 : panel.slot);
  work.thresholds = conv.thresholds.data() + (bits ? panel.slot : 0);
  work.clamp_min = p.clamp_min;
  work.clamp_max = p.clamp_max;
  conv.kernels->convolve[static_cast<int>(p.output)](work);
}

}  // namespace

// --- what ops.h promises ----------------------------------------------------------------------------

Conv* make_conv(const Kernels* kernels, const ConvParams& params) {
  void* memory = std::malloc(sizeof(Conv));
  if (!memory) return nullptr;
  Conv* conv = new (memory) Conv;
  conv->params = params;
  conv->words = words_of(params.channels);
  conv->group_words = words_of(params.channels / params.groups);
  conv->filter_words = conv->group_words * params.window.filter_height * params.window.filter_width;
  conv->kernels = conv->filter_words <= kernels->most_words ? kernels : portable_kernels();
  if (pack(*conv) && (!params.correction_multiplier || sum_taps(*conv)) && resize_conv(conv, params.window)) return conv;
  free_conv(conv);
  return nullptr;
}

bool resize_conv(Conv* conv, const Window& window) {
  conv->params.window = window;
  const Window& w = window;
  const int64_t rows = (static_cast<int64_t>(w.out_height) - 1) * w.stride_height +
                       (static_cast<int64_t>(w.filter_height) - 1) * w.dilation_height + 1;
  const int64_t columns = (static_cast<int64_t>(w.out_width) - 1) * w.stride_width +
                          (static_cast<int64_t>(w.filter_width) - 1) * w.dilation_width + 1;
  conv->padded = conv->kernels->copies > 1 || w.pad_top || w.pad_left || rows > w.height || columns > w.width;
  if (rows > INT32_MAX || columns > INT32_MAX || rows * columns > UINT32_MAX / conv->words) return false;
  conv->rows = static_cast<int>(rows);
  conv->row_pixels = conv->padded ? static_cast<int>(columns) : w.width;
  const size_t words = static_cast<size_t>(rows * columns) * conv->words * conv->kernels->copies;
  if (conv->padded && !conv->image.resize(words)) return false;
  return list_segments(*conv) && list_offsets(*conv) &&
         (!conv->corrects || correct(*conv));
}

void run_conv(Conv* conv, const uint32_t* in, void* out, Workers* workers) {
  const ConvParams& p = conv->params;
  const Window& w = p.window;
  const int pixels = w.out_height * w.out_width, threads = count_threads(workers);
  const int64_t in_words = static_cast<int64_t>(w.height) * w.width * conv->words;
  const int64_t out_bytes = static_cast<int64_t>(pixels) * (p.output == Output::kInt8    ? p.filters
                                                            : p.output == Output::kFloat ? 4 * static_cast<int64_t>(p.filters)
                                                                                         : 4 * words_of(p.filters));
  const int panels = static_cast<int>(conv->panels.size());
  int chunk = pixels;
  if (threads > 1) {
    const int wanted = kChunksPerThread * threads / panels + 1;
    chunk = up((pixels + wanted - 1) / wanted, kChunkPixels);
  }
  Run run = {conv, in, static_cast<char*>(out), chunk, (pixels + chunk - 1) / chunk};
  for (int b = 0; b < w.batch; ++b, run.in += in_words, run.out += out_bytes) {
    if (conv->padded) share(conv->image.size() < kFewWords ? nullptr : workers, conv->rows, pad_row, &run);
    share(workers, panels * run.chunks, convolve_chunk, &run);
    if (conv->corrects) add_corrections(*conv, reinterpret_cast<float*>(run.out));
  }
}

void free_conv(Conv* conv) {
  if (!conv) return;
  conv->~Conv();
  std::free(conv);
}

}  // namespace dmsflow
