//! How a problem is cut: steps of the tensor core, blocks of K, blocks of D.

use std::ops::Range;

use finegrain_cpu::gemm::Promotion;
use finegrain_cpu::tensor_core::{Core, Geometry, Kernel, Side, groups, words};

use super::super::intervals::{IntervalPart, cut};
use super::super::problem::GemmProblem;
use super::super::tensor_core::{Addend, BlockScales, StepSum, TensorCore};
use super::pack::Operand;
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
    let dropped = f32::MANTISSA_DIGITS - 1 - result_bits(core);
    Core {
        fraction_bits: core.fraction_bits(),
        result_mask: u32::MAX << dropped,
        zero: core.zero_exponent() + (f32::MAX_EXP - 1),
        late: core.addend() == Addend::Late,
    }
}

/// Fraction bits of the result.
fn result_bits(core: TensorCore) -> u32 {
    core.result().mantissa_bits()
}

/// Which kernel computes a problem; `None` if no sum is wide enough for every sum of a step: units of 2^(e_max − F) below
/// 2^22 in f32, below 2^51 in f64.
///
/// A product of significands is below 4, a group of 16 products of E2M1 with its scales below 2^11, the addend
/// below 2; one unit more for each negative term.
pub(super) fn kernel(core: TensorCore, scaled: bool) -> Option<Kernel> {
    let (f, step) = (core.fraction_bits(), core.step() as u64);
    let fits = |bits: u32, terms: u64, largest: u64| {
        (terms * largest + 2).checked_shl(f).is_some_and(|sum| sum + terms < 1 << bits)
    };
    if core.sum() != StepSum::Fused || result_bits(core) == 0 || !core.truncates() {
        return None; // no room for NaN
    }
    match core.scales() {
        BlockScales::Fp4 if core.addend() == Addend::Late => None,
        BlockScales::Fp4 => fits(51, step / TensorCore::FP4_GROUP as u64, 1 << 11).then_some(Kernel::Fp4),
        // The scales are constant over a step only if no step goes beyond a block of 32.
        BlockScales::Mx if scaled => {
            let within = Granule::MX_1X32.cols().is_multiple_of(core.step());
            (within && fits(51, step, 4)).then_some(Kernel::Mx)
        }
        _ if fits(22, step, 4) => Some(Kernel::Narrow),
        _ => fits(51, step, 4).then_some(Kernel::Wide),
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
    pub(super) steps: Vec<IntervalPart>,
    pub(super) blocks: Vec<Block>,
    /// Rows and columns of a block of D.
    pub(super) task: (usize, usize),
}

impl<'p> Plan<'p> {
    pub(super) fn new(problem: &'p GemmProblem<'p>, core: TensorCore, kernel: Kernel, isa: Isa) -> Self {
        const SUPPORTED: &str = "the backend asks before it makes a plan";
        let geometry = kernel.geometry(isa);
        let steps = cut(problem, 0, core.step());
        // A value and its exponent.
        let kc = PANEL_BYTES / (geometry.nr * (kernel.value_bytes() + 1));
        Plan {
            problem,
            isa,
            core: numbers(core),
            kernel,
            geometry,
            promotion: problem.accumulation().promotion().into(),
            a: Operand::new(problem.a(), Side::A).expect(SUPPORTED),
            b: Operand::new(problem.b(), Side::B).expect(SUPPORTED),
            blocks: blocks(&steps, kc),
            steps,
            task: task(problem.m(), problem.n(), geometry.nr),
        }
    }
}

/// Whole steps of at most `kc` elements together, at least one.
fn blocks(steps: &[IntervalPart], kc: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        match blocks.last_mut() {
            Some(block) if step.k.end - block.k.start <= kc => {
                block.steps.end = i + 1;
                block.k.end = step.k.end;
                block.words += words(step);
                block.groups += groups(step);
            }
            _ => blocks.push(Block {
                steps: i..i + 1,
                k: step.k.clone(),
                words: words(step),
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
