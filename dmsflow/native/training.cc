// Operations of training on a CPU, forward and backward: the three that a binary network adds to a float one, of
// which torch makes many passes over memory; and max pooling, for which torch keeps 8 bytes a value.
// dmsflow/training/binary.py has the formulas of the three, and the same in torch's operations.
//
// Sums run in a fixed number of lanes, and no product is fused with a sum, so that every processor and every
// number of threads finds the same bits.

#include <cmath>
#include <cstdint>
#include <cstring>

// Once for every set of instructions; which one runs is settled when the library is loaded, before any sanitizer is
// ready. clang does not do this to templates.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define DMSFLOW_VECTORISED __attribute__((target_clones("default", "avx2")))
#else
#define DMSFLOW_VECTORISED
#endif
// The arrays that the next loop reads and those that it writes lie apart.
#if defined(__clang__)
#define DMSFLOW_APART _Pragma("clang loop vectorize(assume_safety)")
#else
#define DMSFLOW_APART _Pragma("GCC ivdep")
#endif
#define DMSFLOW_EXPORTED extern "C" __attribute__((visibility("default")))
#define DMSFLOW_INLINE inline __attribute__((always_inline))

namespace {

constexpr int kLanes = 32;            // of a sum
constexpr int kChunk = 512;           // values that loops of one kind each go over in turn; CHUNK of training/fast_ops.py
constexpr int kPixels = 64;           // whose gradients of shifts are summed in float; PIXELS of training/fast_ops.py
constexpr int64_t kGrain = 16384;     // values that a thread is worth starting for
constexpr float kEpsilon = 1e-10f;    // STANDARDISATION_EPS of network/network.py

// torch's own threads, found by name in what it has loaded; null: this thread does all.
struct Threads {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);  // GOMP_parallel
  int (*number)();                                                                      // omp_get_thread_num
  int (*count)();                                                                       // omp_get_num_threads
};
Threads g_threads = {};

struct Float32 {
  using Stored = float;
  static DMSFLOW_INLINE float read(float stored) { return stored; }
  static DMSFLOW_INLINE float write(float value) { return value; }
  static DMSFLOW_INLINE float exactly(float value) { return value; }
  static DMSFLOW_INLINE float count(uint32_t number) { return static_cast<float>(number); }
  static DMSFLOW_INLINE float where(bool condition, float stored) { return condition ? stored : 0.0f; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static DMSFLOW_INLINE float read(uint16_t stored) {
    const uint32_t bits = static_cast<uint32_t>(stored) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  // To the nearest, ties to even; a NaN stays one.
  static DMSFLOW_INLINE uint16_t write(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
  // Of a value that is a bfloat16 already.
  static DMSFLOW_INLINE uint16_t exactly(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>(bits >> 16);
  }
  // A small number, kept beside values, in as many bytes.
  static DMSFLOW_INLINE uint16_t count(uint32_t number) { return static_cast<uint16_t>(number); }
  static DMSFLOW_INLINE uint16_t where(bool condition, uint16_t stored) {
    return static_cast<uint16_t>(stored & (condition ? 0xFFFF : 0));
  }
};

// Sums of several terms at once, over i of [0, count): add(i, lane, sums) adds the terms of i.
template <int kTerms>
struct Sums {
  float lane[kTerms][kLanes] = {};
  double value[kTerms] = {};

  template <typename Add>
  DMSFLOW_INLINE void run(int64_t count, Add add) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) add(i + l, l, lane);
    }
    for (int l = 0; i < count; ++i, ++l) add(i, l, lane);
  }

  DMSFLOW_INLINE void collect() {
    for (int term = 0; term < kTerms; ++term) {
      for (int l = 0; l < kLanes; ++l) {
        value[term] += lane[term][l];
        lane[term][l] = 0;
      }
    }
  }
};

// Filters, channels last: [filters, taps, channels], of which the first `live` channels count.
template <typename Type>
struct Filters {
  using Stored = typename Type::Stored;

  int64_t taps, channels, live;
  const float* weights;
  float *means, *rates, *scales;  // of each filter: the mean, 1 / √(variance + eps), E|standardised|

