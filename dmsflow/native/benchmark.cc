// A program for devices without Python: runs a .tflite file and says how long that takes.
//
// Its options and what it prints are those of TFLite's benchmark_model, as far as dmsflow asks for them.
#include <sys/resource.h>
#include <time.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "benchmark_model.h"
#include "memory.h"
#include "ops.h"

namespace dmsflow {
namespace {

constexpr char kHelp[] =
    "dmsflow's benchmark program: runs a .tflite file, and says how long that takes.\n"
    "  --graph=FILE                         the file\n"
    "  --num_threads=1\n"
    "  --num_runs=50 --min_secs=1           as many runs, and as long, at least\n"
    "  --warmup_runs=1 --warmup_min_secs=0  and so before them\n"
    "  --max_secs=150                       but no longer than this\n"
    "  --kernels=NAME                       of the 1-bit operations, instead of the best:\n"
    "                                       avx512, avx2, neon-dotprod, neon, portable\n"
    "  --enable_op_profiling=true           a table with the time of each operation\n"
    "  --report_peak_memory_footprint=true  the most memory that was held\n"
    "  --input_file=FILE                    the raw numbers of one run or several, instead of noise\n"
    "  --output_file=FILE                   where to write their outputs, raw numbers; nothing is timed\n"
    "LCE's operations, and an int8 convolution that makes bits, are those of dmsflow's delegate. Others on float32 and\n"
    "int8 are simple loops, the first convolution apart: TFLite's are faster, above all in networks with much arithmetic\n"
    "besides the 1-bit one.\n"
    "Other types of numbers, and operations that it lacks, are named in an error.\n";

struct Settings {
  const char *graph = nullptr, *kernels = nullptr, *input_file = nullptr, *output_file = nullptr;
  double threads = 1, runs = 50, min_secs = 1, warm_up_runs = 1, warm_up_min_secs = 0, max_secs = 150;
  bool profile = false, memory = false;
};

struct Setting {
  const char* name;
  const char** text;
  double* number;
  double least, most;
  bool* flag;
};

bool set(const Setting& setting, const char* value) {
  if (setting.text) {
    *setting.text = value;
    return *value != 0;
  }
  if (setting.flag) {
    *setting.flag = std::strcmp(value, "true") == 0 || std::strcmp(value, "1") == 0;
    return *setting.flag || std::strcmp(value, "false") == 0 || std::strcmp(value, "0") == 0;
  }
  char* end = nullptr;
  *setting.number = std::strtod(value, &end);
  return *value && !*end && *setting.number >= setting.least && *setting.number <= setting.most;
}

bool parse(int count, char** arguments, Settings& s) {
  const Setting known[] = {
      {"graph", &s.graph, nullptr, 0, 0, nullptr},
      {"kernels", &s.kernels, nullptr, 0, 0, nullptr},
      {"input_file", &s.input_file, nullptr, 0, 0, nullptr},
      {"output_file", &s.output_file, nullptr, 0, 0, nullptr},
      {"num_threads", nullptr, &s.threads, 1, 64, nullptr},
      {"num_runs", nullptr, &s.runs, 1, 1e6, nullptr},
      {"min_secs", nullptr, &s.min_secs, 0, 1e6, nullptr},
      {"warmup_runs", nullptr, &s.warm_up_runs, 0, 1e6, nullptr},
      {"warmup_min_secs", nullptr, &s.warm_up_min_secs, 0, 1e6, nullptr},
      {"max_secs", nullptr, &s.max_secs, 0, 1e6, nullptr},
      {"enable_op_profiling", nullptr, nullptr, 0, 0, &s.profile},
      {"report_peak_memory_footprint", nullptr, nullptr, 0, 0, &s.memory},
  };
  for (int i = 1; i < count; ++i) {
    const char* argument = arguments[i];
    const char* equals = std::strchr(argument, '=');
    const Setting* found = nullptr;
    for (const Setting& each : known) {
      const size_t length = std::strlen(each.name);
      if (equals && std::strncmp(argument, "--", 2) == 0 && equals == argument + 2 + length &&
          std::strncmp(argument + 2, each.name, length) == 0)
        found = &each;
    }
    if (!found || !set(*found, equals + 1)) {
      std::fprintf(stderr, "ERROR: %s is no option of this program; see --help\n", argument);
      return false;
    }
  }
  if (!s.graph) std::fputs("ERROR: there is no file to run: give --graph=FILE\n", stderr);
  return s.graph;
}

double now_us() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) / 1e3;
}

