// y = epilogue(x @ w + bias): x [rows, K] row by row, w [K / 64, COLUMNS / 8, 4, 8, 16], which are 64 values of 8 columns
// in chunks of 16, padded with zeros to whole tiles. A block computes a tile of BM rows and BN columns; tiles of BK
// values of the sum pass through STAGES buffers of shared memory, filled by asynchronous copies. With instructions for
// groups of warps each four warps compute 64 rows, otherwise WM x WN warps a part each. Blocks along z share the sum:
// each adds its part into zeroed memory, the last to arrive takes the total, leaves zeros and goes on alone.

// sums += the tile's rows by the tile's columns, for this warp's MT x NT parts of [16, 8]
template <bool is_unsigned, bool is_wide, int BK, int MT, int NT>
DEVICE void multiply_tiles(i32 (&sums)[MT][NT][4], const u8* x_tile, const u8* w_tile, int warp_row, int warp_column) {
#pragma unroll
  for (int part = 0; part < BK / 32; ++part) {
    u32 b[NT][2];
#pragma unroll
    for (int j = 0; j < NT; j += 2) load_columns<BK / 16>(b[j], b[j + 1], w_tile, warp_column + j * 8, part);
#pragma unroll
    for (int i = 0; i < MT; ++i) {
      if constexpr (is_wide) {
        u32 low[4], high[4];
        load_wide_rows<BK / 8>(low, high, x_tile, warp_row + i * 16, part);
#pragma unroll
        for (int j = 0; j < NT; ++j) {
          i32 upper[4] = {0, 0, 0, 0};
          mma<false>(upper, high, b[j]);
          mma<true>(sums[i][j], low, b[j]);
#pragma unroll
          for (int k = 0; k < 4; ++k) sums[i][j][k] += upper[k] << 8;
        }
      } else {
        u32 a[4];
        load_rows<BK / 16>(a, x_tile, warp_row + i * 16, part);
#pragma unroll
        for (int j = 0; j < NT; ++j) mma<is_unsigned>(sums[i][j], a, b[j]);
      }
    }
  }
}

// a tile of w from column `first` and chunk `from` of the sum on
template <int BN, int threads, int chunks, int COLUMNS>
DEVICE void copy_columns(u8* tile, const i8* w, int first, int from) {
#pragma unroll
  for (int start = 0; start < BN * chunks; start += threads) {
    const int i = start + threadIdx.x, column = i / chunks, chunk = from + i % chunks;
    if (BN * chunks % threads && i >= BN * chunks) break;
    const i8* block = w + ((i64)(chunk / 4) * COLUMNS + first + column / 8 * 8) * 64;
    copy_async(tile + chunk_at<chunks>(column, i % chunks), block + (chunk % 4 * 8 + column % 8) * 16, true);
  }
}

// The sums of the steps from `begin` to `end`, for this warp's MT x NT parts of [16, 8]. `meanwhile` is done while the
// first tiles are on their way.
template <int BM, int BN, int BK, int STAGES, int K, int COLUMNS, int threads, class X, int MT, int NT, class Meanwhile>
DEVICE void sum_by_warps(i32 (&sums)[MT][NT][4], u8* shared, const X* x, const i8* w, int first_row, int first_column,
                         int rows, int begin, int end, int warp_row, int warp_column, const Meanwhile& meanwhile) {
  constexpr bool is_unsigned = (X)-1 > 0, is_wide = sizeof(X) == 2;
  static_assert(!is_wide || BK == 64, "rows of 128 bytes");
  constexpr int x_bytes = BM * BK * sizeof(X), ahead = STAGES - 1;
  auto fetch = [&](int step) {
    if (step < end) {
      u8* tile = shared + step % STAGES * (x_bytes + BN * BK);
      copy_tile<BM, threads, BK * sizeof(X) / 16, K, true>(tile, x, K, first_row, rows, step * BK);
      copy_columns<BN, threads, BK / 16, COLUMNS>(tile + x_bytes, w, first_column, step * (BK / 16));
    }
    commit_copies();
  };
  for (int step = begin; step < begin + ahead; ++step) fetch(step);
  meanwhile();
  for (int step = begin; step < end; ++step) {
    wait_copies<ahead - 1>();
    __syncthreads();
    const u8* tile = shared + step % STAGES * (x_bytes + BN * BK);
    fetch(step + ahead);
    multiply_tiles<is_unsigned, is_wide, BK>(sums, tile, tile + x_bytes, warp_row, warp_column);
  }
}

