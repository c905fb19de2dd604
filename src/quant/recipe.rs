//! Recipes as data: what decides, bit for bit, how a granule of numbers becomes codes and a scale.
//!
//! There is no one "DeepSeek recipe": public code writes it a dozen ways whose bits differ. A [`Recipe`] names the
//! element format, the granules, how amax is taken, how the scale and the payload follow from it, and what zero and
//! non-finite granules give. The arithmetic itself is in [`derive`](super::derive).

use crate::formats::e5m6::E5m6Rounding;
use crate::formats::{Format, Overflow};
use crate::name::Name;
use crate::scaled::Granule;

/// One named way to quantise. The scale always **dequantises**: value = code × scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// The name on the command line.
    pub name: Name,
    /// Where the arithmetic comes from.
    pub source: &'static str,
    /// Format of the codes.
    pub element: Format,
    /// Format of the codes of gradients; differs from `element` only for hybrid recipes.
    pub gradient: Format,
    /// How a payload becomes a code.
    pub cast: ElementCast,
    /// Granule of activations (and of transposed activations, in the transposed matrix).
    pub activation: Granule,
    /// Granule of weights.
    pub weight: Granule,
    /// How the largest magnitude of a granule is taken.
    pub amax: Amax,
    /// How scale and payload follow from it.
    pub scaling: Scaling,
}

/// How a payload (x over its scale) becomes a code. Always nearest even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementCast {
    /// The format's cast with this overflow rule. Recipes that clamp before a non-saturating cast saturate.
    Plain(Overflow),
    /// Saturating, and an exact −0 payload becomes +0 (a zero point of +0 is added).
    PositiveZero,
    /// TileKernels' rule for E5M6.
    E5m6(E5m6Rounding),
}

/// How amax, the largest magnitude of a granule, is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amax {
    /// What NaN elements do to it.
    pub nan: NanAmax,
    /// amax is raised to this; 0 for no floor.
    pub floor: f32,
}

/// What NaN elements do to amax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NanAmax {
    /// They are skipped (GPU max instructions).
    Ignored,
    /// They make amax NaN (eager frameworks).
    Propagates,
}

/// How scale and payload follow from amax a. MAX is the largest finite element, fl() one f32 rounding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// The scale s is computed, the payload from s or a.
    Scale {
        /// fl(a / MAX) or fl(a · fl(1/MAX)).
        form: ScaleForm,
        /// Whether s becomes a power of two, and how.
        power_of_two: PowerOfTwo,
        /// x ↦ payload.
        payload: PayloadForm,
        /// s for a zero granule, where the source replaces 0.
        zero: Option<f32>,
    },
    /// The multiplier m is computed; s = fl(1/m), payload fl(x · m).
    Multiplier {
        /// How m follows from a.
        form: MultiplierForm,
        /// Replaces an infinite m.
        overflow: Option<f32>,
        /// Whether m is floored to a power of two by clearing its fraction bits.
        power_of_two: bool,
        /// m for a = 0, where the source says so.
        zero: Option<f32>,
        /// m for a = ∞, where the source says so.
        infinite: Option<f32>,
        /// m for a = NaN, where the source says so.
        nan: Option<f32>,
    },
    /// OCP MX: an E8M0 byte.
    Mx(MxRule),
    /// NVFP4: an E4M3 scale a block, mostly with an f32 scale of the tensor.
    Nvfp4(Nvfp4Rule),
}

/// How s follows from a.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleForm {
    /// fl(a / MAX).
    Quotient,
    /// fl(a · fl(1/MAX)): what `tensor / python_float` computes on CUDA.
    Reciprocal,
}

/// How a scale becomes a power of two, always upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerOfTwo {
    /// It does not.
    No,
    /// 2^⌈log2 s⌉ with log2 s rounded to f32 first: a scale less than half an ulp of its logarithm above a power of two
    /// is taken for that power.
    CeilLog2F32,
    /// The exponent field, plus one if any fraction bit is set.
    CeilField,
    /// The same with the field clamped to 1 … 254.
    CeilFieldClamped,
    /// (bits + 7FFFFF) & 7F800000.
    CeilMask,
}

/// How the payload of x follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadForm {
    /// fl(x / s).
    Quotient,
    /// fl(x · fl(1/s)); 0 for s = 0.
    Inverse,
    /// fl(x · fl(MAX / a)).
    MaxOverAmax,
    /// fl(x · fl(fl(1/a) · MAX)): what `python_float / tensor` computes.
    MaxTimesReciprocal,
    /// x · 2^−e for s = 2^e, with 2^−e made from its exponent field.
    NegatedExponent,
}

/// How m follows from a.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultiplierForm {
    /// fl(MAX / a).
    Quotient,
    /// fl(fl(1/a) · MAX).
    Reciprocal,
    /// f32(MAX · (1 / f64(a))), with a raised to 1e-12 in f64.
    Reciprocal64,
}

