//! A result as it was given, element by element.

use half::{bf16, f16};

use crate::matrix::MatRef;

/// A result of unknown arithmetic: what an output of that type is compared by.
#[derive(Clone, Copy, Debug)]
pub enum Computed<'a> {
    /// f32.
    F32(MatRef<'a, f32>),
    /// f32 sums rounded to BF16.
    Bf16(MatRef<'a, bf16>),
    /// F16: f32 sums rounded to it, or an accumulator in f16.
    F16(MatRef<'a, f16>),
}

/// An element as its bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits {
    pub(super) value: f32,
    pattern: u32,
}

impl Bits {
    /// How far two elements of one format are apart: 0 where they have the same bits or both are NaN.
    pub(super) fn distance(self, other: Bits, sign: u32) -> u32 {
        match (self.value.is_nan(), other.value.is_nan()) {
            (true, true) => 0,
            (true, false) | (false, true) => u32::MAX,
            // Zeros of both signs are one step apart.
            (false, false) => {
                let place = |x: Bits| match x.pattern & sign {
                    0 => i64::from(x.pattern),
                    _ => -1 - i64::from(x.pattern & (sign - 1)),
                };
                (place(self) - place(other)).unsigned_abs().try_into().unwrap_or(u32::MAX)
            }
        }
    }
}

impl<'a> Computed<'a> {
    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Computed::F32(m) => m.shape(),
            Computed::Bf16(m) => m.shape(),
            Computed::F16(m) => m.shape(),
        }
    }

    /// The name of the format.
    pub const fn format(&self) -> &'static str {
        match self {
            Computed::F32(_) => "f32",
            Computed::Bf16(_) => "bf16",
            Computed::F16(_) => "f16",
        }
    }

    /// The pattern of −0.
    pub(super) fn sign(&self) -> u32 {
        match self {
            Computed::F32(_) => 1 << 31,
            Computed::Bf16(_) | Computed::F16(_) => 1 << 15,
        }
    }

    /// Element (i, j).
    pub(super) fn at(&self, i: usize, j: usize) -> Bits {
        match self {
            Computed::F32(m) => Bits { value: m.at(i, j), pattern: m.at(i, j).to_bits() },
            Computed::Bf16(m) => Bits { value: m.at(i, j).to_f32(), pattern: m.at(i, j).to_bits().into() },
            Computed::F16(m) => Bits { value: m.at(i, j).to_f32(), pattern: m.at(i, j).to_bits().into() },
        }
    }

    /// A sum, rounded once to this format.
    pub(super) fn rounded(&self, x: f32) -> Bits {
        match self {
            Computed::F32(_) => Bits { value: x, pattern: x.to_bits() },
            Computed::Bf16(_) => {
                let x = bf16::from_f32(x);
                Bits { value: x.to_f32(), pattern: x.to_bits().into() }
            }
            Computed::F16(_) => {
                let x = f16::from_f32(x);
                Bits { value: x.to_f32(), pattern: x.to_bits().into() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;

    #[test]
    fn distances_count_numbers_of_the_format() {
        let m = Matrix::filled(1, 1, bf16::ONE);
        let d = Computed::Bf16(m.view());
        let far = |x: f32, y: f32| d.rounded(x).distance(d.rounded(y), d.sign());
        assert_eq!(far(1.0, 1.0), 0);
        assert_eq!(far(1.0, 1.0 + 1.0 / 128.0), 1);
        assert_eq!(far(0.0, -0.0), 1);
        assert_eq!(far(f32::NAN, -f32::NAN), 0);
        assert_eq!(far(f32::NAN, 1.0), u32::MAX);
        assert_eq!(far(f32::INFINITY, f32::NEG_INFINITY), 2 * 0x7F80 + 1);
        let smallest = f32::from_bits(1 << 16);
        assert_eq!(far(smallest, -smallest), 3);
    }
}
