// Softmax losses of [B, C] logits: cross-entropy with labels, KL to a teacher at temperature T, their weighted
// sum and its gradient. `fused.rs` has the formulas.
//
// A row belongs to a warp or to a block. Its threads run over the logits once and keep running maxima and sums
// ("online softmax": Milakov and Gimelshein 2018), then join them; sums are f32, in an order that depends on
// the shape and on the row's alignment alone. The gradient is a second run over the row, which is in cache then.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float LOWEST = -3.402823466e38f;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline void from_float(float x, float &out) { out = x; }
__device__ inline void from_float(float x, __nv_bfloat16 &out) { out = __float2bfloat16(x); }
__device__ inline void from_float(float x, __half &out) { out = __float2half(x); }

// Values of T in 16 bytes, which one load or store moves.
template <class T> struct alignas(16) Pack {
    static constexpr int SIZE = 16 / sizeof(T);
    T values[SIZE];
};

// What the kernels are asked for; both terms are there when both pointers are.
struct Terms {
    float temperature;
    float smoothing;
    float labels_weight;
    float kd_weight;
};

// Of a row, or of the part of it that a thread has seen. Sums of exponentials are relative to the maxima.
struct Sums {
    float s_max;  // student's logits
    float s_sum;  // sum of exp(s - s_max)
    float s_soft; // sum of exp((s - s_max) / T)
    float t_max;  // teacher's logits
    float t_soft; // sum of exp((t - t_max) / T)
    float gap;    // sum of exp((t - t_max) / T) ((t - t_max) - (s - s_max))
    float spread; // sum of s - s_label
};

// What the gradient and the mean need of a row; 8 floats, in two 16-byte words.
struct alignas(16) Row {
    float s_max;
    float s_scale;      // 1 / sum of exp(s - s_max)
    float s_soft_scale; // 1 / sum of exp((s - s_max) / T)
    float t_max;
    float t_soft_scale; // 1 / sum of exp((t - t_max) / T)
    float cross_entropy;
    float kl;
    float unused;
};

__device__ inline Sums nothing() { return {LOWEST, 0.0f, 0.0f, LOWEST, 0.0f, 0.0f, 0.0f}; }

// Whether T is 2, as in the first paper's and most recipes: exp(x) then is the square of exp(x / T), one exponential less of three.
// `by` is log2(e) / T.
__device__ inline bool is_square(float by) { return by == LOG2_E / 2.0f; }

// Brings the sums to larger maxima. `by` is log2(e) / T.
template <bool LABELS, bool TEACHER>
__device__ inline void raise(Sums &a, float s_max, float t_max, float by) {
    float s_step = a.s_max - s_max;
    if (LABELS) a.s_sum *= exp2f(s_step * LOG2_E);
    if (TEACHER) {
        float t_step = a.t_max - t_max;
        a.s_soft *= exp2f(s_step * by);
        // Where nothing was summed the steps may be infinite.
        if (a.t_soft != 0.0f) a.gap += a.t_soft * (t_step - s_step);
        float factor = exp2f(t_step * by);
        a.gap *= factor;
        a.t_soft *= factor;
        a.t_max = t_max;
    }
    a.s_max = s_max;
}

template <bool LABELS, bool TEACHER, int N>
__device__ inline void add(Sums &a, const float (&s)[N], const float (&t)[N], float s_label, float by) {
    bool squares = is_square(by);
    float s_max = a.s_max, t_max = a.t_max;
#pragma unroll
    for (int i = 0; i < N; i++) {
        s_max = fmaxf(s_max, s[i]);
        if (TEACHER) t_max = fmaxf(t_max, t[i]);
    }
    raise<LABELS, TEACHER>(a, s_max, t_max, by);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float s_below = s[i] - s_max, soft = TEACHER ? exp2f(s_below * by) : 0.0f;
        if (LABELS) {
            a.s_sum += TEACHER && squares ? soft * soft : exp2f(s_below * LOG2_E);
            a.spread += s[i] - s_label;
        }
        if (TEACHER) {
            float t_below = t[i] - t_max, weight = exp2f(t_below * by);
            a.s_soft += soft;
            a.t_soft += weight;
            a.gap += weight * (t_below - s_below);
        }
    }
}

// The sums of two parts; with the two exchanged it gives the same bits.
template <bool LABELS, bool TEACHER> __device__ inline Sums join(Sums a, Sums b, float by) {
    float s_max = fmaxf(a.s_max, b.s_max), t_max = fmaxf(a.t_max, b.t_max);
    raise<LABELS, TEACHER>(a, s_max, t_max, by);
    raise<LABELS, TEACHER>(b, s_max, t_max, by);
    a.s_sum += b.s_sum;
    a.s_soft += b.s_soft;
    a.t_soft += b.t_soft;
    a.gap += b.gap;
    a.spread += b.spread;
    return a;
}

