// ReLU; the derivative at zero is 0, NaN stays NaN.
#include "number.cuh"

template <int N, class T> __device__ inline void relu_forward_of(size_t count, const T *x, T *y) {
    size_t step = size_t(gridDim.x) * blockDim.x;
#pragma unroll 4
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count / N; i += step) {
        Word<T, N> values = load<N>(x + i * N);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float value = get(values.values[j]);
            set(values.values[j], value < 0.0f ? 0.0f : value);
        }
        store<N>(y + i * N, values);
    }
}

template <class T>
__device__ inline void relu_forward(size_t count, const T *x, T *y) {
    if (count % WIDE<T> == 0 && aligned(x, y)) relu_forward_of<WIDE<T>>(count, x, y);
    else relu_forward_of<1>(count, x, y);
}

template <int N, class T>
__device__ inline void relu_backward_of(size_t count, const T *y, const T *dy, T *dx) {
    size_t step = size_t(gridDim.x) * blockDim.x;
#pragma unroll 4
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count / N; i += step) {
        Word<T, N> result = load<N>(y + i * N), gradient = load<N>(dy + i * N);
#pragma unroll
        for (int j = 0; j < N; j++)
            if (!(get(result.values[j]) > 0.0f)) set(gradient.values[j], 0.0f);
        store<N>(dx + i * N, gradient);
    }
}

template <class T>
__device__ inline void relu_backward(size_t count, const T *y, const T *dy, T *dx) {
    if (count % WIDE<T> == 0 && aligned(y, dy, dx)) relu_backward_of<WIDE<T>>(count, y, dy, dx);
    else relu_backward_of<1>(count, y, dy, dx);
}

#define RELU_KERNELS(T, NAME)                                                                              \
    extern "C" __global__ void relu_forward_##NAME(size_t count, const T *x, T *y) {                       \
        relu_forward(count, x, y);                                                                         \
    }                                                                                                      \
    extern "C" __global__ void relu_backward_##NAME(size_t count, const T *y, const T *dy, T *dx) {        \
        relu_backward(count, y, dy, dx);                                                                   \
    }
RELU_KERNELS(float, f32)
RELU_KERNELS(__nv_bfloat16, bf16)
