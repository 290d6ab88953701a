// Fused attention of integers, four warps with 16 rows of queries each. The weights are relative to the row's largest
// score, so the scores are computed twice: for their maximum, then for the weights, which go from the registers that
// mma leaves scores in straight into the product with the values.
//
// Within 32 keys that product sums in the order in which lanes hold the weights: lane 4g + t has keys 2t, 2t + 1,
// 8 + 2t, 8 + 2t + 1 for its first four factors and those 16 further on for the others.

constexpr int KEYS = 64;  // a tile
constexpr int QUERIES = 64;
constexpr int ATTENTION_THREADS = 128;
constexpr i32 LOWEST = -2147483647 - 1;  // below every score

DEVICE int key_of_slot(int slot) { return slot / 16 * 16 + slot / 2 % 2 * 8 + slot % 16 / 4 * 2 + slot % 2; }

// how a tensor of heads lies: rows of `row` elements that hold all heads (tokens first), or (row = 0) heads first
template <int heads, int dim, int row>
DEVICE i64 head_start(i64 batch, int head, i64 length) {
  return row ? batch * length * row + head * dim : (batch * heads + head) * length * dim;
}

// values of KEYS keys as columns, 64 keys a row in the order of slots
template <int dim, int stride, bool words>
DEVICE void copy_values(u8* tile, const i8* v, int first, int keys) {
  for (int i = threadIdx.x; i < KEYS / 4 * ((dim + 3) / 4); i += ATTENTION_THREADS) {
    const int slot = i % (KEYS / 4) * 4, column = i / (KEYS / 4) * 4;
    u32 rows[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int key = first + key_of_slot(slot + k);
      const i8* from = v + (i64)key * stride + column;
      rows[k] = 0;
      if (key < keys) {
        if (words) {
          rows[k] = *(const u32*)from;
        } else {
          for (int j = 0; j < 4 && column + j < dim; ++j) rows[k] |= (u32)(u8)from[j] << 8 * j;
        }
      }
    }
    const u32 even_low = __byte_perm(rows[0], rows[1], 0x5140), even_high = __byte_perm(rows[0], rows[1], 0x7362);
    const u32 odd_low = __byte_perm(rows[2], rows[3], 0x5140), odd_high = __byte_perm(rows[2], rows[3], 0x7362);
    const u32 columns[4] = {__byte_perm(even_low, odd_low, 0x5410), __byte_perm(even_low, odd_low, 0x7632),
                            __byte_perm(even_high, odd_high, 0x5410), __byte_perm(even_high, odd_high, 0x7632)};
#pragma unroll
    for (int j = 0; j < 4; ++j) *(u32*)(tile + chunk_at<4>(column + j, slot / 16) + slot % 16) = columns[j];
  }
}

// The rule: `uniform` says whether a row that keeps nothing weighs all keys alike, `keep` is the mask, `bias` a
// summand of the scores, `weight` makes a weight of a score's distance from the largest, `finish` the output of a
// normalised sum.
template <int heads, int kv_heads, int dim, int q_row, int k_row, int v_row, int out_row, bool aligned, bool words,
          class Y, class Rule>
