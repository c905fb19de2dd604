// The contract's model `f32` on the device, one thread an element of D: what the fast kernels are compared with where
// there is no other arithmetic to compare them with. Plain, complete, slow.
//
// Targets: every architecture. Compiled by NVRTC 13.5: 30–38 registers on sm_89 and sm_90a, 36–45 on sm_120a; no LDL,
// no STL.
//
// | kernel                         | grid                          | block  | dynamic shared | registers | CTAs/SM |
// |--------------------------------|-------------------------------|--------|----------------|-----------|---------|
// | gemm_f32_reference             | ⌈n/32⌉, ⌈m/4⌉                 | 32 × 4 | 0              | ≤ 64      | 8       |
// | gemm_f32_reference_contiguous  | ⌈n/32⌉, ⌈m/4⌉                 | 32 × 4 | 0              | ≤ 64      | 8       |
// | gemm_f32_reference_masked      | ⌈n/32⌉, ⌈m/4⌉, groups         | 32 × 4 | 0              | ≤ 64      | 8       |
// | gemm_f32_reference_k_grouped   | ⌈n/32⌉, ⌈m/4⌉, groups         | 32 × 4 | 0              | ≤ 64      | 8       |
#include "gemm_epilogue.cuh"
#include "gemm_problem.cuh"
#include "ptx.cuh"

// The value of a code of a format with `MANTISSA` mantissa bits, by moving bits: no rounding can come in.
template <u32 MANTISSA, u32 BIAS, bool INFINITE>
__device__ float decode(u32 code) {
    constexpr u32 F32_MANTISSA = 23, F32_BIAS = 127, F32_SPECIAL = 0x7F800000, F32_NAN = 0x7FC00000;
    constexpr u32 TOP_EXPONENT = 0x7F >> MANTISSA, MASK = (1 << MANTISSA) - 1;
    u32 sign = (code & 0x80) << 24, exponent = (code & 0x7F) >> MANTISSA, mantissa = code & MASK;
    if (INFINITE && exponent == TOP_EXPONENT) {
        return __uint_as_float(mantissa == 0 ? sign | F32_SPECIAL : F32_NAN);
    }
    if (!INFINITE && (code & 0x7F) == 0x7F) return __uint_as_float(F32_NAN);
    if (exponent == 0) {
        if (mantissa == 0) return __uint_as_float(sign);
        // A subnormal: move its leading one to where the hidden bit of a normal number is.
        u32 shift = __clz(mantissa) - (31 - MANTISSA);
        return __uint_as_float(
            sign | (F32_BIAS - BIAS + 1 - shift) << F32_MANTISSA
            | (mantissa << shift & MASK) << (F32_MANTISSA - MANTISSA)
        );
    }
    return __uint_as_float(
        sign | (exponent + F32_BIAS - BIAS) << F32_MANTISSA | mantissa << (F32_MANTISSA - MANTISSA)
    );
}

__device__ __forceinline__ float decode(u32 code, i32 format) {
    return format == E4M3 ? decode<3, 7, false>(code) : decode<2, 15, true>(code);
}

// What the reference is told besides the parameters of every GEMM.
struct Reference {
    u32 granule_k;           // elements of K that share a scale
    u32 interval;            // elements of K in a promotion interval; 0: D is the chain itself, without scales
    i32 format_a, format_b;  // Fp8
};

// c + Σ a[k]·b[k] over `from` ≤ k < `to`, ascending.
__device__ __forceinline__ float chain(
    const Reference& r, const u8* row_a, const u8* row_b, u32 from, u32 to, float c
) {
    for (u32 k = from; k < to; k++) {
        c = __fmaf_rn(decode(row_a[k], r.format_a), decode(row_b[k], r.format_b), c);
    }
    return c;
}

