// What quantisation does to the data, counted as src/quant/stats.rs counts it.
//
// Granules are counted as they are decided. Elements are looked at again, and only by warps that may have something to count:
// a code of zero, or a granule that is `loud`, which has a NaN or an infinity or whose largest payload lies beyond the largest
// code. In ordinary data these are few warps of a thousand, and the first pass has neither the registers nor the
// instructions of the second.
#pragma once

#include "fp8.cuh"

// Where a kernel adds what it has counted, in this order.
enum Stat : i32 {
    STAT_NAN = 0,
    STAT_INFINITE = 1,
    STAT_SATURATED = 2,
    STAT_FLUSHED = 3,
    STAT_LOST = 4,
    STAT_ZERO_GRANULES = 5,
    STAT_FLOORED_GRANULES = 6,
    STAT_NONFINITE_GRANULES = 7,
};

// Whether more can have happened in a granule than elements that became zero. `amax` leaves NaN out or is one, `payload` is
// what becomes of it.
__device__ __forceinline__ bool is_loud(u32 amax, bool has_nan, float payload) {
    return has_nan || amax >= F32_INFINITY || (__float_as_uint(payload) & F32_ABS) > __float_as_uint(E4M3_LAST);
}

// Whether one of four codes may be zero: the borrow of one marks the next too, if that is 1. Whether its element was zero is
// seen when it is looked at again: the elements would have to be kept beside the codes to see it here.
__device__ __forceinline__ bool has_zeros(u32 codes) {
    return (((codes & 0x7F7F7F7Fu) - 0x01010101u) & 0x80808080u) != 0;
}

// Granules that a thread has counted, 10 bits each: zero, under the floor, not finite.
constexpr i32 GRANULE_BITS = 10;

// A granule; `amax` is not raised to the floor.
__device__ __forceinline__ u32 count_granule(u32 amax, bool has_nan, float floor) {
    u32 counts = amax == 0 && !has_nan;
    if (amax > 0 && amax < __float_as_uint(floor)) counts |= 1u << GRANULE_BITS;
    if (amax >= F32_INFINITY || has_nan) counts |= 1u << 2 * GRANULE_BITS;
    return counts;
}

__device__ __forceinline__ void add_count(u64* stats, i32 stat, u32 count) {
    if (threadIdx.x % LANES == 0 && count != 0) atomicAdd(stats + stat, (u64)count);
}

// Adds the granules of a warp. All lanes take part.
__device__ __forceinline__ void add_granules(u64* stats, u32 counts) {
    const u32 sum = __reduce_add_sync(ALL_LANES, counts);
    constexpr u32 MASK = (1u << GRANULE_BITS) - 1;
    add_count(stats, STAT_ZERO_GRANULES, sum & MASK);
    add_count(stats, STAT_FLOORED_GRANULES, sum >> GRANULE_BITS & MASK);
    add_count(stats, STAT_NONFINITE_GRANULES, sum >> 2 * GRANULE_BITS);
}

// Elements that a thread has counted, two numbers of 16 bits to a word: a warp has at most 1024.
struct Counts {
    u32 nan_infinite, saturated_flushed, lost;
};

constexpr u32 LOW = 1, HIGH = 1u << 16;

// Counts the first `valid` of four elements by their payloads.
__device__ __forceinline__ void count4(Counts& counts, const float (&x)[4], const float (&payload)[4], i32 cast, i32 valid) {
    const u32 codes = encode_e4m3x4(payload, cast);
#pragma unroll
    for (i32 i = 0; i < 4; ++i) {
        const u32 magnitude = __float_as_uint(x[i]) & F32_ABS, code = codes >> 8 * i & E4M3_NAN;
        const u32 p = __float_as_uint(payload[i]) & F32_ABS;
        if (i >= valid) continue;
        if (magnitude >= F32_INFINITY) {
            counts.nan_infinite += magnitude > F32_INFINITY ? LOW : HIGH;
            continue;
        }
        if (magnitude != 0 && code == 0) counts.saturated_flushed += HIGH;
        if (p > __float_as_uint(E4M3_LAST) && p <= F32_INFINITY) counts.saturated_flushed += LOW;
        if (code == E4M3_NAN) counts.lost += LOW;
    }
}

// Adds the elements of a warp. All lanes take part.
__device__ __forceinline__ void add_elements(u64* stats, const Counts& counts) {
    const u32 nan_infinite = __reduce_add_sync(ALL_LANES, counts.nan_infinite);
    const u32 saturated_flushed = __reduce_add_sync(ALL_LANES, counts.saturated_flushed);
    add_count(stats, STAT_NAN, nan_infinite % HIGH);
    add_count(stats, STAT_INFINITE, nan_infinite / HIGH);
    add_count(stats, STAT_SATURATED, saturated_flushed % HIGH);
    add_count(stats, STAT_FLUSHED, saturated_flushed / HIGH);
    add_count(stats, STAT_LOST, __reduce_add_sync(ALL_LANES, counts.lost));
}
