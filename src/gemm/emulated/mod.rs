//! The emulated backend: tensor cores' arithmetic at the speed of the CPU's multiply-adds.
//!
//! A tensor core truncates each product toward zero to units of 2^(e_max − F), where e_max is the largest exponent of
//! the step, and adds exactly. Both happen in one instruction: a fused multiply-add that rounds toward zero, into a sum
//! that begins at 1.5·2^23 units (2^52 in f64), whose last bit is one unit. There, toward zero is down. A positive
//! product is truncated as it should be. A negative one, made larger in magnitude by a trace (operands are packed as
//! x·(1 + 2^−23)), is rounded down to the unit below, exactly one unit too far whether it was a multiple of the unit
//! or not; so the number of negative products, a population count of sign bits, is added back. The trace never reaches
//! a unit by itself: it lies below the last bit of every product and below every unit.
//!
//! e_max comes first: exponents are bytes, a saturating difference and a maximum for 64 products at a time. Then
//! comes one multiply-add for every register of products, and about twenty instructions a register of sums for
//! everything else of the step: 16 + 32 + 20 for 512 products. F up to 14 with L = 32 fits f32; F = 25 takes f64 and
//! twice the multiply-adds. FP4 sums its groups of 16 exactly in f32, then joins them in f64. Instruction sets without
//! rounding modes of their own scale each product to units, truncate and add.
//!
//! Lanes run over N, rows are blocked, and K is never split, so every lane is the reference's chain. A and B are packed
//! for blocks of K: all rows of a block of D, and one panel of columns that stays in the first-level cache. Rows of A
//! and of B with infinities or NaN are left to the [`Reference`]. Scratch is about 3 MiB a thread, whatever M, N and K,
//! and 10 MiB with custom steps of 1024.
#![forbid(unsafe_code)]

mod fp4;
mod pack;
mod plan;
mod terms;
mod tile;

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;

use self::fp4::Groups;
use self::pack::{B_REGISTERS, Operand, Packed, Panel, Side};
use self::plan::{Block, Kernel, Plan};
use self::terms::{Narrow, Wide};
use self::tile::{Inputs, Outputs, Products, StepKernel};
use super::accumulation::{BlockScales, Model, TensorCore};
use super::backend::{GemmBackend, GemmPlan, Output};
use super::problem::GemmProblem;
use super::reference::{self, Reference, to_bf16};
use super::tensor_core;
use super::trial;
use crate::error::{Error, Result};
use crate::formats::Specials;
use crate::matrix::{MatBlock, MatMut, Matrix};
use crate::parallel::{self, Watch};
use crate::scaled::{CodesRef, ScaleGridRef, ScaledRef};
use crate::simd::{Fused, FusedWork, Isa, OpClass, isa_for};

/// Tensor cores over FP8, FP6 and FP4: all of [`TensorCore`]'s that multiply such formats, and custom ones whose sums
/// fit: (4L + 2)·2^F + L below 2^51, with [`BlockScales::Fp4`](super::BlockScales::Fp4)
/// (2048·L/16 + 2)·2^F + L/16; with [`BlockScales::Mx`](super::BlockScales::Mx) and scales L must divide 32.
///
/// ```
/// use finegrain::gemm::{Accumulation, Emulated, GemmBackend, GemmProblem, Output, Reference};
/// use finegrain::matrix::Matrix;
/// use finegrain::parallel::Watch;
/// use finegrain::quant::{Quantizer, Recipe};
/// let x = Matrix::from_fn(5, 300, |i, j| (i * 31 + j * 17) as f32 % 7.0 - 3.0);
/// let q = Quantizer::new(Recipe::DEEPSEEK_V3).activation(x.view())?;
/// let problem =
///     GemmProblem::nt(q.view(), q.view())?.with_accumulation(Accumulation::HOPPER.promote_every(128)?)?;
/// let (mut fast, mut slow) = (Matrix::filled(5, 5, 0.0), Matrix::filled(5, 5, 0.0));
/// Emulated::default().run(&problem, Output::F32(fast.view_mut()), &Watch::NONE)?;
/// Reference.run(&problem, Output::F32(slow.view_mut()), &Watch::NONE)?;
/// assert_eq!(fast, slow);
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Emulated {
    isa: Option<Isa>,
}