// The same by groups of four warps, 64 rows each. One thread fetches whole tiles of w, which `filled` counts.
template <int BM, int BN, int BK, int STAGES, int K, int COLUMNS, int threads, class X, int NT, class Meanwhile>
DEVICE void sum_by_groups(i32 (&sums)[NT][4], u8* shared, u64* filled, const X* x, const i8* w, int first_row,
                          int first_column, int rows, int begin, int end, const Meanwhile& meanwhile) {
  constexpr bool is_unsigned = (X)-1 > 0;
  constexpr int chunks = BK / 16, x_bytes = BM * BK, stage_bytes = x_bytes + BN * BK;
  constexpr int together = threads / chunks, parts = BM / together;  // rows fetched at once
  constexpr int ahead = STAGES - 2;  // a buffer that a group still reads cannot be filled
  static_assert(threads == BM * 2 && together % 8 == 0, "four warps for 64 rows");
  const int row = threadIdx.x / chunks, column = threadIdx.x % chunks * 16;
  const X* from = x + (i64)(first_row + row) * K + begin * BK + column;
  const int x_at = chunk_at<chunks>(row, column / 16);
  w += ((i64)begin * (BK / 64) * COLUMNS + first_column) * 64;
  auto fetch = [&](int step, int stage) {
    if (step < end) {
      u8* tile = shared + stage * stage_bytes;
      if constexpr (K % 16) {
        copy_tile<BM, threads, chunks, K, true>(tile, x, K, first_row, rows, step * BK);
      } else {
        const bool inside = K % BK == 0 || step * BK + column < K;
#pragma unroll
        for (int part = 0; part < parts; ++part)
          copy_async(tile + x_at + part * together * BK, from + part * together * K,
                     inside && first_row + row + part * together < rows);
        from += BK;
      }
      if (threadIdx.x == 0) {
        expect_bytes(filled + stage, BN * BK);
#pragma unroll
        for (int block = 0; block < BK / 64; ++block)
          copy_bulk(tile + x_bytes + block * BN * 64, w + (i64)block * COLUMNS * 64, BN * 64, filled + stage);
        w += (i64)(BK / 64) * COLUMNS * 64;
      }
    }
    commit_copies();
  };
  if (threadIdx.x == 0)
    for (int i = 0; i < STAGES; ++i) init_barrier(filled + i);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < ahead; ++i) fetch(begin + i, i);
  meanwhile();
  int stage = 0, next = ahead;
  u32 round = 0;
#pragma unroll 1
  for (int step = begin; step < end; ++step) {
    wait_copies<ahead - 1>();
    publish_copies();
    wait_barrier(filled + stage, round);
    __syncthreads();
    const u8* tile = shared + stage * stage_bytes;
    begin_group_mma();
#pragma unroll
    for (int part = 0; part < BK / 32; ++part)
      group_mma<is_unsigned, BK>(sums, tile + threadIdx.x / 128 * 64 * BK + part * 32,
                               tile + x_bytes + part / 2 * BN * 64 + part % 2 * 256);
    commit_group_mma();
    fetch(step + ahead, next);
    wait_group_mma<1>();
    next = next + 1 == STAGES ? 0 : next + 1;
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    round ^= stage == 0;
  }
  wait_group_mma<0>(sums);
}

// rows of a tile in shared memory to or from memory, 16 bytes at once where rows are whole multiples of them
template <int BN, int N, int threads, bool store, class T>
DEVICE void move_tile(u8* shared, T* data, int height, int width) {
  constexpr int pitch = BN * sizeof(T) + 16;
  if constexpr (N * sizeof(T) % 16 == 0) {
    constexpr int values = 16 / sizeof(T), chunks = BN / values;
    for (int i = threadIdx.x; i < height * chunks; i += threads) {
      if (i % chunks * values >= width) continue;
      uint4* inside = (uint4*)(shared + i / chunks * pitch + i % chunks * 16);
      uint4* outside = (uint4*)(data + (i64)(i / chunks) * N + i % chunks * values);
      if (store) *outside = *inside; else *inside = *outside;
    }
  } else {
    for (int i = threadIdx.x; i < height * BN; i += threads) {
      if (i % BN >= width) continue;
      T* inside = (T*)(shared + i / BN * pitch) + i % BN;
      T* outside = data + (i64)(i / BN) * N + i % BN;
      if (store) *outside = *inside; else *inside = *outside;
    }
  }
}

// two neighbours in a row
template <class T>
struct alignas(2 * sizeof(T)) Pair { T first, second; };

