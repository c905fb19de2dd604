// Quantisation in 128×128 blocks: weights. One f32 or E8M0 scale a block.
//
// Grid:   x = ⌈cols/128⌉, y = ⌈rows/128⌉: one block of the matrix each.
// Block:  512 threads; a warp takes 8 rows, two times four segments. Shared memory: 64 bytes, static.
// The block stays in registers between amax and cast (32 elements a thread): every element is read once, where there are
// elements to count twice.
#include "tile.cuh"

constexpr i32 WARPS = 16;
constexpr i32 ROWS_A_WARP = GRANULE / WARPS;
constexpr i32 PASSES = ROWS_A_WARP / SEGMENTS;

template <class T>
__device__ __forceinline__ void quantize(const T* x, i64 ld_x, i32 rows, i32 cols, u8* data, i64 ld_codes,
                                         const ScaleGrid& scales, const Recipe& recipe, u64* stats) {
    constexpr i32 E = ELEMENTS<T>;
    using L = Lanes<E>;
    __shared__ u32 warp_amax[WARPS];
    const MatrixView<const T> in = {x, ld_x, rows, cols};
    const MatrixView<u8> codes = {data, ld_codes, rows, cols};
    const bool aligned = in.aligned();
    const i32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const i32 row0 = (i32)blockIdx.y * GRANULE + warp * ROWS_A_WARP, col0 = (i32)blockIdx.x * GRANULE;

    float v[PASSES][L::ROUNDS][E];
#pragma unroll
    for (i32 p = 0; p < PASSES; ++p) {
#pragma unroll
        for (i32 r = 0; r < L::ROUNDS; ++r) {
            load_chunk(in, aligned, row0 + p * SEGMENTS + L::wide_segment(r, lane), col0 + L::wide_col(lane), v[p][r]);
        }
    }
    u32 amax = 0;
#pragma unroll
    for (i32 p = 0; p < PASSES; ++p) {
#pragma unroll
        for (i32 r = 0; r < L::ROUNDS; ++r) amax = max(amax, amax_of_chunk<E>(v[p][r], recipe));
    }
#pragma unroll
    for (i32 mask = LANES / 2; mask > 0; mask /= 2) amax = max(amax, exchange(amax, mask));
    bool nan = false;
#pragma unroll
    for (i32 p = 0; p < PASSES; ++p) {
#pragma unroll
        for (i32 r = 0; r < L::ROUNDS; ++r) nan |= has_nan<E>(v[p][r]);
    }
    // A NaN that amax may leave out goes by the sign, which amax has not.
    amax |= __any_sync(ALL_LANES, nan) ? SIGN : 0u;
    if (lane == 0) warp_amax[warp] = amax;
    __syncthreads();
    amax = warp_amax[lane % WARPS];
    nan = __any_sync(ALL_LANES, amax & SIGN);
    amax &= F32_ABS;
#pragma unroll
    for (i32 mask = WARPS / 2; mask > 0; mask /= 2) amax = max(amax, exchange(amax, mask));

    const GranuleScale g = granule_scale(amax, recipe);
    if (threadIdx.x == 0) store_scale(scales, blockIdx.y, blockIdx.x, g.scale);
    bool look_again = is_loud(amax, nan, g.factor, recipe);
    if (warp == 0) add_granules(stats, lane == 0 ? count_granule(amax, nan, recipe.floor) : 0);
    const bool codes_aligned = codes.aligned();
#pragma unroll
    for (i32 p = 0; p < PASSES; ++p) {
        u32 words[L::ROUNDS][L::WORDS];
#pragma unroll
        for (i32 r = 0; r < L::ROUNDS; ++r) look_again |= encode_chunk<E>(v[p][r], g.factor, recipe, words[r]) && amax != 0;
        const i32 row = row0 + p * SEGMENTS + L::narrow_segment(lane);
        store_codes(codes, codes_aligned, row, col0 + L::narrow_col(lane), transpose_words(words, lane));
    }
    if (!__any_sync(ALL_LANES, look_again)) return;
    Counts counts = {0, 0, 0};
#pragma unroll 1
    for (i32 i = 0; i < PASSES * L::ROUNDS; ++i) {
        const i32 row = row0 + i / L::ROUNDS * SEGMENTS + L::wide_segment(i % L::ROUNDS, lane);
        const i32 col = col0 + L::wide_col(lane);
        float x[E];
        load_chunk(in, aligned, row, col, x);
        count_chunk<E>(counts, x, g.factor, recipe, row < rows ? cols - col : 0);
    }
    add_elements(stats, counts);
}

// x[rows, cols], ld_x ≥ cols elements; codes[rows, cols] E4M3, ld_codes ≥ cols bytes; scales[⌈rows/128⌉, ⌈cols/128⌉];
// stats as of stats.cuh, added to.
extern "C" __global__ __launch_bounds__(WARPS* LANES, 2) void quantize_128x128_f32(
    const float* x, i64 ld_x, i32 rows, i32 cols, u8* codes, i64 ld_codes, ScaleGrid scales, Recipe recipe,
    u64* stats) {
    quantize(x, ld_x, rows, cols, codes, ld_codes, scales, recipe, stats);
}

extern "C" __global__ __launch_bounds__(WARPS* LANES, 2) void quantize_128x128_bf16(
    const Bf16* x, i64 ld_x, i32 rows, i32 cols, u8* codes, i64 ld_codes, ScaleGrid scales, Recipe recipe,
    u64* stats) {
    quantize(x, ld_x, rows, cols, codes, ld_codes, scales, recipe, stats);
}
