// LayerNorm of integers: the words of `ShiftLayerNorm.evaluate`, a row by `lanes` threads that keep it in registers.

constexpr int LAYER_NORM_THREADS = 128, LAYER_NORM_HELD = 8;  // pieces of a row that a thread keeps

// about 2**46 / sqrt(a), for a >= 2**30: a line (off by 9 % at most), then Newton's r (3 - a r^2) / 2
DEVICE u32 inverse_root(u32 a) {
  u32 r = 2290000000u - __umulhi(a, 1308500000u);
#pragma unroll
  for (int i = 0; i < 4; ++i) r = 2 * __umulhi(r, ((3u << 28) - __umulhi(__umulhi(r, r), a)) << 2);
  return least(r, 0x7fffffffu);
}

// The root d of 1 <= x < 2**62, and (2**(30 + bits) - 1) / d for the bits of d, both rounded down: estimates, and
// steps of one to the exact numbers.
DEVICE void root_and_inverse(u64 x, u32& root, u32& inverse, int& bits) {
  const int half = (__clzll(x) - 2) / 2;
  const u64 scaled = x << 2 * half;  // 2**60 <= scaled < 2**62
  const u32 r = inverse_root((u32)(scaled >> 30));
  u32 d = 2 * __umulhi((u32)(scaled >> 30), r);
  const i32 off = (i32)((i64)(scaled - (u64)d * d) >> 12);
  d = (d + (i32)((i64)off * (i32)r >> 50)) >> half;
  while ((u64)d * d > x) --d;
  while ((u64)(d + 1) * (d + 1) <= x) ++d;
  bits = 31 - half;
  const u32 divisor = d << half;  // about 2**61 / r, closely where d is large
  u32 f = r;
#pragma unroll 1
  for (int i = half < 12 ? 4 : 0; i < 5; ++i) f = (u32)((u64)f * ((1u << 30) - __umulhi(divisor, f)) >> 29);
  // The last product is floored twice: f is at most 1 too small, 5 too large; the quotient of what is left by the
  // divisor, at most 1 off, mends that.
  i64 rest = (1ll << 61) - (1ll << half) - (i64)((u64)f * divisor);
  const i32 step = (i32)((i64)(i32)(rest >> 4) * (i32)(f >> 1) >> 56);
  rest -= (i64)step * (i32)divisor;
  f += step + (rest >= divisor) - (rest < 0);
  root = d;
  inverse = f;
}

// clip((x m + 2**(e - 1)) >> e, lo, hi) as a high word: given x 2**(E - e) and shift = E - 32, for one E of all
// channels
template <bool clipped, i32 lo, i32 hi>
DEVICE i32 rescaled(i32 x, i32 m, i32 shift) {
  const i32 y = (i32)(((i64)x * m + (1ll << 31 << shift)) >> 32) >> shift;
  return clipped ? least(most(y, lo), hi) : y;
}

// the numbers of the channels of a piece
template <int lanes, int width, class T>
DEVICE void load_columns(T (&to)[width], const T* from, int piece) {
  constexpr int most_together = 16 / sizeof(T), part = width < most_together ? width : most_together;
#pragma unroll
  for (int c = 0; c < width / part; ++c)
    move_together<part>(to + c * part, from + ((piece / lanes * (width / part) + c) * lanes + piece % lanes) * part);
}

template <int width, class T, class F>
DEVICE void store(T* to, F element) {
  if constexpr (sizeof(T) == 1 && width % 4 == 0) {
    u32 words[width / 4];  // the compiler's own way of putting bytes together is twice as long
#pragma unroll
    for (int j = 0; j < width; j += 4) {
      const u32 low = __byte_perm(element(j), element(j + 1), 0x40), high = __byte_perm(element(j + 2), element(j + 3), 0x40);
      words[j / 4] = __byte_perm(low, high, 0x5410);
    }
    move_together<width / 4>((u32*)to, words);
  } else {
    alignas(16) T out[width];
#pragma unroll
    for (int j = 0; j < width; ++j) out[j] = (T)element(j);
    move_together<width>(to, out);
  }
}

// The sums of `rows` numbers over the lanes of a row: lane l has that of number l % rows.
template <int lanes, int rows, class T>
DEVICE T sum_of_rows(T (&x)[rows]) {
#pragma unroll
  for (int n = rows / 2; n; n /= 2)
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool upper = threadIdx.x & n;
      const T given = upper ? x[i] : x[i + n];
      x[i] = (upper ? x[i + n] : x[i]) + __shfl_xor_sync(ALL_LANES, given, n);
    }
