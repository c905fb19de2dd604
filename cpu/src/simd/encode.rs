//! From f32 to codes: rounding in registers.

use super::Convert;

/// All but the sign.
const MAGNITUDE: u32 = 0x7FFF_FFFF;
const EXPONENT: u32 = 0x7F80_0000;
/// Fraction bits of an f32.
const FRACTION_BITS: u32 = 23;

/// Rounds finite f32 to a signed format and encodes them: the format's rounding and code of a lane.
///
/// With E = max(⌊log2 |x|⌋, emin) the format's step at x is q = 2^(E − m). The f32 addition |x| + 2^23·q has its last bit
/// at q, so it rounds to nearest even as the format does, subnormal or not; its fraction counts the steps n, and the
/// code is n + (E − emin)·2^m. A code has few bits, so −emin·2^m is added to n beforehand, modulo its width: a multiple
/// of two, which leaves ties as they are. What other roundings decide differently is one step more or less.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    /// Bits of the largest finite value.
    pub largest: u32,
    /// Bits of the largest magnitudes that do not overflow, of positive and of negative numbers.
    pub limits: [u32; 2],
    /// Whether overflow gives `special` and not the largest value, of positive and of negative numbers.
    pub to_special: [bool; 2],
    /// The code beyond the range without its sign; with the sign bit where no sign is to be added.
    pub special: u32,
    /// Bits of 2^emin.
    pub emin: u32,
    /// Fraction bits of f32 less those of the format.
    pub shift: u32,
    /// Bits of a code.
    pub bits: u32,
    /// Whether the format has −0.
    pub negative_zero: bool,
    /// How numbers between two of the format's are rounded.
    pub rounding: FixedRounding,
}

/// The roundings that need no random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixedRounding {
    /// To the nearest value, ties to the one with an even last bit.
    NearestEven,
    /// To the neighbour of smaller magnitude.
    TowardZero,
    /// Toward +∞.
    Up,
    /// Toward −∞.
    Down,
    /// To the nearest value, ties to the one of larger magnitude.
    NearestAway,
}

/// A register of rounded numbers.
#[derive(Clone, Copy)]
pub struct Rounded<S: Convert> {
    /// The codes.
    pub codes: S::U32,
    /// Magnitudes of the values, saturated.
    pub values: S::F32,
}

/// What a loop is compiled for.
pub trait Mode: Copy {
    /// Whether it rounds to nearest even, which needs no correction.
    const NEAREST_EVEN: bool;
    /// Whether the format has −0 and nothing passes its range, so that codes are rounded magnitudes with signs.
    const PLAIN: bool;
}

/// Nearest even; where `PLAIN`, of an [`Encoder::is_plain`] and numbers up to [`Encoder::limit`].
#[derive(Clone, Copy)]
pub struct Nearest<const PLAIN: bool>;

/// Any of the deterministic roundings.
#[derive(Clone, Copy)]
pub struct Any;

impl<const PLAIN: bool> Mode for Nearest<PLAIN> {
    const NEAREST_EVEN: bool = true;
    const PLAIN: bool = PLAIN;
}

impl Mode for Any {
    const NEAREST_EVEN: bool = false;
    const PLAIN: bool = false;
}

impl Encoder {
    /// Bits of the largest magnitude that rounding to nearest does not take beyond the range.
    pub fn limit(&self) -> u32 {
        self.limits[0]
    }

    /// Whether finite numbers beyond the range become infinite or NaN, all or some.
    pub fn loses(&self) -> bool {
        self.to_special[0] || self.to_special[1]
    }

    /// Whether it saturates and the format has −0.
    pub fn is_plain(&self) -> bool {
        self.negative_zero && !self.loses()
    }

    /// The largest finite value.
    pub fn largest(&self) -> f64 {
        f64::from(f32::from_bits(self.largest))
    }

    /// The bits of a code that are zero in a code of zero.
    pub fn zero_mask(&self) -> u32 {
        u32::MAX >> (32 - self.bits + u32::from(self.negative_zero))
    }

