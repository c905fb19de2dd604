//! Where a format's fields lie, and how the codes of a register are taken apart.

use super::Side;
use crate::simd::{CodeSpec, Fused, Specials};

/// Exponent bytes are 15 − e in A and 142 + e in B: their difference is 127 + e of both.
const TOP_A: i32 = 15;
const TOP_B: i32 = 142;

/// The bytes of elements that lie at the exponent of their row are 0 in A and this in B: two that lie at most 126 below
/// leave a byte that is not 0.
pub const BELOW: u32 = 253;

/// The levels of A and B together, where the bytes of a product give its exponent as an f32 has it.
pub const LEVELS: i32 = BELOW as i32 - BIAS;

/// The upper bits of all bytes.
const SIGNS: u32 = in_bytes(0x80);
/// The sign, and the bias of the exponent, of an f32.
const SIGN: u32 = 1 << 31;
const BIAS: i32 = f32::MAX_EXP - 1;

/// Where a format's fields lie: of 8 bits and less in each byte of a register, of more where a code's sign is moved to
/// bit 31.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    /// Bytes of a code: 1, 2 or 4.
    bytes: usize,
    magnitude: u32,
    mantissa_bits: u32,
    exponent: u32,
    /// From the sign to bit 7.
    sign_shift: u32,
    bias: i32,
    /// The exponent and fraction of an f32 that those of a code are moved to.
    float: u32,
    /// From the lowest exponent bit, once the sign is in bit 31, to bit 23.
    float_shift: u32,
}

/// `x` in every byte.
const fn in_bytes(x: u32) -> u32 {
    0x0101_0101 * x
}

impl Side {
    /// What is added to the exponent bytes of a row whose elements are multiplied by 2^`scale`, for a level of the operand:
    /// an exponent that no element lies above. Levels of A and B that add up to [`LEVELS`] leave the exponent of a product
    /// as an f32 has it.
    #[inline(always)]
    pub(super) fn shift<S: Fused>(self, s: S, level: i32, scale: S::U32) -> S::U32 {
        let shift = match self {
            Side::A => s.sub_u32(s.splat_u32((level - TOP_A).cast_unsigned()), scale),
            Side::B => s.add_u32(s.splat_u32((BELOW as i32 - TOP_B - level).cast_unsigned()), scale),
        };
        // To all bytes.
        let pair = s.add_u32(shift, s.shl(shift, 8));
        s.add_u32(pair, s.shl(pair, 16))
    }
}

impl Fields {
    /// `None` where the format is not taken apart here: E5M6, whose codes fill no word; those whose NaN is the code of −0.
    /// Only `mantissa_bits` of an f32's fraction are read.
    pub fn new(spec: CodeSpec, mantissa_bits: u32) -> Option<Fields> {
        let bytes = match spec.bits() {
            ..=8 => 1,
            16 => 2,
            32 => 4,
            _ => return None,
        };
        if spec.specials == Specials::Fnuz {
            return None;
        }
        let exponent = (1 << spec.exponent_bits) - 1;
        let of_byte = bytes == 1;
        Some(Fields {
            bytes,
            magnitude: if of_byte { in_bytes(spec.magnitude()) } else { 0 },
            mantissa_bits,
            exponent: if of_byte { in_bytes(exponent) } else { exponent },
            sign_shift: if of_byte { 8 - spec.bits() } else { 0 },
            bias: spec.bias,
            float: 0x7F_FFFF & !(0x7F_FFFF >> mantissa_bits) | exponent << 23,
            float_shift: 8 - spec.exponent_bits,
        })
    }

    /// Bytes of a code.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What makes an f32 of a code's fields its value.
    pub(super) fn restored(&self) -> f32 {
        f32::from_bits(((2 * BIAS - self.bias) as u32) << 23)
    }

