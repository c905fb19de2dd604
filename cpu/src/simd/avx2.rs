//! AVX2 and FMA: eight lanes.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::{Bf16Table, Gather, Isa, Simd, Work};

/// Exists only where the CPU has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        // Kernels ask at every call.
        static FOUND: OnceLock<bool> = OnceLock::new();
        let has = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("popcnt")
        };
        FOUND.get_or_init(has).then_some(Avx2(()))
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

pub(super) const LANES: usize = Isa::Avx2.geometry().lanes;

impl Simd for Avx2 {
    const ISA: Isa = Isa::Avx2;

    type F32 = __m256;
    type U32 = __m256i;
    type Columns = [__m256; 2];
    type Tables = ();

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        // Never inlined: a work inside another keeps its own registers.
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,popcnt")]
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
    fn columns(self, x: __m256) -> [__m256; 2] {
        [x; 2]
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
    fn load_u8(self, x: &[u8]) -> __m256i {
        let x = &x[..LANES];
        // SAFETY: as in `op`; the slice holds eight bytes.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_u16(self, x: &[u8]) -> __m256i {
        let x = &x[..2 * LANES];
        // SAFETY: as in `op`; the slice holds sixteen bytes.
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast())) }
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
    fn store_u16(self, x: __m256i, out: &mut [u16]) {
        let out = &mut out[..LANES];
        // Packing saturates: the high halves go first. It packs by 128-bit halves, whose words are then joined.
        // SAFETY: as in `op`; the slice holds eight elements.
        unsafe {
            let low = _mm256_and_si256(x, _mm256_set1_epi32(0xFFFF));
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(low, low));
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
        }
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
    fn with_nan(self, x: __m256, nan: f32) -> __m256 {
        op!(_mm256_blendv_ps(x, _mm256_set1_ps(nan), _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x)))
    }

    #[inline(always)]
    fn add_u32(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_add_epi32(a, b))
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
        op!(_mm256_sllv_epi32(a, _mm256_set1_epi32((n & 31).cast_signed())))
    }

    #[inline(always)]
    fn shr(self, a: __m256i, n: u32) -> __m256i {
        op!(_mm256_srlv_epi32(a, _mm256_set1_epi32((n & 31).cast_signed())))
    }

    #[inline(always)]
    fn sar(self, a: __m256i, n: u32) -> __m256i {
        op!(_mm256_srav_epi32(a, _mm256_set1_epi32((n & 31).cast_signed())))
    }

    #[inline(always)]
    fn shl_lanes(self, a: __m256i, n: __m256i) -> __m256i {
        op!(_mm256_sllv_epi32(a, n))
    }

    #[inline(always)]
    fn sar_lanes(self, a: __m256i, n: __m256i) -> __m256i {
        op!(_mm256_srav_epi32(a, n))
    }

    #[inline(always)]
    fn any_byte_above(self, a: __m256i, b: i8) -> bool {
        op!(_mm256_movemask_epi8(_mm256_cmpgt_epi8(a, _mm256_set1_epi8(b))) != 0)
    }

    #[inline(always)]
    fn tables(self, _: &Bf16Table) {}

    #[inline(always)]
    fn load_transposed(self, x: &[u8], stride: usize, out: &mut [__m256i]) {
        assert!(stride <= isize::MAX as usize / LANES && x.len() >= (LANES - 1) * stride + 4 * LANES);
        // SAFETY: as in `op`; by the assertion row 7 and with it every row ends within the slice.
        let row = |i: usize| unsafe { _mm256_loadu_si256(x.as_ptr().add(i * stride).cast()) };
        // Pairs of dwords, pairs of qwords, then 128-bit halves.
        op!({
            let mut q = [_mm256_setzero_si256(); LANES];
            for i in 0..LANES / 2 {
                let (a, b) = (row(2 * i), row(2 * i + 1));
                q[2 * i] = _mm256_unpacklo_epi32(a, b);
                q[2 * i + 1] = _mm256_unpackhi_epi32(a, b);
            }
            let mut halves = [[_mm256_setzero_si256(); 4]; 2];
            for (h, half) in halves.iter_mut().enumerate() {
                half[0] = _mm256_unpacklo_epi64(q[4 * h], q[4 * h + 2]);
                half[1] = _mm256_unpackhi_epi64(q[4 * h], q[4 * h + 2]);
                half[2] = _mm256_unpacklo_epi64(q[4 * h + 1], q[4 * h + 3]);
                half[3] = _mm256_unpackhi_epi64(q[4 * h + 1], q[4 * h + 3]);
            }
            let mut t = [_mm256_setzero_si256(); LANES];
            for j in 0..4 {
                t[j] = _mm256_permute2x128_si256::<0x20>(halves[0][j], halves[1][j]);
                t[j + 4] = _mm256_permute2x128_si256::<0x31>(halves[0][j], halves[1][j]);
            }
            out[..LANES].copy_from_slice(&t);
        });
    }

    #[inline(always)]
    fn load_chunks(self, x: &Gather<'_>, i: usize) -> [__m256i; 4] {
        let mut q = [self.splat_u32(0); 4];
        for (l, q) in q.iter_mut().enumerate() {
            // SAFETY: as in `op`; from where `chunk` points on, 16 bytes lie within the slice of `x`.
            *q = unsafe {
                _mm256_set_m128i(
                    _mm_loadu_si128(x.chunk(1, l, i).cast()),
                    _mm_loadu_si128(x.chunk(0, l, i).cast()),
                )
            };
        }
        self.transpose_4x4(q)
    }

    #[inline(always)]
    fn broadcast_4(self, x: &[f32]) -> __m256 {
        let x = &x[..4];
        // SAFETY: as in `op`; the slice holds four elements.
        unsafe { _mm256_broadcast_ps(&_mm_loadu_ps(x.as_ptr())) }
    }

    #[inline(always)]
    fn transpose_4x4(self, [a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        op!({
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            let (up_ab, up_cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab, cd),
                _mm256_unpackhi_epi64(ab, cd),
                _mm256_unpacklo_epi64(up_ab, up_cd),
                _mm256_unpackhi_epi64(up_ab, up_cd),
            ]
        })
    }

    #[inline(always)]
    fn prefetch<T>(self, x: &[T], at: usize) {
        // SAFETY: as in `op`; a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast()) }
    }
}
