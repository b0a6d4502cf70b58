// The CUDA kernels, compiled by NVRTC with -DReal=float or double and -DIndex=uint8 or int64 (of an argmax).
//
// A row of blocks, blockIdx.x, works on one channel, or on one group of values that share their statistics. Its threads
// number the values of the channel in all images, e = 0, 1, ... Results are gathered: no two threads write to the same
// element, and sums are added in a fixed order, so runs repeat bit by bit.
//
// Letters: N images, C channels, (H, W) image, (KH, KW) window, (SH, SW) stride, (PH, PW) padding, (OH, OW) output.

typedef Real T;
typedef unsigned char uint8;
typedef long long int64;

#define THREADS 256  // of every block

#define FOR_EACH(e, count) \
    for (unsigned e = blockIdx.y * THREADS + threadIdx.x; e < (count); e += gridDim.y * THREADS)

// A divisor with its multiplier: n / d = (the upper half of n * m, plus n) >> s for n < 2^31 (Granlund and
// Montgomery 1994). An ordinary division would cost more time than loading a value.
struct Divisor { unsigned d, m, s; };
static_assert(sizeof(Divisor) == 12, "DIVISOR in _launch.py has other fields");

__device__ unsigned operator/(unsigned n, Divisor by) { return (__umulhi(n, by.m) + n) >> by.s; }

__device__ unsigned operator%(unsigned n, Divisor by) { return n - n / by * by.d; }

__device__ T minus_infinity() { return __longlong_as_double(0xfff0000000000000); }

__device__ bool exceeds(T a, T b) { return a > b || a != a; }  // NaN exceeds everything

// ---- windows

struct Windows {
    int N, C, H, W, KH, KW, SH, SW, PH, PW, OH, OW;
    Divisor image, row, output, output_row, down, across;  // H * W, W, OH * OW, OW, SH, SW
};
static_assert(sizeof(Windows) == 120, "_WINDOWS in _windows.py has other fields");

__device__ size_t plane(Windows g, unsigned n) { return (size_t)n * g.C + blockIdx.x; }

// The windows along one axis that contain a pixel: first to last. Pixel numbers include the padding.
struct Seen { int first, last; };

__device__ Seen seen(int pixel, int size, Divisor stride, int count) {
    Seen windows;
    windows.first = pixel < size ? 0 : unsigned(pixel - size) / stride + 1;
    windows.last = min(int(unsigned(pixel) / stride), count - 1);
    return windows;
}

extern "C" __global__ void unfold(const T* __restrict__ x, T* __restrict__ cols, Windows g) {
    const unsigned P = g.N * g.output.d;
    FOR_EACH(p, P) {
        const unsigned n = p / g.output, l = p % g.output;
        const int top = l / g.output_row * g.SH - g.PH, left = l % g.output_row * g.SW - g.PW;
        const T* image = x + plane(g, n) * g.image.d;
        T* out = cols + (size_t)blockIdx.x * g.KH * g.KW * P + p;
        for (int h = top; h < top + g.KH; ++h)
            for (int w = left; w < left + g.KW; ++w, out += P)
                *out = h >= 0 && h < g.H && w >= 0 && w < g.W ? image[h * g.W + w] : T(0);
    }
}

extern "C" __global__ void fold(const T* __restrict__ cols, T* __restrict__ x, Windows g) {
    const size_t P = (size_t)g.N * g.output.d;
    FOR_EACH(e, g.N * g.image.d) {
        const unsigned n = e / g.image, pixel = e % g.image;
        const int h = pixel / g.row + g.PH, w = pixel % g.row + g.PW;
        const Seen rows = seen(h, g.KH, g.down, g.OH), columns = seen(w, g.KW, g.across, g.OW);
        const T* mine = cols + n * g.output.d;
        T sum = 0;
        for (int i = rows.first; i <= rows.last; ++i)
            for (int j = columns.first; j <= columns.last; ++j) {
                const size_t k = ((size_t)blockIdx.x * g.KH + h - i * g.SH) * g.KW + w - j * g.SW;
                sum += mine[k * P + i * g.OW + j];
            }
        x[plane(g, n) * g.image.d + pixel] = sum;
    }
}

