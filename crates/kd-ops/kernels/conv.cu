// What surrounds a convolution's products: bias, ReLU and 2x2 max-pool behind it, their gradients, and the
// gathering and scattering of windows where cuBLAS multiplies. A plane is an image's channel. Maps are read and written in words of
// 16 bytes, several ahead, where sizes and addresses allow it, else value by value.
//
// The products' map `z` has its own order: element (image, channel, pixel) lies at
// image * image_stride + channel * channel_stride + pixel, which is NCHW for cuDNN and CNHW for cuBLAS.
#include "number.cuh"
#include "reduce.cuh"

// y = z + bias, and the activation of it.
template <int N, class T>
__device__ inline void conv_bias_forward_of(const T *z, float shift, int pixels, int activation, T *y) {
    with_loads_ahead<AHEAD<N, 2>>(
        threadIdx.x, blockDim.x, pixels / N, [&](int i) { return load<N>(z + i * N); },
        [&](int i, const Word<T, N> &values) {
            Word<T, N> out;
#pragma unroll
            for (int j = 0; j < N; j++) {
                set(out.values[j], activated(get(values.values[j]) + shift, activation));
            }
            store<N>(y + i * N, out);
        });
}

// Without a bias `bias` is null. y may be z where z is NCHW.
template <class T>
__device__ inline void conv_bias_forward(const T *z, size_t image_stride, size_t channel_stride, const float *bias,
                                         int channels, int pixels, int activation, T *y) {
    unsigned plane = plane_of_thread(), image = plane / channels, channel = plane % channels;
    z += image * image_stride + channel * channel_stride;
    y += size_t(plane) * pixels;
    float shift = bias ? bias[channel] : 0.0f;
    if (pixels % WIDE<T> == 0 && aligned(z, y)) conv_bias_forward_of<WIDE<T>>(z, shift, pixels, activation, y);
    else conv_bias_forward_of<1>(z, shift, pixels, activation, y);
}

// Of a result and its gradient.
template <class T, int N> struct Pair {
    Word<T, N> y, dy;
};

// dz = dy where the activation lets it pass, else 0.
template <int N, class T>
__device__ inline void conv_bias_backward_of(const T *y, const T *dy, int pixels, int activation, T *dz) {
    with_loads_ahead<AHEAD<N, 2>>(
        threadIdx.x, blockDim.x, pixels / N,
        [&](int i) { return Pair<T, N>{load<N>(y + i * N), load<N>(dy + i * N)}; },
        [&](int i, const Pair<T, N> &pair) {
            Word<T, N> out;
#pragma unroll
            for (int j = 0; j < N; j++)
                set(out.values[j], passes(get(pair.y.values[j]), activation) ? get(pair.dy.values[j]) : 0.0f);
            store<N>(dz + i * N, out);
        });
}

template <class T>
__device__ inline void conv_bias_backward(const T *y, const T *dy, int channels, int pixels, int activation, T *dz,
                                          size_t image_stride, size_t channel_stride) {
    unsigned plane = plane_of_thread(), image = plane / channels, channel = plane % channels;
    dz += image * image_stride + channel * channel_stride;
    y += size_t(plane) * pixels;
    dy += size_t(plane) * pixels;
    if (pixels % WIDE<T> == 0 && aligned(y, dy, dz)) conv_bias_backward_of<WIDE<T>>(y, dy, pixels, activation, dz);
    else conv_bias_backward_of<1>(y, dy, pixels, activation, dz);
}

// The first of four values that is the maximum, in row-major order of a window; a NaN counts as the maximum.
__device__ inline float winner_of(float a, float b, float c, float d, unsigned char &winner) {
    float most = a, others[3] = {b, c, d};
    winner = 0;
#pragma unroll
    for (int at = 1; at < 4; at++) {
        float value = others[at - 1];
        if (value > most || (value != value && most == most)) {
            winner = at;
            most = value;
        }
    }
    return most;
}

// N values of an even row and of the row below it.
template <class T, int N> struct Rows {
    Word<T, N> top, bottom;
};

