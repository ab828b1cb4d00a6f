// Maps are stored as f32 or as bf16, a kernel for each (`..._f32`, `..._bf16`); the arithmetic is f32 in both.
// What belongs to a parameter (bias, statistics and their gradients) is f32 always.
#pragma once

#include <cuda_bf16.h>

__device__ inline float get(float x) { return x; }
__device__ inline float get(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void set(float &to, float x) { to = x; }
// To the nearest, ties to even.
__device__ inline void set(__nv_bfloat16 &to, float x) { to = __float2bfloat16(x); }

// What follows a layer: 0 nothing, 1 a ReLU, 2 a ReLU6, which is at most 6. NaN stays NaN.
__device__ inline float activated(float value, int activation) {
    if (activation && value < 0.0f) return 0.0f;
    return activation == 2 && value > 6.0f ? 6.0f : value;
}

// Whether a gradient passes an activation whose result was `y`: at 0 and at a ReLU6's 6 it does not.
__device__ inline bool passes(float y, int activation) {
    return !activation || (y > 0.0f && (activation == 1 || y < 6.0f));
}

// N values that one load or store moves. N is as many as 16 bytes hold, half of that, or 1.
template <class T, int N> struct alignas(N * sizeof(T)) Word {
    T values[N];
};

// Values in 16 bytes.
template <class T> constexpr int WIDE = 16 / sizeof(T);

template <int N, class T> __device__ inline Word<T, N> load(const T *at) {
    return *reinterpret_cast<const Word<T, N> *>(at);
}

template <int N, class T> __device__ inline void store(T *at, const Word<T, N> &word) {
    *reinterpret_cast<Word<T, N> *>(at) = word;
}

// Whether all of these begin where a word of 16 bytes does; null does.
template <class... Pointers> __device__ inline bool aligned(Pointers... at) {
    return ((reinterpret_cast<size_t>(at) | ...)) % 16 == 0;
}

// A thread's share of `count` items: first, first + step, ... `read(item)` loads what `use(item, loaded)` computes with; the loads
// of LOADS items are under way before the first of them is used, because one at a time leaves most of the memory's bandwidth idle.
template <int LOADS, class Read, class Use>
__device__ inline void with_loads_ahead(int first, int step, int count, Read read, Use use) {
    for (int item = first; item < count; item += LOADS * step) {
        decltype(read(0)) loaded[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (item + i * step < count) loaded[i] = read(item + i * step);
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (item + i * step < count) use(item + i * step, loaded[i]);
    }
}

// How many words of N values a thread has under way of each of ARRAYS arrays: more would take the registers that make many
// threads fit on a multiprocessor.
template <int N, int ARRAYS> constexpr int AHEAD = N == 1 ? 4 : (ARRAYS > 2 ? 8 : 16) / N;

// The plane that a thread works on: blocks have a row of threads (x) for each of several planes (y).
__device__ inline unsigned plane_of_thread() { return blockIdx.x * blockDim.y + threadIdx.y; }

// Of one channel, a part's share of the images (every parts-th): calls `read(image, pixel)` and `use(loaded)` for each N pixels.
template <int N, int LOADS, class Read, class Use>
__device__ inline void over_part(int images, int pixels, Read read, Use use) {
    int part = blockIdx.y, parts = gridDim.y, words = pixels / N;
    int mine = (images - part + parts - 1) / parts;
    int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    with_loads_ahead<LOADS>(
        thread, threads, mine * words, [&](int item) { return read(part + parts * (item / words), item % words * N); },
        [&](int, const auto &loaded) { use(loaded); });
}
