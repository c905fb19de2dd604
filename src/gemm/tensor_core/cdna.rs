//! Steps of AMD's tensor cores that are neither fused as NVIDIA's nor exact: CDNA3 and CDNA2.
//!
//! CDNA3, with F = 24, for the products of one step and the accumulator c:
//!
//! 1. Products are significands and exponents as in NVIDIA's steps. One from 2^128 on is infinite.
//! 2. They are truncated toward zero to multiples of 2^(e_dot − F), e_dot being their largest exponent, and summed
//!    exactly. In FP8 those of even and of odd k have an e_dot and a sum each, which are then rounded down to multiples
//!    of 2^(e_dot − F) for the larger e_dot and added.
//! 3. e_max is the larger of e_dot and c's exponent. The dot product is rounded down to a multiple of 2^(e_max − 32), c
//!    to one of 2^(e_max − F); in FP8 c is left out where its exponent is below e_max − F − 1.
//! 4. The sum is rounded down to 31 fraction bits of its own, those of the smallest normal number below it, and then to
//!    f32, to nearest even.
//!
//! MMA-Sim's paper has 31 bits where step 3 has 32, and no step 4 of its own; its code is what is followed here. There an
//! infinite or NaN c counts with the exponent −1, and so is left out of FP8 steps beside products from 2^25 on.

use std::ops::Range;

use super::super::operand::NumberRow;
use super::super::reference::{Chain, decoded};
use super::chain::NAN;
use super::sum::{F32, Term};
use crate::formats::FormatSpec;
use crate::scaled::ScaledRef;

/// Fraction bits of the dot product where c joins it, and of their sum.
const JOINED_BITS: u32 = 32;
const SUM_BITS: i32 = 31;

/// Below the exponents of all products.
const NO_PRODUCTS: i32 = -999;

/// A step of CDNA3.
#[derive(Clone, Copy)]
pub(super) struct FlooredStep {
    /// F.
    pub(super) f: u32,
    /// Fraction bits of a product.
    pub(super) fraction: u32,
    /// Whether even and odd k are fused apart.
    pub(super) in_two: bool,
}

impl FlooredStep {
    /// The result if it is not finite whatever the rounding, else the accumulator to sum with.
    pub(super) fn special(
        self,
        a: &NumberRow,
        b: &NumberRow,
        range: Range<usize>,
        c: f32,
    ) -> Result<f32, f32> {
        let (products, mut sum) = (a.numbers[range.clone()].iter().zip(&b.numbers[range]), 0.0);
        let mut e_max = NO_PRODUCTS;
        for (x, y) in products {
            let product = x.class() * y.class();
            let mut exponent = i32::from(x.exponent) + i32::from(y.exponent);
            if product != 0.0 && product.is_finite() {
                e_max = e_max.max(exponent);
                exponent += i32::from(product.abs() >= f64::from(2 << self.fraction));
            }
            let overflows = product != 0.0 && exponent > F32.emax();
            sum += if overflows { product * f64::INFINITY } else { product };
        }
        let ignored = self.in_two && !c.is_finite() && self.leaves_out(-1, e_max);
        let c = if ignored { 0.0 } else { c };
        let sum = sum + f64::from(c);
        if sum.is_finite() { Err(c) } else { Ok(sum as f32) }
    }

    fn leaves_out(self, e_c: i32, e_max: i32) -> bool {
        self.in_two && e_c < e_max - self.f as i32 - 1
    }

    /// Steps 2 to 4 for finite numbers.
    pub(super) fn sum(self, products: impl Iterator<Item = Term> + Clone, c: f32) -> f32 {
        let (dot, e_dot) = match self.in_two {
            false => self.dot(products),
            true => {
                let of = |odd| {
                    let products = products.clone().enumerate();
                    self.dot(products.filter(move |(k, _)| k % 2 == odd).map(|(_, product)| product))
                };
                let ((even, e_even), (odd, e_odd)) = (of(0), of(1));
                let e_dot = e_even.max(e_odd);
                (floor(even, e_dot - e_even) + floor(odd, e_dot - e_odd), e_dot)
            }
        };
        let c = Term::of_accumulator(c, F32.emin(), F32.emin());
        let e_max = e_dot.max(c.exponent);
        let finer = JOINED_BITS - self.f;
        let dot = floor(dot << finer, e_max - e_dot);
        let c = match self.leaves_out(c.exponent, e_max) {
            true => 0,
            false => floor(c.significand << (self.f - F32.mantissa_bits), e_max - c.exponent),
        };
        let sum = dot + (c << finer);
        if sum == 0 {
            return 0.0;
        }
        let exponent = e_max - JOINED_BITS as i32;
        let e = (exponent + sum.unsigned_abs().ilog2() as i32).max(F32.emin());
        let shift = (e - SUM_BITS - exponent).max(0);
        // At most 41 bits: an f64, and the rounding to f32 the only one.
        ((sum >> shift << shift) as f64 * 2f64.powi(exponent)) as f32
    }

    /// The products in units of 2^(e − F), and e.
    fn dot(self, products: impl Iterator<Item = Term> + Clone) -> (i64, i32) {
        let nonzero = products.filter(|product| product.significand != 0);
        let e_max = nonzero.clone().map(|product| product.exponent).fold(NO_PRODUCTS, i32::max);
        (nonzero.map(|product| product.truncated(self.fraction, e_max, self.f)).sum(), e_max)
    }
}

/// x / 2^shift, rounded down.
fn floor(x: i64, shift: i32) -> i64 {
    x >> shift.min(i64::BITS as i32 - 1)
}

/// The chain of CDNA2: additions in f32 that know no subnormal numbers.
pub(in super::super) struct PairwiseChain {
    /// Products of a step: two or four.
    pub(in super::super) step: usize,
}

/// A subnormal number of the format is +0.
fn without_subnormals(x: f32, spec: &FormatSpec) -> f32 {
    if f64::from(x.abs()) < spec.min_normal() { 0.0 } else { x }
}

/// A subnormal f32 is a zero with its sign.
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

fn add(x: f32, y: f32) -> f32 {
    flushed(x + y)
}

impl Chain for PairwiseChain {
    type Row = Vec<f32>;

    const NAN: f32 = NAN;

    fn rows(&self, x: &ScaledRef<'_>) -> Vec<Vec<f32>> {
        decoded(x, &|v| without_subnormals(v, x.format().spec()))
    }

    fn sum(&self, a: &Vec<f32>, b: &Vec<f32>, range: Range<usize>, c: f32) -> f32 {
        // Products that are missing in a ragged last step are +0, as those of zeros.
        let product = |k: usize| if k < range.end { flushed(a[k] * b[k]) } else { 0.0 };
        let pair = |k: usize| add(product(k), product(k + 1));
        let step = |k: usize| match self.step {
            2 => pair(k),
            _ => add(pair(k), pair(k + 2)),
        };
        if range.is_empty() {
            return c;
        }
        range.clone().step_by(self.step).map(step).fold(without_subnormals(c, F32), add)
    }
}
