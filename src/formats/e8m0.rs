//! E8M0: powers of two as one byte, the scales of OCP MX and of UE8M0 recipes.

use super::codec::Cast;
use super::round::{Events, Overflow};
use super::unpacked::Unpacked;

/// Which of the two neighbouring powers of two a scale becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleRound {
    /// 2^floor(log2 s): the OCP MX rule; clips the granule's maximum by up to one binade.
    Floor,
    /// 2^ceil(log2 s): never clips.
    Ceil,
}

/// The byte of NaN.
pub const NAN: u8 = 0xFF;
/// The byte of 2^0.
pub const ONE: u8 = 127;

/// The biased exponent of 2^ceil(log2 s) from the bits of s ≥ 0: the exponent field, plus one if any fraction bit is
/// set. 255 for infinity, 256 for NaN. For subnormal s this is 1 (2^-126), as in the sources that use the rule.
pub(crate) fn ceil_field(s: f32) -> u32 {
    let bits = s.to_bits() & 0x7FFF_FFFF;
    (bits >> 23) + u32::from(bits & 0x007F_FFFF != 0)
}

/// The f32 whose exponent field is `field` and whose fraction is 0; fields above 255 run into the sign bit, as the
/// shift in the sources does.
pub(crate) fn from_field(field: u32) -> f32 {
    f32::from_bits(field << 23)
}

/// A scale as a power of two in E8M0, exact rounding at the bits: `None` for NaN, infinity, zero and negative values;
/// saturates at 2^-127 and, for `Ceil`, at 2^127.
///
/// ```
/// use finegrain::formats::{e8m0, ScaleRound};
/// assert_eq!(e8m0::round_scale(3.0, ScaleRound::Floor), Some(128));
/// assert_eq!(e8m0::round_scale(3.0, ScaleRound::Ceil), Some(129));
/// ```
pub fn round_scale(s: f32, rule: ScaleRound) -> Option<u8> {
    if !s.is_finite() || s <= 0.0 {
        return None;
    }
    let exponent = Unpacked::from_f32(s).exponent()?;
    let above = u32::from(exact_log2(s).is_none());
    let exponent = match rule {
        ScaleRound::Floor => exponent,
        ScaleRound::Ceil => exponent + above as i32,
    };
    Some((exponent + 127).clamp(0, 254) as u8)
}

/// log2 of a power of two; `None` for anything else.
pub fn exact_log2(s: f32) -> Option<i32> {
    match Unpacked::from_f32(s) {
        Unpacked::Finite { negative: false, significand, exponent } if significand.is_power_of_two() => {
            Some(exponent + significand.trailing_zeros() as i32)
        }
        _ => None,
    }
}

/// The value of a byte: 2^(byte − 127), NaN for FF.
#[inline]
pub fn to_f32(byte: u8) -> f32 {
    super::Format::E8M0.decode_f32(u16::from(byte))
}

/// The cast of ml_dtypes to float8_e8m0fnu: nearest power of two, ties up; 0 < x ≤ 2^-127 gives 2^-127, anything
/// between 2^-127 and 2^-126 gives 2^-126; zero, negative values, NaN, infinity and overflow give NaN.
pub fn nearest(x: f32) -> u8 {
    cast_nearest(Unpacked::from_f32(x), Overflow::NonSaturating).code as u8
}

pub(crate) fn cast_nearest(value: Unpacked, overflow: Overflow) -> Cast {
    let nan = |events| Cast { code: u64::from(NAN), events };
    let largest = |events| match overflow {
        Overflow::Saturate => Cast { code: 254, events },
        Overflow::NonSaturating => nan(events),
    };
    match value {
        Unpacked::Nan { .. } => nan(Events::NAN),
        Unpacked::Zero { .. } | Unpacked::Finite { negative: true, .. } => nan(Events::INEXACT),
        Unpacked::Infinite { negative: true } => nan(Events::INFINITE | Events::INEXACT),
        Unpacked::Infinite { negative: false } => largest(Events::INFINITE | Events::INEXACT),
        Unpacked::Finite { significand, exponent, .. } => {
            let top = 63 - significand.leading_zeros() as i32;
            let e = exponent + top;
            let exact = significand.is_power_of_two();
            let events = if exact && e >= -127 { Events::NONE } else { Events::INEXACT };
            let upper_half = top > 0 && significand >> (top - 1) & 1 == 1;
            let up = if e == -127 { !exact } else { upper_half };
            match (e + i32::from(up)).max(-127) {
                128.. => largest(Events::INEXACT | Events::OVERFLOW),
                rounded => Cast { code: (rounded + 127) as u64, events },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_and_ceil_bracket_every_scale() {
        for i in 0..=254u8 {
            let s = to_f32(i);
            assert_eq!(round_scale(s, ScaleRound::Floor), Some(i));
            assert_eq!(round_scale(s, ScaleRound::Ceil), Some(i));
            let above = s.next_up();
            if i > 0 {
                assert_eq!(round_scale(above, ScaleRound::Floor), Some(i), "above 2^{}", i as i32 - 127);
            }
            assert_eq!(
                round_scale(above, ScaleRound::Ceil),
                Some((i + 1).min(254)),
                "above 2^{}",
                i as i32 - 127
            );
        }
        for bad in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(round_scale(bad, ScaleRound::Ceil), None);
        }
    }

    #[test]
    fn ceil_field_is_ceil_for_normal_numbers() {
        for s in [1.0f32, 1.5, 3.0, 4.0, 1e-30, 1e30, f32::MIN_POSITIVE] {
            assert_eq!(from_field(ceil_field(s)), to_f32(round_scale(s, ScaleRound::Ceil).unwrap()));
        }
    }
}
