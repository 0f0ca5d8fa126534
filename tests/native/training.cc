// Training's operations on random values, in buffers without a byte to spare; prints a hash of all that they wrote.
//
//   training CASES

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" {
void dmsflow_binarise(int, int64_t, int64_t, int64_t, int64_t, const float*, float*, int, void*);
void dmsflow_binarise_gradient(int, int64_t, int64_t, int64_t, int64_t, const float*, float*, int, const void*, float*);
void dmsflow_quantise(int, int64_t, int, const void*, float, void*);
void dmsflow_quantise_gradient(int, int64_t, int, const void*, const void*, float, void*, float*);
void dmsflow_sign(int, int64_t, int64_t, int, const void*, const float*, void*);
void dmsflow_sign_gradient(int, int64_t, int64_t, int, const void*, const float*, const void*, void*, float*);
void dmsflow_max_pool(int, int64_t, int64_t, int64_t, int64_t, int, const void*, void*, void*);
void dmsflow_max_pool_gradient(int, int64_t, int64_t, int64_t, int64_t, int, const void*, const void*, void*);
}

namespace {

uint64_t g_state = 1, g_hash = 0xCBF29CE484222325;

uint32_t random_word() {  // xorshift64*
  g_state ^= g_state >> 12;
  g_state ^= g_state << 25;
  g_state ^= g_state >> 27;
  return static_cast<uint32_t>(g_state * 0x2545F4914F6CDD1DULL >> 32);
}

int between(int low, int high) { return low + static_cast<int>(random_word() % static_cast<uint32_t>(high - low + 1)); }

// `count` values between -2 and 2, as floats or as bfloat16.
std::vector<uint8_t> values(int64_t count, int half) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count) * (half ? 2 : 4));
  for (int64_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(static_cast<int>(random_word() % 4097) - 2048) / 1024.0f;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const auto upper = static_cast<uint16_t>(bits >> 16);
    if (half) std::memcpy(&bytes[static_cast<size_t>(i) * 2], &upper, 2);
    else std::memcpy(&bytes[static_cast<size_t>(i) * 4], &bits, 4);
  }
  return bytes;
}

void hash(const std::vector<uint8_t>& bytes) {
  for (const uint8_t byte : bytes) g_hash = (g_hash ^ byte) * 0x100000001B3;
}

float* floats(std::vector<uint8_t>& bytes) { return reinterpret_cast<float*>(bytes.data()); }

void filters(int half) {
  const int64_t count = between(1, 9), taps = between(0, 1) ? 9 : 1, channels = between(1, 80);
  const int64_t live = between(0, 1) ? channels : between(1, static_cast<int>(channels)), all = count * taps * channels;
  auto weights = values(all, 0), statistics = values(3 * count, 0), out = values(all, half);
  dmsflow_binarise(1, count, taps, channels, live, floats(weights), floats(statistics), half, out.data());
  hash(statistics);
  hash(out);
  const auto gradients = values(all, half);
  auto result = values(all, 0);
  dmsflow_binarise_gradient(1, count, taps, channels, live, floats(weights), floats(statistics), half, gradients.data(),
                            floats(result));
  hash(result);
}

void levels(int half) {
  const int64_t count = between(1, 1500);
  const auto in = values(count, half), gradients = values(count, half);
  auto out = values(count, half), slopes = values((count + 511) / 512, 0);
  dmsflow_quantise(1, count, half, in.data(), 0.75f, out.data());
  hash(out);
  dmsflow_quantise_gradient(1, count, half, in.data(), gradients.data(), 0.75f, out.data(), floats(slopes));
  hash(out);
  hash(slopes);
}

void signs(int half) {
  const int64_t pixels = between(1, 200), channels = between(1, 40), all = pixels * channels;
  const auto in = values(all, half), gradients = values(all, half);
  auto shifts = values(channels, 0), out = values(all, half), sums = values((pixels + 63) / 64 * channels, 0);
  dmsflow_sign(1, pixels, channels, half, in.data(), floats(shifts), out.data());
  hash(out);
  dmsflow_sign_gradient(1, pixels, channels, half, in.data(), floats(shifts), gradients.data(), out.data(), floats(sums));
  hash(out);
  hash(sums);
}

void windows(int half) {
  const int64_t images = between(1, 3), rows = between(2, 9), columns = between(2, 9), channels = between(1, 40);
  const int64_t all = images * rows * columns * channels, fewer = images * (rows / 2) * (columns / 2) * channels;
  const auto in = values(all, half), gradients = values(fewer, half);
  auto out = values(fewer, half), places = values(fewer, half), result = values(all, half);
  dmsflow_max_pool(1, images, rows, columns, channels, half, in.data(), out.data(), places.data());
  hash(out);
  dmsflow_max_pool_gradient(1, images, rows, columns, channels, half, gradients.data(), places.data(), result.data());
  hash(result);
}

}  // namespace

int main(int count, char** arguments) {
  const int cases = count > 1 ? std::atoi(arguments[1]) : 100;
  for (int i = 0; i < cases; ++i) {
    filters(i % 2);
    levels(i % 2);
    signs(i % 2);
    windows(i % 2);
  }
  std::printf("%d cases: %016llx\n", cases, static_cast<unsigned long long>(g_hash));
}
