//! AVX-512: multiply-adds that round toward zero by themselves.

use std::arch::x86_64::*;

use super::super::avx512::Avx512;
use super::{Fused, FusedWork};

/// An intrinsic without a pointer.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` exists, so `Avx512::detect` found the instructions.
        unsafe { $call }
    };
}

const TOWARD_ZERO: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;

/// Lanes of one register of f64.
const HALF: usize = 8;

type S = Avx512<false>;

impl Fused for S {
    const BIASED: bool = true;
    // 16 sums, four registers of B and a row of A, of 32.
    const NARROW_ROWS: usize = 4;
    // Sums and columns take two registers each.
    const WIDE_ROWS: usize = 2;

    type F64 = [__m512d; 2];

    fn vectorize_fused<W: FusedWork>(self, work: W) -> W::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn plain<W: FusedWork>(s: S, work: W) -> W::Output {
            work.run::<S, false>(s)
        }
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx2,fma")]
        fn counting<W: FusedWork>(s: S, work: W) -> W::Output {
            work.run::<S, true>(s)
        }
        if W::COUNTS && is_x86_feature_detected!("avx512vpopcntdq") {
            // SAFETY: as in `op`, and VPOPCNTDQ was found just now.
            unsafe { counting(self, work) }
        } else {
            op!(plain(self, work))
        }
    }

    #[inline(always)]
    fn sub_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_subs_epu8(a, b))
    }

    #[inline(always)]
    fn max_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_max_epu8(a, b))
    }

    #[inline(always)]
    fn sub_u32(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn max_i32(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_max_epi32(a, b))
    }

    #[inline(always)]
    fn and_or(self, a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> __m512i {
        op!(_mm512_ternarylogic_epi32::<0xF8>(_mm512_and_si512(c, d), a, b))
    }

    #[inline(always)]
    fn count_ones<const NATIVE: bool>(self, a: __m512i) -> __m512i {
        if NATIVE {
            // SAFETY: `NATIVE` is what `vectorize_fused` passes where it found VPOPCNTDQ.
            return unsafe { _mm512_popcnt_epi32(a) };
        }
        op!({
            // Nibbles by table, then the bytes of a lane summed.
            let table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
            let nibble = _mm512_set1_epi8(15);
            let low = _mm512_shuffle_epi8(table, _mm512_and_si512(a, nibble));
            let high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32::<4>(a), nibble));
            let words = _mm512_maddubs_epi16(_mm512_add_epi8(low, high), _mm512_set1_epi8(1));
            _mm512_madd_epi16(words, _mm512_set1_epi16(1))
        })
    }

    #[inline(always)]
    fn select_at_least(self, x: __m512i, bound: u32, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_mask_mov_epi32(b, _mm512_cmpge_epu32_mask(x, _mm512_set1_epi32(bound.cast_signed())), a))
    }

    #[inline(always)]
    fn add_truncated(self, sum: __m512, a: __m512, b: __m512, _: __m512) -> __m512 {
        op!(_mm512_fmadd_round_ps::<TOWARD_ZERO>(a, b, sum))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn splat_f64(self, x: f64) -> [__m512d; 2] {
        [op!(_mm512_set1_pd(x)); 2]
    }

    #[inline(always)]
    fn load_f64(self, x: &[f64]) -> [__m512d; 2] {
        let x = &x[..2 * HALF];
        // SAFETY: as in `op`; the slice holds sixteen elements.
        unsafe { [_mm512_loadu_pd(x.as_ptr()), _mm512_loadu_pd(x.as_ptr().add(HALF))] }
    }

    #[inline(always)]
    fn store_f64(self, x: [__m512d; 2], out: &mut [f64]) {
        let out = &mut out[..2 * HALF];
        // SAFETY: as in `op`; the slice holds sixteen elements.
        unsafe {
            _mm512_storeu_pd(out.as_mut_ptr(), x[0]);
            _mm512_storeu_pd(out.as_mut_ptr().add(HALF), x[1]);
        }
    }

    #[inline(always)]
    fn widen(self, x: __m512) -> [__m512d; 2] {
        op!([_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x))])
    }

    #[inline(always)]
    fn narrow(self, x: [__m512d; 2]) -> __m512 {
        op!({
            let low = _mm512_cvt_roundpd_ps::<TOWARD_ZERO>(x[0]);
            let high = _mm512_cvt_roundpd_ps::<TOWARD_ZERO>(x[1]);
            let r = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
            // Rounding toward zero stops at the largest f32.
            let largest = _mm512_set1_epi32(f32::MAX.to_bits().cast_signed());
            let magnitude = _mm512_and_si512(_mm512_castps_si512(r), _mm512_set1_epi32(i32::MAX));
            if _mm512_cmpeq_epi32_mask(magnitude, largest) == 0 {
                return r;
            }
            let bound = _mm512_set1_pd(2f64.powi(128));
            let low = _mm512_cmp_pd_mask::<_CMP_GE_OQ>(_mm512_abs_pd(x[0]), bound);
            let high = _mm512_cmp_pd_mask::<_CMP_GE_OQ>(_mm512_abs_pd(x[1]), bound);
            let over = u16::from(low) | u16::from(high) << HALF;
            // One more in the last place.
            let bits = _mm512_castps_si512(r);
            _mm512_castsi512_ps(_mm512_mask_add_epi32(bits, over, bits, _mm512_set1_epi32(1)))
        })
    }

    #[inline(always)]
    fn join_halves(self, high: __m512i, low: __m512i) -> [__m512d; 2] {
        op!({
            let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            [
                _mm512_castsi512_pd(_mm512_permutex2var_epi32(low, first, high)),
                _mm512_castsi512_pd(_mm512_permutex2var_epi32(low, second, high)),
            ]
        })
    }

    #[inline(always)]
    fn sub_f64(self, a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        op!([_mm512_sub_pd(a[0], b[0]), _mm512_sub_pd(a[1], b[1])])
    }

    #[inline(always)]
    fn mul_f64(self, a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        op!([_mm512_mul_pd(a[0], b[0]), _mm512_mul_pd(a[1], b[1])])
    }

    #[inline(always)]
    fn add_truncated_f64(
        self,
        sum: [__m512d; 2],
        a: [__m512d; 2],
        b: [__m512d; 2],
        _: [__m512d; 2],
    ) -> [__m512d; 2] {
        op!([
            _mm512_fmadd_round_pd::<TOWARD_ZERO>(a[0], b[0], sum[0]),
            _mm512_fmadd_round_pd::<TOWARD_ZERO>(a[1], b[1], sum[1])
        ])
    }
}
