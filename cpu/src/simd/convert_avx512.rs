//! [`Convert`] in AVX-512 F, BW, DQ and VL.

use std::arch::x86_64::*;

use super::avx512::{Avx512, LANES, Tables, op};
use super::convert::{Convert, packed_outer_bytes};
use super::{Bf16Table, Simd};

/// Bytes of a register, which streaming stores align to.
const BYTES: usize = 4 * LANES;

/// Where the lowest bytes of the lanes of two registers are among their 128 bytes, and then the highest.
const fn outer_bytes_of_lanes() -> [u8; BYTES] {
    let (mut at, mut i) = ([0; BYTES], 0);
    while i < 2 * LANES {
        at[i] = 4 * i as u8;
        at[2 * LANES + i] = 4 * i as u8 + 3;
        i += 1;
    }
    at
}

/// Where byte `byte` of the words of two registers is among their 128 bytes.
const fn bytes_of_words(byte: usize) -> [u8; BYTES] {
    let (mut at, mut i) = ([0; BYTES], 0);
    while i < BYTES {
        at[i] = (2 * i + byte) as u8;
        i += 1;
    }
    at
}

/// Where the bytes of words 32 · register … are among 64 low and 64 high bytes.
const fn words_of_bytes(register: usize) -> [u8; BYTES] {
    let (mut at, mut i) = ([0; BYTES], 0);
    while i < BYTES {
        at[i] = (BYTES * (i % 2) + 2 * LANES * register + i / 2) as u8;
        i += 1;
    }
    at
}

/// The upper two bytes of every lane.
const UPPER_HALVES: u64 = 0xCCCC_CCCC_CCCC_CCCC;

