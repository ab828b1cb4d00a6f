// Batch normalisation of NCHW maps. Sums are in f64: of each channel in `parts` parts, each by one block
// (blockIdx.x the channel, .y the part, which takes every parts-th image), then over the parts in order.
// Maps are read and written in words of 16 bytes, several ahead, where sizes and addresses allow it, else value by value.
#include "number.cuh"
#include "reduce.cuh"

// Of each channel and part: sums of x - s and of (x - s)^2, where s is the channel's very first value. It lies
// among the values, so that f64 has digits to spare for what cancels.
template <int N, class T>
__device__ inline void batch_norm_moments_of(const T *x, int images, int channels, int plane, double shift,
                                             double &sum, double &squares) {
    over_part<N, AHEAD<N, 1>>(
        images, plane, [&](int image, int pixel) { return load<N>(x + size_t(image) * channels * plane + pixel); },
        [&](const Word<T, N> &values) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                double distance = get(values.values[j]) - shift;
                sum += distance;
                squares += distance * distance;
            }
        });
}

template <class T>
__device__ inline void batch_norm_moments(const T *x, int images, int channels, int plane, double *partial) {
    int channel = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    x += size_t(channel) * plane;
    double shift = get(x[0]), sum = 0.0, squares = 0.0;
    if (plane % WIDE<T> == 0 && aligned(x)) batch_norm_moments_of<WIDE<T>>(x, images, channels, plane, shift, sum, squares);
    else batch_norm_moments_of<1>(x, images, channels, plane, shift, sum, squares);
    block_sum(sum, squares);
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        partial[2 * (channel * parts + part)] = sum;
        partial[2 * (channel * parts + part) + 1] = squares;
    }
}

// A warp a channel: mean and 1 / sqrt(var + eps) of the batch, and the running statistics' new values.
template <class T>
__device__ inline void batch_norm_statistics(const double *partial, int parts, const T *x, int plane, double count,
                                             double momentum, double eps, float *running_mean, float *running_var,
                                             float *mean, double *inv_std) {
    int channel = blockIdx.x;
    double sum, squares;
    warp_sum_of_parts(partial + size_t(2) * channel * parts, parts, sum, squares);
    if (threadIdx.x > 0) return;
    double of_batch = get(x[size_t(channel) * plane]) + sum / count;
    double around_mean = squares - sum * sum / count;
    if (around_mean < 0.0) around_mean = 0.0;
    mean[channel] = float(of_batch);
    inv_std[channel] = 1.0 / sqrt(around_mean / count + eps);
    running_mean[channel] = float((1.0 - momentum) * running_mean[channel] + momentum * of_batch);
    running_var[channel] =
        float((1.0 - momentum) * running_var[channel] + momentum * (around_mean / (count - 1.0)));
}

// The same from the running statistics.
extern "C" __global__ void batch_norm_running(const float *running_mean, const float *running_var, int channels,
                                              double eps, float *mean, double *inv_std) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    mean[channel] = running_mean[channel];
    inv_std[channel] = 1.0 / sqrt(running_var[channel] + eps);
}

// Values of the input, and of what is added to the result.
template <class T, int N> struct WithResidual {
    Word<T, N> x, residual;
};

template <int N, class T>
__device__ inline void batch_norm_forward_of(const T *x, float center, float scale, float shift, const T *residual,
                                             int plane, int activation, T *y) {
    with_loads_ahead<AHEAD<N, 2>>(
        threadIdx.x, blockDim.x, plane / N,
        [&](int i) {
            WithResidual<T, N> loaded;
            loaded.x = load<N>(x + i * N);
            if (residual) loaded.residual = load<N>(residual + i * N);
            return loaded;
        },
        [&](int i, const WithResidual<T, N> &loaded) {
            Word<T, N> out;
#pragma unroll
            for (int j = 0; j < N; j++) {
                float value = (get(loaded.x.values[j]) - center) * scale + shift;
                if (residual) value += get(loaded.residual.values[j]);
                set(out.values[j], activated(value, activation));
            }
            store<N>(y + i * N, out);
        });
}

