//! The blocked backend: the `f32` model at the speed of the CPU's instruction set.
//!
//! Codes are decoded while they are packed, once for each block of D; a microkernel keeps a microtile of partial sums in
//! registers over an interval, k ascending, and promotes it with the scales into f32 at the interval's end. Vectors run
//! over N, never over K, so each lane is the reference's scalar loop.
//!
//! Loops, from the outside (names as in Goto's algorithm): jc and ic over blocks of D that threads take; pc over
//! K in steps of KC, where the block's B is packed; ic over MC rows, where A is packed; jr and ir over micropanels.
//! With few rows (decoding a token) A is packed whole, and each micropanel of B is used while it is in the first-level
//! cache, so that weights are read once, at the speed of memory.
//!
//! Scratch is at most about 7 MiB a thread, whatever M, N and K.

#![forbid(unsafe_code)]

mod pack;
mod plan;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use self::pack::Buffer;
use self::plan::{Block, Plan, fill_scales};
use self::tile::Panels;
use super::accumulation::Model;
use super::backend::{Execution, GemmBackend, Output};
use super::problem::GemmProblem;
use super::reference::{NAN, products_are_exact, to_bf16};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::MatMut;
use crate::scaled::{CodesRef, ScaledRef};
use crate::simd::{Isa, Simd, Work};

/// Dense `f32` GEMM over E4M3, E5M2, BF16 and the 6- and 4-bit formats, in any mix, with any scales and promotion.
///
/// ```
/// use finegrain::gemm::{Blocked, Execution, GemmBackend, GemmProblem, Output, Reference};
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{Quantizer, Recipe};
/// let x = Matrix::from_fn(5, 300, |i, j| (i * 31 + j * 17) as f32 % 7.0 - 3.0);
/// let q = Quantizer::new(Recipe::DEEPSEEK_V3).activation(x.view())?;
/// let problem = GemmProblem::nt(q.view(), q.view())?;
/// let (mut fast, mut slow) = (Matrix::filled(5, 5, 0.0), Matrix::filled(5, 5, 0.0));
/// Blocked::default().run(&problem, Output::F32(fast.view_mut()), &Execution::default())?;
/// Reference.run(&problem, Output::F32(slow.view_mut()), &Execution::default())?;
/// assert_eq!(fast, slow);
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Blocked {
    isa: Option<Isa>,
}

impl Blocked {
    /// The backend on the [active](Isa::active) instruction set.
    pub const AUTO: Blocked = Blocked { isa: None };

    /// The backend on a given instruction set of choice.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this CPU lacks it.
    pub fn on(isa: Isa) -> Result<Blocked> {
        Ok(Blocked { isa: Some(isa.checked()?) })
    }

    /// The instruction set that the problem would run on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the backend does not compute it.
    pub fn isa_for(&self, problem: &GemmProblem<'_>) -> Result<Isa> {
        match self.supporting_isa(problem)? {
            Isa::Avx512Bf16 if !pairs_are_exact(problem) => Ok(Isa::Avx512),
            isa => Ok(isa),
        }
    }

    /// The same without a look at the data, which decides only between the two AVX-512 sets.
    fn supporting_isa(&self, problem: &GemmProblem<'_>) -> Result<Isa> {
        let isa = self.isa.map_or_else(Isa::active, Ok)?;
        let (a, b) = (problem.a(), problem.b());
        if problem.accumulation().model() != Model::F32 {
            let accumulation = problem.accumulation();
            return Err(Error::Unsupported(format!("backend blocked sums in f32, not as {accumulation}")));
        }
        for (name, x) in [("A", a), ("B", b)] {
            if pack::Source::new(x).is_none() || cfg!(target_endian = "big") {
                return Err(Error::Unsupported(format!(
                    "backend blocked does not decode {name} in {}",
                    x.format()
                )));
            }
        }
        if isa == Isa::Scalar && !products_are_exact(a.format(), b.format()) {
            return Err(Error::Unsupported(format!(
                "{} x {} needs fused multiply-adds, which instruction set scalar lacks",
                a.format(),
                b.format()
            )));
        }
        Ok(isa)
    }
}