// D[i, j] for the element of this thread; `live` as in the epilogue.
__device__ void element(const Problem& p, const Reference& r, u32 i, u32 j, bool live) {
    const Store& s = p.store;
    float acc = 0.0f;
    if (live) {
        const u8 *row_a = p.a.codes + i * p.a.ld, *row_b = p.b.codes + j * p.b.ld;
        float c = s.addend == nullptr ? 0.0f : s.addend[i * s.ld_addend + j];
        if (r.interval == 0) {
            acc = chain(r, row_a, row_b, 0, p.k, c);
        } else {
            const float* scales_a = p.a.scales + (i / p.a.granule) * p.a.scale_row;
            const float* scales_b = p.b.scales + (j / p.b.granule) * p.b.scale_row;
            for (u32 from = 0, to; from < p.k; from = to) {
                to = min(from + r.interval, p.k);
                float partial = chain(r, row_a, row_b, from, to, 0.0f);
                float sa = scales_a[(from / r.granule_k) * p.a.scale_interval];
                float sb = scales_b[(from / r.granule_k) * p.b.scale_interval];
                if (p.promotion == SCALES_FIRST) acc = promote<SCALES_FIRST>(acc, partial, sa, sb);
                if (p.promotion == PARTIAL_FIRST) acc = promote<PARTIAL_FIRST>(acc, partial, sa, sb);
                if (p.promotion == UNFUSED) acc = promote<UNFUSED>(acc, partial, sa, sb);
            }
            acc = __fmul_rn(acc, s.tensor_scale);
            if (s.addend != nullptr) acc = __fadd_rn(acc, c);
        }
        acc = canonical(acc);
    }
    if (s.format == OUT_F32) {
        static_cast<float*>(s.d)[i * s.ld_d + j] = acc;
    } else {
        static_cast<unsigned short*>(s.d)[i * s.ld_d + j] = static_cast<unsigned short>(bf16_bits(acc));
    }
}

// After the parameters of every GEMM: elements of K that share a scale, elements of K in a promotion interval (0: no
// promotion and no scales), formats of A and of B (0 E4M3, 1 E5M2). The granules may be any number of rows.
#define REFERENCE_PARAMETERS u32 granule_k, u32 interval, i32 format_a, i32 format_b
#define REFERENCE_ARGUMENTS                                                                                           \
    Reference { granule_k, interval, format_a, format_b }

constexpr unsigned REFERENCE_THREADS = 128, REFERENCE_CTAS = 8;

extern "C" __global__ void __launch_bounds__(REFERENCE_THREADS, REFERENCE_CTAS)
    gemm_f32_reference(GEMM_PARAMETERS, REFERENCE_PARAMETERS) {
    u32 i = blockIdx.y * blockDim.y + threadIdx.y, j = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < m && j < n) element(GEMM_PROBLEM, REFERENCE_ARGUMENTS, i, j, true);
}

extern "C" __global__ void __launch_bounds__(REFERENCE_THREADS, REFERENCE_CTAS)
    gemm_f32_reference_contiguous(GEMM_PARAMETERS, GEMM_GROUP_PARAMETERS, REFERENCE_PARAMETERS) {
    u32 i = blockIdx.y * blockDim.y + threadIdx.y, j = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= m || j >= n) return;
    Problem p = GEMM_PROBLEM;
    i32 g = groups[i];
    if (g >= 0) skip_groups(p.b, g, b_group, scale_b_group);
    element(p, REFERENCE_ARGUMENTS, i, j, g >= 0);
}

extern "C" __global__ void __launch_bounds__(REFERENCE_THREADS, REFERENCE_CTAS)
    gemm_f32_reference_masked(GEMM_PARAMETERS, GEMM_GROUP_PARAMETERS, REFERENCE_PARAMETERS) {
    u32 i = blockIdx.y * blockDim.y + threadIdx.y, j = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= m || j >= n) return;
    Problem p = GEMM_PROBLEM;
    select_masked(p, blockIdx.z, groups, a_group, b_group, scale_a_group, scale_b_group);
    element(p, REFERENCE_ARGUMENTS, i, j, i < p.a.rows);
}

extern "C" __global__ void __launch_bounds__(REFERENCE_THREADS, REFERENCE_CTAS)
    gemm_f32_reference_k_grouped(GEMM_PARAMETERS, GEMM_GROUP_PARAMETERS, REFERENCE_PARAMETERS) {
    u32 i = blockIdx.y * blockDim.y + threadIdx.y, j = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= m || j >= n) return;
    Problem p = GEMM_PROBLEM;
    select_k_group(p, blockIdx.z, groups);
    element(p, REFERENCE_ARGUMENTS, i, j, true);
}
