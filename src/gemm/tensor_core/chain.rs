//! The steps of tensor cores, chained over an interval.
//!
//! NVIDIA's is a truncated fused dot product, in integers. With F, L, result and zero exponent from [`TensorCore`], for one step of at most L products and the accumulator c:
//!
//! 1. Each operand is significand · 2^exponent; subnormals keep their format's smallest exponent, unnormalised.
//! 2. A product is the exact product of significands, in [0, 4), with the sum of the exponents. It is not normalised.
//!    A zero term has the zero exponent, and so has a product that is missing in a ragged last step.
//! 3. e_max is the largest exponent over all terms.
//! 4. Every term is rounded to a multiple of 2^(e_max − F): toward zero, or in custom tensor cores to nearest even.
//! 5. They are summed exactly.
//! 6. The sum is rounded to the result format, toward zero, to f16 and in custom tensor cores to nearest even; from
//!    2^128 on, in f16 from 65520 on, it is infinite. NaN, ∞·0 and ∞ − ∞ give
//!    7FFFFFFF. Zero is +0, whatever the signs of what was summed.
//! 7. The next step takes the result as its c.
//!
//! MX scales are powers of two and enter as exponents of the operands. FP4 tensor cores do not align products but
//! groups of 16: term = Σ products · significands of the two scales, exact, with the sum of the scales' exponents.
//!
//! AMD's are in [`cdna`](super::cdna), but for CDNA1's, which is an exact sum.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::super::exact;
use super::super::operand::{self, Number, NumberRow};
use super::super::reference::Chain;
use super::cdna;
use super::sum::{Term, fused_sum};
use super::{Addend, BlockScales, StepResult, StepSum, TensorCore};
use crate::formats::{Format, Unpacked};
use crate::scaled::{ScaleGridRef, ScaledRef, ScalesRef};

/// What a tensor core answers where there is no number.
pub(crate) const NAN: f32 = f32::from_bits(0x7FFF_FFFF);

/// The chain of steps over one promotion interval.
pub(in super::super) struct FusedChain {
    core: TensorCore,
    /// Fraction bits of a term: those of A's and B's elements, and of their scales where the core multiplies by them.
    fraction: u32,
}

/// One row of an operand as the tensor core sees it.
pub(in super::super) struct FusedRow {
    elements: NumberRow,
    /// [`BlockScales::Fp4`]: the scale of each group of 16.
    group_scales: Vec<Number>,
}

impl FusedChain {
    pub(in super::super) fn new(core: TensorCore, a: &ScaledRef<'_>, b: &ScaledRef<'_>) -> Self {
        let element_bits = |x: &ScaledRef<'_>| TensorCore::mantissa_bits(x.format());
        let scale_bits = |x: &ScaledRef<'_>| match (core.scales(), x.scales()) {
            (BlockScales::Fp4, Some(s)) => s.grid.format().spec().mantissa_bits,
            _ => 0,
        };
        let fraction = [a, b].map(|x| element_bits(x) + scale_bits(x)).iter().sum();
        FusedChain { core, fraction }
    }

    fn products<'a>(
        a: &'a FusedRow,
        b: &'a FusedRow,
        range: Range<usize>,
    ) -> impl Iterator<Item = Term> + Clone + 'a {
        let (a, b) = (&a.elements.numbers[range.clone()], &b.elements.numbers[range]);
        a.iter().zip(b).map(|(x, y)| Term {
            significand: i64::from(i32::from(x.significand) * i32::from(y.significand)),
            exponent: i32::from(x.exponent) + i32::from(y.exponent),
        })
    }

    /// The groups of 16 that `range`, which starts with one, holds.
    fn groups<'a>(
        &self,
        a: &'a FusedRow,
        b: &'a FusedRow,
        range: Range<usize>,
    ) -> impl Iterator<Item = Term> + Clone + 'a {
        let zero_exponent = self.core.zero_exponent();
        range.clone().step_by(TensorCore::FP4_GROUP).map(move |start| {
            let end = (start + TensorCore::FP4_GROUP).min(range.end);
            let (sa, sb) = (
                a.group_scales[start / TensorCore::FP4_GROUP],
                b.group_scales[start / TensorCore::FP4_GROUP],
            );
            let scale = i64::from(sa.significand) * i64::from(sb.significand);
            let mut products = Self::products(a, b, start..end).filter(|p| p.significand != 0).peekable();
            if scale == 0 || products.peek().is_none() {
                return Term { significand: 0, exponent: zero_exponent };
            }
            // E2M1 has no exponent below 0, so every product is an integer in units of the common last bit. Products
            // that cancel leave a zero with the exponent of the scales.
            let sum: i64 = products.map(|p| p.significand << p.exponent).sum();
            Term { significand: sum * scale, exponent: i32::from(sa.exponent) + i32::from(sb.exponent) }
        })
    }

    /// One step: products and accumulator as the core joins them.
    fn step(&self, a: &FusedRow, b: &FusedRow, range: Range<usize>, c: f32) -> f32 {
        match self.core.sum() {
            StepSum::Fused | StepSum::FusedInTwo => match self.core.addend() {
                Addend::Early => self.fused(a, b, range, c),
                // In f32 and then in f16: 24 bits are enough for the two roundings to be one.
                Addend::Late => self.as_accumulator(self.fused(a, b, range, 0.0) + c),
            },
            StepSum::Floored | StepSum::FlooredInTwo => {
                let in_two = self.core.sum() == StepSum::FlooredInTwo;
                let step =
                    cdna::FlooredStep { f: self.core.fraction_bits(), fraction: self.fraction, in_two };
                let products = Self::products(a, b, range.clone());
                step.special(&a.elements, &b.elements, range, c).unwrap_or_else(|c| step.sum(products, c))
            }
            StepSum::Exact => exact::sum(&a.elements, &b.elements, range, c, self.fraction as i32),
            StepSum::Pairwise => unreachable!("PairwiseChain adds the products of CDNA2"),
        }
    }

    /// A step of NVIDIA's from c: all products at once, or in two sets by k mod 4.
    fn fused(&self, a: &FusedRow, b: &FusedRow, range: Range<usize>, c: f32) -> f32 {
        if let Some(sum) = operand::non_finite_sum(&a.elements, &b.elements, range.clone(), c) {
            return sum;
        }
        let (core, fraction) = (self.core, self.fraction);
        match (core.sum(), core.scales()) {
            (StepSum::FusedInTwo, _) => (0..2).fold(c, |c, set| {
                let products = Self::products(a, b, range.clone()).enumerate();
                let of_set = products.filter(|(k, _)| k / 2 % 2 == set).map(|(_, product)| product);
                // The first set may have made it infinite.
                if c.is_finite() { fused_sum(core, of_set, fraction, c) } else { c }
            }),
            (_, BlockScales::Fp4) => fused_sum(core, self.groups(a, b, range), fraction, c),
            (_, BlockScales::None | BlockScales::Mx) => {
                fused_sum(core, Self::products(a, b, range), fraction, c)
            }
        }
    }

    /// The number as the accumulator holds it: f32, or the nearest f16.
    fn as_accumulator(&self, c: f32) -> f32 {
        match self.core.result() {
            StepResult::F16 => f16::from_f32(c).to_f32(),
            _ => c,
        }
    }
}

