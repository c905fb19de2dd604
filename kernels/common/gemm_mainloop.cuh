// The main loop of the fast kernels: a pipeline of stages, one promotion interval each, from global to shared memory
// to the tensor core to the f32 accumulator. What multiplies (mma.sync or wgmma) is a parameter; all else is here
// once.
#pragma once

#include "gemm_epilogue.cuh"
#include "gemm_problem.cuh"
#include "gemm_tile.cuh"
#include "ptx.cuh"
#include "types.cuh"

// Where the scales of an interval lie, in bytes from the start of shared memory; `scales` is STAGE_SCALES_A or _B.
//
// Scales of rows lie in the interval's stage. Of a block there is one, and a copy brings those of four intervals: they
// lie in the first stage, where there is room, eight intervals in turn. A quad is overwritten when the interval five
// or more after its last one is multiplied.
__device__ __forceinline__ u32 scales_offset(u32 granule, u32 stage, u32 interval, u32 scales) {
    return granule == 1 ? stage * STAGE_BYTES + scales : scales + interval % (2 * QUAD) * sizeof(float);
}

// One operand's way into a stage: which chunks and which scale this thread copies.
//
// Thread t copies chunk t mod 8 of rows t/8, t/8 + 32, t/8 + 64, t/8 + 96: eight successive threads read 128
// successive bytes of a row.
struct Loader {
    static constexpr u32 ROW_STEP = THREADS / CHUNKS_IN_ROW, ROWS = TILE_M / ROW_STEP;

    const u8* codes;      // of this thread's first row and chunk, in the next interval
    const float* scales;  // of the tile's first row, in the next interval
    i64 row_step;         // bytes to this thread's next row
    i64 scale_row, scale_interval;
    u32 rows;             // rows of the tile that exist
    u32 granule;
    bool vector_codes, vector_scales;

    // For the tile that starts at row `row` of `x`.
    __device__ __forceinline__ Loader(const Operand& x, u32 row) {
        u32 first = threadIdx.x / CHUNKS_IN_ROW, chunk = threadIdx.x % CHUNKS_IN_ROW;
        rows = x.rows > row ? min(x.rows - row, TILE_M) : 0;
        codes = x.codes + static_cast<i64>(row + first) * x.ld + chunk * CHUNK;
        // Granules are of 1 or of 128 rows, and a tile starts at a multiple of 128.
        scales = x.scales + (x.granule == 1 ? row : row / TILE_M) * x.scale_row;
        row_step = ROW_STEP * x.ld;
        scale_row = x.scale_row;
        scale_interval = x.scale_interval;
        granule = x.granule;
        vector_codes = (reinterpret_cast<u64>(x.codes) | static_cast<u64>(x.ld)) % CHUNK == 0;
        u64 starts = reinterpret_cast<u64>(scales) | static_cast<u64>(scale_interval) * sizeof(float);
        vector_scales = granule == 1 ? scale_row == 1 && starts % CHUNK == 0
                                     : scale_interval == 1 && reinterpret_cast<u64>(scales) % CHUNK == 0;
    }

