// Batch normalisation of NCHW maps. Sums are in f64: of each channel in `parts` parts, each by one block
// (blockIdx.x the channel, .y the part, which takes every parts-th image), then over the parts in order.
// A block's threads are (x, y): x runs over a plane's pixels, y over images.
#include "reduce.cuh"

// Of each channel and part: sums of x - s and of (x - s)^2, where s is the channel's very first value. It lies
// among the values, so that f64 has digits to spare for what cancels.
extern "C" __global__ void batch_norm_moments(const float *x, int images, int channels, int plane,
                                              double *partial) {
    int channel = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    double shift = x[size_t(channel) * plane];
    double sum = 0.0, squares = 0.0;
    for (int image = part + parts * threadIdx.y; image < images; image += parts * blockDim.y) {
        const float *values = x + (size_t(image) * channels + channel) * plane;
        for (int i = threadIdx.x; i < plane; i += blockDim.x) {
            double distance = values[i] - shift;
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
extern "C" __global__ void batch_norm_statistics(const double *partial, int parts, const float *x, int plane,
                                                 double count, double momentum, double eps, float *running_mean,
                                                 float *running_var, float *mean, double *inv_std) {
    int channel = blockIdx.x;
    double sum, squares;
    warp_sum_of_parts(partial + size_t(2) * channel * parts, parts, sum, squares);
    if (threadIdx.x > 0) return;
    double of_batch = x[size_t(channel) * plane] + sum / count;
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
extern "C" __global__ void batch_norm_forward(const float *x, const float *mean, const double *inv_std,
                                              const float *weight, const float *bias, const float *residual,
                                              int channels, int plane, int relu, float *y) {
    int channel = blockIdx.x % channels;
    float center = mean[channel], shift = bias[channel];
    float scale = float(weight[channel] * inv_std[channel]);
    size_t first = size_t(blockIdx.x) * plane;
    for (int i = threadIdx.x; i < plane; i += blockDim.x) {
        float value = (x[first + i] - center) * scale + shift;
        if (residual) value += residual[first + i];
        y[first + i] = relu && value < 0.0f ? 0.0f : value;
    }
}

// Of each channel and part: sums of dz and of dz * (x - mean), dz the gradient before the ReLU.
extern "C" __global__ void batch_norm_gradient_sums(const float *x, const float *y, const float *dy,
                                                    const float *mean, int images, int channels, int plane,
                                                    int relu, double *partial) {
    int channel = blockIdx.x, part = blockIdx.y, parts = gridDim.y;
    float center = mean[channel];
    double sum = 0.0, products = 0.0;
    for (int image = part + parts * threadIdx.y; image < images; image += parts * blockDim.y) {
        size_t first = (size_t(image) * channels + channel) * plane;
        for (int i = threadIdx.x; i < plane; i += blockDim.x) {
            float dz = !relu || y[first + i] > 0.0f ? dy[first + i] : 0.0f;
            sum += dz;
            products += double(dz) * (x[first + i] - center);
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
extern "C" __global__ void batch_norm_backward(const float *x, const float *y, const float *dy, const float *mean,
                                               const double *inv_std, const float *weight,
                                               const float *through_mean, const float *through_var, int channels,
                                               int plane, int relu, float *dx, float *dresidual) {
    int channel = blockIdx.x % channels;
    float center = mean[channel], of_mean = through_mean[channel], of_var = through_var[channel];
    float scale = float(weight[channel] * inv_std[channel]);
    size_t first = size_t(blockIdx.x) * plane;
    for (int i = threadIdx.x; i < plane; i += blockDim.x) {
        float dz = !relu || y[first + i] > 0.0f ? dy[first + i] : 0.0f;
        if (dx) dx[first + i] = scale * (dz - of_mean - (x[first + i] - center) * of_var);
        if (dresidual) dresidual[first + i] = dz;
    }
}
