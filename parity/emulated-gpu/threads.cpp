// The host side of threads.h.
#include "threads.h"

#include <sys/mman.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#ifndef __x86_64__
#error "fibers are written for x86-64"
#endif

thread_local uint3 threadIdx, blockIdx;
thread_local dim3 blockDim, gridDim;

namespace gpu {
namespace {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr uint64_t STACK_END = 0x6b642d737461636b;

// Keeps the registers that a call keeps, and goes on where `to` left off.
extern "C" void gpu_switch(void **from, void *to);
asm(R"(
.text
.globl gpu_switch
.type gpu_switch, @function
gpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size gpu_switch, .-gpu_switch
)");

struct Thread {
    void *stack_pointer;
    int line;
    bool wrote[2];
    uint64_t values[2];
    int turn;
    bool returned;
};

struct Meeting {
    int alive, waiting, line;
};

// The threads of the block that this core runs.
struct Core {
    std::vector<void *> stacks;
    std::vector<Thread> threads;
    std::vector<Meeting> warps;
    Meeting all;
    std::deque<int> ready;
    int now, next, size;
    void *scheduler;
    const std::function<void()> *body;

    ~Core() {
        for (void *stack : stacks) munmap(stack, STACK_BYTES);
    }
};
thread_local Core core;

void set_thread(int t) {
    core.now = t;
    unsigned x = t;
    if (x < blockDim.x) threadIdx = {x, 0, 0};
    else threadIdx = {x % blockDim.x, x / blockDim.x % blockDim.y, x / blockDim.x / blockDim.y};
}

void release(Meeting &meeting, int first, int end) {
    meeting.waiting = 0;
    meeting.line = 0;
    for (int t = first; t < end; t++)
        if (!core.threads[t].returned && core.threads[t].line) {
            core.threads[t].line = 0;
            core.ready.push_back(t);
        }
}

void release_if_all_wait(Meeting &meeting, int first, int end) {
    if (meeting.waiting > 0 && meeting.waiting == meeting.alive) release(meeting, first, end);
}

void meet(Meeting &meeting, int first, int end, int line) {
    if (meeting.line && meeting.line != line) fail("threads wait at different barriers", line);
    meeting.line = line;
    meeting.waiting++;
    Thread &me = core.threads[core.now];
    me.line = line;
    release_if_all_wait(meeting, first, end);
    gpu_switch(&me.stack_pointer, core.scheduler);
}

int warp_end(int warp) { return std::min(core.size, warp * 32 + 32); }

// Runs threads that have not begun, one after the other for as long as none waits.
void fiber() {
    while (core.next < core.size) {
        int t = core.next++;
        set_thread(t);
        (*core.body)();
        t = core.now;
        core.threads[t].returned = true;
        core.all.alive--;
        core.warps[t / 32].alive--;
        release_if_all_wait(core.warps[t / 32], t / 32 * 32, warp_end(t / 32));
        release_if_all_wait(core.all, 0, core.size);
        if (!core.ready.empty()) break;
    }
    void *unused;
    gpu_switch(&unused, core.scheduler);
    std::abort();
}

void run_block(dim3 grid, dim3 block, size_t index, const std::function<void()> &body) {
    gridDim = grid;
    blockDim = block;
    blockIdx = {unsigned(index % grid.x), unsigned(index / grid.x % grid.y), unsigned(index / grid.x / grid.y)};
    core.size = block.x * block.y * block.z;
    core.threads.assign(core.size, Thread{});
    core.warps.clear();
    for (int first = 0; first < core.size; first += 32) core.warps.push_back({std::min(32, core.size - first), 0, 0});
    core.all = {core.size, 0, 0};
    core.ready.clear();
    core.next = 0;
    core.body = &body;
    size_t used = 0;
    while (core.all.alive > 0) {
        if (!core.ready.empty()) {
            int t = core.ready.front();
            core.ready.pop_front();
            set_thread(t);
            gpu_switch(&core.scheduler, core.threads[t].stack_pointer);
        } else if (core.next < core.size) {
            if (used == core.stacks.size()) {
                void *stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
                if (stack == MAP_FAILED) fail("no memory for a thread's stack", 0);
                *(uint64_t *)stack = STACK_END;
                core.stacks.push_back(stack);
            }
            // As if `gpu_switch` had been called by `fiber` at its beginning.
            uint64_t *top = (uint64_t *)((char *)core.stacks[used++] + STACK_BYTES) - 8;
            top[6] = (uint64_t)fiber;
            gpu_switch(&core.scheduler, top);
        } else {
            fail("some threads wait at a barrier that the others never reach", core.all.line);
        }
    }
    for (size_t i = 0; i < used; i++)
        if (*(uint64_t *)core.stacks[i] != STACK_END) fail("a thread's stack is too small", 0);
}

// The other cores, which wait for work.
struct Crew {
    std::mutex lock;
    std::condition_variable begin, end;
    uint64_t job = 0;
    size_t running = 0;
    std::atomic<size_t> next{0};
    size_t count = 0;
    const std::function<void(size_t)> *body = nullptr;
    std::mutex one_job;

