// What changes from one step of training to the next, where a captured step reads it (src/cuda/graph.rs). Kernels that are
// launched one by one get a null pointer, and the same numbers as arguments.
#pragma once

struct Step {
    unsigned long long step;
    // The optimiser's own: each says in its kernel what they are.
    float scalars[4];
};
