// A plugin for qemu-aarch64: how often each translated block runs, from one mark to the next.
//
// Marks are system calls that any program can make and no runtime makes by itself:
//   clock_gettime(CLOCK_TAI)       begins a run that is counted, and ends it when called again
//   clock_gettime(CLOCK_BOOTTIME)  within such a run ends one span and begins the next
// Counted are the blocks of the first thread; of others only how many they ran.
//
// Options: out=PATH; count=all counts the whole process as one run, count=spans begins a run at the
// first CLOCK_BOOTTIME that ends at the last. The file written to PATH has these lines:
//   run                      what follows belongs to the next run
//   block ID ADDRESS CODE    a block when it first appears; ADDRESS and CODE in hexadecimal
//   span OTHERS              what follows belongs to the run's next span; OTHERS: blocks of other threads
//   ID TIMES                 a block that the first thread ran in it, and how often
//   end                      the file is whole
//
// QEMU's header for plugins is packaged by few systems, so what is used of it is declared here: version 1
// of its interface (QEMU 6.2 to 8.2). DMSFLOW_PLUGIN_API names a newer one: from 3 on, code is copied out.
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef DMSFLOW_PLUGIN_API
#define DMSFLOW_PLUGIN_API 1
#endif
#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t Id;
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb* tb);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb* tb, size_t index);
#if DMSFLOW_PLUGIN_API >= 3
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn* insn, void* out, size_t size);
#else
const void* qemu_plugin_insn_data(const struct qemu_plugin_insn* insn);
#endif
void qemu_plugin_register_vcpu_tb_trans_cb(Id id, void (*call)(Id, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb* tb, void (*call)(unsigned, void*), int flags,
                                          void* data);
void qemu_plugin_register_vcpu_syscall_cb(Id id, void (*call)(Id, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(Id id, void (*call)(Id, void*), void* data);

EXPORT int qemu_plugin_version = DMSFLOW_PLUGIN_API;
EXPORT int qemu_plugin_install(Id id, const void* info, int argc, char** argv);

enum { kClockGettime = 113, kBoottime = 7, kTai = 11 };
enum { kInstructionBytes = 4, kMostInstructions = 512, kBuckets = 1 << 16 };
enum Mode { kRuns, kAll, kSpans };

struct Block {
  struct Block* next;     // of the same bucket
  struct Block* touched;  // the one that ran for the first time in this span before this one
  uint64_t address, times;
  uint32_t bytes;
  int number;  // in the file; -1: not written yet
  uint8_t code[];
};

static struct Block* buckets[kBuckets];
static struct Block* touched;
static uint64_t others;
static int lock, blocks_written;
static bool counting;
static enum Mode mode;
static FILE* out;

static void take(void) {
  while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {
  }
}

static void release(void) { __atomic_store_n(&lock, 0, __ATOMIC_RELEASE); }

// The same code at the same address is the same block, however often it is translated.
static struct Block* find(uint64_t address, const uint8_t* code, uint32_t bytes) {
  struct Block** bucket = &buckets[(address >> 2) % kBuckets];
  for (struct Block* block = *bucket; block; block = block->next) {
    if (block->address == address && block->bytes == bytes && !memcmp(block->code, code, bytes)) return block;
  }
  struct Block* block = calloc(1, sizeof(struct Block) + bytes);
  if (!block) abort();
  block->address = address;
  block->bytes = bytes;
  block->number = -1;
  memcpy(block->code, code, bytes);
  block->next = *bucket;
  *bucket = block;
  return block;
}

static void on_execution(unsigned thread, void* data) {
  struct Block* block = data;
  if (thread) {
    __atomic_fetch_add(&others, 1, __ATOMIC_RELAXED);
    return;
  }
  if (!block->times++) {
    block->touched = touched;
    touched = block;
  }
}

static void on_translation(Id id, struct qemu_plugin_tb* tb) {
  (void)id;
  uint8_t code[kMostInstructions * kInstructionBytes];
  size_t count = qemu_plugin_tb_n_insns(tb);
  if (count > kMostInstructions) count = kMostInstructions;
  for (size_t index = 0; index < count; ++index) {
    struct qemu_plugin_insn* insn = qemu_plugin_tb_get_insn(tb, index);
    uint8_t* to = code + index * kInstructionBytes;
#if DMSFLOW_PLUGIN_API >= 3
    qemu_plugin_insn_data(insn, to, kInstructionBytes);
#else
    memcpy(to, qemu_plugin_insn_data(insn), kInstructionBytes);
#endif
  }
  take();
  struct Block* block = find(qemu_plugin_tb_vaddr(tb), code, (uint32_t)(count * kInstructionBytes));
  release();
  qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execution, 0, block);
}

static void write_block(struct Block* block) {
  block->number = blocks_written++;
  fprintf(out, "block %d %" PRIx64 " ", block->number, block->address);
  for (uint32_t index = 0; index < block->bytes; ++index) fprintf(out, "%02x", block->code[index]);
  fputc('\n', out);
}

// Writes what ran since the last mark if it counts, and begins anew.
static void end_span(void) {
  struct Block* first = touched;
  if (counting) {
    for (struct Block* block = first; block; block = block->touched) {
      if (block->number < 0) write_block(block);
    }
    fprintf(out, "span %" PRIu64 "\n", __atomic_load_n(&others, __ATOMIC_RELAXED));
  }
  for (struct Block* block = first; block; block = block->touched) {
    if (counting) fprintf(out, "%d %" PRIu64 "\n", block->number, block->times);
    block->times = 0;
  }
  touched = NULL;
  __atomic_store_n(&others, 0, __ATOMIC_RELAXED);
}

static void on_syscall(Id id, unsigned thread, int64_t number, uint64_t first, uint64_t a2, uint64_t a3, uint64_t a4,
                       uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (mode == kAll || thread || number != kClockGettime) return;
  const bool outer = mode == kRuns ? first == kTai : first == kBoottime && !counting;
  if (!outer && first != kBoottime) return;
  end_span();
  if (!outer) return;
  counting = !counting;
  if (counting) fputs("run\n", out);
}

static void on_end(Id id, void* data) {
  (void)id, (void)data;
  if (mode == kAll) end_span();
  fputs("end\n", out);
  fclose(out);
}

int qemu_plugin_install(Id id, const void* info, int argc, char** argv) {
  (void)info;
  for (int index = 0; index < argc; ++index) {
    if (!strncmp(argv[index], "out=", 4)) {
      out = fopen(argv[index] + 4, "w");
    } else if (!strcmp(argv[index], "count=all")) {
      mode = kAll;
    } else if (!strcmp(argv[index], "count=spans")) {
      mode = kSpans;
    } else {
      return -1;
    }
  }
  if (!out) return -1;
  if (mode == kAll) {
    counting = true;
    fputs("run\n", out);
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
  qemu_plugin_register_atexit_cb(id, on_end, NULL);
  return 0;
}
