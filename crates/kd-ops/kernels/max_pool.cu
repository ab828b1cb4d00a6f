// Max-pooling of NCHW maps without padding; a block is one plane.
#include "number.cuh"

// `winners` are positions in the plane: of the first maximum in row-major order, where a NaN counts as the maximum.
template <class T>
__device__ inline void max_pool_forward(const T *x, T *y, unsigned *winners, int height, int width, int out_height,
                                        int out_width, int kernel, int stride) {
    x += size_t(blockIdx.x) * height * width;
    y += size_t(blockIdx.x) * out_height * out_width;
    winners += size_t(blockIdx.x) * out_height * out_width;
    for (int i = threadIdx.x; i < out_height * out_width; i += blockDim.x) {
        int first = i / out_width * stride * width + i % out_width * stride;
        int best = first;
        float most = get(x[first]);
        for (int row = 0; row < kernel; row++)
            for (int at = first + row * width; at < first + row * width + kernel; at++) {
                float value = get(x[at]);
                if (value > most || (value != value && most == most)) {
                    best = at;
                    most = value;
                }
            }
        set(y[i], most);
        winners[i] = best;
    }
}

// Each input asks the windows that it lies in, in row-major order: overlapping windows need no atomics.
template <class T>
__device__ inline void max_pool_backward(const T *dy, const unsigned *winners, T *dx, int height, int width,
                                         int out_height, int out_width, int kernel, int stride) {
    dx += size_t(blockIdx.x) * height * width;
    dy += size_t(blockIdx.x) * out_height * out_width;
    winners += size_t(blockIdx.x) * out_height * out_width;
    for (int i = threadIdx.x; i < height * width; i += blockDim.x) {
        int row = i / width, column = i % width;
        int first_row = row < kernel ? 0 : (row - kernel) / stride + 1;
        int first_column = column < kernel ? 0 : (column - kernel) / stride + 1;
        int last_row = min(row / stride, out_height - 1);
        int last_column = min(column / stride, out_width - 1);
        float sum = 0.0f;
        for (int r = first_row; r <= last_row; r++)
            for (int c = first_column; c <= last_column; c++)
                if (winners[r * out_width + c] == unsigned(i)) sum += get(dy[r * out_width + c]);
        set(dx[i], sum);
    }
}

#define MAX_POOL_KERNELS(T, NAME)                                                                              \
    extern "C" __global__ void max_pool_forward_##NAME(const T *x, T *y, unsigned *winners, int height,        \
                                                       int width, int out_height, int out_width, int kernel,   \
                                                       int stride) {                                           \
        max_pool_forward(x, y, winners, height, width, out_height, out_width, kernel, stride);                 \
    }                                                                                                          \
    extern "C" __global__ void max_pool_backward_##NAME(const T *dy, const unsigned *winners, T *dx,           \
                                                        int height, int width, int out_height, int out_width,  \
                                                        int kernel, int stride) {                              \
        max_pool_backward(dy, winners, dx, height, width, out_height, out_width, kernel, stride);              \
    }
MAX_POOL_KERNELS(float, f32)
MAX_POOL_KERNELS(__nv_bfloat16, bf16)