// Numbers like a picture's, the same in each process.
void fill_with_noise(const Tensor& tensor) {
  uint32_t state = 1;
  for (int64_t i = 0; i < elements(&tensor); ++i) {
    state = state * 1664525u + 1013904223u;
    if (tensor.type == kInt8 || tensor.type == kUint8) static_cast<uint8_t*>(tensor.data)[i] = static_cast<uint8_t>(state >> 24);
    if (tensor.type == kInt32) static_cast<int32_t*>(tensor.data)[i] = static_cast<int32_t>(state >> 24);
    if (tensor.type == kFloat32) static_cast<float*>(tensor.data)[i] = static_cast<float>(state >> 24);
  }
}

// --- the outputs of given images ---------------------------------------------------------------------------

int run_files(Model& model, const Settings& s) {
  std::FILE* in = std::fopen(s.input_file, "rb");
  std::FILE* out = in && s.output_file ? std::fopen(s.output_file, "wb") : nullptr;
  bool sound = in && out, more = sound;
  size_t runs = 0, bytes = 0;
  for (int i = 0; i < model.inputs(); ++i) bytes += model.input(i).bytes;
  while (sound && more) {
    for (int i = 0; sound && more && i < model.inputs(); ++i) {
      const size_t got = std::fread(model.input(i).data, 1, model.input(i).bytes, in);
      more = got || i || !std::feof(in);
      sound = !more || got == model.input(i).bytes;
    }
    if (!sound || !more) break;
    sound = model.run(nullptr);
    for (int i = 0; sound && i < model.outputs(); ++i)
      sound = std::fwrite(model.output(i).data, 1, model.output(i).bytes, out) == model.output(i).bytes;
    ++runs;
  }
  if (in) std::fclose(in);
  if (out && std::fclose(out) != 0) sound = false;
  if (!sound || runs == 0) {
    std::fprintf(stderr, "ERROR: %s does not hold inputs of %zu bytes each, or --output_file cannot be written\n",
                 s.input_file, bytes);
    return 1;
  }
  std::printf("INFO: wrote the outputs of %zu runs\n", runs);
  return 0;
}

// --- times ---------------------------------------------------------------------------------------------------

struct Times {
  double first = 0, last = 0, least = 0, most = 0, sum = 0, squares = 0;
  int64_t count = 0;

  double average() const { return sum / static_cast<double>(count); }
};

// Runs until both the number and the time are reached; the sums of the steps' times are added up.
bool run_for(Model& model, double runs, double seconds, double most_seconds, Buffer<int64_t>* steps,
             Buffer<int64_t>* first, Times& times) {
  Buffer<int64_t> one;
  if (steps && !one.resize(steps->size())) return false;
  const double begin = now_us();
  for (double now = begin; (static_cast<double>(times.count) < runs || now - begin < seconds * 1e6);) {
    if (times.count && now - begin > most_seconds * 1e6) break;
    const double before = now_us();
    if (!model.run(steps ? one.data() : nullptr)) return false;
    now = now_us();
    const double took = now - before;
    if (!times.count) times.first = times.least = times.most = took;
    times.least = took < times.least ? took : times.least;
    times.most = took > times.most ? took : times.most;
    times.last = took;
    times.sum += took;
    times.squares += took * took;
    for (size_t i = 0; i < one.size(); ++i) {
      (*steps)[i] += one[i];
      if (!times.count) (*first)[i] = one[i];
    }
    ++times.count;
  }
  if (!times.count) return true;
  const double variance = times.squares / static_cast<double>(times.count) - times.average() * times.average();
  std::printf("INFO: count=%lld first=%.1f curr=%.1f min=%.1f max=%.1f avg=%.1f std=%.1f\n",
              static_cast<long long>(times.count), times.first, times.last, times.least, times.most, times.average(),
              std::sqrt(variance > 0 ? variance : 0));
  return true;
}

