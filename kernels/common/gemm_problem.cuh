// The arguments that every GEMM kernel takes, in one order, and the dense problem that a CTA finds in them.
#pragma once

#include "gemm_epilogue.cuh"
#include "types.cuh"

// D [m, n] = A [m, k] · B [n, k]ᵀ, both row-major with K contiguous. In order:
//
//   a, b                   codes, one byte each
//   scale_a, scale_b       f32, value = code × scale; element (i, k) of A has the scale
//                          scale_a[(i / granule_m) · scale_a_row + interval · scale_a_interval], B likewise with granule_n.
//                          Strides of 0 share a scale: one for the rows, or one for all.
//   addend                 f32 [m, n] added once after the last interval, or null; may be d
//   d                      f32 or bf16 [m, n], every element of it is written
//   m, n, k                elements
//   lda, ldb               bytes (elements) from a row to the next
//   ld_addend, ldd         elements from a row to the next
//   scale_a_row, scale_a_interval, scale_b_row, scale_b_interval
//                          elements from a granule's scale to that of the next rows, and of the next interval of K
//   granule_m, granule_n   rows of A, and of B, that share a scale
//   tensor_scale           fl(ta·tb) of the second level of scales, 1 where there is none
//   promotion              0 scales-first, 1 partial-first, 2 unfused
//   d_format               0 f32, 1 bf16
//
// The fast kernels ask for more, which the launcher checks: granules of 1 or 128 rows, n at most 65535 · 128 (the
// grid), and in the contiguous form one group in each 128 rows, its padding last. They are at their best, 16 bytes an
// access, where the codes and their row strides are multiples of 16 bytes, the scales of granules of 1 row are MN-major
// (scale_a_row 1, base and scale_a_interval multiples of 16 bytes) and those of blocks row-major (scale_a_interval 1,
// base and scale_a_row multiples of 16 bytes); otherwise codes are copied byte by byte and scales one by one. D and the
// addend go by 16 bytes where their rows start at multiples of that.
#define GEMM_PARAMETERS                                                                                               \
    const u8 *__restrict__ a, const u8 *__restrict__ b, const float *__restrict__ scale_a,                            \
        const float *__restrict__ scale_b, const float *addend, void *d, u32 m, u32 n, u32 k,                         \
        i64 lda, i64 ldb, i64 ld_addend, i64 ldd, i64 scale_a_row, i64 scale_a_interval,                              \
        i64 scale_b_row, i64 scale_b_interval, u32 granule_m, u32 granule_n, float tensor_scale,                      \
        i32 promotion, i32 d_format

// The same made a `Problem`.
#define GEMM_PROBLEM                                                                                                  \
    Problem {                                                                                                         \
        {a, scale_a, lda, scale_a_row, scale_a_interval, m, granule_m},                                               \
            {b, scale_b, ldb, scale_b_row, scale_b_interval, n, granule_n},                                           \
            {d, addend, ldd, ld_addend, tensor_scale, d_format}, m, k, promotion                                      \
    }

// What grouped kernels take besides. In order:
//
//   groups                 contiguous: i32 [m], the group of each row, −1 for padding
//                          masked: i32 [groups], valid rows of each group
//                          k-grouped: i32 [groups + 1, 2], the first element of K of each group and its first interval in
//                          the grid of scales; the last pair is the end
//   a_group, b_group       bytes from a group's codes to the next group's   (0 where groups share an operand)
//   scale_a_group, scale_b_group
//                          elements from a group's scales to the next group's
//
// Forms (blockIdx.z is the group, but for the contiguous form):
//
//   contiguous             A [m, k]; B [groups, n, k]; D [m, n]
//   masked                 A [groups, m, k], m the most rows; B [groups, n, k]; D [groups · m, n]
//   k-grouped              A [m, ΣKg]; B [n, ΣKg]; D [groups · m, n]; k is not read
#define GEMM_GROUP_PARAMETERS                                                                                         \
    const i32 *__restrict__ groups, i64 a_group, i64 b_group, i64 scale_a_group, i64 scale_b_group

// One operand of a dense problem, as the parameters above name it.
struct Operand {
    const u8* codes;
    const float* scales;
    i64 ld, scale_row, scale_interval;
    u32 rows, granule;
};

// A dense problem.
struct Problem {
    Operand a, b;
    Store store;
    u32 stored_rows;  // rows of D; those past the rows of A are +0
    u32 k;
    i32 promotion;
};

// Moves D, and the addend with it, down by `rows` rows.
__device__ __forceinline__ void skip_rows(Store& s, i64 rows) {
    i64 bytes = s.format == OUT_F32 ? 4 : 2;
    s.d = static_cast<char*>(s.d) + rows * s.ld_d * bytes;
    if (s.addend != nullptr) s.addend += rows * s.ld_addend;
}

// Moves an operand on by whole groups.
__device__ __forceinline__ void skip_groups(Operand& x, i64 groups, i64 codes, i64 scales) {
    x.codes += groups * codes;
    x.scales += groups * scales;
}

// The problem of group `g` of the masked form.
__device__ __forceinline__ void select_masked(
    Problem& p, u32 g, const i32* valid, i64 a_group, i64 b_group, i64 scale_a_group, i64 scale_b_group
) {
    skip_groups(p.a, g, a_group, scale_a_group);
    skip_groups(p.b, g, b_group, scale_b_group);
    skip_rows(p.store, static_cast<i64>(g) * p.stored_rows);
    p.a.rows = valid[g];
}

// The problem of group `g` of the k-grouped form.
__device__ __forceinline__ void select_k_group(Problem& p, u32 g, const i32* groups) {
    i64 element = groups[2 * g], interval = groups[2 * g + 1];
    p.k = groups[2 * g + 2] - groups[2 * g];
    p.a.codes += element;
    p.b.codes += element;
    p.a.scales += interval * p.a.scale_interval;
    p.b.scales += interval * p.b.scale_interval;
    skip_rows(p.store, static_cast<i64>(g) * p.stored_rows);
}
