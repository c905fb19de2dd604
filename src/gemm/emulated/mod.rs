//! The emulated backend: tensor cores' arithmetic at the speed of the CPU's multiply-adds.
//!
//! How a step is computed stands with its kernels, in `finegrain_cpu::tensor_core`.
//!
//! Lanes run over N, rows are blocked, and K is never split, so every lane is the reference's chain. A and B are packed
//! for blocks of K: all rows of a block of D, and one panel of columns that stays in the first-level cache. Rows of A
//! and of B with infinities or NaN, or with elements that lie more than 126 binades apart, are left to the
//! [`Reference`](super::Reference). Scratch is about 3 MiB a thread, whatever M, N and K,
//! and 10 MiB with custom steps of 1024.
#![forbid(unsafe_code)]

mod pack;
mod plan;
mod rows;

use std::fmt;
use std::ops::Range;

use finegrain_cpu::gemm::{Epilogue, RowsMut, epilogue};
use finegrain_cpu::tensor_core::{self as kernels, Kernel, Micropanels, ScaleRows, Side, Sums};
use half::f16;

use self::pack::{Operand, Packed};
use self::plan::{Block, Plan};
use self::rows::recompute;
use super::accumulation::Model;
use super::backend::{GemmBackend, GemmPlan, Output, rounded_to_f16};
use super::fold;
use super::parts;
use super::problem::GemmProblem;
use super::reference;
use super::tensor_core::{self, BlockScales, StepSum, TensorCore};
use super::trial;
use crate::error::{Error, Result};
use crate::matrix::{MatBlock, MatMut, Matrix};
use crate::parallel::{self, Watch};
use crate::simd::{Isa, OpClass, isa_for};

/// NVIDIA's tensor cores over FP8, FP6, FP4, F16, BF16 and TF32, with results in f32 and f16, and custom ones whose sums
/// fit: (4L + 2)·2^F + L below 2^51, with [`BlockScales::Fp4`](super::BlockScales::Fp4)
/// (2048·L/16 + 2)·2^F + L/16; with [`BlockScales::Mx`](super::BlockScales::Mx) and scales L must divide 32, with products
/// in two sets it is at most 64.
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
    pub(crate) const AUTO: Emulated = Emulated { isa: None };

    /// The backend on an instruction set of choice.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this CPU lacks it.
    pub(crate) fn on(isa: Isa) -> Result<Emulated> {
        Ok(Emulated { isa: Some(isa.checked()?) })
    }

    /// The instruction set that the problem would run on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the backend does not compute it.
    fn isa_for(&self, problem: &GemmProblem<'_>) -> Result<Isa> {
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
        match core.sum() {
            StepSum::Fused | StepSum::FusedInTwo => {}
            StepSum::Floored | StepSum::FlooredInTwo | StepSum::Exact | StepSum::Pairwise => {
                return Err(Error::Unsupported(format!("backend emulated does not sum the steps of {core}")));
            }
        }
        let operands = [problem.a().format(), problem.b().format()];
        let kernel = plan::kernel(core, operands, problem.a().scales().is_some()).ok_or_else(|| {
            Error::Unsupported(format!(
                "steps of {} products with {} fraction bits do not fit the sums of backend emulated",
                core.step(),
                core.fraction_bits()
            ))
        })?;
        for (side, x) in [(Side::A, problem.a()), (Side::B, problem.b())] {
            if Operand::new(x, side).is_none() || cfg!(target_endian = "big") {
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
        let runs = |&&core: &&TensorCore| plan::kernel(core, [core.operands()[0]; 2], scaled(core)).is_some();
        let cores = TensorCore::ALL.iter().filter(runs);
        cores.map(|&core| Model::TensorCore(core)).collect()
    }

    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        if problem.folds() {
            return fold::plan(self, problem);
        }
        if problem.accumulation().ends_in_sum() {
            return parts::plan(self, problem);
        }
        let (core, kernel) = self.kernel(problem)?;
        let isa = self.isa_for(problem)?;
        Ok(Box::new(Plan::new(problem, core, kernel, isa)?))
    }
}

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { isa, kernel, task: (rows, cols), blocks, steps, .. } = self;
        let (steps, blocks) = (steps.len(), blocks.len());
        write!(
            f,
            "emulated on {isa}: {kernel:?} sums, {steps} steps in {blocks} blocks of K, blocks of D of {rows}×{cols}",
        )
    }
}

impl GemmPlan for Plan<'_> {
    fn backend(&self) -> &'static str {
        "emulated"
    }

    fn isa(&self) -> Option<Isa> {
        Some(self.isa)
    }

    // The variants themselves are of one lifetime; what `recompute` takes is of every.
    #[expect(clippy::redundant_closure)]
    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        match out {
            Output::F32(mut d) => {
                run(self, d.reborrow(), watch, |rows| RowsMut::F32(rows))?;
                recompute(self.problem, &self.rows, d, |block| Output::F32(block))
            }
            Output::Bf16(mut d) => {
                run(self, d.reborrow(), watch, |rows| RowsMut::Bf16(rows))?;
                recompute(self.problem, &self.rows, d, |block| Output::Bf16(block))
            }
            Output::F16(d) => rounded_to_f16(d, |wide| self.run(wide, watch)),
        }
    }
}

