//! The reference: the contract as code, plain and complete. It defines the bits that every backend gives.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::accumulation::Model;
use super::backend::{GemmBackend, GemmPlan, Output};
use super::exact::ExactChain;
use super::fold;
use super::problem::GemmProblem;
use super::promotion::{Promotion, SumScaling};
use super::tensor_core::{FusedChain, PairwiseChain, StepSum, TensorCore};
use crate::error::Result;
use crate::formats::Format;
use crate::matrix::Matrix;
use crate::parallel::{self, Watch};
use crate::scaled::ScaledRef;

/// The NaN of f32 arithmetic.
pub(super) const NAN: f32 = f32::from_bits(0x7FC0_0000);

/// The backend that defines the result; it supports every problem.
///
/// For each element of D: parts of K ascending; in each its intervals ascending; in each of those the model's sum;
/// promotion; the sum of the parts; scales that come last; second-level scale; addend; store. Rows of D are computed in
/// parallel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl GemmBackend for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn models(&self) -> Vec<Model> {
        let cores = TensorCore::ALL.iter().map(|&core| Model::TensorCore(core));
        [Model::F32, Model::Exact].into_iter().chain(cores).collect()
    }

    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        if problem.folds() {
            return fold::plan(self, problem);
        }
        Ok(Box::new(ByDefinition(problem)))
    }
}

/// The reference's plan: there is nothing to choose.
struct ByDefinition<'p>(&'p GemmProblem<'p>);

impl fmt::Display for ByDefinition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reference: one element of D after the other")
    }
}

impl GemmPlan for ByDefinition<'_> {
    #[inline]
    fn backend(&self) -> &'static str {
        Reference.name()
    }

    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        let problem = self.0;
        let (a, b) = (problem.a(), problem.b());
        match problem.accumulation().model() {
            Model::F32 => run(problem, &F32Chain::new(a.format(), b.format()), out, watch),
            Model::Exact => run(problem, &ExactChain::new(a, b), out, watch),
            Model::TensorCore(core) if core.sum() == StepSum::Pairwise => {
                run(problem, &PairwiseChain { step: core.step() }, out, watch)
            }
            Model::TensorCore(core) => run(problem, &FusedChain::new(core, a, b), out, watch),
        }
    }
}

/// How an accumulation model sums: what tells the models apart.
pub(super) trait Chain: Sync {
    /// A row of an operand, decoded once as the model needs it.
    type Row: Send + Sync;

    /// The NaN of a D that is the chain itself.
    const NAN: f32;

    /// Decodes all rows of an operand.
    fn rows(&self, x: &ScaledRef<'_>) -> Vec<Self::Row>;

    /// c + Σ a[k]·b[k] for k in `range`, ascending. NaN may have any pattern.
    fn sum(&self, a: &Self::Row, b: &Self::Row, range: Range<usize>, c: f32) -> f32;
}

/// [`Model::F32`].
struct F32Chain {
    exact_products: bool,
}

impl F32Chain {
    fn new(a: Format, b: Format) -> Self {
        F32Chain { exact_products: products_are_exact(a, b) }
    }
}

/// The values of all codes, row by row, each as an instruction reads it.
pub(super) fn decoded(x: &ScaledRef<'_>, read: &(dyn Fn(f32) -> f32 + Sync)) -> Vec<Vec<f32>> {
    let (rows, k) = x.shape();
    let row = |i| {
        let mut row = vec![0.0; k];
        x.decode_row(i, &mut row);
        row.iter_mut().for_each(|v| *v = read(*v));
        row
    };
    (0..rows).into_par_iter().map(row).collect()
}

/// Whether every product of two finite elements is an f32.
pub(super) fn products_are_exact(a: Format, b: Format) -> bool {
    let (a, b, f32) = (a.spec(), b.spec(), Format::F32.spec());
    a.mantissa_bits + b.mantissa_bits < f32.mantissa_bits
        && a.quantum_floor() + b.quantum_floor() >= f32.quantum_floor()
        && a.emax() + b.emax() < f32.emax()
}

impl Chain for F32Chain {
    type Row = Vec<f32>;

    const NAN: f32 = NAN;

    fn rows(&self, x: &ScaledRef<'_>) -> Vec<Vec<f32>> {
        decoded(x, &|code| code)
    }