  int64_t size() const { return taps * channels; }
  double counted() const { return static_cast<double>(taps * live); }
  // Where all channels count, a filter is one stretch.
  int64_t stretches() const { return live == channels ? 1 : taps; }
  int64_t stretch() const { return size() / stretches(); }
  int64_t counted_of_stretch() const { return live == channels ? size() : live; }
};

template <typename Type>
struct Binarise : Filters<Type> {
  typename Type::Stored* out;

  DMSFLOW_INLINE void run(int64_t first, int64_t last) const {
    for (int64_t filter = first; filter < last; ++filter) {
      const float* weights = this->weights + filter * this->size();
      const float mean = average(weights);
      Sums<2> around;
      for (int64_t s = 0; s < this->stretches(); ++s) {
        const float* w = weights + s * this->stretch();
        around.run(this->counted_of_stretch(), [w, mean](int64_t i, int l, auto& sum) {
          const float centred = w[i] - mean;
          sum[0][l] += centred * centred;
          sum[1][l] += std::fabs(centred);
        });
      }
      around.collect();
      const float rate = 1.0f / std::sqrt(static_cast<float>(around.value[0] / this->counted()) + kEpsilon);
      const float scale = static_cast<float>(around.value[1] / this->counted()) * rate;
      const auto above = Type::write(scale), below = Type::write(-scale);
      auto* to = out + filter * this->size();
      for (int64_t i = 0; i < this->size(); ++i) to[i] = weights[i] >= mean ? above : below;
      this->means[filter] = mean;
      this->rates[filter] = rate;
      this->scales[filter] = scale;
    }
  }

  DMSFLOW_INLINE float average(const float* weights) const {
    Sums<1> plain;
    for (int64_t s = 0; s < this->stretches(); ++s) {
      const float* w = weights + s * this->stretch();
      plain.run(this->counted_of_stretch(), [w](int64_t i, int l, auto& sum) { sum[0][l] += w[i]; });
    }
    plain.collect();
    return static_cast<float>(plain.value[0] / this->counted());
  }
};

template <typename Type>
struct BinariseGradient : Filters<Type> {
  const typename Type::Stored* gradients;
  float* out;

  DMSFLOW_INLINE void run(int64_t first, int64_t last) const {
    const int64_t size = this->size(), stretch = this->stretch(), counted = this->counted_of_stretch();
    const double count = this->counted();
    for (int64_t filter = first; filter < last; ++filter) {
      const float* weights = this->weights + filter * size;
      const auto* g = gradients + filter * size;
      auto* to = out + filter * size;
      const float mean = this->means[filter], rate = this->rates[filter], scale = this->scales[filter];
      Sums<3> whole;  // of g, g·y and g·(w - mean), over all channels
      whole.run(size, [=](int64_t i, int l, auto& sum) {
        const float each = Type::read(g[i]);
        sum[0][l] += each;
        sum[1][l] += weights[i] >= mean ? each : -each;
        sum[2][l] += each * (weights[i] - mean);
      });
      whole.collect();
      Sums<1> signs;
      for (int64_t s = 0; s < this->stretches(); ++s) {
        const float* w = weights + s * stretch;
        signs.run(counted, [w, mean](int64_t i, int l, auto& sum) { sum[0][l] += w[i] >= mean ? 1.0f : -1.0f; });
      }
      signs.collect();
      const double through = whole.value[1] / count;                                 // t
      const double turned = scale * (rate * whole.value[2] / count + through);       // d
      const double shift = (scale * whole.value[0] + through * signs.value[0]) / count;  // Σu / r
      const float straight = scale * rate, slope = static_cast<float>(turned * rate) * rate;
      const float above = static_cast<float>((through - shift) * rate);
      const float below = static_cast<float>((-through - shift) * rate);
      for (int64_t s = 0; s < size; s += stretch) {
        for (int64_t i = s; i < s + counted; ++i) {
          to[i] = straight * Type::read(g[i]) + (weights[i] >= mean ? above : below) - slope * (weights[i] - mean);
        }
        for (int64_t i = s + counted; i < s + stretch; ++i) to[i] = straight * Type::read(g[i]);
      }
    }
  }
};

int64_t chunks(int64_t count) { return (count + kChunk - 1) / kChunk; }

// Its parts are chunks.
template <typename Type>
struct Quantise {
  int64_t count;
  float level;
  const typename Type::Stored* in;
  typename Type::Stored* out;

