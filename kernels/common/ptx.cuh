// All inline PTX of the project. A function is one instruction; its comment gives the PTX manual's name for it.
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
