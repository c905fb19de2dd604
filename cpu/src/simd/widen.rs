//! From codes and narrow floats to f32, one a lane.

use half::{bf16, f16};

use super::{CodeSpec, Convert, Simd, Specials};

/// Decodes any signed format of at most 16 bits, one code a lane.
///
/// A code of e exponent and m fraction bits is moved so that its sign, exponent and fraction fall on those of an f32
/// whose exponent field it then is: the value times 2^(bias − 127), subnormals included, and one exact product
/// restores it. Specials come out as if they were numbers: callers look for them first.
#[derive(Clone, Copy, Debug)]
pub struct Widener {
    /// Moves the sign to bit 31.
    align: u32,
    /// Moves the lowest exponent bit to bit 23.
    shift: u32,
    mask: u32,
    factor: f32,
    /// A code without its sign is a special above this; for formats whose NaN is the code of −0, `flip` makes it so.
    largest_finite: u32,
    magnitude: u32,
    flip: u32,
}

impl Widener {
    /// The decoder of a format.
    ///
    /// # Panics
    /// If it has more than 16 bits.
    pub const fn new(spec: CodeSpec) -> Widener {
        assert!(spec.bits() <= 16, "a code is at most 16 bits");
        let exponent = 0x7F80_0000 & (0x7F80_0000 >> (8 - spec.exponent_bits));
        let fraction = (0x7F_FFFF << (23 - spec.mantissa_bits)) & 0x7F_FFFF;
        let code_mask = u32::MAX >> (32 - spec.bits());
        let (largest_finite, magnitude, flip) = match spec.specials {
            // 80 and nothing else becomes FF.
            Specials::Fnuz => (code_mask - 1, code_mask, spec.magnitude()),
            Specials::Above(largest) => (largest, spec.magnitude(), 0),
            Specials::None => (spec.magnitude(), spec.magnitude(), 0),
        };
        Widener {
            align: 32 - spec.bits(),
            shift: 8 - spec.exponent_bits,
            mask: 0x8000_0000 | exponent | fraction,
            factor: f32::from_bits(((254 - spec.bias) as u32) << 23),
            largest_finite,
            magnitude,
            flip,
        }
    }

    /// The values of finite codes.
    #[inline(always)]
    pub fn values<S: Convert>(&self, s: S, codes: S::U32) -> S::F32 {
        let fields = s.and(s.sar(s.shl(codes, self.align), self.shift), s.splat_u32(self.mask));
        s.mul(s.float(fields), s.splat(self.factor))
    }

    /// Whether some lane is an infinity or NaN.
    #[inline(always)]
    pub fn has_specials<S: Convert>(&self, s: S, codes: S::U32) -> bool {
        let magnitude = s.and(s.xor(codes, s.splat_u32(self.flip)), s.splat_u32(self.magnitude));
        s.count_above(magnitude, s.splat_u32(self.largest_finite)) > 0
    }

    /// Whether some byte, of a format of at most 8 bits, is an infinity or NaN.
    #[inline(always)]
    pub fn bytes_have_specials<S: Convert>(&self, s: S, codes: S::U32) -> bool {
        if self.flip != 0 {
            // Flipped, the one special code is FF; as i8, with the sign flipped too, it is the largest.
            let flipped = s.xor(codes, s.splat_u32(0x0101_0101 * (self.flip ^ 0x80)));
            return s.any_byte_above(flipped, i8::MAX - 1);
        }
        let magnitude = s.and(codes, s.splat_u32(0x0101_0101 * self.magnitude));
        s.any_byte_above(magnitude, self.largest_finite as i8)
    }
}

/// What a matrix to be quantised or cast holds.
pub trait Lane: Copy + Default + Send + Sync {
    /// The bits of the largest finite magnitude as f32; what loads above it is an infinity or NaN.
    const LARGEST: u32;

    /// The first `LANES` elements as f32. Exact where they are finite, above [`Lane::LARGEST`] elsewhere.
    fn load<S: Convert>(s: S, x: &[Self]) -> S::F32;

    /// The value, exact.
    fn to_f32(self) -> f32;
}

impl Lane for f32 {
    const LARGEST: u32 = f32::MAX.to_bits();

    #[inline(always)]
    fn load<S: Convert>(s: S, x: &[f32]) -> S::F32 {
        Simd::load(s, x)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Lane for bf16 {
    const LARGEST: u32 = 0x7F7F_0000;

    #[inline(always)]
    fn load<S: Convert>(s: S, x: &[bf16]) -> S::F32 {
        s.float(s.shl(s.load_u16(bytemuck::cast_slice(x)), 16))
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

/// Infinities and NaN of F16 load as 65536 and more.
const F16: Widener = Widener::new(CodeSpec {
    exponent_bits: 5,
    mantissa_bits: 10,
    bias: 15,
    specials: Specials::Above(0x7BFF),
});

impl Lane for f16 {
    const LARGEST: u32 = 65504f32.to_bits();

    #[inline(always)]
    fn load<S: Convert>(s: S, x: &[f16]) -> S::F32 {
        F16.values(s, s.load_u16(bytemuck::cast_slice(x)))
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}
