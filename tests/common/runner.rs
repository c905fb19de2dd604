//! The runner: every operation of an engine held to the reference, bit for bit.
//!
//! What is tried is a list of [`Candidate`]s. A backend of this CPU is plugged in by its name ([`on_cpu`]), anything else
//! by `vec![Candidate::new("name", engine)]`; each function below then runs one operation on all of them and counts those
//! that did not refuse it.

use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use finegrain::Engine;
use finegrain::engine::Product;
use finegrain::error::Error;
use finegrain::formats::Format;
use finegrain::gemm::Output;
use finegrain::matrix::{MatMut, MatRef, Matrix};
use finegrain::quant::{CastStats, Caster, Element, QuantStats, Quantized, Recipe, Role};
use finegrain::scaled::{Codes, ScaleGrid, ScaledRef};
use half::bf16;

use super::isas::available;
use super::operands::Random;

/// An engine under test.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) engine: Engine<'static>,
}

impl Candidate {
    pub(crate) fn new(name: &str, engine: Engine<'static>) -> Candidate {
        Candidate { name: name.to_owned(), engine }
    }
}

/// The engine of this name on every instruction set, on one thread and on three. Made once: threads are not started for
/// every comparison.
pub(crate) fn on_cpu(name: &'static str) -> Vec<Candidate> {
    static MADE: Mutex<Vec<(&str, Vec<Candidate>)>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, candidates)) = made.iter().find(|(n, _)| *n == name) {
        return candidates.clone();
    }
    let mut candidates = Vec::new();
    for isa in available() {
        for threads in [1, 3] {
            let engine = Engine::by_name(name).unwrap().on(isa).unwrap();
            let engine = engine.with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
            candidates.push(Candidate::new(&engine.to_string(), engine));
        }
    }
    made.push((name, candidates.clone()));
    candidates
}

