//! Tensor cores as data: what a step sums, how it aligns and rounds, and which formats it multiplies.
#![forbid(unsafe_code)]

mod cdna;
mod chain;
mod custom;
mod sum;

pub(super) use self::cdna::PairwiseChain;
pub(super) use self::chain::FusedChain;
pub(crate) use self::chain::NAN;
pub use self::custom::{StepResult, StepRounding};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::name::Name;

/// How the products of a step and the accumulator become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepSum {
    /// NVIDIA: all terms aligned, cut, added exactly and rounded once.
    Fused,
    /// The same twice: first the products of k mod 4 = 0 and 1, counted from the step's first k, then those of 2 and
    /// 3, which the first result joins.
    FusedInTwo,
    /// CDNA3: the products are fused as in [`StepSum::Fused`], the accumulator joins them, and whatever does not fit is
    /// rounded down: both to the units of the larger exponent, and the sum to 31 fraction bits. Then it is rounded to f32,
    /// to nearest even.
    Floored,
    /// The same with the products of even and of odd k fused apart, and the accumulator left out where its exponent lies
    /// more than F + 1 below.
    FlooredInTwo,
    /// CDNA1: the exact sum of products and accumulator, rounded to f32 once, to nearest even.
    Exact,
    /// CDNA2: f32 additions of neighbours, to nearest even, then of the accumulator: c + (p₀ + p₁), or
    /// c + ((p₀ + p₁) + (p₂ + p₃)). Subnormal operands are +0, and so is a subnormal accumulator where a chain begins;
    /// subnormal products and sums are zeros with their sign.
    Pairwise,
}

/// When the accumulator enters a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addend {
    /// It is one of the aligned and truncated terms.
    Early,
    /// The products alone are aligned, summed and rounded to the step's result; then the accumulator is added in f32, or
    /// in f16 where that is the result, to nearest even.
    Late,
}

/// Which block scales the tensor core itself applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockScales {
    /// None: scales are applied outside, at promotion.
    None,
    /// OCP MX: E8M0 in 1×32, its exponents added to the exponents of the products. Operands without any scales are
    /// taken too, as scaled by 1.
    Mx,
    /// MXFP4 (E8M0 in 1×32) and NVFP4 (UE4M3 in 1×16): groups of 16 products are summed exactly, multiplied by the
    /// significands of their two scales, and aligned at the scales' exponents.
    Fp4,
}

/// A tensor core's dot product, in steps.
///
/// One step sums L products a·b and the accumulator c. NVIDIA's ([`StepSum::Fused`]):
///
/// d = R( Σ_t ⌊t⌋ ),  ⌊t⌋ = t rounded to a multiple of 2^(e_max − F)
///
/// where e_max is the largest exponent among the terms, a product of operands with exponents ea and eb has exponent
/// ea + eb (it is not renormalised), and a zero term has exponent [`zero_exponent`](TensorCore::zero_exponent). R
/// rounds to [`result`](TensorCore::result). Terms are cut toward zero in every tensor core that was built, and so are
/// sums, but to f16, where it is to nearest even; custom ones may round to nearest even. Longer K chains steps in
/// ascending k. How AMD's differ is said at [`StepSum`]. F32 operands are read as TF32: their 13 lowest bits are dropped.
///
/// Custom tensor cores have a base and what differs from it, in words as the command line takes them:
///
/// ```
/// use finegrain::gemm::{StepRounding, TensorCore};
/// let core: TensorCore = "hopper:f=10,terms=nearest,l=16,result=e8m10,addend=late".parse()?;
/// assert_eq!((core.step(), core.fraction_bits()), (16, 10));
/// assert_eq!(core.term_rounding(), StepRounding::NearestEven);
/// assert_eq!(core.to_string(), "hopper:l=16,f=10,result=e8m10,terms=nearest,addend=late");
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// Sources: MMA-Sim (mmasim 2.1.1) and the GPU measurements it was validated with; recordings of an H200 for `hopper`,
/// `hopper-f16`, `hopper-tf32`, `hopper-mma` and their f16 results.
///
/// ```
/// use finegrain::gemm::TensorCore;
/// for core in TensorCore::ALL {
///     println!("{:14} L {:2}  F {:2}  {:?}", core.name(), core.step(), core.fraction_bits(), core.result());
/// }
/// assert_eq!("hopper".parse::<TensorCore>()?, TensorCore::HOPPER);
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorCore {
    name: Name,
    sum: StepSum,
    step: usize,
    fraction_bits: u32,
    result: StepResult,
    /// How far the exponent of zero lies below that of the result's smallest normal number.
    zero_below: i32,
    addend: Addend,
    scales: BlockScales,
    operands: &'static [Format],
    terms: StepRounding,
    rounding: StepRounding,
}

