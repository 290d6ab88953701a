// The arithmetic of softmax in two halves: weights of distances, and what divides by their sum.

// ShiftWeights: `bounded_distance`, then `exp2_weight` of intc/ops/scalar.py with their roundings moved into constants.
// `steep`: a shift of less than -10.
template <bool steep>
struct Weights {
  u32 m, right, left, limit;

  __device__ __forceinline__ Weights(i32 m, i32 shift)
      : m((u32)m << 7 + most(least(-shift, 10), 0)), right(most(shift, 0)), left(most(-shift - 10, 0)),
        limit(shift < 0 ? 32767u >> -shift : (32768u << shift) - 1) {}

  // the weight in Q16, not yet rounded
  __device__ __forceinline__ u32 operator()(u32 distance) const {
    u32 bounded = least(distance, limit) >> right;
    if (steep) bounded <<= left;
    const u64 t = (u64)bounded * m + (1 << 21) + (1ull << 32);  // octaves and one more in Q32
    const u32 r = (u32)t >> 22;                                 // of one octave, in Q10
    const i32 slope = (i32)(r * 5545 + 512 - (21865 << 10)) >> 10;  // mulhrs(r << 5, A - ONE / 2) - A
    return __funnelshift_rc(r * slope + 255 * 128 * 1024 + 511, 0, (u32)(t >> 32));
  }
};

// four of them, rounded
DEVICE u32 round_weights(const u32 (&w)[4]) {
  const u32 first = __byte_perm(w[0], w[1], 0x6521), second = __byte_perm(w[2], w[3], 0x6521);  // in Q8
  return __byte_perm(first + 0x00800080, second + 0x00800080, 0x7531);
}

// floor((2**(30 + b) - 1) / total) for 0 < total < 2**24 of b bits: Newton's steps, then what they miss
DEVICE i32 reciprocal(i32 total) {
  const u32 d = (u32)total << __clz(total);  // in [2**31, 2**32), the result near 2**62 / d
  i32 q = (i32)(3031741621u - __umulhi(d, 2021161081u));
#pragma unroll
  for (int step = 0; step < 3; ++step) {
    const i32 error = (1 << 30) - (i32)__umulhi(d, (u32)q);
    q += __mulhi(q, error * 4);
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