/// Whether no operand, product or sum can be subnormal, so that the flushing of VDPBF16PS never shows: every sum is a
/// multiple of the product of the operands' smallest steps.
fn pairs_are_exact(problem: &GemmProblem<'_>) -> bool {
    let starts_at_zero = !(problem.is_bare_chain() && problem.addend().is_some());
    let steps = smallest_step(problem.a()) + smallest_step(problem.b());
    starts_at_zero && steps >= Format::F32.spec().emin()
}

/// An exponent e such that every finite code is a multiple of 2^e; what BF16 holds is looked at.
fn smallest_step(x: &ScaledRef<'_>) -> i32 {
    let spec = x.format().spec();
    match x.codes() {
        CodesRef::Words(m) if x.format() == Format::Bf16 => {
            // −0 and +0 have no step; subnormals are among the smallest.
            let field = |&c: &u16| if c & 0x7FFF == 0 { u16::MAX } else { c & 0x7F80 };
            let smallest = m.iter_rows().map(|row| row.iter().map(field).min().unwrap_or(u16::MAX)).min();
            match smallest {
                None | Some(u16::MAX) => 0,
                Some(field) => i32::from(field >> 7).max(1) - spec.bias - spec.mantissa_bits as i32,
            }
        }
        _ => spec.quantum_floor(),
    }
}

impl GemmBackend for Blocked {
    fn name(&self) -> &'static str {
        "blocked"
    }

    fn supports(&self, problem: &GemmProblem<'_>) -> Result<()> {
        self.supporting_isa(problem).map(|_| ())
    }

    fn run(&self, problem: &GemmProblem<'_>, out: Output<'_>, execution: &Execution<'_>) -> Result<()> {
        let isa = self.isa_for(problem)?;
        let plan = Plan::new(problem, isa);
        match out {
            Output::F32(m) => run(&plan, isa, m, execution, |d| d),
            Output::Bf16(m) => run(&plan, isa, m, execution, to_bf16),
        }
        Ok(())
    }
}

/// A block of D: its rows and columns, and where they go.
struct Task<'d, T> {
    rows: Range<usize>,
    cols: Range<usize>,
    out: Vec<&'d mut [T]>,
}

/// Cuts D into the plan's blocks.
fn tasks<'d, T>(plan: &Plan<'_>, out: MatMut<'d, T>) -> Vec<Task<'d, T>> {
    let ((m, n), (tm, tn)) = (out.shape(), plan.task);
    let mut tasks = Vec::new();
    let mut rows = out.into_rows().into_iter();
    for first in (0..m).step_by(tm) {
        let mut stripe: Vec<Task<'d, T>> = (0..n)
            .step_by(tn)
            .map(|col| Task { rows: first..m.min(first + tm), cols: col..n.min(col + tn), out: Vec::new() })
            .collect();
        for mut row in rows.by_ref().take(tm) {
            for task in &mut stripe {
                let part;
                (part, row) = row.split_at_mut(task.cols.len());
                task.out.push(part);
            }
        }
        tasks.extend(stripe);
    }
    tasks
}

fn run<T: Send>(
    plan: &Plan<'_>,
    isa: Isa,
    out: MatMut<'_, T>,
    execution: &Execution<'_>,
    store: impl Fn(f32) -> T + Sync,
) {
    let packed_a = if plan.streams_b { isa.run(PackA { plan }) } else { Buffer::default() };
    tasks(plan, out).into_par_iter().for_each(|mut task| {
        let sums = isa.run(Sums {
            plan,
            packed_a: packed_a.as_slice(),
            rows: task.rows.clone(),
            cols: task.cols.clone(),
        });
        finish(plan, &mut task, &sums, &store);
        execution.report((task.rows.len() * task.cols.len()) as u64 * plan.problem.k() as u64);
    });
}

