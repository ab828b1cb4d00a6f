// Adam, SGD and gradient norms over many tensors in one launch. The tensors' addresses come with the launch
// itself, so nothing is copied to the device beforehand. Each tensor is cut into chunks; a block is one chunk, whose elements
// it reads and writes in words of four, where the tensor's addresses allow it, each of its 256 threads one: a small network has few
// chunks for a GPU's many multiprocessors, so that a second trip would only wait for the first.
#include "number.cuh"
#include "reduce.cuh"
#include "step.cuh"

constexpr int TENSORS = 96;
constexpr unsigned CHUNK = 1024;

// Of the first `count` tensors: chunks of tensor t are first_chunk[t] .. first_chunk[t + 1]. 3,080 bytes: a
// launch takes 4 KiB.
struct Tensors {
    float *parameter[TENSORS];
    float *grad[TENSORS];
    // Where a tensor's elements start among those of all tensors: the place of what the optimiser remembers.
    unsigned long long start[TENSORS];
    unsigned size[TENSORS];
    unsigned first_chunk[TENSORS + 1];
    unsigned count;
};

// The tensor of this block's chunk.
__device__ inline int tensor_of_block(const Tensors &tensors) {
    int low = 0, high = tensors.count;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (tensors.first_chunk[middle] <= blockIdx.x) low = middle;
        else high = middle;
    }
    return low;
}

// A number of elements, as a type.
template <int N> struct Of {
    static constexpr int SIZE = N;
};

// Calls `body(element, Of<N>())` for this block's chunk of a tensor of `size` elements, in words of N: four, and what is left over
// at the end one by one; all one by one where `wide` is false.
template <class Body> __device__ inline void over_chunk(unsigned from, unsigned size, bool wide, Body body) {
    unsigned to = min(from + CHUNK, size), words = wide ? from + (to - from) / 4 * 4 : from;
    for (unsigned i = from + 4 * threadIdx.x; i < words; i += 4 * blockDim.x) body(i, Of<4>());
    for (unsigned i = words + threadIdx.x; i < to; i += blockDim.x) body(i, Of<1>());
}

// The step's scalars: `step_size` is lr / (1 - beta1^step), `root` sqrt(1 - beta2^step), `shrinks_by` what the
// parameters are multiplied by first where `shrinks`. `penalty` is that of L2.
extern "C" __global__ void adam(const Tensors tensors, float *first, float *second, float beta1, float rest1,
                                float beta2, float rest2, float eps, float penalty, float step_size, float root,
                                float shrinks_by, int shrinks, const Step *now) {
    if (now) step_size = now->scalars[0], root = now->scalars[1], shrinks_by = now->scalars[2];
    if (!shrinks) shrinks_by = 1;
    int tensor = tensor_of_block(tensors);
    unsigned from = (blockIdx.x - tensors.first_chunk[tensor]) * CHUNK;
    float *parameters = tensors.parameter[tensor];
    const float *grads = tensors.grad[tensor];
    first += tensors.start[tensor];
    second += tensors.start[tensor];
    over_chunk(from, tensors.size[tensor], aligned(parameters, grads, first, second), [&](unsigned at, auto of) {
        constexpr int N = decltype(of)::SIZE;
        Word<float, N> values = load<N>(parameters + at), ms = load<N>(first + at), vs = load<N>(second + at);
        const Word<float, N> gs = load<N>(grads + at);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float value = values.values[i] * shrinks_by;
            float grad = gs.values[i] + penalty * value;
            float m = beta1 * ms.values[i] + rest1 * grad;
            float v = beta2 * vs.values[i] + rest2 * grad * grad;
            ms.values[i] = m;
            vs.values[i] = v;
            values.values[i] = value - step_size * m / (sqrtf(v) / root + eps);
        }
        store<N>(first + at, ms);
        store<N>(second + at, vs);
        store<N>(parameters + at, values);
    });
}

