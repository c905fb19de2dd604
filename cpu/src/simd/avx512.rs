//! AVX-512: sixteen lanes, with and without BF16 dot products.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::{Bf16Table, Convert, Gather, Isa, Simd, Work};

/// Exists only where the CPU has AVX-512 F, BW, DQ and VL, and for `BF16` also VBMI and a VDPBF16PS that sums as the
/// contract does.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(());

impl Avx512<false> {
    pub(super) fn detect() -> Option<Self> {
        // Kernels ask at every call.
        static FOUND: OnceLock<bool> = OnceLock::new();
        let has = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("popcnt")
        };
        FOUND.get_or_init(has).then_some(Avx512(()))
    }
}

impl Avx512<true> {
    pub(super) fn detect() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        let has = || {
            Avx512::<false>::detect().is_some()
                && is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512vbmi")
                // SAFETY: AVX-512 F and BF16 were found just now.
                && unsafe { sums_as_documented() }
        };
        FOUND.get_or_init(has).then_some(Avx512(()))
    }
}

/// The known answer of VDPBF16PS: fma(even, even, fma(odd, odd, c)), one rounding each, as Intel documents. Sums whose
/// value depends on the order, and on whether a product is rounded before it is added.
#[target_feature(enable = "avx512f,avx512bf16")]
fn sums_as_documented() -> bool {
    let (mut state, mut known) = (1u32, true);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    for _ in 0..64 {
        let (mut a, mut b, mut c) = ([0u32; 16], [0u32; 16], [0f32; 16]);
        for i in 0..16 {
            // BF16 of either sign with exponents 2^-8 … 2^7.
            let mut bf16 = || (next() & 0x8000) | (119 + (next() & 15)) << 7 | next() & 0x7F;
            a[i] = bf16() << 16 | bf16();
            b[i] = bf16() << 16 | bf16();
            c[i] = f32::from_bits((next() & 1) << 31 | (119 + (next() & 15)) << 23 | next() & 0x7F_FFFF);
        }
        let mut sum = [0f32; 16];
        // SAFETY: the arrays hold sixteen dwords each.
        unsafe {
            let (x, y) = (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast()));
            let d = _mm512_dpbf16_ps(_mm512_loadu_ps(c.as_ptr()), bf16_pairs(x), bf16_pairs(y));
            _mm512_storeu_ps(sum.as_mut_ptr(), d);
        }
        let (odd, even) = (|x: u32| f32::from_bits(x & 0xFFFF_0000), |x: u32| f32::from_bits(x << 16));
        for i in 0..16 {
            let expected = even(a[i]).mul_add(even(b[i]), odd(a[i]).mul_add(odd(b[i]), c[i]));
            known &= expected.to_bits() == sum[i].to_bits();
        }
    }
    known
}

/// The same register as BF16 pairs.
#[inline(always)]
fn bf16_pairs(x: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes without invalid values.
    unsafe { std::mem::transmute(x) }
}

/// An intrinsic without a pointer.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: `self` exists, so `detect` found the instructions.
        unsafe { $call }
    };
}
pub(super) use op;

pub(super) const LANES: usize = Isa::Avx512.geometry().lanes;

impl<const BF16: bool> Avx512<BF16> {
    /// The low and the high bytes of the BF16 numbers of 64 codes.
    #[inline(always)]
    pub(super) fn bytes(self, [low, high]: [[__m512i; 2]; 2], sign: __m512i, codes: __m512i) -> [__m512i; 2] {
        assert!(BF16, "VBMI comes with BF16");
        // SAFETY: `self` exists with BF16, so `detect` found VBMI.
        unsafe {
            let low = _mm512_permutex2var_epi8(low[0], codes, low[1]);
            let high = _mm512_permutex2var_epi8(high[0], codes, high[1]);
            // The sign of the code changes that of the number: high ^ codes & 80.
            [low, _mm512_ternarylogic_epi32::<0x6C>(codes, high, sign)]
        }
    }

    /// Looks 64 codes up and pairs their bytes as said.
    #[inline(always)]
    fn pairs(self, tables: &Tables, codes: __m512i, [first, second]: [__m512i; 2]) -> [__m512; 2] {
        let [low, high] = self.bytes([tables.low, tables.high], tables.sign, codes);
        // SAFETY: `bytes` asserts that `self` exists with BF16, so `detect` found VBMI.
        unsafe {
            [
                self.float(_mm512_permutex2var_epi8(low, first, high)),
                self.float(_mm512_permutex2var_epi8(low, second, high)),
            ]
        }
    }
}