template <bool LABELS, bool TEACHER> __device__ inline Sums join_warp(Sums a, float by) {
    for (int with = 16; with > 0; with /= 2) {
        Sums b;
        b.s_max = __shfl_xor_sync(ALL_LANES, a.s_max, with);
        b.s_sum = __shfl_xor_sync(ALL_LANES, a.s_sum, with);
        b.s_soft = __shfl_xor_sync(ALL_LANES, a.s_soft, with);
        b.t_max = __shfl_xor_sync(ALL_LANES, a.t_max, with);
        b.t_soft = __shfl_xor_sync(ALL_LANES, a.t_soft, with);
        b.gap = __shfl_xor_sync(ALL_LANES, a.gap, with);
        b.spread = __shfl_xor_sync(ALL_LANES, a.spread, with);
        a = join<LABELS, TEACHER>(a, b, by);
    }
    return a;
}

// Joins the sums of all threads of a row; each gets the result.
template <bool LABELS, bool TEACHER, bool BLOCK> __device__ inline Sums join_row(Sums a, float by) {
    a = join_warp<LABELS, TEACHER>(a, by);
    if (BLOCK) {
        __shared__ Sums warps[32];
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        if (lane == 0) warps[warp] = a;
        __syncthreads();
        a = lane < int(blockDim.x / 32) ? warps[lane] : nothing();
        a = join_warp<LABELS, TEACHER>(a, by);
    }
    return a;
}

// A row cut where 16-byte words begin: `head` single values, then whole packs up to `tail`, then single values.
// A row of another alignment in student, teacher or gradient is single values alone.
struct Cut {
    int head, tail;
};

template <class T> __device__ inline Cut cut(const T *a, const T *b, const T *c, int columns) {
    size_t at = reinterpret_cast<size_t>(a);
    bool alike = (b == nullptr || (reinterpret_cast<size_t>(b) - at) % 16 == 0) &&
                 (c == nullptr || (reinterpret_cast<size_t>(c) - at) % 16 == 0);
    int head = alike ? int((16 - at % 16) % 16 / sizeof(T)) : columns;
    head = min(head, columns);
    return {head, head + (columns - head) / Pack<T>::SIZE * Pack<T>::SIZE};
}

// How many packs a thread has under way at once: 64 bytes of f32, 32 of the others, 16 values each.
template <class T> constexpr int DEPTH = sizeof(T) == 4 ? 4 : 2;

// Loads `PACKS` packs from `s` (and `t`), `stride` packs apart.
template <class T, bool TEACHER, int PACKS, int N>
__device__ inline void load(const T *s, const T *t, int stride, float (&s_out)[N], float (&t_out)[N]) {
    constexpr int SIZE = Pack<T>::SIZE;
    static_assert(N == PACKS * SIZE, "");
    Pack<T> s_packs[PACKS], t_packs[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        s_packs[p] = *reinterpret_cast<const Pack<T> *>(s + size_t(p) * stride * SIZE);
        if (TEACHER) t_packs[p] = *reinterpret_cast<const Pack<T> *>(t + size_t(p) * stride * SIZE);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        s_out[i] = to_float(s_packs[i / SIZE].values[i % SIZE]);
        t_out[i] = TEACHER ? to_float(t_packs[i / SIZE].values[i % SIZE]) : 0.0f;
    }
}

// The sums of this thread's share of a row.
template <class T, bool LABELS, bool TEACHER>
__device__ inline Sums sum_row(const T *s, const T *t, Cut at, int columns, float s_label, float by, int thread,
                               int threads) {
    constexpr int SIZE = Pack<T>::SIZE, DEEP = DEPTH<T>;
    Sums a = nothing();
    auto single = [&](int j) {
        float s_one[1] = {to_float(s[j])}, t_one[1] = {TEACHER ? to_float(t[j]) : 0.0f};
        add<LABELS, TEACHER>(a, s_one, t_one, s_label, by);
    };
    for (int j = thread; j < at.head; j += threads) single(j);
    int packs = (at.tail - at.head) / SIZE, p = thread;
    for (; p + (DEEP - 1) * threads < packs; p += DEEP * threads) {
        float s_some[DEEP * SIZE], t_some[DEEP * SIZE];
        int j = at.head + p * SIZE;
        load<T, TEACHER, DEEP>(s + j, TEACHER ? t + j : t, threads, s_some, t_some);
        add<LABELS, TEACHER>(a, s_some, t_some, s_label, by);
    }
    for (; p < packs; p += threads) {
        float s_some[SIZE], t_some[SIZE];
        int j = at.head + p * SIZE;
        load<T, TEACHER, 1>(s + j, TEACHER ? t + j : t, threads, s_some, t_some);
        add<LABELS, TEACHER>(a, s_some, t_some, s_label, by);
    }
    for (int j = at.tail + thread; j < columns; j += threads) single(j);
    return a;
}

