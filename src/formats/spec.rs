//! Number formats as data.
//!
//! A format is six facts: bit counts, bias, whether there is a sign, and what the topmost codes mean. Everything else
//! (largest and smallest values, exponent range) is computed from them, never typed twice.

use super::unpacked::Unpacked;
use crate::error::{Error, Result};

/// What the codes at the edge of the range stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Specials {
    /// As in IEEE 754: the topmost exponent holds infinity (fraction 0) and NaN.
    Ieee,
    /// Only the all-ones code of each sign is NaN; no infinity (E4M3, "fn").
    NanOnly,
    /// The code of −0 is the only NaN; no infinity, no −0 ("fnuz").
    Fnuz,
    /// Every code is a number.
    None,
    /// The all-ones code is NaN; no zero, no subnormals, no sign (E8M0).
    Scale,
}

/// Which NaN an IEEE format writes: it has many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WrittenNan {
    /// The quiet one of IEEE 754: only the topmost fraction bit is set.
    Quiet,
    /// All ones.
    Ones,
}

/// A binary floating-point format.
///
/// The value of a code with sign s, exponent field f and fraction m (of `mantissa_bits` bits) is
/// (−1)^s · 2^(max(f, 1) − bias) · (h + m / 2^mantissa_bits), where the hidden bit h is 0 for f = 0 and 1 otherwise, but
/// for the codes that [`Specials`] names; E8M0 is 2^(f − bias).
///
/// ```
/// use finegrain::formats::Format;
/// let e4m3 = Format::E4M3.spec();
/// assert_eq!(e4m3.max_finite(), 448.0);
/// assert_eq!(e4m3.min_normal(), 2f64.powi(-6));
/// assert_eq!(e4m3.min_subnormal(), 2f64.powi(-9));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FormatSpec {
    /// The name of the field, in lower case.
    pub name: &'static str,
    /// Width of the exponent field.
    pub exponent_bits: u32,
    /// Width of the fraction field; the significand has one bit more.
    pub mantissa_bits: u32,
    /// What is subtracted from the exponent field.
    pub bias: i32,
    /// Meaning of the codes at the edge.
    pub specials: Specials,
    /// Of many NaNs the one that is written.
    pub nan: WrittenNan,
    /// The largest finite number, computed once: rounding asks for it at every value.
    max: (u64, i32),
}

impl FormatSpec {
    /// A format from its facts.
    const fn define(
        name: &'static str,
        exponent_bits: u32,
        mantissa_bits: u32,
        bias: i32,
        specials: Specials,
    ) -> FormatSpec {
        let nan = WrittenNan::Quiet;
        let mut spec = FormatSpec { name, exponent_bits, mantissa_bits, bias, specials, nan, max: (0, 0) };
        spec.max = match spec.decode(spec.max_code()) {
            Unpacked::Finite { significand, exponent, .. } => (significand, exponent),
            _ => unreachable!(),
        };
        spec
    }

    /// Whether the topmost bit is a sign.
    #[inline]
    pub const fn signed(&self) -> bool {
        !matches!(self.specials, Specials::Scale)
    }

    /// Width of a code.
    #[inline]
    pub const fn bits(&self) -> u32 {
        self.signed() as u32 + self.exponent_bits + self.mantissa_bits
    }

    /// The bits a code may have set.
    #[inline]
    pub const fn code_mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The sign bit of a code, 0 where there is none.
    #[inline]
    pub const fn sign_mask(&self) -> u64 {
        (self.signed() as u64) << (self.bits() - 1)
    }

    /// Exponent of the smallest normal number.
    #[inline]
    pub const fn emin(&self) -> i32 {
        if self.has_subnormals() { 1 - self.bias } else { -self.bias }
    }

    /// Exponent of the largest finite number.
    pub const fn emax(&self) -> i32 {
        let (_, exponent) = self.max_parts();
        exponent + self.mantissa_bits as i32
    }

    /// Whether exponent field 0 holds zero and subnormal numbers.
    #[inline]
    pub const fn has_subnormals(&self) -> bool {
        !matches!(self.specials, Specials::Scale)
    }

    /// Whether some code is NaN.
    #[inline]
    pub const fn has_nan(&self) -> bool {
        !matches!(self.specials, Specials::None)
    }

    /// Whether some code is an infinity.
    #[inline]
    pub const fn has_infinity(&self) -> bool {
        matches!(self.specials, Specials::Ieee)
    }

