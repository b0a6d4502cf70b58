// The parts of CUDA C++ that the kernels use, and the functions through which Python launches them with block.h.

#include "block.h"

#include <math.h>
#include <type_traits>
#include <utility>

#define Half _Float16
#define __global__
#define __launch_bounds__(threads, blocks)
#define __device__
#define __shared__ static thread_local
#define __restrict__
#define gridDim gpu.grid
#define blockDim gpu.block
#define blockIdx gpu.block_index
#define threadIdx gpu.thread_index

__attribute__((noinline)) static void __syncthreads() { suspend(BARRIER, __builtin_return_address(0)); }

template <class V> __attribute__((noinline)) V __shfl_xor_sync(unsigned mask, V value, int d) {
    Fiber& me = gpu.fibers[gpu.current];
    if (mask != ~0u) fail("a shuffle of less than a warp");
    me.source = gpu.current ^ d;
    memcpy(me.sent, &value, sizeof value);
    suspend(SHUFFLE, __builtin_return_address(0));
    memcpy(&value, me.received, sizeof value);
    return value;
}

static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
static double __longlong_as_double(long long bits) { double d; memcpy(&d, &bits, 8); return d; }

#define EXTREMES(V, least, most) \
    static V min(V a, V b) { return least; } \
    static V max(V a, V b) { return most; }
EXTREMES(int, a < b ? a : b, a < b ? b : a)
EXTREMES(unsigned, a < b ? a : b, a < b ? b : a)
EXTREMES(float, fminf(a, b), fmaxf(a, b))
EXTREMES(double, fmin(a, b), fmax(a, b))

// ---- the functions that Python calls for each kernel

// Write a parameter's type: & for a pointer to constants, * for another pointer, then NumPy's kind and size, as in &f4.
template <class P> NO_HOOKS int describe(char* out) {
    using V = std::remove_pointer_t<P>;
    const char kind = std::is_floating_point_v<V> || std::is_same_v<std::remove_const_t<V>, _Float16> ? 'f' : std::is_class_v<V> ? 'V' :
        std::is_same_v<std::remove_const_t<V>, bool> ? 'b' : std::is_unsigned_v<V> ? 'u' : 'i';
    return sprintf(out, "%s%c%zu ", !std::is_pointer_v<P> ? "" : std::is_const_v<V> ? "&" : "*", kind, sizeof(V));
}

template <auto> struct Kernel;
template <class... P, void (*kernel)(P...)> struct Kernel<kernel> {
    template <size_t... k> NO_HOOKS static void apply(void** args, std::index_sequence<k...>) { kernel(*(P*)args[k]...); }
    NO_HOOKS static void call(void** args) { apply(args, std::index_sequence_for<P...>()); }
    NO_HOOKS static const char* parameters() {
        static char text[400], *end;
        end = text;
        ((end += describe<P>(end)), ...);
        return text;
    }
};

#define EXPORT(kernel) \
    extern "C" const char* parameters_of_##kernel() { return Kernel<kernel>::parameters(); } \
    extern "C" const char* launch_##kernel(const unsigned* dims, void** args, const Range* ranges, unsigned count) { \
        return launch(Kernel<kernel>::call, dims, args, ranges, count); \
    }