// The step's scalar is the learning rate. `sums` is null without momentum.
extern "C" __global__ void sgd(const Tensors tensors, float *sums, float lr, float momentum, int nesterov,
                               float weight_decay, const Step *now) {
    if (now) lr = now->scalars[0];
    int tensor = tensor_of_block(tensors);
    unsigned from = (blockIdx.x - tensors.first_chunk[tensor]) * CHUNK;
    float *parameters = tensors.parameter[tensor];
    const float *grads = tensors.grad[tensor];
    if (sums) sums += tensors.start[tensor];
    over_chunk(from, tensors.size[tensor], aligned(parameters, grads, sums), [&](unsigned at, auto of) {
        constexpr int N = decltype(of)::SIZE;
        Word<float, N> values = load<N>(parameters + at), summed = {};
        const Word<float, N> gs = load<N>(grads + at);
        if (sums) summed = load<N>(sums + at);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float value = values.values[i];
            float grad = gs.values[i] + weight_decay * value;
            if (sums) {
                summed.values[i] = momentum * summed.values[i] + grad;
                grad = nesterov ? grad + momentum * summed.values[i] : summed.values[i];
            }
            values.values[i] = value - lr * grad;
        }
        if (sums) store<N>(sums + at, summed);
        store<N>(parameters + at, values);
    });
}

// The sum of each chunk's squared gradients, in f64: the square of no f32 overflows.
extern "C" __global__ void grad_norm_chunks(const Tensors tensors, double *squares) {
    int tensor = tensor_of_block(tensors);
    unsigned from = (blockIdx.x - tensors.first_chunk[tensor]) * CHUNK;
    const float *grads = tensors.grad[tensor];
    double sum = 0.0, none = 0.0;
    over_chunk(from, tensors.size[tensor], aligned(grads), [&](unsigned at, auto of) {
        constexpr int N = decltype(of)::SIZE;
        const Word<float, N> values = load<N>(grads + at);
#pragma unroll
        for (int i = 0; i < N; i++) sum += double(values.values[i]) * values.values[i];
    });
    block_sum(sum, none);
    if (threadIdx.x == 0) squares[blockIdx.x] = sum;
}

// A warp a tensor: its chunks' sums together, the square of its norm.
extern "C" __global__ void grad_norm_tensors(const Tensors tensors, const double *squares, double *norms) {
    int tensor = blockIdx.x;
    double sum = 0.0;
    for (unsigned i = tensors.first_chunk[tensor] + threadIdx.x; i < tensors.first_chunk[tensor + 1]; i += 32)
        sum += squares[i];
    for (int with = 16; with > 0; with /= 2) sum += __shfl_xor_sync(0xffffffff, sum, with);
    if (threadIdx.x == 0) norms[tensor] = sqrt(sum);
}

// One warp: the norm of `count` norms together.
extern "C" __global__ void grad_norm_total(const double *norms, int count, double *total) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += 32) sum += norms[i] * norms[i];
    for (int with = 16; with > 0; with /= 2) sum += __shfl_xor_sync(0xffffffff, sum, with);
    if (threadIdx.x == 0) *total = sqrt(sum);
}

// Scales all gradients, in place, by max_norm / (total + 1e-6) where that is below 1.
extern "C" __global__ void grad_norm_clip(const Tensors tensors, const double *total, double max_norm) {
    double scale = max_norm / (*total + 1e-6);
    if (scale >= 1.0) return;
    int tensor = tensor_of_block(tensors);
    unsigned from = (blockIdx.x - tensors.first_chunk[tensor]) * CHUNK;
    float *grads = tensors.grad[tensor];
    over_chunk(from, tensors.size[tensor], aligned(grads), [&](unsigned at, auto of) {
        constexpr int N = decltype(of)::SIZE;
        Word<float, N> values = load<N>(grads + at);
#pragma unroll
        for (int i = 0; i < N; i++) values.values[i] = float(values.values[i] * scale);
        store<N>(grads + at, values);
    });
}