/// The rest of the contract for a block: second-level scale, addend, canonical NaN, store.
fn finish<T>(plan: &Plan<'_>, task: &mut Task<'_, T>, sums: &[f32], store: impl Fn(f32) -> T) {
    let (mr, width) = (plan.mr, plan.width);
    let (bare, tensor) = (plan.problem.is_bare_chain(), plan.problem.tensor_scale());
    let addend = if bare { None } else { plan.problem.addend() };
    let panels = task.cols.len().div_ceil(width);
    for (i, row) in task.out.iter_mut().enumerate() {
        let addend = addend.map(|c| &c.row(task.rows.start + i)[task.cols.clone()]);
        for (p, part) in row.chunks_mut(width).enumerate() {
            let tile = (i / mr * panels + p) * mr + i % mr;
            for (j, (d, &sum)) in part.iter_mut().zip(&sums[tile * width..]).enumerate() {
                let scaled = tensor.map_or(sum, |t| sum * t);
                let added = addend.map_or(scaled, |c| scaled + c[p * width + j]);
                *d = store(if added.is_nan() { NAN } else { added });
            }
        }
    }
}

/// All of A, packed, for the path that streams B: panel after panel, in each all of K.
struct PackA<'p> {
    plan: &'p Plan<'p>,
}

impl Work for PackA<'_> {
    type Output = Buffer;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Buffer {
        let plan = self.plan;
        let m = plan.problem.m();
        let mut packed = Buffer::new(m.next_multiple_of(plan.mr) * plan.steps + S::LANES);
        plan.pack(s, &plan.a, 0..m, plan.mr, 0..plan.segments.len(), packed.as_mut_slice());
        packed
    }
}

/// The promoted sums of a block of D, in microtiles: those of a row of tiles after one another.
struct Sums<'p> {
    plan: &'p Plan<'p>,
    packed_a: &'p [u32],
    rows: Range<usize>,
    cols: Range<usize>,
}

impl Work for Sums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let plan = self.plan;
        let tile = plan.mr * plan.width;
        let (tile_rows, tile_cols) =
            (self.rows.len().div_ceil(plan.mr), self.cols.len().div_ceil(plan.width));
        let mut acc = vec![0.0; tile_rows * tile_cols * tile];
        let bare = plan.problem.is_bare_chain();
        if let (true, Some(c)) = (bare, plan.problem.addend()) {
            for i in 0..self.rows.len() {
                for (j, &c) in c.row(self.rows.start + i)[self.cols.clone()].iter().enumerate() {
                    let at = (i / plan.mr * tile_cols + j / plan.width) * tile;
                    acc[at + i % plan.mr * plan.width + j % plan.width] = c;
                }
            }
        }
        let steps = plan.blocks.iter().map(|b| b.steps).max().unwrap_or(0);
        let mut scratch = Scratch::new(plan, &self, steps, if plan.is_cut && !bare { acc.len() } else { 0 });
        if plan.streams_b {
            for panel in 0..tile_cols {
                let first = self.cols.start + panel * plan.width;
                let cols = first..self.cols.end.min(first + plan.width);
                let mut from = 0;
                for block in &plan.blocks {
                    scratch.pack_b(s, plan, block, cols.clone());
                    scratch.load_scales(plan, block, self.rows.clone(), cols.clone());
                    for row in 0..tile_rows {
                        let a = &self.packed_a[row * plan.steps * plan.mr + from..];
                        scratch.multiply(s, plan, block, a, (row, 0), row * tile_cols + panel, &mut acc);
                    }
                    from += block.steps * plan.mr;
                }
            }
        } else {
            let mut packed_a = Buffer::new(plan.mc * plan.mr * steps + S::LANES);
            for block in &plan.blocks {
                scratch.pack_b(s, plan, block, self.cols.clone());
                scratch.load_scales(plan, block, self.rows.clone(), self.cols.clone());
                for first in (0..tile_rows).step_by(plan.mc) {
                    let tiles = first..tile_rows.min(first + plan.mc);
                    let row = |tile: usize| self.rows.end.min(self.rows.start + tile * plan.mr);
                    let rows = row(tiles.start)..row(tiles.end);
                    plan.pack(s, &plan.a, rows, plan.mr, block.segments.clone(), packed_a.as_mut_slice());
                    for panel in 0..tile_cols {
                        for row in tiles.clone() {
                            let a = &packed_a.as_slice()[(row - first) * block.steps * plan.mr..];
                            scratch.multiply(
                                s,
                                plan,
                                block,
                                a,
                                (row, panel),
                                row * tile_cols + panel,
                                &mut acc,
                            );
                        }
                    }
                }
            }
        }
        acc
    }
}

