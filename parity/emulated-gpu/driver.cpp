// CUDA's driver (libcuda), as far as candle and kd call it: memory, streams, modules, launches, graphs.
//
// Work is done when it is submitted, so nothing here shows a missing wait. What it does show: wrong arguments, freed or
// foreign memory, writes past an end, memory that is read before it is written (it is NaN), and what may not be done while a
// stream is captured. Stricter than a GPU: a capture may neither load modules nor copy from or to the host, and a graph's
// memory is NaN again each time that it is launched.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"
#include "threads.h"

namespace {

enum Result {
    OK = 0,
    INVALID_VALUE = 1,
    INVALID_IMAGE = 200,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_ISOLATION = 905,
    ILLEGAL_STATE = 401,
};

constexpr size_t EDGE = 256;
constexpr unsigned char EDGE_BYTE = 0xa5, UNWRITTEN = 0xff;

// A piece of work in a graph, or memory that it takes or gives back.
struct Node {
    std::string name;
    std::function<void()> work;
    std::vector<gpu::Use> uses;
    uint64_t takes = 0, gives_back = 0;
};

struct Graph {
    std::vector<Node> nodes;
};

struct Instance {
    std::vector<Node> nodes;
    bool frees_on_launch;
    bool launched = false;
};

struct Memory {
    size_t bytes;
    bool alive;
    // Made in a capture: reserved for its graph for good.
    bool of_a_graph;
};

struct Module {
    std::string file;
};

std::recursive_mutex lock;
std::map<uint64_t, Memory> memory;
std::map<void *, size_t> pinned;
struct Capture {
    Graph graph;
    bool broken = false;
};
std::map<void *, std::unique_ptr<Capture>> captures;
std::map<std::string, uint64_t> counts;
size_t graphs = 0;

void count(const std::string &what, uint64_t by = 1) { counts[what] += by; }

bool edges_are_whole(uint64_t address, size_t bytes);

// When the process ends: memory that was never freed is looked at, and the counts are written.
struct Report {
    ~Report() {
        for (auto &[address, block] : memory) {
            if (!block.alive || edges_are_whole(address, block.bytes)) continue;
            std::fprintf(stderr, "emulated GPU: something was written past the end of memory\n");
            std::_Exit(3);
        }
        const char *path = std::getenv("KD_EMULATED_GPU_COUNTS");
        std::FILE *file = path ? std::fopen(path, "w") : nullptr;
        if (!file) return;
        for (auto &[what, times] : counts) std::fprintf(file, "%llu %s\n", (unsigned long long)times, what.c_str());
        std::fclose(file);
    }
} report;

int complain(int result, const std::string &what) {
    std::fprintf(stderr, "emulated GPU: %s\n", what.c_str());
    return result;
}

Capture *capture_of(void *stream) {
    auto found = captures.find(stream);
    return found == captures.end() ? nullptr : found->second.get();
}

// What a capture forbids breaks it, as on a GPU.
int forbidden_in_a_capture(const char *what) {
    for (auto &[stream, capture] : captures) {
        capture->broken = true;
        return complain(CAPTURE_UNSUPPORTED, std::string(what) + " while a stream is captured");
    }
    return OK;
}

unsigned char *with_edges(uint64_t address) { return (unsigned char *)address - EDGE; }

bool edges_are_whole(uint64_t address, size_t bytes) {
    unsigned char *before = with_edges(address), *after = (unsigned char *)address + bytes;
    for (size_t i = 0; i < EDGE; i++)
        if (before[i] != EDGE_BYTE || after[i] != EDGE_BYTE) return false;
    return true;
}

void unwrite(uint64_t address, size_t bytes) { std::memset((void *)address, UNWRITTEN, bytes); }

uint64_t take(size_t bytes, bool of_a_graph) {
    size_t whole = (bytes + 2 * EDGE + 255) / 256 * 256;
    unsigned char *at = (unsigned char *)std::aligned_alloc(256, whole);
    if (!at) return 0;
    std::memset(at, EDGE_BYTE, whole);
    uint64_t address = (uint64_t)at + EDGE;
    unwrite(address, bytes);
    memory[address] = {bytes, true, of_a_graph};
    return address;
}

int give_back(uint64_t address) {
    auto found = memory.find(address);
    if (found == memory.end() || !found->second.alive) return complain(INVALID_VALUE, "memory is freed that is not there, or a second time");
    auto &[_, block] = *found;
    if (!edges_are_whole(address, block.bytes)) return complain(ILLEGAL_ADDRESS, "something was written past the end of memory");
    // A graph may look for it: it is kept, and its address given to nobody else.
    if (block.of_a_graph || graphs > 0) {
        block.alive = false;
        unwrite(address, block.bytes);
        return OK;
    }
    std::free(with_edges(address));
    memory.erase(found);
    return OK;
}

// The memory that an address lies in, if it is alive.
const std::pair<const uint64_t, Memory> *around(uint64_t address) {
    auto after = memory.upper_bound(address);
    if (after == memory.begin()) return nullptr;
    auto found = std::prev(after);
    if (!found->second.alive || address > found->first + found->second.bytes) return nullptr;
    return &*found;
}

int copy(const char *name, void *stream, void *to, const void *from, size_t bytes, std::vector<gpu::Use> uses) {
    count(std::string(name) + " (bytes)", bytes);
    return gpu::submit(stream, name, std::move(uses), [=] { std::memmove(to, from, bytes); });
}

// A copy from or to the host is only fit for a graph when the host's memory is pinned.
int check_host(void *stream, const void *host) {
    if (!capture_of(stream)) return OK;
    auto after = pinned.upper_bound((void *)host);
    if (after != pinned.begin() && (char *)host < (char *)std::prev(after)->first + std::prev(after)->second) return OK;
    return forbidden_in_a_capture("a copy from or to pageable memory of the host");
}

// Whether `bytes` from `address` on are memory of the device that has not been freed.
bool readable(const char *what, const void *address, size_t bytes) {
    std::lock_guard held(lock);
    auto *block = around((uint64_t)address);
    if (!block) return complain(0, std::string(what) + ": an address that is not the device's, or freed"), false;
    if ((uint64_t)address + bytes > block->first + block->second.bytes)
        return complain(0, std::string(what) + ": reaches past the end of memory"), false;
    return true;
}

} // namespace