#pragma unroll
  for (int distance = rows; distance < lanes; distance *= 2) x[0] += __shfl_xor_sync(ALL_LANES, x[0], distance);
  return x[0];
}

// `ends` has the elements that make the input, and takes the output.
template <int C, int lanes, int R, int lo, int hi, bool centred, class Ends>
DEVICE void layer_norm(const Ends& ends, const i32* __restrict__ gamma, const i64* __restrict__ beta, i64 eps, i32 e,
                       int rows) {
  using X = typename Ends::Value;
  constexpr int width = C % 8 == 0 ? 8 : C % 4 == 0 ? 4 : C % 2 == 0 ? 2 : 1;  // of a piece
  constexpr int pieces = C / width, each = (pieces + lanes - 1) / lanes;
  constexpr bool held = each <= LAYER_NORM_HELD;
  const int lane = threadIdx.x % lanes, first = (blockIdx.x * LAYER_NORM_THREADS + threadIdx.x) / lanes * R;
  X values[held ? each : 1][R][width];
  // Where there is no row or piece any more, the last one is computed and stored again.
  const auto nth = [&](int i) { return pieces % lanes ? least(i * lanes + lane, pieces - 1) : i * lanes + lane; };
  const auto at = [&](int r, int piece) { return (i64)least(first + r, rows - 1) * C + piece * width; };
  const auto read = [&](X (&to)[width], int r, int piece, const typename Ends::Before& of) {
    alignas(16) typename Ends::Element part[width];
    move_together<width>(part, ends.x + at(r, piece));
#pragma unroll
    for (int j = 0; j < width; ++j) to[j] = (X)ends.input((i32)part[j], of, j);
  };
  i32 totals[R] = {};
  u64 squares[R] = {};
#pragma unroll held ? each : 1
  for (int i = 0; i < each; ++i) {
    const int piece = nth(i);
    const bool counts = pieces % lanes == 0 || i * lanes + lane < pieces;
    const auto of = ends.before(piece);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      X(&part)[width] = values[held ? i : 0][r];
      read(part, r, piece, of);
      u32 four = 0;  // squares of 15 bits
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const i32 value = counts ? part[j] : 0;
        totals[r] += value;
        four += (u32)(value * value);
        if (j % 4 == 3 || j == width - 1) squares[r] += four, four = 0;
      }
    }
  }
  const i32 sum = sum_of_rows<lanes>(totals), total = centred ? sum : 0;
  u32 deviation, inverse;
  int length;
  root_and_inverse(C * sum_of_rows<lanes>(squares) - (i64)total * total + eps, deviation, inverse, length);
  // ((C x - total) factor + half) >> (10 + bits) as a high word: |C x - total| < sqrt(C) 2**bits leaves the room
  u32 scales[R], means[R], factors[R];
  int rights[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int from = threadIdx.x % 32 - lane + r, bits = __shfl_sync(ALL_LANES, length, from);
    const int left = most(22 - bits, 0);
    factors[r] = __shfl_sync(ALL_LANES, inverse, from);
    scales[r] = (u32)C << left;
    means[r] = (u32)__shfl_sync(ALL_LANES, total, from) << left;
    rights[r] = most(bits - 22, 0);
  }
#pragma unroll held ? each : 1
  for (int i = 0; i < each; ++i) {
    const int piece = nth(i);
    alignas(16) i32 g[width];
    alignas(16) i64 b[width];
    load_columns<lanes>(g, gamma, piece);
    load_columns<lanes>(b, beta, piece);
    const auto of = ends.after(piece);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      X(&part)[width] = values[held ? i : 0][r];
      if (!held) read(part, r, piece, ends.before(piece));
      const i64 half = 1ll << (31 + rights[r]);
      i32 y[width];
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const i64 deviations = (i64)(i32)(scales[r] * (u32)part[j] - means[r]) * (i32)factors[r] + half;
        const i32 z = (i32)(deviations >> 32) >> rights[r];
        y[j] = least(most((i32)(((i64)z * g[j] + b[j]) >> 32) >> (e - 32), lo), hi);
      }
      ends.put(at(r, piece), y, of);
    }
  }
}
