// The loop over register tiles that all kernels share. To be included by one kernels_*.cc only, after which
// it has no name outside: each is compiled for other instructions.
//
// An instruction set `I` offers, with L lanes:
//   Word, Counter, Total    vectors: of words, of what is counted from flush to flush, of L counts
//   kTile                   pixels in a full tile
//   kFlush                  whether counters must be flushed: Total then adds up Counters
//   spread(p)               a word of the image in all lanes;  weights(p): the next L words of a panel
//   count(c, x, w)          c + popcount(x ^ w)
//   flush(total, c)         total + c;   finish(total): L counts as Counts
//   store_float / store_int8(out, counts, work, channel)   store_bits<N>(out, counts[N], work)
#pragma once

#include "kernels.h"

namespace {

using dmsflow::Output;
using dmsflow::Segment;
using dmsflow::Work;

template <class I, int M, int N>
struct Counts {
  typename I::Counts at[M][N];
};

// Counts of M windows with N vectors of filters.
template <class I, int M, int N>
__attribute__((always_inline)) inline Counts<I, M, N> count_tile(const Work& work, const uint32_t* offsets) {
  const uint32_t* window[M];
  for (int m = 0; m < M; ++m) window[m] = work.image + static_cast<uint64_t>(offsets[m]) * I::kCopies;
  const uint32_t* panel = work.panel;
  typename I::Counter counter[M][N];
  typename I::Total total[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      counter[m][n] = I::no_counter();
      total[m][n] = I::no_total();
    }
  const Segment* const end = work.segments + work.segment_count;
  for (const Segment* segment = work.segments; segment != end; ++segment) {
    uint64_t at = static_cast<uint64_t>(segment->offset) * I::kCopies;
    const uint64_t stop = at + static_cast<uint64_t>(segment->words) * I::kCopies;
    for (; at != stop; at += I::kCopies, panel += N * I::kLanes) {
      typename I::Word weights[N];
      for (int n = 0; n < N; ++n) weights[n] = I::weights(panel + n * I::kLanes);
      for (int m = 0; m < M; ++m) {
        const typename I::Word word = I::spread(window[m] + at);
        for (int n = 0; n < N; ++n) counter[m][n] = I::count(counter[m][n], word, weights[n]);
      }
    }
    if (I::kFlush && segment->flush) {
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) {
          total[m][n] = I::flush(total[m][n], counter[m][n]);
          counter[m][n] = I::no_counter();
        }
    }
  }
  Counts<I, M, N> counts;
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) counts.at[m][n] = I::finish(total[m][n], counter[m][n]);
  return counts;
}

template <class I, int M, int N, Output kOutput>
__attribute__((always_inline)) inline void tile(const Work& work, const uint32_t* offsets, char* out) {
  const Counts<I, M, N> counts = count_tile<I, M, N>(work, offsets);
  for (int m = 0; m < M; ++m, out += work.out_stride) {
    if constexpr (kOutput == Output::kBits) {
      I::template store_bits<N>(reinterpret_cast<uint16_t*>(out), counts.at[m], work);
    } else {
      for (int n = 0; n < N; ++n) {
        if constexpr (kOutput == Output::kFloat)
          I::store_float(reinterpret_cast<float*>(out) + n * I::kLanes, counts.at[m][n], work, n * I::kLanes);
        else
          I::store_int8(reinterpret_cast<int8_t*>(out) + n * I::kLanes, counts.at[m][n], work, n * I::kLanes);
      }
    }
  }
}

// The last tile, of `left` < M + 1 pixels.
template <class I, int M, int N, Output kOutput>
inline void last_tile(const Work& work, const uint32_t* offsets, char* out, int left) {
  if (left == M)
    tile<I, M, N, kOutput>(work, offsets, out);
  else if constexpr (M > 1)
    last_tile<I, M - 1, N, kOutput>(work, offsets, out, left);
}

template <class I, int N, Output kOutput>
void convolve_panel(const Work& work) {
  const uint32_t* offsets = work.offsets;
  char* out = static_cast<char*>(work.out);
  int left = work.pixels;
  for (; left >= I::kTile; left -= I::kTile, offsets += I::kTile, out += I::kTile * work.out_stride)
    tile<I, I::kTile, N, kOutput>(work, offsets, out);
  if constexpr (I::kTile > 1)
    if (left) last_tile<I, I::kTile - 1, N, kOutput>(work, offsets, out, left);
}

template <class I, Output kOutput, int N = I::kVectors>
void convolve(const Work& work) {
  if (work.vectors == N)
    convolve_panel<I, N, kOutput>(work);
  else if constexpr (N > 1)
    convolve<I, kOutput, N - 1>(work);
}

// Stores the first `channels` of L values that lie in `values`.
template <class T>
inline void store_some(T* out, const T* values, int channels) {
  for (int c = 0; c < channels; ++c) out[c] = values[c];
}

}  // namespace