/// Elements of a cache line.
const LINE: usize = 16;

/// What a thread needs besides its sums.
struct Scratch {
    packed_b: Buffer,
    /// For each segment of the block at hand, those of all rows, and of all columns.
    scales_a: Vec<f32>,
    scales_b: Vec<f32>,
    padded_rows: usize,
    padded_cols: usize,
    /// Sums of intervals that are longer than a segment; empty where there are none, or where D is a bare chain.
    cut: Vec<f32>,
}

impl Scratch {
    fn new(plan: &Plan<'_>, task: &Sums<'_>, steps: usize, cut: usize) -> Scratch {
        let padded_rows = task.rows.len().next_multiple_of(plan.mr);
        let columns = if plan.streams_b { plan.width } else { task.cols.len() };
        let padded_cols = columns.next_multiple_of(plan.width);
        let segments = plan.blocks.iter().map(|b| b.segments.len()).max().unwrap_or(0);
        Scratch {
            packed_b: Buffer::new(padded_cols * steps),
            scales_a: vec![1.0; segments * padded_rows],
            scales_b: vec![1.0; segments * padded_cols],
            padded_rows,
            padded_cols,
            cut: vec![0.0; cut],
        }
    }

    #[inline(always)]
    fn pack_b<S: Simd>(&mut self, s: S, plan: &Plan<'_>, block: &Block, cols: Range<usize>) {
        let out = self.packed_b.as_mut_slice();
        plan.pack(s, &plan.b, cols, plan.width, block.segments.clone(), out);
    }

    fn load_scales(&mut self, plan: &Plan<'_>, block: &Block, rows: Range<usize>, cols: Range<usize>) {
        let problem = plan.problem;
        for (i, segment) in plan.segments[block.segments.clone()].iter().enumerate() {
            let k = segment.k.start;
            fill_scales(problem.a(), rows.clone(), k, &mut self.scales_a[i * self.padded_rows..]);
            fill_scales(problem.b(), cols.clone(), k, &mut self.scales_b[i * self.padded_cols..]);
        }
    }

    /// One microtile over a block of K. `place` is its row and column of tiles in the scratch, `tile` its place in `acc`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the loop body of the GEMM")]
    fn multiply<S: Simd>(
        &mut self,
        s: S,
        plan: &Plan<'_>,
        block: &Block,
        a: &[u32],
        place: (usize, usize),
        tile: usize,
        acc: &mut [f32],
    ) {
        let size = plan.mr * plan.width;
        let acc = &mut acc[tile * size..][..size];
        for line in acc.chunks(LINE) {
            s.prefetch(bytemuck::cast_slice(line));
        }
        let panels = Panels {
            segments: &plan.segments[block.segments.clone()],
            a,
            b: &self.packed_b.as_slice()[place.1 * block.steps * plan.width..],
            scales_a: &self.scales_a[place.0 * plan.mr..],
            scales_b: &self.scales_b[place.1 * plan.width..],
            strides: (self.padded_rows, self.padded_cols),
            one_column_scale: plan.one_column_scale,
            promotion: plan.problem.accumulation().promotion(),
        };
        if plan.problem.is_bare_chain() {
            tile::multiply(s, plan.mr, panels, acc, &mut []);
        } else {
            let sums = if self.cut.is_empty() { &mut [][..] } else { &mut self.cut[tile * size..][..size] };
            tile::multiply(s, plan.mr, panels, sums, acc);
        }
    }
}