    /// Whether −0 has a code of its own.
    #[inline]
    pub const fn has_negative_zero(&self) -> bool {
        matches!(self.specials, Specials::Ieee | Specials::NanOnly | Specials::None)
    }

    /// The code of the largest finite number.
    pub const fn max_code(&self) -> u64 {
        let magnitude = self.code_mask() & !self.sign_mask();
        match self.specials {
            Specials::Ieee => magnitude - (1 << self.mantissa_bits),
            Specials::NanOnly | Specials::Scale => magnitude - 1,
            Specials::Fnuz | Specials::None => magnitude,
        }
    }

    /// The same with another NaN written.
    #[inline]
    const fn writing(self, nan: WrittenNan) -> FormatSpec {
        FormatSpec { nan, ..self }
    }

    /// The canonical NaN without its sign: that which the format writes, or the only one it has. F32 uses the tensor cores'
    /// `7FFFFFFF` only where a model says so.
    pub const fn nan_code(&self) -> Option<u64> {
        let magnitude = self.code_mask() & !self.sign_mask();
        match self.specials {
            Specials::Ieee => match self.nan {
                WrittenNan::Quiet => Some(magnitude & !((1 << (self.mantissa_bits - 1)) - 1)),
                WrittenNan::Ones => Some(magnitude),
            },
            Specials::NanOnly | Specials::Scale => Some(magnitude),
            Specials::Fnuz => Some(self.sign_mask()),
            Specials::None => None,
        }
    }

    /// Significand and exponent of the largest finite number: its value is `significand · 2^exponent`.
    pub const fn max_parts(&self) -> (u64, i32) {
        self.max
    }

    /// The largest finite number. Exact for every format here.
    pub fn max_finite(&self) -> f64 {
        let (significand, exponent) = self.max;
        // 2^exponent, a normal number: quantisers ask at every granule.
        significand as f64 * f64::from_bits(((1023 + exponent) as u64) << 52)
    }

    /// The smallest positive number with a full significand.
    #[inline]
    pub fn min_normal(&self) -> f64 {
        Unpacked::power_of_two(self.emin()).to_f64()
    }

    /// The smallest positive number.
    #[inline]
    pub fn min_subnormal(&self) -> f64 {
        Unpacked::power_of_two(self.quantum_floor()).to_f64()
    }

    /// Exponent of the finest step of the format: no finite value has a bit below it.
    #[inline]
    pub const fn quantum_floor(&self) -> i32 {
        self.emin() - self.mantissa_bits as i32
    }

    /// The value of a code; bits above the format's width are ignored.
    #[inline]
    pub const fn decode(&self, code: u64) -> Unpacked {
        let code = code & self.code_mask();
        let negative = code & self.sign_mask() != 0;
        let magnitude = code & !self.sign_mask();
        let fraction = magnitude & ((1 << self.mantissa_bits) - 1);
        let field = (magnitude >> self.mantissa_bits) as i32;
        let top = (1 << self.exponent_bits) - 1;
        match self.specials {
            Specials::Ieee if field == top && fraction == 0 => return Unpacked::Infinite { negative },
            Specials::Ieee if field == top => return Unpacked::Nan { negative },
            Specials::NanOnly | Specials::Scale if magnitude == self.code_mask() & !self.sign_mask() => {
                return Unpacked::Nan { negative };
            }
            Specials::Fnuz if negative && magnitude == 0 => return Unpacked::Nan { negative: false },
            Specials::Scale => {
                return Unpacked::Finite { negative: false, significand: 1, exponent: field - self.bias };
            }
            _ => {}
        }
        if magnitude == 0 {
            return Unpacked::Zero { negative };
        }
        let hidden = if field == 0 { 0 } else { 1 << self.mantissa_bits };
        let exponent = if field == 0 { 1 } else { field } - self.bias - self.mantissa_bits as i32;
        Unpacked::Finite { negative, significand: hidden | fraction, exponent }
    }