    // Starts the copies of an interval, from which on K has `k_left` elements, 1 or more, to `tile` and `tile_scales`,
    // and moves on to the next one. Codes past the end of K, and rows past the end, become 0.
    //
    // `lane` is this thread's number among those that copy scales, which are not the same for A and B.
    __device__ __forceinline__ void load(u32 tile, u32 tile_scales, u32 interval, u32 k_left, u32 lane) {
        u32 first = threadIdx.x / CHUNKS_IN_ROW, chunk = threadIdx.x % CHUNKS_IN_ROW;
        u32 begin = chunk * CHUNK;
        u32 bytes = k_left > begin ? min(k_left - begin, CHUNK) : 0;
        // Rows that a thread copies differ by multiples of 8, so one swizzle serves them all.
        u32 to = tile + swizzled(first, chunk);
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            // A copy of 0 bytes reads nothing, wherever it points.
            u32 here = first + i * ROW_STEP < rows ? bytes : 0;
            if (vector_codes) cp_async_16(to + i * ROW_STEP * TILE_K, codes + i * row_step, here);
        }
        if (!vector_codes) {
#pragma unroll 1
            for (u32 i = 0; i < ROWS; i++) {
                u32 here = first + i * ROW_STEP < rows ? bytes : 0;
                copy_bytes(to + i * ROW_STEP * TILE_K, codes + i * row_step, here);
            }
        }
        codes += TILE_K;
        load_scales(tile_scales, interval, k_left, lane);
        scales += scale_interval;
    }

   private:
    // The same for rows that do not start at multiples of 16 bytes: byte by byte, and at once.
    static __device__ __forceinline__ void copy_bytes(u32 to, const u8* from, u32 bytes) {
        u32 words[4] = {0, 0, 0, 0};
#pragma unroll
        for (u32 i = 0; i < CHUNK; i++) {
            if (i < bytes) words[i / 4] |= static_cast<u32>(from[i]) << i % 4 * 8;
        }
        store_shared_16(to, words);
    }

    // One scale for each row that exists, or the one of the block: every fourth time with the next three.
    __device__ __forceinline__ void load_scales(u32 to, u32 interval, u32 k_left, u32 lane) {
        if (granule != 1) {
            u32 left = (k_left + TILE_K - 1) / TILE_K;
            if (lane != 0) return;
            if (!vector_scales) {
                cp_async_4(to, scales, 4);
            } else if (interval % QUAD == 0) {
                cp_async_16(to, scales, min(left, QUAD) * sizeof(float));
            }
        } else if (vector_scales) {
            u32 row = lane * 4;
            if (row < TILE_M) {
                u32 here = rows > row ? min(rows - row, 4u) * 4 : 0;
                cp_async_16(to + row * 4, scales + row, here);
            }
        } else if (lane < TILE_M) {
            cp_async_4(to + lane * 4, scales + lane * scale_row, lane < rows ? 4 : 0);
        }
    }
};

// Adds a partial sum to the accumulator. `Multiply::row`, `col` say which elements a thread holds.
template <Promotion ORDER, class Multiply>
__device__ __forceinline__ void promote_all(
    float (&acc)[Multiply::SUMS], const float (&partial)[Multiply::SUMS], const float* scales_a, const float* scales_b,
    u32 mask_a, u32 mask_b
) {
#pragma unroll
    for (u32 nj = 0; nj < Multiply::PAIRS_ACROSS; nj++) {
        u32 col = Multiply::col(nj);
        float sb0 = scales_b[col & mask_b], sb1 = scales_b[(col + 1) & mask_b];
#pragma unroll
        for (u32 mi = 0; mi < Multiply::PAIRS_DOWN; mi++) {
            float sa = scales_a[Multiply::row(mi) & mask_a];
            u32 at = Multiply::pair(mi, nj);
            acc[at] = promote<ORDER>(acc[at], partial[at], sa, sb0);
            acc[at + 1] = promote<ORDER>(acc[at + 1], partial[at + 1], sa, sb1);
        }
    }
}

// Stores the tile at (`row`, `col`) of D from `sums` [TILE_M, SUMS_PITCH]: a warp a row, QUAD columns a thread.
template <class Live>
__device__ __forceinline__ void store_tile(const Problem& p, u32 row, u32 col, const float* sums, Live live) {
    static_assert(TILE_N == 32 * QUAD, "a warp stores a row");
    const Store& s = p.store;
    bool whole = rows_of_quads(s.d, s.ld_d, s.format == OUT_F32 ? 4 : 2);
    bool whole_addend = rows_of_quads(s.addend, s.ld_addend, 4);
    u32 left = threadIdx.x % 32 * QUAD, n = p.b.rows;
    if (col + left >= n) return;
    u32 count = min(n - (col + left), QUAD), end = min(p.stored_rows - row, TILE_M);
#pragma unroll 1
    for (u32 i = threadIdx.x / 32; i < end; i += THREADS / 32) {
        float4 v = *reinterpret_cast<const float4*>(sums + i * SUMS_PITCH + left);
        float x[QUAD] = {v.x, v.y, v.z, v.w};
        store_quad(s, row + i, col + left, count, live(row + i), whole, whole_addend, x);
    }
}