impl Emulated {
    /// The backend on the instruction set that is chosen for each problem.
    pub const AUTO: Emulated = Emulated { isa: None };

    /// The backend on an instruction set of choice.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this CPU lacks it.
    pub fn on(isa: Isa) -> Result<Emulated> {
        Ok(Emulated { isa: Some(isa.checked()?) })
    }

    /// The instruction set that the problem would run on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the backend does not compute it.
    pub fn isa_for(&self, problem: &GemmProblem<'_>) -> Result<Isa> {
        self.kernel(problem)?;
        let op = OpClass::Emulated { m: problem.m(), n: problem.n(), k: problem.k() };
        Ok(self.isa.map_or_else(|| isa_for(op, &trial::emulated), Ok)?.fused())
    }

    fn kernel(&self, problem: &GemmProblem<'_>) -> Result<(TensorCore, Kernel)> {
        let accumulation = problem.accumulation();
        let Model::TensorCore(core) = accumulation.model() else {
            return Err(Error::Unsupported(format!(
                "backend emulated sums as tensor cores do, not as {accumulation}"
            )));
        };
        let kernel = Kernel::of(core, problem.a().scales().is_some()).ok_or_else(|| {
            Error::Unsupported(format!(
                "steps of {} products with {} fraction bits do not fit the sums of backend emulated",
                core.step(),
                core.fraction_bits()
            ))
        })?;
        for (side, x) in [(Side::A, problem.a()), (Side::B, problem.b())] {
            if Operand::new(x, kernel, side).is_none() || cfg!(target_endian = "big") {
                return Err(Error::Unsupported(format!(
                    "backend emulated does not decode {side:?} in {}",
                    x.format()
                )));
            }
        }
        Ok((core, kernel))
    }
}

impl GemmBackend for Emulated {
    fn name(&self) -> &'static str {
        "emulated"
    }

    fn models(&self) -> Vec<Model> {
        let scaled = |core: TensorCore| core.scales() != BlockScales::None;
        let cores = TensorCore::ALL.iter().filter(|&&core| Kernel::of(core, scaled(core)).is_some());
        cores.map(|&core| Model::TensorCore(core)).collect()
    }

    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        let (core, kernel) = self.kernel(problem)?;
        let isa = self.isa_for(problem)?;
        Ok(Box::new(OnIsa { plan: Plan::new(problem, core, kernel, isa.run_fused(Width)), isa }))
    }
}

/// A plan and the instruction set that it was made for.
struct OnIsa<'p> {
    plan: Plan<'p>,
    isa: Isa,
}

impl fmt::Display for OnIsa<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { kernel, task: (rows, cols), blocks, steps, .. } = &self.plan;
        let (steps, blocks) = (steps.len(), blocks.len());
        write!(
            f,
            "emulated on {}: {kernel:?} sums, {steps} steps in {blocks} blocks of K, blocks of D of {rows}×{cols}",
            self.isa
        )
    }
}

impl GemmPlan for OnIsa<'_> {
    fn backend(&self) -> &'static str {
        "emulated"
    }

    fn isa(&self) -> Option<Isa> {
        Some(self.isa)
    }

    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        let OnIsa { plan, isa } = self;
        let problem = plan.problem;
        match out {
            Output::F32(mut m) => {
                run(plan, *isa, m.reborrow(), watch, |d| d)?;
                recompute(problem, m, |part, out| {
                    Reference.run(part, Output::F32(out.view_mut()), &Watch::NONE)
                })
            }
            Output::Bf16(mut m) => {
                run(plan, *isa, m.reborrow(), watch, to_bf16)?;
                recompute(problem, m, |part, out| {
                    Reference.run(part, Output::Bf16(out.view_mut()), &Watch::NONE)
                })
            }
        }
    }
}