extern "C" __global__ void max_pool(const T* __restrict__ x, T* __restrict__ out, Index* __restrict__ argmax,
                                    Windows g) {
    FOR_EACH(p, g.N * g.output.d) {
        const unsigned n = p / g.output, l = p % g.output;
        const int top = l / g.output_row * g.SH - g.PH, left = l % g.output_row * g.SW - g.PW;
        const T* image = x + plane(g, n) * g.image.d;
        T most = minus_infinity();
        int winner = max(0, -top) * g.KW + max(0, -left);
        for (int i = max(0, -top); i < min(g.KH, g.H - top); ++i)
            for (int j = max(0, -left); j < min(g.KW, g.W - left); ++j) {
                const T value = image[(top + i) * g.W + left + j];
                if (value > most || value != value && most == most) winner = i * g.KW + j;
                if (exceeds(value, most)) most = value;
            }
        out[plane(g, n) * g.output.d + l] = most;
        argmax[plane(g, n) * g.output.d + l] = winner;
    }
}

extern "C" __global__ void max_pool_backward(const T* __restrict__ dout, const Index* __restrict__ argmax, T* __restrict__ dx,
                                      Windows g) {
    FOR_EACH(e, g.N * g.image.d) {
        const unsigned n = e / g.image, pixel = e % g.image;
        const int h = pixel / g.row + g.PH, w = pixel % g.row + g.PW;
        const Seen rows = seen(h, g.KH, g.down, g.OH), columns = seen(w, g.KW, g.across, g.OW);
        T sum = 0;
        for (int i = rows.first; i <= rows.last; ++i)
            for (int j = columns.first; j <= columns.last; ++j) {
                const size_t window = plane(g, n) * g.output.d + i * g.OW + j;
                if (argmax[window] == (h - i * g.SH) * g.KW + w - j * g.SW) sum += dout[window];
            }
        dx[plane(g, n) * g.image.d + pixel] = sum;
    }
}

// ---- groups: an array (A, S, B) has S groups of A * B values each; `pieces` blocks share the sum of a group

// gamma and beta have `channels` values, each for `inner` consecutive values of the array.
struct Groups { unsigned A, S, pieces, channels; Divisor B, inner; };
static_assert(sizeof(Groups) == 40, "_GROUPS in _groups.py has other fields");

__device__ unsigned size(Groups g) { return g.A * g.B.d; }

__device__ size_t index(Groups g, unsigned e) {
    return (size_t)(e / g.B) * (g.S - 1) * g.B.d + (size_t)blockIdx.x * g.B.d + e;
}

__device__ unsigned first_channel(Groups g) { return (size_t)blockIdx.x * g.B.d / g.inner.d % g.channels; }

__device__ unsigned channel(Groups g, unsigned first, unsigned e) {
    return g.inner.d >= g.B.d ? first : first + e % g.B / g.inner;
}

template <typename V>
__device__ V add(V a, V b) { return a + b; }

// All threads of the block get the same bits. `join` is commutative, and joining with 0 changes nothing.
template <typename V, V join(V, V)>
__device__ V block_join(V value) {
    __shared__ V warps[THREADS / 32];
    for (int d = 16; d > 0; d /= 2) value = join(value, __shfl_xor_sync(0xffffffff, value, d));
    __syncthreads();  // Another thread may still read what an earlier call wrote.
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
    for (int k = 0; k < THREADS / 32; ++k) value = join(value, warps[k]);
    return value;
}

template <typename V>
__device__ V block_sum(V value) { return block_join<V, add<V>>(value); }

template <typename V>
__device__ V block_total(const V* values, unsigned count) {
    V sum = 0;
    for (unsigned k = threadIdx.x; k < count; k += THREADS) sum += values[k];
    return block_sum(sum);
}

template <typename V>
__device__ V mean_of(const V* pieces, Groups g) {
    return block_total(pieces + (size_t)blockIdx.x * g.pieces, g.pieces) / size(g);
}

template <typename V>
__device__ void store_piece(V sum, V* sums) {  // Write this block's piece of a sum, which block_total adds up.
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[(size_t)blockIdx.x * gridDim.y + blockIdx.y] = sum;
}

extern "C" __global__ void total(const T* sums, T* totals, Groups g) {
    const T sum = block_total(sums + (size_t)blockIdx.x * g.pieces, g.pieces);
    if (threadIdx.x == 0) totals[blockIdx.x] = sum;
}

// ---- convolution: matrices whose rows are groups, to images and back

