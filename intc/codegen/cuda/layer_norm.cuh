// LayerNorm of integers, one warp a row: the words of `ShiftLayerNorm.evaluate`, sums by shuffles.

constexpr int LAYER_NORM_THREADS = 128;

template <int C, int lo, int hi, bool centred, class X, class G, class B, class Y>
DEVICE void layer_norm(const X* __restrict__ x, const G* __restrict__ gamma, const B* __restrict__ beta,
                       Y* __restrict__ y, i64 eps, i64 e, int rows) {
  const int row = blockIdx.x * (LAYER_NORM_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  x += (i64)row * C;
  y += (i64)row * C;
  i64 total = 0, squares = 0;
  for (int i = lane; i < C; i += 32) {
    total += x[i];
    squares += x[i] * x[i];
  }
  total = centred ? sum_of_lanes(total) : 0;
  squares = sum_of_lanes(squares);
  const i64 deviation = square_root(C * squares - total * total + eps);
  const int bits = bit_length(deviation);
  const i64 factor = quotient((1ull << (30 + bits)) - 1, (u64)deviation), half = 1ll << (9 + bits);
  for (int i = lane; i < C; i += 32) {
    const i64 z = ((C * (i64)x[i] - total) * factor + half) >> (10 + bits);
    y[i] = (Y)least<i64>(most<i64>((z * gamma[i] + beta[i]) >> e, lo), hi);
  }
}
