// Adam, SGD and gradient norms over many tensors in one launch. The tensors' addresses come with the launch
// itself, so nothing is copied to the device beforehand. Each tensor is cut into chunks; a block is one chunk.
#include "reduce.cuh"
#include "step.cuh"

constexpr int TENSORS = 96;
constexpr unsigned CHUNK = 4096;

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

// The step's scalars: `step_size` is lr / (1 - beta1^step), `root` sqrt(1 - beta2^step), `shrinks_by` what the
// parameters are multiplied by first where `shrinks`. `penalty` is that of L2.
extern "C" __global__ void adam(const Tensors tensors, float *first, float *second, float beta1, float rest1,
                                float beta2, float rest2, float eps, float penalty, float step_size, float root,
                                float shrinks_by, int shrinks, const Step *now) {
    if (now) step_size = now->scalars[0], root = now->scalars[1], shrinks_by = now->scalars[2];
    if (!shrinks) shrinks_by = 1;
    int tensor = tensor_of_block(tensors);
    unsigned from = (blockIdx.x - tensors.first_chunk[tensor]) * CHUNK;
    unsigned to = min(from + CHUNK, tensors.size[tensor]);
    float *parameter = tensors.parameter[tensor];
    const float *grads = tensors.grad[tensor];
    first += tensors.start[tensor];
    second += tensors.start[tensor];
    for (unsigned i = from + threadIdx.x; i < to; i += blockDim.x) {
        float value = parameter[i] * shrinks_by;
        float grad = grads[i] + penalty * value;
        float m = beta1 * first[i] + rest1 * grad;
        float v = beta2 * second[i] + rest2 * grad * grad;
        first[i] = m;
        second[i] = v;
        parameter[i] = value - step_size * m / (sqrtf(v) / root + eps);
    }
}

// The step's scalar is the learning rate. `sums` is null without momentum.
extern "C" __global__ void sgd(const Tensors tensors, float *sums, float lr, float momentum, int nesterov,
                               float weight_decay, const Step *now) {
    if (now) lr = now->scalars[0];
    int tensor = tensor_of_block(tensors);
    unsigned from = (blockIdx.x - tensors.first_chunk[tensor]) * CHUNK;
    unsigned to = min(from + CHUNK, tensors.size[tensor]);
    float *parameter = tensors.parameter[tensor];
    const float *grads = tensors.grad[tensor];
    for (unsigned i = from + threadIdx.x; i < to; i += blockDim.x) {
        float value = parameter[i];
        float grad = grads[i] + weight_decay * value;
        if (sums) {
            float *sum = sums + tensors.start[tensor] + i;
            *sum = momentum * *sum + grad;
            grad = nesterov ? grad + momentum * *sum : *sum;
        }
        parameter[i] = value - lr * grad;
    }
}

// The sum of each chunk's squared gradients, in f64: the square of no f32 overflows.
extern "C" __global__ void grad_norm_chunks(const Tensors tensors, double *squares) {
    int tensor = tensor_of_block(tensors);
    unsigned from = (blockIdx.x - tensors.first_chunk[tensor]) * CHUNK;
    unsigned to = min(from + CHUNK, tensors.size[tensor]);
    const float *grads = tensors.grad[tensor];
    double sum = 0.0, none = 0.0;
    for (unsigned i = from + threadIdx.x; i < to; i += blockDim.x) sum += double(grads[i]) * grads[i];
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
    unsigned to = min(from + CHUNK, tensors.size[tensor]);
    float *grads = tensors.grad[tensor];
    for (unsigned i = from + threadIdx.x; i < to; i += blockDim.x) grads[i] = float(grads[i] * scale);
}