const F16: &[Format] = &[Format::F16];
const BF16: &[Format] = &[Format::Bf16];
const F16_BF16: &[Format] = &[Format::F16, Format::Bf16];
const F32: &[Format] = &[Format::F32];
const FP8: &[Format] = &[Format::E4M3, Format::E5M2];
const FP8_FNUZ: &[Format] = &[Format::E4M3Fnuz, Format::E5M2Fnuz];
const FP8_FP6_FP4: &[Format] = &[Format::E4M3, Format::E5M2, Format::E3M2, Format::E2M3, Format::E2M1];
const FP4: &[Format] = &[Format::E2M1];

impl TensorCore {
    /// Ada (sm_89), FP8 `mma.sync`.
    pub const ADA: TensorCore = TensorCore::fused("ada", FP8, 16, 13, StepResult::E8M13, 6);
    /// Hopper (sm_90a), FP8 `wgmma`: the tensor core DeepSeek-V3 was trained on (report 3.5.2).
    pub const HOPPER: TensorCore = TensorCore::fused("hopper", FP8, 32, 13, StepResult::E8M13, 7);
    /// Hopper, FP16 and BF16, `wgmma` and `mma.sync`.
    pub const HOPPER_F16: TensorCore = TensorCore::fused("hopper-f16", F16_BF16, 16, 25, StepResult::F32, 7);
    /// Hopper, TF32.
    pub const HOPPER_TF32: TensorCore = TensorCore::fused("hopper-tf32", F32, 8, 25, StepResult::F32, 7);
    /// Hopper, FP8 `mma.sync`, which runs on the FP16 units: two of their steps from +0, then the accumulator.
    pub const HOPPER_MMA: TensorCore = TensorCore {
        sum: StepSum::FusedInTwo,
        addend: Addend::Late,
        ..TensorCore::fused("hopper-mma", FP8, 32, 25, StepResult::F32, 7)
    };
    /// Blackwell (sm_100), `tcgen05.mma` on FP8, FP6 and FP4 operands without block scales.
    pub const BLACKWELL: TensorCore = TensorCore::fused("blackwell", FP8_FP6_FP4, 32, 25, StepResult::F32, 7);
    /// Blackwell, FP16 and BF16.
    pub const BLACKWELL_F16: TensorCore =
        TensorCore::fused("blackwell-f16", F16_BF16, 16, 25, StepResult::F32, 7);
    /// Blackwell (B200), FP8 `mma.sync`: the accumulator is added late.
    pub const BLACKWELL_MMA: TensorCore = TensorCore {
        addend: Addend::Late,
        ..TensorCore::fused("blackwell-mma", FP8, 32, 25, StepResult::F32, 7)
    };
    /// Blackwell, `tcgen05.mma` with MX block scales (`mxf8f6f4`).
    pub const BLACKWELL_MX: TensorCore = TensorCore {
        scales: BlockScales::Mx,
        ..TensorCore::fused("blackwell-mx", FP8_FP6_FP4, 32, 25, StepResult::F32, 7)
    };
    /// Blackwell, `tcgen05.mma` on MXFP4 and NVFP4.
    pub const BLACKWELL_FP4: TensorCore = TensorCore {
        scales: BlockScales::Fp4,
        ..TensorCore::fused("blackwell-fp4", FP4, 64, 35, StepResult::F32, 13)
    };
    /// Blackwell of workstations (sm_120), `mma.sync` on FP8, FP6 and FP4 operands without block scales.
    pub const RTX_BLACKWELL: TensorCore =
        TensorCore::fused("rtx-blackwell", FP8_FP6_FP4, 32, 25, StepResult::F32, 7);
    /// Volta (sm_70), FP16.
    pub const VOLTA: TensorCore = TensorCore::fused("volta", F16, 4, 23, StepResult::F32, 5);
    /// Turing (sm_75), FP16.
    pub const TURING: TensorCore = TensorCore::fused("turing", F16, 8, 24, StepResult::F32, 6);
    /// Ampere and Ada (sm_80 … sm_89), FP16 and BF16.
    pub const AMPERE: TensorCore = TensorCore::fused("ampere", F16_BF16, 8, 24, StepResult::F32, 6);
    /// CDNA3 (MI300), FP8 and BF8 in their FNUZ forms.
    pub const CDNA3: TensorCore = TensorCore::cdna("cdna3", FP8_FNUZ, 16, StepSum::FlooredInTwo);
    /// CDNA3, FP16 and BF16.
    pub const CDNA3_F16: TensorCore = TensorCore::cdna("cdna3-f16", F16_BF16, 8, StepSum::Floored);
    /// CDNA3, XF32.
    pub const CDNA3_XF32: TensorCore = TensorCore::cdna("cdna3-xf32", F32, 4, StepSum::Floored);
    /// CDNA2 (MI200), FP16, and BF16 in the `_1k` instructions.
    pub const CDNA2: TensorCore = TensorCore::cdna("cdna2", F16_BF16, 4, StepSum::Pairwise);
    /// CDNA2, BF16 in the instructions that CDNA1 has too.
    pub const CDNA2_BF16: TensorCore = TensorCore::cdna("cdna2-bf16", BF16, 2, StepSum::Pairwise);
    /// CDNA1 (MI100), FP16.
    pub const CDNA1: TensorCore = TensorCore::cdna("cdna1", F16, 4, StepSum::Exact);
    /// CDNA1, BF16.
    pub const CDNA1_BF16: TensorCore = TensorCore::cdna("cdna1-bf16", BF16, 2, StepSum::Exact);