// Computes the tile at (`row`, `col`) of D. All threads of the CTA call it; `live(i)` says whether row i of D belongs
// to a group.
//
//   stage s of STAGES:  | A 128×128 | B 128×128 | scales of A | scales of B |
//
//   interval t:   wait for stage t ─ barrier ─ start copies of interval t + STAGES − 1 ─ multiply stage t ─ promote
//
// The one barrier of an interval says two things: that all threads' copies of stage t have arrived, and that all
// threads have multiplied the interval t − 1, whose stage the copies then overwrite.
template <class Multiply, u32 STAGES, class Live>
__device__ __forceinline__ void compute_tile(const Problem& p, u32 row, u32 col, u8* shared, Live live) {
    u32 base = shared_address(shared);
    Loader load_a(p.a, row), load_b(p.b, col);
    u32 intervals = load_a.rows == 0 ? 0 : (p.k + TILE_K - 1) / TILE_K;
    // Scales of A are copied by the first half of the threads, those of B by the second; the others' lanes are too
    // high.
    u32 lane_a = threadIdx.x, lane_b = threadIdx.x ^ (THREADS / 2);

    u32 loaded = 0, stage_in = 0;
    auto start_copies = [&] {
        if (loaded < intervals) {
            u32 stage = base + stage_in * STAGE_BYTES, k_left = p.k - loaded * TILE_K;
            u32 scales_a = base + scales_offset(p.a.granule, stage_in, loaded, STAGE_SCALES_A);
            u32 scales_b = base + scales_offset(p.b.granule, stage_in, loaded, STAGE_SCALES_B);
            load_a.load(stage, scales_a, loaded, k_left, lane_a);
            load_b.load(stage + STAGE_B, scales_b, loaded, k_left, lane_b);
        }
        cp_async_commit();
        loaded++;
        stage_in = stage_in + 1 == STAGES ? 0 : stage_in + 1;
    };
    for (u32 s = 0; s + 1 < STAGES; s++) start_copies();

    float acc[Multiply::SUMS];
#pragma unroll
    for (u32 i = 0; i < Multiply::SUMS; i++) acc[i] = 0.0f;
    // A block's one scale serves all rows.
    u32 mask_a = p.a.granule == 1 ? ~0u : 0, mask_b = p.b.granule == 1 ? ~0u : 0;

    for (u32 t = 0, stage = 0; t < intervals; t++) {
        cp_async_wait<STAGES - 2>();
        Multiply::before_barrier();
        __syncthreads();
        start_copies();
        float partial[Multiply::SUMS];
        u32 tile = base + stage * STAGE_BYTES;
        Multiply::interval(partial, tile, tile + STAGE_B);
        const u8* at_a = shared + scales_offset(p.a.granule, stage, t, STAGE_SCALES_A);
        const u8* at_b = shared + scales_offset(p.b.granule, stage, t, STAGE_SCALES_B);
        const float *scales_a = reinterpret_cast<const float*>(at_a), *scales_b = reinterpret_cast<const float*>(at_b);
        if (p.promotion == SCALES_FIRST) {
            promote_all<SCALES_FIRST, Multiply>(acc, partial, scales_a, scales_b, mask_a, mask_b);
        } else if (p.promotion == PARTIAL_FIRST) {
            promote_all<PARTIAL_FIRST, Multiply>(acc, partial, scales_a, scales_b, mask_a, mask_b);
        } else {
            promote_all<UNFUSED, Multiply>(acc, partial, scales_a, scales_b, mask_a, mask_b);
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    // The sums go through shared memory, so that a warp stores whole rows of the tile. No copy is under way: the last
    // interval's have arrived, and what was committed after them is empty.
    __syncthreads();
#pragma unroll
    for (u32 mi = 0; mi < Multiply::PAIRS_DOWN; mi++) {
#pragma unroll
        for (u32 nj = 0; nj < Multiply::PAIRS_ACROSS; nj++) {
            u32 at = Multiply::pair(mi, nj);
            u32 to = base + (Multiply::row(mi) * SUMS_PITCH + Multiply::col(nj)) * sizeof(float);
            store_shared_8(to, acc[at], acc[at + 1]);
        }
    }
    __syncthreads();
    store_tile(p, row, col, reinterpret_cast<const float*>(shared), live);
}

// ---- the forms -------------------------------------------------------------------------------------------------------
// blockIdx.x is the tile's row, so that CTAs that run together share columns of B, blockIdx.y its column, blockIdx.z
// the group.

// The dense form.
template <class Multiply, u32 STAGES>
__device__ __forceinline__ void gemm_dense(const Problem& p, u8* shared) {
    compute_tile<Multiply, STAGES>(p, blockIdx.x * TILE_M, blockIdx.y * TILE_N, shared, [](u32) { return true; });
}

// m-grouped contiguous. Rows that lie in one tile belong to one group, its rows of padding come last; a tile whose
// first row is padding is all padding.
template <class Multiply, u32 STAGES>
__device__ __forceinline__ void gemm_contiguous(
    Problem& p, u8* shared, const i32* groups, i64 b_group, i64 scale_b_group
) {
    u32 row = blockIdx.x * TILE_M;
    i32 g = groups[row];
    if (g < 0) {
        p.a.rows = 0;
    } else {
        skip_groups(p.b, g, b_group, scale_b_group);
    }
    compute_tile<Multiply, STAGES>(p, row, blockIdx.y * TILE_N, shared, [=](u32 i) { return groups[i] >= 0; });
}

// m-grouped masked.
template <class Multiply, u32 STAGES>
__device__ __forceinline__ void gemm_masked(
    Problem& p, u8* shared, const i32* valid, i64 a_group, i64 b_group, i64 scale_a_group, i64 scale_b_group
) {
    select_masked(p, blockIdx.z, valid, a_group, b_group, scale_a_group, scale_b_group);
    u32 rows = p.a.rows;
    compute_tile<Multiply, STAGES>(
        p, blockIdx.x * TILE_M, blockIdx.y * TILE_N, shared, [=](u32 i) { return i < rows; }
    );
}

// k-grouped.
template <class Multiply, u32 STAGES>
__device__ __forceinline__ void gemm_k_grouped(Problem& p, u8* shared, const i32* groups) {
    select_k_group(p, blockIdx.z, groups);
    gemm_dense<Multiply, STAGES>(p, shared);
}

// The dense form of one pair of formats as a kernel.
#define GEMM_DENSE(NAME, MULTIPLY, STAGES)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME(GEMM_PARAMETERS) {                                  \
        Problem p = GEMM_PROBLEM;                                                                                     \
        gemm_dense<MULTIPLY, STAGES>(p, stages);                                                                      \
    }

// The grouped forms as kernels NAME_contiguous, NAME_masked and NAME_k_grouped.
#define GEMM_GROUPED(NAME, MULTIPLY, STAGES)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                          \
        NAME##_contiguous(GEMM_PARAMETERS, GEMM_GROUP_PARAMETERS) {                                                   \
        Problem p = GEMM_PROBLEM;                                                                                     \
        gemm_contiguous<MULTIPLY, STAGES>(p, stages, groups, b_group, scale_b_group);                                 \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                          \
        NAME##_masked(GEMM_PARAMETERS, GEMM_GROUP_PARAMETERS) {                                                       \
        Problem p = GEMM_PROBLEM;                                                                                     \
        gemm_masked<MULTIPLY, STAGES>(                                                                                \
            p, stages, groups, a_group, b_group, scale_a_group, scale_b_group                                         \
        );                                                                                                            \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                          \
        NAME##_k_grouped(GEMM_PARAMETERS, GEMM_GROUP_PARAMETERS) {                                                    \
        Problem p = GEMM_PROBLEM;                                                                                     \
        gemm_k_grouped<MULTIPLY, STAGES>(p, stages, groups);                                                          \
    }
