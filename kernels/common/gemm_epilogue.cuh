// What happens to a sum outside the tensor core: promotion, tensor scale, addend, rounding, store. Every operation is an
// intrinsic with its rounding, so that the compiler contracts nothing; together they are clauses 5 to 7 of the contract
// (src/gemm/mod.rs).
#pragma once

#include "types.cuh"

// How a partial sum joins the accumulator: gemm::Promotion. These and the next numbers are those that the launcher passes.
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

// One rounding to nearest even; NaN is 7FC0.
__device__ __forceinline__ u32 bf16_bits(float x) {
    u32 bits = __float_as_uint(x);
    if (x != x) return 0x7FC0;
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

// Stores columns j and j + 1, as far as they are below n, of row i.
//
// `pairs` says that both are stored as one access: D's base and row stride are multiples of it. A row that belongs to no
// group (`live` is false) is +0.
__device__ __forceinline__ void store_pair(const Store& s, bool pairs, u32 i, u32 j, u32 n, bool live, float x0, float x1) {
    if (j >= n) return;
    bool second = j + 1 < n;
    x0 = __fmul_rn(x0, s.tensor_scale);
    x1 = __fmul_rn(x1, s.tensor_scale);
    if (s.addend != nullptr && live) {
        const float* c = s.addend + i * s.ld_addend + j;
        x0 = __fadd_rn(x0, c[0]);
        if (second) x1 = __fadd_rn(x1, c[1]);
    }
    x0 = live ? canonical(x0) : 0.0f;
    x1 = live ? canonical(x1) : 0.0f;
    if (s.format == OUT_F32) {
        float* d = static_cast<float*>(s.d) + i * s.ld_d + j;
        if (pairs && second) {
            *reinterpret_cast<float2*>(d) = make_float2(x0, x1);
        } else {
            d[0] = x0;
            if (second) d[1] = x1;
        }
    } else {
        unsigned short* d = static_cast<unsigned short*>(s.d) + i * s.ld_d + j;
        u32 y0 = bf16_bits(x0), y1 = bf16_bits(x1);
        if (pairs && second) {
            *reinterpret_cast<u32*>(d) = y0 | y1 << 16;
        } else {
            d[0] = static_cast<unsigned short>(y0);
            if (second) d[1] = static_cast<unsigned short>(y1);
        }
    }
}

// Whether pairs of columns can be stored, and loaded, as one access.
__device__ __forceinline__ bool stores_pairs(const Store& s) {
    u64 base = reinterpret_cast<u64>(s.d);
    return s.ld_d % 2 == 0 && base % (s.format == OUT_F32 ? 8 : 4) == 0;
}