    /// Every tensor core with a name.
    pub const ALL: &[TensorCore] = &[
        TensorCore::ADA,
        TensorCore::HOPPER,
        TensorCore::HOPPER_F16,
        TensorCore::HOPPER_TF32,
        TensorCore::HOPPER_MMA,
        TensorCore::BLACKWELL,
        TensorCore::BLACKWELL_F16,
        TensorCore::BLACKWELL_MMA,
        TensorCore::BLACKWELL_MX,
        TensorCore::BLACKWELL_FP4,
        TensorCore::RTX_BLACKWELL,
        TensorCore::VOLTA,
        TensorCore::TURING,
        TensorCore::AMPERE,
        TensorCore::CDNA3,
        TensorCore::CDNA3_F16,
        TensorCore::CDNA3_XF32,
        TensorCore::CDNA2,
        TensorCore::CDNA2_BF16,
        TensorCore::CDNA1,
        TensorCore::CDNA1_BF16,
    ];

    /// Products of one group of [`BlockScales::Fp4`].
    pub const FP4_GROUP: usize = 16;

    /// The most products a step may sum, and the most fraction bits its terms may keep: bounds under which every sum
    /// of a step is exact in 64 bits. Significands have at most 24 bits, so that F more fit a word; cut, a product is
    /// below 2^(F + 2), an FP4 group below 2^(F + 12).
    const MAX_STEP: usize = 1024;
    const MAX_FRACTION_BITS: u32 = 38;

    /// Fraction bits of an F32 operand as it is read.
    const TF32_MANTISSA_BITS: u32 = 10;

    /// F of CDNA3: its products, and the accumulator that joins them, are cut there.
    const CDNA_FRACTION_BITS: u32 = 24;

    const fn fused(
        name: &'static str,
        operands: &'static [Format],
        step: usize,
        fraction_bits: u32,
        result: StepResult,
        zero_below: i32,
    ) -> TensorCore {
        TensorCore {
            name: Name::literal(name),
            sum: StepSum::Fused,
            step,
            fraction_bits,
            result,
            zero_below,
            addend: Addend::Early,
            scales: BlockScales::None,
            operands,
            terms: StepRounding::TowardZero,
            rounding: StepRounding::TowardZero,
        }
    }

    /// AMD's have no exponent of zero of their own: an accumulator of zero counts with the smallest normal exponent.
    const fn cdna(name: &'static str, operands: &'static [Format], step: usize, sum: StepSum) -> TensorCore {
        TensorCore {
            sum,
            rounding: StepRounding::NearestEven,
            ..TensorCore::fused(name, operands, step, Self::CDNA_FRACTION_BITS, StepResult::F32, 0)
        }
    }

    /// Whether two sum and round alike, whatever their names and the formats that they multiply.
    pub fn computes_as(self, other: TensorCore) -> bool {
        TensorCore { name: other.name, operands: other.operands, ..self } == other
    }