extern "C" __global__ void to_images(const T* __restrict__ rows, const T* bias, T* __restrict__ images, Groups g) {
    const T b = bias ? bias[blockIdx.x] : T(0);
    #pragma unroll 4
    FOR_EACH(e, size(g)) images[index(g, e)] = rows[(size_t)blockIdx.x * size(g) + e] + b;
}

extern "C" __global__ void to_rows(const T* __restrict__ images, T* __restrict__ rows, T* sums, Groups g) {
    T sum = 0;
    #pragma unroll 4
    FOR_EACH(e, size(g)) {
        const T value = images[index(g, e)];
        rows[(size_t)blockIdx.x * size(g) + e] = value;
        sum += value;
    }
    store_piece(sum, sums);
}

// ---- normalisation

// Sums are in double: the rounding error of a float mean far from zero may exceed the differences between values.
extern "C" __global__ void sum(const T* __restrict__ x, double* sums, Groups g) {
    double sum = 0;
    #pragma unroll 4
    FOR_EACH(e, size(g)) sum += x[index(g, e)];
    store_piece(sum, sums);
}

// Squares of values beyond 1e19 overflow in float, so they are double.
extern "C" __global__ void sum_of_squares(const T* __restrict__ x, const double* sums, double* squares, Groups g) {
    const double mean = mean_of(sums, g);
    double sum = 0;
    #pragma unroll 4
    FOR_EACH(e, size(g)) {
        const double d = x[index(g, e)] - mean;
        sum += d * d;
    }
    store_piece(sum, squares);
}

extern "C" __global__ void normalise(const T* __restrict__ x, const T* __restrict__ gamma, const T* __restrict__ beta,
                                     const double* sums, const double* squares, double eps, T* __restrict__ out,
                                     T* means, T* vars, T* inv_stds, Groups g) {
    const double var = mean_of(squares, g), exact = mean_of(sums, g);
    const T mean = exact, rest = exact - mean, inv_std = 1 / sqrt(var + eps);
    if (threadIdx.x == 0 && blockIdx.y == 0) {
        means[blockIdx.x] = mean;
        vars[blockIdx.x] = sizeof(T) < sizeof(double) && var > 3e38 ? 3e38 : var;
        inv_stds[blockIdx.x] = inv_std;
    }
    const unsigned first = first_channel(g);
    #pragma unroll 4
    FOR_EACH(e, size(g)) {
        const unsigned c = channel(g, first, e);
        const size_t i = index(g, e);
        out[i] = (x[i] - mean - rest) * (inv_std * gamma[c]) + beta[c];
    }
}

// The sums of dout, dout * xhat, gamma * dout and gamma * dout * xhat over the groups of `g`. Each group gives one value of
// dgamma; `rows` groups share their statistics. sums is (4, S, pieces).
extern "C" __global__ void gradient_sums(const T* __restrict__ dout, const T* __restrict__ x, const T* means,
                                         const T* inv_stds, const T* __restrict__ gamma, T* sums, int64 rows,
                                         Groups g) {
    const T mean = means[blockIdx.x / rows], inv_std = inv_stds[blockIdx.x / rows];
    const unsigned first = first_channel(g);
    T s[4] = {0, 0, 0, 0};
    #pragma unroll 4
    FOR_EACH(e, size(g)) {
        const size_t i = index(g, e);
        const T d = dout[i], xhat = (x[i] - mean) * inv_std, scaled = d * gamma[channel(g, first, e)];
        s[0] += d;
        s[1] += d * xhat;
        s[2] += scaled;
        s[3] += scaled * xhat;
    }
    for (int k = 0; k < 4; ++k) store_piece(s[k], sums + (size_t)k * g.S * g.pieces);
}

