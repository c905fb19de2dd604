// Dequantisation of E4M3 in 1×128 tiles or 128×128 blocks: value = fl(code · scale), then to bf16 nearest even where that
// is asked for. NaN is canonical.
//
// Grid:   x = ⌈rows · ⌈cols/128⌉ / 32⌉: each of 8 warps takes four row segments of 128, numbered row by row.
//         rows · ⌈cols/128⌉ < 2^31.
// Block:  256 threads. Shared memory: none.
#include "tile.cuh"

constexpr i32 WARPS = 8;

__device__ __forceinline__ Words4 pack(const float (&v)[4], float*) {
    return {{__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])}};
}

__device__ __forceinline__ Words4 pack(const float (&v)[8], Bf16*) {
    Words4 m;
#pragma unroll
    for (i32 i = 0; i < 4; ++i) m.w[i] = bf16_bits(v[2 * i]) | bf16_bits(v[2 * i + 1]) << 16;
    return m;
}

__device__ __forceinline__ void store(float* at, float x) { *at = x; }
__device__ __forceinline__ void store(Bf16* at, float x) { at->bits = (u16)bf16_bits(x); }

template <class T>
__device__ __forceinline__ void dequantize(const u8* data, i64 ld_codes, const ScaleGrid& scales, i32 granule_rows,
                                           i32 rows, i32 cols, T* y, i64 ld_y) {
    constexpr i32 E = ELEMENTS<T>;
    using L = Lanes<E>;
    const MatrixView<const u8> codes = {data, ld_codes, rows, cols};
    const MatrixView<T> out = {y, ld_y, rows, cols};
    const bool aligned = out.aligned();
    const i32 lane = threadIdx.x % LANES;
    const u32 a_row = (cols + GRANULE - 1) / GRANULE;
    const u32 segments = rows * a_row;  // below 2^31: the host sees to it
    const u32 first = (blockIdx.x * WARPS + threadIdx.x / LANES) * SEGMENTS;

    const u32 mine = first + L::narrow_segment(lane);
    const i32 code_row = mine < segments ? (i32)(mine / a_row) : rows;
    u32 words[L::ROUNDS][L::WORDS];
    split_words(load_codes(codes, codes.aligned(), code_row, (i32)(mine % a_row) * GRANULE + L::narrow_col(lane)), lane,
                words);
#pragma unroll
    for (i32 r = 0; r < L::ROUNDS; ++r) {
        const u32 index = first + L::wide_segment(r, lane);
        if (index >= segments) continue;
        const i32 row = (i32)(index / a_row), segment = (i32)(index % a_row);
        const i32 col = segment * GRANULE + L::wide_col(lane);
        if (col >= cols) continue;
        const float s = load_scale(scales, row / granule_rows, segment);
        float v[E];
#pragma unroll
        for (i32 w = 0; w < L::WORDS; ++w) {
            float x[4];
            decode_e4m3x4(words[r][w], x);
#pragma unroll
            for (i32 i = 0; i < 4; ++i) v[4 * w + i] = canonical(__fmul_rn(x[i], s));
        }
        if (aligned && col + E <= cols) {
            store_16(out.at(row, col), pack(v, (T*)nullptr));
        } else {
#pragma unroll
            for (i32 i = 0; i < E; ++i) {
                if (col + i < cols) store(out.at(row, col + i), v[i]);
            }
        }
    }
}

// codes[rows, cols] E4M3, ld_codes ≥ cols bytes; scales[⌈rows/granule_rows⌉, ⌈cols/128⌉], granule_rows 1 or 128 (or any);
// y[rows, cols], ld_y ≥ cols elements.
extern "C" __global__ __launch_bounds__(WARPS* LANES) void dequantize_e4m3_f32(
    const u8* codes, i64 ld_codes, ScaleGrid scales, i32 granule_rows, i32 rows, i32 cols, float* y, i64 ld_y) {
    dequantize(codes, ld_codes, scales, granule_rows, rows, cols, y, ld_y);
}

extern "C" __global__ __launch_bounds__(WARPS* LANES) void dequantize_e4m3_bf16(
    const u8* codes, i64 ld_codes, ScaleGrid scales, i32 granule_rows, i32 rows, i32 cols, Bf16* y, i64 ld_y) {
    dequantize(codes, ld_codes, scales, granule_rows, rows, cols, y, ld_y);
}
