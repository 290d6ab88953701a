// CUDA for a CPU: every thread is a fiber; blocks run one after another.
//
// Operations of a warp or a block wait until every one of its threads has come to the same call, and a thread
// that never comes is an error. Fibers take turns in the order that EMULATOR_ORDER says (forward, backward,
// shuffled), so that results which depend on it show.
#include <sys/mman.h>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <utility>
#include <vector>

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define DEVICE static inline
#define __shared__
#define __align__(n)
#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define ALL_LANES 0xffffffffu

struct Index { u32 x, y, z; };
struct uint4 { u32 x, y, z, w; };
struct uint2 { u32 x, y; };
static Index threadIdx, blockIdx, blockDim, gridDim;

extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
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
)");

extern u8 shared_memory[];

namespace emulator {

constexpr size_t STACK = 64 << 10;
constexpr int WARP = 32;

struct Copy { void* to; u8 data[16]; const void* from; bool valid; };

struct Fiber {
  void* stack = nullptr;
  void* pointer = nullptr;
  bool done = false;
  std::vector<Copy> open;                // copies not yet in a group
  std::deque<std::vector<Copy>> groups;  // oldest first
  bool unpublished = false;              // copies have arrived that group_mma does not see yet
  using Products = std::vector<std::function<void()>>;
  Products products;
  std::deque<Products> product_groups;
};

// threads that meet; a buffer for what they exchange, which alternates so that one meeting is enough
struct Meeting { int arrived = 0; u64 generation = 0; const void* where = nullptr; };
struct Exchange { u64 slots[2][WARP][8]; u64 count[WARP]; };

// a barrier in shared memory; the copies that it counts are done when somebody waits for it
struct Barrier { int missing = 1; i64 bytes = 0; u64 rounds = 0; std::deque<std::function<void()>> copies; };

static std::vector<Fiber> fibers;
static std::map<const void*, Barrier> barriers;
static std::vector<Meeting> warps;
static std::vector<Exchange> exchanges;
static Meeting block;
static void* scheduler;
static int current;
static u64 progress;
static bool early;  // the copies that barriers count are done at once
static void (*entry)(void**);
static void** parameters;
constexpr int SHARED = 227 << 10, CANARY = 1024;

[[noreturn]] static void fail(const char* what) {
  fprintf(stderr, "emulator: %s (block %u %u %u, thread %d)\n", what, blockIdx.x, blockIdx.y, blockIdx.z, current);
  abort();
}

static void yield() {
  const int self = current;
  emulator_switch(&fibers[self].pointer, scheduler);
}

static void meet(Meeting& meeting, int expected, const void* where) {
  if (meeting.arrived == 0) meeting.where = where;
  if (meeting.where != where) fail("threads meet at different places");
  ++progress;
  const u64 generation = meeting.generation;
  if (++meeting.arrived == expected) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  while (meeting.generation == generation) yield();
}

static int lanes_of(int warp) { return std::min<int>(WARP, blockDim.x - warp * WARP); }

// every lane gives `count` numbers; the result is everyone's
template <class F>
static void exchange(const u64* values, int count, const void* where, F use) {
  const int warp = current / WARP, lane = current % WARP;
  Exchange& e = exchanges[warp];
  auto& slots = e.slots[e.count[lane]++ % 2];
  memcpy(slots[lane], values, count * sizeof(u64));
  meet(warps[warp], lanes_of(warp), where);
  use(slots, lane);
}

static void finish(std::vector<Copy>& group) {
  fibers[current].unpublished |= !group.empty();
  for (Copy& copy : group) {
    if (copy.valid) memcpy(copy.to, copy.from, 16);
    else memset(copy.to, 0, 16);
  }
}

static void start() {
  entry(parameters);
  Fiber& self = fibers[current];
  if (!self.open.empty() || !self.groups.empty()) {
    for (auto& group : self.groups) if (!group.empty()) fail("a thread ends before its copies");
    if (!self.open.empty()) fail("a thread ends before its copies");
  }
  if (!self.products.empty() || !self.product_groups.empty()) fail("a thread ends before its products");
  self.done = true;
  ++progress;
  yield();
  fail("a finished thread runs");
}

static void prepare(Fiber& fiber) {
  if (!fiber.stack) {
    fiber.stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fiber.stack == MAP_FAILED) fail("no memory for stacks");
  }
  void** top = (void**)((u8*)fiber.stack + STACK);
  *--top = nullptr;  // the return address of start, which never returns; keeps the stack aligned as after a call
  *--top = (void*)start;
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.pointer = top;
  fiber.done = false;
  fiber.open.clear();
  fiber.groups.clear();
  fiber.unpublished = false;
}

static int run_thread(int thread) {
  if (fibers[thread].done) return 0;
  current = thread;
  threadIdx = {(u32)thread, 0, 0};
  emulator_switch(&scheduler, fibers[thread].pointer);
  return fibers[thread].done;
}