// `residual` is null where nothing is added.
template <class T>
__device__ inline void batch_norm_forward(const T *x, const float *mean, const double *inv_std, const float *weight,
                                          const float *bias, const T *residual, int channels, int plane, int activation,
                                          T *y) {
    unsigned of_thread = plane_of_thread();
    int channel = of_thread % channels;
    float scale = float(weight[channel] * inv_std[channel]);
    size_t first = size_t(of_thread) * plane;
    x += first;
    y += first;
    if (residual) residual += first;
    if (plane % WIDE<T> == 0 && aligned(x, residual, y))
        batch_norm_forward_of<WIDE<T>>(x, mean[channel], scale, bias[channel], residual, plane, activation, y);
    else batch_norm_forward_of<1>(x, mean[channel], scale, bias[channel], residual, plane, activation, y);
}

// Values of the input, of the result and of its gradient.
template <class T, int N> struct ForGradient {
    Word<T, N> x, y, dy;

    // The gradient before the activation.
    __device__ float dz(int j, int activation) const {
        return passes(get(y.values[j]), activation) ? get(dy.values[j]) : 0.0f;
    }
};

template <int N, class T>
__device__ inline ForGradient<T, N> load_for_gradient(const T *x, const T *y, const T *dy, size_t at) {
    return {load<N>(x + at), load<N>(y + at), load<N>(dy + at)};
}

template <int N, class T>
__device__ inline void batch_norm_gradient_sums_of(const T *x, const T *y, const T *dy, float center, int images,
                                                   int channels, int plane, int activation, double &sum,
                                                   double &products) {
    over_part<N, AHEAD<N, 3>>(
        images, plane,
        [&](int image, int pixel) { return load_for_gradient<N>(x, y, dy, size_t(image) * channels * plane + pixel); },
        [&](const ForGradient<T, N> &loaded) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                float dz = loaded.dz(j, activation);
                sum += dz;
                products += double(dz) * (get(loaded.x.values[j]) - center);
            }
        });
}

// Of each channel and part: sums of dz and of dz * (x - mean), dz the gradient before the activation.
template <class T>
__device__ inline void batch_norm_gradient_sums(const T *x, const T *y, const T *dy, const float *mean, int images,
                                                int channels, int plane, int activation, double *partial) {
    int channel = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    float center = mean[channel];
    size_t first = size_t(channel) * plane;
    x += first;
    y += first;
    dy += first;
    double sum = 0.0, products = 0.0;
    if (plane % WIDE<T> == 0 && aligned(x, y, dy))
        batch_norm_gradient_sums_of<WIDE<T>>(x, y, dy, center, images, channels, plane, activation, sum, products);
    else batch_norm_gradient_sums_of<1>(x, y, dy, center, images, channels, plane, activation, sum, products);
    block_sum(sum, products);
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        partial[2 * (channel * parts + part)] = sum;
        partial[2 * (channel * parts + part) + 1] = products;
    }
}

// A warp a channel: the gradients of weight and bias, and what flows back through mean and variance
// (`count` is infinite where they are constants).
extern "C" __global__ void batch_norm_gradient_totals(const double *partial, int parts, const double *inv_std,
                                                      double count, float *dweight, float *dbias,
                                                      float *through_mean, float *through_var) {
    int channel = blockIdx.x;
    double sum, products;
    warp_sum_of_parts(partial + size_t(2) * channel * parts, parts, sum, products);
    if (threadIdx.x > 0) return;
    double inv = inv_std[channel];
    dweight[channel] = float(products * inv);
    dbias[channel] = float(sum);
    through_mean[channel] = float(sum / count);
    through_var[channel] = float(products * inv * inv / count);
}

// What is the same for all values of a channel.
struct OfChannel {
    float center, of_mean, of_var, scale;
};