    /// The code of a value, or `None` if the format has no code for it. Nothing is rounded here; NaN becomes the
    /// canonical NaN with its sign, if the format has one.
    #[inline]
    pub const fn encode(&self, value: Unpacked) -> Option<u64> {
        let (negative, magnitude) = match value {
            Unpacked::Nan { negative } => match self.nan_code() {
                Some(code) if self.has_negative_zero() => (negative, code),
                Some(code) => return Some(code),
                None => return None,
            },
            Unpacked::Infinite { negative } if self.has_infinity() => {
                (negative, (self.code_mask() & !self.sign_mask()) >> self.mantissa_bits << self.mantissa_bits)
            }
            Unpacked::Infinite { .. } => return None,
            Unpacked::Zero { negative }
                if self.has_subnormals() && (!negative || self.has_negative_zero()) =>
            {
                (negative, 0)
            }
            Unpacked::Zero { .. } => return None,
            Unpacked::Finite { negative, significand, exponent } => {
                match self.encode_magnitude(significand, exponent) {
                    Some(code) if code <= self.max_code() && (!negative || self.signed()) => (negative, code),
                    _ => return None,
                }
            }
        };
        Some(magnitude | if negative { self.sign_mask() } else { 0 })
    }

    /// The code of significand · 2^exponent if it lies on the format's grid (of unbounded exponent).
    #[inline]
    const fn encode_magnitude(&self, significand: u64, exponent: i32) -> Option<u64> {
        if significand == 0 {
            return None;
        }
        let top = 63 - significand.leading_zeros() as i32;
        let e = exponent + top;
        if e > self.emax() {
            return None;
        }
        let quantum = if e < self.emin() { self.emin() } else { e } - self.mantissa_bits as i32;
        let shift = quantum - exponent;
        if shift > significand.trailing_zeros() as i32 {
            return None;
        }
        let scaled = if shift >= 0 { significand >> shift } else { significand << -shift };
        if !self.has_subnormals() {
            return if e < self.emin() { None } else { Some((e + self.bias) as u64) };
        }
        // The hidden bit, where there is one, adds 1 to the exponent field.
        let field = (if e < self.emin() { self.emin() } else { e }) - self.emin();
        Some(((field as u64) << self.mantissa_bits) + scaled)
    }
}

/// The list of formats, for every macro that makes something of each: `list! { … }` with a line a format, that is
/// documentation, variant, name, exponent bits, fraction bits, bias, specials, and in brackets the integer of the code
/// type of that name, if there is one, and the NaN that is written, if it is not the quiet one.
///
/// A format is added here, and in `checkpoint::Tensor`'s list if safetensors has a dtype for it.
macro_rules! for_formats {
    ($list:ident) => {
        $list! {
            /// OCP FP8 with 3 fraction bits ("e4m3fn"): max 448, NaN 7F/FF, no infinity. DeepSeek-V3's format for all
            /// tensors.
            E4M3 = "e4m3", 4, 3, 7, NanOnly, [u8], [];
            /// OCP FP8 with 2 fraction bits: max 57344, infinities and NaN as in IEEE 754.
            E5M2 = "e5m2", 5, 2, 15, Ieee, [u8], [];
            /// AMD/Graphcore FP8: max 240, NaN 80, no −0.
            E4M3Fnuz = "e4m3fnuz", 4, 3, 8, Fnuz, [u8], [];
            /// AMD/Graphcore FP8: max 57344, NaN 80, no −0.
            E5M2Fnuz = "e5m2fnuz", 5, 2, 16, Fnuz, [u8], [];
            /// DeepSeek's 12-bit activation cache: the top 12 bits of an FP16. Writes the NaN of its golden tables.
            E5M6 = "e5m6", 5, 6, 15, Ieee, [u16], [Ones];
            /// OCP FP6, wide range: max 28.
            E3M2 = "e3m2", 3, 2, 3, None, [u8], [];
            /// OCP FP6, fine steps: max 7.5.
            E2M3 = "e2m3", 2, 3, 1, None, [u8], [];
            /// OCP FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
            E2M1 = "e2m1", 2, 1, 1, None, [u8], [];
            /// OCP power-of-two scale: 2^(code − 127), FF is NaN.
            E8M0 = "e8m0", 8, 0, 127, Scale, [u8], [];
            /// The 22-bit accumulator of Ada's and Hopper's FP8 tensor cores ("FP22").
            E8M13 = "e8m13", 8, 13, 127, Ieee, [], [];
            /// bfloat16.
            Bf16 = "bf16", 8, 7, 127, Ieee, [], [];
            /// IEEE binary16.
            F16 = "f16", 5, 10, 15, Ieee, [], [];
            /// IEEE binary32.
            F32 = "f32", 8, 23, 127, Ieee, [], [];
            /// IEEE binary64.
            F64 = "f64", 11, 52, 1023, Ieee, [], [];
        }
    };
}
pub(super) use for_formats;

