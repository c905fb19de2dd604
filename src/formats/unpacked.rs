//! A number taken apart: what decoding gives, rounding transforms and encoding takes.

use super::spec::{Format, FormatSpec};

/// The value of a code: sign, integer significand and exponent, or one of the special values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacked {
    /// +0 or −0.
    Zero {
        /// Sign.
        negative: bool,
    },
    /// ± significand · 2^exponent with significand ≠ 0, not necessarily normalised.
    Finite {
        /// Sign.
        negative: bool,
        /// Integer significand.
        significand: u64,
        /// Exponent of the significand's lowest bit.
        exponent: i32,
    },
    /// ±∞.
    Infinite {
        /// Sign.
        negative: bool,
    },
    /// Not a number; the payload is not kept.
    Nan {
        /// Sign bit.
        negative: bool,
    },
}

impl Unpacked {
    /// 2^exponent.
    pub const fn power_of_two(exponent: i32) -> Self {
        Unpacked::Finite { negative: false, significand: 1, exponent }
    }

    /// Takes an f32 apart.
    #[inline]
    pub const fn from_f32(x: f32) -> Self {
        Format::F32.spec().decode(x.to_bits() as u64)
    }

    /// Takes an f64 apart.
    pub const fn from_f64(x: f64) -> Self {
        Format::F64.spec().decode(x.to_bits())
    }

    /// The sign bit.
    pub const fn is_negative(self) -> bool {
        match self {
            Unpacked::Zero { negative }
            | Unpacked::Finite { negative, .. }
            | Unpacked::Infinite { negative }
            | Unpacked::Nan { negative } => negative,
        }
    }

    /// floor(log2 |value|) of a finite non-zero value.
    pub const fn exponent(self) -> Option<i32> {
        match self {
            Unpacked::Finite { significand, exponent, .. } => {
                Some(exponent + 63 - significand.leading_zeros() as i32)
            }
            _ => None,
        }
    }

    /// The value as f32. Every value of a format of at most 8 exponent and 23 fraction bits is one.
    ///
    /// # Panics
    /// If the value is not an f32; round to [`Format::F32`] first.
    #[inline]
    pub const fn to_f32(self) -> f32 {
        match Format::F32.spec().encode(self) {
            Some(bits) => f32::from_bits(bits as u32),
            None => panic!("not an f32: round first"),
        }
    }

    /// The value as f64.
    ///
    /// # Panics
    /// If the value is not an f64; round to [`Format::F64`] first.
    pub const fn to_f64(self) -> f64 {
        match Format::F64.spec().encode(self) {
            Some(bits) => f64::from_bits(bits),
            None => panic!("not an f64: round first"),
        }
    }

    /// Drops the sign of a zero where the format has no −0.
    pub(crate) const fn canonical_zero(negative: bool, spec: &FormatSpec) -> Self {
        Unpacked::Zero { negative: negative && spec.has_negative_zero() }
    }
}