// The values of a group of `g` share their statistics; gradient_sums wrote `rows` sums for each group, in `pieces` pieces.
extern "C" __global__ void normalise_backward(const T* __restrict__ dout, const T* __restrict__ x, const T* means,
                                              const T* inv_stds, const T* __restrict__ gamma, const T* sums,
                                              T* __restrict__ dx, T* dgamma, T* dbeta, int64 rows, Groups g) {
    const T mean = means[blockIdx.x], inv_std = inv_stds[blockIdx.x];
    const size_t mine = blockIdx.x * rows * g.pieces, all = g.S * rows * g.pieces;
    const T mean_dxhat = block_total(sums + 2 * all + mine, rows * g.pieces) / size(g);
    const T mean_dxhat_xhat = block_total(sums + 3 * all + mine, rows * g.pieces) / size(g);
    const unsigned first = first_channel(g);
    #pragma unroll 4
    FOR_EACH(e, size(g)) {
        const size_t i = index(g, e);
        dx[i] = inv_std * (dout[i] * gamma[channel(g, first, e)] - mean_dxhat - (x[i] - mean) * inv_std * mean_dxhat_xhat);
    }
    if (blockIdx.y > 0) return;
    for (unsigned r = threadIdx.x; r < rows; r += THREADS) {
        T db = 0, dg = 0;
        for (unsigned k = 0; k < g.pieces; ++k) {
            db += sums[mine + r * g.pieces + k];
            dg += sums[all + mine + r * g.pieces + k];
        }
        dbeta[blockIdx.x * rows + r] = db;
        dgamma[blockIdx.x * rows + r] = dg;
    }
}

// ---- L2 penalty: `decay` computes grad += reg * W and pieces of sum(W * W), `penalty` adds those to the loss

extern "C" __global__ void decay(const T* __restrict__ W, T* __restrict__ grad, T* sums, double reg, int64 count) {
    T sum = 0;
    #pragma unroll 4
    FOR_EACH(e, count) {
        grad[e] += T(reg) * W[e];
        sum += W[e] * W[e];
    }
    store_piece(sum, sums);
}

extern "C" __global__ void penalty(const T* loss, const T* sums, T* out, double reg, int64 pieces) {
    const T sum = block_total(sums, pieces);
    if (threadIdx.x == 0) *out = *loss + T(0.5 * reg) * sum;
}

// ---- the largest magnitude among finite values, and whether all values are finite

__device__ T larger(T a, T b) { return max(a, b); }

// Each block writes the largest finite magnitude of its values, and 1 if any is not finite. pieces is (2, blocks).
extern "C" __global__ void largest_finite(const T* __restrict__ x, T* pieces, int64 count) {
    T largest = 0, nonfinite = 0;
    #pragma unroll 4
    FOR_EACH(e, count)
        if (isfinite(x[e])) largest = larger(largest, fabs(x[e]));
        else nonfinite = 1;
    largest = block_join<T, larger>(largest);
    nonfinite = block_join<T, larger>(nonfinite);
    if (threadIdx.x > 0) return;
    pieces[blockIdx.y] = largest;
    pieces[gridDim.y + blockIdx.y] = nonfinite;
}

extern "C" __global__ void largest_finite_of_pieces(const T* pieces, T* out, int64 count) {
    T largest = 0, nonfinite = 0;
    for (unsigned k = threadIdx.x; k < count; k += THREADS) {
        largest = larger(largest, pieces[k]);
        nonfinite = larger(nonfinite, pieces[count + k]);
    }
    largest = block_join<T, larger>(largest);
    nonfinite = block_join<T, larger>(nonfinite);
    if (threadIdx.x > 0) return;
    out[0] = largest;
    out[1] = 1 - nonfinite;
}

// ---- softmax cross-entropy: one warp for each sample

extern "C" __global__ void softmax(const T* __restrict__ x, const int64* y, T* losses, T* __restrict__ dx, int64 N,
                                   int64 C) {
    const int64 n = (int64)blockIdx.x * blockDim.y + threadIdx.y;
    if (n >= N) return;
    x += n * C;
    dx += n * C;
    T most = minus_infinity(), total = 0;
    for (int64 c = threadIdx.x; c < C; c += 32)
        if (exceeds(x[c], most)) most = x[c];
    for (int d = 16; d > 0; d /= 2) {
        const T other = __shfl_xor_sync(0xffffffff, most, d);
        if (exceeds(other, most)) most = other;
    }
    for (int64 c = threadIdx.x; c < C; c += 32) total += exp(x[c] - most);
    for (int d = 16; d > 0; d /= 2) total += __shfl_xor_sync(0xffffffff, total, d);
    const T scale = 1 / (total * N);
    for (int64 c = threadIdx.x; c < C; c += 32) dx[c] = exp(x[c] - most) * scale - (c == y[n] ? T(1) / N : T(0));
    if (threadIdx.x == 0) losses[n] = log(total) - (y[n] >= 0 && y[n] < C ? x[y[n]] - most : T(0));
}
