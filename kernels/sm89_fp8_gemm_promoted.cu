// FP8 GEMM by mma.sync.m16n8k32 with promotion every 128 elements of K: dense and grouped, scales of 1×128 or 128×128
// on either side.
//
// Targets: sm_89 (accumulation model `ada`) and sm_120a, where mma.sync on FP8 is native. On sm_90 and sm_100 it is
// rewritten to FP16, with other speed and other bits.
//
// | kernel                                   | arguments (gemm_problem.cuh)          | grid                         |
// |------------------------------------------|---------------------------------------|------------------------------|
// | sm89_{A}_{B}_gemm_promoted               | GEMM_PARAMETERS                       | ⌈m/128⌉, ⌈n/128⌉             |
// | sm89_e4m3_e4m3_gemm_promoted_contiguous  | GEMM_PARAMETERS GEMM_GROUP_PARAMETERS | ⌈m/128⌉, ⌈n/128⌉             |
// | sm89_e4m3_e4m3_gemm_promoted_masked      | the same                              | ⌈m/128⌉, ⌈n/128⌉, groups     |
// | sm89_e4m3_e4m3_gemm_promoted_k_grouped   | the same                              | ⌈m/128⌉, ⌈n/128⌉, groups     |
//
// A, B: e4m3 or e5m2, all four pairs. Block 256. Dynamic shared memory 101376 bytes (to be asked for: above 48 KiB).
// Planned: one CTA an SM, at most 255 registers a thread, no spills. Compiled by NVRTC 13.5: 201–203 registers on
// sm_89, 220–237 on sm_120a; 64 QMMA and 24 LDSM an interval of a warp, all loads of the loop LDGSTS; no LDL, no STL.
//
// Estimate of the work: an interval of a CTA copies 32 KiB of codes and 0.5–1 KiB of scales for 4.19 MFLOP on the
// tensor core and 2–3 · 16384 f32 operations of promotion.
#include "gemm_mainloop.cuh"

// One interval by mma.sync: warp w computes the rows 64 (w mod 2) … and the columns 32 (w / 2) … of the tile.
//
//        32   32   32   32          a warp's 64×32, by fragments of 16×8:
//      +----+----+----+----+
//   64 | w0 | w2 | w4 | w6 |        4 down × 4 across × 4 sums = 64 accumulators and 64 partial sums a thread
//      +----+----+----+----+        each step of 32 along K: 4 + 2 ldmatrix.x4 for 16 mma
//   64 | w1 | w3 | w5 | w7 |
//      +----+----+----+----+
template <Fp8 A, Fp8 B>
struct MmaSync {
    static constexpr u32 DOWN = 4, ACROSS = 4, WARP_M = DOWN * 16, WARP_N = ACROSS * 8, WARPS_M = TILE_M / WARP_M;
    static constexpr u32 SUMS = DOWN * ACROSS * 4;
    static constexpr u32 K_STEP = 32, CHUNKS_IN_STEP = K_STEP / CHUNK;
    static_assert(WARPS_M * (TILE_N / WARP_N) * 32 == THREADS, "the warps tile the tile");

    // The sums of a thread come in pairs of two columns: two rows, 8 apart, in each fragment.
    static constexpr u32 PAIRS_DOWN = DOWN * 2, PAIRS_ACROSS = ACROSS;

    static __device__ __forceinline__ u32 first_row() { return threadIdx.x / 32 % WARPS_M * WARP_M; }
    static __device__ __forceinline__ u32 first_col() { return threadIdx.x / 32 / WARPS_M * WARP_N; }
    static __device__ __forceinline__ u32 row(u32 mi) { return first_row() + mi * 8 + threadIdx.x % 32 / 4; }
    static __device__ __forceinline__ u32 col(u32 nj) { return first_col() + nj * 8 + threadIdx.x % 4 * 2; }
    static __device__ __forceinline__ constexpr u32 pair(u32 mi, u32 nj) {
        return (mi / 2 * ACROSS + nj) * 4 + mi % 2 * 2;
    }

    static __device__ __forceinline__ void before_barrier() {}

    // partial = A·Bᵀ over the stage's 128 elements of K, ascending, from +0.
    static __device__ __forceinline__ void interval(float (&partial)[SUMS], u32 tile_a, u32 tile_b) {
        float(&sums)[DOWN][ACROSS][4] = reinterpret_cast<float(&)[DOWN][ACROSS][4]>(partial);
#pragma unroll
        for (u32 i = 0; i < SUMS; i++) partial[i] = 0.0f;
        u32 lane = threadIdx.x % 32;
        // A, 16 rows: matrices (rows 0–7, k 0–15), (8–15, 0–15), (0–7, 16–31), (8–15, 16–31) are a[0] … a[3].
        u32 row_a = first_row() + lane % 16, chunk_a = lane / 16;
        // B, 16 columns of D: matrices (0–7, 0–15), (0–7, 16–31), (8–15, 0–15), (8–15, 16–31) are b0, b1 of two
        // fragments.
        u32 row_b = first_col() + lane % 8 + lane / 16 * 8, chunk_b = lane / 8 % 2;
#pragma unroll
        for (u32 step = 0; step < TILE_K / K_STEP; step++) {
            u32 a[DOWN][4], b[ACROSS / 2][4];
#pragma unroll
            for (u32 i = 0; i < DOWN; i++) {
                ldmatrix_x4(a[i], tile_a + i * 16 * TILE_K + swizzled(row_a, chunk_a + step * CHUNKS_IN_STEP));
            }
#pragma unroll
            for (u32 j = 0; j < ACROSS / 2; j++) {
                ldmatrix_x4(b[j], tile_b + j * 16 * TILE_K + swizzled(row_b, chunk_b + step * CHUNKS_IN_STEP));
            }
#pragma unroll
            for (u32 i = 0; i < DOWN; i++) {
#pragma unroll
                for (u32 j = 0; j < ACROSS; j++) {
                    mma_m16n8k32<A, B>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }
};

// Three stages of 33 KiB: the 99 KiB that a CTA may have on sm_89 and sm_120.
constexpr u32 MMA_STAGES = 3;
static_assert(SUMS_BYTES <= MMA_STAGES * STAGE_BYTES, "the sums fit where the stages were");

extern __shared__ __align__(1024) u8 stages[];

using E4M3_E4M3 = MmaSync<E4M3, E4M3>;
using E4M3_E5M2 = MmaSync<E4M3, E5M2>;
using E5M2_E4M3 = MmaSync<E5M2, E4M3>;
using E5M2_E5M2 = MmaSync<E5M2, E5M2>;

GEMM_DENSE(sm89_e4m3_e4m3_gemm_promoted, E4M3_E4M3, MMA_STAGES)
GEMM_DENSE(sm89_e4m3_e5m2_gemm_promoted, E4M3_E5M2, MMA_STAGES)
GEMM_DENSE(sm89_e5m2_e4m3_gemm_promoted, E5M2_E4M3, MMA_STAGES)
GEMM_DENSE(sm89_e5m2_e5m2_gemm_promoted, E5M2_E5M2, MMA_STAGES)
GEMM_GROUPED(sm89_e4m3_e4m3_gemm_promoted, E4M3_E4M3, MMA_STAGES)
