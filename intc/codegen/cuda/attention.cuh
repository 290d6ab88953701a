// Fused attention of integers: 16 rows of queries for a warp, or for several that divide the keys. The weights are
// relative to the row's largest score. Where one tile has all keys, scores stay in registers until that is known;
// otherwise they are computed twice. Weights go from there straight into the product with the values.
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

// A part [16, 32] of a tile: the signed bytes themselves, or (`wide`) low bytes, unsigned, and signed high bytes, as
// split_bytes has put them; in the form that mma takes as its first operand, or (`columns`) as two second operands, of
// 8 rows each.
template <bool wide, bool columns>
struct Digits {
  u32 low[4], high[4];

  // from a `row` that is a multiple of 8
  template <int chunks>
  __device__ __forceinline__ void load(const u8* tile, int row, int part) {
    const int lane = threadIdx.x % 32, chunk = part * 2 + (columns ? lane / 8 % 2 : lane / 16);
    const int at = columns ? lane % 8 + lane / 16 * 8 : lane % 16;
    tile += row * chunks * 16;
    load_matrices(low, tile + chunk_at<chunks>(at, wide ? chunk * 2 : chunk));
    if constexpr (wide) load_matrices(high, tile + chunk_at<chunks>(at, chunk * 2 + 1));
  }
};

// 16-bit values to bytes, in place: of every two chunks the first gets the low ones, the second the high ones
template <int height, int threads, int chunks>
DEVICE void split_bytes(u8* tile) {
  constexpr int pairs = chunks / 2, pieces = height * pairs;
  constexpr bool steady = threads % (8 * pairs) == 0;  // whole turns of chunk_at, whose addresses follow from the first
#pragma unroll
  for (int start = 0; start < pieces; start += threads) {
    if (pieces % threads && start + threadIdx.x >= pieces) break;
    const int i = threadIdx.x + (steady ? 0 : start), row = i / pairs, chunk = i % pairs * 2;
    u8* const rows = tile + (steady ? start * 32 : 0);
    uint4& first = *(uint4*)(rows + chunk_at<chunks>(row, chunk));
    uint4& second = *(uint4*)(rows + chunk_at<chunks>(row, chunk + 1));
    const uint4 a = first, b = second;
    first = make_uint4(__byte_perm(a.x, a.y, 0x6420), __byte_perm(a.z, a.w, 0x6420), __byte_perm(b.x, b.y, 0x6420),
                       __byte_perm(b.z, b.w, 0x6420));
    second = make_uint4(__byte_perm(a.x, a.y, 0x7531), __byte_perm(a.z, a.w, 0x7531), __byte_perm(b.x, b.y, 0x7531),
                        __byte_perm(b.z, b.w, 0x7531));
  }
}

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

// Numbers of the lanes of warps that share rows, passed through shared memory: 16 bytes a lane at a time.
DEVICE void give(u8* area, int warp, int item, int items, const i32 (&x)[4]) {
  *(uint4*)(area + ((warp * items + item) * 32 + threadIdx.x % 32) * 16) =
      make_uint4((u32)x[0], (u32)x[1], (u32)x[2], (u32)x[3]);
}
DEVICE uint4 taken(const u8* area, int warp, int item, int items) {
  return *(const uint4*)(area + ((warp * items + item) * 32 + threadIdx.x % 32) * 16);
}

// `KEYS` a tile; `held`: it has all keys, and scores stay in registers. Each of `groups` of 16 rows has `splits` warps,
// which divide the keys of a tile. `fixed_keys` is sk where that is known, else 0. `by_query`: the mask differs from
// query to query. `uniform` says whether a row that keeps nothing weighs all keys alike, `vanishing` that the distance
// of LOWEST from any score weighs nothing; `finish` makes an output of a normalised sum and its column.
template <int heads, int kv_heads, int dim, int q_row, int k_row, int v_row, int out_row, bool aligned, int groups,
          int splits, int KEYS, bool held, int fixed_keys, bool masked, bool by_query, bool biased, bool uniform,
          bool vanishing, class Weigh, class Q, class K, class Y, class Finish>
