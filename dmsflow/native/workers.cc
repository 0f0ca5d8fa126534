// A pool of POSIX threads. They sleep on a condition variable, so that no core is kept busy between two runs.

#include "workers.h"

#include <pthread.h>

#include <atomic>
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

class Workers {
 public:
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t begun = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
  pthread_t threads[kMostThreads];
  int started = 0;       // threads beside the caller's
  unsigned turn = 0;     // loops so far
  int busy = 0;          // threads still in this one
  bool ends = false;
  int count = 0;
  void (*task)(void*, int) = nullptr;
  void* context = nullptr;
  std::atomic<int> next{0};
};

namespace {

void work(Workers& workers) {
  for (int index; (index = workers.next.fetch_add(1, std::memory_order_relaxed)) < workers.count;)
    workers.task(workers.context, index);
}

void* thread_main(void* argument) {
  const NoDenormals none;
  Workers& workers = *static_cast<Workers*>(argument);
  unsigned seen = 0;
  pthread_mutex_lock(&workers.mutex);
  for (;;) {
    while (workers.turn == seen && !workers.ends) pthread_cond_wait(&workers.begun, &workers.mutex);
    if (workers.ends) break;
    seen = workers.turn;
    pthread_mutex_unlock(&workers.mutex);
    work(workers);
    pthread_mutex_lock(&workers.mutex);
    if (--workers.busy == 0) pthread_cond_signal(&workers.done);
  }
  pthread_mutex_unlock(&workers.mutex);
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
  if (!workers || !workers->started || count < 2) {
    for (int index = 0; index < count; ++index) task(context, index);
    return;
  }
  pthread_mutex_lock(&workers->mutex);
  workers->count = count;
  workers->task = task;
  workers->context = context;
  workers->next.store(0, std::memory_order_relaxed);
  workers->busy = workers->started;
  ++workers->turn;
  pthread_cond_broadcast(&workers->begun);
  pthread_mutex_unlock(&workers->mutex);
  work(*workers);
  pthread_mutex_lock(&workers->mutex);
  while (workers->busy) pthread_cond_wait(&workers->done, &workers->mutex);
  pthread_mutex_unlock(&workers->mutex);
}

}  // namespace dmsflow
