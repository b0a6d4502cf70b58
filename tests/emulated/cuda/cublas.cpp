// cuBLAS on the CPU: column-major matrix products, with the checks of the real one and some more.
//
// A product fails with
//   1 (not initialised) without a handle;
//   7 (invalid value) for a wrong op, size, leading dimension or pointer;
//   13 (execution failed) if outputs of a batch overlap, or an input is part of the output;
//   14 (internal error) if the stream was set after the workspace, which the stream's change forgets;
//   15 (not supported) for types that cuBLAS does not combine.
// Each product overwrites the ends of its workspace, and is described in `last_product`.

#include <stdint.h>
#include <string.h>

#include <set>
#include <vector>

typedef _Float16 half;
typedef long long int64;

enum { R_32F = 0, R_64F = 1, R_16F = 2, COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_32F_FAST_TF32 = 77 };

struct Handle { void *stream, *workspace; size_t workspace_bytes; int math_mode; };
struct Product {
    void *stream, *workspace;
    int64 workspace_bytes, number, batched, math_mode;
    int64 op_a, op_b, m, n, k, type_a, type_b, type_c, lda, ldb, ldc, count, compute;
};

static std::set<Handle*> handles;

extern "C" {

Product last_product;
int64 created_handles;

int cublasGetProperty(int kind, int* value) { return kind < 0 || kind > 2 ? 7 : (*value = 13 - 4 * kind, 0); }

int cublasCreate_v2(Handle** handle) {
    handles.insert(*handle = new Handle());
    ++created_handles;
    return 0;
}

int cublasSetMathMode(Handle* h, int mode) { return handles.count(h) ? (h->math_mode = mode, 0) : 1; }

int cublasSetStream_v2(Handle* h, void* stream) {
    if (!handles.count(h)) return 1;
    h->stream = stream;
    h->workspace = nullptr;
    return 0;
}

int cublasSetWorkspace_v2(Handle* h, void* workspace, size_t bytes) {
    if (!handles.count(h)) return 1;
    if (!workspace || (uintptr_t)workspace % 256) return 7;
    h->workspace = workspace;
    h->workspace_bytes = bytes;
    return 0;
}

}

static float to_tf32(float x) {  // 10 bits of mantissa, rounded to nearest
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits >> 23 & 255) != 255) bits = (bits + 0x1000) & 0xffffe000;
    memcpy(&x, &bits, 4);
    return x;
}

template <typename In, typename Out, typename Sum>
static void multiply(Product p, Sum alpha, const In* a, int64 apart_a, const In* b, int64 apart_b, Sum beta, Out* c,
                     int64 apart_c) {
    const auto value = [&](In x) { return p.compute == COMPUTE_32F_FAST_TF32 ? Sum(to_tf32(float(x))) : Sum(x); };
    for (int64 g = 0; g < p.count; ++g, a += apart_a, b += apart_b, c += apart_c)
        for (int64 j = 0; j < p.n; ++j)
            for (int64 i = 0; i < p.m; ++i) {
                Sum sum = 0;
                for (int64 l = 0; l < p.k; ++l)
                    sum += value(a[p.op_a ? i * p.lda + l : l * p.lda + i]) *
                           value(b[p.op_b ? l * p.ldb + j : j * p.ldb + l]);
                Out& out = c[j * p.ldc + i];
                out = Out(beta == 0 ? alpha * sum : alpha * sum + beta * Sum(out));  // beta 0 does not read C
            }
}

static bool overlap(const char* a, int64 bytes_a, const char* b, int64 bytes_b) {
    return a < b + bytes_b && b < a + bytes_a;
}

static int64 extent(int64 rows, int64 columns, int64 leading, int64 apart, int64 count, int64 item) {
    return ((count - 1) * apart + (columns - 1) * leading + rows) * item;
}