/// What an engine gave, or `None` where it refuses with a sentence.
fn unless_refused<R>(what: &str, outcome: finegrain::Result<R>) -> Option<R> {
    match outcome {
        Ok(result) => Some(result),
        Err(Error::Unsupported(why)) => {
            assert!(!why.is_empty() && !why.contains('\n'), "{what}: {why}");
            None
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

/// Equal, or where not.
fn same<T: PartialEq + std::fmt::LowerHex>(what: &str, kind: &str, cols: usize, got: &[T], want: &[T]) {
    assert_eq!(got.len(), want.len(), "{what}: number of {kind}");
    if let Some(at) = got.iter().zip(want).position(|(a, b)| a != b) {
        let (i, j) = (at / cols.max(1), at % cols.max(1));
        panic!("{what}: {kind} ({i}, {j}) is {:x}, the reference says {:x}", got[at], want[at]);
    }
}

fn f32_bits(x: &Matrix<f32>) -> Vec<u32> {
    x.as_slice().iter().map(|v| v.to_bits()).collect()
}

fn bf16_bits(x: &Matrix<bf16>) -> Vec<u16> {
    x.as_slice().iter().map(|v| v.to_bits()).collect()
}

/// Values that quantisers meet seldom: whole granules of zeros of both signs, of subnormals, of huge and of tiny numbers,
/// infinities and NaN, and here and there one of them among ordinary ones.
pub(crate) fn hostile(rows: usize, cols: usize, seed: u64) -> Matrix<f32> {
    let mut random = Random(seed | 1);
    Matrix::from_fn(rows, cols, |i, j| {
        let ordinary = random.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
        let choice = random.below(1 << 16) as u32;
        match (i / 3 + j / 128 + seed as usize) % 9 {
            0 => 0.0f32.copysign(ordinary),
            1 => ordinary * 1e-39,
            2 => ordinary * f32::MAX,
            3 => f32::from_bits(choice & 7).copysign(ordinary),
            4 => ordinary * 2f32.powi(choice as i32 % 40 - 20),
            5 if choice < 600 => f32::NAN.copysign(ordinary),
            6 if choice < 600 => f32::INFINITY.copysign(ordinary),
            7 if choice < 900 => [f32::NAN, f32::INFINITY, 448.0][choice as usize % 3],
            _ => ordinary,
        }
    })
}

/// D of a dense or grouped product in both output formats.
pub(crate) fn gemm<'p>(candidates: &[Candidate], what: &str, product: impl Into<Product<'p>>) -> usize {
    let product = product.into();
    let (rows, cols) = product.output_shape();
    let reference = Engine::reference();
    let (wide, narrow) = (reference.gemm(product).unwrap(), reference.gemm_bf16(product).unwrap());
    let mut ran = 0;
    for Candidate { name, engine } in candidates {
        let what = format!("{what} on {name}");
        let Some(plan) = unless_refused(&what, engine.plan_gemm(product)) else { continue };
        // Whatever was there before must not show.
        let mut d = Matrix::filled(rows, cols, f32::NAN);
        plan.run_into(Output::F32(d.view_mut())).unwrap();
        same(&what, "D", cols, &f32_bits(&d), &f32_bits(&wide));
        let mut d = Matrix::filled(rows, cols, bf16::NAN);
        plan.run_into(Output::Bf16(d.view_mut())).unwrap();
        same(&what, "D in bf16", cols, &bf16_bits(&d), &bf16_bits(&narrow));
        assert!(!plan.to_string().is_empty() && !plan.backend().is_empty());
        ran += 1;
    }
    ran
}

/// What is compared of a quantised matrix.
type Parts = (Vec<u16>, Vec<u32>, u32, QuantStats);

/// Codes and scales as bits, the tensor scale, and the statistics. The bits of a NaN are not defined for codes and scales:
/// processors differ in the sign of the NaN that 0/0 gives.
fn parts(q: &Quantized) -> Parts {
    let format = q.matrix.format();
    let code = |c: u16| if format.decode_f32(c).is_nan() { c | format.spec().sign_mask() as u16 } else { c };
    let codes = match q.matrix.codes() {
        Codes::Bytes(m) => m.as_slice().iter().map(|&c| code(u16::from(c))).collect(),
        Codes::Words(m) => m.as_slice().iter().map(|&c| code(c)).collect(),
        Codes::Dwords(_) => unreachable!("recipes' codes have at most 16 bits"),
    };
    let scales = q.matrix.scales().unwrap();
    let canonical = |s: &f32| if s.is_nan() { f32::NAN.to_bits() } else { s.to_bits() };
    let grid = match &scales.grid {
        ScaleGrid::F32(m) => m.as_slice().iter().map(canonical).collect(),
        ScaleGrid::E8M0(m) | ScaleGrid::E4M3(m) => m.as_slice().iter().map(|&s| u32::from(s)).collect(),
    };
    (codes, grid, canonical(&scales.tensor), q.stats)
}

fn same_quantized(what: &str, got: &Quantized, want: &Quantized) {
    assert_eq!(got.matrix.shape(), want.matrix.shape(), "{what}: shape");
    let granule = |q: &Quantized| q.matrix.scales().map(|s| (s.granule, s.grid.view().shape()));
    assert_eq!(granule(got), granule(want), "{what}: granules");
    let ((_, cols), (_, grid_cols)) = (got.matrix.shape(), granule(got).unwrap().1);
    let (got, want) = (parts(got), parts(want));
    same(what, "scale", grid_cols, &got.1, &want.1);
    same(what, "code", cols, &got.0, &want.0);
    assert_eq!((got.2, got.3), (want.2, want.3), "{what}: tensor scale and statistics");
}

/// One operation that gives a quantised matrix.
fn quantized(
    candidates: &[Candidate],
    what: &str,
    run: impl Fn(&Engine<'static>) -> finegrain::Result<Quantized>,
) -> usize {
    let want = run(&Engine::reference()).unwrap();
    let mut ran = 0;
    for Candidate { name, engine } in candidates {
        let what = format!("{what} on {name}");
        let Some(got) = unless_refused(&what, run(engine)) else { continue };
        same_quantized(&what, &got, &want);
        ran += 1;
    }
    ran
}

/// Codes, scales and statistics of a matrix in a role, also into memory that held another result.
pub(crate) fn quantize<T: Element>(
    candidates: &[Candidate],
    what: &str,
    x: MatRef<'_, T>,
    recipe: &Recipe,
    role: Role,
) -> usize {
    let what = format!("{what}, {} {role:?}", recipe.name);
    quantized(candidates, &what, |engine| engine.quantize(x, recipe, role))
}

/// The transpose of a quantised matrix, grouped anew.
pub(crate) fn requantize(candidates: &[Candidate], what: &str, x: ScaledRef<'_>, recipe: &Recipe) -> usize {
    let what = format!("{what}, {}", recipe.name);
    quantized(candidates, &what, |engine| engine.requantize_transposed(x, recipe))
}

/// silu(gate) · up, quantised.
pub(crate) fn swiglu<T: Element>(
    candidates: &[Candidate],
    what: &str,
    gate: MatRef<'_, T>,
    up: MatRef<'_, T>,
    recipe: &Recipe,
) -> usize {
    let what = format!("{what}, {}", recipe.name);
    quantized(candidates, &what, |engine| engine.swiglu_quantize(gate, up, recipe))
}

/// All values in f32 and bf16, into rows that lie apart: what lies between them stays.
pub(crate) fn dequantize(candidates: &[Candidate], what: &str, x: ScaledRef<'_>) -> usize {
    fn one<T: finegrain::element::Output + PartialEq + Debug>(
        Candidate { name, engine }: &Candidate,
        what: &str,
        x: ScaledRef<'_>,
        bits: fn(&T) -> u32,
    ) -> bool {
        let ((rows, cols), beside) = (x.shape(), T::from_f32(-7.0));
        let stride = cols + 3;
        let mut out = vec![beside; rows * stride];
        let whole = MatMut::new(&mut out, rows, stride).unwrap();
        let outcome = engine.dequantize_into(x, whole.col_range(0, cols));
        if unless_refused(what, outcome).is_none() {
            return false;
        }
        let expected = x.dequantize_reference::<T>();
        for (i, row) in out.chunks_exact(stride).enumerate() {
            for (j, v) in row.iter().enumerate() {
                let want = if j < cols { expected.row(i)[j] } else { beside };
                assert_eq!(bits(v), bits(&want), "{what} on {name}, ({i}, {j})");
            }
        }
        true
    }
    let both = |candidate: &&Candidate| {
        one::<f32>(candidate, what, x, |v| v.to_bits())
            & one::<bf16>(candidate, what, x, |v| u32::from(v.to_bits()))
    };
    candidates.iter().filter(both).count()
}

/// The codes of a cast and what happened.
pub(crate) fn cast_on<T: Element>(
    engine: &Engine<'_>,
    caster: &Caster,
    x: &[T],
    wide: bool,
) -> finegrain::Result<(Vec<u16>, CastStats)> {
    // What was there before must not show.
    let (mut bytes, mut words) = (vec![0xA5u8; x.len()], vec![0xA5A5u16; x.len()]);
    if wide {
        let stats = engine.cast_words(caster, x, &mut words)?;
        return Ok((words, stats));
    }
    let stats = engine.cast_bytes(caster, x, &mut bytes)?;
    Ok((bytes.into_iter().map(u16::from).collect(), stats))
}

/// Codes and statistics of a cast to `format`, which `caster` casts to.
pub(crate) fn cast<T: Element>(
    candidates: &[Candidate],
    what: &str,
    (caster, format): (&Caster, Format),
    x: &[T],
    show: fn(&T) -> u32,
) -> usize {
    let wide = format.spec().bits() > 8;
    let (codes, stats) = cast_on(&Engine::reference(), caster, x, wide).unwrap();
    let mut ran = 0;
    for Candidate { name, engine } in candidates {
        let what = format!("{what} on {name}");
        let Some((got, counted)) = unless_refused(&what, cast_on(engine, caster, x, wide)) else { continue };
        if let Some(i) = got.iter().zip(&codes).position(|(a, b)| a != b) {
            panic!("{what}: {:08x} gives {:x}, the reference says {:x}", show(&x[i]), got[i], codes[i]);
        }
        assert_eq!(counted, stats, "{what}");
        ran += 1;
    }
    ran
}
