// Quantisation in 128×1 granules with transposed output: Wgrad's operands. x[tokens, channels] becomes
// codes[channels, tokens] with a scale for each channel and 128 tokens.
//
// The input is f32, bf16, or FP8 in 1×128 tiles, which is dequantised first (one f32 rounding): requantise-transpose.
//
// Grid:   x = ⌈cols/64⌉, y = ⌈rows/128⌉: 128 tokens × 64 channels each.
// Block:  256 threads of 32 elements each. Shared memory: 10,496 bytes, static.
//
// A thread holds E neighbouring columns (16 bytes) of 32 / E neighbouring rows, so that the codes of one column lie in
// whole words or half words. They pass through shared memory, one column (128 bytes) after the other, in units of 8
// bytes that are permuted by the column's number: neither the columns' writes nor the rows' reads meet in a bank.
#include "tile.cuh"

constexpr i32 THREADS = 256;
constexpr i32 WARPS = THREADS / LANES;
constexpr i32 COLUMNS = 64;
constexpr i32 ELEMENTS_A_THREAD = GRANULE * COLUMNS / THREADS;

// Where the codes of 8 rows, `unit` of 16, of a column lie in shared memory, in bytes.
__device__ __forceinline__ i32 unit_offset(i32 col, i32 unit) { return col * GRANULE + (unit ^ (col >> 2 & 15)) * 8; }

template <i32 R>
struct Column;
template <>
struct Column<8> {
    static __device__ __forceinline__ void store(u8* at, const u32 (&w)[2]) { *(uint2*)at = make_uint2(w[0], w[1]); }
};
template <>
struct Column<4> {
    static __device__ __forceinline__ void store(u8* at, const u32 (&w)[1]) { *(u32*)at = w[0]; }
};
template <>
struct Column<2> {
    static __device__ __forceinline__ void store(u8* at, const u32 (&w)[1]) { *(u16*)at = (u16)w[0]; }
};

// `load(row, col, v)` gives the chunk of E elements at (row, col), zero beyond the matrix; `at(row, col)` an element of it.
template <i32 E, class Load, class At>
__device__ __forceinline__ void quantize(const Load& load, const At& at, i32 rows, i32 cols, u8* data, i64 ld_codes,
                                         const ScaleGrid& scales, const Recipe& recipe, u64* stats) {
    constexpr i32 R = ELEMENTS_A_THREAD / E;         // rows of a thread
    constexpr i32 CHUNKS = COLUMNS / E;              // threads of one group of rows
    constexpr i32 WORDS = R > 4 ? R / 4 : 1;
    constexpr u32 SAME_COLUMNS = CHUNKS == 16 ? 0x00010001u : CHUNKS == 8 ? 0x01010101u : 0x11111111u;
    __shared__ __align__(16) u8 transposed[COLUMNS * GRANULE];
    __shared__ u32 warp_amax[WARPS][COLUMNS];
    __shared__ __align__(16) float factors[COLUMNS];

    const i32 thread = threadIdx.x, lane = thread % LANES, warp = thread / LANES;
    const i32 chunk = thread % CHUNKS, group = thread / CHUNKS;
    const i32 row0 = (i32)blockIdx.y * GRANULE, col0 = (i32)blockIdx.x * COLUMNS;
    float v[R][E];
#pragma unroll
    for (i32 r = 0; r < R; ++r) load(row0 + group * R + r, col0 + chunk * E, v[r]);

    // amax of each column: over a thread's rows, over the lanes of a warp with the same columns, over the warps.
#pragma unroll
    for (i32 e = 0; e < E; ++e) {
        u32 amax = 0;
#pragma unroll
        for (i32 r = 0; r < R; ++r) amax = max(amax, amax_bits(v[r][e], recipe));
#pragma unroll
        for (i32 mask = CHUNKS; mask < LANES; mask *= 2) amax = max(amax, exchange(amax, mask));
        bool nan = false;
#pragma unroll
        for (i32 r = 0; r < R; ++r) nan |= v[r][e] != v[r][e];
        // A NaN that amax may leave out goes by the sign, which amax has not.
        amax |= __ballot_sync(ALL_LANES, nan) & SAME_COLUMNS << lane % CHUNKS ? SIGN : 0u;
        if (lane < CHUNKS) warp_amax[warp][chunk * E + e] = amax;
    }
    __syncthreads();
    bool look_again = false;
    if (thread < COLUMNS) {
        u32 amax = 0;
#pragma unroll
        for (i32 w = 0; w < WARPS; ++w) amax = max(amax, warp_amax[w][thread] & F32_ABS);
        bool nan = false;
#pragma unroll
        for (i32 w = 0; w < WARPS; ++w) nan |= warp_amax[w][thread] >= SIGN;
        const GranuleScale g = granule_scale(amax, recipe);
        factors[thread] = g.factor;
        look_again = is_loud(amax, nan, g.factor, recipe);
        add_granules(stats, col0 + thread < cols ? count_granule(amax, nan, recipe.floor) : 0);
        if (col0 + thread < cols) store_scale(scales, col0 + thread, blockIdx.y, g.scale);
    }
    __syncthreads();

#pragma unroll
    for (i32 e = 0; e < E; ++e) {
        const i32 col = chunk * E + e;
        const float factor = factors[col];
        u32 words[WORDS];
#pragma unroll
        for (i32 w = 0; w < WORDS; ++w) {
            float x[4];
#pragma unroll
            for (i32 i = 0; i < 4; ++i) x[i] = 4 * w + i < R ? v[(4 * w + i) % R][e] : 0.0f;
            words[w] = encode4(x, factor, recipe);
        }
        Column<R>::store(transposed + unit_offset(col, group * R / 8) + group * R % 8, words);
    }
    __syncthreads();

    const MatrixView<u8> codes = {data, ld_codes, cols, rows};
    const bool aligned = codes.aligned();
#pragma unroll
    for (i32 i = 0; i < COLUMNS * LANES_A_CODE_ROW / THREADS; ++i) {
        const i32 index = i * THREADS + thread;
        const i32 col = index / LANES_A_CODE_ROW, part = index % LANES_A_CODE_ROW;
        const i32 swapped = col >> 2 & 1;
        // The two units of a chunk are neighbours still, in either order.
        const uint4 pair = *(const uint4*)(transposed + unit_offset(col, 2 * part + swapped));
        const Words4 words = {{swapped ? pair.z : pair.x, swapped ? pair.w : pair.y,
                               swapped ? pair.x : pair.z, swapped ? pair.y : pair.w}};
        look_again |= has_zeros(words.w[0]) | has_zeros(words.w[1]) | has_zeros(words.w[2]) | has_zeros(words.w[3]);
        store_codes(codes, aligned, col0 + col, row0 + part * CODES_A_CHUNK, words);
    }

    if (!__syncthreads_or(look_again)) return;
    // In any order: four columns of every 16th row. Their factors are read at once, which meets no bank twice.
    constexpr i32 THREADS_A_ROW = COLUMNS / 4;
    const i32 first = thread % THREADS_A_ROW * 4;
    const float4 four = *(const float4*)(factors + first);
    const float factor[4] = {four.x, four.y, four.z, four.w};
    Counts counts = {0, 0, 0};
#pragma unroll 1
    for (i32 row = row0 + thread / THREADS_A_ROW; row < min(rows, row0 + GRANULE); row += THREADS / THREADS_A_ROW) {
        float x[4], p[4];
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            x[i] = col0 + first + i < cols ? at(row, col0 + first + i) : 0.0f;
            p[i] = payload_of(x[i], factor[i], recipe);
        }
        count4(counts, x, p, recipe.cast, cols - col0 - first);
    }
    add_elements(stats, counts);
}

