// Fused attention of integers, 16 rows of queries a warp. The weights are relative to the row's largest score, so the
// scores are computed twice: for their maximum, then for the weights, which go from the registers that mma leaves
// scores in straight into the product with the values. Where one tile has all keys they stay in registers instead.
//
// Lane 4g + t holds weights of keys 2t, 2t + 1, 8 + 2t, 9 + 2t of every 16, so these are its four factors of that
// product, whose values come in the same order. A second product, by ones, gives the sums of the weights. Keys beyond
// the last one have zeros there and among the values; rows beyond the last one are computed and not stored.

// What lies beside the scores, element by element: a mask (not 0 = keep) or a summand.
template <class T>
struct Beside {
  const T* __restrict__ data;
  i32 batch_stride, head_stride, query_stride;

  __device__ __forceinline__ const T* row(i64 batch, int head, int query) const {
    return data + batch * batch_stride + head * head_stride + (i64)query * query_stride;
  }
};

// ShiftWeights: `bounded_distance`, then `exp2_weight` of intc/ops/scalar.py with their roundings moved into constants.
struct Weights {
  u32 m, shift, limit;

  __device__ __forceinline__ Weights(i32 m, i32 shift)
      : m((u32)m << most(-shift, 0)), shift(most(shift, 0)),
        limit(shift < 0 ? 32767u >> -shift : (32768u << shift) - 1) {}

  // the weight in Q16, half a unit added: the third byte is the rounded weight
  __device__ __forceinline__ u32 operator()(u32 distance) const {
    const u32 t = (least(distance, limit) >> shift) * m + (1 << 14) + (16 << 25);  // Q25 octaves, and 16 of them
    const u32 r = t & 0x01ff8000;                                               // of one octave, whole units of Q10
    // the slope, its constant term subtracted: mulhrs(r << 5, A - ONE / 2) - A
    const u32 slope = (u32)(((u64)r * (5545 << 7) + (1u << 31) - (21865ull << 32)) >> 32);  // of a negative number
    const u64 parabola = (u64)r * slope + (((255ull << 7) * 1024 + 511) << 15);  // and 2**32 * r
    return __funnelshift_rc((u32)parabola, (u32)(parabola >> 32) - r, t >> 25) + (1 << 15);
  }
};

// floor((2**(30 + b) - 1) / total) for 0 < total < 2**24 of b bits: Newton's steps, then what they miss
DEVICE i32 reciprocal(i32 total) {
  const u32 d = (u32)total << __clz(total);  // in [2**31, 2**32), the result near 2**62 / d
  i32 q = (i32)(3031741621u - (u32)((u64)d * 2021161081u >> 32));
#pragma unroll
  for (int step = 0; step < 3; ++step) {
    const i32 error = (1 << 30) - (i32)((u64)d * (u32)q >> 32);
    q += (i32)((i64)q * (error * 4) >> 32);
  }
  q -= 2;  // now at most 3 too small
  u32 rest = (total > 1 ? 0xffffffffu : 0x7fffffffu) - (u32)q * (u32)total;  // of the dividend's low word
#pragma unroll
  for (u32 more = 2; more; --more) {
    const bool fits = rest >= more * total;
    rest -= fits ? more * total : 0;
    q += fits ? more : 0;
  }
  return q;
}

// A part [16, 32] of a tile as signed bytes in the form that mma takes as its first operand: the values themselves, or
// (`wide`) 256 * high + low. Registers c and c + 2 are the second operand that has the part's rows from 8 * c on.
template <bool wide>
struct Digits {
  u32 low[4], high[4];

  template <int chunks>
  __device__ __forceinline__ void load(const u8* tile, int row, int part) {
    if constexpr (wide) {
      load_wide_rows<chunks>(low, high, tile, row, part);
#pragma unroll
      for (int i = 0; i < 4; ++i)  // what low bytes read as signed lose
        high[i] = (high[i] & 0x7f7f7f7f) + (low[i] >> 7 & 0x01010101) ^ high[i] & 0x80808080;
    } else {
      load_rows<chunks>(low, tile, row, part);
    }
  }
};

// how a tensor of heads lies: rows of `row` elements that hold all heads (tokens first), or (row = 0) heads first
template <int heads, int dim, int row>
DEVICE i64 head_start(i64 batch, int head, i64 length) {
  return row ? batch * length * row + head * dim : (batch * heads + head) * length * dim;
}

// copy_tile for rows of bytes at a fixed distance, all of whose addresses follow from the first
template <int height, int threads, int chunks, int width, int stride, bool aligned>
DEVICE void copy_rows(u8* tile, const i8* data, int first, int rows) {
  constexpr int together = threads / chunks;  // rows
  if (!aligned || together % 8) return copy_tile<height, threads, chunks, width, aligned>(tile, data, stride, first, rows, 0);
  const int row = threadIdx.x / chunks, chunk = threadIdx.x % chunks;
  const i8* from = data + (i64)(first + row) * stride + chunk * 16;
  u8* to = tile + chunk_at<chunks>(row, chunk);
#pragma unroll
  for (int i = 0; i < height; i += together)
    if (i + together <= height || i + row < height)
      copy_async(to + i * chunks * 16, from + i * stride, first + row + i < rows && chunk * 16 < width);
}

