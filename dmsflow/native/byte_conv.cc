// Convolutions of bytes whose sums become bits or floats: weights packed once into panels, the image padded once a run, windows
// laid out side by side for some pixels at a time, then counted panel by panel as those of bits (see kernels.h).

#include <cstring>
#include <new>

#include "kernels.h"
#include "memory.h"
#include "ops.h"
#include "panels.h"

namespace dmsflow {

namespace {

constexpr size_t kPiece = 16;         // bytes that are copied at once
constexpr int kLaidOut = 16384;       // bytes of windows at a time, on the stack of a thread: half of a small L1 cache
constexpr int kTilePixels = 12;       // a multiple of all tiles
constexpr int kMostLaidOut = 240;     // pixels
constexpr size_t kFewBytes = 131072;  // of an image, that are copied sooner than a thread is woken
static_assert(kTilePixels * kMostByteWindow <= kLaidOut, "a tile's windows are laid out at once");

}  // namespace

class ByteConv {
 public:
  ByteParams params;  // its pointers are not used after make_byte_conv
  const Kernels* kernels = nullptr;
  Segment window = {};  // of words
  Buffer<Panel> panels;
  Buffer<uint32_t> weights;
  Buffer<int32_t> thresholds;
  Buffer<uint32_t> offsets;  // of windows that are laid out
  // By image size:
  int rows = 0, row_numbers = 0;  // of the padded image
  Buffer<uint8_t> image;
};

namespace {

void pack_filter(ByteConv& conv, const Panel& panel, int c) {
  const ByteParams& p = conv.params;
  const int numbers = p.window.filter_height * p.window.filter_width * p.channels, size = conv.kernels->bytes.size;
  const int8_t* filter = p.filter + static_cast<size_t>(panel.first + c) * numbers;
  auto* to = reinterpret_cast<char*>(conv.weights.data() + panel.weights + c);
  const size_t word = 4 * static_cast<size_t>(panel.vectors) * conv.kernels->bytes.lanes;
  int32_t sum = 0;
  for (int i = 0; i < numbers; ++i) {
    const auto weight = static_cast<int16_t>(filter[i]);
    sum += weight;
    std::memcpy(to + i * size / 4 * word + i * size % 4, &weight, static_cast<size_t>(size));  // its low byte first
  }
  const int offset = p.zero_point + (conv.kernels->bytes.is_unsigned ? 128 : 0);
  conv.thresholds[panel.slot + static_cast<size_t>(c)] = (p.bias ? p.bias[panel.first + c] : 0) - offset * sum;
}

bool pack(ByteConv& conv) {
  const ByteKernels& k = conv.kernels->bytes;
  const Window& w = conv.params.window;
  const int words = (w.filter_height * w.filter_width * conv.params.channels * k.size + 3) / 4;
  conv.window = {0, static_cast<uint32_t>(words), false};
  size_t weights, slots;
  if (!list_panels(k.lanes, k.vectors, conv.params.filters, 1, words, conv.panels, weights, slots)) return false;
  const int most = kLaidOut / (4 * words) / kTilePixels * kTilePixels;
  if (!conv.weights.resize(weights) || !conv.thresholds.resize(slots) ||
      !conv.offsets.resize(static_cast<size_t>(most < kMostLaidOut ? most : kMostLaidOut)))
    return false;
  for (size_t i = 0; i < conv.offsets.size(); ++i) conv.offsets[i] = static_cast<uint32_t>(i * conv.window.words);
  for (size_t i = 0; i < conv.panels.size(); ++i)
    for (int c = 0; c < conv.panels[i].channels; ++c) pack_filter(conv, conv.panels[i], c);
  return true;
}

int64_t pixel_bytes(const ByteParams& params) {
  return 4 * static_cast<int64_t>(params.floats ? params.filters : words_of(params.filters));
}

struct Run {
  ByteConv* conv;
  const uint8_t* in;  // one image
  char* out;
  int chunk;  // pixels
};

// Row `index` of the image, into the padded one.
void copy_row(void* context, int index) {
  const Run& run = *static_cast<Run*>(context);
  ByteConv& conv = *run.conv;
  const ByteParams& p = conv.params;
  const Window& w = p.window;
  const int room = conv.row_numbers - w.pad_left * p.channels, row = w.width * p.channels, size = conv.kernels->bytes.size;
  if (index + w.pad_top >= conv.rows) return;
  const uint8_t* from = run.in + static_cast<size_t>(index) * row;
  const int count = row < room ? row : room;
  uint8_t* to = conv.image.data() + (static_cast<size_t>(index + w.pad_top) * conv.row_numbers +
                                     static_cast<size_t>(w.pad_left) * p.channels) * size;
  const uint8_t flip = p.is_unsigned != conv.kernels->bytes.is_unsigned ? 0x80 : 0;
  if (size == 1)
    for (int i = 0; i < count; ++i) to[i] = from[i] ^ flip;
  else
    for (int i = 0; i < count; ++i) reinterpret_cast<int16_t*>(to)[i] = static_cast<int8_t>(from[i] ^ flip);
}

// The windows of `count` pixels from `first` on, each in whole words. What is copied too much belongs to the next, or
// meets weights that are 0.
template <size_t kPieces>  // in a row of a window; 0: any number
void lay_out(const ByteConv& conv, int first, int count, uint8_t* to) {
  const Window& w = conv.params.window;
  const size_t size = static_cast<size_t>(conv.kernels->bytes.size), row = conv.row_numbers * size;
  const size_t run = static_cast<size_t>(w.filter_width) * conv.params.channels * size;
  const size_t pieces = kPieces ? kPieces : (run + kPiece - 1) / kPiece;
  const size_t step = static_cast<size_t>(w.stride_width) * conv.params.channels * size;
  int y = first / w.out_width, x = first % w.out_width;
  for (int i = 0; i < count; ++i, to += 4 * conv.window.words) {
    const uint8_t* from = conv.image.data() + static_cast<size_t>(y) * w.stride_height * row + x * step;
    uint8_t* at = to;
    for (int tap = 0; tap < w.filter_height; ++tap, from += row, at += run)
      for (size_t piece = 0; piece < pieces; ++piece) std::memcpy(at + kPiece * piece, from + kPiece * piece, kPiece);
    if (++x == w.out_width) x = 0, ++y;
  }
}

void lay_out_any(const ByteConv& conv, int first, int count, uint8_t* to) {
  const int run = conv.params.window.filter_width * conv.params.channels * conv.kernels->bytes.size;
  const auto kPieceSize = static_cast<int>(kPiece);
  if (run <= kPieceSize)
    lay_out<1>(conv, first, count, to);
  else if (run <= 2 * kPieceSize)
    lay_out<2>(conv, first, count, to);
  else
    lay_out<0>(conv, first, count, to);
}

void convolve_chunk(void* context, int index) {
  const Run& run = *static_cast<Run*>(context);
  const ByteConv& conv = *run.conv;
  const Window& w = conv.params.window;
  alignas(kCacheLine) uint8_t windows[kLaidOut + kMostByteWindow + kPiece];
  const int pixels = w.out_height * w.out_width, begin = index * run.chunk;
  const int end = pixels - begin < run.chunk ? pixels : begin + run.chunk, most = static_cast<int>(conv.offsets.size());
  Work work = {};
  work.image = reinterpret_cast<const uint32_t*>(windows);
  work.offsets = conv.offsets.data();
  work.segments = &conv.window;
  work.segment_count = 1;
  work.out_stride = pixel_bytes(conv.params);
  for (int first = begin; first < end; first += work.pixels) {
    work.pixels = end - first < most ? end - first : most;
    lay_out_any(conv, first, work.pixels, windows);
    for (size_t i = 0; i < conv.panels.size(); ++i) {
      const Panel& panel = conv.panels[i];
      work.panel = conv.weights.data() + panel.weights;
      work.vectors = panel.vectors;
      work.out = run.out + first * work.out_stride + (conv.params.floats ? 4 * panel.first : panel.first / 8);
      work.channels = panel.channels;
      work.halves = panel.halves;
      work.thresholds = conv.thresholds.data() + panel.slot;
      (conv.params.floats ? conv.kernels->bytes.convolve_floats : conv.kernels->bytes.convolve)(work);
    }
  }
}

}  // namespace

// --- what ops.h promises ----------------------------------------------------------------------------

ByteConv* make_byte_conv(const Kernels* kernels, const ByteParams& params) {
  void* memory = std::malloc(sizeof(ByteConv));
  if (!memory) return nullptr;
  ByteConv* conv = new (memory) ByteConv;
  conv->params = params;
  conv->kernels = kernels;
  if (pack(*conv) && resize_byte_conv(conv, params.window)) return conv;
  free_byte_conv(conv);
  return nullptr;
}

bool resize_byte_conv(ByteConv* conv, const Window& window) {
  const Window& w = conv->params.window = window;
  const ByteParams& p = conv->params;
  const int64_t rows = (static_cast<int64_t>(w.out_height) - 1) * w.stride_height + w.filter_height;
  const int64_t columns = (static_cast<int64_t>(w.out_width) - 1) * w.stride_width + w.filter_width;
  if (rows > INT32_MAX || columns > INT32_MAX / p.channels || rows * columns > INT32_MAX / p.channels) return false;
  conv->rows = static_cast<int>(rows);
  conv->row_numbers = static_cast<int>(columns) * p.channels;
  const int size = conv->kernels->bytes.size;
  const size_t count = static_cast<size_t>(rows) * conv->row_numbers;
  if (!conv->image.resize(count * size + kMostByteWindow + kPiece)) return false;
  const auto fill = static_cast<int16_t>(p.fill + (conv->kernels->bytes.is_unsigned ? 128 : 0));
  if (size == 1)
    std::memset(conv->image.data(), fill, count);
  else
    for (size_t i = 0; i < count; ++i) reinterpret_cast<int16_t*>(conv->image.data())[i] = fill;
  return true;
}

void run_byte_conv(ByteConv* conv, const void* in, void* out, Workers* workers) {
  const ByteParams& p = conv->params;
  const Window& w = p.window;
  const int pixels = w.out_height * w.out_width, threads = count_threads(workers);
  const int chunk = threads > 1 ? up(pixels / (kChunksPerThread * threads) + 1, kTilePixels) : pixels;
  Run run = {conv, static_cast<const uint8_t*>(in), static_cast<char*>(out), chunk};
  const int64_t in_bytes = static_cast<int64_t>(w.height) * w.width * p.channels;
  const int64_t out_bytes = pixels * pixel_bytes(p);
  for (int b = 0; b < w.batch; ++b, run.in += in_bytes, run.out += out_bytes) {
    share(conv->image.size() < kFewBytes ? nullptr : workers, w.height, copy_row, &run);
    share(workers, (pixels + chunk - 1) / chunk, convolve_chunk, &run);
  }
}

void free_byte_conv(ByteConv* conv) {
  if (!conv) return;
  conv->~ByteConv();
  std::free(conv);
}

}  // namespace dmsflow
