// y = silu(gate) · up in f32, quantised in 1×128 tiles, in one pass: y never reaches memory.
//
// Grid, block and shared memory as quantize_1x128.cu.
#include "swiglu.cuh"
#include "tile.cuh"

constexpr i32 WARPS = 8;

template <class T>
__device__ __forceinline__ void swiglu_quantize(const T* gate, i64 ld_gate, const T* up, i64 ld_up, i32 rows, i32 cols,
                                                u8* codes, i64 ld_codes, const ScaleGrid& scales, const Recipe& recipe,
                                                u64* stats) {
    constexpr i32 E = ELEMENTS<T>;
    const MatrixView<const T> g = {gate, ld_gate, rows, cols}, u = {up, ld_up, rows, cols};
    const bool g_aligned = g.aligned(), u_aligned = u.aligned();
    const u32 first = (blockIdx.x * WARPS + threadIdx.x / LANES) * SEGMENTS;
    const auto load = [&](i32 row, i32 col, float (&v)[E]) {
        float factor[E];
        load_chunk(g, g_aligned, row, col, v);
        load_chunk(u, u_aligned, row, col, factor);
#pragma unroll
        for (i32 i = 0; i < E; ++i) v[i] = swiglu(v[i], factor[i]);
    };
    quantize_tiles<E>(load, {codes, ld_codes, rows, cols}, scales, recipe, first, (cols + GRANULE - 1) / GRANULE,
                      stats);
}

// gate[rows, cols] and up[rows, cols], ld ≥ cols elements (the two halves of one [rows, 2·cols] are given by two pointers);
// codes[rows, cols] E4M3, ld_codes ≥ cols bytes; scales[rows, ⌈cols/128⌉]; stats as of stats.cuh, added to.
extern "C" __global__ __launch_bounds__(WARPS* LANES) void swiglu_quantize_1x128_f32(
    const float* gate, i64 ld_gate, const float* up, i64 ld_up, i32 rows, i32 cols, u8* codes, i64 ld_codes,
    ScaleGrid scales, Recipe recipe, u64* stats) {
    swiglu_quantize(gate, ld_gate, up, ld_up, rows, cols, codes, ld_codes, scales, recipe, stats);
}

extern "C" __global__ __launch_bounds__(WARPS* LANES) void swiglu_quantize_1x128_bf16(
    const Bf16* gate, i64 ld_gate, const Bf16* up, i64 ld_up, i32 rows, i32 cols, u8* codes, i64 ld_codes,
    ScaleGrid scales, Recipe recipe, u64* stats) {
    swiglu_quantize(gate, ld_gate, up, ld_up, rows, cols, codes, ld_codes, scales, recipe, stats);
}
