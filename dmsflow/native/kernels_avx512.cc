// Kernels for x86-64 with AVX-512, VPOPCNTDQ and VNNI: 16 channels to the vector. No processor has the second without
// the third.

#include "kernels.h"

#if defined(__x86_64__)

// GCC's own header makes values that it then warns of.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "tiles.h"

namespace {

struct Avx512 {
  static constexpr int kLanes = 16, kVectors = 4, kTile = 6, kCopies = 1, kWords = 1;
  static constexpr bool kFlush = false, kDots = false;

  struct Total {};
  using Word = __m512i;
  using Counter = __m512i;

  static Counter no_counter() { return _mm512_setzero_si512(); }
  static Total no_total() { return {}; }
  static Word spread(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static Word weights(const uint32_t* p) { return _mm512_load_si512(p); }
  static Word differ(Word x, Word w) { return _mm512_popcnt_epi32(_mm512_xor_si512(x, w)); }
  static Counter add(Counter c, Word differ) { return _mm512_add_epi32(c, differ); }
  static Total flush(Total total, Counter) { return total; }

  // Of the first channels of a vector, those that are put out.
  static __mmask16 put_out(const Work& work, int channel) {
    const int left = work.channels - channel;
    return static_cast<__mmask16>(left >= kLanes ? 0xFFFF : (1u << left) - 1);
  }

  template <bool kClamps>
  static __m512 transform(const Work& work, Counter count, int channel) {
    if constexpr (kClamps) {
      count = _mm512_min_epi32(_mm512_slli_epi32(count, 1), _mm512_set1_epi32(work.clamp_max));
      count = _mm512_max_epi32(count, _mm512_set1_epi32(work.clamp_min));
    }
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(count), _mm512_loadu_ps(work.multiplier + channel));
    return _mm512_add_ps(scaled, _mm512_loadu_ps(work.bias + channel));
  }

  static __m512i round(__m512 y) {
    y = _mm512_min_ps(_mm512_max_ps(y, _mm512_set1_ps(-128.0f)), _mm512_set1_ps(127.0f));
    // Half away from zero: the largest number below a half carries every tie over, and nothing below one.
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(y), _mm512_set1_epi32(INT32_MIN));
    const __m512i half = _mm512_or_si512(sign, _mm512_castps_si512(_mm512_set1_ps(0.49999997f)));
    return _mm512_cvttps_epi32(_mm512_add_ps(y, _mm512_castsi512_ps(half)));
  }

  static uint16_t bits(Counter count, const int32_t* thresholds) {
    return _mm512_cmpgt_epi32_mask(count, _mm512_loadu_si512(thresholds));
  }

  template <class I, int M, int N>
  static void store_bits(char* out, const Counted<I, M, N>& counted, const Work& work) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m, out += work.out_stride) {
      uint16_t* const halves = reinterpret_cast<uint16_t*>(out);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n)
        halves[n] = I::bits(counted.counter[m][n], work.thresholds + n * kLanes);
      if (N < work.halves) halves[N] = 0;
    }
  }

  template <Output kOutput, bool kClamps, bool kFull, int M, int N>
  __attribute__((always_inline)) static void store_numbers(char* out, const Counted<Avx512, M, N>& counted,
                                                           const Work& work) {
    __mmask16 there[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) there[n] = put_out(work, n * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m, out += work.out_stride)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const int channel = n * kLanes;
        const __m512 y = transform<kClamps>(work, counted.counter[m][n], channel);
        if constexpr (kOutput == Output::kFloat && kFull)  // a masked store costs many times as much
          _mm512_storeu_ps(reinterpret_cast<float*>(out) + channel, y);
        else if constexpr (kOutput == Output::kFloat)
          _mm512_mask_storeu_ps(reinterpret_cast<float*>(out) + channel, there[n], y);
        else if constexpr (kFull)
          _mm_storeu_si128(reinterpret_cast<__m128i*>(out + channel), _mm512_cvtsepi32_epi8(round(y)));
        else
          _mm512_mask_cvtsepi32_storeu_epi8(out + channel, there[n], round(y));
      }
  }
};

struct Avx512Dot : Avx512 {
  static constexpr bool kDots = true;

  static Counter start(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Counter dot(Counter c, Word x, Word w) { return _mm512_dpbusd_epi32(c, x, w); }
  static uint16_t bits(Counter sum, const int32_t*) { return _mm512_movepi32_mask(sum); }

  template <Output, bool, bool kFull, int M, int N>
  __attribute__((always_inline)) static void store_numbers(char* out, const Counted<Avx512Dot, M, N>& counted,
                                                           const Work& work) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m, out += work.out_stride)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        float* const to = reinterpret_cast<float*>(out) + n * kLanes;
        const __m512 y = _mm512_cvtepi32_ps(counted.counter[m][n]);
        if constexpr (kFull)
          _mm512_storeu_ps(to, y);
        else
          _mm512_mask_storeu_ps(to, put_out(work, n * kLanes), y);
      }
  }
};

void quantize(const float* in, int64_t pixels, int channels, uint32_t* out) {
  const __m512 zero = _mm512_setzero_ps();
  for (int64_t pixel = 0; pixel < pixels; ++pixel, in += channels) {
    int c = 0;
    for (; c + 32 <= channels; c += 32) {
      const uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(in + c), zero, _CMP_LT_OQ);
      const uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(in + c + 16), zero, _CMP_LT_OQ);
      *out++ = low | high << 16;
    }
    if (c == channels) continue;
    const uint32_t there = (1u << (channels - c)) - 1;
    const __mmask16 there_low = static_cast<__mmask16>(there), there_high = static_cast<__mmask16>(there >> 16);
    const uint32_t low = _mm512_cmp_ps_mask(_mm512_maskz_loadu_ps(there_low, in + c), zero, _CMP_LT_OQ);
    const uint32_t high = _mm512_cmp_ps_mask(_mm512_maskz_loadu_ps(there_high, in + c + 16), zero, _CMP_LT_OQ);
    *out++ = low | high << 16;
  }
}

void quantize_bytes(const int8_t* in, int64_t pixels, int channels, int8_t zero_point, uint32_t* out) {
  const __m512i zero = _mm512_set1_epi8(zero_point);
  quantize_rows<64>(in, pixels, channels, int8_t{INT8_MAX}, out, [zero](const int8_t* from, uint32_t* to) {
    const uint64_t bits = _mm512_cmplt_epi8_mask(_mm512_loadu_si512(from), zero);
    to[0] = static_cast<uint32_t>(bits);
    to[1] = static_cast<uint32_t>(bits >> 32);
  });
}

const dmsflow::Kernels kKernels = {
    "avx512",
    Avx512::kLanes,
    Avx512::kVectors,
    Avx512::kCopies,
    INT32_MAX,
    INT32_MAX,
    {convolve<Avx512, Output::kFloat>, convolve<Avx512, Output::kInt8>, convolve<Avx512, Output::kBits>},
    {Avx512Dot::kLanes, Avx512Dot::kVectors, 1, true, convolve<Avx512Dot, Output::kBits>,
     convolve<Avx512Dot, Output::kFloat>},
    quantize,
    quantize_bytes,
};

}  // namespace

const dmsflow::Kernels* dmsflow::avx512_kernels() {
  const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni");
  return there ? &kKernels : nullptr;
}

#else

const dmsflow::Kernels* dmsflow::avx512_kernels() { return nullptr; }

#endif