// Shuffled, every thread goes on to its next meeting in turn. Otherwise a warp goes on as long as it can before the
// next one starts, so that warps are as far apart as their barriers allow.
static void run_block(std::mt19937& random, int order) {
  const int count = blockDim.x;
  for (int i = 0; i < count; ++i) prepare(fibers[i]);
  for (auto& e : exchanges) memset(e.count, 0, sizeof e.count);
  std::vector<int> turns(count);
  for (int i = 0; i < count; ++i) turns[i] = order == 1 ? count - 1 - i : i;
  for (int left = count; left;) {
    const u64 before = progress;
    if (order == 2) {
      std::shuffle(turns.begin(), turns.end(), random);
      for (int thread : turns) left -= run_thread(thread);
    } else {
      for (int first = 0; first < count; first += WARP)
        for (u64 now = progress - 1; now != progress;) {
          now = progress;
          for (int i = first; i < std::min(first + WARP, count); ++i) left -= run_thread(turns[i]);
        }
    }
    if (progress == before) fail("some threads wait for others that have ended or wait elsewhere");
  }
  for (auto& [place, barrier] : barriers)
    if (!barrier.copies.empty()) fail("a block ends before its copies");
  barriers.clear();
}

static void launch(void (*function)(void**), const u32* grid, u32 threads, u32 shared_bytes, void** params) {
  const char* asked = getenv("EMULATOR_ORDER");
  const int order = !asked ? 0 : !strcmp(asked, "backward") ? 1 : !strcmp(asked, "shuffled") ? 2 : 0;
  std::mt19937 random(7);
  early = order > 0;
  entry = function;
  parameters = params;
  blockDim = {threads, 1, 1};
  gridDim = {grid[0], grid[1], grid[2]};
  if (fibers.size() < threads) fibers.resize(threads);
  warps.assign((threads + WARP - 1) / WARP, Meeting());
  exchanges.resize(warps.size());
  for (u32 z = 0; z < grid[2]; ++z)
    for (u32 y = 0; y < grid[1]; ++y)
      for (u32 x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        memset(shared_memory, 0xA5, shared_bytes + CANARY);
        run_block(random, order);
        for (u32 i = shared_bytes; i < shared_bytes + CANARY; ++i)
          if (shared_memory[i] != 0xA5) fail("a write beyond shared memory");
      }
}

template <class... A, size_t... I>
static void apply(void (*f)(A...), void** p, std::index_sequence<I...>) { f(*(std::remove_reference_t<A>*)p[I]...); }
template <class... A>
static void invoke(void (*f)(A...), void** p) { apply(f, p, std::index_sequence_for<A...>()); }

}  // namespace emulator

alignas(1024) u8 shared_memory[emulator::SHARED + emulator::CANARY];

#define EMULATED(kernel) \
  extern "C" void emulated_##kernel(void** p) { emulator::invoke(kernel, p); } \
  extern "C" const int parameters_##kernel = emulator::arity(kernel);
namespace emulator {
template <class... A>
constexpr int arity(void (*)(A...)) { return sizeof...(A); }
}
extern "C" void emulated_launch(void (*f)(void**), const u32* grid, u32 threads, u32 shared, void** params) {
  emulator::launch(f, grid, threads, shared, params);
}

// ---------------------------------------------------------------- CUDA's own functions

#define HERE __builtin_return_address(0)

// a place in the source: the compiler may make several of one call where warps take different ways to it
#define __syncthreads() emulator::meet(emulator::block, blockDim.x, (const void*)(uintptr_t)__LINE__)
static void __threadfence() {}
static u64 __cvta_generic_to_shared(const void*) { return 0; }
static uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static i32 __dp4a(i32 a, i32 b, i32 c) {
  for (int i = 0; i < 4; ++i) c += (i8)(a >> 8 * i) * (i8)(b >> 8 * i);
  return c;
}
static u32 __dp4a(u32 a, u32 b, u32 c) {
  for (int i = 0; i < 4; ++i) c += (u8)(a >> 8 * i) * (u8)(b >> 8 * i);
  return c;
}
static i32 __mulhi(i32 a, i32 b) { return (i32)((i64)a * b >> 32); }
static u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
static int __clz(u32 x) { return x ? __builtin_clz(x) : 32; }
static int __clzll(i64 x) { return x ? __builtin_clzll(x) : 64; }
static u32 __funnelshift_rc(u32 low, u32 high, u32 shift) {
  return (u32)(((u64)high << 32 | low) >> std::min(shift, 32u));
}
template <class T>
static T atomicAdd(T* to, T value) { T old = *to; *to = (T)((u64)old + (u64)value); return old; }
template <class T>
static T __ldcg(const T* from) { return *from; }

static u32 __byte_perm(u32 a, u32 b, u32 selector) {
  const u64 both = (u64)b << 32 | a;
  u32 out = 0;
  for (int i = 0; i < 4; ++i) out |= (u32)(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return out;
}

template <class T>
static __attribute__((noinline)) T __shfl_xor_sync(u32, T value, int mask) {
  u64 bits = 0;
  memcpy(&bits, &value, sizeof value);
  T out;
  emulator::exchange(&bits, 1, HERE, [&](auto& slots, int lane) { memcpy(&out, slots[lane ^ mask], sizeof out); });
  return out;
}

static __attribute__((noinline)) u32 __ballot_sync(u32, bool value) {
  const u64 bit = value;
  u32 out = 0;
  emulator::exchange(&bit, 1, HERE, [&](auto& slots, int) {
    for (int lane = 0; lane < emulator::WARP; ++lane) out |= (u32)slots[lane][0] << lane;
  });
  return out;
}

template <class T>
static __attribute__((noinline)) T __shfl_sync(u32, T value, int from) {
  u64 bits = 0;
  memcpy(&bits, &value, sizeof value);
  T out;
  emulator::exchange(&bits, 1, HERE, [&](auto& slots, int) { memcpy(&out, slots[from], sizeof out); });
  return out;
}