  DMSFLOW_INLINE void run(int64_t first, int64_t last) const {
    const auto on = Type::write(level), off = Type::write(0.0f);
    const float half = level / 2;
    const int64_t end = last * kChunk < count ? last * kChunk : count;
    for (int64_t i = first * kChunk; i < end; ++i) out[i] = Type::read(in[i]) > half ? on : off;
  }
};

// Also, of each chunk, alpha·Σ g·∂out/∂alpha: g·alpha where x is above the middle, less g·x inside the clip.
template <typename Type>
struct QuantiseGradient {
  int64_t count;
  float level;
  const typename Type::Stored *in, *gradients;
  typename Type::Stored* out;
  float* slopes;

  DMSFLOW_INLINE void run(int64_t first, int64_t last) const {
    const float half = level / 2;
    float g[kChunk], slope[kChunk];
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t at = chunk * kChunk;
      const int size = count - at < kChunk ? static_cast<int>(count - at) : kChunk;
      for (int i = 0; i < size; ++i) {
        const float x = Type::read(in[at + i]), passed = Type::read(gradients[at + i]);
        const float inside = x > 0 ? (x < level ? passed : 0.0f) : 0.0f;
        g[i] = inside;
        slope[i] = (x > half ? passed : 0.0f) * level - inside * x;
      }
      for (int i = 0; i < size; ++i) out[at + i] = Type::exactly(g[i]);
      Sums<1> total;
      total.run(size, [&slope](int64_t i, int l, auto& sum) { sum[0][l] += slope[i]; });
      total.collect();
      slopes[chunk] = static_cast<float>(total.value[0]);
    }
  }
};

// Pixels [pixels, channels]: ±1, +1 above the shift of the channel. Its parts are pixels.
template <typename Type>
struct Sign {
  int64_t channels;
  const float* shifts;
  const typename Type::Stored* in;
  typename Type::Stored* out;

  DMSFLOW_INLINE void run(int64_t first, int64_t last) const {
    const auto above = Type::write(1.0f), below = Type::write(-1.0f);
    for (int64_t at = first * channels; at < last * channels; at += channels) {
      DMSFLOW_APART
      for (int64_t c = 0; c < channels; ++c) out[at + c] = Type::read(in[at + c]) > shifts[c] ? above : below;
    }
  }
};

// Also, of every kPixels pixels, a row [channels] of the shifts' gradient. These rows are its parts.
template <typename Type>
struct SignGradient {
  int64_t pixels, channels;
  const float* shifts;
  const typename Type::Stored *in, *gradients;
  typename Type::Stored* out;
  float* sums;

  DMSFLOW_INLINE void run(int64_t first, int64_t last) const {
    const int64_t end = last * kPixels < pixels ? last * kPixels : pixels;
    std::memset(sums + first * channels, 0, static_cast<size_t>((last - first) * channels) * sizeof *sums);
    for (int64_t pixel = first * kPixels; pixel < end; ++pixel) {
      const int64_t at = pixel * channels;
      float* sum = sums + pixel / kPixels * channels;
      DMSFLOW_APART
      for (int64_t c = 0; c < channels; ++c) {
        const float slope = 2.0f - 2.0f * std::fabs(Type::read(in[at + c]) - shifts[c]);
        const float passed = Type::read(gradients[at + c]) * (slope < 0 ? 0.0f : slope);  // of a NaN, NaN
        out[at + c] = Type::write(passed);
        sum[c] -= passed;
      }
    }
  }
};

// Images [rows, columns, channels], channels last, in windows of 2 × 2 that lie side by side: of every window the
// largest, the first of equals, and which of the four it is. A NaN is larger than everything.
template <typename Type>
struct MaxPool {
  int64_t rows, columns, channels;
  const typename Type::Stored* in;
  typename Type::Stored *out, *places;

