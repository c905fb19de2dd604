//! From amax to scale and payload: the arithmetic of every recipe, operation by operation.
//!
//! All of it is f32 arithmetic in the order the source writes it (fl() is one rounding), and integer arithmetic on f32
//! bits where the source works on bits. Nothing here looks at more than one granule.

use super::recipe::{
    ElementCast, MultiplierForm, MxRule, NanAmax, Nvfp4Rule, PayloadForm, PowerOfTwo, Recipe, ScaleForm,
    Scaling,
};
use crate::formats::{Cast, Format, Overflow, Rounding, Unpacked, e5m6, e8m0};

/// The largest finite E4M3 value, which NVFP4's block scales are clamped to.
const E4M3_MAX: f32 = 448.0;
/// The largest E2M1 value.
const E2M1_MAX: f32 = 6.0;

/// One scale as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StoredScale {
    /// An f32.
    F32(f32),
    /// An E8M0 or E4M3 byte.
    Byte(u8),
}

/// What an element is divided or multiplied by before it is cast. One f32 rounding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Payload {
    /// fl(x / s).
    Divide(f32),
    /// fl(x · m).
    Multiply(f32),
}

impl Payload {
    /// The payload of x.
    pub fn of(self, x: f32) -> f32 {
        match self {
            Payload::Divide(s) => x / s,
            Payload::Multiply(m) => x * m,
        }
    }
}

/// What a granule's amax decides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GranuleScale {
    /// The scale that dequantises.
    pub stored: StoredScale,
    /// How elements become payloads.
    pub payload: Payload,
}

/// What the amax of the whole tensor decides, for recipes with a scale of the tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorScale {
    /// The stored second-level scale; 1 for one-level recipes.
    pub scale: f32,
    /// Its reciprocal as the source computes it: TransformerEngine's encode scale S.
    encode: f32,
}

impl TensorScale {
    /// For recipes without a tensor scale.
    pub const ONE: TensorScale = TensorScale { scale: 1.0, encode: 1.0 };
}

/// max(a, b) that keeps NaN.
fn max_or_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

/// min(a, b) that keeps NaN.
fn min_or_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.min(b) }
}

impl Recipe {
    /// Whether scales depend on the amax of the whole tensor.
    pub fn needs_tensor_amax(&self) -> bool {
        matches!(self.scaling, Scaling::Nvfp4(Nvfp4Rule::Torchao | Nvfp4Rule::TransformerEngine))
    }

    /// amax of a granule, without the floor. NaN elements are skipped or make it the canonical NaN, as the recipe says.
    pub fn amax(&self, elements: impl IntoIterator<Item = f32>) -> f32 {
        match self.amax.nan {
            NanAmax::Ignored => {
                elements.into_iter().fold(0.0, |a, x| if x.is_nan() { a } else { a.max(x.abs()) })
            }
            NanAmax::Propagates => elements.into_iter().fold(0.0, |a, x| max_or_nan(a, x.abs())),
        }
    }

    /// What the amax of the tensor decides.
    pub fn tensor_scale(&self, amax: f32) -> TensorScale {
        match self.scaling {
            Scaling::Nvfp4(Nvfp4Rule::Torchao) => {
                let scale = amax / (E4M3_MAX * E2M1_MAX);
                TensorScale { scale, encode: 1.0 / scale }
            }
            Scaling::Nvfp4(Nvfp4Rule::TransformerEngine) => {
                let quotient = min_or_nan(E4M3_MAX * E2M1_MAX / amax, f32::MAX);
                let encode = if amax == 0.0 || quotient == 0.0 { 1.0 } else { quotient };
                TensorScale { scale: 1.0 / encode, encode }
            }
            _ => TensorScale::ONE,
        }
    }

