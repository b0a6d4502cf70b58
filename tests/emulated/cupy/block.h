// Runs CUDA kernels on one CPU thread: block after block, with a fiber for each thread of a block.
//
// The kernels are compiled with -fsanitize=thread, and the hooks below replace the sanitizer's library, so they see every
// memory access. A launch fails if a kernel
// - reads or writes outside its arrays, or writes to a constant array;
// - has a race: two threads access the same element, and at least one writes; for an element of shared memory, without a
//   barrier in between;
// - has a barrier or shuffle that not all threads reach;
// - has undefined behaviour.

#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct Dim { unsigned x, y, z; };
struct Cell { unsigned reader, writer; };  // For each, 1 + the thread's number in the grid, or 0 for no thread.
struct Range { char *start, *end; unsigned item, constant; Cell* cells; };
enum State { READY, BARRIER, SHUFFLE, DONE };
struct Fiber {
    State state;
    bool begun;
    const void* site;
    unsigned source;
    char sent[8], received[8], stack[1 << 16];
    jmp_buf resume;
    ucontext_t context;
};

static struct Machine {
    Dim grid, block, block_index, thread_index;
    unsigned threads, current, block_number, ranges;
    bool running;
    void (*call)(void**);
    void** args;
    jmp_buf scheduler;
    char error[200];
    Range range[32];  // range[0] is the shared memory.
    Fiber fibers[1024];
} gpu;

// ---- accesses to memory

#define NO_HOOKS __attribute__((no_sanitize("thread")))

NO_HOOKS static void fail(const char* what) {
    const Dim &b = gpu.block_index, &t = gpu.thread_index;
    snprintf(gpu.error, sizeof gpu.error, "%s: block (%u, %u), thread (%u, %u)", what, b.x, b.y, t.x, t.y);
    if (gpu.running) _longjmp(gpu.scheduler, 1);
}

NO_HOOKS static void check_access(void* where, unsigned size, bool writes) {
    char* p = (char*)where;
    if (!gpu.running || (p >= (char*)&gpu && p < (char*)(&gpu + 1))) return;
    for (Range* r = gpu.range; r < gpu.range + gpu.ranges; ++r) {
        if (p < r->start || p + size > r->end) continue;
        const unsigned me = 1 + gpu.block_number * 1024 + gpu.current;
        for (unsigned at = 0; at < size; at += r->item) {  // a wide access covers several elements
            Cell& cell = r->cells[(p + at - r->start) / r->item];
            if (writes && r->constant) fail("a write to a constant array");
            if ((cell.writer && cell.writer != me) || (writes && cell.reader && cell.reader != me)) fail("a race");
            if (writes) cell.writer = me;
            else cell.reader = cell.reader && cell.reader != me ? ~0u : me;
        }
        return;
    }
    fail(writes ? "a write outside all arrays" : "a read outside all arrays");
}

#define HOOKS(n) \
    extern "C" NO_HOOKS void __tsan_read##n(void* p) { check_access(p, n, false); } \
    extern "C" NO_HOOKS void __tsan_write##n(void* p) { check_access(p, n, true); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
extern "C" NO_HOOKS void __tsan_read_range(void* p, size_t n) { check_access(p, n, false); }
extern "C" NO_HOOKS void __tsan_write_range(void* p, size_t n) { check_access(p, n, true); }
extern "C" NO_HOOKS void __tsan_func_entry(void*) {}
extern "C" NO_HOOKS void __tsan_func_exit(void*) {}
extern "C" NO_HOOKS void __tsan_init() {}

// ---- fibers

static void suspend(State state, const void* site) {  // Go back to the scheduler until it resumes this fiber.
    Fiber& me = gpu.fibers[gpu.current];
    me.state = state;
    me.site = site;
    if (!_setjmp(me.resume)) _longjmp(gpu.scheduler, 1);
}

static void run_thread() {  // Run this thread of one block after the other.
    for (;;) {
        gpu.call(gpu.args);
        suspend(DONE, nullptr);
    }
}

static void resume(unsigned k) {  // Start or resume fiber k until it suspends itself.
    Fiber& f = gpu.fibers[k];
    const Dim& b = gpu.block;
    gpu.current = k;
    gpu.thread_index = {k % b.x, k / b.x % b.y, k / b.x / b.y};
    if (_setjmp(gpu.scheduler)) {
        gpu.running = false;
        return;
    }
    gpu.running = true;
    if (f.begun) _longjmp(f.resume, 1);
    f.begun = true;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = sizeof f.stack;
    makecontext(&f.context, run_thread, 0);
    setcontext(&f.context);
}

static bool all_wait(unsigned first, unsigned count, State state) {  // Whether these fibers wait at the same place.
    for (unsigned k = first; k < first + count; ++k)
        if (gpu.fibers[k].state != state || gpu.fibers[k].site != gpu.fibers[first].site) return false;
    return true;
}

