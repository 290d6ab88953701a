// Between the arrays of a caller on the device and the integers of the network: copied, checked and converted, real
// numbers by their bits and without floating point.

enum Kind { U8, I8, I16, I32, I64, F16, BF16, F32 };

DEVICE i64 integer_at(const u8* from, i64 i, i32 kind) {
  if (kind == U8) return from[i];
  if (kind == I8) return ((const i8*)from)[i];
  if (kind == I16) return ((const i16*)from)[i];
  if (kind == I32) return ((const i32*)from)[i];
  return ((const i64*)from)[i];
}

DEVICE void put_integer(u8* to, i64 i, i32 kind, i64 value) {
  if (kind == U8 || kind == I8) to[i] = (u8)value;
  else if (kind == I16) ((i16*)to)[i] = (i16)value;
  else if (kind == I32) ((i32*)to)[i] = (i32)value;
  else ((i64*)to)[i] = value;
}

// the bits of a float32, from those of a number with 16
DEVICE u32 real_at(const u8* from, i64 i, i32 kind) {
  if (kind == F32) return ((const u32*)from)[i];
  const u32 half = ((const u16*)from)[i];
  if (kind == BF16) return half << 16;
  const u32 sign = half >> 15 << 31, exponent = half >> 10 & 31, fraction = half & 0x3ff;
  if (exponent == 31) return sign | 0x7f800000 | fraction << 13;
  if (exponent) return sign | (exponent + 112) << 23 | fraction << 13;
  if (!fraction) return sign;
  const int shift = __clz(fraction) - 21;
  return sign | (113 - shift) << 23 | (fraction << shift & 0x3ff) << 13;
}

// x / 2**n, n > 0, half to even
DEVICE u64 half_even(u64 x, i32 n) {
  if (n > 63) return 0;
  const u64 q = x >> n, rest = x - (q << n), half = 1ull << (n - 1);
  return q + (rest > half || (rest == half && (q & 1)));
}

// to the `bits` highest bits of x, half to even, counted in e
DEVICE u64 rounded(u64 x, i32 bits, i32& e) {
  const i32 extra = bit_length(x) - bits;
  if (extra <= 0) return x;
  e += extra;
  return half_even(x, extra);
}

// The float32 product of x and a factor > 0, both given by their bits, as the nearest integer in [lo, hi]; not `finite`
// where the product is none.
DEVICE i64 quantised(u32 x, u32 factor, i64 lo, i64 hi, bool& finite) {
  const i32 exponent = x >> 23 & 255;
  const u32 fraction = (x & 0x7fffff) | (exponent ? 1u << 23 : 0);
  i32 e = most(exponent, 1) + (i32)(factor >> 23) - 300;
  const u64 product = rounded((u64)fraction * ((factor & 0x7fffff) | 1u << 23), 24, e);
  finite = exponent < 255 && (!product || bit_length(product) + e <= 128);
  const i64 q = e < 0 ? half_even(product, -e) : product << least(e, 38);
  return most(lo, least(hi, x >> 31 ? -q : q));
}

// The bits of (float32)(q * scale) with scale > 0 a float64 given by its bits and the product one as well; |q| < 2**32.
DEVICE u32 real_of(i64 q, u64 scale) {
  if (!q) return 0;
  const u64 a = (u64)(q < 0 ? -q : q), m = (scale & (1ull << 52) - 1) | 1ull << 52;
  i32 e = (i32)(scale >> 52) - 1075;
  const u64 low = (m & 0xffffffff) * a, high = (m >> 32) * a + (low >> 32);
  u64 x = high << 32 | (u32)low;
  if (high >> 32) {  // what does not fit is seen in the lowest bit
    const i32 extra = bit_length(high) - 32;
    x = high << (32 - extra) | (u32)low >> extra | (((u32)low & (1u << extra) - 1) != 0);
    e += extra;
  }
  x = rounded(rounded(x, 53, e), 24, e);
  const i32 bits = bit_length(x), exponent = e + bits + 126;
  const u32 fraction = (u32)(bits > 24 ? x >> 1 : x << (24 - bits)) & 0x7fffff;
  return (q < 0 ? 1u << 31 : 0) | (exponent > 254 ? 255u << 23 : (u32)exponent << 23 | fraction);
}

// problems: whether an integer lies outside [lo, hi], and whether a real number is none
DEVICE void take(const u8* from, u8* to, i64 count, i32 given, i32 wanted, u32 factor, i64 lo, i64 hi, u32* problems) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (i64)gridDim.x * blockDim.x) {
    i64 value;
    if (given >= F16) {
      bool finite;
      value = quantised(real_at(from, i, given), factor, lo, hi, finite);
      if (!finite) problems[1] = 1;
    } else {
      const i64 x = integer_at(from, i, given);
      value = most(lo, least(hi, x));
      if (value != x) problems[0] = 1;
    }
    put_integer(to, i, wanted, value);
  }
}

// rows of `columns` integers; scales lie `stride` (0 or 1) apart; the integer `least` has the bits `lowest`
DEVICE void give(const u8* from, u32* to, i64 rows, i64 columns, i32 given, const u64* scales, i32 stride, i64 least,
                 u32 lowest) {
  for (i64 row = blockIdx.y; row < rows; row += gridDim.y)
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < columns; i += (i64)gridDim.x * blockDim.x) {
      const i64 q = integer_at(from, row * columns + i, given);
      to[row * columns + i] = q == least ? lowest : real_of(q, scales[i * stride]);
    }
}
