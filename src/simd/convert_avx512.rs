//! [`Convert`] in AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;

use super::avx512::{Avx512, LANES, op};
use super::convert::{Convert, copy_ends};

/// Bytes of a register, which streaming stores align to.
const BYTES: usize = 4 * LANES;

impl<const BF16: bool> Convert for Avx512<BF16> {
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn sub_u32(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn blend_bits(self, mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_ternarylogic_epi32::<0xCA>(mask, a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_min_epi32(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_max_epi32(a, b))
    }

    #[inline(always)]
    fn select_above(self, a: __m512i, b: __m512i, x: __m512i, y: __m512i) -> __m512i {
        op!(_mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(a, b), y, x))
    }

    #[inline(always)]
    fn count_above(self, a: __m512i, b: __m512i) -> u32 {
        op!(_mm512_cmpgt_epi32_mask(a, b).count_ones())
    }

    #[inline(always)]
    fn count_zero_bytes(self, a: __m512i) -> u32 {
        op!(_mm512_testn_epi8_mask(a, a).count_ones())
    }

    #[inline(always)]
    fn largest(self, a: __m512i) -> u32 {
        op!(_mm512_reduce_max_epi32(a).cast_unsigned())
    }

    #[inline(always)]
    fn pack_bytes(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        // Packing works within 128 bits: dword 4l + r there is of quarter l of register r.
        op!({
            let packed = _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, packed)
        })
    }

    #[inline(always)]
    fn pack_words(self, [a, b]: [__m512i; 2]) -> __m512i {
        op!({
            let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
            _mm512_permutexvar_epi64(order, _mm512_packus_epi32(a, b))
        })
    }

    #[inline(always)]
    fn store_bytes(self, x: __m512i, out: &mut [u8]) {
        let out = &mut out[..BYTES];
        // SAFETY: as in `op`; the slice holds 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn stream(self, from: &[u8], to: &mut [u8]) {
        for (from, to) in copy_ends::<BYTES>(from, to) {
            // SAFETY: as in `op`; both arrays hold 64 bytes, and `to` begins at a multiple of 64.
            unsafe { _mm512_stream_si512(to.as_mut_ptr().cast(), _mm512_loadu_si512(from.as_ptr().cast())) }
        }
    }

    #[inline(always)]
    fn fence(self) {
        op!(_mm_sfence());
    }
}