// Writes this thread's share of a row's gradient, times `scale`.
template <class T, bool LABELS, bool TEACHER>
__device__ inline void write_gradient(const T *s, const T *t, T *out, Cut at, int columns, int label, const Row &row,
                                      const Terms &terms, float scale, int thread, int threads) {
    constexpr int SIZE = Pack<T>::SIZE;
    float by = LOG2_E / terms.temperature;
    float hard = scale * terms.labels_weight, soft = scale * terms.kd_weight * terms.temperature;
    float even = terms.smoothing / columns, on_label = 1.0f - terms.smoothing;
    bool squares = is_square(by);
    auto one = [&](int j, float s, float t) {
        float below = s - row.s_max, softened = TEACHER ? exp2f(below * by) : 0.0f, gradient = 0.0f;
        if (LABELS) {
            float target = j == label ? even + on_label : even;
            float exponential = TEACHER && squares ? softened * softened : exp2f(below * LOG2_E);
            gradient += hard * (exponential * row.s_scale - target);
        }
        if (TEACHER) {
            float q = exp2f((t - row.t_max) * by) * row.t_soft_scale;
            gradient += soft * (softened * row.s_soft_scale - q);
        }
        return gradient;
    };
    auto single = [&](int j) { from_float(one(j, to_float(s[j]), TEACHER ? to_float(t[j]) : 0.0f), out[j]); };
    for (int j = thread; j < at.head; j += threads) single(j);
    for (int j = at.head + thread * SIZE; j < at.tail; j += threads * SIZE) {
        float s_some[SIZE], t_some[SIZE];
        load<T, TEACHER, 1>(s + j, TEACHER ? t + j : t, threads, s_some, t_some);
        Pack<T> pack;
#pragma unroll
        for (int i = 0; i < SIZE; i++) from_float(one(j + i, s_some[i], t_some[i]), pack.values[i]);
        *reinterpret_cast<Pack<T> *>(out + j) = pack;
    }
    for (int j = at.tail + thread; j < columns; j += threads) single(j);
}

// One row: its sums, if `summed` is false, and its gradient, if there is a place for it.
template <class T, bool LABELS, bool TEACHER, bool BLOCK>
__device__ inline void one_row(const T *s, const T *t, T *gradient, Row *row_out, unsigned label, int columns,
                               const Terms &terms, float scale, bool summed) {
    int thread = BLOCK ? threadIdx.x : threadIdx.x % 32, threads = BLOCK ? blockDim.x : 32;
    float by = LOG2_E / terms.temperature;
    Cut at = cut(s, t, static_cast<const T *>(gradient), columns);
    Row row;
    if (summed) {
        row = *row_out;
    } else {
        // A label that is no class is not looked up: it makes the row's loss and gradient NaN.
        bool is_class = label < unsigned(columns);
        float s_label = LABELS && is_class ? to_float(s[label]) : 0.0f;
        Sums a = sum_row<T, LABELS, TEACHER>(s, t, at, columns, s_label, by, thread, threads);
        a = join_row<LABELS, TEACHER, BLOCK>(a, by);
        float nan = __int_as_float(0x7fc00000);
        row.s_max = a.s_max;
        row.s_scale = LABELS ? (is_class ? 1.0f / a.s_sum : nan) : 0.0f;
        row.s_soft_scale = TEACHER ? 1.0f / a.s_soft : 0.0f;
        row.t_max = a.t_max;
        row.t_soft_scale = TEACHER ? 1.0f / a.t_soft : 0.0f;
        row.cross_entropy = 0.0f;
        if (LABELS) {
            // -log p_label - smoothing * (mean of log p - log p_label)
            float at_label = logf(a.s_sum) - (s_label - a.s_max);
            // (without smoothing the mean may be infinite and is not looked at)
            float even = terms.smoothing > 0.0f ? terms.smoothing * (a.spread / columns) : 0.0f;
            row.cross_entropy = is_class ? at_label - even : nan;
        }
        // sum of q (log q - log p), with log q = (t - t_max) / T - log t_soft
        row.kl = TEACHER ? a.gap / a.t_soft / terms.temperature + (logf(a.s_soft) - logf(a.t_soft)) : 0.0f;
        row.unused = 0.0f;
        if (thread == 0) *row_out = row;
    }
    if (gradient != nullptr) {
        write_gradient<T, LABELS, TEACHER>(s, t, gradient, at, columns, int(label), row, terms, scale, thread,
                                           threads);
    }
}

