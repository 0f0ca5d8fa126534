// The loop over register tiles that all kernels share. To be included by one kernels_*.cc only, after which
// it has no name outside: each is compiled for other instructions.
//
// An instruction set `I` offers, with L lanes:
//   Word, Counter, Total    vectors: of words, of what is counted from flush to flush, of what was flushed
//   kTile                   pixels in a full tile
//   kFlush                  whether counters must be flushed: Total then adds up Counters
//   spread(p)               a word of the image in all lanes;  weights(p): the next L words of a panel
//   differ(x, w)            how many bits differ, in whatever parts a Counter has;  add(c, d): c + d
//   dot(c, x, w)            with kDots instead of these two: c + the products of numbers in x and w; counting begins
//                           with start(p), the next L thresholds, and what is below 0 at the end is a bit 1
//   count_words<kCount>(...)    with kWords > 1 instead of all these, as count_word: kWords words at once, and then fewer
//   flush(total, c)         total + c
//   store_bits(out, counted, work), store_numbers<kOutput, kClamps, kFull>(out, counted, work)    put out a tile;
//                           kFull: all channels of the panel
#pragma once

#include "kernels.h"

namespace {

using dmsflow::Output;
using dmsflow::Segment;
using dmsflow::Work;

// Of M windows with N vectors of filters. Every loop over these is unrolled: else they would lie in memory.
template <class I, int M, int N>
struct Counted {
  typename I::Counter counter[M][N];
  typename I::Total total[M][N];
};

template <class I, int M, int N>
__attribute__((always_inline)) inline void count_word(typename I::Counter (&counter)[M][N],
                                                      const uint32_t* const (&window)[M], uint64_t at,
                                                      const uint32_t* panel) {
  typename I::Word weights[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) weights[n] = I::weights(panel + n * I::kLanes);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const typename I::Word word = I::spread(window[m] + at);
    if constexpr (I::kDots) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) counter[m][n] = I::dot(counter[m][n], word, weights[n]);
    } else {
      typename I::Word differ[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) differ[n] = I::differ(word, weights[n]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) counter[m][n] = I::add(counter[m][n], differ[n]);
    }
  }
}

// The last words of a segment, fewer than kWords.
template <class I, int M, int N, int kWords>
__attribute__((always_inline)) inline void count_last(typename I::Counter (&counter)[M][N],
                                                      const uint32_t* const (&window)[M], uint64_t at,
                                                      const uint32_t* panel, uint64_t left) {
  if (left == kWords - 1)
    I::template count_words<kWords - 1>(counter, window, at, panel);
  else if constexpr (kWords > 2)
    count_last<I, M, N, kWords - 1>(counter, window, at, panel, left);
}

template <class I, int M, int N>
__attribute__((always_inline)) inline Counted<I, M, N> count_tile(const Work& work, const uint32_t* offsets) {
  const uint32_t* window[M];
  Counted<I, M, N> counted;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    window[m] = work.image + static_cast<uint64_t>(offsets[m]) * I::kCopies;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      if constexpr (I::kDots)
        counted.counter[m][n] = I::start(work.thresholds + n * I::kLanes);
      else
        counted.counter[m][n] = I::no_counter();
      counted.total[m][n] = I::no_total();
    }
  }
  const uint32_t* panel = work.panel;
  const Segment* const end = work.segments + work.segment_count;
  for (const Segment* segment = work.segments; segment != end; ++segment) {
    uint64_t at = static_cast<uint64_t>(segment->offset) * I::kCopies;
    const uint64_t stop = at + static_cast<uint64_t>(segment->words) * I::kCopies;
    if constexpr (I::kWords > 1) {
      for (; stop - at >= I::kWords; at += I::kWords, panel += I::kWords * N * I::kLanes)
        I::template count_words<I::kWords>(counted.counter, window, at, panel);
      if (at != stop) count_last<I, M, N, I::kWords>(counted.counter, window, at, panel, stop - at);
      panel += (stop - at) * N * I::kLanes;
    } else {
      for (; at != stop; at += I::kCopies, panel += N * I::kLanes)
        count_word<I, M, N>(counted.counter, window, at, panel);
    }
    if constexpr (I::kFlush)
      if (segment->flush) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) {
            counted.total[m][n] = I::flush(counted.total[m][n], counted.counter[m][n]);
            counted.counter[m][n] = I::no_counter();
          }
      }
  }
  return counted;
}

template <class I, int M, int N, Output kOutput>
__attribute__((always_inline)) inline void tile(const Work& work, const uint32_t* offsets, char* out) {
  const Counted<I, M, N> counted = count_tile<I, M, N>(work, offsets);
  if constexpr (kOutput == Output::kBits)
    I::store_bits(out, counted, work);
  else if (!work.clamps && work.channels >= N * I::kLanes)  // once for a tile: a branch for each vector costs much more
    I::template store_numbers<kOutput, false, true>(out, counted, work);
  else if (!work.clamps)
    I::template store_numbers<kOutput, false, false>(out, counted, work);
  else
    I::template store_numbers<kOutput, true, false>(out, counted, work);
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

// Stores the first `channels` of some values.
template <class T>
inline void store_some(T* out, const T* values, int channels) {
  for (int c = 0; c < channels; ++c) out[c] = values[c];
}

// Bits of rows of numbers: convert(in, out) makes those of kStep numbers. `filler` makes bit 0.
template <int kStep, class T, class Convert>
inline void quantize_rows(const T* in, int64_t pixels, int channels, T filler, uint32_t* out, Convert convert) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, in += channels) {
    int c = 0;
    for (; c + kStep <= channels; c += kStep, out += kStep / 32) convert(in + c, out);
    if (c == channels) continue;
    T last[kStep];
    uint32_t bits[kStep / 32];
    for (T& number : last) number = filler;
    store_some(last, in + c, channels - c);
    convert(last, bits);
    const int words = (channels - c + 31) / 32;
    store_some(out, bits, words);
    out += words;
  }
}

}  // namespace
