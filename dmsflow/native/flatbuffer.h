// Reads FlatBuffers that may be damaged: nothing is followed out of the file, whatever it says.
//
// A table begins with the distance back to its layout: the layout's size, the table's size, then for each
// field its place in the table (0: left out). Pointers are distances forward, from where they are written.
// What cannot be read is 0 or empty, and leaves `damaged` set: look at it once, when all is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace dmsflow {

struct File {
  const uint8_t* data = nullptr;
  size_t size = 0;
  bool damaged = false;

  bool holds(size_t position, uint64_t count) {
    const bool held = position <= size && count <= size - position;
    if (!held) damaged = true;
    return held;
  }

  template <typename T>
  T read(size_t position) {
    T value = 0;
    if (holds(position, sizeof value)) std::memcpy(&value, data + position, sizeof value);
    return value;
  }

  size_t follow(size_t position) { return position + read<uint32_t>(position); }
};

// Elements that stand one after the other; tables stand there as pointers.
struct List {
  size_t first;
  uint32_t count;
};

class Table {
 public:
  // An empty one: all its fields are left out.
  explicit Table(File& file) : file_(file) {}

  // The one that the pointer at `position` leads to.
  Table(File& file, size_t position) : file_(file), start_(file.follow(position)) {
    const int64_t layout = static_cast<int64_t>(start_) - file.read<int32_t>(start_);
    if (layout < 0 || static_cast<uint64_t>(layout) > file.size) {
      file.damaged = true;
      return;
    }
    layout_ = static_cast<size_t>(layout);
    layout_size_ = file.read<uint16_t>(layout_);
    size_ = file.read<uint16_t>(layout_ + 2);
    if (!file.holds(layout_, layout_size_) || !file.holds(start_, size_)) layout_size_ = 0;
  }

  bool has(int slot) const { return place(slot) != 0; }

  template <typename T>
  T number(int slot, T otherwise = 0) const {
    const size_t position = place(slot);
    return position ? file_.read<T>(position) : otherwise;
  }

  Table table(int slot) const {
    const size_t position = place(slot);
    return position ? Table(file_, position) : Table(file_);
  }

  // Of elements of `width` bytes.
  List list(int slot, size_t width) const {
    const size_t position = place(slot);
    if (!position) return {};
    const size_t start = file_.follow(position);
    const uint32_t count = file_.read<uint32_t>(start);
    if (!file_.holds(start, 4 + uint64_t{count} * width)) return {};
    return {start + 4, count};
  }

 private:
  // Where a field lies in the file; 0: it is left out.
  size_t place(int slot) const {
    const size_t entry = 4 + 2 * static_cast<size_t>(slot);
    if (entry + 2 > layout_size_) return 0;
    const size_t inside = file_.read<uint16_t>(layout_ + entry);
    if (inside < size_ || inside == 0) return inside ? start_ + inside : 0;
    file_.damaged = true;
    return 0;
  }

  File& file_;
  size_t start_ = 0, layout_ = 0, layout_size_ = 0, size_ = 0;
};

}  // namespace dmsflow
