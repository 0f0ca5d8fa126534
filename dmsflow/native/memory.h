// Memory without the C++ runtime: the library links against libc alone (see CMakeLists.txt).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace dmsflow {

constexpr size_t kCacheLine = 64;

// An array on cache-line boundaries, moved nowhere and copied never. Its elements must be plain data.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // Room for `size` elements, all zero; false: there is no such room, and the buffer is empty.
  bool resize(size_t size) {
    if (size == size_ && data_) {
      std::memset(data_, 0, size * sizeof(T));
      return true;
    }
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
    if (size > (SIZE_MAX - kCacheLine) / sizeof(T)) return false;
    const size_t bytes = (size * sizeof(T) + kCacheLine) / kCacheLine * kCacheLine;
    void* memory = nullptr;
    if (posix_memalign(&memory, kCacheLine, bytes) != 0) return false;
    data_ = static_cast<T*>(memory);
    std::memset(memory, 0, bytes);
    size_ = size;
    return true;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace dmsflow
