// Every second pixel, between channels of zeros; a block is one plane of what is written.
#include "number.cuh"

template <class T>
__device__ inline void subsample_pad_forward(const T *x, T *y, int channels, int height, int width, int out_channels,
                                             int out_height, int out_width) {
    int image = blockIdx.x / out_channels;
    int channel = int(blockIdx.x % out_channels) - (out_channels - channels) / 2;
    bool zeros = channel < 0 || channel >= channels;
    const T *from = zeros ? x : x + (size_t(image) * channels + channel) * height * width;
    y += size_t(blockIdx.x) * out_height * out_width;
    for (int i = threadIdx.x; i < out_height * out_width; i += blockDim.x)
        set(y[i], zeros ? 0.0f : get(from[i / out_width * 2 * width + i % out_width * 2]));
}

template <class T>
__device__ inline void subsample_pad_backward(const T *dy, T *dx, int channels, int height, int width,
                                              int out_channels, int out_height, int out_width) {
    int image = blockIdx.x / channels;
    int channel = int(blockIdx.x % channels) + (out_channels - channels) / 2;
    dy += (size_t(image) * out_channels + channel) * out_height * out_width;
    dx += size_t(blockIdx.x) * height * width;
    for (int i = threadIdx.x; i < height * width; i += blockDim.x) {
        int row = i / width, column = i % width;
        set(dx[i], row % 2 == 0 && column % 2 == 0 ? get(dy[row / 2 * out_width + column / 2]) : 0.0f);
    }
}

#define SHORTCUT_KERNELS(T, NAME)                                                                                \
    extern "C" __global__ void subsample_pad_forward_##NAME(const T *x, T *y, int channels, int height,          \
                                                            int width, int out_channels, int out_height,         \
                                                            int out_width) {                                     \
        subsample_pad_forward(x, y, channels, height, width, out_channels, out_height, out_width);               \
    }                                                                                                            \
    extern "C" __global__ void subsample_pad_backward_##NAME(const T *dy, T *dx, int channels, int height,       \
                                                             int width, int out_channels, int out_height,        \
                                                             int out_width) {                                    \
        subsample_pad_backward(dy, dx, channels, height, width, out_channels, out_height, out_width);            \
    }
SHORTCUT_KERNELS(float, f32)
SHORTCUT_KERNELS(__nv_bfloat16, bf16)
