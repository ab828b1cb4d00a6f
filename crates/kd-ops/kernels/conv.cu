// What surrounds a convolution's products: bias, ReLU and 2x2 max-pool behind it, their gradients, and the
// gathering and scattering of windows where cuBLAS multiplies. A block is one plane (an image's channel).
//
// The products' map `z` has its own order: element (image, channel, pixel) lies at
// image * image_stride + channel * channel_stride + pixel, which is NCHW for cuDNN and CNHW for cuBLAS.
#include "number.cuh"
#include "reduce.cuh"

// y = max(z + bias, 0), or without the maximum; y may be z where the orders are the same.
template <class T>
__device__ inline void conv_bias_forward(const T *z, size_t image_stride, size_t channel_stride, const float *bias,
                                         int channels, int pixels, int relu, T *y) {
    int image = blockIdx.x / channels, channel = blockIdx.x % channels;
    z += image * image_stride + channel * channel_stride;
    y += size_t(blockIdx.x) * pixels;
    float shift = bias[channel];
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
        float value = get(z[i]) + shift;
        set(y[i], relu && value < 0.0f ? 0.0f : value);
    }
}

// dz = dy where y > 0 (with a ReLU), else 0.
template <class T>
__device__ inline void conv_bias_backward(const T *y, const T *dy, int channels, int pixels, int relu, T *dz,
                                          size_t image_stride, size_t channel_stride) {
    int image = blockIdx.x / channels, channel = blockIdx.x % channels;
    dz += image * image_stride + channel * channel_stride;
    size_t first = size_t(blockIdx.x) * pixels;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x)
        set(dz[i], !relu || get(y[first + i]) > 0.0f ? get(dy[first + i]) : 0.0f);
}

// The maximum of each 2x2 window of z + bias, then the ReLU; `winners` counts a window's pixels in row-major
// order, the first maximum wins, and a NaN counts as one.
template <class T>
__device__ inline void conv_pool_forward(const T *z, size_t image_stride, size_t channel_stride, const float *bias,
                                         int channels, int height, int width, int relu, T *y,
                                         unsigned char *winners) {
    int image = blockIdx.x / channels, channel = blockIdx.x % channels;
    int out_width = width / 2, out_pixels = height / 2 * out_width;
    z += image * image_stride + channel * channel_stride;
    y += size_t(blockIdx.x) * out_pixels;
    winners += size_t(blockIdx.x) * out_pixels;
    float shift = bias[channel];
    for (int i = threadIdx.x; i < out_pixels; i += blockDim.x) {
        const T *window = z + size_t(i / out_width) * 2 * width + i % out_width * 2;
        float most = get(window[0]) + shift;
        int best = 0;
#pragma unroll
        for (int at = 1; at < 4; at++) {
            float value = get(window[at / 2 * width + at % 2]) + shift;
            if (value > most || (value != value && most == most)) {
                best = at;
                most = value;
            }
        }
        set(y[i], relu && most < 0.0f ? 0.0f : most);
        winners[i] = best;
    }
}

// The gradient goes to each window's winner; a last odd row or column gets none.
template <class T>
__device__ inline void conv_pool_backward(const T *y, const unsigned char *winners, const T *dy, int channels,
                                          int height, int width, int relu, T *dz, size_t image_stride,
                                          size_t channel_stride) {
    int image = blockIdx.x / channels, channel = blockIdx.x % channels;
    int out_height = height / 2, out_width = width / 2;
    size_t first = size_t(blockIdx.x) * out_height * out_width;
    dz += image * image_stride + channel * channel_stride;
    for (int i = threadIdx.x; i < height * width; i += blockDim.x) {
        int row = i / width, column = i % width;
        float value = 0.0f;
        if (row / 2 < out_height && column / 2 < out_width) {
            size_t window = first + row / 2 * out_width + column / 2;
            if (winners[window] == row % 2 * 2 + column % 2 && (!relu || get(y[window]) > 0.0f)) value = get(dy[window]);
        }
        set(dz[i], value);
    }
}

// The bias's gradient, in f64: of each channel and part (as in batch_norm.cu) the sum of dz. Every other sum in
// `partial` is 0.
template <class T>
__device__ inline void conv_bias_sums(const T *dz, size_t image_stride, size_t channel_stride, int images, int pixels,
                                      double *partial) {
    int channel = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    double sum = 0.0, none = 0.0;
    for (int image = part + parts * threadIdx.y; image < images; image += parts * blockDim.y) {
        const T *values = dz + image * image_stride + channel * channel_stride;
        for (int i = threadIdx.x; i < pixels; i += blockDim.x) sum += get(values[i]);
    }
    block_sum(sum, none);
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        partial[2 * (channel * parts + part)] = sum;
        partial[2 * (channel * parts + part) + 1] = 0.0;
    }
}

extern "C" __global__ void conv_bias_totals(const double *partial, int parts, float *dbias) {
    double sum, none;
    warp_sum_of_parts(partial + size_t(2) * blockIdx.x * parts, parts, sum, none);
    if (threadIdx.x == 0) dbias[blockIdx.x] = float(sum);
}