  DMSFLOW_INLINE void run(int64_t first, int64_t last) const {
    const int64_t line = columns * channels, lines = rows / 2;
    for (int64_t y = first * lines; y < last * lines; ++y) {
      const auto* pair = in + (y / lines * rows + y % lines * 2) * line;
      for (int64_t x = 0; x < columns / 2; ++x) {
        const auto* window = pair + 2 * x * channels;
        auto* to = out + (y * (columns / 2) + x) * channels;
        auto* place = places + (y * (columns / 2) + x) * channels;
        DMSFLOW_APART
        for (int64_t c = 0; c < channels; ++c) {
          const float one = Type::read(window[c]), two = Type::read(window[channels + c]);
          const float three = Type::read(window[line + c]), four = Type::read(window[line + channels + c]);
          const bool right = (two > one) | (two != two);
          float best = right ? two : one;
          uint32_t at = right ? 1 : 0;
          const bool below = (three > best) | (three != three);
          best = below ? three : best;
          at = below ? 2 : at;
          const bool corner = (four > best) | (four != four);
          to[c] = Type::exactly(corner ? four : best);
          place[c] = Type::count(corner ? 3 : at);
        }
      }
    }
  }
};

// Writes all of `out`: 0 where a pixel lies outside all windows, too.
template <typename Type>
struct MaxPoolGradient {
  int64_t rows, columns, channels;
  const typename Type::Stored *gradients, *places;
  typename Type::Stored* out;

  DMSFLOW_INLINE void run(int64_t first, int64_t last) const {
    const int64_t line = columns * channels, line_out = columns / 2 * channels;
    for (int64_t y = first * rows; y < last * rows; ++y) {
      const int64_t row = y % rows, from = (y / rows * (rows / 2) + row / 2) * line_out;
      const int64_t inside = row / 2 < rows / 2 ? columns / 2 * 2 : 0;
      for (int64_t x = 0; x < inside; ++x) {
        const auto own = Type::count(static_cast<uint32_t>(row % 2 * 2 + x % 2));
        const auto* g = gradients + from + x / 2 * channels;
        const auto* place = places + from + x / 2 * channels;
        auto* to = out + y * line + x * channels;
        DMSFLOW_APART
        for (int64_t c = 0; c < channels; ++c) to[c] = Type::where(place[c] == own, g[c]);
      }
      std::memset(out + y * line + inside * channels, 0, static_cast<size_t>((columns - inside) * channels) * sizeof *out);
    }
  }
};

template <typename Operation>
DMSFLOW_VECTORISED void work(const Operation& operation, int64_t first, int64_t last) {
  operation.run(first, last);
}

// An operation on `count` parts, each of so many values.
template <typename Operation>
void share_out(const Operation& operation, int64_t count, int64_t values, int threads) {
  struct Shares {
    const Operation& operation;
    int64_t count;
  } shares{operation, count};
  const int64_t worth = count * values / kGrain;
  if (worth < threads) threads = static_cast<int>(worth);
  if (!g_threads.parallel || threads < 2) return work(operation, 0, count);
  const auto own = [](void* data) {
    const auto& all = *static_cast<const Shares*>(data);
    const int64_t number = g_threads.number(), threads = g_threads.count();  // fewer than asked for, it may be
    work(all.operation, all.count * number / threads, all.count * (number + 1) / threads);
  };
  g_threads.parallel(own, &shares, static_cast<unsigned>(threads), 0);
}

}  // namespace

DMSFLOW_EXPORTED void dmsflow_use_threads(void* parallel, void* number, void* count) {
  g_threads = {reinterpret_cast<decltype(Threads::parallel)>(parallel),
               reinterpret_cast<decltype(Threads::number)>(number), reinterpret_cast<decltype(Threads::count)>(count)};
}

// What goes from op to op is bfloat16 where `half` says so, else float.

DMSFLOW_EXPORTED void dmsflow_binarise(int threads, int64_t filters, int64_t taps, int64_t channels, int64_t live,
                                       const float* weights, float* statistics, int half, void* out) {
  const auto run = [&](auto type, auto* to) {
    share_out(Binarise<decltype(type)>{{taps, channels, live, weights, statistics, statistics + filters,
                                        statistics + 2 * filters}, to},
              filters, taps * channels, threads);
  };
  half ? run(BFloat16{}, static_cast<uint16_t*>(out)) : run(Float32{}, static_cast<float*>(out));
}

