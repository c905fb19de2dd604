//! [`Convert`] in plain Rust.

use super::Simd;
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
    fn quotient(self, x: [f32; LANES], divisor: [f32; LANES], _: [f32; LANES]) -> [f32; LANES] {
        self.div(x, divisor)
    }

    #[inline(always)]
    fn add_product(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn at_least(self, x: [f32; LANES], least: [f32; LANES]) -> [f32; LANES] {
        zip(x, least, |x, least| x.abs().max(least).copysign(x))
    }

    #[inline(always)]
    fn shr_lanes(self, a: [u32; LANES], n: [u32; LANES]) -> [u32; LANES] {
        zip(a, n, |x, n| x >> n)
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
    fn largest_of_each(self, x: &[[u32; LANES]]) -> [u32; LANES] {
        [self.largest(x[0]), self.largest(x[1]), self.largest(x[2]), self.largest(x[3])]
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
    fn stream_bytes(self, x: [u32; LANES], out: &mut [u8]) {
        self.store_bytes(x, out);
    }

    #[inline(always)]
    fn fence(self) {}
}
