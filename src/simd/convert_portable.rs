//! [`Convert`] in plain Rust.

use super::convert::Convert;
use super::portable::{LANES, Portable, map, zip};

impl Convert for Portable {
    #[inline(always)]
    fn sub(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        zip(a, b, |x, y| x - y)
    }

    #[inline(always)]
    fn div(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        zip(a, b, |x, y| x / y)
    }

    #[inline(always)]
    fn sub_u32(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        zip(a, b, u32::wrapping_sub)
    }

    #[inline(always)]
    fn xor(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        zip(a, b, |x, y| x ^ y)
    }

    #[inline(always)]
    fn blend_bits(self, mask: [u32; LANES], a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        zip(b, zip(zip(a, b, |a, b| a ^ b), mask, |x, m| x & m), |b, x| b ^ x)
    }

    #[inline(always)]
    fn min(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        zip(a, b, |x, y| x.cast_signed().min(y.cast_signed()).cast_unsigned())
    }

    #[inline(always)]
    fn max(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        zip(a, b, |x, y| x.cast_signed().max(y.cast_signed()).cast_unsigned())
    }

    #[inline(always)]
    fn select_above(
        self,
        a: [u32; LANES],
        b: [u32; LANES],
        x: [u32; LANES],
        y: [u32; LANES],
    ) -> [u32; LANES] {
        let above = zip(a, b, |a, b| a.cast_signed() > b.cast_signed());
        let mut out = y;
        for i in 0..LANES {
            out[i] = if above[i] { x[i] } else { y[i] };
        }
        out
    }

    #[inline(always)]
    fn count_above(self, a: [u32; LANES], b: [u32; LANES]) -> u32 {
        zip(a, b, |x, y| u32::from(x.cast_signed() > y.cast_signed())).iter().sum()
    }

    #[inline(always)]
    fn count_zero_bytes(self, a: [u32; LANES]) -> u32 {
        a.iter().flat_map(|x| x.to_le_bytes()).map(|byte| u32::from(byte == 0)).sum()
    }

    #[inline(always)]
    fn largest(self, a: [u32; LANES]) -> u32 {
        let larger = |x: u32, y: u32| x.cast_signed().max(y.cast_signed()).cast_unsigned();
        larger(larger(a[0], a[1]), larger(a[2], a[3]))
    }

    #[inline(always)]
    fn pack_bytes(self, x: [[u32; LANES]; 4]) -> [u32; LANES] {
        x.map(|r| u32::from_le_bytes(r.map(|lane| lane as u8)))
    }

    #[inline(always)]
    fn pack_words(self, [a, b]: [[u32; LANES]; 2]) -> [u32; LANES] {
        [a[0] | a[1] << 16, a[2] | a[3] << 16, b[0] | b[1] << 16, b[2] | b[3] << 16]
    }

    #[inline(always)]
    fn store_bytes(self, x: [u32; LANES], out: &mut [u8]) {
        let (dwords, _) = out[..4 * LANES].as_chunks_mut::<4>();
        dwords.copy_from_slice(&map(x, u32::to_le_bytes));
    }

    #[inline(always)]
    fn stream(self, from: &[u8], to: &mut [u8]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn fence(self) {}
}