/// Columns of a panel of B.
struct Width;

impl FusedWork for Width {
    type Output = usize;

    #[inline(always)]
    fn run<S: Fused, const COUNTS: bool>(self, _: S) -> usize {
        B_REGISTERS * S::LANES
    }
}

fn run<T: Send>(
    plan: &Plan<'_>,
    isa: Isa,
    out: MatMut<'_, T>,
    watch: &Watch<'_>,
    store: impl Fn(f32) -> T + Sync,
) -> Result<()> {
    let cuts = |size: usize, part: usize| (0..size).step_by(part).chain([size]).collect::<Vec<_>>();
    let ((m, n), (rows, cols)) = (out.shape(), plan.task);
    let tasks = out.into_blocks(&cuts(m, rows), &cuts(n, cols));
    parallel::for_each_part(watch, tasks, &|_, MatBlock { rows, cols, mut parts }: MatBlock<'_, T>| {
        let sums = isa.run_fused(Sums { plan, rows: rows.clone(), cols: cols.clone() });
        finish(plan, rows.start, &cols, &sums, &mut parts, &store);
        watch.report((rows.len() * cols.len()) as u64 * plan.problem.k() as u64);
    })
}

/// The rest of the contract for a block of D: second-level scale, addend, canonical NaN, store.
fn finish<T>(
    plan: &Plan<'_>,
    first_row: usize,
    cols: &Range<usize>,
    sums: &Matrix<f32>,
    out: &mut [&mut [T]],
    store: impl Fn(f32) -> T,
) {
    let (bare, tensor) = (plan.problem.is_bare_chain(), plan.problem.tensor_scale());
    let nan = if bare { tensor_core::NAN } else { reference::NAN };
    let addend = if bare { None } else { plan.problem.addend() };
    for (i, out) in out.iter_mut().enumerate() {
        let addend = addend.map(|c| &c.row(first_row + i)[cols.clone()]);
        for (j, (d, &sum)) in out.iter_mut().zip(sums.row(i)).enumerate() {
            let scaled = tensor.map_or(sum, |t| sum * t);
            let added = addend.map_or(scaled, |c| scaled + c[j]);
            *d = store(if added.is_nan() { nan } else { added });
        }
    }
}

/// The sums of a block of D: bare chains, or promoted ones.
struct Sums<'p> {
    plan: &'p Plan<'p>,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl FusedWork for Sums<'_> {
    type Output = Matrix<f32>;

    #[inline(always)]
    fn run<S: Fused, const COUNTS: bool>(self, s: S) -> Matrix<f32> {
        match self.plan.kernel {
            Kernel::Narrow => self.sums::<S, Products<Narrow, false>, COUNTS>(s),
            Kernel::Wide => self.sums::<S, Products<Wide<false>, false>, COUNTS>(s),
            Kernel::WideMx => self.sums::<S, Products<Wide<true>, true>, COUNTS>(s),
            Kernel::Fp4 => self.sums::<S, Groups, COUNTS>(s),
        }
    }
}

