// How the filters of a convolution are cut into panels, for conv.cc and byte_conv.cc.
#pragma once

#include <cstddef>

#include "kernels.h"
#include "memory.h"

namespace dmsflow {

constexpr int kChunksPerThread = 4;  // so that a thread that was interrupted is no long wait for the others

struct Panel {
  size_t weights;  // where its weights begin
  size_t slot;     // and its part of multiplier, bias and thresholds
  int group, first, channels, vectors, halves;
};

inline int up(int value, int step) { return (value + step - 1) / step * step; }

// Lists the panels, and says how many words and slots they take; false: there is no memory.
inline bool list_panels(int lanes, int vectors, int filters, int groups, int filter_words, Buffer<Panel>& panels,
                        size_t& words, size_t& slots) {
  const int full = lanes * vectors, each = filters / groups;
  const int per_group = (each + full - 1) / full;
  if (!panels.resize(static_cast<size_t>(per_group) * groups)) return false;
  words = slots = 0;
  for (size_t i = 0; i < panels.size(); ++i) {
    Panel& panel = panels[i];
    const int begin = static_cast<int>(i % per_group) * full;
    panel.group = static_cast<int>(i / per_group);
    panel.first = panel.group * each + begin;
    panel.channels = each - begin < full ? each - begin : full;
    panel.vectors = (panel.channels + lanes - 1) / lanes;
    const bool last = i + 1 == panels.size();
    panel.halves = ((last ? up(filters, 32) : panel.first + panel.channels) - panel.first) / kPanelChannels;
    panel.weights = words;
    panel.slot = slots;
    const size_t padded = static_cast<size_t>(panel.vectors) * lanes;
    words += padded * filter_words;
    slots += padded;
  }
  return true;
}

}  // namespace dmsflow