template <int N, class T>
__device__ inline void batch_norm_backward_of(const T *x, const T *y, const T *dy, OfChannel channel, int plane,
                                              int activation, T *dx, T *dresidual) {
    with_loads_ahead<AHEAD<N, 3>>(
        threadIdx.x, blockDim.x, plane / N, [&](int i) { return load_for_gradient<N>(x, y, dy, size_t(i) * N); },
        [&](int i, const ForGradient<T, N> &loaded) {
            Word<T, N> to_x, to_residual;
#pragma unroll
            for (int j = 0; j < N; j++) {
                float dz = loaded.dz(j, activation), distance = get(loaded.x.values[j]) - channel.center;
                set(to_x.values[j], channel.scale * (dz - channel.of_mean - distance * channel.of_var));
                set(to_residual.values[j], dz);
            }
            if (dx) store<N>(dx + i * N, to_x);
            if (dresidual) store<N>(dresidual + i * N, to_residual);
        });
}

// `dx` or `dresidual` is null where nobody wants it.
template <class T>
__device__ inline void batch_norm_backward(const T *x, const T *y, const T *dy, const float *mean,
                                           const double *inv_std, const float *weight, const float *through_mean,
                                           const float *through_var, int channels, int plane, int activation, T *dx,
                                           T *dresidual) {
    unsigned of_thread = plane_of_thread();
    int channel = of_thread % channels;
    OfChannel values{mean[channel], through_mean[channel], through_var[channel],
                     float(weight[channel] * inv_std[channel])};
    size_t first = size_t(of_thread) * plane;
    x += first;
    y += first;
    dy += first;
    if (dx) dx += first;
    if (dresidual) dresidual += first;
    if (plane % WIDE<T> == 0 && aligned(x, y, dy, dx, dresidual))
        batch_norm_backward_of<WIDE<T>>(x, y, dy, values, plane, activation, dx, dresidual);
    else batch_norm_backward_of<1>(x, y, dy, values, plane, activation, dx, dresidual);
}

#define BATCH_NORM_KERNELS(T, NAME)                                                                                  \
    extern "C" __global__ void batch_norm_moments_##NAME(const T *x, int images, int channels, int plane,            \
                                                         double *partial) {                                          \
        batch_norm_moments(x, images, channels, plane, partial);                                                     \
    }                                                                                                                \
    extern "C" __global__ void batch_norm_statistics_##NAME(                                                         \
        const double *partial, int parts, const T *x, int plane, double count, double momentum, double eps,          \
        float *running_mean, float *running_var, float *mean, double *inv_std) {                                     \
        batch_norm_statistics(partial, parts, x, plane, count, momentum, eps, running_mean, running_var, mean,       \
                              inv_std);                                                                              \
    }                                                                                                                \
    extern "C" __global__ void batch_norm_forward_##NAME(const T *x, const float *mean, const double *inv_std,       \
                                                         const float *weight, const float *bias,                     \
                                                         const T *residual, int channels, int plane, int activation, \
                                                         T *y) {                                                     \
        batch_norm_forward(x, mean, inv_std, weight, bias, residual, channels, plane, activation, y);                \
    }                                                                                                                \
    extern "C" __global__ void batch_norm_gradient_sums_##NAME(const T *x, const T *y, const T *dy,                  \
                                                               const float *mean, int images, int channels,          \
                                                               int plane, int activation, double *partial) {         \
        batch_norm_gradient_sums(x, y, dy, mean, images, channels, plane, activation, partial);                      \
    }                                                                                                                \
    extern "C" __global__ void batch_norm_backward_##NAME(                                                           \
        const T *x, const T *y, const T *dy, const float *mean, const double *inv_std, const float *weight,          \
        const float *through_mean, const float *through_var, int channels, int plane, int activation, T *dx,         \
        T *dresidual) {                                                                                              \
        batch_norm_backward(x, y, dy, mean, inv_std, weight, through_mean, through_var, channels, plane, activation, \
                            dx, dresidual);                                                                          \
    }
BATCH_NORM_KERNELS(float, f32)
BATCH_NORM_KERNELS(__nv_bfloat16, bf16)
