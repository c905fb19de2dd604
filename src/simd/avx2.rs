//! AVX2 and FMA: eight lanes.

use std::arch::x86_64::*;

use super::{Simd, Work};

/// Exists only where the CPU has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
}

/// An intrinsic without a pointer.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` exists, so `detect` found AVX2 and FMA.
        unsafe { $call }
    };
}
pub(super) use op;

pub(super) const LANES: usize = 8;

impl Simd for Avx2 {
    const LANES: usize = LANES;
    const REGISTERS: usize = 16;
    const PAIR: usize = 1;

    type F32 = __m256;
    type U32 = __m256i;

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma")]
        fn inner<W: Work>(s: Avx2, work: W) -> W::Output {
            work.run(s)
        }
        op!(inner(self, work))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        op!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn splat_u32(self, x: u32) -> __m256i {
        op!(_mm256_set1_epi32(x.cast_signed()))
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        let x = &x[..LANES];
        // SAFETY: as in `op`; the slice holds eight elements.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn load_u32(self, x: &[u32]) -> __m256i {
        let x = &x[..LANES];
        // SAFETY: as in `op`; the slice holds eight elements.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> __m256i {
        let x = &x[..4 * LANES];
        // SAFETY: as in `op`; the slice holds 32 bytes.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, x: __m256, out: &mut [f32]) {
        let out = &mut out[..LANES];
        // SAFETY: as in `op`; the slice holds eight elements.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn store_u32(self, x: __m256i, out: &mut [u32]) {
        let out = &mut out[..LANES];
        // SAFETY: as in `op`; the slice holds eight elements.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn bits(self, x: __m256) -> __m256i {
        op!(_mm256_castps_si256(x))
    }

    #[inline(always)]
    fn float(self, x: __m256i) -> __m256 {
        op!(_mm256_castsi256_ps(x))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn step(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_and_si256(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn shl(self, a: __m256i, n: u32) -> __m256i {
        op!(_mm256_sllv_epi32(a, _mm256_set1_epi32(n.cast_signed())))
    }

    #[inline(always)]
    fn shr(self, a: __m256i, n: u32) -> __m256i {
        op!(_mm256_srlv_epi32(a, _mm256_set1_epi32(n.cast_signed())))
    }

    #[inline(always)]
    fn sar(self, a: __m256i, n: u32) -> __m256i {
        op!(_mm256_srav_epi32(a, _mm256_set1_epi32(n.cast_signed())))
    }

    #[inline(always)]
    fn any_byte_above(self, a: __m256i, b: i8) -> bool {
        op!(_mm256_movemask_epi8(_mm256_cmpgt_epi8(a, _mm256_set1_epi8(b))) != 0)
    }

    #[inline(always)]
    fn load_transposed(self, x: &[u8], stride: usize, out: &mut [__m256i]) {
        let row = |i: usize| self.load_bytes(&x[i * stride..]);
        // Pairs of dwords, pairs of qwords, then 128-bit halves.
        op!({
            let mut q = [_mm256_setzero_si256(); LANES];
            for i in 0..LANES / 2 {
                let (a, b) = (row(2 * i), row(2 * i + 1));
                q[2 * i] = _mm256_unpacklo_epi32(a, b);
                q[2 * i + 1] = _mm256_unpackhi_epi32(a, b);
            }
            for half in 0..2 {
                let q = &q[4 * half..][..4];
                let halves = [
                    _mm256_unpacklo_epi64(q[0], q[2]),
                    _mm256_unpackhi_epi64(q[0], q[2]),
                    _mm256_unpacklo_epi64(q[1], q[3]),
                    _mm256_unpackhi_epi64(q[1], q[3]),
                ];
                out[4 * half..][..4].copy_from_slice(&halves);
            }
            for j in 0..4 {
                let (top, bottom) = (out[j], out[j + 4]);
                out[j] = _mm256_permute2x128_si256::<0x20>(top, bottom);
                out[j + 4] = _mm256_permute2x128_si256::<0x31>(top, bottom);
            }
        });
    }

    #[inline(always)]
    fn prefetch(self, x: &[u8]) {
        // SAFETY: as in `op`; a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().cast()) }
    }
}