// `KEYS` a tile; `fixed_keys` is sk where that is known, else 0. `uniform` says whether a row that keeps nothing
// weighs all keys alike; `finish` makes an output of a normalised sum and its column.
template <int heads, int kv_heads, int dim, int q_row, int k_row, int v_row, int out_row, bool aligned, int warps,
          int KEYS, int fixed_keys, bool masked, bool biased, bool uniform, class Q, class K, class Y, class Finish>
DEVICE void attention(const Q* __restrict__ q, const K* __restrict__ k, const i8* __restrict__ v,
                      Y* __restrict__ out, int sq, int sk, const Weights& weigh, const Beside<u8>& mask,
                      const Beside<i32>& summand, const Finish& finish) {
  constexpr i32 LOWEST = -2147483647 - 1;  // below every score
  constexpr int threads = warps * 32, depth = (dim + 31) / 32, chunks = depth * 2, columns = (dim + 15) / 16;
  constexpr int k_stride = k_row ? k_row : dim, v_stride = v_row ? v_row : dim, q_stride = q_row ? q_row : dim;
  constexpr int y_stride = out_row ? out_row : dim;
  constexpr int q_chunks = chunks * sizeof(Q), k_chunks = chunks * sizeof(K), k_bytes = KEYS * k_chunks * 16;
  constexpr bool q_wide = sizeof(Q) > 1, k_wide = sizeof(K) > 1;
  constexpr bool once = 0 < fixed_keys && fixed_keys <= KEYS;
  if (fixed_keys) sk = fixed_keys;
  const i64 batch = blockIdx.x / heads;
  const int head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
  const int lane = threadIdx.x % 32, t = lane % 4, first_query = blockIdx.y * warps * 16;
  const int first_row = first_query + threadIdx.x / 32 * 16, row = first_row + lane / 4;  // and row + 8
  const bool idle = first_row >= sq;
  q += head_start<heads, dim, q_row>(batch, head, sq);
  k += head_start<kv_heads, dim, k_row>(batch, kv_head, sk);
  v += head_start<kv_heads, dim, v_row>(batch, kv_head, sk);
  out += head_start<heads, dim, out_row>(batch, head, sq);
  const u8* mask_rows[2];
  const i32* summand_rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = least(row + i * 8, sq - 1);
    if (masked) mask_rows[i] = mask.row(batch, head, query);
    if (biased) summand_rows[i] = summand.row(batch, head, query);
  }

  // a pass over the tiles of keys for the largest score, another for the weights
  const int tiles = (sk + KEYS - 1) / KEYS, steps = once ? 1 : 2 * tiles;
  u8* buffers = dynamic_shared() + warps * 16 * q_chunks * 16;
  constexpr int tiles_bytes = k_bytes + KEYS * chunks * 16;
  auto fetch = [&](int step) {
    u8* to = buffers + (once ? 0 : step % 2 * tiles_bytes);
    const bool values = once || step >= tiles;
    const int first = (once || !values ? step : step - tiles) * KEYS;
    if (step < steps) {
      copy_rows<KEYS, threads, k_chunks, dim * sizeof(K), k_stride * sizeof(K), aligned>(to, (const i8*)k, first, sk);
      if (values) copy_rows<KEYS, threads, chunks, dim, v_stride, aligned>(to + k_bytes, v, first, sk);
    }
    commit_copies();
  };
  // the tile of this step, once every warp is done with the one before
  auto arrive = [&](int step) {
    wait_copies<0>();
    __syncthreads();
    if (!once) fetch(step + 1);
    return buffers + (once ? 0 : step % 2 * tiles_bytes);
  };

  Digits<q_wide> a[depth];
  i32 scores[once ? KEYS / 16 : 2][2][4];  // of 16 keys: element i of columns j is of key j * 8 + t * 2 + i % 2
  // those of 16 keys from `key` on, which lie at `at` of the tile; `whole`: all of them exist
  auto score = [&](i32 (&s)[2][4], const u8* tile, int at, int key, bool whole) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = key + i / 4 * 8 + t * 2 + i % 2;
      s[i / 4][i % 4] = biased && (whole || column < sk) ? summand_rows[i % 4 / 2][column] : 0;
    }
    i32 middle[2][4] = {}, upper[2][4] = {};
