// Numbers too small for a float's full precision count as zero, as in the official interpreter: it runs
// everything so, and they would cost time. Newer runtimes leave this to whoever wants it.
#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace dmsflow {

// As long as it lives, for its thread.
class NoDenormals {
 public:
#if defined(__SSE__)
  NoDenormals() : before_(_mm_getcsr()) { _mm_setcsr(static_cast<unsigned>(before_) | 0x8040); }
  ~NoDenormals() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__)
  NoDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    __asm__ volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t{1} << 24)));
  }
  ~NoDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }
#else
  NoDenormals() = default;
#endif
  NoDenormals(const NoDenormals&) = delete;
  NoDenormals& operator=(const NoDenormals&) = delete;

 private:
  uint64_t before_ = 0;
};

}  // namespace dmsflow
