//! What an engine promises beside the bits: plans that say what runs, progress that adds up, an end when one is asked for.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::operands::scaled;
use crate::common::runner::{Candidate, hostile, on_cpu};
use finegrain::Engine;
use finegrain::error::{Error, Result};
use finegrain::formats::{Format, Overflow, Rounding, TensorRounding};
use finegrain::gemm::{Accumulation, GemmProblem, GroupedProblem};
use finegrain::matrix::Matrix;
use finegrain::parallel::Cancellation;
use finegrain::quant::{Caster, Recipe, Role};
use finegrain::scaled::Granule;
use finegrain::simd::Isa;

type Operation = fn(&Engine<'_>) -> Result<()>;

/// Every operation on about 100 × 300 elements, and what it tells of its progress.
fn operations() -> [(&'static str, u64, Operation); 10] {
    const ROWS: usize = 100;
    const COLS: usize = 300;
    const ELEMENTS: u64 = (ROWS * COLS) as u64;
    const PRODUCT: u64 = (ROWS * 40 * COLS) as u64;
    fn x() -> Matrix<f32> {
        hostile(ROWS, COLS, 3)
    }
    fn nearest() -> TensorRounding {
        TensorRounding::Fixed(Rounding::NearestEven)
    }
    let quantize: Operation = |e| e.quantize(x().view(), &Recipe::DEEPSEEK_V3, Role::Activation).map(drop);
    let transposed: Operation = |e| e.quantize(x().view(), &Recipe::DEEPSEEK_V3, Role::Transposed).map(drop);
    let per_tensor: Operation = |e| e.quantize(x().view(), &Recipe::TE_CURRENT, Role::Weight).map(drop);
    let requantize: Operation = |e| {
        let q = scaled(Format::E4M3, ROWS, COLS, Granule::TILE_1X128, 1);
        e.requantize_transposed(q.view(), &Recipe::DEEPSEEK_V3).map(drop)
    };
    let swiglu: Operation = |e| e.swiglu_quantize(x().view(), x().view(), &Recipe::DEEPSEEK_V3).map(drop);
    let dequantize: Operation =
        |e| e.dequantize(scaled(Format::E4M3, ROWS, COLS, Granule::BLOCK_128X128, 1).view()).map(drop);
    let cast: Operation = |e| {
        let caster = Caster::new(Format::E5M2, nearest(), Overflow::Saturate);
        e.cast_bytes(&caster, x().as_slice(), &mut [0; ROWS * COLS]).map(drop)
    };
    let words: Operation = |e| {
        let caster = Caster::new(Format::E5M6, nearest(), Overflow::Saturate);
        e.cast_words(&caster, x().as_slice(), &mut [0; ROWS * COLS]).map(drop)
    };
    let gemm: Operation = |e| {
        let a = scaled(Format::E4M3, ROWS, COLS, Granule::TILE_1X128, 1);
        let b = scaled(Format::E4M3, 40, COLS, Granule::BLOCK_128X128, 2);
        let problem = GemmProblem::nt(a.view(), b.view())?;
        e.gemm(&problem.with_accumulation(Accumulation::HOPPER.promote_every(128)?)?).map(drop)
    };
    let grouped: Operation = |e| {
        let a = scaled(Format::E4M3, ROWS, COLS, Granule::TILE_1X128, 1);
        let b = [2, 3].map(|seed| scaled(Format::E4M3, 40, COLS, Granule::BLOCK_128X128, seed));
        let owners: Vec<i32> = (0..ROWS as i32).map(|i| i / 60).collect();
        let experts = [b[0].view(), b[1].view()];
        e.gemm(&GroupedProblem::contiguous(a.view(), &owners, &experts)?).map(drop)
    };
    [
        ("quantize", ELEMENTS, quantize),
        ("transposed", ELEMENTS, transposed),
        ("per tensor", ELEMENTS, per_tensor),
        ("requantize", ELEMENTS, requantize),
        ("swiglu", ELEMENTS, swiglu),
        ("dequantize", ELEMENTS, dequantize),
        ("cast", ELEMENTS, cast),
        ("words", ELEMENTS, words),
        ("gemm", PRODUCT, gemm),
        ("grouped", PRODUCT, grouped),
    ]
}

fn engines() -> Vec<Candidate> {
    let reference = Candidate::new("reference", Engine::reference());
    [reference].into_iter().chain(on_cpu("cpu")).collect()
}

#[test]
fn progress_adds_up() {
    for Candidate { name, engine } in engines() {
        for (what, units, run) in operations() {
            let done = AtomicU64::new(0);
            let count = |n| {
                done.fetch_add(n, Ordering::Relaxed);
            };
            run(&engine.clone().with_progress(&count)).unwrap();
            assert_eq!(done.into_inner(), units, "{what} on {name}");
        }
    }
}

#[test]
fn what_is_cancelled_ends() {
    let cancellation = Cancellation::new();
    for Candidate { name, engine } in engines() {
        let engine = engine.with_cancellation(&cancellation);
        for (what, _, run) in operations() {
            assert!(run(&engine).is_ok(), "{what} on {name}");
        }
    }
    cancellation.request();
    for Candidate { name, engine } in engines() {
        let engine = engine.with_cancellation(&cancellation);
        for (what, _, run) in operations() {
            assert!(matches!(run(&engine), Err(Error::Cancelled)), "{what} on {name}");
        }
    }
}

#[test]
fn plans_say_what_runs() {
    let engine = Engine::cpu().on(Isa::Scalar).unwrap();
    let a = scaled(Format::E4M3, 64, 256, Granule::TILE_1X128, 1);
    let problem = GemmProblem::nt(a.view(), a.view()).unwrap();
    let plan = engine.plan_gemm(&problem).unwrap();
    assert!(plan.to_string().starts_with("blocked on scalar: microtiles of "), "{plan}");
    assert_eq!((plan.backend(), plan.isa()), ("blocked", Some(Isa::Scalar)));
    assert_eq!(plan.run().unwrap(), Engine::reference().gemm(&problem).unwrap());
    let hopper = problem.with_accumulation(Accumulation::HOPPER.promote_every(128).unwrap()).unwrap();
    assert!(engine.plan_gemm(&hopper).unwrap().to_string().starts_with("emulated on scalar: "));
    let exact = problem.with_accumulation(Accumulation::EXACT).unwrap();
    assert_eq!(engine.plan_gemm(&exact).unwrap().to_string(), "reference: one element of D after the other");
    let blocked = Engine::by_name("blocked").unwrap();
    let refusal = blocked.plan_gemm(&exact).unwrap_err().to_string();
    assert!(refusal.contains("sums in f32, not as exact"), "{refusal}");

    let owners: Vec<i32> = (0..64).map(|i| i / 32).collect();
    let grouped = GroupedProblem::contiguous(a.view(), &owners, &[a.view(), a.view()]).unwrap();
    let plan = engine.plan_gemm(&grouped).unwrap().to_string();
    assert!(plan.starts_with("2 groups, one after the other\n  from row 0: blocked on scalar"), "{plan}");

    let x = hostile(4, 300, 1);
    let plan = engine.plan_quantize(x.view(), &Recipe::DEEPSEEK_V3, Role::Weight).unwrap();
    assert_eq!(plan.to_string(), "quantize 4×300 as weight by deepseek-v3: registers of scalar");
    let plan = engine.plan_swiglu_quantize(x.view(), x.view(), &Recipe::TE).unwrap();
    assert_eq!(
        plan.to_string(),
        format!("quantize SwiGLU of 4×300 by {}: registers of scalar", Recipe::TE.name)
    );
    let mut out = Matrix::filled(64, 256, 0.0f32);
    let plan = engine.plan_dequantize(a.view(), out.view_mut()).unwrap();
    assert_eq!(plan.to_string(), "dequantize 64×256 of e4m3: registers of scalar");
}

#[test]
fn engines_are_what_they_were_asked_to_be() {
    for name in Engine::NAMES {
        match Engine::by_name(name) {
            Ok(engine) => assert_eq!(engine.name(), *name),
            Err(why) => assert!(matches!(why, Error::Unsupported(_)) && *name == "cuda", "{name}: {why}"),
        }
    }
    let engine = Engine::cpu().on(Isa::Scalar).unwrap().with_threads(NonZeroUsize::new(3).unwrap()).unwrap();
    assert_eq!(engine.to_string(), "cpu on scalar, 3 threads");
    assert_eq!(engine.threads(), 3);
    let refusal = Engine::reference().on(Isa::Scalar).unwrap_err().to_string();
    assert_eq!(refusal, "engine reference does not run on scalar");
    let many = Engine::cpu().with_threads(NonZeroUsize::MAX).unwrap_err().to_string();
    assert!(many.contains("expected at most"), "{many}");
}

/// On a CPU too what is kept is an operand like any other.
#[test]
fn residents_are_operands() {
    let engine = Engine::cpu();
    let (a, b) = (
        scaled(Format::E4M3, 40, 300, Granule::TILE_1X128, 1),
        scaled(Format::E4M3, 50, 300, Granule::BLOCK_128X128, 2),
    );
    let known = GemmProblem::nt(a.view(), b.view()).unwrap().run().unwrap();
    let kept = engine.upload(b.view()).unwrap();
    drop(engine);
    assert_eq!((kept.shape(), kept.format(), &kept.download().unwrap()), ((50, 300), Format::E4M3, &b));
    for _ in 0..2 {
        assert_eq!(GemmProblem::nt(a.view(), kept.view()).unwrap().run().unwrap(), known);
    }
    let part = GemmProblem::nt(a.view(), kept.view().row_range(7, 30)).unwrap().run().unwrap();
    assert_eq!(part.row(3), &known.row(3)[7..30]);
    let refusal = Engine::cpu().upload(b.view().row_range(7, 30)).unwrap_err().to_string();
    assert!(refusal.contains("from row 7 of a granule"), "{refusal}");
}