    /// What the amax of a granule (before the floor) decides.
    pub fn granule_scale(&self, amax: f32, tensor: TensorScale) -> GranuleScale {
        let a = if self.amax.floor > 0.0 { max_or_nan(amax, self.amax.floor) } else { amax };
        let max = self.max();
        match self.scaling {
            Scaling::Scale { form, power_of_two, payload, zero } => {
                let exact = match form {
                    ScaleForm::Quotient => a / max,
                    ScaleForm::Reciprocal => a * (1.0 / max),
                };
                let s = match (power_of_two.round(exact), zero) {
                    (0.0, Some(replacement)) => replacement,
                    (s, _) => s,
                };
                GranuleScale { stored: StoredScale::F32(s), payload: payload.factor(s, a, max) }
            }
            Scaling::Multiplier { form, overflow, power_of_two, zero, infinite, nan } => {
                let quotient = match form {
                    MultiplierForm::Quotient => max / a,
                    MultiplierForm::Reciprocal => (1.0 / a) * max,
                    MultiplierForm::Reciprocal64 => reciprocal64(a, max),
                };
                let finite = match overflow {
                    Some(replacement) if quotient.is_infinite() => replacement,
                    _ => quotient,
                };
                let m = match (zero, infinite, nan) {
                    (Some(m), _, _) if a == 0.0 => m,
                    (_, Some(m), _) if a.is_infinite() => m,
                    (_, _, Some(m)) if a.is_nan() => m,
                    _ if power_of_two => f32::from_bits(finite.to_bits() & 0xFF80_0000),
                    _ => finite,
                };
                GranuleScale { stored: StoredScale::F32(1.0 / m), payload: Payload::Multiply(m) }
            }
            Scaling::Mx(rule) => mx_scale(rule, a, self.element),
            Scaling::Nvfp4(rule) => nvfp4_scale(rule, a, tensor),
        }
    }

    /// The code of a payload and what happened to it.
    ///
    /// Every NaN payload gives the code of the positive NaN: the sign of a NaN that arithmetic makes differs between
    /// processors, and no GPU keeps it.
    pub fn encode(&self, payload: f32) -> Cast {
        let payload = if payload.is_nan() { f32::NAN } else { payload };
        match self.cast {
            ElementCast::Plain(overflow) => self.element.cast_f32(payload, overflow),
            ElementCast::PositiveZero => self.element.cast_f32(payload + 0.0, Overflow::Saturate),
            ElementCast::E5m6(rounding) => {
                let events = self.element.cast_f32(payload, Overflow::Saturate).events;
                Cast { code: u64::from(e5m6::cast(payload, rounding)), events }
            }
        }
    }
}

impl PowerOfTwo {
    /// s rounded up to a power of two, in the source's way.
    fn round(self, s: f32) -> f32 {
        // A NaN has the bits of the canonical NaN in the sources; its sign and payload are not kept here either.
        let s = if s.is_nan() { f32::NAN } else { s };
        match self {
            PowerOfTwo::No => s,
            PowerOfTwo::CeilLog2F32 => exp2_ceil_log2_f32(s),
            PowerOfTwo::CeilField => e8m0::from_field(e8m0::ceil_field(s)),
            PowerOfTwo::CeilFieldClamped => e8m0::from_field(e8m0::ceil_field(s).clamp(1, 254)),
            PowerOfTwo::CeilMask => f32::from_bits(s.to_bits().wrapping_add(0x007F_FFFF) & 0x7F80_0000),
        }
    }
}

impl PayloadForm {
    fn factor(self, s: f32, a: f32, max: f32) -> Payload {
        match self {
            PayloadForm::Quotient => Payload::Divide(s),
            PayloadForm::Inverse => Payload::Multiply(if s == 0.0 { 0.0 } else { 1.0 / s }),
            PayloadForm::MaxOverAmax => Payload::Multiply(max / a),
            PayloadForm::MaxTimesReciprocal => Payload::Multiply((1.0 / a) * max),
            // 2^(127 − e) as an exponent field: 254 − field(s); wraps into the sign for infinite s, as the source does.
            PayloadForm::NegatedExponent => {
                let field = s.to_bits() >> 23;
                Payload::Multiply(e8m0::from_field(254u32.wrapping_sub(field)))
            }
        }
    }
}

