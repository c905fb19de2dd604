// From amax to scale and payload, operation by operation: the device's copy of src/quant/derive.rs.
//
// A recipe is data here too: it arrives as an argument, so one kernel serves every recipe. All branches on it are the
// same for the whole grid, and all but the payload's are taken once a granule. fl() of the Rust source is one __f*_rn
// intrinsic, which neither flags nor the optimiser may fuse, reorder or flush.
#pragma once

#include "stats.cuh"

enum ScaleForm : i32 {
    FORM_QUOTIENT = 0,               // s = fl(a / MAX)
    FORM_RECIPROCAL = 1,             // s = fl(a · fl(1/MAX))
    FORM_MULTIPLIER_QUOTIENT = 2,    // m = fl(MAX / a), s = fl(1/m)
    FORM_MULTIPLIER_RECIPROCAL = 3,  // m = fl(fl(1/a) · MAX), s = fl(1/m)
};

enum PowerOfTwo : i32 {
    POW2_NO = 0,
    POW2_CEIL_LOG2_F32 = 1,
    POW2_CEIL_FIELD = 2,
    POW2_CEIL_FIELD_CLAMPED = 3,
    POW2_CEIL_MASK = 4,
    POW2_FLOOR_MULTIPLIER = 5,  // the multiplier's fraction bits are cleared
};

enum PayloadForm : i32 {
    PAYLOAD_QUOTIENT = 0,              // fl(x / s)
    PAYLOAD_INVERSE = 1,               // fl(x · fl(1/s)), 0 for s = 0
    PAYLOAD_MAX_OVER_AMAX = 2,         // fl(x · fl(MAX / a))
    PAYLOAD_MAX_TIMES_RECIPROCAL = 3,  // fl(x · fl(fl(1/a) · MAX))
    PAYLOAD_NEGATED_EXPONENT = 4,      // x · 2^−e for s = 2^e, from the exponent field
    PAYLOAD_MULTIPLIER = 5,            // fl(x · m)
};

// Which of the replacement values of a recipe exist.
enum Replaces : i32 {
    REPLACES_ZERO = 1,      // s (scale forms) or m (multiplier forms) of a zero granule
    REPLACES_OVERFLOW = 2,  // an infinite m
    REPLACES_INFINITE = 4,  // m for a = infinity
    REPLACES_NAN = 8,       // m for a = NaN
};

// quant::Recipe as an argument; src/cuda/args.rs writes it and holds the same offsets. 13 words.
struct Recipe {
    i32 form;
    i32 power_of_two;
    i32 payload;
    i32 cast;
    i32 ignores_nan;  // 1: NaN elements do not count in amax; 0: they make it NaN
    i32 replaces;     // set of Replaces
    float floor;      // amax is raised to this
    float max;        // the largest element
    float inv_max;    // fl(1 / max)
    float zero;
    float overflow;
    float infinite;
    float nan;
};

// The granule's stored scale and what its elements are divided or multiplied by.
struct GranuleScale {
    float scale;
    float factor;
};

// |x| as bits that compare as integers like the values do; NaN compares above infinity, or is 0 where it is ignored.
__device__ __forceinline__ u32 amax_bits(float x, const Recipe& recipe) {
    const u32 bits = __float_as_uint(x) & F32_ABS;
    return bits > F32_INFINITY && recipe.ignores_nan ? 0u : bits;
}

__device__ __forceinline__ float from_field(u32 field) { return __uint_as_float(field << 23); }

