// The tile that a CTA computes and its picture in shared memory.
#pragma once

#include "types.cuh"

// Rows of D that a CTA computes, columns, and elements of K in a stage of the pipeline.
//
// K of a stage is the promotion interval of DeepSeek-V3, so that a stage ends where a partial sum ends and holds one
// scale per row; M and N are the rows of a 128×128 block, so that a tile lies within one row of blocks.
constexpr u32 TILE_M = 128, TILE_N = 128, TILE_K = 128;

// All threads copy, and all multiply: eight warps, two warpgroups.
constexpr u32 THREADS = 256;

// The bytes of one copy and of one row of an 8×16-byte matrix.
constexpr u32 CHUNK = 16;
constexpr u32 CHUNKS_IN_ROW = TILE_K / CHUNK;

// Offsets within a stage: codes of A, codes of B, scales of A's rows, scales of B's rows.
constexpr u32 STAGE_B = TILE_M * TILE_K;
constexpr u32 STAGE_SCALES_A = STAGE_B + TILE_N * TILE_K;
constexpr u32 STAGE_SCALES_B = STAGE_SCALES_A + TILE_M * 4;
constexpr u32 STAGE_SCALES_END = STAGE_SCALES_B + TILE_N * 4;

// The descriptors of wgmma want tiles at multiples of 1024 bytes, and 33 KiB are one.
constexpr u32 STAGE_BYTES = STAGE_SCALES_END;
static_assert(STAGE_BYTES % 1024 == 0 && STAGE_B % 1024 == 0, "a swizzled tile starts at a multiple of 1024 bytes");

// Byte offset of chunk `chunk` of row `row` in a tile of 128-byte rows: row · 128 + 16 · (chunk xor row mod 8).
//
//              bank 0    4     8     12    16    20    24    28
//     row 0   |  c0  |  c1  |  c2  |  c3  |  c4  |  c5  |  c6  |  c7  |
//     row 1   |  c1  |  c0  |  c3  |  c2  |  c5  |  c4  |  c7  |  c6  |
//     row 2   |  c2  |  c3  |  c0  |  c1  |  c6  |  c7  |  c4  |  c5  |
//     row 3   |  c3  |  c2  |  c1  |  c0  |  c7  |  c6  |  c5  |  c4  |
//     row 4   |  c4  |  c5  |  c6  |  c7  |  c0  |  c1  |  c2  |  c3  |
//     …       row 8 is as row 0
//
// A row fills all 32 banks once. Both accesses of the main loop are served in phases of 8 lanes, 128 bytes each, and
// in each phase every bank is met once:
// - a copy: lanes 8i … 8i+7 write the 8 chunks of one row, a permutation of its banks;
// - ldmatrix: lanes 8i … 8i+7 read one chunk c of 8 successive rows from a multiple of 8, so columns c xor 0 … c xor 7,
//   which are all 8.
//
// It is also the 128-byte swizzle of the matrix descriptors of wgmma (address bits 4–6 xor bits 7–9), where the tile
// starts at a multiple of 1024 bytes.
__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
    return row * TILE_K + ((chunk ^ (row % 8)) * CHUNK);
}

// Elements from one row of the tile's sums to the next, when they pass through shared memory on their way to D.
//
// A warp writes pairs of columns, lane l at row l / 4 and column 2 (l mod 4): 8 bytes a lane, served in phases of 16
// lanes. Rows 136 words apart start 8 banks apart, so the 4 rows of a phase fill banks 0–7, 8–15, 16–23 and 24–31.
// Reads are of whole rows.
constexpr u32 SUMS_PITCH = TILE_N + 8;
constexpr u32 SUMS_BYTES = TILE_M * SUMS_PITCH * 4;