// `teacher`, `labels` and `gradient` may be null. `upstream` null: the sums are computed and `rows` written, the
// gradient is that of the loss. Otherwise `rows` is what an earlier call wrote and the gradient is multiplied by
// `*upstream`.
template <class T, bool BLOCK>
__device__ inline void all_rows(const T *student, const T *teacher, const unsigned *labels, T *gradient, Row *rows,
                                const float *upstream, int batch, int columns, Terms terms) {
    int row = BLOCK ? blockIdx.x : blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= batch) return;
    size_t from = size_t(row) * columns;
    const T *s = student + from, *t = teacher == nullptr ? nullptr : teacher + from;
    T *g = gradient == nullptr ? nullptr : gradient + from;
    bool summed = upstream != nullptr;
    float scale = (summed ? *upstream : 1.0f) / batch;
    unsigned label = labels == nullptr ? 0 : labels[row];
    if (labels == nullptr) {
        one_row<T, false, true, BLOCK>(s, t, g, rows + row, label, columns, terms, scale, summed);
    } else if (teacher == nullptr) {
        one_row<T, true, false, BLOCK>(s, t, g, rows + row, label, columns, terms, scale, summed);
    } else {
        one_row<T, true, true, BLOCK>(s, t, g, rows + row, label, columns, terms, scale, summed);
    }
}

template <class T> __device__ inline void scale_all(T *values, const float *upstream, size_t count) {
    float factor = *upstream;
    // The loss itself was differentiated: nothing to do, and nothing is read.
    if (factor == 1.0f) return;
    size_t first = size_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = size_t(gridDim.x) * blockDim.x;
    for (size_t i = first; i < count; i += threads) from_float(to_float(values[i]) * factor, values[i]);
}

} // namespace

#define KERNELS(TYPE, NAME)                                                                                          \
    /* a warp a row */                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                \
        warp_rows_##NAME(const TYPE *student, const TYPE *teacher, const unsigned *labels, TYPE *gradient,           \
                         float *rows, const float *upstream, int batch, int columns, float temperature,              \
                         float smoothing, float labels_weight, float kd_weight) {                                    \
        all_rows<TYPE, false>(student, teacher, labels, gradient, reinterpret_cast<Row *>(rows), upstream, batch,    \
                              columns, {temperature, smoothing, labels_weight, kd_weight});                          \
    }                                                                                                                \
    /* a block a row; two fit on a multiprocessor, so that one reads while the other joins its sums */               \
    extern "C" __global__ void __launch_bounds__(512, 2)                                                             \
        block_rows_##NAME(const TYPE *student, const TYPE *teacher, const unsigned *labels, TYPE *gradient,          \
                          float *rows, const float *upstream, int batch, int columns, float temperature,             \
                          float smoothing, float labels_weight, float kd_weight) {                                   \
        all_rows<TYPE, true>(student, teacher, labels, gradient, reinterpret_cast<Row *>(rows), upstream, batch,     \
                             columns, {temperature, smoothing, labels_weight, kd_weight});                           \
    }                                                                                                                \
    extern "C" __global__ void scale_##NAME(TYPE *values, const float *upstream, size_t count) {                     \
        scale_all(values, upstream, count);                                                                          \
    }

KERNELS(float, f32)
KERNELS(__nv_bfloat16, bf16)
KERNELS(__half, f16)

// One block: the weighted sum, and the terms before their weights, of all rows. `loss` is [1], `terms` [2].
extern "C" __global__ void __launch_bounds__(1024) mean_rows(const float *rows, float *loss, float *terms, int batch,
                                                             float temperature, float labels_weight,
                                                             float kd_weight) {
    __shared__ double partial[2][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    double cross_entropy = 0.0, kl = 0.0;
    for (int i = threadIdx.x; i < batch; i += blockDim.x) {
        const Row &row = reinterpret_cast<const Row *>(rows)[i];
        cross_entropy += row.cross_entropy;
        kl += row.kl;
    }
    for (int with = 16; with > 0; with /= 2) {
        cross_entropy += __shfl_xor_sync(ALL_LANES, cross_entropy, with);
        kl += __shfl_xor_sync(ALL_LANES, kl, with);
    }
    if (lane == 0) {
        partial[0][warp] = cross_entropy;
        partial[1][warp] = kl;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    cross_entropy = kl = 0.0;
    for (int i = 0; i < int(blockDim.x / 32); i++) {
        cross_entropy += partial[0][i];
        kl += partial[1][i];
    }
    cross_entropy /= batch;
    kl *= double(temperature) * temperature / batch;
    loss[0] = float(labels_weight * cross_entropy + kd_weight * kl);
    terms[0] = float(cross_entropy);
    terms[1] = float(kl);
}