// ⌈log2 s⌉ where log2 s is rounded to f32 first, for finite s > 0. With s = 2^k (1 + δ) the rounding absorbs
// δ ≤ ⌊2^22 ulp⁺(k) ln 2⌋ · 2^−23, ulp⁺ being the distance from k to the next f32 above: for 2^e ≤ |k| < 2^(e+1) that
// bound is ⌊2^(e−1) ln 2⌋ = 44 >> (7 − e) steps, and that of e − 1 below −2^e, where f32 is twice as dense.
__device__ __forceinline__ i32 ceil_log2_f32(float s) {
    constexpr u32 HALF_GAP_LN2 = 44;  // ⌊2^6 ln 2⌋
    constexpr i32 HALF_GAP_EXPONENT = 7;
    u32 significand = __float_as_uint(s) & 0x007FFFFFu;
    i32 k = (i32)(__float_as_uint(s) >> 23);
    if (k == 0) {
        const i32 shift = __clz((i32)significand) - 8;
        significand <<= shift;
        k = 1 - shift;
    }
    k -= 127;
    const u32 delta = significand & 0x007FFFFFu;
    u32 absorbed = 0;
    if (k != 0) {
        const i32 magnitude = k < 0 ? -k : k;
        i32 e = 31 - __clz(magnitude);
        e -= k < 0 && magnitude == 1 << e;
        absorbed = HALF_GAP_LN2 >> (HALF_GAP_EXPONENT - e);
    }
    return delta == 0 || delta <= absorbed ? k : k + 1;
}

// A scale rounded up to a power of two, in the recipe's way.
__device__ __forceinline__ float round_to_power_of_two(float s, i32 rule) {
    const u32 bits = __float_as_uint(s);
    const u32 ceil_field = ((bits & F32_ABS) >> 23) + ((bits & 0x007FFFFFu) != 0);
    if (rule == POW2_CEIL_LOG2_F32) {
        if (!(s > 0.0f) || bits >= F32_INFINITY) return s;
        const i32 e = ceil_log2_f32(s);
        // 2^e: infinite from 128 on, subnormal below −126.
        return e >= -126 ? from_field((u32)(e + 127)) : __uint_as_float(1u << (e + 149));
    }
    if (rule == POW2_CEIL_FIELD) return from_field(ceil_field);
    if (rule == POW2_CEIL_FIELD_CLAMPED) return from_field(min(max(ceil_field, 1u), 254u));
    if (rule == POW2_CEIL_MASK) return __uint_as_float((bits + 0x007FFFFFu) & F32_INFINITY);
    return s;
}

__device__ __forceinline__ float payload_factor(float s, float a, const Recipe& recipe) {
    // Chains of if, here and above: a switch becomes a table of jumps in local or constant memory.
    if (recipe.payload == PAYLOAD_INVERSE) return s == 0.0f ? 0.0f : __fdiv_rn(1.0f, s);
    if (recipe.payload == PAYLOAD_MAX_OVER_AMAX) return __fdiv_rn(recipe.max, a);
    if (recipe.payload == PAYLOAD_MAX_TIMES_RECIPROCAL) return __fmul_rn(__fdiv_rn(1.0f, a), recipe.max);
    if (recipe.payload == PAYLOAD_NEGATED_EXPONENT) return from_field(254u - (__float_as_uint(s) >> 23));
    return s;
}

// What the amax of a granule decides. `amax` as of amax_bits.
__device__ __forceinline__ GranuleScale granule_scale(u32 amax, const Recipe& recipe) {
    const float a = canonical(__uint_as_float(max(amax, __float_as_uint(recipe.floor))));
    GranuleScale g;
    if (recipe.form == FORM_QUOTIENT || recipe.form == FORM_RECIPROCAL) {
        const float exact =
            recipe.form == FORM_QUOTIENT ? __fdiv_rn(a, recipe.max) : __fmul_rn(a, recipe.inv_max);
        g.scale = round_to_power_of_two(exact, recipe.power_of_two);
        if (g.scale == 0.0f && (recipe.replaces & REPLACES_ZERO)) g.scale = recipe.zero;
        g.factor = payload_factor(g.scale, a, recipe);
    } else {
        const u32 a_bits = __float_as_uint(a);
        float m = recipe.form == FORM_MULTIPLIER_QUOTIENT ? __fdiv_rn(recipe.max, a)
                                                          : __fmul_rn(__fdiv_rn(1.0f, a), recipe.max);
        if (__float_as_uint(m) == F32_INFINITY && (recipe.replaces & REPLACES_OVERFLOW)) m = recipe.overflow;
        if (a == 0.0f && (recipe.replaces & REPLACES_ZERO)) {
            m = recipe.zero;
        } else if (a_bits == F32_INFINITY && (recipe.replaces & REPLACES_INFINITE)) {
            m = recipe.infinite;
        } else if (is_nan_bits(a_bits) && (recipe.replaces & REPLACES_NAN)) {
            m = recipe.nan;
        } else if (recipe.power_of_two == POW2_FLOOR_MULTIPLIER) {
            m = __uint_as_float(__float_as_uint(m) & 0xFF800000u);
        }
        g.factor = m;
        g.scale = __fdiv_rn(1.0f, m);
    }
    g.scale = canonical(g.scale);
    return g;
}

