//! The arithmetics that are tried.

use std::num::NonZeroUsize;

use super::computed::Computed;
use super::tiles::Parts;
use crate::formats::Format;
use crate::gemm::{Accumulation, Arithmetic, Fold, Model, Promotion, SplitK, StepResult, TensorCore};

/// Promotion intervals beside none and the one that fits, the usual first.
const INTERVALS: [usize; 7] = [128, 32, 64, 256, 512, 1024, 2048];

/// Numbers of parts of K.
const SPLITS: [usize; 21] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 24, 28, 32, 64];

/// Arithmetics without split-K, simplest first: those that the operands, the addend and the format of the result allow.
pub(super) fn whole(parts: &Parts<'_>, d: &Computed<'_>) -> Vec<Accumulation> {
    let fitting = fitting(parts).filter(|n| !INTERVALS.contains(&n.get()));
    let usual = INTERVALS.iter().filter_map(|&n| NonZeroUsize::new(n));
    // An interval of all of K is no promotion, but that an addend then comes last.
    let is_other = |n: &NonZeroUsize| n.get() < parts.k() || parts.have_addend() && n.get() == INTERVALS[0];
    let shorter = usual.chain(fitting).filter(is_other);
    let intervals: Vec<Option<NonZeroUsize>> = [None].into_iter().chain(shorter.map(Some)).collect();
    // Whether scales fold depends on the operands alone, and is dear to ask where they do not.
    let folded = Accumulation::new(Model::F32).with_fold(Fold::Scales);
    let scaled = parts.problems().any(|p| p.a().scales().is_some() || p.b().scales().is_some());
    let folds = [Some(Fold::Nothing), (scaled && takes(parts, folded)).then_some(Fold::Scales)];
    let mut all = Vec::new();
    for (f, fold) in folds.into_iter().flatten().enumerate() {
        for model in models(parts, d, fold) {
            for (i, &interval) in intervals.iter().enumerate() {
                for (o, &order) in Promotion::ALL.iter().enumerate() {
                    let accumulation = Accumulation::new(model).with_interval(interval).with_promotion(order);
                    let accumulation = accumulation.with_fold(fold);
                    if is_new(parts, accumulation) && takes(parts, accumulation) {
                        // No promotion and the usual interval are as simple as each other.
                        all.push(((f, o, i.saturating_sub(1)), accumulation));
                    }
                }
            }
        }
    }
    all.sort_by_key(|(simplicity, _)| *simplicity);
    all.into_iter().map(|(_, accumulation)| accumulation).collect()
}

/// Those of `whole` with K in equal parts, fewest parts first: only as many as make parts of their own.
pub(super) fn split(parts: &Parts<'_>, whole: &[Accumulation]) -> Vec<Accumulation> {
    let mut all = Vec::new();
    for count in SPLITS {
        let split = SplitK::equal(count).expect("no number of parts is 0");
        for accumulation in whole {
            let ranges = split.ranges(parts.k(), accumulation.split_unit());
            let accumulation = accumulation.with_split_k(split);
            if ranges.is_ok_and(|ranges| ranges.len() == count) && takes(parts, accumulation) {
                all.push(accumulation);
            }
        }
    }
    all
}

/// Models that may have multiplied the operands, or what they are with scales folded in. F32 is read by TF32 cores alone.
fn models(parts: &Parts<'_>, d: &Computed<'_>, fold: Fold) -> Vec<Model> {
    let is_f32 = parts.problems().any(|p| [p.a(), p.b()].iter().any(|x| x.format() == Format::F32));
    let simple = [Model::F32, Model::Exact].into_iter().filter(|_| !is_f32);
    let in_f16 = |core: &TensorCore| format!("{}:result=f16", core.name()).parse::<TensorCore>().ok();
    let halves: Vec<TensorCore> = match d {
        Computed::F16(_) if parts.addend_is_half() => TensorCore::ALL.iter().filter_map(in_f16).collect(),
        Computed::F16(_) | Computed::F32(_) | Computed::Bf16(_) => Vec::new(),
    };
    let formats: Vec<Format> = match fold {
        Fold::Nothing => parts.problems().flat_map(|p| [p.a().format(), p.b().format()]).collect(),
        Fold::Scales => vec![Format::Bf16],
    };
    let reads = |core: &TensorCore| formats.iter().all(|format| core.operands().contains(format));
    let is_single = |core: &TensorCore| core.result() != StepResult::F16;
    let mut cores: Vec<TensorCore> = Vec::new();
    for core in TensorCore::ALL.iter().copied().filter(is_single).chain(halves) {
        // Several generations have one arithmetic: the first has its name.
        if !cores.iter().any(|known| known.computes_as(core) && reads(known)) && reads(&core) {
            cores.push(core);
        }
    }
    simple.chain(cores.into_iter().map(Model::TensorCore)).collect()
}

/// Whether an order gives something of its own: without scales outside the model all are sums of partial sums, and without
/// promotion both orders that begin with the partial sum multiply the scales of the sum in turn.
fn is_new(parts: &Parts<'_>, accumulation: Accumulation) -> bool {
    // Scales that the model applies, or that are part of the operands, are not promoted with.
    let in_model = accumulation.model().takes_block_scales() || accumulation.fold() == Fold::Scales;
    let scaled = parts.problems().any(|p| {
        let blocks = p.a().scales().is_some() || p.b().scales().is_some();
        blocks && !in_model || p.tensor_scale().is_some()
    });
    match (accumulation.promotion(), accumulation.interval()) {
        (Promotion::ScalesFirst, _) => true,
        (Promotion::Unfused, None) => false,
        // An addend then comes last.
        (Promotion::ScalesLast, None) => scaled || parts.have_addend(),
        (Promotion::PartialFirst | Promotion::ScalesLast | Promotion::Unfused, _) => scaled,
    }
}

/// Whether every product is legal in an arithmetic.
fn takes(parts: &Parts<'_>, accumulation: Accumulation) -> bool {
    parts.problems().all(|p| p.with_accumulation(accumulation).is_ok())
}

/// The interval that fits the operands.
fn fitting(parts: &Parts<'_>) -> Option<NonZeroUsize> {
    let fitted =
        |p: &crate::gemm::GemmProblem<'_>| p.fitted(&Arithmetic::Fitting(Model::F32)).ok()?.interval();
    parts.problems().filter_map(fitted).min()
}