/// f32(MAX · (1 / max(f64(a), 1e-12))): torchao's amax_to_scale, f64 throughout.
fn reciprocal64(a: f32, max: f32) -> f32 {
    const EPSILON: f64 = 1e-12;
    let raised = if a.is_nan() { f64::NAN } else { f64::from(a).max(EPSILON) };
    (f64::from(max) * (1.0 / raised)) as f32
}

/// ⌈log2 s⌉ where log2 s is rounded to f32 before the ceiling, for finite s > 0; computed without a logarithm.
///
/// s = 2^k (1 + δ). Rounding log2 s = k + log2(1 + δ) to f32 gives k itself iff log2(1 + δ) is below half the distance h
/// from k to the next f32 above, that is iff δ < 2^h − 1 = h · ln 2 · (1 + h ln 2 / 2 + …). δ is a multiple of 2^−23 and
/// h ≤ 2^−18, so the bound lies between two multiples, far (0.18 of a step or more) from either: one f64 product
/// decides it. For k = 0 the distance vanishes and nothing is absorbed.
fn ceil_log2_f32(s: f32) -> i32 {
    let Unpacked::Finite { significand, exponent, .. } = Unpacked::from_f32(s) else {
        unreachable!("callers pass finite positive values")
    };
    let normalized = significand << significand.leading_zeros();
    let k = exponent + 63 - significand.leading_zeros() as i32;
    // δ in units of 2^-23; exact, since an f32 has no more fraction bits.
    let delta = (normalized << 1) >> 41;
    if delta == 0 {
        return k;
    }
    let absorbed = if k == 0 {
        0
    } else {
        // Above k > 0 the next f32 is one ulp of k away; above k < 0 lie the magnitudes just below |k|.
        let next = (k as f32).next_up();
        let half_gap = (f64::from(next) - f64::from(k)) / 2.0;
        (half_gap * std::f64::consts::LN_2 * f64::from(1 << 23)) as u64
    };
    if delta <= absorbed { k } else { k + 1 }
}

/// exp2(ceil(log2 s)) with log2 s rounded to f32; ∞ and NaN stay.
fn exp2_ceil_log2_f32(s: f32) -> f32 {
    if !s.is_finite() || s <= 0.0 {
        return s;
    }
    match ceil_log2_f32(s) {
        128.. => f32::INFINITY,
        e => Unpacked::power_of_two(e).to_f32(),
    }
}

/// The byte of an MX block and how its elements become payloads.
fn mx_scale(rule: MxRule, a: f32, element: Format) -> GranuleScale {
    let spec = element.spec();
    let max = spec.max_finite() as f32;
    let field = |x: f32| (x.to_bits() >> 23) as i32 & 0xFF;
    let byte = match rule {
        _ if a.is_nan() => e8m0::NAN,
        MxRule::Floor | MxRule::FloorTorchao => (field(a) - spec.emax()).clamp(0, 254) as u8,
        MxRule::Rceil => match a / max {
            d if d.is_infinite() => 254,
            0.0 => 0,
            d => (ceil_log2_f32(d) + 127).clamp(0, 254) as u8,
        },
        MxRule::RceilTe => match a * (1.0 / max) {
            // Up to 2^-127, a subnormal, the byte is 0; the exponent field alone would say 1.
            d if d.to_bits() <= 0x0040_0000 => 0,
            d => e8m0::ceil_field(d).min(254) as u8,
        },
    };
    let s = e8m0::to_f32(byte);
    // 2^-(byte - 127); 1/s is exact but for byte 255, where it is NaN.
    let inverse = 1.0 / s;
    let payload = match rule {
        MxRule::Floor => Payload::Divide(s),
        MxRule::FloorTorchao => Payload::Divide(max_or_nan(s, f32::MIN_POSITIVE)),
        MxRule::Rceil if byte == 0 => Payload::Multiply(1.0),
        MxRule::Rceil | MxRule::RceilTe => Payload::Multiply(inverse),
    };
    GranuleScale { stored: StoredScale::Byte(byte), payload }
}