static bool try_shuffle(unsigned warp) {  // Exchange the values of a warp whose lanes all wait at the same shuffle.
    Fiber* f = gpu.fibers + 32 * warp;
    if (32 * warp + 32 > gpu.threads || !all_wait(32 * warp, 32, SHUFFLE)) return false;
    for (int lane = 0; lane < 32; ++lane) memcpy(f[lane].received, f[f[lane].source % 32].sent, 8);
    for (int lane = 0; lane < 32; ++lane) f[lane].state = READY;
    return true;
}

// Each warp runs as far as it can before the next warp begins. The order of warps and lanes differs from block to block.
static void run_block() {
    const Range& shared = gpu.range[0];
    static unsigned blocks;
    const unsigned salt = ++blocks * 2654435761u >> 20, warps = (gpu.threads + 31) / 32;
    memset(shared.start, 0xff, shared.end - shared.start);  // NaN
    for (bool all = true; all && !*gpu.error; all = all_wait(0, gpu.threads, BARRIER)) {
        memset(shared.cells, 0, (shared.end - shared.start) / shared.item * sizeof(Cell));
        for (unsigned k = 0; k < gpu.threads; ++k) gpu.fibers[k].state = READY;
        for (unsigned w = 0; w < warps; ++w)
            do
                for (unsigned lane = 0; lane < 32; ++lane) {
                    const unsigned k = 32 * ((w + salt) % warps) + (lane ^ salt % 32);
                    if (k < gpu.threads && gpu.fibers[k].state == READY && !*gpu.error) resume(k);
                }
            while (try_shuffle((w + salt) % warps));
    }
    if (!*gpu.error && !all_wait(0, gpu.threads, DONE)) fail("a barrier or shuffle that not all threads reach");
}

static thread_local volatile int anchor;  // Gives a library whose kernels use no shared memory a thread-local segment.

// Shared memory is thread-local here: find the thread-local segment of the library that contains `gpu`.
static int find_shared(dl_phdr_info* info, size_t, void*) {
    bool mine = false;
    for (int k = 0; k < info->dlpi_phnum; ++k) {
        const auto& part = info->dlpi_phdr[k];
        const char* start = (char*)info->dlpi_addr + part.p_vaddr;
        if (part.p_type == PT_LOAD && (char*)&gpu >= start && (char*)&gpu < start + part.p_memsz) mine = true;
    }
    for (int k = 0; mine && k < info->dlpi_phnum; ++k)
        if (info->dlpi_phdr[k].p_type == PT_TLS) {
            char* start = (char*)info->dlpi_tls_data;
            gpu.range[0] = {start, start + info->dlpi_phdr[k].p_memsz, 4, 0, nullptr};
        }
    return mine;
}

static const char* launch(void (*call)(void**), const unsigned* dims, void** args, const Range* ranges,
                          unsigned count) {
    const int signals[] = {SIGILL, SIGFPE, SIGSEGV, SIGBUS};
    struct sigaction old[4], mine = {};
    mine.sa_handler = [](int number) {
        if (!gpu.running) signal(number, SIG_DFL);  // The signal does not come from a kernel.
        fail("undefined behaviour or a crash");
    };
    mine.sa_flags = SA_NODEFER;
    memset(&gpu, 0, offsetof(Machine, fibers));
    gpu.grid = {dims[0], dims[1], dims[2]};
    gpu.block = {dims[3], dims[4], dims[5]};
    gpu.threads = dims[3] * dims[4] * dims[5];
    gpu.call = call;
    gpu.args = args;
    gpu.ranges = 1 + count;
    anchor = 0;  // The first access makes this thread's segment.
    dl_iterate_phdr(find_shared, nullptr);
    memcpy(gpu.range + 1, ranges, count * sizeof(Range));
    for (Range* r = gpu.range; r <= gpu.range + count; ++r)
        r->cells = (Cell*)calloc((r->end - r->start) / r->item + 1, sizeof(Cell));
    for (int k = 0; k < 4; ++k) sigaction(signals[k], &mine, old + k);
    for (unsigned b = dims[0] * dims[1] * dims[2]; b-- > 0 && !*gpu.error;) {
        gpu.block_number = b;
        gpu.block_index = {b % dims[0], b / dims[0] % dims[1], b / dims[0] / dims[1]};
        run_block();
    }
    for (int k = 0; k < 4; ++k) sigaction(signals[k], old + k, nullptr);
    for (Range* r = gpu.range; r <= gpu.range + count; ++r) free(r->cells);
    for (Fiber& f : gpu.fibers) f.begun &= !*gpu.error;
    return gpu.error;
}
