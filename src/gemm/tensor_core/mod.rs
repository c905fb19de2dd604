//! Tensor cores as data: what a step sums, how it aligns and rounds, and which formats it multiplies.

#![forbid(unsafe_code)]

mod chain;
mod custom;

pub(super) use self::chain::FusedChain;
pub(crate) use self::chain::NAN;
pub use self::custom::{StepResult, StepRounding};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::name::Name;

/// When the accumulator enters a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addend {
    /// It is one of the aligned and truncated terms.
    Early,
    /// The products alone are aligned, summed and rounded to the step's result; then the accumulator is added in f32,
    /// to nearest even.
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

/// A tensor core's truncated fused dot product.
///
/// One step sums L products a·b and the accumulator c:
///
/// d = R( Σ_t ⌊t⌋ ),  ⌊t⌋ = t rounded to a multiple of 2^(e_max − F)
///
/// where e_max is the largest exponent among the terms, a product of operands with exponents ea and eb has exponent
/// ea + eb (it is not renormalised), and a zero term has exponent [`zero_exponent`](TensorCore::zero_exponent). R
/// rounds to [`result`](TensorCore::result). Both roundings are toward zero in every tensor core that was built;
/// custom ones may round to nearest even. Longer K chains steps in ascending k.
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
/// Sources: MMA-Sim (mmasim 2.1.1) and the GPU measurements it was validated with.
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
    step: usize,
    fraction_bits: u32,
    result: StepResult,
    zero_exponent: i32,
    addend: Addend,
    scales: BlockScales,
    operands: &'static [Format],
    terms: StepRounding,
    rounding: StepRounding,
}

const F16: &[Format] = &[Format::F16];
const F16_BF16: &[Format] = &[Format::F16, Format::Bf16];
const FP8: &[Format] = &[Format::E4M3, Format::E5M2];
const FP8_FP6_FP4: &[Format] = &[Format::E4M3, Format::E5M2, Format::E3M2, Format::E2M3, Format::E2M1];
const FP4: &[Format] = &[Format::E2M1];

impl TensorCore {
    /// Ada (sm_89), FP8 `mma.sync`.
    pub const ADA: TensorCore = TensorCore::early("ada", FP8, 16, 13, StepResult::E8M13, -132);
    /// Hopper (sm_90a), FP8 `wgmma`: the tensor core DeepSeek-V3 was trained on (report 3.5.2).
    pub const HOPPER: TensorCore = TensorCore::early("hopper", FP8, 32, 13, StepResult::E8M13, -133);
    /// Hopper, FP16 and BF16.
    pub const HOPPER_F16: TensorCore =
        TensorCore::early("hopper-f16", F16_BF16, 16, 25, StepResult::F32, -133);
    /// Blackwell (sm_100), `tcgen05.mma` on FP8, FP6 and FP4 operands without block scales.
    pub const BLACKWELL: TensorCore =
        TensorCore::early("blackwell", FP8_FP6_FP4, 32, 25, StepResult::F32, -133);
    /// Blackwell (B200), FP8 `mma.sync`: the accumulator is added late.
    pub const BLACKWELL_MMA: TensorCore = TensorCore {
        addend: Addend::Late,
        ..TensorCore::early("blackwell-mma", FP8, 32, 25, StepResult::F32, -133)
    };
    /// Blackwell, `tcgen05.mma` with MX block scales (`mxf8f6f4`).
    pub const BLACKWELL_MX: TensorCore = TensorCore {
        scales: BlockScales::Mx,
        ..TensorCore::early("blackwell-mx", FP8_FP6_FP4, 32, 25, StepResult::F32, -133)
    };
    /// Blackwell, `tcgen05.mma` on MXFP4 and NVFP4.
    pub const BLACKWELL_FP4: TensorCore = TensorCore {
        scales: BlockScales::Fp4,
        ..TensorCore::early("blackwell-fp4", FP4, 64, 35, StepResult::F32, -139)
    };
    /// Volta (sm_70), FP16.
    pub const VOLTA: TensorCore = TensorCore::early("volta", F16, 4, 23, StepResult::F32, -131);
    /// Turing (sm_75), FP16.
    pub const TURING: TensorCore = TensorCore::early("turing", F16, 8, 24, StepResult::F32, -132);
    /// Ampere and Ada (sm_80 … sm_89), FP16 and BF16.
    pub const AMPERE: TensorCore = TensorCore::early("ampere", F16_BF16, 8, 24, StepResult::F32, -132);

    /// Every tensor core with a name.
    pub const ALL: &[TensorCore] = &[
        TensorCore::ADA,
        TensorCore::HOPPER,
        TensorCore::HOPPER_F16,
        TensorCore::BLACKWELL,
        TensorCore::BLACKWELL_MMA,
        TensorCore::BLACKWELL_MX,
        TensorCore::BLACKWELL_FP4,
        TensorCore::VOLTA,
        TensorCore::TURING,
        TensorCore::AMPERE,
    ];

    /// Products of one group of [`BlockScales::Fp4`].
    pub const FP4_GROUP: usize = 16;

    /// The most products a step may sum, and the most fraction bits its terms may keep: bounds under which every sum
    /// of a step is exact in 64 bits. Significands have at most 24 bits, so that F more fit a word; cut, a product is
    /// below 2^(F + 2), an FP4 group below 2^(F + 12).
    const MAX_STEP: usize = 1024;
    const MAX_FRACTION_BITS: u32 = 38;

    const fn early(
        name: &'static str,
        operands: &'static [Format],
        step: usize,
        fraction_bits: u32,
        result: StepResult,
        zero_exponent: i32,
    ) -> TensorCore {
        TensorCore {
            name: Name::literal(name),
            step,
            fraction_bits,
            result,
            zero_exponent,
            addend: Addend::Early,
            scales: BlockScales::None,
            operands,
            terms: StepRounding::TowardZero,
            rounding: StepRounding::TowardZero,
        }
    }

    /// The tensor core of [`TensorCore::ALL`] with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        TensorCore::ALL.iter().find(|core| core.name == name).copied()
    }

    /// A tensor core that never was: this one with another step L, number of fraction bits F and result. Roundings,
    /// addend, block scales, operand formats, the exponent of zero and the name stay.
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
    /// would no longer be exact in 64 bits.
    pub fn customized(self, step: usize, fraction_bits: u32, result: StepResult) -> Result<Self> {
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
        Ok(TensorCore { step, fraction_bits, result, ..self })
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

    /// L: products summed in one step.
    #[inline]
    pub const fn step(self) -> usize {
        self.step
    }

    /// F: terms are rounded to multiples of 2^(e_max − F).
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
        self.zero_exponent
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

    /// Whether terms and sums are rounded toward zero, as in every tensor core that was built.
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
        self.operands
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
            ("blackwell", 32, 25, F32, -133),
            ("blackwell-mma", 32, 25, F32, -133),
            ("blackwell-mx", 32, 25, F32, -133),
            ("blackwell-fp4", 64, 35, F32, -139),
            ("volta", 4, 23, F32, -131),
            ("turing", 8, 24, F32, -132),
            ("ampere", 8, 24, F32, -132),
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

    #[test]
    fn impossible_cores_are_refused() {
        let custom = |step, f| TensorCore::HOPPER.customized(step, f, StepResult::F32);
        assert!(custom(0, 13).is_err() && custom(1025, 13).is_err() && custom(32, 39).is_err());
        assert!(custom(1, 0).is_ok() && custom(1024, 38).is_ok());
        assert!(TensorCore::BLACKWELL_FP4.customized(24, 35, StepResult::F32).is_err());
    }
}
