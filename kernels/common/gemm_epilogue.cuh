// What happens to a sum outside the tensor core: promotion, tensor scale, addend, rounding, store. Every operation is
// an intrinsic with its rounding, so that the compiler contracts nothing; together they are clauses 5 to 7 of the
// contract (src/gemm/mod.rs).
#pragma once

#include "types.cuh"

// How a partial sum joins the accumulator: gemm::Promotion. These and the next numbers are those that the launcher
// passes.
enum Promotion : i32 { SCALES_FIRST = 0, PARTIAL_FIRST = 1, UNFUSED = 2 };

// How D is stored.
enum OutputFormat : i32 { OUT_F32 = 0, OUT_BF16 = 1 };

// The accumulator after the partial sum p with scales sa and sb; fl is one rounding.
//
//   SCALES_FIRST   fma(fl(sa·sb), p, acc)
//   PARTIAL_FIRST  fma(fl(p·sa), sb, acc)
//   UNFUSED        fl(acc + fl(fl(p·sa)·sb))
template <Promotion ORDER>
__device__ __forceinline__ float promote(float acc, float partial, float sa, float sb) {
    if constexpr (ORDER == SCALES_FIRST) return __fmaf_rn(__fmul_rn(sa, sb), partial, acc);
    if constexpr (ORDER == PARTIAL_FIRST) return __fmaf_rn(__fmul_rn(partial, sa), sb, acc);
    return __fadd_rn(acc, __fmul_rn(__fmul_rn(partial, sa), sb));
}

// One rounding to nearest even, of anything but NaN that is not the canonical one, which becomes 7FC0.
__device__ __forceinline__ u32 bf16_bits(float x) {
    u32 bits = __float_as_uint(x);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// Where D goes and what is added to it on the way.
struct Store {
    void* d;              // [rows, n], f32 or bf16 by `format`
    const float* addend;  // [rows, n], or null
    i64 ld_d, ld_addend;  // elements from one row to the next
    float tensor_scale;   // fl(ta·tb), the second level of scales; 1 changes no bit
    i32 format;           // OutputFormat
};

// Elements of a row that a thread finishes at once: 16 bytes of f32.
constexpr u32 QUAD = 4;

// Whether rows start where QUAD elements of `bytes` each are one access.
__device__ __forceinline__ bool rows_of_quads(const void* base, i64 ld, u32 bytes) {
    return ld % QUAD == 0 && reinterpret_cast<u64>(base) % (QUAD * bytes) == 0;
}

// Finishes and stores the `count` sums, 1 … QUAD, of row i from column j on. A row that belongs to no group (`live`
// is false) is +0. `whole` says that QUAD elements of D are one access, `whole_addend` the same of the addend.
__device__ __forceinline__ void store_quad(
    const Store& s, u32 i, u32 j, u32 count, bool live, bool whole, bool whole_addend, float (&x)[QUAD]
) {
    float c[QUAD] = {0.0f, 0.0f, 0.0f, 0.0f};
    bool adds = s.addend != nullptr && live;
    if (adds) {
        const float* from = s.addend + i * s.ld_addend + j;
        if (whole_addend && count == QUAD) {
            float4 v = *reinterpret_cast<const float4*>(from);
            c[0] = v.x, c[1] = v.y, c[2] = v.z, c[3] = v.w;
        } else {
#pragma unroll
            for (u32 e = 0; e < QUAD; e++) {
                if (e < count) c[e] = from[e];
            }
        }
    }
#pragma unroll
    for (u32 e = 0; e < QUAD; e++) {
        x[e] = __fmul_rn(x[e], s.tensor_scale);
        // Not without an addend: −0 + 0 is +0.
        if (adds) x[e] = __fadd_rn(x[e], c[e]);
        x[e] = live ? canonical(x[e]) : 0.0f;
    }
    if (s.format == OUT_F32) {
        float* to = static_cast<float*>(s.d) + i * s.ld_d + j;
        if (whole && count == QUAD) {
            *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
        } else {
#pragma unroll
            for (u32 e = 0; e < QUAD; e++) {
                if (e < count) to[e] = x[e];
            }
        }
    } else {
        u16* to = static_cast<u16*>(s.d) + i * s.ld_d + j;
        u32 y[QUAD];
#pragma unroll
        for (u32 e = 0; e < QUAD; e++) y[e] = bf16_bits(x[e]);
        if (whole && count == QUAD) {
            *reinterpret_cast<uint2*>(to) = make_uint2(y[0] | y[1] << 16, y[2] | y[3] << 16);
        } else {
#pragma unroll
            for (u32 e = 0; e < QUAD; e++) {
                if (e < count) to[e] = static_cast<u16>(y[e]);
            }
        }
    }
}
