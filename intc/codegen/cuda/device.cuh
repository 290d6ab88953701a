// What kernels use of the hardware. Below sm_80 (mma, asynchronous copies) and sm_75 (tensor cores, ldmatrix)
// the same operations are built from what there is; the results are equal. WARPGROUP_MMA says whether groups of four
// warps multiply tiles in shared memory (sm_90a).

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
#define ALL_LANES 0xffffffffu

DEVICE u8* dynamic_shared() {
  extern __shared__ __align__(1024) u8 shared_memory[];
  return shared_memory;
}

DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// 16 bytes from global to shared memory, zeros where not valid; they are there after wait_copies
DEVICE void copy_async(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0));
#else
  *(uint4*)to = valid ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}

// the copies since the last call form a group
DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;");
#endif
}

// all groups but the latest `pending` are complete
template <int pending>
DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending));
#endif
}

// Four 8 x 16-byte matrices. Lane l gives the address of row l % 8 of matrix l / 8, and gets bytes
// 4 * (l % 4) .. + 3 of row l / 4 of each.
DEVICE void load_matrices(u32 (&out)[4], const u8* row) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row)));
#else
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const u8* from = (const u8*)__shfl_sync(ALL_LANES, (u64)row, i * 8 + lane / 4);
    out[i] = *(const u32*)(from + lane % 4 * 4);
  }
#endif
}

// The same four as matrices of 8 x 8 pairs of bytes, transposed: pair l / 4 of rows 2 * (l % 4) and .. + 1 of each.
DEVICE void load_transposed(u32 (&out)[4], const u8* row) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row)));
#else
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    u32 pairs[2];
    for (int j = 0; j < 2; ++j)
      pairs[j] = ((const unsigned short*)__shfl_sync(ALL_LANES, (u64)row, i * 8 + lane % 4 * 2 + j))[lane / 4];
    out[i] = pairs[0] | pairs[1] << 16;
  }
#endif
}

#if __CUDA_ARCH__ >= 800
#define MMA(types) \
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." types ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#elif __CUDA_ARCH__ >= 750
#define MMA_PART(types, row, half) \
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." types ".s32 {%0,%1}, {%2}, {%3}, {%0,%1};" \
               : "+r"(c[2 * row]), "+r"(c[2 * row + 1]) : "r"(a[row + 2 * half]), "r"(b[half]))
#define MMA(types) { MMA_PART(types, 0, 0); MMA_PART(types, 0, 1); MMA_PART(types, 1, 0); MMA_PART(types, 1, 1); }
#endif

template <bool a_unsigned, bool b_unsigned>
DEVICE i32 dot4(u32 a, u32 b, i32 c) {
  if (a_unsigned && b_unsigned) return (i32)__dp4a(a, b, (u32)c);
  if (!a_unsigned && !b_unsigned) return __dp4a((i32)a, (i32)b, c);
  if (b_unsigned) return dot4<b_unsigned, a_unsigned>(b, a, c);
  // unsigned by signed: as signed, and 256 * b where the signed reading of a lost that
  const u32 high = (a >> 7) & 0x01010101u;
  return __dp4a((i32)high, (i32)b, 0) * 256 + __dp4a((i32)a, (i32)b, c);
}

// c += a @ b for a [16, 32] and b [32, 8] of bytes, unsigned or signed. With g = lane / 4, t = lane % 4:
// a[i] are columns 4t .. 4t + 3, from 16 on for i >= 2, of row g, or g + 8 for odd i; b[i] are rows 4t .. 4t + 3,
// from 16 on for i = 1, of column g; c[i] is column 2t + i % 2 of row g, or g + 8 for i >= 2.
template <bool a_unsigned, bool b_unsigned = false>
DEVICE void mma(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 750
  if constexpr (a_unsigned && b_unsigned) MMA("u8.u8");
  if constexpr (a_unsigned && !b_unsigned) MMA("u8.s8");
  if constexpr (!a_unsigned && b_unsigned) MMA("s8.u8");
  if constexpr (!a_unsigned && !b_unsigned) MMA("s8.s8");
#else
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int s = 0; s < 4; ++s)
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 2; ++i) {
        const u32 column = __shfl_sync(ALL_LANES, b[half], 4 * (2 * t + i) + s);
        for (int row = 0; row < 2; ++row)
          c[2 * row + i] = dot4<a_unsigned, b_unsigned>(__shfl_sync(ALL_LANES, a[row + 2 * half], 4 * g + s), column, c[2 * row + i]);
      }
#endif
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WARPGROUP_MMA 1
#else
#define WARPGROUP_MMA 0
#endif

// A barrier in shared memory. A round of it is complete when one thread has announced bytes, and they have arrived.
DEVICE void init_barrier(u64* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // bulk copies see it
}