// The same of planes whose rows are whole words: N values of two rows are N / 2 windows.
template <int N, class T>
__device__ inline void conv_pool_forward_of(const T *z, float shift, int height, int width, int activation, T *y,
                                            unsigned char *winners) {
    int in_row = width / N;
    with_loads_ahead<AHEAD<N, 3>>(
        threadIdx.x, blockDim.x, height / 2 * in_row,
        [&](int i) {
            const T *at = z + i / in_row * 2 * width + i % in_row * N;
            return Rows<T, N>{load<N>(at), load<N>(at + width)};
        },
        [&](int i, const Rows<T, N> &rows) {
            Word<T, N / 2> out;
            Word<unsigned char, N / 2> won;
#pragma unroll
            for (int j = 0; j < N / 2; j++) {
                const T *top = rows.top.values + 2 * j, *bottom = rows.bottom.values + 2 * j;
                float most = winner_of(get(top[0]) + shift, get(top[1]) + shift, get(bottom[0]) + shift,
                                       get(bottom[1]) + shift, won.values[j]);
                set(out.values[j], activated(most, activation));
            }
            store<N / 2>(y + i * (N / 2), out);
            store<N / 2>(winners + i * (N / 2), won);
        });
}

// The maximum of each 2x2 window of z + bias (null where there is none), then the activation; `winners` counts a window's
// pixels in row-major order, the first maximum wins, and a NaN counts as one.
template <class T>
__device__ inline void conv_pool_forward(const T *z, size_t image_stride, size_t channel_stride, const float *bias,
                                         int channels, int height, int width, int activation, T *y,
                                         unsigned char *winners) {
    unsigned plane = plane_of_thread(), image = plane / channels, channel = plane % channels;
    int out_width = width / 2, out_pixels = height / 2 * out_width;
    z += image * image_stride + channel * channel_stride;
    y += size_t(plane) * out_pixels;
    winners += size_t(plane) * out_pixels;
    float shift = bias ? bias[channel] : 0.0f;
    if (width % WIDE<T> == 0 && aligned(z, y - size_t(plane) * out_pixels, winners - size_t(plane) * out_pixels)) {
        conv_pool_forward_of<WIDE<T>>(z, shift, height, width, activation, y, winners);
        return;
    }
    for (int i = threadIdx.x; i < out_pixels; i += blockDim.x) {
        const T *window = z + size_t(i / out_width) * 2 * width + i % out_width * 2;
        unsigned char winner;
        float most = winner_of(get(window[0]) + shift, get(window[1]) + shift, get(window[width]) + shift,
                               get(window[width + 1]) + shift, winner);
        set(y[i], activated(most, activation));
        winners[i] = winner;
    }
}

// Of N / 2 windows.
template <class T, int N> struct Windows {
    Word<T, N / 2> y, dy;
    Word<unsigned char, N / 2> winners;
};

// The same of planes whose rows are whole words: N values of a row are half of N / 2 windows.
template <int N, class T>
__device__ inline void conv_pool_backward_of(const T *y, const unsigned char *winners, const T *dy, int height,
                                             int width, int activation, T *dz) {
    int in_row = width / N;
    with_loads_ahead<AHEAD<N, 2>>(
        threadIdx.x, blockDim.x, height * in_row,
        [&](int i) {
            // A last odd row, which no window has, reads those of the row above and takes nothing of them.
            int row = min(i / in_row / 2, height / 2 - 1), at = row * (width / 2) + i % in_row * (N / 2);
            return Windows<T, N>{load<N / 2>(y + at), load<N / 2>(dy + at), load<N / 2>(winners + at)};
        },
        [&](int i, const Windows<T, N> &windows) {
            int row = i / in_row;
            bool inside = row / 2 < height / 2;
            Word<T, N> out;
#pragma unroll
            for (int j = 0; j < N; j++) {
                bool won = windows.winners.values[j / 2] == row % 2 * 2 + j % 2;
                bool through = inside && won && passes(get(windows.y.values[j / 2]), activation);
                set(out.values[j], through ? get(windows.dy.values[j / 2]) : 0.0f);
            }
            store<N>(dz + i * N, out);
        });
}

// The gradient goes to each window's winner; a last odd row or column gets none.
template <class T>
__device__ inline void conv_pool_backward(const T *y, const unsigned char *winners, const T *dy, int channels,
                                          int height, int width, int activation, T *dz, size_t image_stride,
                                          size_t channel_stride) {
    unsigned plane = plane_of_thread(), image = plane / channels, channel = plane % channels;
    int out_height = height / 2, out_width = width / 2;
    dz += image * image_stride + channel * channel_stride;
    if (width % WIDE<T> == 0 && height > 1 && aligned(y, winners, dy, dz)) {
        size_t first = size_t(plane) * out_height * out_width;
        conv_pool_backward_of<WIDE<T>>(y + first, winners + first, dy + first, height, width, activation, dz);
        return;
    }
    size_t first = size_t(plane) * out_height * out_width;
    for (int i = threadIdx.x; i < height * width; i += blockDim.x) {
        int row = i / width, column = i % width;
        float value = 0.0f;
        if (row / 2 < out_height && column / 2 < out_width) {
            size_t window = first + row / 2 * out_width + column / 2;
            if (winners[window] == row % 2 * 2 + column % 2 && passes(get(y[window]), activation)) value = get(dy[window]);
        }
        set(dz[i], value);
    }
}

