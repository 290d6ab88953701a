// y = epilogue(x @ w + bias): x [rows, K] row by row, w [N, K] column by column and padded with zeros to whole
// tiles. A block computes a tile of BM rows and BN columns; tiles of BK values of the sum pass through STAGES buffers
// of shared memory, filled by asynchronous copies. With instructions for groups of warps each four warps compute 64
// rows, otherwise WM x WN warps a part each. Blocks along z share the sum: each adds its part into zeroed memory, the
// last to arrive takes the total, leaves zeros and goes on alone.

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

template <int BM, int BN, int BK, int WM, int WN, int STAGES, int K, int N, class X, class Y, class Epilogue>
DEVICE void linear(const X* __restrict__ x, const i8* __restrict__ w, const i32* __restrict__ bias, Y* __restrict__ y,
                   u8* zeros, int rows, const Epilogue& epilogue) {
  constexpr bool is_unsigned = (X)-1 > 0, is_wide = sizeof(X) == 2, by_groups = WARPGROUP_MMA && !is_wide;
  constexpr int threads = 32 * WM * WN, MT = by_groups ? 1 : BM / WM / 16, NT = by_groups ? BN / 8 : BN / WN / 8;
  static_assert(!by_groups || threads == BM * 2, "four warps for 64 rows");
  static_assert(!is_wide || BK == 64, "rows of 128 bytes");
  constexpr int x_bytes = BM * BK * sizeof(X), stage_bytes = x_bytes + BN * BK;
  constexpr int x_chunks = BK * sizeof(X) / 16;
  constexpr int steps = (K + BK - 1) / BK, padded = (K + 63) / 64 * 64;
  constexpr int ahead = STAGES - 1 - by_groups;  // a buffer that a group still reads cannot be filled
  u8* shared = dynamic_shared();
  typename Epilogue::Column* columns = (typename Epilogue::Column*)(shared + Epilogue::columns_at);
  const int first_row = blockIdx.y * BM, first_column = blockIdx.x * BN;
  const int begin = quotient(steps * blockIdx.z, gridDim.z), end = quotient(steps * (blockIdx.z + 1), gridDim.z);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = by_groups ? warp * 16 : warp / WN * (BM / WM), warp_column = by_groups ? 0 : warp % WN * (BN / WN);

  auto fetch = [&](int step) {
    if (step < end) {
      u8* tile = shared + step % STAGES * stage_bytes;
      copy_tile<BM, threads, x_chunks, K, true>(tile, x, K, first_row, rows, step * BK);
      copy_tile<BN, threads, BK / 16, padded, true>(tile + x_bytes, w, padded, first_column, first_column + BN, step * BK);
    }
    commit_copies();
  };

  i32 sums[MT][NT][4];
#pragma unroll
  for (int i = 0; i < MT * NT * 4; ++i) sums[i / 4 / NT][i / 4 % NT][i % 4] = 0;
  for (int step = begin; step < begin + ahead; ++step) fetch(step);
  for (int i = threadIdx.x; i < BN; i += threads) {
    const int column = least(first_column + i, N - 1);
    columns[i] = epilogue.column(bias[column], column);
  }
  for (int step = begin; step < end; ++step) {
    wait_copies<ahead - 1>();
    if constexpr (by_groups) publish_copies();
    __syncthreads();
    const u8* x_tile = shared + step % STAGES * stage_bytes;
    const u8* w_tile = x_tile + x_bytes;
    if constexpr (!by_groups) {
      fetch(step + ahead);
      multiply_tiles<is_unsigned, is_wide, BK>(sums, x_tile, w_tile, warp_row, warp_column);
    } else {
      begin_group_mma();
#pragma unroll
      for (int part = 0; part < BK / 32; ++part)
        group_mma<is_unsigned, BK>(sums[0], x_tile + warp / 4 * 64 * BK + part * 32, w_tile + part * 32);
      commit_group_mma();
      fetch(step + ahead);
      wait_group_mma<1>();
    }
  }
  if constexpr (by_groups) wait_group_mma<0>(sums[0]);
  wait_copies<0>();

  if (gridDim.z > 1) {
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
    const auto first = columns[in_tile], second = columns[in_tile + 1];
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
      *(Pair<Y>*)at = {(Y)epilogue(sum[0], first, summand.first), (Y)epilogue(sum[1], second, summand.second)};
    }
  }
  __syncthreads();
  move_tile<BN, N, threads, true>(shared, y + corner, height, width);
}
