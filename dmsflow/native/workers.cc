// A pool of POSIX threads. Behind a loop they look out for the next one for some microseconds, since operations
// follow each other quickly and waking costs more than a small one; then they sleep, so that no core is kept busy
// between two runs.

#include "workers.h"

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "denormals.h"

// In glibc 2.34 these moved from libpthread to libc under a new version; the old one is there as well, and is
// all that older systems have.
#if defined(__GLIBC__) && defined(__PIC__) && !defined(DMSFLOW_STATIC)
#if defined(__x86_64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_join, pthread_join@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.17");
__asm__(".symver pthread_join, pthread_join@GLIBC_2.17");
#endif
#endif

namespace dmsflow {

constexpr int kMostThreads = 64;
constexpr int kLooks = 1500;  // some 20 µs

// A loop's number, how often it goes round, and the next index, in one word: whoever takes an index knows of which
// loop it is, and that this loop cannot end before that index is done.
constexpr int kBits = 24;
constexpr uint64_t kMost = (uint64_t{1} << kBits) - 1;

class Workers {
 public:
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t begun = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
  pthread_t threads[kMostThreads];
  int started = 0;   // threads beside the caller's
  int sleeping = 0;  // of these; under the mutex
  bool ends = false;
  std::atomic<uint64_t> loop{0};
  std::atomic<int> left{0};  // indexes not done yet
  void (*task)(void*, int) = nullptr;
  void* context = nullptr;
};

namespace {

// Takes indexes until there are none. Whoever comes late finds none, and nobody waits for him.
void work(Workers& workers) {
  for (;;) {
    const uint64_t loop = workers.loop.fetch_add(1, std::memory_order_acquire);
    if ((loop & kMost) >= (loop >> kBits & kMost)) return;
    workers.task(workers.context, static_cast<int>(loop & kMost));
    if (workers.left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      pthread_mutex_lock(&workers.mutex);
      pthread_cond_signal(&workers.done);
      pthread_mutex_unlock(&workers.mutex);
    }
  }
}

inline void rest() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

// Whether `what` became true within some microseconds.
template <class Condition>
bool look_out(Condition what) {
  for (int look = 0; look < kLooks; ++look) {
    if (what()) return true;
    rest();
  }
  return false;
}

// Waits for a loop with indexes to take; false: there will be none.
bool await_loop(Workers& workers) {
  const auto begun = [&] {
    const uint64_t loop = workers.loop.load(std::memory_order_relaxed);
    return (loop & kMost) < (loop >> kBits & kMost);
  };
  if (look_out(begun)) return true;
  pthread_mutex_lock(&workers.mutex);
  while (!begun() && !workers.ends) {
    ++workers.sleeping;
    pthread_cond_wait(&workers.begun, &workers.mutex);
    --workers.sleeping;
  }
  const bool goes_on = !workers.ends;
  pthread_mutex_unlock(&workers.mutex);
  return goes_on;
}

void await_all(Workers& workers) {
  const auto done = [&] { return workers.left.load(std::memory_order_acquire) == 0; };
  if (look_out(done)) return;
  pthread_mutex_lock(&workers.mutex);
  while (!done()) pthread_cond_wait(&workers.done, &workers.mutex);
  pthread_mutex_unlock(&workers.mutex);
}

void* thread_main(void* argument) {
  const NoDenormals none;
  Workers& workers = *static_cast<Workers*>(argument);
  while (await_loop(workers)) work(workers);
  return nullptr;
}

}  // namespace

Workers* make_workers(int threads) {
  void* memory = std::malloc(sizeof(Workers));
  if (!memory) return nullptr;
  Workers* workers = new (memory) Workers;
  const int wanted = (threads < kMostThreads ? threads : kMostThreads) - 1;
  while (workers->started < wanted &&
         pthread_create(&workers->threads[workers->started], nullptr, thread_main, workers) == 0)
    ++workers->started;
  return workers;
}

void free_workers(Workers* workers) {
  if (!workers) return;
  pthread_mutex_lock(&workers->mutex);
  workers->ends = true;
  pthread_cond_broadcast(&workers->begun);
  pthread_mutex_unlock(&workers->mutex);
  for (int i = 0; i < workers->started; ++i) pthread_join(workers->threads[i], nullptr);
  workers->~Workers();
  std::free(workers);
}

int count_threads(const Workers* workers) { return workers ? workers->started + 1 : 1; }

void share(Workers* workers, int count, void (*task)(void*, int), void* context) {
  if (!workers || !workers->started || count < 2 || static_cast<uint64_t>(count) > kMost / 2) {
    for (int index = 0; index < count; ++index) task(context, index);
    return;
  }
  workers->task = task;
  workers->context = context;
  workers->left.store(count, std::memory_order_relaxed);
  const uint64_t number = (workers->loop.load(std::memory_order_relaxed) >> 2 * kBits) + 1;
  pthread_mutex_lock(&workers->mutex);  // whoever is about to sleep sees the loop, or is woken
  workers->loop.store(number << 2 * kBits | static_cast<uint64_t>(count) << kBits, std::memory_order_release);
  if (workers->sleeping) pthread_cond_broadcast(&workers->begun);
  pthread_mutex_unlock(&workers->mutex);
  work(*workers);
  await_all(*workers);
}

}  // namespace dmsflow