void print_steps(const Model& model, const Buffer<int64_t>& sums, const Buffer<int64_t>& first, int64_t runs) {
  double whole = 0, so_far = 0;
  for (size_t i = 0; i < sums.size(); ++i) whole += static_cast<double>(sums[i]);
  std::printf("INFO: Operator-wise Profiling Info for Regular Benchmark Runs:\n");
  std::printf("============================== Run Order ==============================\n");
  std::printf("%24s\t%9s\t%9s\t%8s\t%8s\t%10s\t%14s\t%s\n", "[node type]", "[first]", "[avg ms]", "[%]", "[cdf%]",
              "[mem KB]", "[times called]", "[Name]");
  for (int i = 0; i < model.steps(); ++i) {
    const size_t at = static_cast<size_t>(i);
    if (!model.runs(i)) continue;
    char name[80];
    model.name(i, name, sizeof name);
    so_far += static_cast<double>(sums[at]);
    std::printf("%24s\t%9.6f\t%9.6f\t%7.3f%%\t%7.3f%%\t%10.3f\t%14d\t[%s]:%d\n", model.type(i),
                static_cast<double>(first[at]) / 1e6, static_cast<double>(sums[at]) / 1e6 / static_cast<double>(runs),
                100 * static_cast<double>(sums[at]) / whole, 100 * so_far / whole, 0.0, 1, name, i);
  }
  std::printf("\n");
}

int measure(Model& model, const Settings& s, double init_us) {
  Buffer<int64_t> sums, firsts;
  const size_t steps = s.profile ? static_cast<size_t>(model.steps()) : 0;
  if (!sums.resize(steps) || !firsts.resize(steps)) return 1;
  std::printf("INFO: Initialized session in %.3fms.\n", init_us / 1e3);
  Times warm_up, times;
  for (int i = 0; i < model.inputs(); ++i) fill_with_noise(model.input(i));
  if (!run_for(model, s.warm_up_runs, s.warm_up_min_secs, s.max_secs, nullptr, nullptr, warm_up)) return 1;
  if (!run_for(model, s.runs, s.min_secs, s.max_secs, steps ? &sums : nullptr, &firsts, times)) return 1;
  const Times& before = warm_up.count ? warm_up : times;
  std::printf("INFO: Inference timings in us: Init: %.1f, First inference: %.1f, Warmup (avg): %.1f, Inference (avg): %.3f\n",
              init_us, before.first, before.average(), times.average());
  if (s.memory) {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    std::printf("INFO: Overall peak memory footprint (MB) as the largest resident set: %.3f\n",
                static_cast<double>(usage.ru_maxrss) / 1024);
  }
  if (steps) print_steps(model, sums, firsts, times.count);
  return 0;
}

int main_of(int count, char** arguments) {
  if (count == 2 && std::strcmp(arguments[1], "--help") == 0) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  Settings settings;
  if (!parse(count, arguments, settings)) return 1;
  std::printf("INFO: STARTING!\n");
  const double begin = now_us();
  Model model;
  if (!model.load(settings.graph, static_cast<int>(settings.threads), settings.kernels)) return 1;
  const double init_us = now_us() - begin;
  std::printf("INFO: Loaded model %s\nINFO: Kernels %s, threads %d\n", settings.graph,
              settings.kernels ? settings.kernels : name_of(best_kernels()), static_cast<int>(settings.threads));
  return settings.input_file ? run_files(model, settings) : measure(model, settings, init_us);
}

}  // namespace
}  // namespace dmsflow

int main(int count, char** arguments) {
  const int code = dmsflow::main_of(count, arguments);
  dmsflow::end_error();
  return code;
}