#pragma unroll
    for (int d = 0; d < depth; ++d) {
      Digits<k_wide> b;
      b.template load<k_chunks>(tile, at, d);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const u32 low[2] = {b.low[c], b.low[c + 2]};
        mma<false>(s[c], a[d].low, low);
        if constexpr (q_wide) mma<false>(middle[c], a[d].high, low);
        if constexpr (k_wide) {
          const u32 high[2] = {b.high[c], b.high[c + 2]};
          mma<false>(middle[c], a[d].low, high);
          if constexpr (q_wide) mma<false>(upper[c], a[d].high, high);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8 && (q_wide || k_wide); ++i)
      s[i / 4][i % 4] += ((u32)middle[i / 4][i % 4] << 8) + ((u32)upper[i / 4][i % 4] << 16);
  };
  i32 top[2] = {LOWEST, LOWEST};
  auto find_largest = [&](const u8* tile, int first, bool whole) {
#pragma unroll
    for (int at = 0; at < KEYS; at += 16) {
      if (!whole && first + at >= sk) break;
      auto& s = scores[once ? at / 16 : 0];
      score(s, tile, at, first + at, whole);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int row = i % 4 / 2, key = first + at + i / 4 * 8 + t * 2 + i % 2;
        const bool counts = (whole || key < sk) && (!masked || mask_rows[row][key]);
        top[row] = most<i32>(top[row], counts ? s[i / 4][i % 4] : LOWEST);
      }
    }
  };
  i32 totals[4] = {0, 0, 0, 0}, sums[columns][2][4];
#pragma unroll
  for (int i = 0; i < columns * 8; ++i) sums[i / 8][i / 4 % 2][i % 4] = 0;
  auto add_weighted = [&](const u8* tile, int first, bool whole) {
#pragma unroll
    for (int at = 0; at < KEYS; at += 32) {
      if (!whole && first + at >= sk) break;
      u32 weights[4] = {0, 0, 0, 0}, ones[2] = {0x01010101, 0x01010101};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int key = first + at + half * 16;
        if (!whole && key >= sk) {
          ones[half] = 0;
          break;
        }
        auto& s = scores[once ? at / 16 + half : half];
        if (!once) score(s, tile, at + half * 16, key, whole);
        if (!whole) ones[half] = 0;
#pragma unroll
        for (int i = 0; i < 4 && !whole; ++i) ones[half] |= (u32)(key + i / 2 * 8 + t * 2 + i % 2 < sk) << i * 8;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          u32 w[4], kept = 0;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int column = key + j / 2 * 8 + t * 2 + j % 2;
            w[j] = weigh((u32)top[i] - (u32)s[j / 2][i * 2 + j % 2]);
            if (masked && (whole || column < sk)) kept |= (mask_rows[i][column] ? 255u : 0u) << j * 8;
          }
          u32& word = weights[half * 2 + i];
          word = __byte_perm(__byte_perm(w[0], w[1], 0x0062), __byte_perm(w[2], w[3], 0x0062), 0x5410);
          if (masked) word &= kept;
          if (uniform && top[i] == LOWEST) word = 0xffffffff;  // the row keeps nothing
        }
      }
      mma<true>(totals, weights, ones);
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        u32 pairs[4];
        load_transposed(pairs, tile + k_bytes + chunk_at<chunks>(at + lane, c));
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const u32 order = odd ? 0x7531 : 0x6420;
          const u32 b[2] = {__byte_perm(pairs[0], pairs[1], order), __byte_perm(pairs[2], pairs[3], order)};
          mma<true>(sums[c][odd], weights, b);
        }
      }
    }
  };

  copy_rows<warps * 16, threads, q_chunks, dim * sizeof(Q), q_stride * sizeof(Q), aligned>(dynamic_shared(), (const i8*)q,
                                                                                           first_query, sq);
  fetch(0);
  const u8* tile = arrive(0);
#pragma unroll
  for (int d = 0; d < depth; ++d) a[d].template load<q_chunks>(dynamic_shared(), threadIdx.x / 32 * 16, d);
  int step = 0;
#pragma unroll 1
  for (; step < tiles; ++step) {
    if (step) tile = arrive(step);
    if (idle) continue;
    const int first = step * KEYS;
    if (first + KEYS <= sk) find_largest(tile, first, true);
    else find_largest(tile, first, false);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
      top[i] = most<i32>(top[i], __shfl_xor_sync(ALL_LANES, top[i], distance));
#pragma unroll 1
  for (; step < 2 * tiles; ++step) {
    if (!once) tile = arrive(step);
    if (idle) continue;
    const int first = (step - tiles) * KEYS;
    if (first + KEYS <= sk) add_weighted(tile, first, true);
    else add_weighted(tile, first, false);
  }
  wait_copies<0>();

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const i32 total = most<i32>(totals[i * 2], 1), bits = 32 - __clz(total);
    const i32 left = most<int>(23 - bits, 0), right = fixed_keys && fixed_keys * 255 < 1 << 23 ? 0 : most<int>(bits - 23, 0), factor = reciprocal(total);
    if (row + i * 8 >= sq) continue;
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      const int column = c * 16 + t * 4;
      Y* to = out + (i64)(row + i * 8) * y_stride + column;
      struct alignas(4 * sizeof(Y)) Four { Y of[4]; } y;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const i32 moved = sums[c][j % 2][i * 2 + j / 2] << left >> right;
        const i32 value = ((i32)((i64)moved * factor >> 32) + 4096) >> 13;
        if (dim % 16 == 0 || column + j < dim)
          y.of[j] = (Y)finish(least<i32>(most<i32>(value, -32767), 32767), head * dim + column + j);
        if (dim % 4 && column + j < dim) to[j] = y.of[j];
      }
      if (dim % 4 == 0 && column < dim) *(Four*)to = y;
    }
  }
}