    /// The encoder with its constants in registers, made once before a loop.
    #[inline(always)]
    pub fn on<S: Convert>(&self, s: S) -> EncoderOn<S> {
        let magnitude_of_code = u32::MAX >> (33 - self.bits);
        let offset = (self.emin >> self.shift).wrapping_neg() & magnitude_of_code;
        EncoderOn {
            encoder: *self,
            magnitude: s.splat_u32(MAGNITUDE),
            exponent: s.splat_u32(EXPONENT),
            largest: s.splat_u32(self.largest),
            emin: s.splat_u32(self.emin),
            anchor: s.splat_u32((self.shift << FRACTION_BITS) | offset),
            offset: s.splat_u32(offset),
            to_anchor: s.splat_u32((127 + self.shift) << FRACTION_BITS),
            shift: s.splat_u32(self.shift),
            sign_shift: s.splat_u32((8 - self.bits.min(8)) & 31),
            power: s.splat_u32(!MAGNITUDE | EXPONENT),
            code: s.splat_u32(magnitude_of_code),
            code_bytes: s.splat_u32(0x0101_0101 * (magnitude_of_code & 0xFF)),
            sign_bytes: s.splat_u32(0x0101_0101 * ((magnitude_of_code + 1) & 0xFF)),
            zero_mask: self.zero_mask(),
            zero_bytes: s.splat_u32(0x0101_0101 * (self.zero_mask() & 0xFF)),
        }
    }

    /// What the rounding adds to the steps that nearest even gave: −1, 0 or 1.
    #[inline(always)]
    fn correction<S: Convert>(
        &self,
        s: S,
        bits: S::U32,
        clamped: S::U32,
        nearest: S::F32,
        exponent: S::U32,
    ) -> S::U32 {
        let (zero, one, less) = (s.splat_u32(0), s.splat_u32(1), s.splat_u32(u32::MAX));
        let nearest_bits = s.bits(nearest);
        let toward_zero = s.select_above(nearest_bits, clamped, less, zero);
        let away = s.select_above(clamped, nearest_bits, one, zero);
        // All ones in negative lanes.
        let negative = s.sar(bits, 31);
        let by_sign = |plus, minus| s.xor(plus, s.and(negative, s.xor(plus, minus)));
        match self.rounding {
            FixedRounding::TowardZero => toward_zero,
            FixedRounding::Up => by_sign(away, toward_zero),
            FixedRounding::Down => by_sign(toward_zero, away),
            FixedRounding::NearestAway => {
                // A tie that went down lost half a step exactly.
                let half_step =
                    s.sub_u32(exponent, s.splat_u32((FRACTION_BITS - self.shift + 1) << FRACTION_BITS));
                let lost = s.bits(s.sub(s.float(clamped), nearest));
                s.select_above(s.add_u32(lost, one), half_step, one, zero)
            }
            FixedRounding::NearestEven => zero,
        }
    }

    /// The limits of the lanes' signs.
    #[inline(always)]
    pub fn lane_limits<S: Convert>(&self, s: S, bits: S::U32) -> S::U32 {
        let [plus, minus] = self.limits;
        s.xor(s.splat_u32(plus), s.and(s.sar(bits, 31), s.splat_u32(plus ^ minus)))
    }

    /// All ones in lanes of a sign that saturates beyond the range.
    #[inline(always)]
    pub fn lane_saturates<S: Convert>(&self, s: S, bits: S::U32) -> S::U32 {
        let [plus, minus] = self.to_special;
        let ones = |special: bool| if special { 0 } else { u32::MAX };
        s.xor(s.splat_u32(ones(plus)), s.and(s.sar(bits, 31), s.splat_u32(ones(plus) ^ ones(minus))))
    }

    /// The special code in lanes beyond the range whose sign goes there.
    #[inline(always)]
    fn beyond<S: Convert>(&self, s: S, bits: S::U32, magnitude: S::U32, codes: S::U32) -> S::U32 {
        let sign_of_code = if self.negative_zero { 1 << (self.bits - 1) } else { 0 };
        let sign = s.and(s.shr(bits, 32 - self.bits), s.splat_u32(sign_of_code));
        let special = s.or(s.splat_u32(self.special), sign);
        let never = i32::MAX.cast_unsigned();
        let pick = |i: usize| if self.to_special[i] { self.limits[i] } else { never };
        let (plus, minus) = (pick(0), pick(1));
        let limit = s.xor(s.splat_u32(plus), s.and(s.sar(bits, 31), s.splat_u32(plus ^ minus)));
        s.select_above(magnitude, limit, special, codes)
    }
}

