//! Plain Rust: four lanes, which a compiler maps to whatever vectors the target's baseline has.

use super::{Bf16Table, Gather, Isa, Simd, Work};

#[derive(Clone, Copy)]
pub(super) struct Portable;

pub(super) const LANES: usize = Isa::Scalar.geometry().lanes;

#[inline(always)]
pub(super) fn zip<T: Copy, U: Copy, R: Copy + Default>(
    a: [T; LANES],
    b: [U; LANES],
    f: impl Fn(T, U) -> R,
) -> [R; LANES] {
    let mut out = [R::default(); LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
pub(super) fn map<T: Copy, R: Copy + Default>(a: [T; LANES], f: impl Fn(T) -> R) -> [R; LANES] {
    zip(a, a, |x, _| f(x))
}

impl Simd for Portable {
    const ISA: Isa = Isa::Scalar;

    type F32 = [f32; LANES];
    type U32 = [u32; LANES];
    type Columns = [[f32; LANES]; 2];
    type Tables = ();

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        work.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    fn columns(self, x: [f32; LANES]) -> [[f32; LANES]; 2] {
        [x; 2]
    }

    #[inline(always)]
    fn splat_u32(self, x: u32) -> [u32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> [f32; LANES] {
        [x[0], x[1], x[2], x[3]]
    }

    #[inline(always)]
    fn load_u32(self, x: &[u32]) -> [u32; LANES] {
        [x[0], x[1], x[2], x[3]]
    }

    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> [u32; LANES] {
        let (dwords, _) = x[..4 * LANES].as_chunks::<4>();
        [0, 1, 2, 3].map(|i: usize| u32::from_le_bytes(dwords[i]))
    }

    #[inline(always)]
    fn load_u8(self, x: &[u8]) -> [u32; LANES] {
        [x[0], x[1], x[2], x[3]].map(u32::from)
    }

    #[inline(always)]
    fn load_u16(self, x: &[u8]) -> [u32; LANES] {
        let (words, _) = x[..2 * LANES].as_chunks::<2>();
        [0, 1, 2, 3].map(|i: usize| u32::from(u16::from_le_bytes(words[i])))
    }

    #[inline(always)]
    fn store(self, x: [f32; LANES], out: &mut [f32]) {
        out[..LANES].copy_from_slice(&x);
    }

    #[inline(always)]
    fn store_u32(self, x: [u32; LANES], out: &mut [u32]) {
        out[..LANES].copy_from_slice(&x);
    }

    #[inline(always)]
    fn store_u16(self, x: [u32; LANES], out: &mut [u16]) {
        out[..LANES].copy_from_slice(&map(x, |x| x as u16));
    }

    #[inline(always)]
    fn bits(self, x: [f32; LANES]) -> [u32; LANES] {
        map(x, f32::to_bits)
    }

    #[inline(always)]
    fn float(self, x: [u32; LANES]) -> [f32; LANES] {
        map(x, f32::from_bits)
    }

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        zip(a, b, |x, y| x + y)
    }

    #[inline(always)]
    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        zip(a, b, |x, y| x * y)
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        let mut out = c;
        for i in 0..LANES {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }

    #[inline(always)]
    fn step(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn with_nan(self, x: [f32; LANES], nan: f32) -> [f32; LANES] {
        map(x, |x| if x.is_nan() { nan } else { x })
    }

    #[inline(always)]
    fn add_u32(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        zip(a, b, u32::wrapping_add)
    }

    #[inline(always)]
    fn and(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        zip(a, b, |x, y| x & y)
    }

    #[inline(always)]
    fn or(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        zip(a, b, |x, y| x | y)
    }

    #[inline(always)]
    fn shl(self, a: [u32; LANES], n: u32) -> [u32; LANES] {
        map(a, |x| x << n)
    }

    #[inline(always)]
    fn shr(self, a: [u32; LANES], n: u32) -> [u32; LANES] {
        map(a, |x| x >> n)
    }

    #[inline(always)]
    fn sar(self, a: [u32; LANES], n: u32) -> [u32; LANES] {
        map(a, |x| (x.cast_signed() >> n).cast_unsigned())
    }

    #[inline(always)]
    fn shl_lanes(self, a: [u32; LANES], n: [u32; LANES]) -> [u32; LANES] {
        zip(a, n, |x, n| x << (n & 31))
    }

    #[inline(always)]
    fn sar_lanes(self, a: [u32; LANES], n: [u32; LANES]) -> [u32; LANES] {
        zip(a, n, |x, n| (x.cast_signed() >> (n & 31)).cast_unsigned())
    }

    #[inline(always)]
    fn any_byte_above(self, a: [u32; LANES], b: i8) -> bool {
        a.iter().flat_map(|x| x.to_le_bytes()).any(|byte| byte.cast_signed() > b)
    }

    #[inline(always)]
    fn tables(self, _: &Bf16Table) {}

    #[inline(always)]
    fn load_transposed(self, x: &[u8], stride: usize, out: &mut [[u32; LANES]]) {
        let rows = [0, 1, 2, 3].map(|i: usize| self.load_bytes(&x[i * stride..]));
        for (j, out) in out[..LANES].iter_mut().enumerate() {
            *out = map([0usize, 1, 2, 3], |i| rows[i][j]);
        }
    }

    #[inline(always)]
    fn load_chunks(self, x: &Gather<'_>, i: usize) -> [[u32; LANES]; 4] {
        let mut registers = [[0; LANES]; 4];
        self.load_transposed(&x.data()[x.place(0) + i * Gather::CHUNK..], x.between(), &mut registers);
        registers
    }

    #[inline(always)]
    fn broadcast_4(self, x: &[f32]) -> [f32; LANES] {
        self.load(x)
    }

    #[inline(always)]
    fn transpose_4x4(self, x: [[u32; LANES]; 4]) -> [[u32; LANES]; 4] {
        [0, 1, 2, 3].map(|j: usize| x.map(|register| register[j]))
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &[T], _: usize) {}
}