    #[inline]
    fn sum(&self, a: &Vec<f32>, b: &Vec<f32>, range: Range<usize>, c: f32) -> f32 {
        let products = a[range.clone()].iter().zip(&b[range]);
        if self.exact_products {
            // The same bits (contract, clause 2) without a call of the fused operation, which not every CPU has.
            products.fold(c, |partial, (&x, &y)| partial + x * y)
        } else {
            products.fold(c, |partial, (&x, &y)| x.mul_add(y, partial))
        }
    }
}

/// An operand decoded, with the scales that promotion applies: those of row i and interval t at (i, t).
struct Operand<R> {
    rows: Vec<R>,
    scales: Matrix<f32>,
}

impl<R> Operand<R> {
    fn new<C: Chain<Row = R>>(problem: &GemmProblem<'_>, chain: &C, x: &ScaledRef<'_>) -> Self {
        let (rows, k) = x.shape();
        let interval = problem.interval();
        let scales = Matrix::from_fn(rows, k.div_ceil(interval), |i, t| {
            if problem.scales_in_model() { 1.0 } else { x.scale_at(i, t * interval) }
        });
        Operand { rows: chain.rows(x), scales }
    }
}

fn run<C: Chain>(problem: &GemmProblem<'_>, chain: &C, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
    let a = Operand::new(problem, chain, problem.a());
    let b = Operand::new(problem, chain, problem.b());
    let elements = Elements {
        problem,
        chain,
        bare: problem.is_bare_chain(),
        parts: problem.k_parts(),
        interval: problem.accumulation().interval().map(NonZeroUsize::get),
        order: problem.accumulation().promotion(),
        scaling: problem.sum_scaling(),
        a,
        b,
    };
    match out {
        Output::F32(m) => fill(problem, m.into_rows(), watch, &|i, j| elements.at(i, j)),
        Output::Bf16(m) => fill(problem, m.into_rows(), watch, &|i, j| to_bf16(elements.at(i, j))),
        // NaN keeps the upper bits of its pattern: 7E00, or 7FFF where D is a tensor core's chain itself.
        Output::F16(m) => fill(problem, m.into_rows(), watch, &|i, j| f16::from_f32(elements.at(i, j))),
    }
}

fn fill<T: Send>(
    problem: &GemmProblem<'_>,
    rows: Vec<&mut [T]>,
    watch: &Watch<'_>,
    element: &(dyn Fn(usize, usize) -> T + Sync),
) -> Result<()> {
    parallel::for_each_part(watch, rows, &|i, row| {
        row.iter_mut().enumerate().for_each(|(j, d)| *d = element(i, j));
        watch.report(problem.n() as u64 * problem.k() as u64);
    })
}

/// D, element by element.
struct Elements<'a, C: Chain> {
    problem: &'a GemmProblem<'a>,
    chain: &'a C,
    /// Whether D is the chain itself.
    bare: bool,
    /// The parts of K.
    parts: Vec<Range<usize>>,
    /// Elements of K between promotions; `None` without.
    interval: Option<usize>,
    order: Promotion,
    /// How scales meet the sum of the parts.
    scaling: Option<SumScaling>,
    a: Operand<C::Row>,
    b: Operand<C::Row>,
}

impl<C: Chain> Elements<'_, C> {
    /// D[i, j].
    fn at(&self, i: usize, j: usize) -> f32 {
        let Elements { problem, chain, a, b, .. } = self;
        let addend = problem.addend().map(|c| c.at(i, j));
        if self.bare {
            let d = chain.sum(&a.rows[i], &b.rows[j], 0..problem.k(), addend.unwrap_or(0.0));
            return if d.is_nan() { C::NAN } else { d };
        }
        let mut d = self.sum_of_parts(i, j);
        if let Some(tensor) = problem.tensor_scale() {
            d *= tensor;
        }
        if let Some(c) = addend {
            d += c;
        }
        if d.is_nan() { NAN } else { d }
    }

    /// The sum of the parts with all scales of the first level.
    fn sum_of_parts(&self, i: usize, j: usize) -> f32 {
        let Elements { chain, a, b, .. } = self;
        let part = |k: &Range<usize>| match self.interval {
            Some(interval) => self.promoted(i, j, k, interval),
            None => chain.sum(&a.rows[i], &b.rows[j], k.clone(), 0.0),
        };
        let sum = self.parts.iter().map(part).reduce(|sum, part| sum + part).expect("K has a part");
        // Scales that follow the sum are those of every interval.
        self.scaling.map_or(sum, |scaling| scaling.apply(sum, a.scales[(i, 0)], b.scales[(j, 0)]))
    }

    /// The accumulator after the intervals of a part of K.
    fn promoted(&self, i: usize, j: usize, k: &Range<usize>, interval: usize) -> f32 {
        let Elements { chain, a, b, .. } = self;
        let mut acc = 0.0;
        for start in k.clone().step_by(interval) {
            let end = k.end.min(start.saturating_add(interval));
            let partial = chain.sum(&a.rows[i], &b.rows[j], start..end, 0.0);
            let t = start / interval;
            acc = self.order.promote(acc, partial, a.scales[(i, t)], b.scales[(j, t)]);
        }
        acc
    }
}

/// One rounding to nearest even; NaN is 7FC0.
pub(super) fn to_bf16(d: f32) -> bf16 {
    if d.is_nan() { bf16::from_bits(0x7FC0) } else { bf16::from_f32(d) }
}