// What an element becomes before the cast.
__device__ __forceinline__ float payload_of(float x, float factor, const Recipe& recipe) {
    return recipe.payload == PAYLOAD_QUOTIENT ? __fdiv_rn(x, factor) : __fmul_rn(x, factor);
}

// Whether there may be more to count in a granule than elements that became zero. `amax` as of amax_bits.
__device__ __forceinline__ bool is_loud(u32 amax, bool has_nan, float factor, const Recipe& recipe) {
    // Payloads grow with the elements: none is larger than that of the largest.
    return is_loud(amax, has_nan, payload_of(__uint_as_float(amax), factor, recipe));
}

// Four elements to four codes, the first in bits 0–7.
__device__ __forceinline__ u32 encode4(const float (&x)[4], float factor, const Recipe& recipe) {
    float p[4];
    if (recipe.payload == PAYLOAD_QUOTIENT) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i) p[i] = __fdiv_rn(x[i], factor);
    } else {
#pragma unroll
        for (i32 i = 0; i < 4; ++i) p[i] = __fmul_rn(x[i], factor);
    }
    return encode_e4m3x4(p, recipe.cast);
}

// How scales are stored.
enum ScaleKind : i32 {
    SCALE_F32 = 0,
    SCALE_E8M0 = 1,         // one byte; only for recipes whose scales are powers of two
    SCALE_PACKED_E8M0 = 2,  // four of them along the columns to a word, the first in the lowest byte
};

// A grid of scales in memory; strides in elements, so that row-major and MN-major grids are both described. Of packed
// scales they are those of the words, in bytes: from one row to the next, and from four columns to the next four.
struct ScaleGrid {
    void* data;
    i64 row_stride;
    i64 col_stride;
    i32 kind;
};

// formats::e8m0::nearest for scales, which are powers of two: 2^−127 and below is byte 0; 0 is FF, and so are infinity and
// NaN, whose exponent it is.
__device__ __forceinline__ u8 e8m0_of(float s) {
    const u32 bits = __float_as_uint(s);
    return bits == 0 ? 0xFF : (u8)(bits >> 23);
}

__device__ __forceinline__ float f32_of_e8m0(u8 byte) {
    return byte == 0xFF ? __uint_as_float(F32_NAN) : byte == 0 ? __uint_as_float(0x00400000u) : from_field(byte);
}

// Where the scale lies, in elements.
__device__ __forceinline__ i64 scale_offset(const ScaleGrid& grid, i64 row, i64 col) {
    if (grid.kind == SCALE_PACKED_E8M0) return row * grid.row_stride + (col >> 2) * grid.col_stride + (col & 3);
    return row * grid.row_stride + col * grid.col_stride;
}

__device__ __forceinline__ void store_scale(const ScaleGrid& grid, i64 row, i64 col, float scale) {
    const i64 at = scale_offset(grid, row, col);
    if (grid.kind == SCALE_F32) {
        ((float*)grid.data)[at] = scale;
    } else {
        ((u8*)grid.data)[at] = e8m0_of(scale);
    }
}

__device__ __forceinline__ float load_scale(const ScaleGrid& grid, i64 row, i64 col) {
    const i64 at = scale_offset(grid, row, col);
    return grid.kind == SCALE_F32 ? ((const float*)grid.data)[at] : f32_of_e8m0(((const u8*)grid.data)[at]);
}
