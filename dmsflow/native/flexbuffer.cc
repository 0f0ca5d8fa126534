// Reads FlexBuffer maps. Every offset is checked before it is followed.
//
// A map is a vector of values and, in front of it, the place and the element size of a vector of keys.
// Both vectors have their length in front; one byte for each value's type stands behind the values.
// Offsets point backwards, from where they are written.
#include "flexbuffer.h"

#include <cstring>

namespace dmsflow {
namespace {

constexpr int kInt = 1, kUint = 2, kIndirectInt = 6, kIndirectUint = 7, kMap = 9, kBool = 26;

struct Bytes {
  const uint8_t* data;
  size_t size;

  bool holds(size_t position, size_t count) const { return position <= size && count <= size - position; }

  // The `width` bytes at `position`, the lowest first.
  bool read(size_t position, size_t width, uint64_t& value) const {
    if (!holds(position, width)) return false;
    value = 0;
    for (size_t i = 0; i < width; ++i) value |= uint64_t{data[position + i]} << (8 * i);
    return true;
  }

  // Where the offset at `position` points to.
  bool follow(size_t position, size_t width, size_t& target) const {
    uint64_t offset;
    if (!read(position, width, offset) || offset > position) return false;
    target = position - static_cast<size_t>(offset);
    return true;
  }

  // Whether the zero-terminated string at `position` is `text`.
  bool is(size_t position, const char* text) const {
    const size_t length = std::strlen(text) + 1;
    return holds(position, length) && std::memcmp(data + position, text, length) == 0;
  }
};

bool valid_width(uint64_t width) { return width == 1 || width == 2 || width == 4 || width == 8; }

bool read_number(const Bytes& bytes, size_t position, size_t width, uint8_t type, int64_t& value) {
  const int kind = type >> 2;
  const bool indirect = kind == kIndirectInt || kind == kIndirectUint;
  const bool is_signed = kind == kInt || kind == kIndirectInt;
  if (!indirect && !is_signed && kind != kUint && kind != kBool) return false;
  if (indirect) {
    if (!bytes.follow(position, width, position)) return false;
    width = size_t{1} << (type & 3);
  }
  uint64_t bits;
  if (!bytes.read(position, width, bits)) return false;
  const uint64_t sign = uint64_t{1} << (8 * width - 1);
  if (is_signed && (bits & sign)) bits |= ~(sign - 1);
  if (!is_signed && bits > static_cast<uint64_t>(INT64_MAX)) return false;
  value = static_cast<int64_t>(bits);
  return true;
}

struct Map {
  size_t values, width, keys, key_width;
  uint64_t count;
};

bool find_map(const Bytes& bytes, Map& map) {
  if (bytes.size < 3) return false;
  const size_t width = bytes.data[bytes.size - 1];
  const uint8_t type = bytes.data[bytes.size - 2];
  if (!valid_width(width) || bytes.size < 2 + width || type >> 2 != kMap) return false;
  if (!bytes.follow(bytes.size - 2 - width, width, map.values)) return false;
  map.width = size_t{1} << (type & 3);
  if (map.values < 3 * map.width) return false;
  uint64_t key_width;
  if (!bytes.read(map.values - map.width, map.width, map.count)) return false;
  if (!bytes.read(map.values - 2 * map.width, map.width, key_width) || !valid_width(key_width)) return false;
  map.key_width = static_cast<size_t>(key_width);
  if (!bytes.follow(map.values - 3 * map.width, map.width, map.keys)) return false;
  return map.count <= bytes.size && bytes.holds(map.values, map.count * (map.width + 1)) &&
         bytes.holds(map.keys, map.count * map.key_width);
}

}  // namespace

bool read_options(const void* data, size_t size, Option* options, int count) {
  const Bytes bytes{static_cast<const uint8_t*>(data), data ? size : 0};
  Map map;
  if (!find_map(bytes, map)) return false;
  for (size_t i = 0; i < map.count; ++i) {
    size_t key;
    if (!bytes.follow(map.keys + i * map.key_width, map.key_width, key)) return false;
    for (int j = 0; j < count; ++j) {
      if (options[j].found || !bytes.is(key, options[j].name)) continue;
      const uint8_t type = bytes.data[map.values + map.count * map.width + i];
      if (!read_number(bytes, map.values + i * map.width, map.width, type, options[j].value)) return false;
      options[j].found = true;
    }
  }
  return true;
}

}  // namespace dmsflow
