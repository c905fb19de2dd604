//! AVX2: no rounding mode of its own, so terms are truncated before they are added.

use std::arch::x86_64::*;

use super::super::avx2::Avx2;
use super::{Fused, FusedWork};

/// An intrinsic without a pointer.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` exists, so `Avx2::detect` found AVX2 and FMA.
        unsafe { $call }
    };
}

const TOWARD_ZERO: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;

/// Lanes of one register of f64.
const HALF: usize = 4;

impl Fused for Avx2 {
    const BIASED: bool = false;
    // Four sums, their four units and four registers of B, of 16.
    const NARROW_ROWS: usize = 1;
    const WIDE_ROWS: usize = 1;

    type F64 = [__m256d; 2];

    fn vectorize_fused<W: FusedWork>(self, work: W) -> W::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        fn inner<W: FusedWork>(s: Avx2, work: W) -> W::Output {
            work.run::<Avx2, false>(s)
        }
        op!(inner(self, work))
    }

    #[inline(always)]
    fn sub_bytes(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_subs_epu8(a, b))
    }

    #[inline(always)]
    fn max_bytes(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_max_epu8(a, b))
    }

    #[inline(always)]
    fn sub_u32(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_sub_epi32(a, b))
    }

    #[inline(always)]
    fn max_i32(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_max_epi32(a, b))
    }

    #[inline(always)]
    fn and_or(self, a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
        op!(_mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, d)))
    }

    #[inline(always)]
    fn count_ones<const NATIVE: bool>(self, a: __m256i) -> __m256i {
        op!({
            // Nibbles by table, then the bytes of a lane summed.
            let table =
                _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
            let nibble = _mm256_set1_epi8(15);
            let low = _mm256_shuffle_epi8(table, _mm256_and_si256(a, nibble));
            let high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32::<4>(a), nibble));
            let words = _mm256_maddubs_epi16(_mm256_add_epi8(low, high), _mm256_set1_epi8(1));
            _mm256_madd_epi16(words, _mm256_set1_epi16(1))
        })
    }

    #[inline(always)]
    fn select_at_least(self, x: __m256i, bound: u32, a: __m256i, b: __m256i) -> __m256i {
        op!({
            let at_least = _mm256_cmpeq_epi32(_mm256_max_epu32(x, _mm256_set1_epi32(bound.cast_signed())), x);
            _mm256_blendv_epi8(b, a, at_least)
        })
    }

    #[inline(always)]
    fn add_truncated(self, sum: __m256, a: __m256, b: __m256, per_unit: __m256) -> __m256 {
        op!({
            let units = _mm256_mul_ps(_mm256_mul_ps(a, b), per_unit);
            _mm256_add_ps(sum, _mm256_round_ps::<TOWARD_ZERO>(units))
        })
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn splat_f64(self, x: f64) -> [__m256d; 2] {
        [op!(_mm256_set1_pd(x)); 2]
    }

    #[inline(always)]
    fn load_f64(self, x: &[f64]) -> [__m256d; 2] {
        let x = &x[..2 * HALF];
        // SAFETY: as in `op`; the slice holds eight elements.
        unsafe { [_mm256_loadu_pd(x.as_ptr()), _mm256_loadu_pd(x.as_ptr().add(HALF))] }
    }

    #[inline(always)]
    fn store_f64(self, x: [__m256d; 2], out: &mut [f64]) {
        let out = &mut out[..2 * HALF];
        // SAFETY: as in `op`; the slice holds eight elements.
        unsafe {
            _mm256_storeu_pd(out.as_mut_ptr(), x[0]);
            _mm256_storeu_pd(out.as_mut_ptr().add(HALF), x[1]);
        }
    }

    #[inline(always)]
    fn widen(self, x: __m256) -> [__m256d; 2] {
        op!([_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x))])
    }

    #[inline(always)]
    fn narrow(self, x: [__m256d; 2]) -> __m256 {
        op!({
            let r = _mm256_set_m128(_mm256_cvtpd_ps(x[1]), _mm256_cvtpd_ps(x[0]));
            // To nearest so far: where that is beyond x, one less in the last place; infinity becomes the largest f32.
            let (sign, bound) = (_mm256_set1_pd(-0.0), _mm256_set1_pd(2f64.powi(128)));
            let rounded = self.widen(r);
            let mut beyond = [_mm256_setzero_si256(); 2];
            for i in 0..2 {
                let (r, x) = (_mm256_andnot_pd(sign, rounded[i]), _mm256_andnot_pd(sign, x[i]));
                let finite = _mm256_cmp_pd::<_CMP_LT_OQ>(x, bound);
                beyond[i] = _mm256_castpd_si256(_mm256_and_pd(_mm256_cmp_pd::<_CMP_GT_OQ>(r, x), finite));
            }
            // The lower halves of the 64-bit answers, −1 or 0, in the order of the lanes.
            let even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
            let low = _mm256_permutevar8x32_epi32(beyond[0], even);
            let high = _mm256_permutevar8x32_epi32(beyond[1], even);
            let beyond = _mm256_blend_epi32::<0xF0>(low, high);
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(r), beyond))
        })
    }

    #[inline(always)]
    fn join_halves(self, high: __m256i, low: __m256i) -> [__m256d; 2] {
        op!({
            let (a, b) = (_mm256_unpacklo_epi32(low, high), _mm256_unpackhi_epi32(low, high));
            [
                _mm256_castsi256_pd(_mm256_permute2x128_si256::<0x20>(a, b)),
                _mm256_castsi256_pd(_mm256_permute2x128_si256::<0x31>(a, b)),
            ]
        })
    }

    #[inline(always)]
    fn sub_f64(self, a: [__m256d; 2], b: [__m256d; 2]) -> [__m256d; 2] {
        op!([_mm256_sub_pd(a[0], b[0]), _mm256_sub_pd(a[1], b[1])])
    }

    #[inline(always)]
    fn mul_f64(self, a: [__m256d; 2], b: [__m256d; 2]) -> [__m256d; 2] {
        op!([_mm256_mul_pd(a[0], b[0]), _mm256_mul_pd(a[1], b[1])])
    }

    #[inline(always)]
    fn add_truncated_f64(
        self,
        sum: [__m256d; 2],
        a: [__m256d; 2],
        b: [__m256d; 2],
        per_unit: [__m256d; 2],
    ) -> [__m256d; 2] {
        let mut sums = sum;
        op!(for i in 0..2 {
            let units = _mm256_mul_pd(_mm256_mul_pd(a[i], b[i]), per_unit[i]);
            sums[i] = _mm256_add_pd(sum[i], _mm256_round_pd::<TOWARD_ZERO>(units));
        });
        sums
    }
}
