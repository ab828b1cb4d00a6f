// What a planned pass needs besides the other files' kernels. Maps are NCHW and f32.
#include "number.cuh"

// One of a sum's inputs: read through a batch normalisation, or as it is where `mean` is null.
struct Normed {
    const float *x, *mean;
    const double *inv_std;
    const float *weight, *bias;
};

// What a channel of such an input is computed with.
struct Affine {
    float center, scale, shift;

    __device__ Affine(const Normed &of, int channel)
        : center(of.mean ? of.mean[channel] : 0.0f),
          scale(of.mean ? float(of.weight[channel] * of.inv_std[channel]) : 1.0f),
          shift(of.mean ? of.bias[channel] : 0.0f) {}

    __device__ float of(float x) const { return (x - center) * scale + shift; }
};

// Values of both inputs.
template <int N> struct Inputs {
    Word<float, N> a, b;
};

template <int N>
__device__ inline void map_sum_of(const float *a, Affine of_a, const float *b, Affine of_b, int pixels, int activation,
                                  float *y) {
    with_loads_ahead<AHEAD<N, 2>>(
        threadIdx.x, blockDim.x, pixels / N,
        [&](int i) {
            Inputs<N> loaded;
            loaded.a = load<N>(a + i * N);
            if (b) loaded.b = load<N>(b + i * N);
            return loaded;
        },
        [&](int i, const Inputs<N> &loaded) {
            Word<float, N> out;
#pragma unroll
            for (int j = 0; j < N; j++) {
                float value = of_a.of(loaded.a.values[j]);
                if (b) value += of_b.of(loaded.b.values[j]);
                out.values[j] = activated(value, activation);
            }
            store<N>(y + i * N, out);
        });
}

// y is the activation of a + b, or of a where b.x is null.
extern "C" __global__ void map_sum(const Normed a, const Normed b, int channels, int pixels, int activation, float *y) {
    unsigned plane = plane_of_thread();
    int channel = plane % channels;
    size_t first = size_t(plane) * pixels;
    const float *from_a = a.x + first, *from_b = b.x ? b.x + first : nullptr;
    Affine of_a(a, channel), of_b(b, channel);
    y += first;
    if (pixels % WIDE<float> == 0 && aligned(from_a, from_b, y))
        map_sum_of<WIDE<float>>(from_a, of_a, from_b, of_b, pixels, activation, y);
    else map_sum_of<1>(from_a, of_a, from_b, of_b, pixels, activation, y);
}

template <int N> __device__ inline void map_add_of(size_t count, const float *from, float *to) {
    size_t step = size_t(gridDim.x) * blockDim.x;
#pragma unroll 4
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count / N; i += step) {
        Word<float, N> sum = load<N>(to + i * N), more = load<N>(from + i * N);
#pragma unroll
        for (int j = 0; j < N; j++) sum.values[j] += more.values[j];
        store<N>(to + i * N, sum);
    }
}

// to += from.
extern "C" __global__ void map_add(size_t count, const float *from, float *to) {
    if (count % WIDE<float> == 0 && aligned(from, to)) map_add_of<WIDE<float>>(count, from, to);
    else map_add_of<1>(count, from, to);
}

template <int N> __device__ inline void map_mask_of(size_t count, const float *y, int activation, float *gradient) {
    size_t step = size_t(gridDim.x) * blockDim.x;
#pragma unroll 4
    for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count / N; i += step) {
        Word<float, N> result = load<N>(y + i * N), values = load<N>(gradient + i * N);
#pragma unroll
        for (int j = 0; j < N; j++)
            if (!passes(result.values[j], activation)) values.values[j] = 0.0f;
        store<N>(gradient + i * N, values);
    }
}

// A gradient, in place, through the activation that gave y.
extern "C" __global__ void map_mask(size_t count, const float *y, int activation, float *gradient) {
    if (count % WIDE<float> == 0 && aligned(y, gradient)) map_mask_of<WIDE<float>>(count, y, activation, gradient);
    else map_mask_of<1>(count, y, activation, gradient);
}

// The mean of each plane, summed in f64: a warp a plane.
extern "C" __global__ void plane_means(const float *x, int planes, int pixels, float *y) {
    unsigned plane = plane_of_thread();
    if (plane >= unsigned(planes)) return;
    x += size_t(plane) * pixels;
    double sum = 0.0;
    for (int i = threadIdx.x; i < pixels; i += 32) sum += x[i];
    for (int with = 16; with > 0; with /= 2) sum += __shfl_xor_sync(0xffffffff, sum, with);
    if (threadIdx.x == 0) y[plane] = float(sum / pixels);
}

// Each pixel of a plane gets its share of the mean's gradient. A block is a row of threads for each of several planes.
extern "C" __global__ void plane_means_gradient(const float *dy, int pixels, float *dx) {
    unsigned plane = plane_of_thread();
    float share = dy[plane] / float(pixels);
    dx += size_t(plane) * pixels;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) dx[i] = share;
}

// A batch normalisation by its running statistics in the weight and bias of the convolution before it; `before` is that
// convolution's own bias, or null. A block is an output channel, whose weight has `window` numbers.
extern "C" __global__ void fold_norm(const float *weight, const float *before, const float *norm_weight,
                                     const float *norm_bias, const float *mean, const float *var, double eps, int window,
                                     float *folded, float *bias) {
    int channel = blockIdx.x;
    double scale = norm_weight[channel] / sqrt(var[channel] + eps);
    weight += size_t(channel) * window;
    folded += size_t(channel) * window;
    for (int i = threadIdx.x; i < window; i += blockDim.x) folded[i] = float(weight[i] * scale);
    if (threadIdx.x == 0)
        bias[channel] = float(((before ? before[channel] : 0.0f) - double(mean[channel])) * scale + norm_bias[channel]);
}
