//! What registers must know of a signed number format.

/// Where the codes of a format lie that are no finite number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// Nowhere.
    None,
    /// Without their signs above this, the code of the largest finite number.
    Above(u32),
    /// NaN is the code of −0, and there is nothing else.
    Fnuz,
}

/// The fields of a signed format's codes: sign, exponent, fraction from the highest bit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeSpec {
    /// Bits of the exponent.
    pub exponent_bits: u32,
    /// Bits of the fraction.
    pub mantissa_bits: u32,
    /// What is subtracted from the exponent's field.
    pub bias: i32,
    /// The codes that are no finite number.
    pub specials: Specials,
}

impl CodeSpec {
    /// Bits of a code.
    pub const fn bits(&self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    /// The bits of a code but its sign.
    pub const fn magnitude(&self) -> u32 {
        u32::MAX >> (33 - self.bits())
    }
}