/// Where the bytes of the f32 of codes 16 · register … are among 64 low and 64 high bytes; their lower halves are zero.
const fn bytes_of_values(register: usize) -> [u8; BYTES] {
    let (mut at, mut i) = ([0; BYTES], 0);
    while i < LANES {
        let code = (LANES * register + i) as u8;
        at[4 * i + 2] = code;
        at[4 * i + 3] = 64 + code;
        i += 1;
    }
    at
}

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
    fn quotient(self, x: __m512, divisor: __m512, inverse: __m512) -> __m512 {
        let q = self.mul(x, inverse);
        op!(_mm512_fnmadd_ps(_mm512_fmsub_ps(q, divisor, x), inverse, q))
    }

    #[inline(always)]
    fn add_product(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn at_least(self, x: __m512, least: __m512) -> __m512 {
        // The larger magnitude, with the sign of the first.
        op!(_mm512_range_ps::<0b0011>(x, least))
    }

    #[inline(always)]
    fn shr_lanes(self, a: __m512i, n: __m512i) -> __m512i {
        // Of shifts by less than 32 the compiler makes one instruction.
        op!(_mm512_srlv_epi32(a, _mm512_and_si512(n, _mm512_set1_epi32(31))))
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
    fn largest_of_each(self, x: &[__m512i]) -> __m512i {
        op!({
            // Quarter l of fours[g] holds the largest lanes of quarter l of registers 4g … 4g + 3.
            let mut fours = [_mm512_setzero_si512(); 4];
            for g in 0..4 {
                let (a, b, c, d) = (x[4 * g], x[4 * g + 1], x[4 * g + 2], x[4 * g + 3]);
                let ab = _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                let cd = _mm512_max_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
                fours[g] = _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
            }
            let [a, b, c, d] = fours;
            let ab = _mm512_max_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b));
            let cd = _mm512_max_epi32(_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xDD>(c, d));
            _mm512_max_epi32(_mm512_shuffle_i32x4::<0x88>(ab, cd), _mm512_shuffle_i32x4::<0xDD>(ab, cd))
        })
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
    fn outer_bytes(self, x: [__m512i; 4]) -> [__m512i; 2] {
        if !BF16 {
            return packed_outer_bytes(self, x);
        }
        let [a, b, c, d] = x;
        let at = self.load_bytes(const { &outer_bytes_of_lanes() });
        // SAFETY: `self` exists with BF16, so `detect` found VBMI.
        unsafe {
            let (ab, cd) = (_mm512_permutex2var_epi8(a, at, b), _mm512_permutex2var_epi8(c, at, d));
            let low = _mm512_inserti64x4::<1>(ab, _mm512_castsi512_si256(cd));
            [low, _mm512_shuffle_i64x2::<0b11_10_11_10>(ab, cd)]
        }
    }

    #[inline(always)]
    fn pack_words(self, [a, b]: [__m512i; 2]) -> __m512i {
        op!({
            let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
            _mm512_permutexvar_epi64(order, _mm512_packus_epi32(a, b))
        })
    }

    #[inline(always)]
    fn look_up(self, table: &Bf16Table, codes: __m512i) -> [__m512; 4] {
        const VALUES: [[u8; BYTES]; 4] =
            [bytes_of_values(0), bytes_of_values(1), bytes_of_values(2), bytes_of_values(3)];
        let Tables { low, high, sign, .. } = self.tables(table);
        let [low, high] = self.bytes([low, high], sign, codes);
        let mut values = [self.splat(0.0); 4];
        for i in 0..4 {
            let at = self.load_bytes(&VALUES[i]);
            // SAFETY: `bytes` asserts that `self` exists with BF16, so `detect` found VBMI.
            values[i] = self.float(unsafe { _mm512_maskz_permutex2var_epi8(UPPER_HALVES, low, at, high) });
        }
        values
    }

    #[inline(always)]
    fn split_words(self, [a, b]: [__m512i; 2]) -> [__m512i; 2] {
        assert!(BF16, "VBMI comes with BF16");
        const AT: [[u8; BYTES]; 2] = [bytes_of_words(0), bytes_of_words(1)];
        let [low, high] = [self.load_bytes(&AT[0]), self.load_bytes(&AT[1])];
        // SAFETY: `self` exists with BF16, so `detect` found VBMI.
        unsafe { [_mm512_permutex2var_epi8(a, low, b), _mm512_permutex2var_epi8(a, high, b)] }
    }

    #[inline(always)]
    fn look_up_words(self, table: [__m512i; 4], codes: __m512i) -> [__m512i; 2] {
        const AT: [[u8; BYTES]; 2] = [words_of_bytes(0), words_of_bytes(1)];
        let [a, b, c, d] = table;
        let [low, high] = self.bytes([[a, c], [b, d]], self.splat_u32(0x8080_8080), codes);
        let [first, second] = [self.load_bytes(&AT[0]), self.load_bytes(&AT[1])];
        // SAFETY: `bytes` asserts that `self` exists with BF16, so `detect` found VBMI.
        unsafe { [_mm512_permutex2var_epi8(low, first, high), _mm512_permutex2var_epi8(low, second, high)] }
    }

    #[inline(always)]
    fn pick_words(self, [a, b]: [__m512i; 2], at: __m512i) -> __m512i {
        op!(_mm512_permutex2var_epi16(a, at, b))
    }

    #[inline(always)]
    fn bf16_of_normals(self, [a, b]: [__m512; 2]) -> __m512i {
        if !BF16 {
            return self.bf16([a, b]);
        }
        // SAFETY: `self` exists with BF16, so `detect` found AVX-512 BF16; both types are 64 bytes of any value.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(b, a)) }
    }

    #[inline(always)]
    fn store_bytes(self, x: __m512i, out: &mut [u8]) {
        let out = &mut out[..BYTES];
        // SAFETY: as in `op`; the slice holds 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn stream_bytes(self, x: __m512i, out: &mut [u8]) {
        let out = &mut out[..BYTES];
        assert!(out.as_ptr().addr().is_multiple_of(BYTES));
        // SAFETY: as in `op`; the slice holds 64 bytes and begins at a multiple of 64.
        unsafe { _mm512_stream_si512(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn fence(self) {
        op!(_mm_sfence());
    }
}
