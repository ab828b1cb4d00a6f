// Where a captured step finds its numbers.
#include "step.cuh"

// Writes the numbers of the next launch of a graph. They come with this kernel's own launch: a copy from ordinary memory of the host
// may wait until the GPU has taken it.
extern "C" __global__ void set_step(unsigned long long step, float a, float b, float c, float d, Step *now) {
    *now = {step, {a, b, c, d}};
}
