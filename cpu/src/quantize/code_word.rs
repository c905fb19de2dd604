//! Codes as they lie in memory: a byte or a word each.

use bytemuck::Pod;

use crate::elements::CodesMut;
use crate::simd::{Convert, EncoderOn, Nearest, Put};

/// All but the sign of an f32.
pub(crate) const MAGNITUDE: u32 = 0x7FFF_FFFF;
/// The most elements of four registers.
pub(crate) const GROUP: usize = 64;

/// An unsigned integer that holds one code.
pub(crate) trait CodeWord: Pod {
    /// Registers that four registers of codes fill.
    const REGISTERS: usize;

    /// Codes by their type.
    fn typed(codes: &mut [Self]) -> CodesMut<'_>;

    /// Four registers of codes, one after the other: the first [`CodeWord::REGISTERS`] hold them.
    fn in_row<S: Convert>(s: S, codes: [S::U32; 4]) -> [S::U32; 2];

    /// The codes of four registers of numbers that are plain, as [`CodeWord::in_row`] joins them.
    #[inline(always)]
    fn round_row<S: Convert>(s: S, encoder: &EncoderOn<S>, x: [S::F32; 4]) -> [S::U32; 2] {
        Self::in_row(s, encoder.round_all(s, x, Nearest::<true>))
    }

    /// Lane by lane: the codes of a lane lie one after the other, the first register's first.
    fn in_lanes<S: Convert>(s: S, codes: [S::U32; 4]) -> [S::U32; 2];

    /// How many of the joined codes are those of zeros.
    fn zeros<S: Convert>(s: S, encoder: &EncoderOn<S>, joined: [S::U32; 2]) -> u32;

    /// Into the first `4 · LANES` codes.
    #[inline(always)]
    fn put<S: Convert>(to: Put<S>, joined: [S::U32; 2], out: &mut [Self]) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out[..4 * S::LANES]);
        for i in 0..Self::REGISTERS {
            to.bytes(joined[i], &mut bytes[4 * S::LANES * i..]);
        }
    }
}

impl CodeWord for u8 {
    const REGISTERS: usize = 1;

    fn typed(codes: &mut [u8]) -> CodesMut<'_> {
        CodesMut::Bytes(codes)
    }

    #[inline(always)]
    fn in_row<S: Convert>(s: S, codes: [S::U32; 4]) -> [S::U32; 2] {
        [s.pack_bytes(codes), codes[0]]
    }

    #[inline(always)]
    fn round_row<S: Convert>(s: S, encoder: &EncoderOn<S>, x: [S::F32; 4]) -> [S::U32; 2] {
        // With fewer lanes it takes longer to gather bytes than to set signs a register at a time.
        if S::LANES == 16 {
            return [encoder.round_bytes(s, x), s.bits(x[0])];
        }
        Self::in_row(s, encoder.round_all(s, x, Nearest::<true>))
    }

    #[inline(always)]
    fn in_lanes<S: Convert>(s: S, [a, b, c, d]: [S::U32; 4]) -> [S::U32; 2] {
        [s.or(s.or(a, s.shl(b, 8)), s.or(s.shl(c, 16), s.shl(d, 24))), a]
    }

    #[inline(always)]
    fn zeros<S: Convert>(s: S, encoder: &EncoderOn<S>, joined: [S::U32; 2]) -> u32 {
        s.count_zero_bytes(s.and(joined[0], encoder.zero_bytes))
    }
}

impl CodeWord for u16 {
    const REGISTERS: usize = 2;

    fn typed(codes: &mut [u16]) -> CodesMut<'_> {
        CodesMut::Words(codes)
    }

    #[inline(always)]
    fn in_row<S: Convert>(s: S, [a, b, c, d]: [S::U32; 4]) -> [S::U32; 2] {
        [s.pack_words([a, b]), s.pack_words([c, d])]
    }

    #[inline(always)]
    fn in_lanes<S: Convert>(s: S, [a, b, c, d]: [S::U32; 4]) -> [S::U32; 2] {
        [s.or(a, s.shl(b, 16)), s.or(c, s.shl(d, 16))]
    }

    #[inline(always)]
    fn zeros<S: Convert>(s: S, encoder: &EncoderOn<S>, joined: [S::U32; 2]) -> u32 {
        let (zero, mask) = (s.splat_u32(0), s.splat_u32(encoder.zero_mask));
        let mut nonzero = 0;
        for x in joined {
            nonzero += s.count_above(s.and(x, mask), zero) + s.count_above(s.and(s.shr(x, 16), mask), zero);
        }
        4 * S::LANES as u32 - nonzero
    }
}

/// How many of the elements `x` became zero without being it, by their joined codes.
#[inline(always)]
pub(crate) fn flushed<S: Convert, C: CodeWord>(
    s: S,
    encoder: &EncoderOn<S>,
    x: [S::F32; 4],
    joined: [S::U32; 2],
) -> u64 {
    let zeros = C::zeros(s, encoder, joined);
    if zeros == 0 {
        return 0;
    }
    let mut nonzero = 0;
    for v in x {
        nonzero += s.count_above(s.and(s.bits(v), s.splat_u32(MAGNITUDE)), s.splat_u32(0));
    }
    u64::from(zeros + nonzero - 4 * S::LANES as u32)
}
