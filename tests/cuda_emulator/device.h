// device.cuh by an emulation of the hardware's instructions. Asynchronous copies are done as late as the waits allow.

static u8* dynamic_shared() { return shared_memory; }

static void copy_async(void* to, const void* from, bool valid) {
  if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16)) emulator::fail("a copy that is not aligned");
  emulator::fibers[emulator::current].open.push_back({to, {}, from, valid});
}

static void commit_copies() {
  auto& self = emulator::fibers[emulator::current];
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

template <int pending>
static void wait_copies() {
  auto& groups = emulator::fibers[emulator::current].groups;
  while (groups.size() > pending) {
    emulator::finish(groups.front());
    groups.pop_front();
  }
}

static __attribute__((noinline)) void load_matrices(u32 (&out)[4], const u8* row) {
  if ((uintptr_t)row % 16) emulator::fail("a matrix row that is not aligned");
  const u64 address = (u64)row;
  emulator::exchange(&address, 1, HERE, [&](auto& slots, int lane) {
    for (int i = 0; i < 4; ++i) memcpy(&out[i], (const u8*)slots[i * 8 + lane / 4][0] + lane % 4 * 4, 4);
  });
}

static __attribute__((noinline)) void load_transposed(u32 (&out)[4], const u8* row) {
  if ((uintptr_t)row % 16) emulator::fail("a matrix row that is not aligned");
  const u64 address = (u64)row;
  emulator::exchange(&address, 1, HERE, [&](auto& slots, int lane) {
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 2; ++j)
        memcpy((u8*)&out[i] + 2 * j, (const u8*)slots[i * 8 + lane % 4 * 2 + j][0] + lane / 4 * 2, 2);
  });
}

template <bool a_unsigned, bool b_unsigned = false>
static __attribute__((noinline)) void mma(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  const u64 values[3] = {(u64)a[1] << 32 | a[0], (u64)a[3] << 32 | a[2], (u64)b[1] << 32 | b[0]};
  emulator::exchange(values, 3, HERE, [&](auto& slots, int lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      for (int part = 0; part < 2; ++part)
        for (int s = 0; s < 4; ++s) {
          const u32 left = (u32)(slots[4 * g + s][part] >> (i / 2 * 32));
          const u32 right = (u32)(slots[4 * (2 * t + i % 2) + s][2] >> (part * 32));
          for (int byte = 0; byte < 4; ++byte) {
            const u8 l = left >> 8 * byte, r = right >> 8 * byte;
            c[i] += (a_unsigned ? (i32)l : (i32)(i8)l) * (b_unsigned ? (i32)r : (i32)(i8)r);
          }
        }
  });
}

template <int width>
static u8* group_operand(const u8* tile, int row, int byte) {  // rows of `width` bytes, chunks as in chunk_at
  const uintptr_t at = (uintptr_t)tile + row * width + byte, start = at & ~(uintptr_t)(width - 1);
  return (u8*)(start + ((at & (width - 1)) ^ (start >> 7 & (width / 16 - 1)) << 4));
}

// blocks of 8 rows and 64 bytes, in chunks of 16
static const u8* group_blocks(const u8* tile, int row, int byte) {
  return tile + row / 8 * 512 + byte / 16 * 128 + row % 8 * 16 + byte % 16;
}

static emulator::Barrier& barrier_of(const void* place) {
  auto found = emulator::barriers.find(place);
  if (found == emulator::barriers.end()) emulator::fail("a barrier that is not initialised");
  return found->second;
}
static void come(emulator::Barrier& barrier, int arrivals, int bytes) {
  barrier.missing -= arrivals, barrier.bytes -= bytes;
  ++emulator::progress;
  if (barrier.missing || barrier.bytes) return;
  ++barrier.rounds;
  barrier.missing = 1;
}
static void init_barrier(u64* barrier) { emulator::barriers[barrier] = {}; }
static void expect_bytes(u64* barrier, int bytes) { come(barrier_of(barrier), 1, -bytes); }
static void wait_barrier(u64* place, u32 parity) {
  auto& barrier = barrier_of(place);
  while (barrier.rounds % 2 == parity) {
    if (barrier.copies.empty()) {
      emulator::yield();
    } else {
      barrier.copies.front()();
      barrier.copies.pop_front();
    }
  }
}
static void copy_bulk(void* to, const void* from, int bytes, u64* place) {
  if ((uintptr_t)to % 16 || (uintptr_t)from % 16 || bytes % 16) emulator::fail("a copy that is not aligned");
  auto& barrier = barrier_of(place);
  auto copy = [=, &barrier] {
    memcpy(to, from, bytes);
    come(barrier, 0, bytes);
  };
  if (emulator::early) copy();
  else barrier.copies.push_back(copy);
}

static void publish_copies() { emulator::fibers[emulator::current].unpublished = false; }
static void begin_group_mma() {}

// done as late as the waits allow
template <bool is_unsigned, int width, int NT>
static void group_mma(i32 (&c)[NT][4], const u8* a, const u8* b) {
  if ((uintptr_t)a % (8 * width) >= width || (uintptr_t)a % 32 || (uintptr_t)b % 128) emulator::fail("a tile that is not aligned");
  for (u32 i = 0; i < blockDim.x; ++i)
    if (emulator::fibers[i].unpublished) emulator::fail("a product reads copies that are not published");
  const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  auto* sums = &c;
  emulator::fibers[emulator::current].products.push_back([=] {
    for (int i = 0; i < NT * 4; ++i)
      for (int k = 0; k < 32; ++k) {
        const u8 left = *group_operand<width>(a, row + i % 4 / 2 * 8, k);
        const i8 right = (i8)*group_blocks(b, i / 4 * 8 + column + i % 2, k);
        (*sums)[i / 4][i % 4] += (is_unsigned ? (i32)left : (i32)(i8)left) * right;
      }
  });
}

static void commit_group_mma() {
  auto& self = emulator::fibers[emulator::current];
  self.product_groups.push_back(std::move(self.products));
  self.products.clear();
}

template <int pending>
static __attribute__((noinline)) void wait_group_mma() {
  auto& groups = emulator::fibers[emulator::current].product_groups;
  while (groups.size() > pending) {
    for (auto& product : groups.front()) product();
    groups.pop_front();
  }
  const int warp = emulator::current / emulator::WARP;
  emulator::meet(emulator::warps[warp], emulator::lanes_of(warp), HERE);
}

template <int pending, int NT>
static void wait_group_mma(i32 (&)[NT][4]) { wait_group_mma<pending>(); }