// The sizes of a convolution, passed by value.
struct Sizes {
    int images, channels, height, width;
    int kernel_height, kernel_width, stride, padding, dilation;
    int out_height, out_width;
};

// Each window as a column: columns[(channel, ky, kx)][image, out pixel], zeros where it reaches over the edge.
// blockIdx.x is the row (channel, ky, kx), .y the image.
template <class T> __device__ inline void conv_columns(const T *x, Sizes s, T *columns) {
    int row = blockIdx.x;
    int kx = row % s.kernel_width, ky = row / s.kernel_width % s.kernel_height;
    int channel = row / s.kernel_width / s.kernel_height;
    int out_pixels = s.out_height * s.out_width;
    for (int image = blockIdx.y; image < s.images; image += gridDim.y) {
        const T *plane = x + (size_t(image) * s.channels + channel) * s.height * s.width;
        T *to = columns + (size_t(row) * s.images + image) * out_pixels;
        for (int i = threadIdx.x; i < out_pixels; i += blockDim.x) {
            int r = i / s.out_width * s.stride - s.padding + ky * s.dilation;
            int c = i % s.out_width * s.stride - s.padding + kx * s.dilation;
            bool inside = r >= 0 && r < s.height && c >= 0 && c < s.width;
            set(to[i], inside ? get(plane[size_t(r) * s.width + c]) : 0.0f);
        }
    }
}

// The reverse: each input adds up, in row-major order of the window, what the columns that hold it say.
// A block is one plane of the input.
template <class T> __device__ inline void conv_from_columns(const T *columns, Sizes s, T *dx) {
    int image = blockIdx.x / s.channels, channel = blockIdx.x % s.channels;
    int out_pixels = s.out_height * s.out_width;
    dx += size_t(blockIdx.x) * s.height * s.width;
    for (int i = threadIdx.x; i < s.height * s.width; i += blockDim.x) {
        float sum = 0.0f;
        for (int ky = 0; ky < s.kernel_height; ky++) {
            int r = i / s.width + s.padding - ky * s.dilation;
            if (r < 0 || r % s.stride != 0 || r / s.stride >= s.out_height) continue;
            for (int kx = 0; kx < s.kernel_width; kx++) {
                int c = i % s.width + s.padding - kx * s.dilation;
                if (c < 0 || c % s.stride != 0 || c / s.stride >= s.out_width) continue;
                size_t row = (size_t(channel) * s.kernel_height + ky) * s.kernel_width + kx;
                sum += get(columns[(row * s.images + image) * out_pixels + r / s.stride * s.out_width + c / s.stride]);
            }
        }
        set(dx[i], sum);
    }
}

#define CONV_KERNELS(T, NAME)                                                                                     \
    extern "C" __global__ void conv_bias_forward_##NAME(const T *z, size_t image_stride, size_t channel_stride,   \
                                                        const float *bias, int channels, int pixels, int relu,    \
                                                        T *y) {                                                   \
        conv_bias_forward(z, image_stride, channel_stride, bias, channels, pixels, relu, y);                      \
    }                                                                                                             \
    extern "C" __global__ void conv_bias_backward_##NAME(const T *y, const T *dy, int channels, int pixels,       \
                                                         int relu, T *dz, size_t image_stride,                    \
                                                         size_t channel_stride) {                                 \
        conv_bias_backward(y, dy, channels, pixels, relu, dz, image_stride, channel_stride);                      \
    }                                                                                                             \
    extern "C" __global__ void conv_pool_forward_##NAME(const T *z, size_t image_stride, size_t channel_stride,   \
                                                        const float *bias, int channels, int height, int width,   \
                                                        int relu, T *y, unsigned char *winners) {                 \
        conv_pool_forward(z, image_stride, channel_stride, bias, channels, height, width, relu, y, winners);      \
    }                                                                                                             \
    extern "C" __global__ void conv_pool_backward_##NAME(const T *y, const unsigned char *winners, const T *dy,   \
                                                         int channels, int height, int width, int relu, T *dz,    \
                                                         size_t image_stride, size_t channel_stride) {            \
        conv_pool_backward(y, winners, dy, channels, height, width, relu, dz, image_stride, channel_stride);      \
    }                                                                                                             \
    extern "C" __global__ void conv_bias_sums_##NAME(const T *dz, size_t image_stride, size_t channel_stride,     \
                                                     int images, int pixels, double *partial) {                   \
        conv_bias_sums(dz, image_stride, channel_stride, images, pixels, partial);                                \
    }                                                                                                             \
    extern "C" __global__ void conv_columns_##NAME(const T *x, Sizes s, T *columns) {                             \
        conv_columns(x, s, columns);                                                                              \
    }                                                                                                             \
    extern "C" __global__ void conv_from_columns_##NAME(const T *columns, Sizes s, T *dx) {                       \
        conv_from_columns(columns, s, dx);                                                                        \
    }
CONV_KERNELS(float, f32)
CONV_KERNELS(__nv_bfloat16, bf16)