    Crew() {
        for (unsigned i = 1; i < std::max(1u, std::thread::hardware_concurrency()); i++) {
            std::thread([this] {
                uint64_t seen = 0;
                for (;;) {
                    {
                        std::unique_lock held(lock);
                        begin.wait(held, [&] { return job != seen; });
                        seen = job;
                    }
                    work();
                    std::lock_guard held(lock);
                    if (--running == 0) end.notify_one();
                }
            }).detach();
            helpers++;
        }
    }
    size_t helpers = 0;

    void work() {
        for (size_t i; (i = next.fetch_add(1)) < count;) (*body)(i);
    }
    void together(size_t items, const std::function<void(size_t)> &what) {
        std::lock_guard only(one_job);
        {
            std::lock_guard held(lock);
            next = 0;
            count = items;
            body = &what;
            running = helpers;
            job++;
        }
        begin.notify_all();
        work();
        std::unique_lock held(lock);
        end.wait(held, [&] { return running == 0; });
    }
};
Crew &crew() {
    static Crew *crew = new Crew;
    return *crew;
}

} // namespace

[[noreturn]] void fail(const char *what, int line) {
    std::fprintf(stderr, "emulated GPU: %s (line %d, block %u %u %u, thread %u %u %u)\n", what, line, blockIdx.x, blockIdx.y,
                 blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    std::abort();
}

int lane() { return core.now % 32; }

void meet_block(int line) { meet(core.all, 0, core.size, line); }

void meet_warp(int line) {
    int warp = core.now / 32;
    meet(core.warps[warp], warp * 32, warp_end(warp), line);
}

uint64_t exchange(uint64_t value, int from, int line) {
    int me = core.now, other = me / 32 * 32 + from;
    if (from < 0 || from >= 32 || other >= core.size) fail("a shuffle reads a lane that does not exist", line);
    int turn = core.threads[me].turn;
    core.threads[me].turn = 1 - turn;
    core.threads[me].values[turn] = value;
    core.threads[me].wrote[turn] = true;
    meet_warp(line);
    core.threads[me].wrote[1 - turn] = false;
    if (!core.threads[other].wrote[turn]) fail("a shuffle reads a lane that has returned", line);
    return core.threads[other].values[turn];
}

void for_each(size_t count, const std::function<void(size_t)> &body) { crew().together(count, body); }

void run(dim3 grid, dim3 block, const std::function<void()> &body) {
    size_t blocks = size_t(grid.x) * grid.y * grid.z;
    if (blocks * block.x * block.y * block.z < 4096) {
        for (size_t i = 0; i < blocks; i++) run_block(grid, block, i, body);
    } else {
        for_each(blocks, [&](size_t i) { run_block(grid, block, i, body); });
    }
}

std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

} // namespace gpu
