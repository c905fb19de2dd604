//! The emulated backend: tensor cores' arithmetic at the speed of the CPU's multiply-adds.
//!
//! How a step is computed stands with its kernels, in `finegrain_cpu::tensor_core`.
//!
//! Lanes run over N, rows are blocked, and K is never split, so every lane is the reference's chain. A and B are packed
//! for blocks of K: all rows of a block of D, and one panel of columns that stays in the first-level cache. Rows of A
//! and of B with infinities or NaN are left to the [`Reference`]. Scratch is about 3 MiB a thread, whatever M, N and K,
//! and 10 MiB with custom steps of 1024.
#![forbid(unsafe_code)]

mod pack;
mod plan;

use std::fmt;
use std::ops::Range;

use finegrain_cpu::tensor_core::{self as kernels, Kernel, Micropanels, ScaleRows, Side, Sums};

use self::pack::{Operand, Packed};
use self::plan::{Block, Plan};
use super::accumulation::{BlockScales, Model, TensorCore};
use super::backend::{GemmBackend, GemmPlan, Output};
use super::problem::GemmProblem;
use super::reference::{self, Reference, to_bf16};
use super::tensor_core::NAN;
use super::trial;
use crate::error::{Error, Result};
use crate::formats::Specials;
use crate::matrix::{MatBlock, MatMut, Matrix};
use crate::parallel::{self, Watch};
use crate::scaled::{CodesRef, Granule, ScaleGridRef, ScaledRef};
use crate::simd::{Isa, OpClass, isa_for};

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
        let kernel = plan::kernel(core, problem.a().scales().is_some()).ok_or_else(|| {
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
        let cores = TensorCore::ALL.iter().filter(|&&core| plan::kernel(core, scaled(core)).is_some());
        cores.map(|&core| Model::TensorCore(core)).collect()
    }

    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        let (core, kernel) = self.kernel(problem)?;
        let isa = self.isa_for(problem)?;
        Ok(Box::new(Plan::new(problem, core, kernel, isa)))
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

    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        let problem = self.problem;
        match out {
            Output::F32(mut m) => {
                run(self, m.reborrow(), watch, |d| d)?;
                recompute(problem, m, |part, out| {
                    Reference.run(part, Output::F32(out.view_mut()), &Watch::NONE)
                })
            }
            Output::Bf16(mut m) => {
                run(self, m.reborrow(), watch, to_bf16)?;
                recompute(problem, m, |part, out| {
                    Reference.run(part, Output::Bf16(out.view_mut()), &Watch::NONE)
                })
            }
        }
    }
}

fn run<T: Send>(
    plan: &Plan<'_>,
    out: MatMut<'_, T>,
    watch: &Watch<'_>,
    store: impl Fn(f32) -> T + Sync,
) -> Result<()> {
    let cuts = |size: usize, part: usize| (0..size).step_by(part).chain([size]).collect::<Vec<_>>();
    let ((m, n), (rows, cols)) = (out.shape(), plan.task);
    let tasks = out.into_blocks(&cuts(m, rows), &cuts(n, cols));
    parallel::for_each_part(watch, tasks, &|_, MatBlock { rows, cols, mut parts }: MatBlock<'_, T>| {
        let sums = Task { plan, rows: rows.clone(), cols: cols.clone() }.sums();
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
    let nan = if bare { NAN } else { reference::NAN };
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
                if !plan.steps.is_empty() {
                    // A step makes +0 of −0.
                    row.iter_mut().for_each(|c| *c += 0.0);
                }
            }
        }
        let mut packed_a = Packed::new(plan, &plan.a, height);
        let mut packed_b = Packed::new(plan, &plan.b, nr);
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

/// Computes by `reference` the rows and columns of D whose operands have infinities or NaN.
fn recompute<T: Copy + Default>(
    problem: &GemmProblem<'_>,
    mut out: MatMut<'_, T>,
    reference: impl Fn(&GemmProblem<'_>, &mut Matrix<T>) -> Result<()>,
) -> Result<()> {
    let (m, n) = out.shape();
    let (a, b) = (*problem.a(), *problem.b());
    for rows in non_finite_rows(&a)? {
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
    for cols in non_finite_rows(&b)? {
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
fn non_finite_rows(x: &ScaledRef<'_>) -> Result<Vec<Range<usize>>> {
    /// Rows that one thread looks at.
    const ROWS: usize = 64;
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
    let rows = x.shape().0;
    let of_part = |i: usize| -> Vec<bool> { Granule::span(rows, ROWS, i).map(is_finite).collect() };
    let finite = parallel::map(&Watch::NONE, rows.div_ceil(ROWS), &of_part)?.concat();
    let mut runs = Vec::new();
    let mut start = 0;
    for run in finite.chunk_by(|a, b| a == b) {
        if !run[0] {
            runs.push(start..start + run.len());
        }
        start += run.len();
    }
    Ok(runs)
}
