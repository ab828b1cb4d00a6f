// What surrounds a linear layer's products; maps are [rows, columns], row-major.
#include "number.cuh"

// In place: y = y + bias, and the activation of it. A block is a row.
template <class T> __device__ inline void linear_bias_forward(T *y, const float *bias, int columns, int activation) {
    y += size_t(blockIdx.x) * columns;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        set(y[i], activated(get(y[i]) + bias[i], activation));
    }
}

// The sum of each column, in f64: a block takes 32 columns, its 8 rows of threads every eighth row.
template <class T> __device__ inline void linear_bias_backward(const T *dz, int rows, int columns, float *dbias) {
    __shared__ double partial[8][32];
    int column = blockIdx.x * 32 + threadIdx.x;
    double sum = 0.0;
    if (column < columns)
        for (int row = threadIdx.y; row < rows; row += 8) sum += get(dz[size_t(row) * columns + column]);
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    for (int part = 1; part < 8; part++) sum += partial[part][threadIdx.x];
    dbias[column] = float(sum);
}

#define LINEAR_KERNELS(T, NAME)                                                                                   \
    extern "C" __global__ void linear_bias_forward_##NAME(T *y, const float *bias, int columns, int activation) { \
        linear_bias_forward(y, bias, columns, activation);                                                        \
    }                                                                                                             \
    extern "C" __global__ void linear_bias_backward_##NAME(const T *dz, int rows, int columns, float *dbias) {    \
        linear_bias_backward(dz, rows, columns, dbias);                                                           \
    }
LINEAR_KERNELS(float, f32)
LINEAR_KERNELS(__nv_bfloat16, bf16)