/// The E4M3 code of an NVFP4 block and how its elements become payloads.
fn nvfp4_scale(rule: Nvfp4Rule, a: f32, tensor: TensorScale) -> GranuleScale {
    /// The smallest scale torchao stores: the smallest normal E4M3 value.
    const TORCHAO_MIN: f32 = 1.0 / 64.0;
    let e4m3 = |x: f32| {
        let code = Format::E4M3
            .cast(Unpacked::from_f32(x), Rounding::NearestEven, Overflow::NonSaturating)
            .code as u8;
        (code, Format::E4M3.decode_f32(u16::from(code)))
    };
    let clamp = |x: f32| min_or_nan(max_or_nan(x, TORCHAO_MIN), E4M3_MAX);
    let (code, multiplier) = match rule {
        Nvfp4Rule::Torchao => {
            let (code, s) = e4m3(clamp(a / E2M1_MAX / tensor.scale));
            (code, (1.0 / tensor.scale) / s)
        }
        Nvfp4Rule::TorchaoOneLevel => {
            let (code, s) = e4m3(clamp(a / E2M1_MAX));
            (code, 1.0 / s)
        }
        Nvfp4Rule::TransformerEngine => {
            let wanted = min_or_nan(a * (tensor.encode * (1.0 / E2M1_MAX)), f32::MAX);
            let (code, s) = e4m3(min_or_nan(wanted, E4M3_MAX));
            (code, min_or_nan(1.0 / (s * (1.0 / tensor.encode)), f32::MAX))
        }
    };
    GranuleScale { stored: StoredScale::Byte(code), payload: Payload::Multiply(multiplier) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule above against the library logarithm, over every fraction near a power of two and every exponent.
    #[test]
    fn ceiling_of_the_rounded_logarithm() {
        for k in -126..128i32 {
            for delta in (0..200).chain([1 << 10, 1 << 20, (1 << 23) - 1]) {
                let s = f32::from_bits(((k + 127) as u32) << 23 | delta);
                let expected = (f64::from(s).log2() as f32).ceil() as i32;
                assert_eq!(ceil_log2_f32(s), expected, "2^{k} (1 + {delta} · 2^-23)");
            }
        }
        for bits in [1u32, 2, 3, 0x3F_FFFF, 0x40_0000, 0x40_0001, 0x7F_FFFF] {
            let s = f32::from_bits(bits);
            assert_eq!(ceil_log2_f32(s), (f64::from(s).log2() as f32).ceil() as i32, "{bits:#x}");
        }
    }

    #[test]
    fn power_of_two_rules_differ_where_their_sources_do() {
        let above = f32::from_bits(1024f32.to_bits() + 1);
        assert_eq!(PowerOfTwo::CeilField.round(above), 2048.0);
        assert_eq!(PowerOfTwo::CeilMask.round(above), 2048.0);
        assert_eq!(PowerOfTwo::CeilLog2F32.round(above), 1024.0, "absorbed by the rounding of the logarithm");
        assert_eq!(PowerOfTwo::CeilField.round(f32::INFINITY), f32::INFINITY);
        assert_eq!(PowerOfTwo::CeilFieldClamped.round(f32::INFINITY), 2f32.powi(127));
        assert_eq!(PowerOfTwo::CeilFieldClamped.round(0.0), 2f32.powi(-126));
    }

    /// Clipping: the floor rule loses up to 12.5 % of the block's maximum, the ceiling rule nothing.
    #[test]
    fn mx_floor_clips_and_ceiling_does_not() {
        let worst = |rule| {
            (0..1000)
                .map(|i| {
                    let a = 1.0 + i as f32 / 1000.0;
                    let g = mx_scale(rule, a, Format::E4M3);
                    let StoredScale::Byte(byte) = g.stored else { unreachable!() };
                    let code = Format::E4M3.cast_f32(g.payload.of(a), Overflow::Saturate).code as u16;
                    1.0 - Format::E4M3.decode_f32(code) * e8m0::to_f32(byte) / a
                })
                .fold(0f32, f32::max)
        };
        let (floor, ceiling) = (worst(MxRule::Floor), worst(MxRule::RceilTe));
        assert!(floor > 0.12 && floor <= 0.125, "{floor}");
        assert!(ceiling <= 1.0 / 16.0, "{ceiling}: rounding alone");
    }
}