/// Which E8M0 byte an MX block gets, and how its payload is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MxRule {
    /// OCP MX 1.0: ⌊log2 a⌋ − emax from the exponent field; exact division.
    Floor,
    /// torchao FLOOR: the same byte; scales below 2^−126 divide as 2^−126.
    FloorTorchao,
    /// torchao RCEIL: ⌈log2 fl(a/MAX)⌉ with the logarithm rounded to f32; byte 0 leaves the data unscaled.
    Rceil,
    /// TransformerEngine: exponent-field ceiling of fl(a · fl(1/MAX)).
    RceilTe,
}

/// How NVFP4's two levels of scales are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nvfp4Rule {
    /// torchao: t = amax / 2688, s = e4m3(clamp(fl(fl(a/6)/t), 2^−6, 448)), payload x · fl(fl(1/t)/s).
    Torchao,
    /// torchao without a tensor scale: s = e4m3(clamp(fl(a/6), 2^−6, 448)), payload x · fl(1/s).
    TorchaoOneLevel,
    /// TransformerEngine: S = fl(2688/amax), s = e4m3(min(fl(a · fl(S · fl(1/6))), 448)), payload
    /// x · min(1/fl(s · fl(1/S)), FLT_MAX).
    TransformerEngine,
}

/// How scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Any f32.
    F32,
    /// Powers of two, as f32.
    PowerOfTwoF32,
    /// One byte.
    E8M0,
    /// E4M3 with an f32 for the tensor.
    E4M3,
}

impl ScaleFormat {
    /// The format that each scale is stored in.
    pub const fn stored(self) -> Format {
        match self {
            ScaleFormat::F32 | ScaleFormat::PowerOfTwoF32 => Format::F32,
            ScaleFormat::E8M0 => Format::E8M0,
            ScaleFormat::E4M3 => Format::E4M3,
        }
    }
}

impl Recipe {
    /// Short names for the recipes of the same family that its specification describes.
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("mxfp8", "mxfp8-e4m3-floor"),
        ("mxfp8-rceil", "mxfp8-e4m3-rceil"),
        ("mxfp6", "mxfp6-e2m3-floor"),
        ("mxfp4", "mxfp4-e2m1-floor"),
        ("nvfp4", "nvfp4-te-1x16"),
        ("e5m6", "e5m6-1x128"),
    ];

    /// The recipe of [`Recipe::ALL`] with this name or short name.
    pub(super) fn named(name: &str) -> Option<&'static Recipe> {
        let full = Self::ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, full)| full);
        Self::ALL.iter().find(|r| r.name == full)
    }

    /// The recipe for gradients: the same arithmetic with the gradients' element format.
    pub const fn for_gradients(&self) -> Recipe {
        Recipe { element: self.gradient, ..*self }
    }

    /// The same recipe with scales of full precision: what rounding them to powers of two or to E4M3 costs is the
    /// difference to this. `None` where scales are plain f32 already.
    pub const fn with_exact_scales(&self) -> Option<Recipe> {
        let scaling = match self.scaling {
            Scaling::Scale { power_of_two: PowerOfTwo::No, .. }
            | Scaling::Multiplier { power_of_two: false, .. } => {
                return None;
            }
            Scaling::Scale { form, payload, zero, .. } => {
                let payload = match payload {
                    PayloadForm::NegatedExponent => PayloadForm::Inverse,
                    other => other,
                };
                Scaling::Scale { form, power_of_two: PowerOfTwo::No, payload, zero }
            }
            Scaling::Multiplier { form, overflow, zero, infinite, nan, .. } => {
                Scaling::Multiplier { form, overflow, power_of_two: false, zero, infinite, nan }
            }
            Scaling::Mx(_) | Scaling::Nvfp4(_) => Scaling::Scale {
                form: ScaleForm::Quotient,
                power_of_two: PowerOfTwo::No,
                payload: PayloadForm::Quotient,
                zero: Some(1.0),
            },
        };
        Some(Recipe { scaling, ..*self })
    }

    /// How the recipe stores its scales.
    pub const fn scale_format(&self) -> ScaleFormat {
        match self.scaling {
            Scaling::Scale { power_of_two: PowerOfTwo::No, .. } => ScaleFormat::F32,
            Scaling::Multiplier { power_of_two: false, .. } => ScaleFormat::F32,
            Scaling::Scale { .. } | Scaling::Multiplier { .. } => ScaleFormat::PowerOfTwoF32,
            Scaling::Mx(_) => ScaleFormat::E8M0,
            Scaling::Nvfp4(_) => ScaleFormat::E4M3,
        }
    }

    /// The largest finite element, as f32.
    pub fn max(&self) -> f32 {
        self.element.spec().max_finite() as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_found() {
        for (i, recipe) in Recipe::ALL.iter().enumerate() {
            assert_eq!(recipe.name.parse::<Recipe>().unwrap(), *recipe);
            assert!(Recipe::ALL[..i].iter().all(|r| r.name != recipe.name), "{}", recipe.name);
        }
        for (alias, full) in Recipe::ALIASES {
            assert_eq!(alias.parse::<Recipe>().unwrap().name, *full);
        }
        let message = "nonsense".parse::<Recipe>().unwrap_err().to_string();
        assert!(message.contains("deepseek-v3,") && message.contains("nvfp4-te-1x16"), "{message}");
    }
}