impl Chain for FusedChain {
    type Row = FusedRow;

    const NAN: f32 = NAN;

    fn rows(&self, x: &ScaledRef<'_>) -> Vec<FusedRow> {
        let table = operand::table(x.format());
        let row = |i| {
            let mut row = FusedRow { elements: NumberRow::new(x, i, &table), group_scales: Vec::new() };
            match (self.core.scales(), x.scales()) {
                (BlockScales::None, _) | (_, None) => {}
                (BlockScales::Mx, Some(scales)) => {
                    for (block, scale) in block_scales(&scales, i, x.shape().1) {
                        row.elements.scale(block, scale.exponent());
                    }
                }
                (BlockScales::Fp4, Some(scales)) => {
                    let fraction = scales.grid.format().spec().mantissa_bits;
                    for (block, scale) in block_scales(&scales, i, x.shape().1) {
                        if matches!(scale, Unpacked::Nan { .. }) {
                            row.elements.scale(block.clone(), None);
                        }
                        let groups = block.len().div_ceil(TensorCore::FP4_GROUP);
                        row.group_scales.extend(vec![Number::of(scale, fraction); groups]);
                    }
                }
            }
            row
        };
        (0..x.shape().0).into_par_iter().map(row).collect()
    }

    fn sum(&self, a: &FusedRow, b: &FusedRow, range: Range<usize>, c: f32) -> f32 {
        let step = self.core.step();
        let mut c = self.as_accumulator(c);
        for start in range.clone().step_by(step) {
            c = self.step(a, b, start..(start + step).min(range.end), c);
        }
        c
    }
}

/// The blocks of row `i` with their scales; granules of one row, as every model that takes scales has them.
fn block_scales<'a>(
    scales: &ScalesRef<'a>,
    i: usize,
    k: usize,
) -> impl Iterator<Item = (Range<usize>, Unpacked)> + 'a {
    let (grid, cols) = (scales.grid, scales.granule.cols());
    (0..k.div_ceil(cols)).map(move |block| {
        let scale = match grid {
            ScaleGridRef::E8M0(m) => Format::E8M0.spec().decode(u64::from(m.at(i, block))),
            // UE4M3: the sign bit does not count.
            ScaleGridRef::E4M3(m) => Format::E4M3.spec().decode(u64::from(m.at(i, block) & 0x7F)),
            ScaleGridRef::F32(_) => unreachable!("no tensor core takes f32 scales: GemmProblem refuses them"),
        };
        (block * cols..k.min((block + 1) * cols), scale)
    })
}