DEVICE void attention(const Q* __restrict__ q, const K* __restrict__ k, const i8* __restrict__ v,
                      Y* __restrict__ out, int sq, int sk, const Weigh& weigh, const Beside<u8>& mask,
                      const Beside<i32>& summand, const Finish& finish) {
  constexpr i32 LOWEST = -2147483647 - 1;  // below every score: that of a key that does not count
  constexpr int warps = groups * splits, threads = warps * 32, share = KEYS / splits;
  constexpr int depth = (dim + 31) / 32, chunks = depth * 2, columns = (dim + 15) / 16, items = columns * 2 + 1;
  constexpr int k_stride = k_row ? k_row : dim, v_stride = v_row ? v_row : dim, q_stride = q_row ? q_row : dim;
  constexpr int y_stride = out_row ? out_row : dim;
  constexpr int q_chunks = chunks * sizeof(Q), k_chunks = chunks * sizeof(K), k_bytes = KEYS * k_chunks * 16;
  constexpr int front = groups * 256 * q_chunks + k_bytes, exchanged = splits > 1 ? warps * items * 512 : 0;
  constexpr int known = held ? fixed_keys : 0, key_rows = known ? (known + 15) / 16 * 16 : KEYS;  // with scores
  constexpr bool q_wide = sizeof(Q) > 1, k_wide = sizeof(K) > 1;
  static_assert(share % 16 == 0 && (held || splits == 1), "warps that share rows have whole blocks of all keys");
  if (fixed_keys) sk = fixed_keys;
  const i64 batch = blockIdx.x / heads;
  const int head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
  const int lane = threadIdx.x % 32, t = lane % 4, first_query = blockIdx.y * groups * 16;
  const int warp = threadIdx.x / 32, group = warp / splits, part = warp % splits;
  const int mine = fixed_keys || splits == 1 ? share : (sk + 32 * splits - 1) / (32 * splits) * 32, own = part * mine;
  const int row = first_query + group * 16 + lane / 4;  // and row + 8
  const bool idle = first_query + group * 16 >= sq;
  q += head_start<heads, dim, q_row>(batch, head, sq);
  k += head_start<kv_heads, dim, k_row>(batch, kv_head, sk);
  v += head_start<kv_heads, dim, v_row>(batch, kv_head, sk);
  out += head_start<heads, dim, out_row>(batch, head, sq);
  const u8* mask_rows[2];
  const i32* summand_rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = least(row + i * 8, sq - 1);
    if (masked) mask_rows[i] = mask.row(batch, head, by_query ? query : 0);
    if (biased) summand_rows[i] = summand.row(batch, head, query);
  }

  Digits<q_wide, false> a[depth];
  i32 scores[held ? share / 16 : 2][2][4];  // of 16 keys: element i of columns j is of key j * 8 + t * 2 + i % 2
  auto start = [&](i32 (&s)[2][4], int key) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = key + i / 4 * 8 + t * 2 + i % 2;
      s[i / 4][i % 4] = biased && column < sk ? summand_rows[i % 4 / 2][column] : 0;
    }
  };
  u32 kept[(share + 31) / 32];  // a bit for each key from `first` on that counts
  auto look = [&](int first) {
#pragma unroll
    for (int i = 0; i * 32 < share; ++i) {
      const int key = first + i * 32, column = key + lane;
      kept[i] = key + 32 <= sk ? 0xffffffff : key < sk ? (1u << sk - key) - 1 : 0;
      if (masked && !by_query) kept[i] &= __ballot_sync(ALL_LANES, mask_rows[0][least(column, sk - 1)] != 0);
    }
  };
  constexpr int step_keys = q_wide && k_wide ? 16 : 32;  // as many as leave registers for the scores
  // those of `step_keys` at `at` of the tile, as far as it goes
  auto score = [&](const u8* tile, int at, int first) {
    const int count = least(share - at, step_keys), begin = held ? at / 16 : at % 32 / 16;
#pragma unroll
    for (int half = 0; half < step_keys / 16; ++half) {
      if (at + half * 16 >= share) break;
      i32(&s)[2][4] = scores[begin + half];
      if (!(held && biased)) start(s, first + at + half * 16);
      i32 middle[2][4] = {}, upper[2][4] = {};
#pragma unroll
      for (int d = 0; d < depth; ++d) {
        Digits<k_wide, true> b;
        b.template load<k_chunks>(tile, at + half * 16, d);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const u32 low[2] = {b.low[c * 2], b.low[c * 2 + 1]};
          mma<q_wide, k_wide>(s[c], a[d].low, low);
          if constexpr (q_wide) mma<false, k_wide>(middle[c], a[d].high, low);
          if constexpr (k_wide) {
            const u32 high[2] = {b.high[c * 2], b.high[c * 2 + 1]};
            mma<q_wide, false>(middle[c], a[d].low, high);
            if constexpr (q_wide) mma<false, false>(upper[c], a[d].high, high);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 8 && (q_wide || k_wide); ++i)
        s[i / 4][i % 4] += ((u32)middle[i / 4][i % 4] << 8) + ((u32)upper[i / 4][i % 4] << 16);
    }
    const u32 bits = kept[at / 32] >> at % 32, all = count == 32 ? 0xffffffff : 0xffff;
    const bool whole = (splits - 1) * share + at + count <= known;
    if (masked && by_query || (masked || !whole) && (bits & all) != all)
#pragma unroll
      for (int i = 0; i < step_keys / 2; ++i) {
        if (at + i / 8 * 16 >= share) break;
        const int bit = i / 4 * 8 + t * 2 + i % 2;
        bool counts = bits >> bit & 1;
        if (masked && by_query) counts &= mask_rows[i % 4 / 2][least(first + at + bit, sk - 1)] != 0;
        i32& s = scores[begin + i / 8][i / 4 % 2][i % 4];
        s = counts ? s : LOWEST;
      }
  };
  i32 top[2] = {LOWEST, LOWEST};
  auto find_largest = [&](const u8* tile, int first) {
    if (!held) look(first);
#pragma unroll
    for (int at = 0; at < share; at += step_keys) {
      if (at >= mine || !(known && splits == 1) && first + at >= sk) break;
      score(tile, at, first);
#pragma unroll
      for (int i = 0; i < step_keys / 2; ++i) {
        if (at + i / 8 * 16 >= share) break;
        const auto& s = scores[(held ? at / 16 : at % 32 / 16) + i / 8];
        top[i % 4 / 2] = most<i32>(top[i % 4 / 2], s[i / 4 % 2][i % 4]);
      }
    }
  };
  i32 totals[4] = {0, 0, 0, 0}, sums[columns][2][4];
#pragma unroll
  for (int i = 0; i < columns * 8; ++i) sums[i / 8][i / 4 % 2][i % 4] = 0;
  auto add_weighted = [&](const u8* tile, const u8* values, int first) {
    if (!held) look(first);
#pragma unroll
    for (int at = 0; at < share; at += 32) {
      if (at >= mine || !(known && splits == 1) && first + at >= sk) break;
#pragma unroll
      for (int more = 0; more < 32 && !held; more += step_keys) score(tile, at + more, first);
      u32 weights[4] = {0, 0, 0, 0}, ones[2] = {0x01010101, 0x01010101};
#pragma unroll
      for (int half = 0; half < 2 && at + half * 16 < share; ++half) {
        auto& s = scores[(held ? at / 16 : 0) + half];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          u32 w[4], keep = 0;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const i32 x = s[j / 2][i * 2 + j % 2];
            w[j] = weigh((u32)top[i] - (u32)x);
            if (x != LOWEST || uniform && top[i] == LOWEST) keep |= 255u << j * 8;
          }
          weights[half * 2 + i] = round_weights(w) & (masked && !vanishing ? keep : 0xffffffff);
        }
      }
      // keys beyond the last one have zeros among the values
      if ((splits - 1) * share + at + 32 > known && first + at + 32 > sk)
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (first + at + i / 2 * 8 + t * 2 + i % 2 >= sk) ones[i / 4] &= ~(255u << i % 4 * 8);
      mma<true>(totals, weights, ones);
#pragma unroll
      for (int c = 0; c < columns; ++c) {
        u32 pairs[4];
        load_transposed(pairs, values + chunk_at<chunks>(at + 32 <= share ? lane : lane % 16, c) + at * chunks * 16);
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const u32 order = odd ? 0x7531 : 0x6420;
          const u32 b[2] = {__byte_perm(pairs[0], pairs[1], order), __byte_perm(pairs[2], pairs[3], order)};
          mma<true>(sums[c][odd], weights, b);
        }
      }
    }
  };

  u8* const buffers = dynamic_shared() + groups * 256 * q_chunks;
  u8* const tops = dynamic_shared() + most(front, exchanged);
  auto fetch_keys = [&](u8* to, int first) {
    copy_rows<key_rows, threads, k_chunks, dim * sizeof(K), k_stride * sizeof(K), aligned>(to, (const i8*)k, first, sk);
  };
  auto fetch_values = [&](u8* to, int first) {
    copy_rows<KEYS, threads, chunks, dim, v_stride, aligned>(to, v, first, sk);
  };
  auto split = [&](u8* keys, bool queries) {
    if (q_wide && queries) split_bytes<groups * 16, threads, q_chunks>(dynamic_shared());
    if (k_wide) split_bytes<key_rows, threads, k_chunks>(keys);
    if (k_wide || q_wide && queries) __syncthreads();
  };
  auto begin = [&] {
#pragma unroll
    for (int d = 0; d < depth; ++d) a[d].template load<q_chunks>(dynamic_shared(), group * 16, d);
  };
  auto end_largest = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2)
        top[i] = most<i32>(top[i], __shfl_xor_sync(ALL_LANES, top[i], distance));
  };
  auto keep_nothing = [&] {  // all weights 255, or none
#pragma unroll
    for (int i = 0; i < 2 && !uniform; ++i) top[i] = masked && top[i] == LOWEST ? 0 : top[i];
  };
  copy_rows<groups * 16, threads, q_chunks, dim * sizeof(Q), q_stride * sizeof(Q), aligned>(
      dynamic_shared(), (const i8*)q, first_query, sq);
  if constexpr (held) {
    u8* const values = tops + (splits > 1 ? warps * 256 : 0);
    fetch_keys(buffers, 0);
    commit_copies();
    fetch_values(values, 0);
    commit_copies();
    look(own);
#pragma unroll
    for (int i = 0; i < share / 16 && biased; ++i) start(scores[i], own + i * 16);
    wait_copies<1>();
    __syncthreads();
    split(buffers, true);
    begin();
    if (!idle) find_largest(buffers + own * k_chunks * 16, own);
    end_largest();
    if (splits > 1) *(uint2*)(tops + threadIdx.x * 8) = {(u32)top[0], (u32)top[1]};
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int other = 0; other < splits && splits > 1; ++other) {
      const uint2 theirs = *(const uint2*)(tops + ((group * splits + other) * 32 + lane) * 8);
      top[0] = most<i32>(top[0], (i32)theirs.x), top[1] = most<i32>(top[1], (i32)theirs.y);
    }
    keep_nothing();
    if (!idle) add_weighted(buffers, values + own * chunks * 16, own);
    if constexpr (splits > 1) {
      give(dynamic_shared(), warp, columns * 2, items, totals);
#pragma unroll
      for (int c = 0; c < columns * 2; ++c) give(dynamic_shared(), warp, c, items, sums[c / 2][c % 2]);
      __syncthreads();
    }
  } else {
    // a pass over the tiles of keys for the largest score, another for the weights
    const int tiles = (sk + KEYS - 1) / KEYS;
    constexpr int tile_bytes = k_bytes + KEYS * chunks * 16;
    auto fetch = [&](int step) {
      u8* to = buffers + step % 2 * tile_bytes;
      const int first = (step < tiles ? step : step - tiles) * KEYS;
      if (step < 2 * tiles) fetch_keys(to, first);
      if (step >= tiles && step < 2 * tiles) fetch_values(to + k_bytes, first);
      commit_copies();
    };
    // the tile of this step, once every warp is done with the one before
    auto arrive = [&](int step) {
      wait_copies<0>();
      __syncthreads();
      fetch(step + 1);
      split(buffers + step % 2 * tile_bytes, step == 0);
      return buffers + step % 2 * tile_bytes;
    };
    fetch(0);
    int step = 0;
#pragma unroll 1
    for (; step < tiles; ++step) {
      const u8* tile = arrive(step);
      if (step == 0) begin();
      if (!idle) find_largest(tile, step * KEYS);
    }
    end_largest();
    keep_nothing();
#pragma unroll 1
    for (; step < 2 * tiles; ++step) {
      const u8* tile = arrive(step);
      if (!idle) add_weighted(tile, tile + k_bytes, (step - tiles) * KEYS);
    }
    wait_copies<0>();
  }

  i32 factors[2], left[2], right[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    i32 total = totals[i * 2];
    for (int other = 1; other < splits; ++other) {
      const uint4 theirs = taken(dynamic_shared(), warp ^ other, columns * 2, items);
      total += (i32)(i ? theirs.z : theirs.x);
    }
    total = most<i32>(total, 1);
    const i32 bits = 32 - __clz(total);
    left[i] = most<int>(23 - bits, 0);
    right[i] = fixed_keys && fixed_keys * 255 < 1 << 23 ? 0 : most<int>(bits - 23, 0);
    factors[i] = reciprocal(total);
  }
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    if (splits > 1 && c % splits != part) continue;
    for (int other = 1; other < splits; ++other)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const uint4 theirs = taken(dynamic_shared(), warp ^ other, c * 2 + odd, items);
        i32(&x)[4] = sums[c][odd];
        x[0] += (i32)theirs.x, x[1] += (i32)theirs.y, x[2] += (i32)theirs.z, x[3] += (i32)theirs.w;
      }
    struct alignas(4 * sizeof(Y)) Four { Y of[4]; } y[2];
    const int column = c * 16 + t * 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (dim % 16 && column + j >= dim) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const i32 moved = sums[c][j % 2][i * 2 + j / 2] << left[i] >> right[i];
        const i32 value = (__mulhi(moved, factors[i]) + 4096) >> 13;
        y[i].of[j] = (Y)finish(value, head * dim + column + j);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (row + i * 8 >= sq || column >= dim) continue;
      Y* to = out + (i64)(row + i * 8) * y_stride + column;
      if (dim % 4 == 0) *(Four*)to = y[i];
#pragma unroll
      for (int j = 0; j < 4 && dim % 4; ++j)
        if (column + j < dim) to[j] = y[i].of[j];
    }
  }
}
