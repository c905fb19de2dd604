// Names for the integers of device code: NVRTC has no <cstdint>.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i32 = int;
using i64 = long long;
using u64 = unsigned long long;

constexpr u32 ALL_LANES = 0xFFFFFFFFu;
constexpr i32 LANES = 32;

constexpr u32 F32_ABS = 0x7FFFFFFFu;
constexpr u32 SIGN = 0x80000000u;
constexpr u32 F32_INFINITY = 0x7F800000u;
// The only NaN that kernels write.
constexpr u32 F32_NAN = 0x7FC00000u;

__device__ __forceinline__ bool is_nan_bits(u32 bits) { return (bits & F32_ABS) > F32_INFINITY; }

__device__ __forceinline__ float canonical(float x) {
    return is_nan_bits(__float_as_uint(x)) ? __uint_as_float(F32_NAN) : x;
}