namespace gpu {

int submit(void *stream, const char *name, std::vector<Use> uses, std::function<void()> work) {
    std::lock_guard held(lock);
    for (Use &use : uses)
        if (!readable(name, use.address, use.bytes)) return ILLEGAL_ADDRESS;
    if (Capture *capture = capture_of(stream)) {
        if (capture->broken) return CAPTURE_INVALIDATED;
        capture->graph.nodes.push_back({name, std::move(work), std::move(uses)});
        return OK;
    }
    count(name);
    work();
    return OK;
}

} // namespace gpu

// ---- the device and its context

EXPORT int cuInit(unsigned) { return OK; }
EXPORT int cuDriverGetVersion(int *version) { return *version = 13000, OK; }
EXPORT int cuDeviceGet(int *device, int ordinal) { return ordinal == 0 ? (*device = 0, OK) : int(101); }
EXPORT int cuDeviceGetCount(int *devices) { return *devices = 1, OK; }
EXPORT int cuDeviceGetName(char *name, int length, int) {
    std::snprintf(name, length, "kd's emulated GPU (no GPU)");
    return OK;
}
EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = size_t(16) << 30, OK; }
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 1: *value = 1024; break;  // threads of a block
    case 10: *value = 32; break;   // threads of a warp
    case 16: *value = 2; break;    // multiprocessors
    case 75: *value = 9; break;    // compute capability, major
    case 76: *value = 0; break;    // and minor
    case 115: *value = 1; break;   // memory pools
    default: return complain(INVALID_VALUE, "asked for an attribute that the emulation does not know: " + std::to_string(attribute));
    }
    return OK;
}
EXPORT int cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = (void *)0x10, OK; }
EXPORT int cuMemPoolSetAttribute(void *, int, void *) { return OK; }
EXPORT int cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = *total = size_t(16) << 30, OK; }
thread_local void *current_context;
EXPORT int cuDevicePrimaryCtxRetain(void **context, int) { return *context = (void *)0x20, OK; }
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
EXPORT int cuCtxSetCurrent(void *context) { return current_context = context, OK; }
EXPORT int cuCtxGetCurrent(void **context) { return *context = current_context, OK; }
EXPORT int cuCtxSynchronize() {
    std::lock_guard held(lock);
    count("waits of the host");
    return forbidden_in_a_capture("waiting for the device");
}
EXPORT int cuGetErrorName(int error, const char **name) {
    *name = error == CAPTURE_UNSUPPORTED   ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
            : error == CAPTURE_INVALIDATED ? "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
            : error == ILLEGAL_ADDRESS     ? "CUDA_ERROR_ILLEGAL_ADDRESS"
            : error == NOT_FOUND           ? "CUDA_ERROR_NOT_FOUND"
            : error == INVALID_VALUE       ? "CUDA_ERROR_INVALID_VALUE"
                                           : "an error of the emulated GPU";
    return OK;
}
EXPORT int cuGetErrorString(int, const char **text) { return *text = "see what the emulated GPU said on stderr", OK; }