template <class T>
__device__ __forceinline__ void quantize_dense(const T* x, i64 ld_x, i32 rows, i32 cols, u8* codes, i64 ld_codes,
                                               const ScaleGrid& scales, const Recipe& recipe, u64* stats) {
    const MatrixView<const T> in = {x, ld_x, rows, cols};
    const bool aligned = in.aligned();
    const auto load = [&](i32 row, i32 col, float (&v)[ELEMENTS<T>]) { load_chunk(in, aligned, row, col, v); };
    const auto at = [&](i32 row, i32 col) { return to_f32(*in.at(row, col)); };
    quantize<ELEMENTS<T>>(load, at, rows, cols, codes, ld_codes, scales, recipe, stats);
}

// x[rows, cols], ld_x ≥ cols elements; codes[cols, rows] E4M3, ld_codes ≥ rows bytes; scales[cols, ⌈rows/128⌉];
// stats as of stats.cuh, added to.
extern "C" __global__ __launch_bounds__(THREADS, 4) void quantize_128x1_f32(
    const float* x, i64 ld_x, i32 rows, i32 cols, u8* codes, i64 ld_codes, ScaleGrid scales, Recipe recipe,
    u64* stats) {
    quantize_dense(x, ld_x, rows, cols, codes, ld_codes, scales, recipe, stats);
}

extern "C" __global__ __launch_bounds__(THREADS, 4) void quantize_128x1_bf16(
    const Bf16* x, i64 ld_x, i32 rows, i32 cols, u8* codes, i64 ld_codes, ScaleGrid scales, Recipe recipe,
    u64* stats) {
    quantize_dense(x, ld_x, rows, cols, codes, ld_codes, scales, recipe, stats);
}

// x[rows, cols] E4M3, ld_x ≥ cols bytes, x_scales[rows, ⌈cols/128⌉]; the rest as above.
extern "C" __global__ __launch_bounds__(THREADS, 4) void requantize_transpose_e4m3(
    const u8* x, i64 ld_x, ScaleGrid x_scales, i32 rows, i32 cols, u8* codes, i64 ld_codes, ScaleGrid scales, Recipe recipe,
    u64* stats) {
    const MatrixView<const u8> in = {x, ld_x, rows, cols};
    const bool aligned = in.aligned();
    const auto load = [&](i32 row, i32 col, float (&v)[CODES_A_CHUNK]) {
        const Words4 words = load_codes(in, aligned, row, col);
        // A chunk lies in one tile: 16 divides 128. Beyond the matrix there is no scale, and the codes are zero.
        const float s = row < rows && col < cols ? load_scale(x_scales, row, col / GRANULE) : 0.0f;
#pragma unroll
        for (i32 w = 0; w < 4; ++w) {
            float x4[4];
            decode_e4m3x4(words.w[w], x4);
#pragma unroll
            for (i32 i = 0; i < 4; ++i) v[4 * w + i] = col + 4 * w + i < cols ? __fmul_rn(x4[i], s) : 0.0f;
        }
    };
    const auto at = [&](i32 row, i32 col) {
        float x[4];
        decode_e4m3x4(*in.at(row, col), x);
        return __fmul_rn(x[0], load_scale(x_scales, row, col / GRANULE));
    };
    quantize<CODES_A_CHUNK>(load, at, rows, cols, codes, ld_codes, scales, recipe, stats);
}
