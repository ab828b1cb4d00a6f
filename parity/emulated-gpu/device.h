// What the emulated libraries share: work that is done at once or written down for a graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace gpu {

// Memory that a piece of work uses.
struct Use {
    const void *address;
    size_t bytes;
};
// Does `work` now; on a stream that is being captured, writes it down instead. `name` is for the count of what was done, `uses` is
// looked at again when a graph is launched. The result is an error of the driver, or 0.
int submit(void *stream, const char *name, std::vector<Use> uses, std::function<void()> work);

} // namespace gpu
