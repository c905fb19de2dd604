//! Casts: a float in, a code out. Rounding and encoding in one step, and decode tables.

use super::e8m0;
use super::round::{Events, Overflow, Rounding};
use super::spec::{Format, FormatSpec, for_formats};
use super::unpacked::Unpacked;

/// A code and what happened while rounding to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    /// The code, in the low bits.
    pub code: u64,
    /// What happened.
    pub events: Events,
}

impl Format {
    /// Rounds a value and encodes it.
    ///
    /// NaN gives the canonical NaN with the sign of the input; in a format without NaN a zero with that sign (ml_dtypes:
    /// with the opposite one), and [`Events::NAN`] tells. E8M0 to nearest follows ml_dtypes ([`e8m0::nearest`]).
    ///
    /// ```
    /// use finegrain::formats::{Format, Overflow, Rounding, Unpacked};
    /// let x = Unpacked::from_f32(-0.3);
    /// let cast = Format::E4M3.cast(x, Rounding::NearestEven, Overflow::Saturate);
    /// assert_eq!(cast.code, 0xAA); // −0.3125
    /// ```
    pub fn cast(self, value: Unpacked, rounding: Rounding, overflow: Overflow) -> Cast {
        if self == Format::E8M0 && rounding == Rounding::NearestEven {
            return e8m0::cast_nearest(value, overflow);
        }
        let rounded = self.spec().round(value, rounding, overflow);
        let code = self.spec().encode(rounded.value);
        Cast { code: code.expect("a rounded value is a member of its format"), events: rounded.events }
    }

    /// [`Format::cast`] of an f32 to nearest even.
    #[inline]
    pub fn cast_f32(self, x: f32, overflow: Overflow) -> Cast {
        self.cast(Unpacked::from_f32(x), Rounding::NearestEven, overflow)
    }

    /// The value of a code of at most 16 bits as f32, exact. NaN codes give a quiet NaN with their sign.
    ///
    /// # Panics
    /// For [`Format::F64`] values that are no f32.
    #[inline]
    pub fn decode_f32(self, code: u16) -> f32 {
        match self {
            Format::Bf16 => f32::from_bits(u32::from(code) << 16),
            Format::F16 => half::f16::from_bits(code).to_f32(),
            _ => match self.table() {
                Some(table) => table[usize::from(code) & (table.len() - 1)],
                None => self.spec().decode(u64::from(code)).to_f32(),
            },
        }
    }
}

/// Codes of a format that has a table: those of at most 8 bits; 0 for the others.
const fn tabled(spec: &FormatSpec) -> usize {
    if spec.bits() <= 8 { 1 << spec.bits() } else { 0 }
}

macro_rules! tables {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $e:literal, $m:literal, $bias:literal, $specials:ident,
       [$($code:ty)?], [$($nan:ident)?];)*) => {
        impl Format {
            /// The values of all codes, for the formats of at most 8 bits.
            pub const fn table(self) -> Option<&'static [f32]> {
                let table: &'static [f32] = match self {
                    $(Format::$variant => {
                        static TABLE: [f32; tabled(Format::$variant.spec())] = decode_all(Format::$variant.spec());
                        &TABLE
                    })*
                };
                if table.is_empty() { None } else { Some(table) }
            }
        }
    };
}
for_formats!(tables);

const fn decode_all<const N: usize>(spec: &FormatSpec) -> [f32; N] {
    let mut table = [0.0; N];
    let mut code = 0;
    while code < N {
        table[code] = spec.decode(code as u64).to_f32();
        code += 1;
    }
    table
}

/// How a whole tensor is rounded: one way throughout, or stochastically with bits drawn per element.
///
/// The random bits of element i are a hash of (seed, i): a counter-based generator, so the result does not depend on
/// the order in which elements are visited or on the number of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRounding {
    /// The same rounding for every element.
    Fixed(Rounding),
    /// [`Rounding::Stochastic`] with 32 random bits an element.
    Stochastic {
        /// Names the random sequence.
        seed: u64,
    },
}

impl TensorRounding {
    /// The rounding for the tensor of this name: two tensors of one file must not share random bits, so the seed is
    /// combined (exclusive or) with the 64-bit FNV-1a hash of the name.
    pub fn for_tensor(self, name: &str) -> Self {
        match self {
            TensorRounding::Stochastic { seed } => TensorRounding::Stochastic { seed: seed ^ fnv1a(name) },
            fixed => fixed,
        }
    }

    /// The rounding of element `index`.
    #[inline]
    pub fn at(self, index: u64) -> Rounding {
        match self {
            TensorRounding::Fixed(rounding) => rounding,
            TensorRounding::Stochastic { seed } => {
                Rounding::Stochastic { random: (counter_hash(seed, index) >> 32) as u32, bits: 32 }
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014) at position `index` of the
/// sequence that starts at `seed`.
#[inline]
pub(crate) const fn counter_hash(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// FNV-1a with 64 bits (RFC 9923).
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_narrow_format_has_the_table_of_its_codes() {
        for &format in Format::ALL {
            let spec = format.spec();
            assert_eq!(format.table().map_or(0, <[f32]>::len), tabled(spec), "{format}");
            for (code, &value) in format.table().unwrap_or_default().iter().enumerate() {
                let expected = spec.decode(code as u64).to_f32();
                assert_eq!(value.to_bits(), expected.to_bits(), "{format} {code:#x}");
                assert_eq!(
                    format.decode_f32(code as u16).to_bits(),
                    expected.to_bits(),
                    "{format} {code:#x}"
                );
            }
        }
    }

    #[test]
    fn splitmix_is_the_published_sequence() {
        // First outputs for seed 1234567, from the authors' reference program.
        let first: Vec<u64> = (0..3).map(|i| counter_hash(1234567, i)).collect();
        assert_eq!(first, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn fnv_gives_the_published_values() {
        assert_eq!(
            [fnv1a(""), fnv1a("a"), fnv1a("foobar")],
            [0xCBF2_9CE4_8422_2325, 0xAF63_DC4C_8601_EC8C, 0x8594_4171_F739_67E8]
        );
    }

    #[test]
    fn stochastic_casts_are_unbiased_over_a_tensor() {
        let n = 100_000u64;
        let rounding = TensorRounding::Stochastic { seed: 7 };
        let x = 1.0 + 0.125 * 0.3;
        let cast =
            |i| Format::E4M3.cast(Unpacked::from_f32(x), rounding.at(i), Overflow::Saturate).code as u16;
        let mean = (0..n).map(|i| f64::from(Format::E4M3.decode_f32(cast(i)))).sum::<f64>() / n as f64;
        // Standard deviation of the mean: 0.125 · sqrt(0.3 · 0.7 / n) = 1.8e-4.
        assert!((mean - f64::from(x)).abs() < 1e-3, "{mean}");
    }
}
