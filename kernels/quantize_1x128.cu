// Quantisation in 1×128 tiles: activations. One f32 or E8M0 scale a row and 128 columns.
//
// Grid:   x = ⌈rows · ⌈cols/128⌉ / 32⌉: each of 8 warps takes four tiles, numbered row by row.
//         rows · ⌈cols/128⌉ < 2^31.
// Block:  256 threads. Shared memory: none.
// Reads every input element once, where there are elements to count twice, and writes every code and scale once.
#include "tile.cuh"

constexpr i32 WARPS = 8;

template <class T>
__device__ __forceinline__ void quantize(const T* x, i64 ld_x, i32 rows, i32 cols, u8* codes, i64 ld_codes,
                                         const ScaleGrid& scales, const Recipe& recipe, u64* stats) {
    const MatrixView<const T> in = {x, ld_x, rows, cols};
    const bool aligned = in.aligned();
    const u32 first = (blockIdx.x * WARPS + threadIdx.x / LANES) * SEGMENTS;
    const auto load = [&](i32 row, i32 col, float (&v)[ELEMENTS<T>]) { load_chunk(in, aligned, row, col, v); };
    quantize_tiles<ELEMENTS<T>>(load, {codes, ld_codes, rows, cols}, scales, recipe, first, (cols + GRANULE - 1) / GRANULE,
                                stats);
}

// x[rows, cols], ld_x ≥ cols elements; codes[rows, cols] E4M3, ld_codes ≥ cols bytes; scales[rows, ⌈cols/128⌉];
// stats as of stats.cuh, added to.
extern "C" __global__ __launch_bounds__(WARPS* LANES) void quantize_1x128_f32(
    const float* x, i64 ld_x, i32 rows, i32 cols, u8* codes, i64 ld_codes, ScaleGrid scales, Recipe recipe,
    u64* stats) {
    quantize(x, ld_x, rows, cols, codes, ld_codes, scales, recipe, stats);
}

extern "C" __global__ __launch_bounds__(WARPS* LANES) void quantize_1x128_bf16(
    const Bf16* x, i64 ld_x, i32 rows, i32 cols, u8* codes, i64 ld_codes, ScaleGrid scales, Recipe recipe,
    u64* stats) {
    quantize(x, ld_x, rows, cols, codes, ld_codes, scales, recipe, stats);
}