DEVICE void expect_bytes(u64* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// until the round whose number has this parity is complete
DEVICE void wait_barrier(u64* barrier, u32 parity) {
  u32 complete;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(complete) : "r"(shared_address(barrier)), "r"(parity) : "memory");
  } while (!complete);
}

// whole pieces of 16 bytes from global to shared memory, which group_mma sees and `barrier` counts
DEVICE void copy_bulk(void* to, const void* from, int bytes, u64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}

// Rows of `width` bytes, 64 or 128, whose 16-byte chunks lie as chunk_at has them, from an address that is a multiple
// of eight rows, or some times 32 further on.
template <int width>
DEVICE u64 matrix_descriptor(const u8* tile) {
  static_assert(width == 64 || width == 128, "the hardware knows these");
  return (shared_address(tile) & 0x3ffff) >> 4 | 1ull << 16 | (u64)(width / 2) << 32 | (width == 64 ? 2ull : 1ull) << 62;
}

// Rows of 64 bytes, eight by eight: their first 16-byte chunks, then their next ones; or two chunks further on.
DEVICE u64 block_descriptor(const u8* tile) {
  return (shared_address(tile) & 0x3ffff) >> 4 | 8ull << 16 | 32ull << 32;
}

// this thread's completed copies become visible to group_mma
DEVICE void publish_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void begin_group_mma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

DEVICE void commit_group_mma() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// all but the latest `pending` groups of products are done
template <int pending>
DEVICE void wait_group_mma() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory"); }

// likewise, after which c may be read
template <int pending, int NT>
DEVICE void wait_group_mma(i32 (&c)[NT][4]) {
  wait_group_mma<pending>();
#pragma unroll
  for (int i = 0; i < NT * 4; ++i) asm volatile("" : "+r"(c[i / 4][i % 4])::"memory");
}

#define EIGHT(c, j) \
  "+r"(c[j][0]), "+r"(c[j][1]), "+r"(c[j][2]), "+r"(c[j][3]), "+r"(c[j + 1][0]), "+r"(c[j + 1][1]), "+r"(c[j + 1][2]), \
      "+r"(c[j + 1][3])
#define SIXTEEN(c, j) EIGHT(c, j), EIGHT(c, j + 2)
#define NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_48 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_96 \
  NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
           "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define GROUP_MMA(type, columns, sums, left, right, ...) \
  asm volatile("{.reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n" columns "k32.s32." type ".s8 {" \
               sums "}, " left ", " right ", p;}" \
               : __VA_ARGS__ \
               : "l"(matrix_descriptor<width>(a)), "l"(block_descriptor(b)))
#define GROUP_MMA_64(type) GROUP_MMA(type, "64", NAMES_32, "%32", "%33", SIXTEEN(c, 0), SIXTEEN(c, 4))
#define GROUP_MMA_96(type) \
  GROUP_MMA(type, "96", NAMES_48, "%48", "%49", SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8))
#define GROUP_MMA_128(type) \
  GROUP_MMA(type, "128", NAMES_64, "%64", "%65", SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8), SIXTEEN(c, 12))
#define GROUP_MMA_192(type) \
  GROUP_MMA(type, "192", NAMES_96, "%96", "%97", SIXTEEN(c, 0), SIXTEEN(c, 4), SIXTEEN(c, 8), SIXTEEN(c, 12), \
            SIXTEEN(c, 16), SIXTEEN(c, 20))

// c += a @ b for tiles a [64, 32] (unsigned or signed bytes), a part of rows of `width` bytes, and b [NT * 8, 32] (signed,
// column by column), half of blocks of 64 values, in shared memory; begun now and done when wait_group_mma says so. Warp
// w of the four has rows 16w .. 16w + 15, and c[j] is columns 8j .. 8j + 7 of them as mma has them.
template <bool is_unsigned, int width, int NT>
DEVICE void group_mma(i32 (&c)[NT][4], const u8* a, const u8* b) {
  static_assert(NT == 8 || NT == 12 || NT == 16 || NT == 24, "64, 96, 128 or 192 columns");
  if constexpr (NT == 8 && is_unsigned) GROUP_MMA_64("u8");
  if constexpr (NT == 8 && !is_unsigned) GROUP_MMA_64("s8");
  if constexpr (NT == 12 && is_unsigned) GROUP_MMA_96("u8");
  if constexpr (NT == 12 && !is_unsigned) GROUP_MMA_96("s8");
  if constexpr (NT == 16 && is_unsigned) GROUP_MMA_128("u8");
  if constexpr (NT == 16 && !is_unsigned) GROUP_MMA_128("s8");
  if constexpr (NT == 24 && is_unsigned) GROUP_MMA_192("u8");
  if constexpr (NT == 24 && !is_unsigned) GROUP_MMA_192("s8");
}