template <int BM, int BN, int BK, int WM, int WN, int STAGES, int K, int N, int COLUMNS, class X, class Y, class Epilogue>
DEVICE void linear(const X* __restrict__ x, const i8* __restrict__ w, const i32* __restrict__ bias, Y* __restrict__ y,
                   u8* zeros, int rows, const Epilogue& epilogue) {
  constexpr bool by_groups = WARPGROUP_MMA && sizeof(X) == 1;
  constexpr int threads = 32 * WM * WN, MT = by_groups ? 1 : BM / WM / 16, NT = by_groups ? BN / 8 : BN / WN / 8;
  constexpr int steps = (K + BK - 1) / BK;
  u8* shared = dynamic_shared();
  typename Epilogue::Pair* columns = (typename Epilogue::Pair*)(shared + Epilogue::columns_at);
  const int first_row = blockIdx.y * BM, first_column = blockIdx.x * BN;
  const bool alone = gridDim.z == 1;
  const int begin = alone ? 0 : quotient(steps * blockIdx.z, gridDim.z);
  const int end = alone ? steps : quotient(steps * (blockIdx.z + 1), gridDim.z);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = by_groups ? warp * 16 : warp / WN * (BM / WM), warp_column = by_groups ? 0 : warp % WN * (BN / WN);

  i32 sums[MT][NT][4];
#pragma unroll
  for (int i = 0; i < MT * NT * 4; ++i) sums[i / 4 / NT][i / 4 % NT][i % 4] = 0;
  auto prepare = [&] {
    for (int i = threadIdx.x; i < BN; i += threads) {
      const int column = least(first_column + i, N - 1);
      epilogue.prepare(columns[i / 2], i % 2, bias[column], column);
    }
  };
  if constexpr (by_groups)
    sum_by_groups<BM, BN, BK, STAGES, K, COLUMNS, threads>(sums[0], shared, (u64*)(columns + BN / 2), x, w, first_row,
                                                           first_column, rows, begin, end, prepare);
  else
    sum_by_warps<BM, BN, BK, STAGES, K, COLUMNS, threads>(sums, shared, x, w, first_row, first_column, rows, begin, end,
                                                          warp_row, warp_column, prepare);
  wait_copies<0>();

  if (!alone) {
    const int tile = blockIdx.y * gridDim.x + blockIdx.x;
    i32* arrived = (i32*)zeros + tile;
    i32* totals = (i32*)(zeros + 4096) + (i64)tile * (BM * BN) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < MT * NT * 4; ++i) atomicAdd(totals + i * threads, sums[i / 4 / NT][i / 4 % NT][i % 4]);
    __threadfence();
    __syncthreads();
    i32* ticket = (i32*)shared;
    if (threadIdx.x == 0) *ticket = atomicAdd(arrived, 1);
    __syncthreads();
    if (*ticket != gridDim.z - 1) return;
    __threadfence();
#pragma unroll
    for (int i = 0; i < MT * NT * 4; ++i) {
      sums[i / 4 / NT][i / 4 % NT][i % 4] = __ldcg(totals + i * threads);
      totals[i * threads] = 0;
    }
    if (threadIdx.x == 0) *arrived = 0;
  }

  // through shared memory, so that whole rows of the tile are read and written at once
  using R = typename Epilogue::Residual;
  constexpr int pitch = BN * sizeof(Y) + 16;
  constexpr bool in_place = Epilogue::has_residual && sizeof(R) == sizeof(Y);
  const int height = least(BM, rows - first_row), width = least(BN, N - first_column);
  const i64 corner = (i64)first_row * N + first_column;
  __syncthreads();
  if constexpr (in_place) {
    move_tile<BN, N, threads, false>(shared, (R*)epilogue.residual + corner, height, width);
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < NT; ++j) {
    const int in_tile = warp_column + j * 8 + lane % 4 * 2;
    const auto of = columns[in_tile / 2];
#pragma unroll
    for (int i = 0; i < MT * 2; ++i) {
      const int line = warp_row + i / 2 * 16 + i % 2 * 8 + lane / 4;
      u8* at = shared + line * pitch + in_tile * sizeof(Y);
      Pair<R> summand = {0, 0};
      if constexpr (in_place) {
        summand = *(const Pair<R>*)at;
      } else if constexpr (Epilogue::has_residual) {
        const R* row = epilogue.residual + (i64)least(first_row + line, rows - 1) * N;
        summand = {row[least(first_column + in_tile, N - 1)], row[least(first_column + in_tile + 1, N - 1)]};
      }
      const i32* sum = sums[i / 2][j] + i % 2 * 2;
      *(Pair<Y>*)at = {(Y)epilogue(sum[0], of, 0, summand.first), (Y)epilogue(sum[1], of, 1, summand.second)};
    }
  }
  __syncthreads();
  move_tile<BN, N, threads, true>(shared, y + corner, height, width);
}
