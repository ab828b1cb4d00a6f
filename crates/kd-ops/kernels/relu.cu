// ReLU; the derivative at zero is 0, NaN stays NaN.
#include "number.cuh"

template <class T> __device__ inline void relu_forward(size_t count, const T *x, T *y) {
    size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        float value = get(x[i]);
        set(y[i], value < 0.0f ? 0.0f : value);
    }
}

template <class T> __device__ inline void relu_backward(size_t count, const T *y, const T *dy, T *dx) {
    size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        set(dx[i], get(y[i]) > 0.0f ? get(dy[i]) : 0.0f);
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
