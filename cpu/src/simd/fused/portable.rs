//! Plain Rust.

use super::super::portable::Portable;
use super::{Fused, FusedWork};

const LANES: usize = 4;

type U32 = [u32; LANES];
type F32 = [f32; LANES];
type F64 = [f64; LANES];

#[inline(always)]
fn zip<T: Copy, U: Copy, R>(a: [T; LANES], b: [U; LANES], f: impl Fn(T, U) -> R) -> [R; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn bytes(a: U32, b: U32, f: impl Fn(u8, u8) -> u8) -> U32 {
    zip(a, b, |a, b| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        u32::from_le_bytes(std::array::from_fn(|i| f(a[i], b[i])))
    })
}

/// Toward zero; what is truncated here is below 2^52. Adding to 2^52 leaves no fraction, which costs less than a call.
#[inline(always)]
fn truncate(x: f64) -> f64 {
    const INTEGERS: f64 = (1u64 << 52) as f64;
    let magnitude = x.abs();
    let nearest = magnitude + INTEGERS - INTEGERS;
    let floor = if nearest > magnitude { nearest - 1.0 } else { nearest };
    floor.copysign(x)
}

impl Fused for Portable {
    const BIASED: bool = false;
    const NARROW_ROWS: usize = 1;
    const WIDE_ROWS: usize = 1;

    type F64 = F64;

    fn vectorize_fused<W: FusedWork>(self, work: W) -> W::Output {
        work.run::<Portable, false>(self)
    }

    #[inline(always)]
    fn sub_bytes(self, a: U32, b: U32) -> U32 {
        bytes(a, b, u8::saturating_sub)
    }

    #[inline(always)]
    fn max_bytes(self, a: U32, b: U32) -> U32 {
        bytes(a, b, u8::max)
    }

    #[inline(always)]
    fn sub_u32(self, a: U32, b: U32) -> U32 {
        zip(a, b, u32::wrapping_sub)
    }

    #[inline(always)]
    fn max_i32(self, a: U32, b: U32) -> U32 {
        zip(a, b, |a, b| a.cast_signed().max(b.cast_signed()).cast_unsigned())
    }

    #[inline(always)]
    fn and_or(self, a: U32, b: U32, c: U32, d: U32) -> U32 {
        std::array::from_fn(|i| a[i] & b[i] | c[i] & d[i])
    }

    #[inline(always)]
    fn count_ones<const NATIVE: bool>(self, a: U32) -> U32 {
        a.map(u32::count_ones)
    }

    #[inline(always)]
    fn select_at_least(self, x: U32, bound: u32, a: U32, b: U32) -> U32 {
        std::array::from_fn(|i| if x[i] >= bound { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn add_truncated(self, sum: F32, a: F32, b: F32, per_unit: F32) -> F32 {
        let wide = |x: F32| x.map(f64::from);
        self.add_truncated_f64(wide(sum), wide(a), wide(b), wide(per_unit)).map(|x| x as f32)
    }

    #[inline(always)]
    fn sub(self, a: F32, b: F32) -> F32 {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn splat_f64(self, x: f64) -> F64 {
        [x; LANES]
    }

    #[inline(always)]
    fn load_f64(self, x: &[f64]) -> F64 {
        [x[0], x[1], x[2], x[3]]
    }

    #[inline(always)]
    fn store_f64(self, x: F64, out: &mut [f64]) {
        out[..LANES].copy_from_slice(&x);
    }

    #[inline(always)]
    fn widen(self, x: F32) -> F64 {
        x.map(f64::from)
    }

    #[inline(always)]
    fn narrow(self, x: F64) -> F32 {
        x.map(|x| {
            // To nearest so far: where that is beyond x, one less in the last place; infinity becomes the largest f32.
            let r = x as f32;
            let beyond = f64::from(r).abs() > x.abs() && x.abs() < 2f64.powi(128);
            f32::from_bits(r.to_bits() - u32::from(beyond))
        })
    }

    #[inline(always)]
    fn join_halves(self, high: U32, low: U32) -> F64 {
        zip(high, low, |high, low| f64::from_bits(u64::from(high) << 32 | u64::from(low)))
    }

    #[inline(always)]
    fn sub_f64(self, a: F64, b: F64) -> F64 {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul_f64(self, a: F64, b: F64) -> F64 {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn add_truncated_f64(self, sum: F64, a: F64, b: F64, per_unit: F64) -> F64 {
        std::array::from_fn(|i| sum[i] + truncate(a[i] * b[i] * per_unit[i]))
    }
}