// The bias's gradient, in f64: of each channel and part (as in batch_norm.cu) the sum of dz. Every other sum in
// `partial` is 0.
template <int N, class T>
__device__ inline double conv_bias_sums_of(const T *dz, size_t image_stride, int images, int pixels) {
    double sum = 0.0;
    over_part<N, AHEAD<N, 1>>(
        images, pixels, [&](int image, int pixel) { return load<N>(dz + image * image_stride + pixel); },
        [&](const Word<T, N> &values) {
#pragma unroll
            for (int j = 0; j < N; j++) sum += get(values.values[j]);
        });
    return sum;
}

template <class T>
__device__ inline void conv_bias_sums(const T *dz, size_t image_stride, size_t channel_stride, int images, int pixels,
                                      double *partial) {
    int channel = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    dz += channel * channel_stride;
    bool wide = pixels % WIDE<T> == 0 && aligned(dz);
    double sum = wide ? conv_bias_sums_of<WIDE<T>>(dz, image_stride, images, pixels)
                      : conv_bias_sums_of<1>(dz, image_stride, images, pixels);
    double none = 0.0;
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

// The reverse: each input adds up, in row-major order of the window, what the columns that hold it say; with `add` it is
// added to what is there.
// A block is one plane of the input.
template <class T> __device__ inline void conv_from_columns(const T *columns, Sizes s, int add, T *dx) {
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
        set(dx[i], add ? get(dx[i]) + sum : sum);
    }
}

#define CONV_KERNELS(T, NAME)                                                                                        \
    extern "C" __global__ void conv_bias_forward_##NAME(const T *z, size_t image_stride, size_t channel_stride,      \
                                                        const float *bias, int channels, int pixels, int activation, \
                                                        T *y) {                                                      \
        conv_bias_forward(z, image_stride, channel_stride, bias, channels, pixels, activation, y);                   \
    }                                                                                                                \
    extern "C" __global__ void conv_bias_backward_##NAME(const T *y, const T *dy, int channels, int pixels,          \
                                                         int activation, T *dz, size_t image_stride,                 \
                                                         size_t channel_stride) {                                    \
        conv_bias_backward(y, dy, channels, pixels, activation, dz, image_stride, channel_stride);                   \
    }                                                                                                                \
    extern "C" __global__ void conv_pool_forward_##NAME(const T *z, size_t image_stride, size_t channel_stride,      \
                                                        const float *bias, int channels, int height, int width,      \
                                                        int activation, T *y, unsigned char *winners) {              \
        conv_pool_forward(z, image_stride, channel_stride, bias, channels, height, width, activation, y, winners);   \
    }                                                                                                                \
    extern "C" __global__ void conv_pool_backward_##NAME(const T *y, const unsigned char *winners, const T *dy,      \
                                                         int channels, int height, int width, int activation, T *dz, \
                                                         size_t image_stride, size_t channel_stride) {               \
        conv_pool_backward(y, winners, dy, channels, height, width, activation, dz, image_stride, channel_stride);   \
    }                                                                                                                \
    extern "C" __global__ void conv_bias_sums_##NAME(const T *dz, size_t image_stride, size_t channel_stride,        \
                                                     int images, int pixels, double *partial) {                      \
        conv_bias_sums(dz, image_stride, channel_stride, images, pixels, partial);                                   \
    }                                                                                                                \
    extern "C" __global__ void conv_columns_##NAME(const T *x, Sizes s, T *columns) {                                \
        conv_columns(x, s, columns);                                                                                 \
    }                                                                                                                \
    extern "C" __global__ void conv_from_columns_##NAME(const T *columns, Sizes s, int add, T *dx) {                 \
        conv_from_columns(columns, s, add, dx);                                                                      \
    }
CONV_KERNELS(float, f32)
CONV_KERNELS(__nv_bfloat16, bf16)