DMSFLOW_EXPORTED void dmsflow_binarise_gradient(int threads, int64_t filters, int64_t taps, int64_t channels,
                                                int64_t live, const float* weights, float* statistics, int half,
                                                const void* gradients, float* out) {
  const auto run = [&](auto type, const auto* from) {
    share_out(BinariseGradient<decltype(type)>{{taps, channels, live, weights, statistics, statistics + filters,
                                                statistics + 2 * filters}, from, out},
              filters, taps * channels, threads);
  };
  half ? run(BFloat16{}, static_cast<const uint16_t*>(gradients)) : run(Float32{}, static_cast<const float*>(gradients));
}

DMSFLOW_EXPORTED void dmsflow_quantise(int threads, int64_t count, int half, const void* in, float level, void* out) {
  const auto run = [&](auto type, auto* to) {
    using Type = decltype(type);
    const auto* from = static_cast<const typename Type::Stored*>(in);
    share_out(Quantise<Type>{count, level, from, to}, chunks(count), kChunk, threads);
  };
  half ? run(BFloat16{}, static_cast<uint16_t*>(out)) : run(Float32{}, static_cast<float*>(out));
}

DMSFLOW_EXPORTED void dmsflow_quantise_gradient(int threads, int64_t count, int half, const void* in,
                                                const void* gradients, float level, void* out, float* slopes) {
  const auto run = [&](auto type, auto* to) {
    using Type = decltype(type);
    using Stored = typename Type::Stored;
    const QuantiseGradient<Type> all{count, level, static_cast<const Stored*>(in),
                                     static_cast<const Stored*>(gradients), to, slopes};
    share_out(all, chunks(count), kChunk, threads);
  };
  half ? run(BFloat16{}, static_cast<uint16_t*>(out)) : run(Float32{}, static_cast<float*>(out));
}

DMSFLOW_EXPORTED void dmsflow_sign(int threads, int64_t pixels, int64_t channels, int half, const void* in,
                                   const float* shifts, void* out) {
  const auto run = [&](auto type, auto* to) {
    using Type = decltype(type);
    const auto* from = static_cast<const typename Type::Stored*>(in);
    share_out(Sign<Type>{channels, shifts, from, to}, pixels, channels, threads);
  };
  half ? run(BFloat16{}, static_cast<uint16_t*>(out)) : run(Float32{}, static_cast<float*>(out));
}

DMSFLOW_EXPORTED void dmsflow_sign_gradient(int threads, int64_t pixels, int64_t channels, int half, const void* in,
                                            const float* shifts, const void* gradients, void* out, float* sums) {
  const auto run = [&](auto type, auto* to) {
    using Type = decltype(type);
    using Stored = typename Type::Stored;
    const SignGradient<Type> all{pixels, channels, shifts, static_cast<const Stored*>(in),
                                 static_cast<const Stored*>(gradients), to, sums};
    share_out(all, (pixels + kPixels - 1) / kPixels, kPixels * channels, threads);
  };
  half ? run(BFloat16{}, static_cast<uint16_t*>(out)) : run(Float32{}, static_cast<float*>(out));
}

DMSFLOW_EXPORTED void dmsflow_max_pool(int threads, int64_t images, int64_t rows, int64_t columns, int64_t channels,
                                       int half, const void* in, void* out, void* places) {
  const auto run = [&](auto type, auto* to) {
    using Type = decltype(type);
    using Stored = typename Type::Stored;
    const MaxPool<Type> all{rows, columns, channels, static_cast<const Stored*>(in), to, static_cast<Stored*>(places)};
    share_out(all, images, rows * columns * channels, threads);
  };
  half ? run(BFloat16{}, static_cast<uint16_t*>(out)) : run(Float32{}, static_cast<float*>(out));
}

DMSFLOW_EXPORTED void dmsflow_max_pool_gradient(int threads, int64_t images, int64_t rows, int64_t columns,
                                                int64_t channels, int half, const void* gradients, const void* places,
                                                void* out) {
  const auto run = [&](auto type, auto* to) {
    using Type = decltype(type);
    using Stored = typename Type::Stored;
    const MaxPoolGradient<Type> all{rows, columns, channels, static_cast<const Stored*>(gradients),
                                    static_cast<const Stored*>(places), to};
    share_out(all, images, rows * columns * channels, threads);
  };
  half ? run(BFloat16{}, static_cast<uint16_t*>(out)) : run(Float32{}, static_cast<float*>(out));
}