impl Sums<'_> {
    #[inline(always)]
    fn sums<S: Fused, K: StepKernel<S>, const COUNTS: bool>(self, s: S) -> Matrix<f32> {
        let Sums { plan, rows, cols } = self;
        let problem = plan.problem;
        let width = B_REGISTERS * S::LANES;
        let (height, stride) = (rows.len(), cols.len().next_multiple_of(width));
        let bare = problem.is_bare_chain();
        let mut chains = Matrix::filled(height, stride, 0.0f32);
        let mut acc = Matrix::filled(if bare { 0 } else { height }, stride, 0.0f32);
        if let (true, Some(c)) = (bare, problem.addend()) {
            for i in 0..height {
                let row = &mut chains.row_mut(i)[..cols.len()];
                row.copy_from_slice(&c.row(rows.start + i)[cols.clone()]);
                if !plan.steps.is_empty() {
                    // A step makes +0 of −0.
                    row.iter_mut().for_each(|c| *c += 0.0);
                }
            }
        }
        let mut packed_a = Packed::new::<S, K>(plan.a, height, &plan.blocks);
        let mut packed_b = Packed::new::<S, K>(plan.b, width, &plan.blocks);
        let mut scales = PromotionScales::new(plan, height, stride);
        for block in &plan.blocks {
            packed_a.pack::<S, K>(s, rows.clone(), block, &plan.steps);
            scales.load(plan, block, rows.clone(), cols.clone());
            for first in (0..cols.len()).step_by(width) {
                let columns = cols.start + first..cols.end.min(cols.start + first + width);
                packed_b.pack::<S, K>(s, columns, block, &plan.steps);
                let columns = Columns {
                    plan,
                    block,
                    a: &packed_a,
                    b: packed_b.panel::<S, K>(block, 0),
                    scales: &scales,
                    first,
                };
                let (chains, acc) = (chains.as_mut_slice(), acc.as_mut_slice());
                let whole = height - height % K::ROWS;
                match K::ROWS {
                    4 => columns.multiply::<S, K, 4, COUNTS>(s, 0..whole, chains, acc),
                    2 => columns.multiply::<S, K, 2, COUNTS>(s, 0..whole, chains, acc),
                    _ => columns.multiply::<S, K, 1, COUNTS>(s, 0..whole, chains, acc),
                }
                columns.multiply::<S, K, 1, COUNTS>(s, whole..height, chains, acc);
            }
        }
        if bare { chains } else { acc }
    }
}

/// A panel of columns of a block of D, over a block of K.
struct Columns<'a, 'p, V> {
    plan: &'a Plan<'p>,
    block: &'a Block,
    a: &'a Packed<'p>,
    b: Panel<'a, V>,
    scales: &'a PromotionScales,
    /// The first column.
    first: usize,
}

impl<V: bytemuck::Pod> Columns<'_, '_, V> {
    /// Multiplies `rows`, `MR` at a time.
    #[inline(always)]
    fn multiply<S: Fused, K: StepKernel<S, Value = V>, const MR: usize, const COUNTS: bool>(
        &self,
        s: S,
        rows: Range<usize>,
        chains: &mut [f32],
        acc: &mut [f32],
    ) {
        let PromotionScales { height, stride, .. } = *self.scales;
        for row in rows.step_by(MR) {
            // Tiles lie within one panel of A.
            let inputs = Inputs {
                core: self.plan.core,
                block: self.block,
                steps: &self.plan.steps,
                a: self.a.panel::<S, K>(self.block, row / S::LANES),
                row: row % S::LANES,
                b: self.b,
                promotion: self.plan.problem.accumulation().promotion(),
                scales_a: self.scales.a.get(row..).unwrap_or_default(),
                scales_b: self.scales.b.get(self.first..).unwrap_or_default(),
                strides: (height, stride),
            };
            let at = row * stride + self.first;
            let mut out =
                Outputs { chains: &mut chains[at..], acc: acc.get_mut(at..).unwrap_or_default(), stride };
            tile::multiply::<S, K, MR, COUNTS>(s, &inputs, &mut out);
        }
    }
}

/// The scales that promotion applies: for each promotion of a block of K those of all rows, and of all columns.
struct PromotionScales {
    a: Vec<f32>,
    b: Vec<f32>,
    height: usize,
    stride: usize,
}

impl PromotionScales {
    fn new(plan: &Plan<'_>, height: usize, stride: usize) -> Self {
        let promotions = |block: &Block| plan.steps[block.steps.clone()].iter().filter(|s| s.ends).count();
        let most = plan.blocks.iter().map(promotions).max().unwrap_or(0);
        PromotionScales { a: vec![1.0; most * height], b: vec![1.0; most * stride], height, stride }
    }

