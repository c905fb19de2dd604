//! Where a format's fields lie, and how the codes of a register are taken apart.

use super::Side;
use crate::simd::{CodeSpec, Fused, Specials};

/// Exponent bytes are 15 − e in A and 142 + e in B: their difference is 127 + e of both.
const TOP_A: i32 = 15;
const TOP_B: i32 = 142;

/// The upper bits of all bytes.
const SIGNS: u32 = in_bytes(0x80);
/// The sign, and the bias of the exponent, of an f32.
const SIGN: u32 = 1 << 31;
const BIAS: i32 = f32::MAX_EXP - 1;

/// Where a format's fields lie, in each byte of a register.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
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

impl Fields {
    /// `None` where the format is not taken apart here: those of more than 8 bits, and those whose NaN is the code
    /// of −0.
    pub fn new(spec: CodeSpec) -> Option<Fields> {
        if spec.bits() > 8 || spec.specials == Specials::Fnuz {
            return None;
        }
        let exponent = (1 << spec.exponent_bits) - 1;
        Some(Fields {
            magnitude: in_bytes(spec.magnitude()),
            mantissa_bits: spec.mantissa_bits,
            exponent: in_bytes(exponent),
            sign_shift: 8 - spec.bits(),
            bias: spec.bias,
            float: 0x7F_FFFF & !(0x7F_FFFF >> spec.mantissa_bits) | exponent << 23,
            float_shift: 8 - spec.exponent_bits,
        })
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

    /// Of every byte: the exponent byte; in bit 7 whether it is not zero, and whether it is negative and not zero.
    #[inline(always)]
    pub(super) fn take_apart<S: Fused>(&self, s: S, codes: S::U32, side: Side) -> (S::U32, S::U32, S::U32) {
        let ones = s.splat_u32(in_bytes(1));
        let magnitude = s.and(codes, s.splat_u32(self.magnitude));
        let one_if_nonzero = s.sub_u32(magnitude, s.sub_bytes(magnitude, ones));
        let nonzero = s.sub_u32(s.shl(one_if_nonzero, 8), one_if_nonzero);
        let field = s.and(s.shr(magnitude, self.mantissa_bits), s.splat_u32(self.exponent));
        let field = s.max_bytes(field, ones);
        let bytes = if side == Side::A {
            let top = s.splat_u32(in_bytes((TOP_A + self.bias).cast_unsigned()));
            // Zeros are more than any byte of B.
            let zeros = s.sub_u32(s.splat_u32(u32::MAX), nonzero);
            s.or(s.and(s.sub_u32(top, field), nonzero), zeros)
        } else {
            let top = s.splat_u32(in_bytes((TOP_B - self.bias).cast_unsigned()));
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
