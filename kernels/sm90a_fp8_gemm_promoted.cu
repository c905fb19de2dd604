// FP8 GEMM by wgmma.m64n128k32 with promotion every 128 elements of K: dense and grouped, scales of 1×128 or 128×128
// on either side.
//
// Target: sm_90a (accumulation model `hopper`). There mma.sync on FP8 runs as FP16 and has other bits.
//
// | kernel                                    | arguments (gemm_problem.cuh)          | grid                        |
// |-------------------------------------------|---------------------------------------|-----------------------------|
// | sm90a_{A}_{B}_gemm_promoted               | GEMM_PARAMETERS                       | ⌈m/128⌉, ⌈n/128⌉            |
// | sm90a_e4m3_e4m3_gemm_promoted_contiguous  | GEMM_PARAMETERS GEMM_GROUP_PARAMETERS | ⌈m/128⌉, ⌈n/128⌉            |
// | sm90a_e4m3_e4m3_gemm_promoted_masked      | the same                              | ⌈m/128⌉, ⌈n/128⌉, groups    |
// | sm90a_e4m3_e4m3_gemm_promoted_k_grouped   | the same                              | ⌈m/128⌉, ⌈n/128⌉, groups    |
//
// A, B: e4m3 or e5m2, all four pairs. Block 256. Dynamic shared memory 135168 bytes (to be asked for: above 48 KiB).
// Planned: one CTA an SM, at most 255 registers a thread, no spills. Compiled by NVRTC 13.5: 254–255 registers; four
// QGMMA.64x128x32 an interval with one wait after the fourth, all loads of the loop LDGSTS; no LDL, no STL.
//
// Estimate of the work: as of sm89_fp8_gemm_promoted.cu.
#include "gemm_mainloop.cuh"

// One interval by wgmma: warpgroup g computes the rows 64 g … 64 g + 63 and all columns of the tile.
//
//   64 | warpgroup 0 |     four wgmma of 64×128×32 an interval, 64 accumulators and 64 partial sums a thread;
//   64 | warpgroup 1 |     while one warpgroup promotes, the tensor cores multiply for the other
template <Fp8 A, Fp8 B>
struct Wgmma {
    static constexpr u32 SUMS = 64, K_STEP = 32, WARPGROUP = 128, WARPGROUP_ROWS = 64;
    static_assert(TILE_N == 128 && TILE_M / WARPGROUP_ROWS * WARPGROUP == THREADS, "the warpgroups tile the tile");

    // The sums of a thread come in pairs of two columns: two rows, 8 apart.
    static constexpr u32 PAIRS_DOWN = 2, PAIRS_ACROSS = TILE_N / 8;

    static __device__ __forceinline__ u32 row(u32 mi) {
        return threadIdx.x / 32 * 16 + mi * 8 + threadIdx.x % 32 / 4;
    }
    static __device__ __forceinline__ u32 col(u32 nj) { return nj * 8 + threadIdx.x % 4 * 2; }
    static __device__ __forceinline__ constexpr u32 pair(u32 mi, u32 nj) { return nj * 4 + mi * 2; }

    // The copies were written through the generic proxy, and wgmma reads through the asynchronous one.
    static __device__ __forceinline__ void before_barrier() { fence_proxy_async(); }

    // partial = A·Bᵀ over the stage's 128 elements of K, ascending, from +0.
    static __device__ __forceinline__ void interval(float (&partial)[SUMS], u32 tile_a, u32 tile_b) {
        u64 a = wgmma_descriptor(tile_a + threadIdx.x / WARPGROUP * (WARPGROUP_ROWS * TILE_K));
        u64 b = wgmma_descriptor(tile_b);
        wgmma_fence();
#pragma unroll
        for (u32 step = 0; step < TILE_K / K_STEP; step++) {
            // The first one ignores what the registers hold: the sum starts at +0.
            wgmma_m64n128k32<A, B>(partial, a + step * (K_STEP / CHUNK), b + step * (K_STEP / CHUNK), step != 0);
        }
        wgmma_commit();
        wgmma_wait<0>(partial);
    }
};

// Four stages of 33 KiB of the 227 KiB that a CTA may have: registers allow one CTA an SM in any case.
constexpr u32 WGMMA_STAGES = 4;
static_assert(SUMS_BYTES <= WGMMA_STAGES * STAGE_BYTES, "the sums fit where the stages were");

extern __shared__ __align__(1024) u8 stages[];

using E4M3_E4M3 = Wgmma<E4M3, E4M3>;
using E4M3_E5M2 = Wgmma<E4M3, E5M2>;
using E5M2_E4M3 = Wgmma<E5M2, E4M3>;
using E5M2_E5M2 = Wgmma<E5M2, E5M2>;

GEMM_DENSE(sm90a_e4m3_e4m3_gemm_promoted, E4M3_E4M3, WGMMA_STAGES)
GEMM_DENSE(sm90a_e4m3_e5m2_gemm_promoted, E4M3_E5M2, WGMMA_STAGES)
GEMM_DENSE(sm90a_e5m2_e4m3_gemm_promoted, E5M2_E4M3, WGMMA_STAGES)
GEMM_DENSE(sm90a_e5m2_e5m2_gemm_promoted, E5M2_E5M2, WGMMA_STAGES)
GEMM_GROUPED(sm90a_e4m3_e4m3_gemm_promoted, E4M3_E4M3, WGMMA_STAGES)