/// An [`Encoder`] in the registers of an instruction set.
#[derive(Clone, Copy)]
pub struct EncoderOn<S: Convert> {
    encoder: Encoder,
    magnitude: S::U32,
    exponent: S::U32,
    largest: S::U32,
    emin: S::U32,
    anchor: S::U32,
    /// The fraction of an anchor.
    offset: S::U32,
    /// The power of two from 2^E to its anchor.
    to_anchor: S::U32,
    /// Sign and exponent of an f32.
    power: S::U32,
    /// The bits of a code without its sign.
    code: S::U32,
    /// The same of four codes of a byte each.
    code_bytes: S::U32,
    sign_bytes: S::U32,
    sign_shift: S::U32,
    shift: S::U32,
    /// The bits of a code that are zero in a code of zero.
    pub zero_mask: u32,
    /// The same of four codes of a byte each.
    pub zero_bytes: S::U32,
}

impl<S: Convert> EncoderOn<S> {
    /// Codes of a byte each, of four registers of numbers in a row, as [`Nearest`] gives them where it is plain.
    ///
    /// As [`EncoderOn::round`], with anchors of the numbers' signs, and made by a product; signs are set for all at once.
    #[inline(always)]
    pub fn round_bytes(&self, s: S, x: [S::F32; 4]) -> S::U32 {
        let mut codes = [self.emin; 4];
        for i in 0..4 {
            let least = s.bits(s.at_least(x[i], s.float(self.emin)));
            // ±2^E, with the fraction that the anchor has.
            let power = s.blend_bits(self.power, least, self.offset);
            let sum = s.add_product(s.float(power), s.float(self.to_anchor), x[i]);
            codes[i] = s.add_u32(s.bits(sum), s.shr_lanes(power, self.shift));
        }
        // The sum has the sign of its number in the highest bit, where what is added does not reach.
        let [low, high] = s.outer_bytes(codes);
        let signs = s.and(s.shr_lanes(high, self.sign_shift), self.sign_bytes);
        s.blend_bits(self.code_bytes, low, signs)
    }

    /// Codes of four registers of finite numbers, a lane each.
    #[inline(always)]
    pub fn round_all<M: Mode>(&self, s: S, x: [S::F32; 4], mode: M) -> [S::U32; 4] {
        let mut codes = [self.emin; 4];
        for i in 0..4 {
            codes[i] = self.round(s, x[i], mode).codes;
        }
        codes
    }

    /// Rounds finite numbers.
    #[inline(always)]
    pub fn round<M: Mode>(&self, s: S, x: S::F32, _: M) -> Rounded<S> {
        let encoder = &self.encoder;
        let bits = s.bits(x);
        let magnitude = s.and(bits, self.magnitude);
        let clamped = if M::PLAIN { magnitude } else { s.min(magnitude, self.largest) };
        let exponent = s.max(s.and(clamped, self.exponent), self.emin);
        let anchor = s.add_u32(exponent, self.anchor);
        let sum = s.add(s.float(clamped), s.float(anchor));
        let mut values = s.sub(sum, s.float(anchor));
        let mut codes = s.add_u32(s.bits(sum), s.shr(exponent, encoder.shift));
        if !M::NEAREST_EVEN {
            let steps = encoder.correction(s, bits, clamped, values, exponent);
            codes = s.add_u32(codes, steps);
            // One step, exact: the corrected number is one of the format.
            let fraction_bits = FRACTION_BITS - encoder.shift;
            let step = s.sub_u32(exponent, s.splat_u32(fraction_bits << FRACTION_BITS));
            let zero = s.splat_u32(0);
            let up = s.float(s.select_above(steps, zero, step, zero));
            let down = s.float(s.select_above(zero, steps, step, zero));
            values = s.sub(s.add(values, up), down);
        }
        // The sign is the last bit left of what is shifted out.
        let sign = s.shr(bits, 32 - encoder.bits);
        let signed = s.blend_bits(self.code, codes, sign);
        if M::PLAIN {
            return Rounded { codes: signed, values };
        }
        let zero = s.splat_u32(0);
        let signed = if encoder.negative_zero {
            signed
        } else {
            s.select_above(s.and(codes, self.code), zero, signed, zero)
        };
        let codes = if encoder.loses() { encoder.beyond(s, bits, magnitude, signed) } else { signed };
        Rounded { codes, values }
    }
}
