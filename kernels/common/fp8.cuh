// E4M3 codes: payloads to codes, codes to values. The bits are those of src/formats; every NaN payload is code 7F.
#pragma once

#include "ptx.cuh"

// How a payload becomes a code: quant::ElementCast.
enum Cast : i32 {
    CAST_SATURATE = 0,        // ±infinity and what lies beyond become ±448
    CAST_NON_SATURATING = 1,  // they become NaN with the payload's sign
    CAST_POSITIVE_ZERO = 2,   // saturating; −0 becomes +0
};

constexpr u32 E4M3_NAN = 0x7F;
// The largest magnitude that rounds to 448: the midpoint to the next value, ties to even.
constexpr float E4M3_LAST = 464.0f;

// Four payloads to four codes, the first in bits 0–7.
__device__ __forceinline__ u32 encode_e4m3x4(const float (&payload)[4], i32 cast) {
    if (cast == CAST_SATURATE) {
        return cvt_e4m3x2_f32(payload[0], payload[1]) | cvt_e4m3x2_f32(payload[2], payload[3]) << 16;
    }
    // Adding −0 changes nothing, adding +0 only −0.
    const float zero = cast == CAST_POSITIVE_ZERO ? 0.0f : -0.0f;
    // No finite value and no infinity lies above the second limit.
    const u32 limit = cast == CAST_NON_SATURATING ? __float_as_uint(E4M3_LAST) : F32_INFINITY;
    float p[4];
    u32 nan = 0;
#pragma unroll
    for (i32 i = 0; i < 4; ++i) {
        p[i] = __fadd_rn(payload[i], zero);
        const u32 magnitude = __float_as_uint(p[i]) & F32_ABS;
        // Setting the bits of 7F keeps the sign.
        nan |= magnitude > limit ? E4M3_NAN << 8 * i : 0u;
    }
    return cvt_e4m3x2_f32(p[0], p[1]) | cvt_e4m3x2_f32(p[2], p[3]) << 16 | nan;
}

// Four codes to four values, exact.
__device__ __forceinline__ void decode_e4m3x4(u32 codes, float (&v)[4]) {
    const u32 low = cvt_f16x2_e4m3x2(codes);
    const u32 high = cvt_f16x2_e4m3x2(codes >> 16);
    v[0] = cvt_f32_f16(low);
    v[1] = cvt_f32_f16(low >> 16);
    v[2] = cvt_f32_f16(high);
    v[3] = cvt_f32_f16(high >> 16);
}
