// LayerNorm of integers: the words of `ShiftLayerNorm.evaluate`, a row by `lanes` threads that keep it in registers.

constexpr int LAYER_NORM_THREADS = 128, LAYER_NORM_HELD = 8;  // pieces of a row that a thread keeps

DEVICE u32 high_word(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }

// about 2**46 / sqrt(a), for a >= 2**30: a line (off by 9 % at most), then Newton's r (3 - a r^2) / 2
DEVICE u32 inverse_root(u32 a) {
  u32 r = 2290000000u - high_word(a, 1308500000u);
#pragma unroll
  for (int i = 0; i < 4; ++i) r = 2 * high_word(r, ((3u << 28) - high_word(high_word(r, r), a)) << 2);
  return least(r, 0x7fffffffu);
}

// The root d of 1 <= x < 2**62, and (2**(30 + bits) - 1) / d for the bits of d, both rounded down: estimates, and
// steps of one to the exact numbers.
DEVICE void root_and_inverse(u64 x, u32& root, u32& inverse, int& bits) {
  const int half = (__clzll(x) - 2) / 2;
  const u64 scaled = x << 2 * half;  // 2**60 <= scaled < 2**62
  const u32 r = inverse_root((u32)(scaled >> 30));
  u32 d = 2 * high_word((u32)(scaled >> 30), r);
  const i32 off = (i32)((i64)(scaled - (u64)d * d) >> 12);
  d = (d + (i32)((i64)off * (i32)r >> 50)) >> half;
  while ((u64)d * d > x) --d;
  while ((u64)(d + 1) * (d + 1) <= x) ++d;
  bits = 31 - half;
  u32 f = r;
#pragma unroll
  for (int i = 0; i < 5; ++i) f = (u32)((u64)f * ((1u << 30) - high_word(d << half, f)) >> 29);
  i64 rest = (i64)((1ull << (30 + bits)) - 1 - (u64)f * d);
  // The last product is floored twice: f is at most 1 too small, 5 too large. (A loop that ends where the rest fits is
  // compiled as a division, through floating point.)
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    const int step = (rest >= d) - (rest < 0);
    f += step;
    rest -= step * (i64)d;
  }
  root = d;
  inverse = f;
}

template <int C, int lanes, int lo, int hi, bool centred, class X, class G, class B, class Y>
DEVICE void layer_norm(const X* __restrict__ x, const G* __restrict__ gamma, const B* __restrict__ beta,
                       Y* __restrict__ y, i64 eps, i32 e, int rows) {
  constexpr int width = C % 8 == 0 ? 8 : C % 4 == 0 ? 4 : C % 2 == 0 ? 2 : 1;  // of a piece
  constexpr int pieces = C / width, each = (pieces + lanes - 1) / lanes;
  constexpr bool held = each <= LAYER_NORM_HELD;
  const int lane = threadIdx.x % lanes, row = (blockIdx.x * LAYER_NORM_THREADS + threadIdx.x) / lanes;
  x += (i64)least(row, rows - 1) * C;  // threads without a row take part in the sums of their warp
  y += (i64)row * C;
  alignas(16) X values[held ? each : 1][width];
  i32 total = 0;
  i64 squares = 0;
#pragma unroll held ? each : 1
  for (int i = 0; i < each; ++i) {
    const int piece = i * lanes + lane;
    if (pieces % lanes && piece >= pieces) break;
    X* part = values[held ? i : 0];
    move_together<width>(part, x + piece * width);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      total += part[j];
      squares += (i64)part[j] * part[j];
    }
  }
  total = centred ? sum_of_lanes(total, lanes) : 0;
  squares = sum_of_lanes(squares, lanes);
  u32 deviation, factor;
  int bits;
  root_and_inverse(C * squares - (i64)total * total + eps, deviation, factor, bits);
  if (row >= rows) return;
  // ((C x - total) factor + half) >> (10 + bits) as a high word: |C x - total| < sqrt(C) 2**bits leaves the room
  const int left = most(22 - bits, 0), right = most(bits - 22, 0);
  const u32 scale = (u32)C << left, mean = (u32)total << left;
  const i64 half = 1ll << (31 + right);
#pragma unroll held ? each : 1
  for (int i = 0; i < each; ++i) {
    const int piece = i * lanes + lane;
    if (pieces % lanes && piece >= pieces) break;
    X* part = values[held ? i : 0];
    if (!held) move_together<width>(part, x + piece * width);
    alignas(16) G g[width];
    alignas(16) B b[width];
    alignas(16) Y out[width];
    move_together<width>(g, gamma + piece * width);
    move_together<width>(b, beta + piece * width);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const i32 z = (i32)(((i64)(i32)(scale * (u32)part[j] - mean) * (i32)factor + half) >> 32) >> right;
      out[j] = (Y)least(most((i32)(((i64)z * g[j] + b[j]) >> 32) >> (e - 32), lo), hi);
    }
    move_together<width>(y + piece * width, out);
  }
}
