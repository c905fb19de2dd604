//! The blocked backend: the `f32` model at the speed of the CPU's instruction set.
//!
//! Codes are decoded while they are packed, once for each block of D; a microkernel keeps a microtile of partial sums in
//! registers over an interval, k ascending, and promotes it with the scales into f32 at the interval's end. Vectors run
//! over N, never over K, so each lane is the reference's scalar loop.
//!
//! Loops, from the outside (names as in Goto's algorithm): jc and ic over blocks of D that threads take ([`run`]); pc over K
//! in steps of KC, where the block's A is packed for the second-level cache; jr over micropanels of B, each packed for the
//! first-level cache just before it is used; ir over microtiles ([`block::multiply`]). With few rows (decoding a token) A is
//! packed once for all of K and jr runs outside pc, so that weights are read once, in order ([`few_rows`]). There, promotion
//! intervals lie side by side in a register as far as they fill it.
//!
//! These loops are plain code. What runs in them, once a micropanel or microtile, are the kernels of
//! [`finegrain_cpu::gemm`], where their contract stands.
//!
//! Scratch is at most about 5 MiB a thread, and 8 MiB where few rows are packed at once, whatever M, N and K.

#![forbid(unsafe_code)]

mod block;
mod few_rows;
mod packed;
mod plan;

use std::fmt;
use std::sync::{Mutex, PoisonError};

use self::block::{Block, Rows, Scratch};
use self::packed::PackedB;
use self::plan::{Plan, codes};
use super::accumulation::Model;
use super::backend::{GemmBackend, GemmPlan, Output, rounded_to_f16};
use super::fold;
use super::parts;
use super::problem::GemmProblem;
use super::reference::products_are_exact;
use super::trial;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::MatMut;
use crate::parallel::{self, Watch};
use crate::scaled::{CodesRef, ScaledRef};
use crate::simd::{Isa, OpClass, isa_for};

/// Dense `f32` GEMM over E4M3, E5M2, BF16 and the 6- and 4-bit formats, in any mix, with any scales and promotion.
///
/// ```
/// use finegrain::gemm::{Blocked, GemmBackend, GemmProblem, Output, Reference};
/// use finegrain::matrix::Matrix;
/// use finegrain::parallel::Watch;
/// use finegrain::quant::{Quantizer, Recipe};
/// let x = Matrix::from_fn(5, 300, |i, j| (i * 31 + j * 17) as f32 % 7.0 - 3.0);
/// let q = Quantizer::new(Recipe::DEEPSEEK_V3).activation(x.view())?;
/// let problem = GemmProblem::nt(q.view(), q.view())?;
/// let (mut fast, mut slow) = (Matrix::filled(5, 5, 0.0), Matrix::filled(5, 5, 0.0));
/// Blocked::default().run(&problem, Output::F32(fast.view_mut()), &Watch::NONE)?;
/// Reference.run(&problem, Output::F32(slow.view_mut()), &Watch::NONE)?;
/// assert_eq!(fast, slow);
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Blocked {
    isa: Option<Isa>,
}

impl Blocked {
    /// The backend on the instruction set that is chosen for each problem.
    pub(crate) const AUTO: Blocked = Blocked { isa: None };

    /// The backend on a given instruction set of choice.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this CPU lacks it.
    pub(crate) fn on(isa: Isa) -> Result<Blocked> {
        Ok(Blocked { isa: Some(isa.checked()?) })
    }

    /// The instruction set that the problem would run on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the backend does not compute it.
    fn isa_for(&self, problem: &GemmProblem<'_>) -> Result<Isa> {
        match self.supporting_isa(problem)? {
            Isa::Avx512Bf16 if !pairs_are_exact(problem) => Ok(Isa::Avx512),
            isa => Ok(isa),
        }
    }

    /// The same without a look at the data, which decides only between the two AVX-512 sets.
    fn supporting_isa(&self, problem: &GemmProblem<'_>) -> Result<Isa> {
        let op = OpClass::Gemm { m: problem.m(), n: problem.n(), k: problem.k() };
        let isa = self.isa.map_or_else(|| isa_for(op, &|| trial::in_f32(problem.m())), Ok)?;
        let (a, b) = (problem.a(), problem.b());
        if problem.accumulation().model() != Model::F32 {
            let accumulation = problem.accumulation();
            return Err(Error::Unsupported(format!("backend blocked sums in f32, not as {accumulation}")));
        }
        for (name, x) in [("A", a), ("B", b)] {
            if codes(x).is_none() || cfg!(target_endian = "big") {
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

    fn models(&self) -> Vec<Model> {
        vec![Model::F32]
    }

    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        if problem.folds() {
            return fold::plan(self, problem);
        }
        if problem.accumulation().ends_in_sum() {
            return parts::plan(self, problem);
        }
        Ok(Box::new(Plan::new(problem, self.isa_for(problem)?)))
    }
}

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { isa, geometry, mr, few_rows, side_by_side, k_blocks, row_cuts, col_cuts, .. } = self;
        let (nr, rows, cols) = (geometry.nr, row_cuts.len() - 1, col_cuts.len() - 1);
        write!(f, "blocked on {isa}: microtiles of {mr}x{nr}, {rows}x{cols} blocks of D, ")?;
        let (groups, blocks) = (side_by_side.len(), k_blocks.len());
        match few_rows {
            true => {
                write!(f, "K in {groups} groups of intervals side by side and {blocks} blocks, A packed once")
            }
            false => write!(f, "K in {blocks} blocks"),
        }
    }
}

impl GemmPlan for Plan<'_> {
    fn backend(&self) -> &'static str {
        "blocked"
    }

    fn isa(&self) -> Option<Isa> {
        Some(self.isa)
    }

    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        let blocks = match out {
            Output::F32(m) => blocks(self, m, Rows::F32),
            Output::Bf16(m) => blocks(self, m, Rows::Bf16),
            Output::F16(m) => return rounded_to_f16(m, |wide| self.run(wide, watch)),
        };
        let packed = if self.few_rows { Some(few_rows::PackedA::new(self, watch)?) } else { None };
        let packed_b = if self.few_rows { None } else { PackedB::of(self, watch)? };
        // What one block has used serves the next of its thread.
        let idle: Mutex<Vec<Scratch>> = Mutex::default();
        let idle = || idle.lock().unwrap_or_else(PoisonError::into_inner);
        parallel::for_each_part(watch, blocks, &|_, mut block| {
            let of_idle = idle().pop();
            let mut scratch = of_idle.unwrap_or_default();
            match &packed {
                Some(a) => few_rows::multiply(self, a, &mut block, &mut scratch),
                None => block::multiply(self, packed_b.as_deref(), &mut block, &mut scratch),
            }
            idle().push(scratch);
            watch.report((block.rows.len() * block.cols.len()) as u64 * self.problem.k() as u64);
        })
    }
}

/// Cuts D into the plan's blocks.
fn blocks<'d, T>(
    plan: &Plan<'_>,
    out: MatMut<'d, T>,
    rows: fn(Vec<&'d mut [T]>) -> Rows<'d>,
) -> Vec<Block<'d>> {
    let blocks = out.into_blocks(&plan.row_cuts, &plan.col_cuts).into_iter();
    blocks.map(|block| Block { rows: block.rows, cols: block.cols, out: rows(block.parts) }).collect()
}
