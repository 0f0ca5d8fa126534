// Threads that share a loop.
#pragma once

#include <cstddef>

namespace dmsflow {

class Workers;

// `threads` in all, the caller's included: threads - 1 are started, and sleep between two loops.
// Null: there is no memory. Fewer threads than asked for is no error: the caller does the rest.
Workers* make_workers(int threads);
void free_workers(Workers* workers);  // ends its threads; null is fine

int count_threads(const Workers* workers);  // 1 for null

// Calls task(context, index) once for each index below `count`, from any of the threads, and returns
// when all are done. Null workers: all in the caller's thread. One loop at a time.
void share(Workers* workers, int count, void (*task)(void* context, int index), void* context);

}  // namespace dmsflow
