// The CUDA kernels. NVRTC compiles them with these definitions:
//
//     Element  the type of activations and their gradients: float, double or Half
//     Real     the type of arithmetic, parameters and sums: float or double
//     Index    the type of an argmax: uint8 or int64
//     WIDE     how many neighbouring values one access loads or stores: those of 16 bytes at most
//     THREADS  how many threads a block has: 256, or less if each block sums few values
//
// blockIdx.x selects a channel, or a group of values that share their statistics. The blocks along y share its values,
// which FOR_EACH numbers e = 0, 1, ... through all images. Each thread gathers the terms of its own results: no two
// threads write to the same element, and sums are added in a fixed order, so runs repeat bit by bit.
//
// Letters: N images, C channels, (H, W) image, (KH, KW) window, (SH, SW) stride, (DH, DW) dilation, PH pixels of
// padding above and PW at the left, (OH, OW) output.

typedef Real T;
typedef unsigned char uint8;
typedef long long int64;

#ifndef Half  // The CPU emulation has a type of its compiler.
struct Half {  // A float16.
    unsigned short bits;
    Half() = default;
    __device__ Half(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
    __device__ operator float() const {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
};
#endif

// Limits a kernel's registers, so that a multiprocessor holds 2048 threads or 32 blocks; half as many if T is double.
#define LIMIT_REGISTERS __launch_bounds__(THREADS, (THREADS < 64 ? 32 : 2048 / THREADS) * 4 / sizeof(T))

#define FOR_EACH(e, count) \
    for (unsigned e = blockIdx.y * THREADS + threadIdx.x; e < (count); e += gridDim.y * THREADS)

struct Pack { T v[WIDE]; };
struct alignas(WIDE * sizeof(Element)) Elements { Element v[WIDE]; };
struct alignas(WIDE) Mask { bool v[WIDE]; };

#define FOR_EACH_PACK(e, count) \
    for (unsigned e = WIDE * (blockIdx.y * THREADS + threadIdx.x); e < (count); e += WIDE * gridDim.y * THREADS)

// A warp waits for a load before it uses the value, and small loads leave the memory idle meanwhile. Where they are small,
// a thread therefore begins those of several rounds at once.
#define ROUNDS (WIDE < 4 ? 4 / WIDE : 1)

// Call ``use(e, load_at(e))`` for each pack of this thread, in order.
template <typename Load, typename Use>
__device__ void for_each_pack(unsigned count, Load load_at, Use use) {
    const unsigned step = WIDE * gridDim.y * THREADS;
    unsigned e = WIDE * (blockIdx.y * THREADS + threadIdx.x);
    for (; e + (ROUNDS - 1) * step < count; e += ROUNDS * step) {
        decltype(load_at(e)) loaded[ROUNDS];
        for (int r = 0; r < ROUNDS; ++r) loaded[r] = load_at(e + r * step);
        for (int r = 0; r < ROUNDS; ++r) use(e + r * step, loaded[r]);
    }
    for (; e < count; e += step) use(e, load_at(e));
}

__device__ Pack load(const Element* x) {
    const Elements loaded = *reinterpret_cast<const Elements*>(x);
    Pack pack;
    for (int k = 0; k < WIDE; ++k) pack.v[k] = loaded.v[k];
    return pack;
}

__device__ void store(Element* x, Pack pack) {
    Elements stored;
    for (int k = 0; k < WIDE; ++k) stored.v[k] = pack.v[k];
    *reinterpret_cast<Elements*>(x) = stored;
}

struct Packs { Pack first, second; };  // of two arrays

// A divisor with its multiplier: n / d = (the upper half of n * m, plus n) >> s for n < 2^31 (Granlund and
// Montgomery 1994). An ordinary division would cost more time than loading a value.
struct Divisor { unsigned d, m, s; };
static_assert(sizeof(Divisor) == 12, "DIVISOR in _launch.py has other fields");

__device__ unsigned operator/(unsigned n, Divisor by) { return (__umulhi(n, by.m) + n) >> by.s; }

__device__ unsigned operator%(unsigned n, Divisor by) { return n - n / by * by.d; }

__device__ T minus_infinity() { return __longlong_as_double(0xfff0000000000000); }

__device__ T not_a_number() { return __longlong_as_double(0x7ff8000000000000); }

__device__ bool exceeds(T a, T b) { return a > b || a != a; }  // NaN exceeds everything

// ---- windows

struct Windows {
    int N, C, H, W, KH, KW, SH, SW, DH, DW, PH, PW, OH, OW;
    Divisor image, row, output, output_row, down, across, apart_down, apart_across;  // H * W, W, OH * OW, OW, S, D
};
static_assert(sizeof(Windows) == 152, "_WINDOWS in _windows.py has other fields");

__device__ size_t plane(Windows g, unsigned n) { return (size_t)n * g.C + blockIdx.x; }

// Along one axis, the first and the last of `count` windows that reach over a pixel. Pixels are counted from the
// padding's first one. Example: windows of size 3 at stride 2 begin at 0, 2, 4, ..., so windows 1 and 2 contain pixel 4.
struct Span { int first, last; };

__device__ Span windows_over(int pixel, int size, Divisor stride, Divisor dilation, int count) {
    Span windows;
    const int extent = 1 + (size - 1) * dilation.d;
    windows.first = pixel < extent ? 0 : unsigned(pixel - extent) / stride + 1;
    windows.last = min(int(unsigned(pixel) / stride), count - 1);
    return windows;
}

// The number of a window's row, or column, at this distance from its first pixel; -1 between rows.
__device__ int number(unsigned distance, Divisor dilation) {
    if (dilation.d == 1) return distance;
    const unsigned k = distance / dilation;
    return k * dilation.d == distance ? int(k) : -1;
}

// Each thread copies WIDE windows of one row of windows.
extern "C" __global__ void unfold(const Element* __restrict__ x, Element* __restrict__ cols, Windows g) {
    const unsigned P = g.N * g.output.d;
    FOR_EACH_PACK(p, P) {
        const unsigned n = p / g.output, l = p % g.output;
        const int top = l / g.output_row * g.SH - g.PH, left = l % g.output_row * g.SW - g.PW;
        const Element* image = x + plane(g, n) * g.image.d;
        Element* out = cols + (size_t)blockIdx.x * g.KH * g.KW * P + p;
        for (int h = top; h < top + g.KH * g.DH; h += g.DH)
            for (int w = left; w < left + g.KW * g.DW; w += g.DW, out += P) {
                Pack pack;
                for (int k = 0; k < WIDE; ++k) {
                    const int column = w + k * g.SW;
                    const bool inside = h >= 0 && h < g.H && column >= 0 && column < g.W;
                    pack.v[k] = inside ? T(image[h * g.W + column]) : T(0);
                }
                store(out, pack);
            }
    }
}

// Each thread copies WIDE windows that follow one another, also across the ends of rows and images.
extern "C" __global__ void unfold_across_rows(const Element* __restrict__ x, Element* __restrict__ cols, Windows g) {
    const unsigned P = g.N * g.output.d;
    FOR_EACH_PACK(p, P) {
        size_t image[WIDE];
        int top[WIDE], left[WIDE];
        unsigned n = p / g.output, l = p % g.output;
        int i = l / g.output_row, j = l % g.output_row;
        for (int m = 0; m < WIDE; ++m) {
            image[m] = plane(g, n) * g.image.d;
            top[m] = i * g.SH - g.PH;
            left[m] = j * g.SW - g.PW;
            if (++j < g.OW) continue;
            j = 0;
            if (++i < g.OH) continue;
            i = 0;
            ++n;
        }
        Element* out = cols + (size_t)blockIdx.x * g.KH * g.KW * P + p;
        for (int k = 0; k < g.KH; ++k)
            for (int c = 0; c < g.KW; ++c, out += P) {
                Pack pack;
                for (int m = 0; m < WIDE; ++m) {
                    const int h = top[m] + k * g.DH, w = left[m] + c * g.DW;
                    const bool inside = h >= 0 && h < g.H && w >= 0 && w < g.W;
                    pack.v[m] = inside ? T(x[image[m] + h * g.W + w]) : T(0);
                }
                store(out, pack);
            }
    }
}

// A pixel of a row of an image, and 0 in the padding.
__device__ Element pixel(const Element* row, bool inside, int column, int W) {
    return inside && column >= 0 && column < W ? row[column] : Element(T(0));
}

__device__ void shift_left(Elements& pack, Element next) {
    for (int k = 0; k + 1 < WIDE; ++k) pack.v[k] = pack.v[k + 1];
    pack.v[WIDE - 1] = next;
}

__device__ void shift_right(Elements& pack, Element next) {
    for (int k = WIDE - 1; k > 0; --k) pack.v[k] = pack.v[k - 1];
    pack.v[0] = next;
}

// At stride 1 without dilation along a row, column l + 1 of WIDE windows is column l, shifted by one pixel. Each thread
// starts from the column that lies on a multiple of WIDE, and shifts in both directions.
extern "C" __global__ void unfold_at_stride_1(const Element* __restrict__ x, Element* __restrict__ cols, Windows g) {
    const unsigned P = g.N * g.output.d;
    const bool wide = g.PW < g.KW && g.W % WIDE == 0;
    const int start = wide ? g.PW : 0;
    FOR_EACH_PACK(p, P) {
        const unsigned n = p / g.output, place = p % g.output;
        const int top = int(place / g.output_row) - g.PH, first = int(place % g.output_row) - g.PW + start;
        const Element* image = x + plane(g, n) * g.image.d;
        Element* out = cols + ((size_t)blockIdx.x * g.KH * g.KW + start) * P + p;
        for (int k = 0; k < g.KH; ++k, out += (size_t)g.KW * P) {
            const int h = top + k * g.DH;
            const bool inside = h >= 0 && h < g.H;
            const Element* row = image + (inside ? h : 0) * g.W;
            Elements middle;
            if (wide && inside && first + WIDE <= g.W) middle = *reinterpret_cast<const Elements*>(row + first);
            else for (int m = 0; m < WIDE; ++m) middle.v[m] = pixel(row, inside, first + m, g.W);
            *reinterpret_cast<Elements*>(out) = middle;
            Elements pack = middle;
            for (int l = 1; start + l < g.KW; ++l) {
                shift_left(pack, pixel(row, inside, first + WIDE - 1 + l, g.W));
                *reinterpret_cast<Elements*>(out + (size_t)l * P) = pack;
            }
            pack = middle;
            for (int l = 1; l <= start; ++l) {
                shift_right(pack, pixel(row, inside, first - l, g.W));
                *reinterpret_cast<Elements*>(out - (size_t)l * P) = pack;
            }
        }
    }
}

// Along one axis, the last window that begins at most `distance` after window 0; it is negative if that is before window 0.
__device__ int window_before(int distance, Divisor stride, int reach) {
    return int(unsigned(distance + reach * int(stride.d)) / stride) - reach;  // distance >= -reach
}

// Each thread adds up WIDE pixels of one row, from the first window to the last; if WIDE is small, the pixels of several
// rounds at once, whose loads do not wait for each other. `unit`: the stride along a row is 1.
template <bool unit>
__device__ void fold_windows(const Element* __restrict__ cols, const T* bias, Element* __restrict__ x, Windows g) {
    const unsigned P = g.N * g.output.d, pixels = g.N * g.image.d, round = WIDE * THREADS;
    const T b = bias ? bias[blockIdx.x] : T(0);
    for (unsigned e = ROUNDS * round * blockIdx.y + WIDE * threadIdx.x; e < pixels; e += ROUNDS * round * gridDim.y) {
        unsigned image[ROUNDS], row[ROUNDS];  // where the image's windows, and a row of them, begin among all windows
        int h[ROUNDS], w[ROUNDS];
        bool inside[ROUNDS];
        Pack sums[ROUNDS] = {};
        for (int r = 0; r < ROUNDS; ++r) {
            const unsigned n = (e + r * round) / g.image, pixel = (e + r * round) % g.image;
            image[r] = n * g.output.d;
            h[r] = pixel / g.row + g.PH;
            w[r] = pixel % g.row + g.PW;
        }
        for (int k = g.KH - 1; k >= 0; --k) {
            for (int r = 0; r < ROUNDS; ++r) {
                const int distance = h[r] - k * g.DH, i = window_before(distance, g.down, g.KH * g.DH);
                inside[r] = i >= 0 && i < g.OH && i * g.SH == distance && e + r * round < pixels;
                row[r] = image[r] + i * g.OW;
            }
            if (ROUNDS == 1 && !inside[0]) continue;
            #pragma unroll 1  // more would take registers from other warps
            for (int l = g.KW - 1; l >= 0; --l) {
                const Element* taps = cols + ((size_t)blockIdx.x * g.KH * g.KW + k * g.KW + l) * P;
                for (int r = 0; r < ROUNDS; ++r) {
                    const int distance = w[r] - l * g.DW;
                    int j = unit ? distance : window_before(distance, g.across, g.KW * g.DW);
                    for (int m = 0, column = distance - j * g.SW; m < WIDE; ++m) {  // column 0 is l * DW of window j
                        const bool tapped = inside[r] && j >= 0 && j < g.OW && (unit || column == 0);
                        const T tap = taps[tapped ? row[r] + j : 0];  // a load without a branch
                        sums[r].v[m] += tapped ? tap : T(0);
                        if (unit || ++column == g.SW) {
                            column = 0;
                            ++j;
                        }
                    }
                }
            }
        }
        for (int r = 0; r < ROUNDS; ++r) {
            const unsigned n = (e + r * round) / g.image, pixel = (e + r * round) % g.image;
            if (n >= g.N) continue;
            for (int m = 0; m < WIDE; ++m) sums[r].v[m] += b;
            store(x + plane(g, n) * g.image.d + pixel, sums[r]);
        }
    }
}

extern "C" __global__ void fold(const Element* __restrict__ cols, const T* bias, Element* __restrict__ x, Windows g) {
    fold_windows<false>(cols, bias, x, g);
}

extern "C" __global__ void fold_at_stride_1(const Element* __restrict__ cols, const T* bias, Element* __restrict__ x,
                                            Windows g) {
    fold_windows<true>(cols, bias, x, g);
}

// The first pixel of window l, of 2 x 2 pixels at stride 2.
__device__ unsigned pixel_of(Windows g, unsigned l) { return 2 * (l / g.output_row * g.W + l % g.output_row); }

struct alignas(WIDE * sizeof(Index) < 16 ? WIDE * sizeof(Index) : 16) Indices { Index v[WIDE]; };

// Each thread searches WIDE windows of one row of windows.
extern "C" __global__ void max_pool(const Element* __restrict__ x, Element* __restrict__ out,
                                    Index* __restrict__ argmax, Windows g) {
    FOR_EACH_PACK(p, g.N * g.output.d) {
        const unsigned n = p / g.output, l = p % g.output;
        const int top = l / g.output_row * g.SH - g.PH, first = (max(0, -top) + g.DH - 1) / g.DH;
        const Element* image = x + plane(g, n) * g.image.d;
        Pack maxima;
        Indices places;
        for (int m = 0; m < WIDE; ++m) {
            const int left = int(l % g.output_row + m) * g.SW - g.PW;
            const int first_column = (max(0, -left) + g.DW - 1) / g.DW;
            T largest = minus_infinity();
            int where = first * g.KW + first_column;
            for (int i = first; i < g.KH && top + i * g.DH < g.H; ++i)
                for (int j = first_column; j < g.KW && left + j * g.DW < g.W; ++j) {
                    const T value = image[(top + i * g.DH) * g.W + left + j * g.DW];
                    if (value > largest || value != value && largest == largest) where = i * g.KW + j;  // the first NaN
                    if (exceeds(value, largest)) largest = value;
                }
            maxima.v[m] = largest;
            places.v[m] = where;
        }
        store(out + plane(g, n) * g.output.d + l, maxima);
        *reinterpret_cast<Indices*>(argmax + plane(g, n) * g.output.d + l) = places;
    }
}

// Windows of 2 x 2 pixels at stride 2 that cover the images: each thread reads WIDE windows of one row.
// `use(first, pixel)` writes their results from place `first` on; `pixel(m, k)` is pixel k of window m.
template <typename Use>
__device__ void read_2x2(const Element* __restrict__ x, Windows g, Use use) {
    FOR_EACH_PACK(p, g.N * g.output.d) {
        const unsigned n = p / g.output, l = p % g.output;
        const Element* corner = x + plane(g, n) * g.image.d + pixel_of(g, l);
        Pack rows[2][2];
        for (int i = 0; i < 2; ++i)
            for (int half = 0; half < 2; ++half) rows[i][half] = load(corner + i * g.W + half * WIDE);
        use(plane(g, n) * g.output.d + l, [&](int m, int k) {
            const int column = 2 * m + k % 2;
            return rows[k / 2][column / WIDE].v[column % WIDE];
        });
    }
}

extern "C" __global__ void max_pool_2x2(const Element* __restrict__ x, Element* __restrict__ out,
                                        Index* __restrict__ argmax, Windows g) {
    read_2x2(x, g, [&](size_t first, auto pixel) {
        Pack maxima;
        Indices places;
        for (int m = 0; m < WIDE; ++m) {
            T largest = minus_infinity();
            int where = 0;
            for (int k = 0; k < 4; ++k) {
                const T value = pixel(m, k);
                if (value > largest || value != value && largest == largest) where = k;  // the first NaN
                if (exceeds(value, largest)) largest = value;
            }
            maxima.v[m] = largest;
            places.v[m] = where;
        }
        store(out + first, maxima);
        *reinterpret_cast<Indices*>(argmax + first) = places;
    });
}

extern "C" __global__ void avg_pool_2x2(const Element* __restrict__ x, Element* __restrict__ out, double count,
                                        Windows g) {
    read_2x2(x, g, [&](size_t first, auto pixel) {
        Pack means;
        for (int m = 0; m < WIDE; ++m)
            means.v[m] = (pixel(m, 0) + pixel(m, 1) + pixel(m, 2) + pixel(m, 3)) / T(count);
        store(out + first, means);
    });
}

#define HALF ((WIDE + 1) / 2)
struct alignas(HALF * sizeof(Element)) HalfElements { Element v[HALF]; };
struct alignas(HALF * sizeof(Index)) HalfIndices { Index v[HALF]; };

// Windows of 2 x 2 pixels at stride 2 that cover the images: each thread writes WIDE neighbouring pixels of two rows,
// those of WIDE / 2 windows. `load_gradients(first)` returns the gradient of a pixel, given its window, 0 to WIDE / 2 - 1,
// and its number in the window.
template <typename Gradients>
__device__ void write_2x2(Element* __restrict__ dx, Windows g, Gradients load_gradients) {
    FOR_EACH_PACK(p, 2 * g.N * g.output.d) {
        const unsigned n = p / 2 / g.output, l = p / 2 % g.output;
        const auto gradient = load_gradients(plane(g, n) * g.output.d + l);
        Element* corner = dx + plane(g, n) * g.image.d + pixel_of(g, l);
        for (int i = 0; i < 2; ++i) {
            Pack pack;
            for (int m = 0; m < WIDE; ++m) pack.v[m] = gradient(m / 2, 2 * i + m % 2);
            store(corner + i * g.W, pack);
        }
    }
}

extern "C" __global__ void max_pool_2x2_backward(const Element* __restrict__ dout, const Index* __restrict__ argmax,
                                                 Element* __restrict__ dx, Windows g) {
    write_2x2(dx, g, [=](size_t first) {
        const HalfElements gradients = *reinterpret_cast<const HalfElements*>(dout + first);
        const HalfIndices places = *reinterpret_cast<const HalfIndices*>(argmax + first);
        return [=](int m, int pixel) { return places.v[m] == pixel ? T(gradients.v[m]) : T(0); };
    });
}

extern "C" __global__ void avg_pool_2x2_backward(const Element* __restrict__ dout, Element* __restrict__ dx,
                                                 double count, Windows g) {
    write_2x2(dx, g, [=](size_t first) {
        const HalfElements gradients = *reinterpret_cast<const HalfElements*>(dout + first);
        return [=](int m, int pixel) { return T(gradients.v[m]) / T(count); };
    });
}

// Windows that do not overlap, without padding: each thread writes packs of WIDE pixels of one row, each of at most one
// window. `gradient(window, k)` is that of pixel k of a window.
template <typename Gradient>
__device__ void write_apart(Element* __restrict__ dx, Windows g, Gradient gradient) {
    const auto gradients_at = [&](unsigned e) {
        const unsigned n = e / g.image, place = e % g.image, h = place / g.row, column = place % g.row, i = h / g.down;
        const size_t row = plane(g, n) * g.output.d + i * g.OW;
        Pack pack;
        for (int m = 0; m < WIDE; ++m) {
            const unsigned w = column + m, j = w / g.across;
            const bool inside = i < g.OH && j < g.OW;
            const T value = gradient(inside ? row + j : 0, (h - i * g.SH) * g.KW + w - j * g.SW);  // without a branch
            pack.v[m] = inside ? value : T(0);
        }
        return pack;
    };
    for_each_pack(g.N * g.image.d, gradients_at, [&](unsigned e, Pack pack) {
        store(dx + plane(g, e / g.image) * g.image.d + e % g.image, pack);
    });
}

extern "C" __global__ void max_pool_apart_backward(const Element* __restrict__ dout, const Index* __restrict__ argmax,
                                                   Element* __restrict__ dx, Windows g) {
    write_apart(dx, g, [=](size_t window, unsigned pixel) {
        const T gradient = dout[window];  // before the comparison, so that the two loads do not wait for each other
        return argmax[window] == pixel ? gradient : T(0);
    });
}

extern "C" __global__ void avg_pool_apart_backward(const Element* __restrict__ dout, Element* __restrict__ dx,
                                                   double count, Windows g) {
    write_apart(dx, g, [=](size_t window, unsigned) { return T(dout[window]) / T(count); });
}

// Each thread adds up the gradients of WIDE pixels of one row.
extern "C" __global__ void max_pool_backward(const Element* __restrict__ dout, const Index* __restrict__ argmax,
                                             Element* __restrict__ dx, Windows g) {
    FOR_EACH_PACK(e, g.N * g.image.d) {
        const unsigned n = e / g.image, pixel = e % g.image;
        const int h = pixel / g.row + g.PH;
        const Span rows = windows_over(h, g.KH, g.down, g.apart_down, g.OH);
        Pack pack;
        for (int m = 0; m < WIDE; ++m) {
            const int w = pixel % g.row + m + g.PW;
            const Span columns = windows_over(w, g.KW, g.across, g.apart_across, g.OW);
            T sum = 0;
            for (int i = rows.first; i <= rows.last; ++i)
                for (int j = columns.first; j <= columns.last; ++j) {
                    const size_t window = plane(g, n) * g.output.d + i * g.OW + j;
                    const int k = number(h - i * g.SH, g.apart_down), l = number(w - j * g.SW, g.apart_across);
                    if (k >= 0 && l >= 0 && argmax[window] == k * g.KW + l) sum += dout[window];
                }
            pack.v[m] = sum;
        }
        store(dx + plane(g, n) * g.image.d + pixel, pack);
    }
}

// Each thread computes WIDE means of one row; each window counts `count` pixels.
extern "C" __global__ void avg_pool(const Element* __restrict__ x, Element* __restrict__ out, double count, Windows g) {
    FOR_EACH_PACK(p, g.N * g.output.d) {
        const unsigned n = p / g.output, l = p % g.output;
        const int top = l / g.output_row * g.SH - g.PH, corner = l % g.output_row * g.SW - g.PW;
        const Element* image = x + plane(g, n) * g.image.d;
        Pack means;
        for (int m = 0; m < WIDE; ++m) {
            const int left = corner + m * g.SW;
            T sum = 0;
            for (int h = top; h < min(top + g.KH * g.DH, g.H); h += g.DH)
                for (int w = left; w < min(left + g.KW * g.DW, g.W); w += g.DW)
                    if (h >= 0 && w >= 0) sum += T(image[h * g.W + w]);
            means.v[m] = sum / T(count);
        }
        store(out + plane(g, n) * g.output.d + l, means);
    }
}

// Each thread adds up the gradients of WIDE pixels of one row.
extern "C" __global__ void avg_pool_backward(const Element* __restrict__ dout, Element* __restrict__ dx, double count,
                                             Windows g) {
    FOR_EACH_PACK(e, g.N * g.image.d) {
        const unsigned n = e / g.image, place = e % g.image;
        const int h = place / g.row + g.PH, column = place % g.row;
        const Span rows = windows_over(h, g.KH, g.down, g.apart_down, g.OH);
        const Element* gradients = dout + plane(g, n) * g.output.d;
        Pack sum = {};
        for (int m = 0; m < WIDE; ++m) {
            const int w = column + m + g.PW;
            const Span columns = windows_over(w, g.KW, g.across, g.apart_across, g.OW);
            for (int i = rows.first; i <= rows.last; ++i) {
                if (number(h - i * g.SH, g.apart_down) < 0) continue;
                for (int j = columns.first; j <= columns.last; ++j)
                    if (number(w - j * g.SW, g.apart_across) >= 0) sum.v[m] += T(gradients[i * g.OW + j]);
            }
            sum.v[m] /= T(count);
        }
        store(dx + plane(g, n) * g.image.d + place, sum);
    }
}

// ---- groups: an array (A, S, B) has S groups of A * B values each; `pieces` blocks share the sum of a group
//
// Examples: for batch norm of images (N, C, L), A = N, S = C, B = L, and each channel is a group. For layer norm,
// A = 1, S = N, B = C * L, and each image is a group.

// gamma and beta have `channels` values, and each value is that of `inner` consecutive values of the array.
struct Groups { unsigned A, S, pieces, channels; Divisor B, inner; };
static_assert(sizeof(Groups) == 40, "_GROUPS in _groups.py has other fields");

__device__ unsigned size(Groups g) { return g.A * g.B.d; }

// The place of value e of this block's group s: e / B * S * B + s * B + e % B.
__device__ size_t index(Groups g, unsigned e) {
    return (size_t)(e / g.B) * (g.S - 1) * g.B.d + (size_t)blockIdx.x * g.B.d + e;
}

// The place in gamma and beta of this block's first value.
__device__ unsigned first_channel(Groups g) { return (size_t)blockIdx.x * g.B.d / g.inner.d % g.channels; }

// Which values share gamma and beta: all of this block's group, those of each pack, or none.
enum Shared { BY_GROUP, BY_PACK, BY_NONE };

template <Shared by>
struct Sharing {};

// Call `pass` with the Sharing of this block's group. The compiler then has a loop for each case, without the divisions
// of the others.
template <typename Pass>
__device__ void by_channel(Groups g, Pass pass) {
    if (g.inner.d >= g.B.d) pass(Sharing<BY_GROUP>());
    else if (g.inner.d % WIDE == 0) pass(Sharing<BY_PACK>());
    else pass(Sharing<BY_NONE>());
}

// gamma or beta of value k of the pack at e of this block's group; `held` is that of the group's first value.
template <Shared by>
__device__ T of_channel(Sharing<by>, const T* values, T held, Groups g, unsigned first, unsigned e, int k) {
    return by == BY_GROUP ? held : values[first + (by == BY_PACK ? e : e + k) % g.B / g.inner];
}

template <typename V>
__device__ V add(V a, V b) { return a + b; }

// Combine the values of all threads of the block, each of `count` values with those of its place; all threads get the
// same bits. `combine` must be commutative, with 0 as its neutral element.
template <typename V, V combine(V, V), int count>
__device__ void block_reduce(V (&values)[count]) {
    __shared__ V warps[count][THREADS / 32];
    for (int d = 16; d > 0; d /= 2)
        for (int k = 0; k < count; ++k) values[k] = combine(values[k], __shfl_xor_sync(0xffffffff, values[k], d));
    __syncthreads();  // Another thread may still read what an earlier call wrote.
    if (threadIdx.x % 32 == 0)
        for (int k = 0; k < count; ++k) warps[k][threadIdx.x / 32] = values[k];
    __syncthreads();
    for (int k = 0; k < count; ++k) {
        values[k] = 0;
        for (int warp = 0; warp < THREADS / 32; ++warp) values[k] = combine(values[k], warps[k][warp]);
    }
}

// Sum each of several arrays of `length` pieces; from one array to the next, it is `apart` values.
template <typename V, int count>
__device__ void block_totals(const V* pieces, size_t apart, unsigned length, V (&totals)[count]) {
    for (int k = 0; k < count; ++k) totals[k] = 0;
    for (unsigned piece = threadIdx.x; piece < length; piece += THREADS)
        for (int k = 0; k < count; ++k) totals[k] += pieces[k * apart + piece];
    block_reduce<V, add<V>>(totals);
}

// Write this block's pieces of `count` sums, which block_totals adds up. pieces is (count, groups, blocks of a group).
template <typename V, int count>
__device__ void store_pieces(V (&sums)[count], V* pieces) {
    block_reduce<V, add<V>>(sums);
    if (threadIdx.x > 0) return;
    for (int k = 0; k < count; ++k) pieces[((size_t)k * gridDim.x + blockIdx.x) * gridDim.y + blockIdx.y] = sums[k];
}

extern "C" __global__ void total(const T* sums, T* totals, Groups g) {
    T sum[1];
    block_totals(sums + (size_t)blockIdx.x * g.pieces, 0, g.pieces, sum);
    if (threadIdx.x == 0) totals[blockIdx.x] = sum[0];
}

// ---- convolution: copy a matrix (F, m * L), whose row f is the group of channel f, to images (m, F, L), and back

extern "C" __global__ void to_images(const Element* __restrict__ rows, const T* bias,
                                     Element* __restrict__ images, Groups g) {
    const T b = bias ? bias[blockIdx.x] : T(0);
    const auto load_at = [&](unsigned e) { return load(rows + (size_t)blockIdx.x * size(g) + e); };
    for_each_pack(size(g), load_at, [&](unsigned e, Pack pack) {
        for (int k = 0; k < WIDE; ++k) pack.v[k] += b;
        store(images + index(g, e), pack);
    });
}

extern "C" __global__ void to_rows(const Element* __restrict__ images, Element* __restrict__ rows, T* sums,
                                   Groups g) {
    T sum[1] = {0};
    const auto load_at = [&](unsigned e) { return load(images + index(g, e)); };
    for_each_pack(size(g), load_at, [&](unsigned e, Pack pack) {
        store(rows + (size_t)blockIdx.x * size(g) + e, pack);
        for (int k = 0; k < WIDE; ++k) sum[0] += pack.v[k];
    });
    store_pieces(sum, sums);
}

// ---- normalisation

// The first value of this block's group. Its difference from the mean is at most sqrt(size) standard deviations, so sums
// of differences from it lose few digits of the variance.
__device__ T pivot(const Element* x, Groups g) { return x[(size_t)blockIdx.x * g.B.d]; }

// Sum the differences from the pivot and their squares. moments is (2, S, pieces). Sums are in double: the rounding error
// of a float mean far from zero may exceed the differences between values, and squares beyond 1e19 overflow in float.
extern "C" __global__ void sum_moments(const Element* __restrict__ x, double* moments, Groups g) {
    const double first = pivot(x, g);
    double sums[2] = {0, 0};
    const auto load_at = [&](unsigned e) { return load(x + index(g, e)); };
    for_each_pack(size(g), load_at, [&](unsigned, Pack pack) {
        for (int k = 0; k < WIDE; ++k) {
            const double d = pack.v[k] - first;
            sums[0] += d;
            sums[1] += d * d;
        }
    });
    store_pieces(sums, moments);
}

// Both passes of a norm followed by a ReLU compute this, so fma() says how it is rounded.
__device__ T normalised(T x, T mean, T error, T scale, T beta) { return fma(x - mean - error, scale, beta); }

// `rectified`: write max(0, value), and the rounding errors of the means to `errors`.
template <bool rectified>
__device__ void write_normalised(const Element* __restrict__ x, const T* __restrict__ gamma,
                                 const T* __restrict__ beta, const double* moments, double eps,
                                 Element* __restrict__ out, T* means, T* vars, T* inv_stds, T* errors, Groups g) {
    double sums[2];
    block_totals(moments + (size_t)blockIdx.x * g.pieces, (size_t)g.S * g.pieces, g.pieces, sums);
    const double shift = sums[0] / size(g), exact = pivot(x, g) + shift, rounded = sums[1] / size(g) - shift * shift;
    const double var = rounded < 0 ? 0 : rounded;  // NaN stays NaN
    const T mean = exact, error = exact - mean, inv_std = 1 / sqrt(var + eps);  // error: of rounding the mean
    if (threadIdx.x == 0 && blockIdx.y == 0) {
        means[blockIdx.x] = mean;
        vars[blockIdx.x] = sizeof(T) < sizeof(double) && var > 3e38 ? 3e38 : var;
        inv_stds[blockIdx.x] = inv_std;
        if (rectified) errors[blockIdx.x] = error;
    }
    const unsigned first = first_channel(g);
    const T held = gamma[first], held_beta = beta[first];
    const auto load_at = [&](unsigned e) { return load(x + index(g, e)); };
    by_channel(g, [&](auto shared) {
        for_each_pack(size(g), load_at, [&](unsigned e, Pack pack) {
            for (int k = 0; k < WIDE; ++k) {
                const T scale = inv_std * of_channel(shared, gamma, held, g, first, e, k);
                const T b = of_channel(shared, beta, held_beta, g, first, e, k);
                pack.v[k] = normalised(pack.v[k], mean, error, scale, b);
                if (rectified && pack.v[k] <= 0) pack.v[k] = 0;  // NaN stays NaN
            }
            store(out + index(g, e), pack);
        });
    });
}

extern "C" __global__ void normalise(const Element* __restrict__ x, const T* __restrict__ gamma,
                                     const T* __restrict__ beta, const double* moments, double eps,
                                     Element* __restrict__ out, T* means, T* vars, T* inv_stds, Groups g) {
    write_normalised<false>(x, gamma, beta, moments, eps, out, means, vars, inv_stds, nullptr, g);
}

extern "C" __global__ void normalise_relu(const Element* __restrict__ x, const T* __restrict__ gamma,
                                          const T* __restrict__ beta, const double* moments, double eps,
                                          Element* __restrict__ out, T* means, T* vars, T* inv_stds, T* errors,
                                          Groups g) {
    write_normalised<true>(x, gamma, beta, moments, eps, out, means, vars, inv_stds, errors, g);
}

// The gradient of the norm's output, given that of the ReLU after it. The ReLU's input is rounded as if it were stored.
__device__ T through_relu(T dout, T x, T mean, T error, T scale, T beta) {
    return T(Element(normalised(x, mean, error, scale, beta))) > 0 ? dout : T(0);
}

// Sum dout, dout * xhat, gamma * dout, gamma * dout * xhat and xhat over each group of `g`, which gives one value of
// dbeta and of dgamma. `rows` consecutive groups share their mean and inv_std. sums is (5, S, pieces).
// `rectified`: dout is the gradient of a ReLU of the norm's output.
template <bool rectified>
__device__ void sum_gradients(const Element* __restrict__ dout, const Element* __restrict__ x, const T* means,
                              const T* inv_stds, const T* __restrict__ gamma, const T* __restrict__ beta,
                              const T* errors, T* sums, int64 rows, Groups g) {
    const T mean = means[blockIdx.x / rows], inv_std = inv_stds[blockIdx.x / rows];
    const T error = rectified ? errors[blockIdx.x / rows] : T(0);
    const unsigned first = first_channel(g);
    const T held = gamma[first], held_beta = rectified ? beta[first] : T(0);
    T s[5] = {0, 0, 0, 0, 0};
    const auto load_at = [&](unsigned e) { return Packs{load(dout + index(g, e)), load(x + index(g, e))}; };
    by_channel(g, [&](auto shared) {
        for_each_pack(size(g), load_at, [&](unsigned e, Packs packs) {
            const Pack douts = packs.first, xs = packs.second;
            for (int k = 0; k < WIDE; ++k) {
                const T scale = of_channel(shared, gamma, held, g, first, e, k), xhat = (xs.v[k] - mean) * inv_std;
                const T b = rectified ? of_channel(shared, beta, held_beta, g, first, e, k) : T(0);
                const T d = rectified ? through_relu(douts.v[k], xs.v[k], mean, error, inv_std * scale, b) : douts.v[k];
                const T scaled = d * scale;
                s[0] += d;
                s[1] += d * xhat;
                s[2] += scaled;
                s[3] += scaled * xhat;
                s[4] += xhat;
            }
        });
    });
    store_pieces(s, sums);
}

extern "C" LIMIT_REGISTERS
__global__ void gradient_sums(const Element* __restrict__ dout, const Element* __restrict__ x,
                              const T* means, const T* inv_stds, const T* __restrict__ gamma, T* sums,
                              int64 rows, Groups g) {
    sum_gradients<false>(dout, x, means, inv_stds, gamma, nullptr, nullptr, sums, rows, g);
}

extern "C" LIMIT_REGISTERS
__global__ void relu_gradient_sums(const Element* __restrict__ dout, const Element* __restrict__ x,
                                   const T* means, const T* inv_stds, const T* __restrict__ gamma,
                                   const T* __restrict__ beta, const T* errors, T* sums, int64 rows,
                                   Groups g) {
    sum_gradients<true>(dout, x, means, inv_stds, gamma, beta, errors, sums, rows, g);
}

// Here a group of `g` is all values that share their mean and inv_std. It consists of `rows` groups of gradient_sums,
// each of which wrote `pieces` pieces of its sums.
template <bool rectified>
__device__ void write_gradient(const Element* __restrict__ dout, const Element* __restrict__ x, const T* means,
                               const T* inv_stds, const T* __restrict__ gamma, const T* __restrict__ beta,
                               const T* errors, const T* sums, Element* __restrict__ dx, T* dgamma, T* dbeta,
                               int64 rows, Groups g) {
    const T mean = means[blockIdx.x], inv_std = inv_stds[blockIdx.x], error = rectified ? errors[blockIdx.x] : T(0);
    const size_t mine = blockIdx.x * rows * g.pieces, all = g.S * rows * g.pieces;
    T totals[3];
    block_totals(sums + 2 * all + mine, all, rows * g.pieces, totals);
    // The rounding error of the mean shifts xhat.
    const T mean_dxhat = totals[0] / size(g), shift = totals[2] / size(g);
    const T mean_dxhat_xhat = totals[1] / size(g) - shift * mean_dxhat;
    const unsigned first = first_channel(g);
    const T held = gamma[first], held_beta = rectified ? beta[first] : T(0);
    const auto load_at = [&](unsigned e) { return Packs{load(dout + index(g, e)), load(x + index(g, e))}; };
    by_channel(g, [&](auto shared) {
        for_each_pack(size(g), load_at, [&](unsigned e, Packs packs) {
            Pack pack = packs.first;
            const Pack xs = packs.second;
            for (int k = 0; k < WIDE; ++k) {
                const T scale = of_channel(shared, gamma, held, g, first, e, k);
                const T b = rectified ? of_channel(shared, beta, held_beta, g, first, e, k) : T(0);
                if (rectified) pack.v[k] = through_relu(pack.v[k], xs.v[k], mean, error, inv_std * scale, b);
                const T dxhat = pack.v[k] * scale, xhat = (xs.v[k] - mean) * inv_std - shift;
                pack.v[k] = inv_std * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat);
            }
            store(dx + index(g, e), pack);
        });
    });
    if (blockIdx.y > 0) return;
    for (unsigned r = threadIdx.x; r < rows; r += THREADS) {
        T db = 0, dg = 0;
        for (unsigned k = 0; k < g.pieces; ++k) {
            db += sums[mine + r * g.pieces + k];
            dg += sums[all + mine + r * g.pieces + k];
        }
        dbeta[blockIdx.x * rows + r] = db;
        dgamma[blockIdx.x * rows + r] = dg - shift * db;
    }
}

extern "C" LIMIT_REGISTERS
__global__ void normalise_backward(const Element* __restrict__ dout, const Element* __restrict__ x,
                                   const T* means, const T* inv_stds, const T* __restrict__ gamma,
                                   const T* sums, Element* __restrict__ dx, T* dgamma, T* dbeta, int64 rows,
                                   Groups g) {
    write_gradient<false>(dout, x, means, inv_stds, gamma, nullptr, nullptr, sums, dx, dgamma, dbeta, rows, g);
}

extern "C" LIMIT_REGISTERS
__global__ void normalise_relu_backward(const Element* __restrict__ dout, const Element* __restrict__ x,
                                        const T* means, const T* inv_stds, const T* __restrict__ gamma,
                                        const T* __restrict__ beta, const T* errors, const T* sums,
                                        Element* __restrict__ dx, T* dgamma, T* dbeta, int64 rows,
                                        Groups g) {
    write_gradient<true>(dout, x, means, inv_stds, gamma, beta, errors, sums, dx, dgamma, dbeta, rows, g);
}

// ---- relu

extern "C" __global__ void relu(const Element* __restrict__ x, Element* __restrict__ out, bool* __restrict__ mask,
                                int64 count) {
    #pragma unroll 2
    FOR_EACH_PACK(e, count) {
        Pack pack = load(x + e);
        Mask positive;
        for (int k = 0; k < WIDE; ++k) {
            positive.v[k] = pack.v[k] > 0;
            if (pack.v[k] <= 0) pack.v[k] = 0;  // NaN stays NaN
        }
        store(out + e, pack);
        *reinterpret_cast<Mask*>(mask + e) = positive;
    }
}

extern "C" __global__ void relu_backward(const Element* __restrict__ dout, const bool* __restrict__ mask,
                                         Element* __restrict__ dx, int64 count) {
    #pragma unroll 2
    FOR_EACH_PACK(e, count) {
        Pack pack = load(dout + e);
        const Mask positive = *reinterpret_cast<const Mask*>(mask + e);
        for (int k = 0; k < WIDE; ++k) pack.v[k] = positive.v[k] ? pack.v[k] : T(0);
        store(dx + e, pack);
    }
}

extern "C" __global__ void leaky_relu(const Element* __restrict__ x, Element* __restrict__ out,
                                      bool* __restrict__ mask, double slope, int64 count) {
    const T factor = slope;
    #pragma unroll 2
    FOR_EACH_PACK(e, count) {
        Pack pack = load(x + e);
        Mask positive;
        for (int k = 0; k < WIDE; ++k) {
            positive.v[k] = pack.v[k] > 0;
            if (!positive.v[k]) pack.v[k] *= factor;
        }
        store(out + e, pack);
        *reinterpret_cast<Mask*>(mask + e) = positive;
    }
}

extern "C" __global__ void leaky_relu_backward(const Element* __restrict__ dout, const bool* __restrict__ mask,
                                               Element* __restrict__ dx, double slope, int64 count) {
    const T factor = slope;
    #pragma unroll 2
    FOR_EACH_PACK(e, count) {
        Pack pack = load(dout + e);
        const Mask positive = *reinterpret_cast<const Mask*>(mask + e);
        for (int k = 0; k < WIDE; ++k)
            if (!positive.v[k]) pack.v[k] *= factor;
        store(dx + e, pack);
    }
}

// ---- gated activations: out = x * P(x) and its derivative P(x) + x * p(x)

// Write both results; `tail_and_density` computes P(-t) and p(t) for t = |x|.
template <typename Function>
__device__ void write_gated(const Element* __restrict__ x, Element* __restrict__ out, Element* __restrict__ derivative,
                            int64 count, Function tail_and_density) {
    FOR_EACH_PACK(e, count) {
        Pack outs = load(x + e), derivatives;
        for (int k = 0; k < WIDE; ++k) {
            const T value = outs.v[k];
            T tail, density;
            tail_and_density(fmin(fabs(value), T(750)), tail, density);
            const T P = value > 0 ? 1 - tail : tail;
            outs.v[k] = value * P;
            derivatives.v[k] = P + value * density;
        }
        store(out + e, outs);
        store(derivative + e, derivatives);
    }
}

// The tail of the normal distribution at t >= 0, given the power exp(-t * t / 2); for float as in ops.elementwise.MILLS.
__device__ double normal_tail(double t, double) { return erfc(t * sqrt(0.5)) / 2; }
__device__ float normal_tail(float t, float power) {
    const float r = 1 / (t + 3.02f);
    return ((((-27.6688976f * r + 31.0564194f) * r - 2.45406055f) * r + 1.85592055f) * r + 0.369626045f) * r * power;
}

extern "C" __global__ void gated_normal(const Element* __restrict__ x, Element* __restrict__ out,
                                        Element* __restrict__ derivative, double, double b, int64 count) {
    const T peak = b;
    write_gated(x, out, derivative, count, [=](T t, T& tail, T& density) {
        const T power = exp(-t * t / 2);
        tail = normal_tail(t, power);
        density = peak * power;
    });
}

extern "C" __global__ void gated_logistic(const Element* __restrict__ x, Element* __restrict__ out,
                                          Element* __restrict__ derivative, double a, double b, int64 count) {
    const T linear = a, cubic = b;
    write_gated(x, out, derivative, count, [=](T t, T& tail, T& density) {
        const T power = exp(-t * (linear + cubic * t * t)), rest = 1 / (1 + power);
        tail = power * rest;
        density = (linear + 3 * cubic * t * t) * tail * rest;
    });
}

extern "C" __global__ void gated_backward(const Element* __restrict__ dout, const Element* __restrict__ derivative,
                                          Element* __restrict__ dx, int64 count) {
    #pragma unroll 2
    FOR_EACH_PACK(e, count) {
        Pack pack = load(dout + e);
        const Pack factors = load(derivative + e);
        for (int k = 0; k < WIDE; ++k) pack.v[k] *= factors.v[k];
        store(dx + e, pack);
    }
}

// ---- L2 penalty: `decay` computes grad += reg * W and pieces of sum(W * W), `penalty` adds those to the loss

extern "C" __global__ void decay(const T* __restrict__ W, T* __restrict__ grad, T* sums, double reg, int64 count) {
    T sum[1] = {0};
    #pragma unroll 4
    FOR_EACH(e, count) {
        grad[e] += T(reg) * W[e];
        sum[0] += W[e] * W[e];
    }
    store_pieces(sum, sums);
}

extern "C" __global__ void penalty(const T* loss, const T* sums, T* out, double reg, int64 pieces) {
    T sum[1];
    block_totals(sums, 0, pieces, sum);
    if (threadIdx.x == 0) *out = *loss + T(0.5 * reg) * sum[0];
}

// ---- the largest magnitude among finite values, and whether all values are finite

__device__ T larger(T a, T b) { return max(a, b); }

#define ARRAYS 8  // as in _finite.py

// blockIdx.x selects one of the arrays. Each block writes the largest finite magnitude of its values, and 1 if any is not
// finite. pieces is (arrays, 2, blocks).
extern "C" __global__ void largest_finite(const T* x0, const T* x1, const T* x2, const T* x3, const T* x4, const T* x5,
                                          const T* x6, const T* x7, int64 n0, int64 n1, int64 n2, int64 n3, int64 n4,
                                          int64 n5, int64 n6, int64 n7, T* pieces) {
    const T* const arrays[ARRAYS] = {x0, x1, x2, x3, x4, x5, x6, x7};
    const int64 counts[ARRAYS] = {n0, n1, n2, n3, n4, n5, n6, n7};
    const T* x = x0;
    int64 count = n0;
    for (unsigned k = 1; k < ARRAYS; ++k)
        if (blockIdx.x == k) {
            x = arrays[k];
            count = counts[k];
        }
    T found[2] = {0, 0};  // the largest, and 1 for one that is not finite
    #pragma unroll 4
    FOR_EACH(e, count)
        if (isfinite(x[e])) found[0] = larger(found[0], fabs(x[e]));
        else found[1] = 1;
    block_reduce<T, larger>(found);
    if (threadIdx.x > 0) return;
    pieces += 2 * blockIdx.x * gridDim.y + blockIdx.y;
    pieces[0] = found[0];
    pieces[gridDim.y] = found[1];
}

// One block for each array, whose pieces are (2, count); out is (arrays, 2).
extern "C" __global__ void largest_finite_of_pieces(const T* pieces, T* out, int64 count) {
    T found[2] = {0, 0};
    pieces += 2 * blockIdx.x * count;
    for (unsigned k = threadIdx.x; k < count; k += THREADS)
        for (int row = 0; row < 2; ++row) found[row] = larger(found[row], pieces[row * count + k]);
    block_reduce<T, larger>(found);
    if (threadIdx.x > 0) return;
    out[2 * blockIdx.x] = found[0];
    out[2 * blockIdx.x + 1] = 1 - found[1];
}

// ---- softmax cross-entropy: one warp for each sample

// Return the largest of C scores, NaN if one is NaN, to all 32 threads of a warp.
__device__ T warp_max(const T* __restrict__ x, int64 C) {
    T largest = minus_infinity();
    for (int64 c = threadIdx.x; c < C; c += 32)
        if (exceeds(x[c], largest)) largest = x[c];
    for (int d = 16; d > 0; d /= 2) {
        const T other = __shfl_xor_sync(0xffffffff, largest, d);
        if (exceeds(other, largest)) largest = other;
    }
    return largest;
}

extern "C" __global__ void softmax(const T* __restrict__ x, const int64* y, T* losses, T* __restrict__ dx, int64 N,
                                   int64 C) {
    const int64 n = (int64)blockIdx.x * blockDim.y + threadIdx.y;
    if (n >= N) return;
    x += n * C;
    dx += n * C;
    const T largest = warp_max(x, C);
    T total = 0;
    for (int64 c = threadIdx.x; c < C; c += 32) total += exp(x[c] - largest);
    for (int d = 16; d > 0; d /= 2) total += __shfl_xor_sync(0xffffffff, total, d);
    const T scale = 1 / (total * N);
    for (int64 c = threadIdx.x; c < C; c += 32) dx[c] = exp(x[c] - largest) * scale - (c == y[n] ? T(1) / N : T(0));
    if (threadIdx.x == 0) losses[n] = y[n] >= 0 && y[n] < C ? log(total) - (x[y[n]] - largest) : not_a_number();
}

extern "C" __global__ void cross_entropy(const T* __restrict__ x, const T* __restrict__ targets, const T* divisor,
                                         T* losses, T* __restrict__ dx, int64 N, int64 C) {
    const int64 n = (int64)blockIdx.x * blockDim.y + threadIdx.y;
    if (n >= N) return;
    x += n * C;
    targets += n * C;
    dx += n * C;
    const T largest = warp_max(x, C);
    T total = 0, weight = 0, loss = 0;
    for (int64 c = threadIdx.x; c < C; c += 32) {
        total += exp(x[c] - largest);
        weight += targets[c];
    }
    for (int d = 16; d > 0; d /= 2) {
        total += __shfl_xor_sync(0xffffffff, total, d);
        weight += __shfl_xor_sync(0xffffffff, weight, d);
    }
    const T log_total = log(total), scale = weight / total;
    for (int64 c = threadIdx.x; c < C; c += 32) {
        if (targets[c] != 0) loss += targets[c] * (log_total - (x[c] - largest));
        dx[c] = (exp(x[c] - largest) * scale - targets[c]) / *divisor;
    }
    for (int d = 16; d > 0; d /= 2) loss += __shfl_xor_sync(0xffffffff, loss, d);
    if (threadIdx.x == 0) losses[n] = loss;
}
