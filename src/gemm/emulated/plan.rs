//! How a problem is cut: steps of the tensor core, blocks of K, blocks of D.

use std::ops::Range;

use finegrain_cpu::gemm::Promotion;
use finegrain_cpu::tensor_core::{Core, Geometry, Kernel, Side, groups};

use super::super::intervals::{IntervalPart, cut};
use super::super::problem::GemmProblem;
use super::super::tensor_core::{Addend, BlockScales, StepResult, StepRounding, StepSum, TensorCore};
use super::pack::Operand;
use super::rows::Rows;
use crate::error::Result;
use crate::formats::Format;
use crate::parallel::Watch;
use crate::scaled::Granule;
use crate::simd::Isa;

/// Rows and columns of a block of D, at most: its chains and promoted sums take 2 MiB.
const TASK: usize = 512;

/// Bytes that a packed panel of B takes, about: it stays in the first-level cache.
const PANEL_BYTES: usize = 20 << 10;

/// Steps whose operands are packed together.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) steps: Range<usize>,
    pub(super) k: Range<usize>,
    pub(super) words: usize,
    pub(super) groups: usize,
}

/// The tensor core's numbers, as the kernels read them.
fn numbers(core: TensorCore) -> Core {
    let half = core.result() == StepResult::F16;
    let dropped = if half { 0 } else { f32::MANTISSA_DIGITS - 1 - core.result().mantissa_bits() };
    Core {
        fraction_bits: core.fraction_bits(),
        result_mask: u32::MAX << dropped,
        zero: core.zero_exponent() + (f32::MAX_EXP - 1),
        late: core.addend() == Addend::Late,
        half,
    }
}

/// Which kernel computes a problem; `None` if its steps are not these, or if no sum is wide enough for every sum of a step:
/// units of 2^(e_max − F) below 2^22 in f32, below 2^51 in f64.
///
/// A product of significands is below 4, a group of 16 products of E2M1 with its scales below 2^11, the addend
/// below 2; one unit more for each negative term.
pub(super) fn kernel(core: TensorCore, operands: [Format; 2], scaled: bool) -> Option<Kernel> {
    let (f, step) = (core.fraction_bits(), core.step() as u64);
    let fits = |bits: u32, terms: u64, largest: u64| {
        (terms * largest + 2).checked_shl(f).is_some_and(|sum| sum + terms < 1 << bits)
    };
    let rounds = match core.result() {
        StepResult::F16 => StepRounding::NearestEven,
        _ => StepRounding::TowardZero,
    };
    let of_bytes = operands.iter().all(|format| format.spec().bits() <= u8::BITS);
    if core.result().mantissa_bits() == 0 // no room for NaN
        || core.term_rounding() != StepRounding::TowardZero
        || core.result_rounding() != rounds
        || of_bytes != operands.iter().any(|format| format.spec().bits() <= u8::BITS)
    {
        return None;
    }
    match (core.sum(), core.scales()) {
        (StepSum::Floored | StepSum::FlooredInTwo | StepSum::Exact | StepSum::Pairwise, _) => None,
        (StepSum::FusedInTwo, _) => (of_bytes && step <= 64 && fits(51, step, 4)).then_some(Kernel::InTwo),
        (StepSum::Fused, BlockScales::Fp4) if core.addend() == Addend::Late => None,
        (StepSum::Fused, BlockScales::Fp4) => {
            fits(51, step / TensorCore::FP4_GROUP as u64, 1 << 11).then_some(Kernel::Fp4)
        }
        // The scales are constant over a step only if no step goes beyond a block of 32.
        (StepSum::Fused, BlockScales::Mx) if scaled => {
            let within = Granule::MX_1X32.cols().is_multiple_of(core.step());
            (within && fits(51, step, 4)).then_some(Kernel::Offset)
        }
        (StepSum::Fused, BlockScales::None | BlockScales::Mx)
            if !of_bytes || core.result() == StepResult::F16 =>
        {
            fits(51, step, 4).then_some(Kernel::Offset)
        }
        (StepSum::Fused, BlockScales::None | BlockScales::Mx) if fits(22, step, 4) => Some(Kernel::Narrow),
        (StepSum::Fused, BlockScales::None | BlockScales::Mx) => fits(51, step, 4).then_some(Kernel::Wide),
    }
}

