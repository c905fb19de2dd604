// SwiGLU in f32 operations only, so that the CPU gives the same bits: the device's copy of src/quant/swiglu.rs, where the
// error is stated and tested.
#pragma once

#include "types.cuh"

// e^t for use in 1 + e^t: below −64 as at −64 (1 + e^t is 1), above 88 infinite.
__device__ __forceinline__ float exp_f32(float t) {
    constexpr float LOWEST = -64.0f, HIGHEST = 88.0f;
    constexpr float LOG2_E = 1.44269502f;
    constexpr float ROUND_TO_INTEGER = 12582912.0f;  // 1.5 · 2^23: adding it leaves the integer in the low bits
    constexpr float LN2_HIGH = 0.693359375f;         // ten bits: n · LN2_HIGH is exact
    constexpr float LN2_LOW = -2.12194442e-4f;
    if (t > HIGHEST) return __uint_as_float(F32_INFINITY);
    if (t < LOWEST) t = LOWEST;
    const float shifted = __fmaf_rn(t, LOG2_E, ROUND_TO_INTEGER);
    const float n = __fsub_rn(shifted, ROUND_TO_INTEGER);
    const float r = __fmaf_rn(n, -LN2_LOW, __fmaf_rn(n, -LN2_HIGH, t));
    // Taylor's series to the seventh power: |r| ≤ ln 2 / 2 leaves less than 2^-27.
    float p = 1.0f / 5040.0f;
    p = __fmaf_rn(p, r, 1.0f / 720.0f);
    p = __fmaf_rn(p, r, 1.0f / 120.0f);
    p = __fmaf_rn(p, r, 1.0f / 24.0f);
    p = __fmaf_rn(p, r, 1.0f / 6.0f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    // 2^n, n in −93 … 127, from the low bits of the shifted sum.
    return __fmul_rn(p, __uint_as_float((__float_as_uint(shifted) + 127u) << 23));
}

// silu(gate) · up with silu(x) = x / (1 + e^−x).
__device__ __forceinline__ float swiglu(float gate, float up) {
    return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, exp_f32(-gate))), up);
}