macro_rules! define {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $e:literal, $m:literal, $bias:literal, $specials:ident,
       [$($code:ty)?], [$($nan:ident)?];)*) => {
        /// The formats of the field, by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Format { $($(#[$doc])* $variant,)* }

        impl Format {
            /// Every format, in the order of the table `finegrain formats` prints.
            pub const ALL: &[Format] = &[$(Format::$variant,)*];

            /// The format's facts.
            #[inline]
            pub const fn spec(self) -> &'static FormatSpec {
                match self {
                    $(Format::$variant => const {
                        &FormatSpec::define($name, $e, $m, $bias, Specials::$specials)$(.writing(WrittenNan::$nan))?
                    },)*
                }
            }
        }
    };
}
for_formats!(define);

impl Format {
    /// The format's name, as the command line takes it.
    #[inline]
    pub const fn name(self) -> &'static str {
        self.spec().name
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    /// Looks a format up by its name in either case; the "fn" names of ml_dtypes are accepted too.
    fn from_str(name: &str) -> Result<Self> {
        let lower = name.to_ascii_lowercase();
        let short = match lower.as_str() {
            "e4m3fn" => "e4m3",
            "e3m2fn" => "e3m2",
            "e2m3fn" => "e2m3",
            "e2m1fn" => "e2m1",
            "e8m0fnu" | "ue8m0" => "e8m0",
            other => other,
        };
        let found = Format::ALL.iter().find(|f| f.name() == short);
        found.copied().ok_or_else(|| Error::unknown("format", name, Format::ALL.iter().map(|f| f.name())))
    }
}

impl std::fmt::Display for Format {
    #[inline]
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the specification, quoted: name, bits, bias, emax, max, min normal, min subnormal.
    #[test]
    fn derived_facts_are_those_of_the_specifications() {
        let p = |e: i32| 2f64.powi(e);
        let table = [
            ("e4m3", 8, 7, 8, 448.0, p(-6), p(-9)),
            ("e5m2", 8, 15, 15, 57344.0, p(-14), p(-16)),
            ("e4m3fnuz", 8, 8, 7, 240.0, p(-7), p(-10)),
            ("e5m2fnuz", 8, 16, 15, 57344.0, p(-15), p(-17)),
            ("e5m6", 12, 15, 15, 65024.0, p(-14), p(-20)),
            ("e3m2", 6, 3, 4, 28.0, p(-2), p(-4)),
            ("e2m3", 6, 1, 2, 7.5, 1.0, p(-3)),
            ("e2m1", 4, 1, 2, 6.0, 1.0, 0.5),
            ("e8m0", 8, 127, 127, p(127), p(-127), p(-127)),
            ("e8m13", 22, 127, 127, p(128) - p(114), p(-126), p(-139)),
            ("bf16", 16, 127, 127, half::bf16::MAX.to_f64(), p(-126), p(-133)),
            ("f16", 16, 15, 15, 65504.0, p(-14), p(-24)),
            ("f32", 32, 127, 127, f32::MAX as f64, p(-126), p(-149)),
            ("f64", 64, 1023, 1023, f64::MAX, p(-1022), f64::from_bits(1)),
        ];
        assert_eq!(table.len(), Format::ALL.len());
        for (name, bits, bias, emax, max, min_normal, min_subnormal) in table {
            let s = name.parse::<Format>().unwrap().spec();
            assert_eq!((s.bits(), s.bias, s.emax()), (bits, bias, emax), "{name}");
            assert_eq!(s.max_finite(), max, "{name}");
            assert_eq!(s.min_normal(), min_normal, "{name}");
            assert_eq!(s.min_subnormal(), min_subnormal, "{name}");
        }
    }

    #[test]
    fn every_code_survives_decode_and_encode() {
        for format in Format::ALL {
            let s = format.spec();
            let all = if s.bits() <= 22 { 0..=s.code_mask() } else { 0..=0xFFFF };
            for code in all {
                let code = if s.bits() <= 22 { code } else { code << (s.bits() - 16) };
                let value = s.decode(code);
                let back = s.encode(value);
                if matches!(value, Unpacked::Nan { .. }) {
                    assert!(matches!(s.decode(back.unwrap()), Unpacked::Nan { .. }), "{format} {code:#x}");
                } else {
                    assert_eq!(back, Some(code), "{format} {code:#x}");
                }
            }
        }
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let message = "e9m9".parse::<Format>().unwrap_err().to_string();
        assert!(message.contains("'e9m9'") && message.contains("e4m3fnuz"), "{message}");
    }
}