/// A problem and how it is cut.
pub(super) struct Plan<'p> {
    pub(super) problem: &'p GemmProblem<'p>,
    pub(super) isa: Isa,
    pub(super) core: Core,
    pub(super) kernel: Kernel,
    pub(super) geometry: Geometry,
    pub(super) promotion: Promotion,
    pub(super) a: Operand<'p>,
    pub(super) b: Operand<'p>,
    /// What was found in the rows of A and of B.
    pub(super) rows: [Rows; 2],
    /// [`Rows::level`], where the kernel relies on it.
    pub(super) levels: Option<[i32; 2]>,
    pub(super) steps: Vec<IntervalPart>,
    pub(super) blocks: Vec<Block>,
    /// Rows and columns of a block of D.
    pub(super) task: (usize, usize),
}

impl<'p> Plan<'p> {
    /// # Errors
    /// None but those of the threads that look at the operands.
    pub(super) fn new(
        problem: &'p GemmProblem<'p>,
        core: TensorCore,
        kernel: Kernel,
        isa: Isa,
    ) -> Result<Self> {
        const SUPPORTED: &str = "the backend asks before it makes a plan";
        let mut rows = [Rows::of(problem.a(), &Watch::NONE)?, Rows::of(problem.b(), &Watch::NONE)?];
        let level = kernel == Kernel::Offset && core.result() != StepResult::F16;
        let levels = if level { Rows::level(&mut rows) } else { None };
        let kernel = if levels.is_some() { Kernel::Wide } else { kernel };
        let geometry = kernel.geometry(isa);
        let steps = cut(problem, 0, core.step());
        // A value and its exponent.
        let kc = PANEL_BYTES / (geometry.nr * (kernel.value_bytes() + 1));
        Ok(Plan {
            problem,
            isa,
            core: numbers(core),
            kernel,
            geometry,
            promotion: problem.accumulation().promotion().into(),
            a: Operand::new(problem.a(), Side::A).expect(SUPPORTED),
            b: Operand::new(problem.b(), Side::B).expect(SUPPORTED),
            blocks: blocks(kernel, &steps, kc),
            steps,
            task: task(problem.m(), problem.n(), geometry.nr),
            rows,
            levels,
        })
    }
}

impl Plan<'_> {
    /// Whether operands have scales in E8M0 that the model applies.
    pub(super) fn is_mx(&self) -> bool {
        self.problem.scales_in_model() && self.kernel != Kernel::Fp4 && self.problem.a().scales().is_some()
    }
}

/// Whole steps of at most `kc` elements together, at least one.
fn blocks(kernel: Kernel, steps: &[IntervalPart], kc: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        match blocks.last_mut() {
            Some(block) if step.k.end - block.k.start <= kc => {
                block.steps.end = i + 1;
                block.k.end = step.k.end;
                block.words += kernel.words(step);
                block.groups += groups(step);
            }
            _ => blocks.push(Block {
                steps: i..i + 1,
                k: step.k.clone(),
                words: kernel.words(step),
                groups: groups(step),
            }),
        }
    }
    blocks
}

/// Blocks of D: small enough that every thread has several.
fn task(m: usize, n: usize, width: usize) -> (usize, usize) {
    let wanted = if crate::parallel::threads() == 1 { 1 } else { 4 * crate::parallel::threads() };
    let row_parts = m.div_ceil(TASK).max(1);
    let col_parts = n.div_ceil(TASK).max(wanted.div_ceil(row_parts));
    let cols = n.div_ceil(col_parts).next_multiple_of(width).max(width);
    let row_parts = row_parts.max(wanted.div_ceil(n.div_ceil(cols).max(1)));
    (m.div_ceil(row_parts).max(1), cols)
}
