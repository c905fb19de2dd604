//! [`Convert`] in AVX2.

use std::arch::x86_64::*;

use super::Simd;
use super::avx2::{Avx2, LANES, op};
use super::convert::Convert;

/// Bytes of a register, which streaming stores align to.
const BYTES: usize = 4 * LANES;

impl Convert for Avx2 {
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn quotient(self, x: __m256, divisor: __m256, inverse: __m256) -> __m256 {
        let q = self.mul(x, inverse);
        op!(_mm256_fnmadd_ps(_mm256_fmsub_ps(q, divisor, x), inverse, q))
    }

    #[inline(always)]
    fn add_product(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn at_least(self, x: __m256, least: __m256) -> __m256 {
        let sign = self.splat(-0.0);
        op!(_mm256_or_ps(_mm256_and_ps(sign, x), _mm256_max_ps(_mm256_andnot_ps(sign, x), least)))
    }

    #[inline(always)]
    fn shr_lanes(self, a: __m256i, n: __m256i) -> __m256i {
        // Of shifts by less than 32 the compiler makes one instruction.
        op!(_mm256_srlv_epi32(a, _mm256_and_si256(n, _mm256_set1_epi32(31))))
    }

    #[inline(always)]
    fn sub_u32(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_sub_epi32(a, b))
    }

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_xor_si256(a, b))
    }

    #[inline(always)]
    fn blend_bits(self, mask: __m256i, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b)))
    }

    #[inline(always)]
    fn min(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_min_epi32(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_max_epi32(a, b))
    }

    #[inline(always)]
    fn select_above(self, a: __m256i, b: __m256i, x: __m256i, y: __m256i) -> __m256i {
        op!(_mm256_blendv_epi8(y, x, _mm256_cmpgt_epi32(a, b)))
    }

    #[inline(always)]
    fn count_above(self, a: __m256i, b: __m256i) -> u32 {
        op!(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a, b))).count_ones())
    }

    #[inline(always)]
    fn count_zero_bytes(self, a: __m256i) -> u32 {
        op!(_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, _mm256_setzero_si256())).count_ones())
    }

    #[inline(always)]
    fn largest(self, a: __m256i) -> u32 {
        op!({
            let m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b01_00_11_10>(m));
            let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b10_11_00_01>(m));
            _mm_cvtsi128_si32(m).cast_unsigned()
        })
    }

    #[inline(always)]
    fn largest_of_each(self, x: &[__m256i]) -> __m256i {
        op!({
            // Half l of fours[g] holds the largest lanes of half l of registers 4g … 4g + 3.
            let mut fours = [_mm256_setzero_si256(); 2];
            for g in 0..2 {
                let (a, b, c, d) = (x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3]);
                let ab = _mm256_max_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                let cd = _mm256_max_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                fours[g] = _mm256_max_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
            }
            let [low, high] = fours;
            let first = _mm256_permute2x128_si256::<0x20>(low, high);
            _mm256_max_epi32(first, _mm256_permute2x128_si256::<0x31>(low, high))
        })
    }

    #[inline(always)]
    fn pack_bytes(self, [a, b, c, d]: [__m256i; 4]) -> __m256i {
        // Packing works within 128 bits: dword 4l + r there is of half l of register r.
        op!({
            let packed = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
            _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        })
    }

    #[inline(always)]
    fn pack_words(self, [a, b]: [__m256i; 2]) -> __m256i {
        op!(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b)))
    }

    #[inline(always)]
    fn store_bytes(self, x: __m256i, out: &mut [u8]) {
        let out = &mut out[..BYTES];
        // SAFETY: as in `op`; the slice holds 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn stream_bytes(self, x: __m256i, out: &mut [u8]) {
        let out = &mut out[..BYTES];
        assert!(out.as_ptr().addr().is_multiple_of(BYTES));
        // SAFETY: as in `op`; the slice holds 32 bytes and begins at a multiple of 32.
        unsafe { _mm256_stream_si256(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn fence(self) {
        op!(_mm_sfence());
    }
}
