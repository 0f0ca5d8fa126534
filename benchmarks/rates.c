// How fast this processor counts bits and multiplies bytes, if nothing else is to be done: all operands in registers.
#include <stdint.h>

#if defined(__AVX512VPOPCNTDQ__) && defined(__AVX512VNNI__)
#include <immintrin.h>
enum { kVectors = 12 };  // sums at once: as many as the kernels have, enough to hide the latency of each instruction

// XNOR and popcount: products of one bit.
int64_t count_bits(int64_t rounds) {
  __m512i sums[kVectors], x = _mm512_set1_epi32(0x1234567), weights[4];
  for (int i = 0; i < kVectors; ++i) sums[i] = _mm512_setzero_si512();
  for (int i = 0; i < 4; ++i) weights[i] = _mm512_set1_epi32((i + 1) * 0x7654321);
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
#elif defined(__AVX2__)
#include <immintrin.h>
enum { kVectors = 4 };  // with more, GCC keeps some in memory

// XOR and popcount, which AVX2 has by looking up nibbles; bytes are added, and what they overflow is not counted here.
int64_t count_bits(int64_t rounds) {
  const __m256i nibble = _mm256_set1_epi8(0x0F);
  const __m256i ones = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  __m256i sums[kVectors], x = _mm256_set1_epi32(0x1234567), weights[2];
  for (int i = 0; i < kVectors; ++i) sums[i] = _mm256_setzero_si256();
  for (int i = 0; i < 2; ++i) weights[i] = _mm256_set1_epi32((i + 1) * 0x7654321);
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      if (i % 2 == 0) __asm__ volatile("" : "+x"(x));  // another pixel: nothing may be computed once for all
      const __m256i bits = _mm256_xor_si256(x, weights[i % 2]), low = _mm256_and_si256(bits, nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble);
      sums[i] = _mm256_add_epi8(sums[i], _mm256_shuffle_epi8(ones, low));
      sums[i] = _mm256_add_epi8(sums[i], _mm256_shuffle_epi8(ones, high));
    }
  for (int i = 0; i < kVectors; ++i) __asm__ volatile("" : : "x"(sums[i]));
  return rounds * kVectors * 256;
}

// Products of 16-bit numbers, since those of uint8 and int8 would saturate.
int64_t multiply_bytes(int64_t rounds) {
  __m256i sums[kVectors], x = _mm256_set1_epi16(3), weights[2];
  for (int i = 0; i < kVectors; ++i) sums[i] = _mm256_setzero_si256();
  for (int i = 0; i < 2; ++i) weights[i] = _mm256_set1_epi16((short)(i - 2));
  for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      if (i % 2 == 0) __asm__ volatile("" : "+x"(x));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(x, weights[i % 2]));
    }
  for (int i = 0; i < kVectors; ++i) __asm__ volatile("" : : "x"(sums[i]));
  return rounds * kVectors * 16;
}
#else
int64_t count_bits(int64_t rounds) { return 0 * rounds; }
int64_t multiply_bytes(int64_t rounds) { return 0 * rounds; }
#endif
