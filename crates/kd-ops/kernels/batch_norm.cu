// Batch normalisation of NCHW maps. Sums are in f64: of each channel in `parts` parts, each by one block
// (blockIdx.x the channel, .y the part, which takes every parts-th image), then over the parts in order.
// A block's threads are (x, y): x runs over a plane's pixels, y over images.
#include "number.cuh"
#include "reduce.cuh"

// Of each channel and part: sums of x - s and of (x - s)^2, where s is the channel's very first value. It lies
// among the values, so that f64 has digits to spare for what cancels.
template <class T>
__device__ inline void batch_norm_moments(const T *x, int images, int channels, int plane, double *partial) {
    int channel = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    double shift = get(x[size_t(channel) * plane]);
    double sum = 0.0, squares = 0.0;
    for (int image = part + parts * threadIdx.y; image < images; image += parts * blockDim.y) {
        const T *values = x + (size_t(image) * channels + channel) * plane;
        for (int i = threadIdx.x; i < plane; i += blockDim.x) {
            double distance = get(values[i]) - shift;
            sum += distance;
            squares += distance * distance;
        }
    }
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

// A block a plane. `residual` is null where nothing is added.
template <class T>
__device__ inline void batch_norm_forward(const T *x, const float *mean, const double *inv_std, const float *weight,
                                          const float *bias, const T *residual, int channels, int plane, int relu,
                                          T *y) {
    int channel = blockIdx.x % channels;
    float center = mean[channel], shift = bias[channel];
    float scale = float(weight[channel] * inv_std[channel]);
    size_t first = size_t(blockIdx.x) * plane;
    for (int i = threadIdx.x; i < plane; i += blockDim.x) {
        float value = (get(x[first + i]) - center) * scale + shift;
        if (residual) value += get(residual[first + i]);
        set(y[first + i], relu && value < 0.0f ? 0.0f : value);
    }
}

// Of each channel and part: sums of dz and of dz * (x - mean), dz the gradient before the ReLU.
template <class T>
__device__ inline void batch_norm_gradient_sums(const T *x, const T *y, const T *dy, const float *mean, int images,
                                                int channels, int plane, int relu, double *partial) {
    int channel = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    float center = mean[channel];
    double sum = 0.0, products = 0.0;
    for (int image = part + parts * threadIdx.y; image < images; image += parts * blockDim.y) {
        size_t first = (size_t(image) * channels + channel) * plane;
        for (int i = threadIdx.x; i < plane; i += blockDim.x) {
            float dz = !relu || get(y[first + i]) > 0.0f ? get(dy[first + i]) : 0.0f;
            sum += dz;
            products += double(dz) * (get(x[first + i]) - center);
        }
    }
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

// A block a plane. `dx` or `dresidual` is null where nobody wants it.
template <class T>
__device__ inline void batch_norm_backward(const T *x, const T *y, const T *dy, const float *mean,
                                           const double *inv_std, const float *weight, const float *through_mean,
                                           const float *through_var, int channels, int plane, int relu, T *dx,
                                           T *dresidual) {
    int channel = blockIdx.x % channels;
    float center = mean[channel], of_mean = through_mean[channel], of_var = through_var[channel];
    float scale = float(weight[channel] * inv_std[channel]);
    size_t first = size_t(blockIdx.x) * plane;
    for (int i = threadIdx.x; i < plane; i += blockDim.x) {
        float dz = !relu || get(y[first + i]) > 0.0f ? get(dy[first + i]) : 0.0f;
        if (dx) set(dx[first + i], scale * (dz - of_mean - (get(x[first + i]) - center) * of_var));
        if (dresidual) set(dresidual[first + i], dz);
    }
}

#define BATCH_NORM_KERNELS(T, NAME)                                                                               \
    extern "C" __global__ void batch_norm_moments_##NAME(const T *x, int images, int channels, int plane,         \
                                                         double *partial) {                                       \
        batch_norm_moments(x, images, channels, plane, partial);                                                  \
    }                                                                                                             \
    extern "C" __global__ void batch_norm_statistics_##NAME(                                                      \
        const double *partial, int parts, const T *x, int plane, double count, double momentum, double eps,       \
        float *running_mean, float *running_var, float *mean, double *inv_std) {                                  \
        batch_norm_statistics(partial, parts, x, plane, count, momentum, eps, running_mean, running_var, mean,    \
                              inv_std);                                                                           \
    }                                                                                                             \
    extern "C" __global__ void batch_norm_forward_##NAME(const T *x, const float *mean, const double *inv_std,    \
                                                         const float *weight, const float *bias,                  \
                                                         const T *residual, int channels, int plane, int relu,    \
                                                         T *y) {                                                  \
        batch_norm_forward(x, mean, inv_std, weight, bias, residual, channels, plane, relu, y);                   \
    }                                                                                                             \
    extern "C" __global__ void batch_norm_gradient_sums_##NAME(const T *x, const T *y, const T *dy,               \
                                                               const float *mean, int images, int channels,       \
                                                               int plane, int relu, double *partial) {            \
        batch_norm_gradient_sums(x, y, dy, mean, images, channels, plane, relu, partial);                         \
    }                                                                                                             \
    extern "C" __global__ void batch_norm_backward_##NAME(                                                        \
        const T *x, const T *y, const T *dy, const float *mean, const double *inv_std, const float *weight,       \
        const float *through_mean, const float *through_var, int channels, int plane, int relu, T *dx,            \
        T *dresidual) {                                                                                           \
        batch_norm_backward(x, y, dy, mean, inv_std, weight, through_mean, through_var, channels, plane, relu,    \
                            dx, dresidual);                                                                       \
    }
BATCH_NORM_KERNELS(float, f32)
BATCH_NORM_KERNELS(__nv_bfloat16, bf16)