// ---- memory

EXPORT int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
    std::lock_guard held(lock);
    Capture *capture = capture_of(stream);
    if (capture && capture->broken) return CAPTURE_INVALIDATED;
    *address = take(bytes, capture != nullptr);
    if (capture) capture->graph.nodes.push_back({"allocations", {}, {}, *address, 0});
    else count("allocations");
    return *address ? OK : 2;
}
EXPORT int cuMemFreeAsync(uint64_t address, void *stream) {
    std::lock_guard held(lock);
    if (Capture *capture = capture_of(stream)) {
        if (capture->broken) return CAPTURE_INVALIDATED;
        auto found = memory.find(address);
        if (found == memory.end() || !found->second.alive) return complain(INVALID_VALUE, "memory is freed that is not there, or a second time");
        if (!found->second.of_a_graph) {
            capture->broken = true;
            return complain(INVALID_VALUE, "a graph would free memory that was made outside of it: at its second launch it is gone");
        }
        found->second.alive = false;
        capture->graph.nodes.push_back({"frees", {}, {}, 0, address});
        return OK;
    }
    return give_back(address);
}
EXPORT int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    std::lock_guard held(lock);
    if (int error = forbidden_in_a_capture("an allocation without a stream")) return error;
    if (bytes == 0) return INVALID_VALUE;
    count("allocations");
    return (*address = take(bytes, false)) ? OK : 2;
}
EXPORT int cuMemFree_v2(uint64_t address) {
    std::lock_guard held(lock);
    if (int error = forbidden_in_a_capture("freeing without a stream")) return error;
    return give_back(address);
}
EXPORT int cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    std::lock_guard held(lock);
    *address = std::malloc(bytes);
    pinned[*address] = bytes;
    return *address ? OK : 2;
}
EXPORT int cuMemFreeHost(void *address) {
    std::lock_guard held(lock);
    if (!pinned.erase(address)) return INVALID_VALUE;
    std::free(address);
    return OK;
}
EXPORT int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *stream) {
    return gpu::submit(stream, "memsets", {{(void *)address, bytes}}, [=] { std::memset((void *)address, value, bytes); });
}
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    std::lock_guard held(lock);
    if (int error = check_host(stream, from)) return error;
    return copy("copies from the host", stream, (void *)to, from, bytes, {{(void *)to, bytes}});
}
EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    std::lock_guard held(lock);
    if (int error = forbidden_in_a_capture("a copy without a stream")) return error;
    return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}
EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    std::lock_guard held(lock);
    if (int error = check_host(stream, to)) return error;
    return copy("copies to the host", stream, to, (void *)from, bytes, {{(void *)from, bytes}});
}
EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    std::lock_guard held(lock);
    if (int error = forbidden_in_a_capture("a copy without a stream")) return error;
    return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
}
EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    return copy("copies on the device", stream, (void *)to, (void *)from, bytes, {{(void *)to, bytes}, {(void *)from, bytes}});
}

// ---- streams and events

EXPORT int cuStreamCreate(void **stream, unsigned) { return *stream = new char, OK; }
EXPORT int cuStreamDestroy_v2(void *stream) { return delete (char *)stream, OK; }
EXPORT int cuStreamSynchronize(void *) {
    std::lock_guard held(lock);
    count("waits of the host");
    return forbidden_in_a_capture("waiting for a stream");
}
EXPORT int cuStreamWaitEvent(void *stream, void *, unsigned) {
    std::lock_guard held(lock);
    if (!capture_of(stream)) return OK;
    capture_of(stream)->broken = true;
    return complain(CAPTURE_ISOLATION, "a captured stream waits for an event");
}
EXPORT int cuEventCreate(void **event, unsigned) {
    std::lock_guard held(lock);
    count("events made");
    return *event = new char, OK;
}
EXPORT int cuEventDestroy_v2(void *event) { return delete (char *)event, OK; }
EXPORT int cuEventRecord(void *, void *) { return OK; }
EXPORT int cuEventQuery(void *) { return OK; }
EXPORT int cuEventSynchronize(void *) { return OK; }

// ---- modules and launches

EXPORT int cuModuleLoadData(void **module, const void *image) {
    std::lock_guard held(lock);
    if (int error = forbidden_in_a_capture("loading a module")) return error;
    const char *mark = "// for kd's emulated GPU: ", *text = (const char *)image;
    if (std::strncmp(text, mark, std::strlen(mark))) return complain(INVALID_IMAGE, "a module that nvcc of the emulation did not make");
    text += std::strlen(mark);
    *module = new Module{std::string(text, std::strcspn(text, "\n"))};
    return OK;
}
EXPORT int cuModuleUnload(void *module) { return delete (Module *)module, OK; }
EXPORT int cuModuleGetFunction(void **function, void *module, const char *name) {
    for (gpu::Kernel &kernel : gpu::kernels())
        if (kernel.file == ((Module *)module)->file && kernel.name == name) return *function = &kernel, OK;
    return complain(NOT_FOUND, ((Module *)module)->file + " has no kernel " + name);
}
EXPORT int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                          unsigned block_z, unsigned shared_bytes, void *stream, void **arguments, void **extra) {
    gpu::Kernel &kernel = *(gpu::Kernel *)function;
    dim3 grid(grid_x, grid_y, grid_z), block(block_x, block_y, block_z);
    size_t threads = size_t(block_x) * block_y * block_z;
    if (grid_x == 0 || grid_x > 0x7fffffff || grid_y == 0 || grid_y > 65535 || grid_z == 0 || grid_z > 65535 || threads == 0 ||
        threads > 1024 || block_z > 64)
        return complain(INVALID_VALUE, kernel.name + " is launched with a grid or block that no GPU takes");
    if (extra || shared_bytes) return complain(INVALID_VALUE, kernel.name + ": dynamic shared memory is not emulated");
    std::lock_guard held(lock);
    // Loading a kernel's code at its first launch may wait for the device.
    if (capture_of(stream) && !kernel.launched) return forbidden_in_a_capture((kernel.name + "'s first launch").c_str());
    kernel.launched = true;
    std::vector<gpu::Use> uses;
    for (size_t i = 0; i < kernel.parameters.size(); i++) {
        auto [bytes, is_pointer] = kernel.parameters[i];
        void *const *words = (void *const *)arguments[i];
        if (is_pointer) {
            if (*words && !around((uint64_t)*words))
                return complain(ILLEGAL_ADDRESS, kernel.name + ": argument " + std::to_string(i) + " is not memory of the device, or freed");
            if (*words) uses.push_back({*words, 0});
        } else if (bytes > 16) {
            // A structure: what in it is an address of the device must be alive.
            for (size_t word = 0; word < bytes / 8; word++) {
                auto after = memory.upper_bound((uint64_t)words[word]);
                if (after == memory.begin()) continue;
                auto &[address, block] = *std::prev(after);
                if ((uint64_t)words[word] >= address + block.bytes) continue;
                if (!block.alive) return complain(ILLEGAL_ADDRESS, kernel.name + ": its table has memory that was freed");
                uses.push_back({words[word], 0});
            }
        }
    }
    std::function<void()> body = kernel.bind(arguments, kernel.function);
    return gpu::submit(stream, kernel.name.c_str(), std::move(uses), [=] { gpu::run(grid, block, body); });
}

