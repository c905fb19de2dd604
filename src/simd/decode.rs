//! From codes to packed panels: any signed format of at most 8 bits, and BF16, in registers.

use super::Simd;
use crate::formats::{Format, Specials};

/// Decodes registers whose lanes hold four codes of a byte each, or two of BF16.
///
/// A code of e exponent and m fraction bits is moved so that its sign, exponent and fraction fall on those of an f32
/// whose exponent field it then is: the value times 2^(bias − 127), subnormals included, and one exact product
/// restores it. Infinities and NaN are found by a comparison and looked up in the format's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoder {
    /// `None` for BF16.
    bytes: Option<Bytes>,
}

#[derive(Clone, Copy, Debug)]
struct Bytes {
    /// Moves the sign of the code in the low byte to bit 31, less the byte's own place.
    align: u32,
    /// Moves the lowest exponent bit to bit 23.
    shift: u32,
    mask: u32,
    factor: f32,
    /// Every byte without its sign; what is above `largest_finite` there is a special.
    magnitude: u32,
    largest_finite: i8,
    table: &'static [f32],
}

impl Decoder {
    /// The decoder of a format; `None` for formats that it does not know: those whose NaN is the code of −0, and those
    /// of more than 8 bits but BF16.
    pub(crate) fn new(format: Format) -> Option<Decoder> {
        if format == Format::Bf16 {
            return Some(Decoder { bytes: None });
        }
        let (spec, table) = (format.spec(), format.table()?);
        if !spec.signed() || !spec.has_negative_zero() {
            return None;
        }
        let largest_finite = match spec.specials {
            Specials::None => i8::MAX,
            _ => spec.max_code() as i8,
        };
        let fields = 0x7F80_0000 & (0x7F80_0000 >> (8 - spec.exponent_bits))
            | (0x7F_FFFF << (23 - spec.mantissa_bits)) & 0x7F_FFFF;
        let bytes = Bytes {
            align: 32 - spec.bits(),
            shift: 8 - spec.exponent_bits,
            mask: 0x8000_0000 | fields,
            factor: f32::from_bits(((254 - spec.bias) as u32) << 23),
            magnitude: 0x0101_0101 * (spec.code_mask() & !spec.sign_mask()) as u32,
            largest_finite,
            table,
        };
        Some(Decoder { bytes: Some(bytes) })
    }

    /// Codes in one 32-bit lane.
    pub(crate) fn codes_a_lane(&self) -> usize {
        if self.bytes.is_some() { 4 } else { 2 }
    }

    /// Decodes a block of transposed codes, register after register, [`Simd::PAIR`] elements a lane, k ascending: the
    /// first of a pair in the high half, since the dot product adds that first. `store` takes the packed registers in
    /// order.
    #[inline(always)]
    pub(crate) fn decode<S: Simd>(&self, s: S, registers: &[S::U32], mut store: impl FnMut(S::F32)) {
        let Some(bytes) = &self.bytes else {
            let high = s.splat_u32(0xFFFF_0000);
            for &x in registers {
                if S::PAIR == 2 {
                    store(s.float(s.or(s.shl(x, 16), s.shr(x, 16))));
                } else {
                    store(s.float(s.shl(x, 16)));
                    store(s.float(s.and(x, high)));
                }
            }
            return;
        };
        let magnitude = s.splat_u32(bytes.magnitude);
        let mut special = false;
        for &x in registers {
            special |= s.any_byte_above(s.and(x, magnitude), bytes.largest_finite);
        }
        for &x in registers {
            let values = if special {
                bytes.look_up(s, x)
            } else if bytes.align == 24 {
                // The same as below with shifts that the compiler knows.
                bytes.expand(s, [s.shl(x, 24), s.shl(x, 16), s.shl(x, 8), x])
            } else {
                let top = |j: u32| {
                    if 8 * j <= bytes.align {
                        s.shl(x, bytes.align - 8 * j)
                    } else {
                        s.shr(x, 8 * j - bytes.align)
                    }
                };
                bytes.expand(s, [top(0), top(1), top(2), top(3)])
            };
            if S::PAIR == 1 {
                for value in values {
                    store(value);
                }
            } else {
                for p in 0..2 {
                    let odd = s.shr(s.bits(values[2 * p + 1]), 16);
                    store(s.float(s.or(s.bits(values[2 * p]), odd)));
                }
            }
        }
    }
}

impl Bytes {
    /// The values of codes whose signs are in bit 31.
    #[inline(always)]
    fn expand<S: Simd>(&self, s: S, top: [S::U32; 4]) -> [S::F32; 4] {
        let (mask, factor) = (s.splat_u32(self.mask), s.splat(self.factor));
        let mut values = [factor; 4];
        for j in 0..4 {
            values[j] = s.mul(s.float(s.and(s.sar(top[j], self.shift), mask)), factor);
        }
        values
    }

    /// The same by table, for registers with an infinity or NaN.
    #[inline(always)]
    fn look_up<S: Simd>(&self, s: S, x: S::U32) -> [S::F32; 4] {
        let (mut codes, mut values) = ([0u32; 16], [0f32; 16]);
        let mut out = [s.splat(0.0); 4];
        s.store_u32(x, &mut codes);
        for (j, out) in out.iter_mut().enumerate() {
            for (value, code) in values.iter_mut().zip(codes) {
                *value = self.table[(code >> (8 * j)) as usize & (self.table.len() - 1)];
            }
            *out = s.load(&values);
        }
        out
    }
}
