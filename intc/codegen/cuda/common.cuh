// Integer helpers without floating point: the compiler's own division by a variable goes through it.

template <class T>
DEVICE T least(T a, T b) { return a < b ? a : b; }

template <class T>
DEVICE T most(T a, T b) { return a > b ? a : b; }

DEVICE i32 bit_length(i64 x) { return 64 - __clzll(x); }

// floor(n / d) for d > 0, one bit of the result a step
DEVICE u64 quotient(u64 n, u64 d) {
  u64 q = 0;
  for (int shift = bit_length(n) - bit_length(d); shift >= 0; --shift) {
    const bool fits = n >= d << shift;
    n -= fits ? d << shift : 0;
    q = 2 * q + fits;
  }
  return q;
}

DEVICE u32 quotient(u32 n, u32 d) {
  u32 q = 0;
  for (int shift = __clz(d) - __clz(n); shift >= 0; --shift) {
    const bool fits = n >= d << shift;
    n -= fits ? d << shift : 0;
    q = 2 * q + fits;
  }
  return q;
}

DEVICE i64 quotient(i64 n, i64 d) {
  const u64 q = quotient((u64)(n < 0 ? -n : n), (u64)(d < 0 ? -d : d));
  return (n < 0) != (d < 0) ? -(i64)q : (i64)q;
}

DEVICE i32 quotient(i32 n, i32 d) {
  const u32 q = quotient((u32)(n < 0 ? -n : n), (u32)(d < 0 ? -d : d));
  return (n < 0) != (d < 0) ? -(i32)q : (i32)q;
}

template <class T>
DEVICE T rest(T n, T d) { return n - quotient(n, d) * d; }

template <class T>
DEVICE T sum_of_lanes(T x, int lanes = 32) {
  for (int distance = lanes / 2; distance; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
  return x;
}

template <int bytes>
struct Access;
template <>
struct Access<1> { using type = u8; };
template <>
struct Access<2> { using type = u16; };
template <>
struct Access<4> { using type = u32; };
template <>
struct Access<8> { using type = u64; };
template <>
struct Access<16> { using type = uint4; };

// `count` elements between places that are multiples of so many elements, 16 bytes at a time
template <int count, class T>
DEVICE void move_together(T* to, const T* from) {
  constexpr int bytes = count * sizeof(T), each = bytes < 16 ? bytes : 16;
  using Whole = typename Access<each>::type;
#pragma unroll
  for (int i = 0; i < bytes / each; ++i) ((Whole*)to)[i] = ((const Whole*)from)[i];
}