    /// The tensor core of [`TensorCore::ALL`] with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        TensorCore::ALL.iter().find(|core| core.name == name).copied()
    }

    /// Another tensor core: this one with another step L, number of fraction bits F and result. Addend, block scales and
    /// the name stay. To f16 sums are rounded to nearest even, to the others toward zero, unless the result stays of its
    /// kind. BF16 operands have no f16 results.
    ///
    /// ```
    /// use finegrain::gemm::{StepResult, TensorCore};
    /// // What would Hopper lose with full FP32 registers but the same aligner?
    /// let wide = TensorCore::HOPPER.customized(32, 13, StepResult::F32)?;
    /// assert_eq!(wide.operands(), TensorCore::HOPPER.operands());
    /// assert_eq!(wide.to_string(), "hopper:result=f32");
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if L is not 1 … 1024 (with [`BlockScales::Fp4`]: a multiple of 16) or F above 38, where sums
    /// would no longer be exact in 64 bits; for an f16 result with block scales, or of F32 or BF16 operands alone; for
    /// AMD's tensor cores, which have no parameters.
    pub fn customized(self, step: usize, fraction_bits: u32, result: StepResult) -> Result<Self> {
        if (step, fraction_bits, result) == (self.step, self.fraction_bits, self.result) {
            return Ok(self);
        }
        self.check_parameters()?;
        if !(1..=Self::MAX_STEP).contains(&step) {
            return Err(Error::Invalid(format!(
                "a step of {step} products: expected 1 to {}",
                Self::MAX_STEP
            )));
        }
        if self.scales == BlockScales::Fp4 && !step.is_multiple_of(Self::FP4_GROUP) {
            return Err(Error::Invalid(format!(
                "a step of {step} products: expected a multiple of the {} that {} sums as a group",
                Self::FP4_GROUP,
                self.name
            )));
        }
        if fraction_bits > Self::MAX_FRACTION_BITS {
            return Err(Error::Invalid(format!(
                "{fraction_bits} fraction bits: expected at most {}",
                Self::MAX_FRACTION_BITS
            )));
        }
        let halves = result == StepResult::F16;
        if halves && (self.scales != BlockScales::None || self.operands == BF16 || self.operands == F32) {
            return Err(Error::Invalid(format!("{} has no result in f16", self.name)));
        }
        let rounding = match (halves, self.result == StepResult::F16) {
            (true, false) => StepRounding::NearestEven,
            (false, true) => StepRounding::TowardZero,
            _ => self.rounding,
        };
        Ok(TensorCore { step, fraction_bits, result, rounding, ..self })
    }

    /// # Errors
    /// [`Error::Invalid`] where nothing can be changed.
    fn check_parameters(self) -> Result<()> {
        match self.sum {
            StepSum::Fused | StepSum::FusedInTwo => Ok(()),
            StepSum::Floored | StepSum::FlooredInTwo | StepSum::Exact | StepSum::Pairwise => {
                Err(Error::Invalid(format!("{} has no parameters: its steps are as they are", self.name)))
            }
        }
    }

    /// The same under another name, which is then all that is displayed, unless it is one of [`TensorCore::ALL`].
    pub const fn with_name(self, name: Name) -> Self {
        TensorCore { name, ..self }
    }

    /// The same with the accumulator entering early or late.
    pub const fn with_addend(self, addend: Addend) -> Self {
        TensorCore { addend, ..self }
    }

    /// The same with terms rounded so to multiples of 2^(e_max − F).
    pub const fn with_term_rounding(self, terms: StepRounding) -> Self {
        TensorCore { terms, ..self }
    }

    /// The same with the sum of a step rounded so to the result.
    pub const fn with_result_rounding(self, rounding: StepRounding) -> Self {
        TensorCore { rounding, ..self }
    }

    /// The name; a custom tensor core has that of its base until it is given another.
    pub const fn name(&self) -> &str {
        self.name.as_str()
    }

    /// How a step is summed.
    #[inline]
    pub const fn sum(self) -> StepSum {
        self.sum
    }

    /// L: products summed in one step.
    #[inline]
    pub const fn step(self) -> usize {
        self.step
    }

    /// F: terms are rounded to multiples of 2^(e_max − F); of no meaning where sums are exact or pairwise.
    #[inline]
    pub const fn fraction_bits(self) -> u32 {
        self.fraction_bits
    }

    /// What the sum of a step is rounded to.
    #[inline]
    pub const fn result(self) -> StepResult {
        self.result
    }

    /// The exponent of a zero term: a floor of e_max.
    #[inline]
    pub const fn zero_exponent(self) -> i32 {
        self.result.emin() - self.zero_below
    }

    /// When the accumulator enters.
    #[inline]
    pub const fn addend(self) -> Addend {
        self.addend
    }

    /// How terms are rounded.
    #[inline]
    pub const fn term_rounding(self) -> StepRounding {
        self.terms
    }

    /// How the sum of a step is rounded.
    #[inline]
    pub const fn result_rounding(self) -> StepRounding {
        self.rounding
    }

    /// Whether terms and sums are rounded toward zero, as in every tensor core of NVIDIA's with an f32 result.
    pub const fn truncates(self) -> bool {
        matches!((self.terms, self.rounding), (StepRounding::TowardZero, StepRounding::TowardZero))
    }

    /// Which scales the tensor core applies itself.
    #[inline]
    pub const fn scales(self) -> BlockScales {
        self.scales
    }

    /// The formats it multiplies; A and B may differ.
    #[inline]
    pub const fn operands(self) -> &'static [Format] {
        match self.result {
            // No instruction sums products of BF16 in f16.
            StepResult::F16 if matches!(self.operands, [Format::F16, Format::Bf16]) => F16,
            _ => self.operands,
        }
    }

    /// Fraction bits of an operand as it is read.
    #[inline]
    pub(crate) const fn mantissa_bits(format: Format) -> u32 {
        match format {
            Format::F32 => TensorCore::TF32_MANTISSA_BITS,
            _ => format.spec().mantissa_bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Model;

    /// The table of the specification, quoted: model, L, F, result, exponent of zero.
    #[test]
    fn the_named_models_are_those_of_the_specification() {
        const E8M13: StepResult = StepResult::E8M13;
        const F32: StepResult = StepResult::F32;
        let table = [
            ("ada", 16, 13, E8M13, -132),
            ("hopper", 32, 13, E8M13, -133),
            ("hopper-f16", 16, 25, F32, -133),
            ("hopper-tf32", 8, 25, F32, -133),
            ("hopper-mma", 32, 25, F32, -133),
            ("blackwell", 32, 25, F32, -133),
            ("blackwell-f16", 16, 25, F32, -133),
            ("blackwell-mma", 32, 25, F32, -133),
            ("blackwell-mx", 32, 25, F32, -133),
            ("blackwell-fp4", 64, 35, F32, -139),
            ("rtx-blackwell", 32, 25, F32, -133),
            ("volta", 4, 23, F32, -131),
            ("turing", 8, 24, F32, -132),
            ("ampere", 8, 24, F32, -132),
            ("cdna3", 16, 24, F32, -126),
            ("cdna3-f16", 8, 24, F32, -126),
            ("cdna3-xf32", 4, 24, F32, -126),
            ("cdna2", 4, 24, F32, -126),
            ("cdna2-bf16", 2, 24, F32, -126),
            ("cdna1", 4, 24, F32, -126),
            ("cdna1-bf16", 2, 24, F32, -126),
        ];
        assert_eq!(table.len(), TensorCore::ALL.len());
        for (name, step, fraction_bits, result, zero) in table {
            let core: TensorCore = name.parse().unwrap();
            assert_eq!(
                (core.step(), core.fraction_bits(), core.result(), core.zero_exponent()),
                (step, fraction_bits, result, zero),
                "{name}"
            );
            assert_eq!(core.customized(step, fraction_bits, result).unwrap(), core);
            assert_eq!(name.parse::<Model>().unwrap(), Model::TensorCore(core));
        }
    }

    /// The exponents of zero of f16 results, quoted.
    #[test]
    fn results_in_f16_have_exponents_of_zero_of_their_own() {
        let table = [("volta", -19), ("turing", -20), ("ampere", -20), ("ada", -20), ("hopper", -21)];
        let more = [("hopper-f16", -21), ("hopper-mma", -21), ("blackwell", -21), ("blackwell-f16", -21)];
        for (name, zero) in table.into_iter().chain(more) {
            let core: TensorCore = format!("{name}:result=f16").parse().unwrap();
            assert_eq!((core.zero_exponent(), core.result()), (zero, StepResult::F16), "{name}");
            assert_eq!(core.result_rounding(), StepRounding::NearestEven);
            assert!(!core.operands().contains(&Format::Bf16));
            let back = core.customized(core.step(), core.fraction_bits(), StepResult::F32).unwrap();
            assert_eq!(back.result_rounding(), StepRounding::TowardZero);
        }
        for name in ["blackwell-mx", "blackwell-fp4", "hopper-tf32", "cdna3"] {
            assert!(format!("{name}:result=f16").parse::<TensorCore>().is_err(), "{name}");
        }
    }

    #[test]
    fn impossible_cores_are_refused() {
        let custom = |step, f| TensorCore::HOPPER.customized(step, f, StepResult::F32);
        assert!(custom(0, 13).is_err() && custom(1025, 13).is_err() && custom(32, 39).is_err());
        assert!(custom(1, 0).is_ok() && custom(1024, 38).is_ok());
        assert!(TensorCore::BLACKWELL_FP4.customized(24, 35, StepResult::F32).is_err());
    }
}