// ---- graphs

EXPORT int cuStreamBeginCapture_v2(void *stream, int) {
    std::lock_guard held(lock);
    if (stream == nullptr) return complain(CAPTURE_UNSUPPORTED, "the legacy stream can't be captured");
    if (capture_of(stream)) return ILLEGAL_STATE;
    captures[stream] = std::make_unique<Capture>();
    return OK;
}
EXPORT int cuStreamIsCapturing(void *stream, int *status) {
    std::lock_guard held(lock);
    Capture *capture = capture_of(stream);
    *status = !capture ? 0 : capture->broken ? 2 : 1;
    return OK;
}
EXPORT int cuStreamEndCapture(void *stream, void **graph) {
    std::lock_guard held(lock);
    *graph = nullptr;
    Capture *capture = capture_of(stream);
    if (!capture) return ILLEGAL_STATE;
    bool broken = capture->broken;
    // A graph's memory is not there until the graph is launched.
    for (Node &node : capture->graph.nodes)
        if (node.takes) memory[node.takes].alive = false;
    if (!broken) *graph = new Graph(std::move(capture->graph));
    captures.erase(stream);
    return broken ? CAPTURE_INVALIDATED : OK;
}
EXPORT int cuGraphInstantiateWithFlags(void **instance, void *graph, unsigned long long flags) {
    if (flags & ~3ull) return INVALID_VALUE;
    graphs++;
    *instance = new Instance{((Graph *)graph)->nodes, (flags & 1) != 0};
    return OK;
}
EXPORT int cuGraphLaunch(void *instance, void *stream) {
    std::lock_guard held(lock);
    if (capture_of(stream)) return forbidden_in_a_capture("launching a graph");
    count("graph launches");
    auto &[nodes, frees_on_launch, launched] = *(Instance *)instance;
    for (Node &node : nodes) {
        if (!node.takes) continue;
        if (memory[node.takes].alive && launched && !frees_on_launch)
            return complain(INVALID_VALUE, "a graph is launched again while memory of its last launch has not been freed");
        memory[node.takes].alive = false;
    }
    launched = true;
    for (Node &node : nodes) {
        if (node.takes) {
            count("allocations in graphs");
            unwrite(node.takes, memory[node.takes].bytes);
            memory[node.takes].alive = true;
        } else if (node.gives_back) {
            if (int error = give_back(node.gives_back)) return error;
        } else {
            for (gpu::Use &use : node.uses)
                if (!readable(("a graph's " + node.name).c_str(), use.address, use.bytes)) return ILLEGAL_ADDRESS;
            count(node.name);
            count("pieces of work in graphs");
            node.work();
        }
    }
    return OK;
}
EXPORT int cuGraphUpload(void *, void *) { return OK; }
EXPORT int cuGraphExecDestroy(void *instance) { return graphs--, delete (Instance *)instance, OK; }
EXPORT int cuGraphDestroy(void *graph) { return delete (Graph *)graph, OK; }
