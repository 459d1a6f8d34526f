// Memory that operators keep between calls.
#pragma once

#include <cstddef>
#include <new>

namespace pocketvlm {

// Room for numbers, at a multiple of 64 bytes: tiles and registers are loaded by lines. What it holds is nothing to begin
// with, and lost where it grows.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  // Whether there is room for `count` numbers now.
  bool grow(size_t count) {
    if (count <= size_) return true;
    release();
    data_ = static_cast<T*>(::operator new(count * sizeof(T), kLine, std::nothrow));
    size_ = data_ ? count : 0;
    return data_ != nullptr;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t kLine{64};

  void release() {
    ::operator delete(data_, kLine);
    data_ = nullptr, size_ = 0;
  }

  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pocketvlm
