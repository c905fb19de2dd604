//! What the emulation of tensor cores asks of an instruction set beyond [`Simd`]: bytes, integers, registers of f64, and
//! sums of truncated products.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::{Isa, Simd, portable::Portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};

/// Registers of f64 with as many lanes as those of f32, and operations on bytes and 32-bit integers.
///
/// Sums of truncated products take one of two forms, which [`Fused::BIASED`] tells apart:
///
/// - biased: a sum is 1.5·2^m + the sum so far, with m such that the last bit of its fraction is the unit to which
///   terms are truncated. A fused multiply-add that rounds toward zero, thus down, adds ⌊a·b / unit⌋ units.
/// - plain: a sum counts units, and each term is scaled to units and truncated toward zero before it is added.
///
/// The two differ where a product is negative and no multiple of the unit. Callers make every negative product a
/// little larger in magnitude, so that biased sums fall short by exactly one unit for each of them.
pub trait Fused: Simd {
    /// Which form sums of truncated products have.
    const BIASED: bool;
    /// Rows of a microtile of four registers of columns whose sums are f32, and of one whose sums are f64.
    const NARROW_ROWS: usize;
    /// See [`Fused::NARROW_ROWS`].
    const WIDE_ROWS: usize;

    /// A register, or several, of [`Simd::LANES`] lanes of f64.
    type F64: Copy;

    /// Runs `work` compiled for this instruction set.
    fn vectorize_fused<W: FusedWork>(self, work: W) -> W::Output;

    /// a − b in every byte, 0 where that is negative.
    fn sub_bytes(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// The larger of every two bytes, unsigned.
    fn max_bytes(self, a: Self::U32, b: Self::U32) -> Self::U32;

    /// a − b, wrapping.
    fn sub_u32(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// The larger, as signed integers.
    fn max_i32(self, a: Self::U32, b: Self::U32) -> Self::U32;
    /// (a and b) or (c and d): the signs that differ.
    fn and_or(self, a: Self::U32, b: Self::U32, c: Self::U32, d: Self::U32) -> Self::U32;
    /// The number of bits that are set; `NATIVE` where [`FusedWork::run`] says that there is an instruction for it.
    fn count_ones<const NATIVE: bool>(self, a: Self::U32) -> Self::U32;
    /// `a` where x ≥ bound, unsigned, else `b`.
    fn select_at_least(self, x: Self::U32, bound: u32, a: Self::U32, b: Self::U32) -> Self::U32;

    /// The sum with the truncated product a·b added. Plain sums scale it by `per_unit`, a power of two.
    fn add_truncated(self, sum: Self::F32, a: Self::F32, b: Self::F32, per_unit: Self::F32) -> Self::F32;
    /// a − b.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// `x` in every lane.
    fn splat_f64(self, x: f64) -> Self::F64;
    /// The first `LANES` elements.
    fn load_f64(self, x: &[f64]) -> Self::F64;
    /// Into the first `LANES` elements.
    fn store_f64(self, x: Self::F64, out: &mut [f64]);
    /// The same values.
    fn widen(self, x: Self::F32) -> Self::F64;
    /// Toward zero; from 2^128 on infinite. NaN may have any pattern.
    fn narrow(self, x: Self::F64) -> Self::F32;
    /// The upper and the lower half of every lane's bits.
    fn join_halves(self, high: Self::U32, low: Self::U32) -> Self::F64;
    /// a − b.
    fn sub_f64(self, a: Self::F64, b: Self::F64) -> Self::F64;
    /// a · b.
    fn mul_f64(self, a: Self::F64, b: Self::F64) -> Self::F64;
    /// [`Fused::add_truncated`] in f64.
    fn add_truncated_f64(self, sum: Self::F64, a: Self::F64, b: Self::F64, per_unit: Self::F64) -> Self::F64;
}

/// An algorithm that runs on any instruction set. Implementations mark `run` `#[inline(always)]`.
pub trait FusedWork {
    /// What it returns.
    type Output;
    /// Whether it asks for [`Fused::count_ones`]: where only some CPUs have an instruction, it is compiled twice.
    const COUNTS: bool = false;
    /// Runs it; `COUNTS` says whether [`Fused::count_ones`] is an instruction.
    fn run<S: Fused, const COUNTS: bool>(self, s: S) -> Self::Output;
}

impl Isa {
    /// The instruction set with [`Fused`] that runs where this one is asked for: dot products of BF16 serve nothing
    /// here.
    pub fn fused(self) -> Isa {
        if self == Isa::Avx512Bf16 { Isa::Avx512 } else { self }
    }

    /// Runs an algorithm on this instruction set.
    ///
    /// # Panics
    /// If the CPU lacks it: callers hold one from [`Isa::active`] or [`Isa::checked`].
    pub fn run_fused<W: FusedWork>(self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        const ABSENT: &str = "an instruction set is checked before it is used";
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::detect().expect(ABSENT).vectorize_fused(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => Avx512::<false>::detect().expect(ABSENT).vectorize_fused(work),
            _ => Portable.vectorize_fused(work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts by table, and f64 to f32 toward zero.
    struct Lanes([u32; 16], [f64; 16]);

    impl FusedWork for Lanes {
        type Output = ([u32; 16], [f32; 16]);
        const COUNTS: bool = true;

        #[inline(always)]
        fn run<S: Fused, const COUNTS: bool>(self, s: S) -> Self::Output {
            let (mut counts, mut floats) = ([0; 16], [0.0; 16]);
            for i in (0..16).step_by(S::LANES) {
                s.store_u32(s.count_ones::<false>(s.load_u32(&self.0[i..])), &mut counts[i..]);
                s.store(s.narrow(s.load_f64(&self.1[i..])), &mut floats[i..]);
            }
            (counts, floats)
        }
    }

    #[test]
    fn bits_are_counted_without_an_instruction_for_it_and_f64_is_narrowed_toward_zero() {
        let bits: [u32; 16] = std::array::from_fn(|i| (i as u32).wrapping_mul(0x9E37_79B9) >> (2 * i));
        let (largest, bound) = (f64::from(f32::MAX), 2f64.powi(128));
        let wide: [(f64, f32); 8] = [
            (1.0 + 2f64.powi(-24) * 1.5, 1.0),
            (largest, f32::MAX),
            (bound * (1.0 - f64::EPSILON / 2.0), f32::MAX),
            (bound, f32::INFINITY),
            (2f64.powi(-149) * 1.75, 2f32.powi(-149)),
            (2f64.powi(-150) * 1.75, 0.0),
            (2f64.powi(-126) - 2f64.powi(-151), f32::MIN_POSITIVE.next_down()),
            (0.0, 0.0),
        ];
        let values = std::array::from_fn(|i| if i < 8 { wide[i].0 } else { -wide[i - 8].0 });
        let expected: [f32; 16] = std::array::from_fn(|i| if i < 8 { wide[i].1 } else { -wide[i - 8].1 });
        for isa in Isa::ALL.iter().filter(|isa| isa.is_available()) {
            let (counts, floats) = isa.run_fused(Lanes(bits, values));
            assert_eq!(counts, bits.map(u32::count_ones), "{isa}");
            assert_eq!(floats.map(f32::to_bits), expected.map(f32::to_bits), "{isa}");
        }
    }
}
