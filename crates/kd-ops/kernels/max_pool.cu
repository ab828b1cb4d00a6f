// Max-pooling of NCHW maps; around a map lie `padding` pixels that no window takes a value of. A block is one plane.
#include "number.cuh"

// `winners` are positions in the plane: of the first maximum in row-major order, where a NaN counts as the maximum. The activation
// is that of the maxima.
template <class T>
__device__ inline void max_pool_forward(const T *x, T *y, unsigned *winners, int height, int width, int out_height,
                                        int out_width, int kernel, int stride, int padding, int activation) {
    x += size_t(blockIdx.x) * height * width;
    y += size_t(blockIdx.x) * out_height * out_width;
    winners += size_t(blockIdx.x) * out_height * out_width;
    for (int i = threadIdx.x; i < out_height * out_width; i += blockDim.x) {
        int top = i / out_width * stride - padding, left = i % out_width * stride - padding;
        int last_row = min(top + kernel, height), last_column = min(left + kernel, width);
        int best = max(top, 0) * width + max(left, 0);
        float most = get(x[best]);
        for (int row = max(top, 0); row < last_row; row++)
            for (int column = max(left, 0); column < last_column; column++) {
                float value = get(x[row * width + column]);
                if (value > most || (value != value && most == most)) {
                    best = row * width + column;
                    most = value;
                }
            }
        set(y[i], activated(most, activation));
        winners[i] = best;
    }
}

// Each input asks the windows that it lies in, in row-major order: overlapping windows need no atomics.
template <class T>
__device__ inline void max_pool_backward(const T *dy, const unsigned *winners, T *dx, int height, int width,
                                         int out_height, int out_width, int kernel, int stride, int padding) {
    dx += size_t(blockIdx.x) * height * width;
    dy += size_t(blockIdx.x) * out_height * out_width;
    winners += size_t(blockIdx.x) * out_height * out_width;
    for (int i = threadIdx.x; i < height * width; i += blockDim.x) {
        int row = i / width, column = i % width;
        // Where a window begins counts from the padding's corner.
        int down = row + padding, right = column + padding;
        int first_row = down < kernel ? 0 : (down - kernel) / stride + 1;
        int first_column = right < kernel ? 0 : (right - kernel) / stride + 1;
        int last_row = min(down / stride, out_height - 1);
        int last_column = min(right / stride, out_width - 1);
        float sum = 0.0f;
        for (int r = first_row; r <= last_row; r++)
            for (int c = first_column; c <= last_column; c++)
                if (winners[r * out_width + c] == unsigned(i)) sum += get(dy[r * out_width + c]);
        set(dx[i], sum);
    }
}

#define MAX_POOL_KERNELS(T, NAME)                                                                             \
    extern "C" __global__ void max_pool_forward_##NAME(const T *x, T *y, unsigned *winners, int height,       \
                                                       int width, int out_height, int out_width, int kernel,  \
                                                       int stride, int padding, int activation) {             \
        max_pool_forward(x, y, winners, height, width, out_height, out_width, kernel, stride, padding,        \
                         activation);                                                                         \
    }                                                                                                         \
    extern "C" __global__ void max_pool_backward_##NAME(const T *dy, const unsigned *winners, T *dx,          \
                                                        int height, int width, int out_height, int out_width, \
                                                        int kernel, int stride, int padding) {                \
        max_pool_backward(dy, winners, dx, height, width, out_height, out_width, kernel, stride, padding);    \
    }
MAX_POOL_KERNELS(float, f32)
MAX_POOL_KERNELS(__nv_bfloat16, bf16)