/// The bytes of BF16 numbers, each in two registers.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    pub(super) low: [__m512i; 2],
    pub(super) high: [__m512i; 2],
    pub(super) sign: __m512i,
    in_lanes: [__m512i; 2],
    in_order: [__m512i; 2],
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const ISA: Isa = if BF16 { Isa::Avx512Bf16 } else { Isa::Avx512 };

    type F32 = __m512;
    type U32 = __m512i;
    type Columns = [__m512; 4];
    type Tables = Tables;

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        // Never inlined: a work inside another keeps its own registers.
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,popcnt")]
        fn plain<W: Work, S: Convert>(s: S, work: W) -> W::Output {
            work.run(s)
        }
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi,avx2,fma,popcnt")]
        fn bf16<W: Work, S: Convert>(s: S, work: W) -> W::Output {
            work.run(s)
        }
        if BF16 { op!(bf16(self, work)) } else { op!(plain(self, work)) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn columns(self, x: __m512) -> [__m512; 4] {
        [x; 4]
    }

    #[inline(always)]
    fn splat_u32(self, x: u32) -> __m512i {
        op!(_mm512_set1_epi32(x.cast_signed()))
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        let x = &x[..LANES];
        // SAFETY: as in `op`; the slice holds sixteen elements.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn load_u32(self, x: &[u32]) -> __m512i {
        let x = &x[..LANES];
        // SAFETY: as in `op`; the slice holds sixteen elements.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> __m512i {
        let x = &x[..4 * LANES];
        // SAFETY: as in `op`; the slice holds 64 bytes.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_u8(self, x: &[u8]) -> __m512i {
        let x = &x[..LANES];
        // SAFETY: as in `op`; the slice holds sixteen bytes.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_u16(self, x: &[u8]) -> __m512i {
        let x = &x[..2 * LANES];
        // SAFETY: as in `op`; the slice holds 32 bytes.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn store(self, x: __m512, out: &mut [f32]) {
        let out = &mut out[..LANES];
        // SAFETY: as in `op`; the slice holds sixteen elements.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn store_u32(self, x: __m512i, out: &mut [u32]) {
        let out = &mut out[..LANES];
        // SAFETY: as in `op`; the slice holds sixteen elements.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn store_u16(self, x: __m512i, out: &mut [u16]) {
        let out = &mut out[..LANES];
        // SAFETY: as in `op`; the slice holds sixteen elements.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(x)) }
    }

    #[inline(always)]
    fn bits(self, x: __m512) -> __m512i {
        op!(_mm512_castps_si512(x))
    }

    #[inline(always)]
    fn float(self, x: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(x))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn step(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if BF16 {
            op!(_mm512_dpbf16_ps(c, bf16_pairs(self.bits(a)), bf16_pairs(self.bits(b))))
        } else {
            op!(_mm512_fmadd_ps(a, b, c))
        }
    }

    #[inline(always)]
    fn with_nan(self, x: __m512, nan: f32) -> __m512 {
        op!(_mm512_mask_mov_ps(x, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x), _mm512_set1_ps(nan)))
    }

    #[inline(always)]
    fn add_u32(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_and_si512(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn shl(self, a: __m512i, n: u32) -> __m512i {
        op!(_mm512_sllv_epi32(a, _mm512_set1_epi32((n & 31).cast_signed())))
    }

    #[inline(always)]
    fn shr(self, a: __m512i, n: u32) -> __m512i {
        op!(_mm512_srlv_epi32(a, _mm512_set1_epi32((n & 31).cast_signed())))
    }

    #[inline(always)]
    fn sar(self, a: __m512i, n: u32) -> __m512i {
        op!(_mm512_srav_epi32(a, _mm512_set1_epi32((n & 31).cast_signed())))
    }

    #[inline(always)]
    fn shl_lanes(self, a: __m512i, n: __m512i) -> __m512i {
        op!(_mm512_sllv_epi32(a, n))
    }

    #[inline(always)]
    fn sar_lanes(self, a: __m512i, n: __m512i) -> __m512i {
        op!(_mm512_srav_epi32(a, n))
    }

    #[inline(always)]
    fn any_byte_above(self, a: __m512i, b: i8) -> bool {
        op!(_mm512_cmpgt_epi8_mask(a, _mm512_set1_epi8(b)) != 0)
    }

    #[inline(always)]
    fn tables(self, table: &Bf16Table) -> Tables {
        let [low, high] = [&table.low, &table.high];
        Tables {
            low: [self.load_bytes(&low[..64]), self.load_bytes(&low[64..])],
            high: [self.load_bytes(&high[..64]), self.load_bytes(&high[64..])],
            sign: self.load_bytes(&table.sign),
            in_lanes: [self.load_bytes(&table.in_lanes[0]), self.load_bytes(&table.in_lanes[1])],
            in_order: [self.load_bytes(&table.in_order[0]), self.load_bytes(&table.in_order[1])],
        }
    }

    #[inline(always)]
    fn pairs_in_lanes(self, tables: &Tables, codes: __m512i) -> [__m512; 2] {
        self.pairs(tables, codes, tables.in_lanes)
    }

    #[inline(always)]
    fn pairs_in_order(self, tables: &Tables, codes: __m512i) -> [__m512; 2] {
        self.pairs(tables, codes, tables.in_order)
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "g counts rows and registers")]
    fn load_transposed(self, x: &[u8], stride: usize, out: &mut [__m512i]) {
        assert!(stride <= isize::MAX as usize / LANES && x.len() >= (LANES - 1) * stride + 4 * LANES);
        // SAFETY: as in `op`; by the assertion row 15 and with it every row ends within the slice.
        let row = |i: usize| unsafe { _mm512_loadu_si512(x.as_ptr().add(i * stride).cast()) };
        // In groups of four rows: pairs of dwords, then of qwords; then the 4 × 4 blocks of 128 bits.
        op!({
            // Block l of q[j][g] holds dword 4l + j of rows 4g … 4g + 3.
            let mut q = [[_mm512_setzero_si512(); 4]; 4];
            for g in 0..4 {
                let (a, b, c, d) = (row(4 * g), row(4 * g + 1), row(4 * g + 2), row(4 * g + 3));
                let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
                q[0][g] = _mm512_unpacklo_epi64(ab, cd);
                q[1][g] = _mm512_unpackhi_epi64(ab, cd);
                let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
                q[2][g] = _mm512_unpacklo_epi64(ab, cd);
                q[3][g] = _mm512_unpackhi_epi64(ab, cd);
            }
            let mut t = [_mm512_setzero_si512(); LANES];
            for j in 0..4 {
                let [g0, g1, g2, g3] = q[j];
                let (even01, even23) =
                    (_mm512_shuffle_i32x4::<0x88>(g0, g1), _mm512_shuffle_i32x4::<0x88>(g2, g3));
                let (odd01, odd23) =
                    (_mm512_shuffle_i32x4::<0xDD>(g0, g1), _mm512_shuffle_i32x4::<0xDD>(g2, g3));
                t[j] = _mm512_shuffle_i32x4::<0x88>(even01, even23);
                t[8 + j] = _mm512_shuffle_i32x4::<0xDD>(even01, even23);
                t[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd01, odd23);
                t[12 + j] = _mm512_shuffle_i32x4::<0xDD>(odd01, odd23);
            }
            out[..LANES].copy_from_slice(&t);
        });
    }

    #[inline(always)]
    fn load_chunks(self, x: &Gather<'_>, i: usize) -> [__m512i; 4] {
        let mut q = [self.splat_u32(0); 4];
        for (l, q) in q.iter_mut().enumerate() {
            // SAFETY: as in `op`; from where `chunk` points on, 16 bytes lie within the slice of `x`.
            *q = unsafe {
                let first = _mm512_castsi128_si512(_mm_loadu_si128(x.chunk(0, l, i).cast()));
                let second = _mm512_inserti32x4::<1>(first, _mm_loadu_si128(x.chunk(1, l, i).cast()));
                let third = _mm512_inserti32x4::<2>(second, _mm_loadu_si128(x.chunk(2, l, i).cast()));
                _mm512_inserti32x4::<3>(third, _mm_loadu_si128(x.chunk(3, l, i).cast()))
            };
        }
        self.transpose_4x4(q)
    }

    #[inline(always)]
    fn broadcast_4(self, x: &[f32]) -> __m512 {
        let x = &x[..4];
        // SAFETY: as in `op`; the slice holds four elements.
        unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(x.as_ptr())) }
    }

    #[inline(always)]
    fn transpose_4x4(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        op!({
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (up_ab, up_cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(up_ab, up_cd),
                _mm512_unpackhi_epi64(up_ab, up_cd),
            ]
        })
    }

    #[inline(always)]
    fn prefetch<T>(self, x: &[T], at: usize) {
        // SAFETY: as in `op`; a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast()) }
    }
}