static int run(Handle* h, Product p, const void* alpha, const void* a, int64 apart_a, const void* b, int64 apart_b,
               const void* beta, void* c, int64 apart_c, int algorithm) {
    if (!handles.count(h)) return 1;
    if (!h->workspace || h->workspace_bytes < 32 << 20) return 14;
    if (p.op_a < 0 || p.op_a > 1 || p.op_b < 0 || p.op_b > 1 || p.m < 1 || p.n < 1 || p.k < 1 || p.count < 1) return 7;
    if (p.lda < (p.op_a ? p.k : p.m) || p.ldb < (p.op_b ? p.n : p.k) || p.ldc < p.m) return 7;
    if (!a || !b || !c || !alpha || !beta || algorithm != -1) return 7;
    const bool tf32 = p.compute == COMPUTE_32F_FAST_TF32, single = p.compute == COMPUTE_32F;
    const int64 kinds = p.type_a * 100 + p.type_b * 10 + p.type_c;
    if (!((kinds == 0 && (single || tf32)) || (kinds == 111 && p.compute == COMPUTE_64F) ||
          ((kinds == 222 || kinds == 220) && single))) return 15;

    const int64 in = p.type_a == R_16F ? 2 : p.type_a == R_64F ? 8 : 4, item = p.type_c == R_16F ? 2 : p.type_c ? 8 : 4;
    const int64 bytes_c = extent(p.m, p.n, p.ldc, apart_c, p.count, item);
    if (apart_a < 0 || apart_b < 0 || apart_c < 0) return 7;
    if (p.count > 1 && apart_c < p.m && apart_c * item < extent(p.m, p.n, p.ldc, 0, 1, item)) return 13;
    const int64 rows_a = p.op_a ? p.k : p.m, rows_b = p.op_b ? p.n : p.k;
    if (overlap((char*)a, extent(rows_a, p.m * p.k / rows_a, p.lda, apart_a, p.count, in), (char*)c, bytes_c) ||
        overlap((char*)b, extent(rows_b, p.n * p.k / rows_b, p.ldb, apart_b, p.count, in), (char*)c, bytes_c)) return 13;

    memset(h->workspace, 0xff, 256);
    memset((char*)h->workspace + h->workspace_bytes - 256, 0xff, 256);
    p.stream = h->stream;
    p.workspace = h->workspace;
    p.workspace_bytes = h->workspace_bytes;
    p.math_mode = h->math_mode;
    p.number = last_product.number + 1;
    last_product = p;
    const float alpha_f = *(float*)alpha, beta_f = *(float*)beta;
    if (kinds == 111)
        multiply(p, *(double*)alpha, (double*)a, apart_a, (double*)b, apart_b, *(double*)beta, (double*)c, apart_c);
    else if (kinds == 0) multiply(p, alpha_f, (float*)a, apart_a, (float*)b, apart_b, beta_f, (float*)c, apart_c);
    else if (kinds == 222) multiply(p, alpha_f, (half*)a, apart_a, (half*)b, apart_b, beta_f, (half*)c, apart_c);
    else multiply(p, alpha_f, (half*)a, apart_a, (half*)b, apart_b, beta_f, (float*)c, apart_c);
    return 0;
}

extern "C" int cublasGemmEx(Handle* h, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                            int type_a, int lda, const void* b, int type_b, int ldb, const void* beta, void* c,
                            int type_c, int ldc, int compute, int algorithm) {
    const Product p = {nullptr, nullptr, 0, 0, 0, 0, op_a, op_b, m, n, k, type_a, type_b, type_c, lda, ldb, ldc, 1, compute};
    return run(h, p, alpha, a, 0, b, 0, beta, c, 0, algorithm);
}

extern "C" int cublasGemmStridedBatchedEx(Handle* h, int op_a, int op_b, int m, int n, int k, const void* alpha,
                                          const void* a, int type_a, int lda, int64 apart_a, const void* b, int type_b,
                                          int ldb, int64 apart_b, const void* beta, void* c, int type_c, int ldc,
                                          int64 apart_c, int count, int compute, int algorithm) {
    const Product p = {nullptr, nullptr, 0, 0, 1, 0, op_a, op_b, m, n, k, type_a, type_b, type_c, lda, ldb, ldc, count, compute};
    return run(h, p, alpha, a, apart_a, b, apart_b, beta, c, apart_c, algorithm);
}
