// How fast this processor counts bits and multiplies bytes, if nothing else is to be done: all operands in registers.
#include <stdint.h>

#if defined(__AVX512VPOPCNTDQ__) && defined(__AVX512VNNI__)
#include <immintrin.h>
enum { kVectors = 12 };  // sums at once: as many as the kernels have, enough to hide the latency of each instruction

// XNOR and popcount: products of one bit.
int64_t count_bits(int64_t rounds) {
  __m512i sums[kVectors], x = _mm512_set1_epi32(0x1234567), weights[4];
  for (int i = 0; i < kVectors; ++i) sums[i] = _mm512_setzero_si512();
  for (int i = 0; i < 4; ++i) weights[i] = _mm512_set1_epi32(i * 0x7654321);
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
    for (int i = 0; i < kVectors; ++i) {
      if (i % 4 == 0) __asm__ volatile("" : "+v"(x));  // another pixel: nothing may be computed once for all
      sums[i] = _mm512_add_epi32(sums[i], _mm512_popcnt_epi32(_mm512_xor_si512(x, weights[i % 4])));
    }
  for (int i = 0; i < kVectors; ++i) __asm__ volatile("" : : "v"(sums[i]));
  return rounds * kVectors * 512;
}

// VNNI: products of uint8 and int8.
int64_t multiply_bytes(int64_t rounds) {
  __m512i sums[kVectors], x = _mm512_set1_epi8(3), weights[4];
  for (int i = 0; i < kVectors; ++i) sums[i] = _mm512_setzero_si512();
  for (int i = 0; i < 4; ++i) weights[i] = _mm512_set1_epi8((char)(i - 2));
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 12
    for (int i = 0; i < kVectors; ++i) {
      if (i % 4 == 0) __asm__ volatile("" : "+v"(x));
      sums[i] = _mm512_dpbusd_epi32(sums[i], x, weights[i % 4]);
    }
  for (int i = 0; i < kVectors; ++i) __asm__ volatile("" : : "v"(sums[i]));
  return rounds * kVectors * 64;
}
#else
int64_t count_bits(int64_t rounds) { return 0 * rounds; }
int64_t multiply_bytes(int64_t rounds) { return 0 * rounds; }
#endif
