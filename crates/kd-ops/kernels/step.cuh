// What changes from one step of training to the next, where a captured step reads it (src/cuda/graph.rs). Kernels that are
// launched one by one get a null pointer, and the same numbers with the launch.
#pragma once

struct Step {
    unsigned long long step;
    // Adam's, or SGD's learning rate.
    float step_size;
    // Adam's.
    float root;
};