DEVICE void attention(const i8* __restrict__ q, const i8* __restrict__ k, const i8* __restrict__ v,
                      Y* __restrict__ out, int sq, int sk, const Rule& rule) {
  constexpr int depth = (dim + 31) / 32, chunks = depth * 2, columns = (dim + 15) / 16 * 2;
  constexpr int k_stride = k_row ? k_row : dim, v_stride = v_row ? v_row : dim, q_stride = q_row ? q_row : dim;
  constexpr int k_bytes = KEYS * chunks * 16;
  u8* q_tile = dynamic_shared();
  u8* k_tiles = q_tile + QUERIES * chunks * 16;
  u8* v_tile = k_tiles + 2 * k_bytes;
  const i64 batch = blockIdx.x / heads;
  const int head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
  const int first = blockIdx.y * QUERIES, lane = threadIdx.x % 32, t = lane % 4;
  const int row = first + threadIdx.x / 32 * 16 + lane / 4;  // and row + 8
  q += head_start<heads, dim, q_row>(batch, head, sq);
  k += head_start<kv_heads, dim, k_row>(batch, kv_head, sk);
  v += head_start<kv_heads, dim, v_row>(batch, kv_head, sk);
  out += head_start<heads, dim, out_row>(batch, head, sq);
  const int tiles = (sk + KEYS - 1) / KEYS;

  auto fetch = [&](int tile) {
    u8* to = k_tiles + tile % 2 * k_bytes;
    if (tile < tiles)
      copy_tile<KEYS, ATTENTION_THREADS, chunks, dim, aligned>(to, k, k_stride, tile * KEYS, sk, 0);
    commit_copies();
  };
  u32 a[depth][4];
  i32 scores[KEYS / 8][4];
  // the scores of this warp's rows and the keys of `tile`, when all but the latest copies have arrived
  auto score = [&](int tile) {
    wait_copies<1>();
    __syncthreads();
    const u8* k_tile = k_tiles + tile % 2 * k_bytes;
#pragma unroll
    for (int d = 0; d < depth; ++d) load_rows<chunks>(a[d], q_tile, threadIdx.x / 32 * 16, d);
#pragma unroll
    for (int j = 0; j < KEYS / 8; j += 2) {
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[j + i / 4][i % 4] = 0;
#pragma unroll
      for (int d = 0; d < depth; ++d) {
        u32 b[2][2];
        load_columns<chunks>(b[0], b[1], k_tile, j * 8, d);
        mma<false>(scores[j], a[d], b[0]);
        mma<false>(scores[j + 1], a[d], b[1]);
      }
    }
  };
  // the score of element i of columns j of `tile`; whether its key exists and is kept
  auto kept = [&](int tile, int j, int i, i32& value) {
    const int query = row + i / 2 * 8, key = tile * KEYS + j * 8 + t * 2 + i % 2;
    if (query >= sq || key >= sk || !rule.keep(batch, head, query, key)) return false;
    value = scores[j][i] + rule.bias(batch, head, query, key);
    return true;
  };

  copy_tile<QUERIES, ATTENTION_THREADS, chunks, dim, aligned>(q_tile, q, q_stride, first, sq, 0);
  fetch(0);
  i32 top[2] = {LOWEST, LOWEST};
  for (int tile = 0; tile < tiles; ++tile) {
    fetch(tile + 1);
    score(tile);
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        i32 value;
        if (kept(tile, j, i, value)) top[i / 2] = most<i32>(top[i / 2], value);
      }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2)
      top[i] = most<i32>(top[i], __shfl_xor_sync(ALL_LANES, top[i], distance));

  i32 total[2] = {0, 0}, sums[columns][4];
#pragma unroll
  for (int i = 0; i < columns * 4; ++i) sums[i / 4][i % 4] = 0;
  fetch(0);
  for (int tile = 0; tile < tiles; ++tile) {
    fetch(tile + 1);
    copy_values<dim, v_stride, words>(v_tile, v, tile * KEYS, sk);
    score(tile);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      u32 weights[4] = {0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          i32 value;
          const int key = tile * KEYS + (half * 4 + j) * 8 + t * 2 + i % 2;
          const bool empty = rule.uniform && top[i / 2] == LOWEST && key < sk;  // a row that keeps nothing
          const i32 weight = kept(tile, half * 4 + j, i, value) ? rule.weight(top[i / 2] - value) : empty * 255;
          total[i / 2] += weight;
          weights[j / 2 * 2 + i / 2] |= (u32)weight << (j % 2 * 16 + i % 2 * 8);
        }
#pragma unroll
      for (int c = 0; c < columns; c += 2) {
        u32 b[2][2];
        load_columns<4>(b[0], b[1], v_tile, c * 8, half);
        mma<true>(sums[c], weights, b[0]);
        mma<true>(sums[c + 1], weights, b[1]);
      }
    }
    __syncthreads();
  }
  wait_copies<0>();

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    for (int distance = 1; distance < 4; distance *= 2)
      total[i] += __shfl_xor_sync(ALL_LANES, total[i], distance);
    const i64 safe = most<i32>(total[i], 1);
    const int bits = bit_length(safe), left = most<int>(23 - bits, 0), right = most<int>(bits - 23, 0);
    const i64 factor = quotient((1ull << (30 + bits)) - 1, (u64)safe);
    if (row + i * 8 >= sq) continue;
#pragma unroll
    for (int c = 0; c < columns; ++c)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int column = c * 8 + t * 2 + k;
        const i64 moved = (i64)sums[c][i * 2 + k] << left >> right;
        const i64 value = ((moved * factor >> 32) + 4096) >> 13;
        if (column < dim)
          out[(i64)(row + i * 8) * (out_row ? out_row : dim) + column] =
              (Y)rule.finish((i32)least<i64>(most<i64>(value, -32767), 32767), head * dim + column);
      }
  }
}
