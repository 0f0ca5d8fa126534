// Options of LCE's operators: a FlexBuffer map from names to whole numbers. Damaged ones are found out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dmsflow {

struct Option {
  const char* name;
  bool found = false;
  int64_t value = 0;
};

// Fills in those of `options` that the map holds; others are left alone. False: this is no map, or one
// of them is no whole number of 64 bits.
bool read_options(const void* data, size_t size, Option* options, int count);

}  // namespace dmsflow