    fn load(&mut self, plan: &Plan<'_>, block: &Block, rows: Range<usize>, cols: Range<usize>) {
        if plan.problem.scales_in_model() {
            return;
        }
        let promoted = plan.steps[block.steps.clone()].iter().filter(|s| s.ends);
        for (i, step) in promoted.enumerate() {
            let k = step.k.start;
            plan.problem.a().scales_at(rows.clone(), k, &mut self.a[i * self.height..]);
            plan.problem.b().scales_at(cols.clone(), k, &mut self.b[i * self.stride..]);
        }
    }
}

/// Computes by `reference` the rows and columns of D whose operands have infinities or NaN.
fn recompute<T: Copy + Default>(
    problem: &GemmProblem<'_>,
    mut out: MatMut<'_, T>,
    reference: impl Fn(&GemmProblem<'_>, &mut Matrix<T>) -> Result<()>,
) -> Result<()> {
    let (m, n) = out.shape();
    let (a, b) = (*problem.a(), *problem.b());
    for rows in non_finite_rows(&a) {
        let part = GemmProblem::nt(a.row_range(rows.start, rows.end), b)?
            .with_accumulation(problem.accumulation())?;
        let part = match problem.addend() {
            Some(c) => part.with_addend(c.row_range(rows.start, rows.end))?,
            None => part,
        };
        let mut d = Matrix::filled(rows.len(), n, T::default());
        reference(&part, &mut d)?;
        for (i, row) in rows.enumerate() {
            out.row_mut(row).copy_from_slice(d.row(i));
        }
    }
    for cols in non_finite_rows(&b) {
        let part = GemmProblem::nt(a, b.row_range(cols.start, cols.end))?
            .with_accumulation(problem.accumulation())?;
        let part = match problem.addend() {
            Some(c) => part.with_addend(c.col_range(cols.start, cols.end))?,
            None => part,
        };
        let mut d = Matrix::filled(m, cols.len(), T::default());
        reference(&part, &mut d)?;
        for row in 0..m {
            out.row_mut(row)[cols.clone()].copy_from_slice(d.row(row));
        }
    }
    Ok(())
}

/// Runs of rows with an element that is not finite, by its code or by a scale of 8 bits.
fn non_finite_rows(x: &ScaledRef<'_>) -> Vec<Range<usize>> {
    let spec = x.format().spec();
    let CodesRef::Bytes(codes) = x.codes() else { unreachable!("supported codes are bytes") };
    let (magnitude, largest) = ((spec.code_mask() & !spec.sign_mask()) as u8, spec.max_code() as u8);
    let has_specials = !matches!(spec.specials, Specials::None);
    // NaN is the last code of both scale formats. Scales in f32 are applied at promotion, where NaN may be.
    let (scales, nan) = match x.scales().map(|s| s.grid) {
        Some(ScaleGridRef::E8M0(grid)) => (Some(grid), 0xFF),
        Some(ScaleGridRef::E4M3(grid)) => (Some(grid), 0x7F),
        _ => (None, 0),
    };
    let is_finite = |row: usize| {
        let special = |&code: &u8| code & magnitude > largest;
        let scaled_by_nan = scales.is_some_and(|grid| {
            let granule = x.scales().map_or(1, |s| s.granule.rows());
            grid.row((row + x.row_offset()) / granule).iter().any(|&scale| scale & nan == nan)
        });
        !(scaled_by_nan || has_specials && codes.row(row).iter().any(special))
    };
    let finite: Vec<bool> = (0..x.shape().0).into_par_iter().map(is_finite).collect();
    let mut runs = Vec::new();
    let mut start = 0;
    for run in finite.chunk_by(|a, b| a == b) {
        if !run[0] {
            runs.push(start..start + run.len());
        }
        start += run.len();
    }
    runs
}