    /// The values of byte `j` of every lane times `factor` / [`Fields::restored`]. A code's exponent field becomes that
    /// of an f32, which is the value times 2^(bias − 127), subnormals included; infinities and NaN become numbers.
    #[inline(always)]
    pub(super) fn value<S: Fused>(&self, s: S, codes: S::U32, j: u32, factor: S::F32) -> S::F32 {
        let top = s.shl(s.shr(codes, 8 * j), 24 + self.sign_shift);
        let bits = s.and(s.sar(top, self.float_shift), s.splat_u32(SIGN | self.float));
        s.mul(s.float(bits), factor)
    }

    /// The values of codes whose sign lies in bit 31, as [`Fields::value`] gives them, and what they are made of, as
    /// [`Fields::take_apart`] does with bits 0 for bits 7: the byte of an element is how far it lies below the exponent
    /// `top` of its row.
    #[inline(always)]
    pub(super) fn of_word<S: Fused>(
        &self,
        s: S,
        word: S::U32,
        side: Side,
        top: S::U32,
        factor: S::F32,
    ) -> (S::F32, S::U32, S::U32, S::U32) {
        let bits = s.and(s.sar(word, self.float_shift), s.splat_u32(SIGN | self.float));
        let (one, none) = (s.splat_u32(1), s.splat_u32(0));
        let magnitude = s.shl(bits, 1);
        let nonzero = s.select_at_least(magnitude, 1, one, none);
        let field = s.add_u32(s.max_i32(s.shr(magnitude, 24), one), s.splat_u32((BIAS - self.bias) as u32));
        let below = s.sub_u32(top, field);
        let byte = if side == Side::A {
            s.select_at_least(magnitude, 1, below, s.splat_u32(0xFF))
        } else {
            s.select_at_least(magnitude, 1, s.sub_u32(s.splat_u32(BELOW), below), none)
        };
        let value = s.mul(s.float(bits), factor);
        (value, s.and(byte, s.splat_u32(0xFF)), nonzero, s.and(s.shr(word, 31), nonzero))
    }

    /// Of every byte: the exponent byte, with `shift` added to all that are not zero; in bit 7 whether it is not zero, and whether it is negative and not zero.
    #[inline(always)]
    pub(super) fn take_apart<S: Fused>(
        &self,
        s: S,
        codes: S::U32,
        side: Side,
        shift: S::U32,
    ) -> (S::U32, S::U32, S::U32) {
        let ones = s.splat_u32(in_bytes(1));
        let magnitude = s.and(codes, s.splat_u32(self.magnitude));
        let one_if_nonzero = s.sub_u32(magnitude, s.sub_bytes(magnitude, ones));
        let nonzero = s.sub_u32(s.shl(one_if_nonzero, 8), one_if_nonzero);
        let field = s.and(s.shr(magnitude, self.mantissa_bits), s.splat_u32(self.exponent));
        let field = s.max_bytes(field, ones);
        let bytes = if side == Side::A {
            let top = s.add_u32(s.splat_u32(in_bytes((TOP_A + self.bias).cast_unsigned())), shift);
            // Zeros are more than any byte of B.
            let zeros = s.sub_u32(s.splat_u32(u32::MAX), nonzero);
            s.or(s.and(s.sub_u32(top, field), nonzero), zeros)
        } else {
            let top = s.add_u32(s.splat_u32(in_bytes((TOP_B - self.bias).cast_unsigned())), shift);
            s.and(s.add_u32(top, field), nonzero)
        };
        let flags = s.and(nonzero, s.splat_u32(SIGNS));
        (bytes, flags, s.and(s.shl(codes, self.sign_shift), flags))
    }
}

/// Bit 7 of the four bytes, in the lowest four bits of each lane.
#[inline(always)]
pub(super) fn nibble<S: Fused>(s: S, flags: S::U32) -> S::U32 {
    let x = s.shr(flags, 7);
    let pairs = s.or(x, s.shr(x, 7));
    s.and(s.or(pairs, s.shr(pairs, 14)), s.splat_u32(15))
}
