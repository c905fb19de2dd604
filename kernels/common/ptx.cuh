// All inline PTX of the project. A function is one instruction; nothing outside this file has an asm statement, so
// that what must be checked against the PTX manual is here and nowhere else.
#pragma once

#include "types.cuh"

// ---- conversions -----------------------------------------------------------------------------------------------------

// cvt.rn.satfinite.e4m3x2.f32: two floats to two E4M3 codes, nearest even; beyond 448 and infinity become 448 with the
// sign kept, every NaN becomes 7F. `low` goes to bits 0–7, `high` to bits 8–15. sm_89 and later.
__device__ __forceinline__ u32 cvt_e4m3x2_f32(float low, float high) {
    u16 codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    return codes;
}

// cvt.rn.f16x2.e4m3x2: two E4M3 codes to two halves, exact; code of bits 0–7 in bits 0–15. sm_89 and later.
__device__ __forceinline__ u32 cvt_f16x2_e4m3x2(u32 codes) {
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((u16)codes));
    return halves;
}

// cvt.f32.f16: exact. `half` is the bit pattern.
__device__ __forceinline__ float cvt_f32_f16(u32 half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)half));
    return value;
}

// ---- addresses -------------------------------------------------------------------------------------------------------

// The 32-bit address within the shared window that the instructions below take.
__device__ __forceinline__ u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}

// ---- shared memory ---------------------------------------------------------------------------------------------------

// Stores 16 bytes to shared memory.
__device__ __forceinline__ void store_shared_16(u32 to, const u32 (&words)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3])
                 : "memory");
}

// Stores two floats to shared memory in one access.
__device__ __forceinline__ void store_shared_8(u32 to, float x, float y) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x), "f"(y) : "memory");
}

// ---- cp.async --------------------------------------------------------------------------------------------------------

// Copies 16 bytes to shared memory past the L1 cache; only the first `bytes` are read, the others become zero.
__device__ __forceinline__ void cp_async_16(u32 to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Copies 4 bytes to shared memory, or writes a zero if `bytes` is 0.
__device__ __forceinline__ void cp_async_4(u32 to, const void* from, u32 bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Closes the group of this thread's copies so far.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all but the youngest `PENDING` groups of this thread have arrived.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- ldmatrix --------------------------------------------------------------------------------------------------------

// Loads four 8×16-byte matrices: lanes 8i … 8i+7 name the rows of matrix i; lane l gets in r[i] the bytes 4(l mod 4)
// … 4(l mod 4)+3 of row l/4 of matrix i.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// ---- mma.sync --------------------------------------------------------------------------------------------------------

// The element types of the products. The numbers are those that the launcher passes.
enum Fp8 : i32 { E4M3 = 0, E5M2 = 1 };

// d += A·B for A [16, 32] and B [32, 8] of FP8 codes, by one warp.
//
// With g = lane / 4 and t = lane mod 4: a[0], a[1] hold rows g, g+8 at k = 4t … 4t+3, a[2], a[3] the same rows at k +
// 16; b0, b1 hold column g at k = 4t … 4t+3 and k + 16; d holds (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
template <Fp8 A, Fp8 B>
__device__ __forceinline__ void mma_m16n8k32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#define PTX_MMA(TYPES)                                                                                                 \
    asm("mma.sync.aligned.m16n8k32.row.col.f32." TYPES                                                                \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                        \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                              \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
    if constexpr (A == E4M3 && B == E4M3) PTX_MMA("e4m3.e4m3");
    if constexpr (A == E4M3 && B == E5M2) PTX_MMA("e4m3.e5m2");
    if constexpr (A == E5M2 && B == E4M3) PTX_MMA("e5m2.e4m3");
    if constexpr (A == E5M2 && B == E5M2) PTX_MMA("e5m2.e5m2");
#undef PTX_MMA
}

// ---- wgmma (sm_90a) --------------------------------------------------------------------------------------------------

// Makes this thread's writes to shared memory visible to the asynchronous proxy, through which wgmma reads.
__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Orders the registers that the next wgmma accumulates into after their earlier uses.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes the group of this warpgroup's products so far.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until all but the youngest `PENDING` groups are done; `d` is named so that no use of it moves before the
// wait.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait(float (&d)[64]) {
#pragma unroll
    for (int i = 0; i < 64; i++) asm volatile("" : "+f"(d[i])::"memory");
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#pragma unroll
    for (int i = 0; i < 64; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The descriptor of a K-major operand in shared memory with 128-byte rows, swizzled by 128 bytes:
//
//   bits  0–13  start address / 16
//   bits 16–29  leading dimension offset / 16: not used by swizzled K-major operands, 1 by convention
//   bits 32–45  stride offset / 16: from one group of 8 rows to the next, 8 · 128 bytes = 1024
//   bits 49–51  base offset: 0, since the pattern starts at multiples of 1024 bytes, where every tile starts
//   bits 62–63  swizzle: 1 is 128 bytes
//
// 32 more elements along K are 32 bytes within the first row, so 2 more in the start address; the hardware applies
// the swizzle to the sum.
__device__ __forceinline__ u64 wgmma_descriptor(u32 address) {
    constexpr u64 LEADING = u64{1} << 16, STRIDE = u64{1024 / 16} << 32, SWIZZLE_128B = u64{1} << 62;
    return static_cast<u64>((address & 0x3FFFF) >> 4) | LEADING | STRIDE | SWIZZLE_128B;
}

// d = A·B, or d += A·B if `accumulate`, for A [64, 32] and B [128, 32] of FP8 codes in shared memory, by one
// warpgroup.
//
// With w the warp, g = lane / 4 and t = lane mod 4: d[4j + e] is row 16w + g + 8(e / 2), column 8j + 2t + e mod 2.
template <Fp8 A, Fp8 B>
__device__ __forceinline__ void wgmma_m64n128k32(float (&d)[64], u64 a, u64 b, i32 accumulate) {
#define PTX_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PTX_D16(i) PTX_D4(i), PTX_D4(i + 4), PTX_D4(i + 8), PTX_D4(i + 12)
#define PTX_WGMMA(TYPES)                                                                                               \
    asm volatile(                                                                                                     \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                                                  \
        "wgmma.mma_async.sync.aligned.m64n128k32.f32." TYPES " "                                                      \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                     \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                            \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                            \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                           \
        "%64, %65, p, 1, 1;\n}"                                                                                       \
        : PTX_D16(0), PTX_D16(16), PTX_D16(32), PTX_D16(48)                                                               \
        : "l"(a), "l"(b), "r"(accumulate)                                                                             \
        : "memory")
    if constexpr (A == E4M3 && B == E4M3) PTX_WGMMA("e4m3.e4m3");
    if constexpr (A == E4M3 && B == E5M2) PTX_WGMMA("e4m3.e5m2");
    if constexpr (A == E5M2 && B == E4M3) PTX_WGMMA("e5m2.e4m3");
    if constexpr (A == E5M2 && B == E5M2) PTX_WGMMA("e5m2.e5m2");
#undef PTX_WGMMA
#undef PTX_D16
#undef PTX_D4
}