/// Computes D, block by block.
fn run<T: Send>(
    plan: &Plan<'_>,
    d: MatMut<'_, T>,
    watch: &Watch<'_>,
    rows_mut: for<'a, 'd> fn(&'a mut [&'d mut [T]]) -> RowsMut<'a, 'd>,
) -> Result<()> {
    let cuts = |size: usize, part: usize| (0..size).step_by(part).chain([size]).collect::<Vec<_>>();
    let ((m, n), (rows, cols)) = (d.shape(), plan.task);
    let tasks = d.into_blocks(&cuts(m, rows), &cuts(n, cols));
    parallel::for_each_part(watch, tasks, &|_, MatBlock { rows, cols, mut parts }: MatBlock<'_, T>| {
        let task = Task { plan, rows, cols };
        task.finish(&task.sums(), rows_mut(&mut parts));
        watch.report((task.rows.len() * task.cols.len()) as u64 * plan.problem.k() as u64);
    })
}

/// A block of D.
struct Task<'p> {
    plan: &'p Plan<'p>,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl Task<'_> {
    /// Its sums: bare chains, or promoted ones.
    fn sums(&self) -> Matrix<f32> {
        let Task { plan, rows, cols } = self;
        let problem = plan.problem;
        let nr = plan.geometry.nr;
        let (height, stride) = (rows.len(), cols.len().next_multiple_of(nr));
        let bare = problem.is_bare_chain();
        let mut chains = Matrix::filled(height, stride, 0.0f32);
        let mut acc = Matrix::filled(if bare { 0 } else { height }, stride, 0.0f32);
        if let (true, Some(c)) = (bare, problem.addend()) {
            for i in 0..height {
                let row = &mut chains.row_mut(i)[..cols.len()];
                row.copy_from_slice(&c.row(rows.start + i)[cols.clone()]);
                if plan.core.half {
                    row.iter_mut().for_each(|c| *c = f16::from_f32(*c).to_f32());
                }
                if !plan.steps.is_empty() {
                    // A step makes +0 of −0.
                    row.iter_mut().for_each(|c| *c += 0.0);
                }
            }
        }
        let mut packed_a = Packed::new(plan, &plan.a, &plan.rows[0].tops, height);
        let mut packed_b = Packed::new(plan, &plan.b, &plan.rows[1].tops, nr);
        let mut scales = PromotionScales::new(plan, height, stride);
        for block in &plan.blocks {
            packed_a.pack(rows.clone(), block);
            scales.load(plan, block, rows.clone(), cols.clone());
            for first in (0..cols.len()).step_by(nr) {
                packed_b.pack(cols.start + first..cols.end.min(cols.start + first + nr), block);
                let column = Column { plan, block, a: &packed_a, b: &packed_b, scales: &scales, first };
                column.multiply(&mut chains, &mut acc);
            }
        }
        if bare { chains } else { acc }
    }

    /// The rest of the contract: second-level scale, addend, canonical NaN, store.
    fn finish(&self, sums: &Matrix<f32>, out: RowsMut<'_, '_>) {
        let Task { plan, rows, cols } = self;
        let (problem, bare) = (plan.problem, plan.problem.is_bare_chain());
        // Bare chains begin with it.
        let addend = if bare { None } else { problem.addend() };
        let addend = addend.map(|c| c.row_range(rows.start, rows.end).col_range(cols.start, cols.end));
        let x = Epilogue {
            acc: sums.as_slice(),
            stride: sums.cols(),
            scales: None,
            tensor_scale: problem.tensor_scale(),
            addend: addend.as_ref().map(|c| (c.strided(), c.stride())),
            nan: if bare { tensor_core::NAN } else { reference::NAN },
        };
        epilogue(plan.isa, &x, out, 0, cols.len());
    }
}

/// All rows of a block of D by one micropanel of columns, over a block of K.
struct Column<'a, 'p> {
    plan: &'a Plan<'p>,
    block: &'a Block,
    a: &'a Packed<'p>,
    b: &'a Packed<'p>,
    scales: &'a PromotionScales,
    /// The first column.
    first: usize,
}

impl Column<'_, '_> {
    fn multiply(&self, chains: &mut Matrix<f32>, acc: &mut Matrix<f32>) {
        let Column { plan, block, scales, first, .. } = *self;
        let (height, stride) = chains.shape();
        let b = self.b.panel(block, 0);
        for (i, row) in (0..height).step_by(plan.geometry.lanes).enumerate() {
            let scales_a = scales.a.get(row..).unwrap_or_default();
            let scales_b = scales.b.get(first..).unwrap_or_default();
            let panels = Micropanels {
                kernel: plan.kernel,
                core: plan.core,
                steps: &plan.steps[block.steps.clone()],
                a: self.a.panel(block, i),
                rows: plan.geometry.lanes.min(height - row),
                b,
                promotion: plan.promotion,
                scales_a: ScaleRows { values: scales_a, stride: scales.height },
                scales_b: ScaleRows { values: scales_b, stride: scales.stride },
            };
            let at = row * stride + first;
            let sums = Sums {
                chains: &mut chains.as_mut_slice()[at..],
                acc: acc.as_mut_slice().get_mut(at..).unwrap_or_default(),
                stride,
            };
            kernels::multiply(plan.isa, &panels, sums);
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
