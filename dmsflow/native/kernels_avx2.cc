// Kernels for x86-64 with AVX2: 8 channels to the vector. It has no popcount: nibbles are looked up, and bytes
// counted until they could overflow.

#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "tiles.h"

namespace {

struct Avx2 {
  static constexpr int kLanes = 8, kVectors = 2, kTile = 4, kCopies = 1, kWords = 1;
  static constexpr bool kFlush = true, kDots = false;

  using Word = __m256i;
  using Counter = __m256i;  // bytes
  using Total = __m256i;    // by lane

  static Counter no_counter() { return _mm256_setzero_si256(); }
  static Total no_total() { return _mm256_setzero_si256(); }
  static Word spread(const uint32_t* p) { return _mm256_set1_epi32(static_cast<int>(*p)); }
  static Word weights(const uint32_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

  static Word differ(Word x, Word w) {
    const __m256i nibble = _mm256_set1_epi8(0x0F);
    const __m256i ones = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                          0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i bits = _mm256_xor_si256(x, w);
    const __m256i low = _mm256_and_si256(bits, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble);
    return _mm256_add_epi8(_mm256_shuffle_epi8(ones, low), _mm256_shuffle_epi8(ones, high));
  }

  static Counter add(Counter c, Word differ) { return _mm256_add_epi8(c, differ); }

  static Total flush(Total total, Counter c) {
    const __m256i pairs = _mm256_maddubs_epi16(c, _mm256_set1_epi8(1));
    return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }

  template <bool kClamps>
  static __m256 transform(const Work& work, __m256i count, int channel) {
    if constexpr (kClamps) {
      count = _mm256_min_epi32(_mm256_slli_epi32(count, 1), _mm256_set1_epi32(work.clamp_max));
      count = _mm256_max_epi32(count, _mm256_set1_epi32(work.clamp_min));
    }
    const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(count), _mm256_loadu_ps(work.multiplier + channel));
    return _mm256_add_ps(scaled, _mm256_loadu_ps(work.bias + channel));
  }

  static void store_floats(float* out, __m256 y, int channels) {
    if (channels >= kLanes) {
      _mm256_storeu_ps(out, y);
      return;
    }
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(out, _mm256_cmpgt_epi32(_mm256_set1_epi32(channels), lane), y);
  }

  static void store_bytes(int8_t* out, __m256 y, int channels) {
    y = _mm256_min_ps(_mm256_max_ps(y, _mm256_set1_ps(-128.0f)), _mm256_set1_ps(127.0f));
    // Half away from zero: the largest number below a half carries every tie over, and nothing below one.
    const __m256 sign = _mm256_and_ps(y, _mm256_set1_ps(-0.0f));
    const __m256i rounded = _mm256_cvttps_epi32(_mm256_add_ps(y, _mm256_or_ps(sign, _mm256_set1_ps(0.49999997f))));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    alignas(16) int8_t values[16];
    if (channels >= kLanes) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(out), bytes);
    } else {
      _mm_store_si128(reinterpret_cast<__m128i*>(values), bytes);
      store_some(out, values, channels);
    }
  }

  static uint32_t below_zero(__m256i lanes) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
  }

  template <int M, int N>
  static void store_bits(char* out, const Counted<Avx2, M, N>& counted, const Work& work) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m, out += work.out_stride) {
      uint32_t bits = 0;
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const __m256i least = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(work.thresholds + n * kLanes));
        const __m256i count = flush(counted.total[m][n], counted.counter[m][n]);
        bits |= below_zero(_mm256_cmpgt_epi32(count, least)) << (n * kLanes);
      }
      reinterpret_cast<uint16_t*>(out)[0] = static_cast<uint16_t>(bits);
      if (work.halves > 1) reinterpret_cast<uint16_t*>(out)[1] = 0;
    }
  }

  template <Output kOutput, bool kClamps, bool kFull, int M, int N>
  __attribute__((always_inline)) static void store_numbers(char* out, const Counted<Avx2, M, N>& counted,
                                                           const Work& work) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m, out += work.out_stride)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const int channel = n * kLanes, channels = kFull ? kLanes : work.channels - channel;
        const __m256 y = transform<kClamps>(work, flush(counted.total[m][n], counted.counter[m][n]), channel);
        if constexpr (kOutput == Output::kFloat)
          store_floats(reinterpret_cast<float*>(out) + channel, y, channels);
        else
          store_bytes(reinterpret_cast<int8_t*>(out) + channel, y, channels);
      }
  }
};

// Pairs of 16-bit numbers: products of bytes with a sign and without one would saturate.
struct Avx2Dot : Avx2 {
  static constexpr bool kFlush = false, kDots = true;

  struct Total {};

  static Total no_total() { return {}; }
  static Total flush(Total total, Counter) { return total; }
  static Counter start(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Counter dot(Counter c, Word x, Word w) { return _mm256_add_epi32(c, _mm256_madd_epi16(x, w)); }

  template <int M, int N>
  static void store_bits(char* out, const Counted<Avx2Dot, M, N>& counted, const Work& work) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m, out += work.out_stride) {
      uint32_t bits = 0;
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) bits |= below_zero(counted.counter[m][n]) << (n * kLanes);
      reinterpret_cast<uint16_t*>(out)[0] = static_cast<uint16_t>(bits);
      if (work.halves > 1) reinterpret_cast<uint16_t*>(out)[1] = 0;
    }
  }

  template <Output, bool, bool kFull, int M, int N>
  __attribute__((always_inline)) static void store_numbers(char* out, const Counted<Avx2Dot, M, N>& counted,
                                                           const Work& work) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m, out += work.out_stride)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
        store_floats(reinterpret_cast<float*>(out) + n * kLanes, _mm256_cvtepi32_ps(counted.counter[m][n]),
                     kFull ? kLanes : work.channels - n * kLanes);
  }
};

uint32_t negative(const float* in) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(in), _mm256_setzero_ps(), _CMP_LT_OQ)));
}

void quantize(const float* in, int64_t pixels, int channels, uint32_t* out) {
  quantize_rows<32>(in, pixels, channels, 0.0f, out, [](const float* from, uint32_t* to) {
    *to = negative(from) | negative(from + 8) << 8 | negative(from + 16) << 16 | negative(from + 24) << 24;
  });
}

void quantize_bytes(const int8_t* in, int64_t pixels, int channels, int8_t zero_point, uint32_t* out) {
  const __m256i zero = _mm256_set1_epi8(zero_point);
  quantize_rows<32>(in, pixels, channels, int8_t{INT8_MAX}, out, [zero](const int8_t* from, uint32_t* to) {
    const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    *to = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpgt_epi8(zero, numbers)));
  });
}

const dmsflow::Kernels kKernels = {
    "avx2",
    Avx2::kLanes,
    Avx2::kVectors,
    Avx2::kCopies,
    31,
    INT32_MAX,
    {convolve<Avx2, Output::kFloat>, convolve<Avx2, Output::kInt8>, convolve<Avx2, Output::kBits>},
    {Avx2Dot::kLanes, Avx2Dot::kVectors, 2, false, convolve<Avx2Dot, Output::kBits>, convolve<Avx2Dot, Output::kFloat>},
    quantize,
    quantize_bytes,
};

}  // namespace

const dmsflow::Kernels* dmsflow::avx2_kernels() { return __builtin_cpu_supports("avx2") ? &kKernels : nullptr; }

#else

const dmsflow::Kernels* dmsflow::avx2_kernels() { return nullptr; }

#endif
