// Tiles in shared memory: copied in 16-byte chunks, read as operands of mma.

// 16-byte chunk `chunk` of row `row` in a tile whose rows have `chunks` of them: neighbouring rows in other banks
template <int chunks>
DEVICE int chunk_at(int row, int chunk) {
  const int turn = chunks % 8 == 0 ? row & 7 : chunks == 4 ? row >> 1 & 3 : chunks == 2 ? row >> 2 & 1 : 0;
  return (row * chunks + (chunk ^ turn)) * 16;
}

// A tile of `height` rows from row `first` and of `chunks` 16-byte chunks from column `from` of a matrix with
// `rows` rows of `width` values, `stride` apart; zeros beyond it. `aligned`: each row begins at 16 bytes.
template <int height, int threads, int chunks, int width, bool aligned, class T>
DEVICE void copy_tile(u8* tile, const T* data, i64 stride, int first, int rows, int from) {
  constexpr int values = 16 / sizeof(T), pieces = height * chunks;
#pragma unroll
  for (int start = 0; start < pieces; start += threads) {
    const int i = start + threadIdx.x;
    if (pieces % threads && i >= pieces) break;
    const int row = first + i / chunks, column = from + i % chunks * values;
    u8* to = tile + chunk_at<chunks>(i / chunks, i % chunks);
    if (aligned && width % values == 0) {
      const bool inside = row < rows && column < width;
      copy_async(to, inside ? data + row * stride + column : data, inside);
    } else {
      for (int j = 0; j < values; ++j)
        ((T*)to)[j] = row < rows && column + j < width ? data[row * stride + column + j] : (T)0;
    }
  }
}

// the part [16, 32] of a tile at `row` and `half` * 32, in the form that mma takes as its first operand
template <int chunks>
DEVICE void load_rows(u32 (&a)[4], const u8* tile, int row, int half) {
  const int lane = threadIdx.x % 32;
  load_matrices(a, tile + chunk_at<chunks>(row + lane % 16, half * 2 + lane / 16));
}

// the parts [8, 32] at `row` and at `row` + 8, each in the form that mma takes as its second operand
template <int chunks>
DEVICE void load_columns(u32 (&b)[2], u32 (&next)[2], const u8* tile, int row, int half) {
  const int lane = threadIdx.x % 32;
  u32 four[4];
  load_matrices(four, tile + chunk_at<chunks>(row + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
  b[0] = four[0], b[1] = four[1], next[0] = four[2], next[1] = four[3];
}

// the same of a tile of 16-bit values, as their low bytes (unsigned) and their high bytes (signed)
template <int chunks>
DEVICE void load_wide_rows(u32 (&low)[4], u32 (&high)[4], const u8* tile, int row, int half) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const u8* at = tile + chunk_at<chunks>(row + g + i % 2 * 8, half * 4 + i / 2 * 2 + t / 2) + t % 2 * 8;
    const uint2 pair = *(const uint2*)at;
    low[i] = __byte_perm(pair.x, pair.y, 0x6420);
    high[i] = __byte_perm(pair.x, pair.y, 0x7531);
  }
}
