// Put in front of every file on Linux: glibc 2.34 moved the threads into libc under new versions. The old
// ones are still there, and with them a library linked today loads on a system of 2014.
#pragma once

#include <stddef.h>  // says whether this is glibc

#if defined(__GLIBC__) || (defined(__has_include) && __has_include(<gnu/libc-version.h>))
#if defined(__x86_64__)
#define DMSFLOW_OLDEST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define DMSFLOW_OLDEST "GLIBC_2.17"
#endif
#endif

#ifdef DMSFLOW_OLDEST
#define DMSFLOW_OLD(name) __asm__(".symver " #name "," #name "@" DMSFLOW_OLDEST)
DMSFLOW_OLD(pthread_create);
DMSFLOW_OLD(pthread_join);
DMSFLOW_OLD(pthread_detach);
DMSFLOW_OLD(pthread_attr_setstacksize);
DMSFLOW_OLD(pthread_once);
DMSFLOW_OLD(pthread_key_create);
DMSFLOW_OLD(pthread_mutex_trylock);
DMSFLOW_OLD(pthread_sigmask);
DMSFLOW_OLD(sem_init);
DMSFLOW_OLD(sem_destroy);
DMSFLOW_OLD(sem_post);
DMSFLOW_OLD(sem_wait);
DMSFLOW_OLD(dlopen);
DMSFLOW_OLD(dlsym);
#undef DMSFLOW_OLD
#endif
