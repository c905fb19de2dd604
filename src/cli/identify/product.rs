//! The arithmetic of a product.

use half::{bf16, f16};

use super::Args;
use crate::accuracy::identify::{Computed, Identification, Match, identify};
use crate::checkpoint::{Checkpoint, Dtype, Tensor};
use crate::cli::arithmetic::options;
use crate::cli::output::{Table, measured, print, print_json};
use crate::cli::product::{Problem, read_groups};
use crate::cli::progress::Progress;
use crate::cli::{Failure, Outcome, interrupt, notes};
use crate::formats::Format;
use crate::gemm::{Accumulation, Arithmetic, LibraryCall, Model, TensorCore};
use crate::matrix::Matrix;
use crate::scaled::Granule;

/// A result as a file holds it.
enum Given {
    F32(Matrix<f32>),
    Bf16(Matrix<bf16>),
    F16(Matrix<f16>),
}

pub(super) fn run(args: &Args, json: bool) -> Outcome {
    let file = Checkpoint::open(&args.r#in)?;
    notes::refuse_folder(&file, "identify")?;
    let (a, b) = args.operands.read(&file)?;
    let c = if file.contains("c") { Some(addend(&file)?) } else { None };
    let groups = read_groups(&file, args.grouped)?;
    let blame_file = |e: crate::Error| crate::Error::file(&args.r#in, e);
    let problem = Problem::new((&a, &b), groups.as_deref(), args.grouped);
    let problem = problem.and_then(|problem| problem.with_addend(c.as_ref())).map_err(blame_file)?;
    let tensor = file.read("d")?;
    let shape = problem.shape();
    if tensor.shape() != shape {
        return Err(file.blame("d", format!("shape {:?}, the product is {shape:?}", tensor.shape())).into());
    }
    let given = Given::new(&file, &tensor, problem.product().output_shape())?;

    let progress = Progress::multiply_adds(problem.product().multiply_adds());
    let report = |done| progress.advance(done);
    let engine = interrupt::watched(args.engine()?, &report);
    let found = identify(problem.product(), given.view(), args.extent(), &engine);
    let found = found.map_err(|e| file.blame("d", e))?;
    drop(progress);

    let (granule_a, granule_b) = problem.granules();
    let formats = [a.format(), b.format()];
    if json {
        print_json(&serde_json::json!({
            "op": "identify",
            "input": args.r#in.display().to_string(),
            "shape": shape,
            "dtype": tensor.dtype().to_string(),
            "a": a.describe(granule_a),
            "b": b.describe(granule_b),
            "matches": found.matches.iter().map(|m| as_json(m, &problem, &formats)).collect::<Vec<_>>(),
            "exact": found.exact,
            "tried": found.tried,
            "undecided": found.undecided,
            "differences": found.differences.as_ref().map(|d| serde_json::json!({
                "rows": d.rows, "columns": d.cols, "tiles": d.tiles,
                "first": d.first.iter().map(|e| serde_json::json!({
                    "row": e.row, "column": e.col, "given": e.given.to_string(),
                    "expected": e.expected.to_string(), "ulps": e.ulps,
                })).collect::<Vec<_>>(),
            })),
            "hints": found.hints,
            "padding": found.padding,
        }))?;
    } else {
        print(&text(&found, &problem, &formats))?;
    }
    if found.is_exact() { Ok(()) } else { Err(Failure::Findings) }
}

/// c, in F32 or as an accumulator in f16 starts with it.
fn addend(file: &Checkpoint) -> crate::Result<Matrix<f32>> {
    let c = file.read("c")?;
    match c.dtype() {
        Dtype::F32 | Dtype::F16 => c.to_matrix().map_err(|e| file.blame("c", e)),
        other => Err(file.blame("c", format!("dtype {other}, expected F32 or F16"))),
    }
}

impl Given {
    fn new(file: &Checkpoint, d: &Tensor, (rows, cols): (usize, usize)) -> crate::Result<Self> {
        let words = || d.data().as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
        match d.dtype() {
            Dtype::F32 => Matrix::from_vec(rows, cols, d.to_f32()?).map(Given::F32),
            Dtype::BF16 => {
                Matrix::from_vec(rows, cols, words().map(bf16::from_bits).collect()).map(Given::Bf16)
            }
            Dtype::F16 => Matrix::from_vec(rows, cols, words().map(f16::from_bits).collect()).map(Given::F16),
            other => Err(file.blame("d", format!("dtype {other}, expected F32, BF16 or F16"))),
        }
    }

    fn view(&self) -> Computed<'_> {
        match self {
            Given::F32(m) => Computed::F32(m.view()),
            Given::Bf16(m) => Computed::Bf16(m.view()),
            Given::F16(m) => Computed::F16(m.view()),
        }
    }
}

/// Other tensor cores with the same arithmetic that multiply the operands' formats.
fn also(accumulation: Accumulation, formats: &[Format]) -> Vec<&'static str> {
    let Model::TensorCore(core) = accumulation.model() else { return Vec::new() };
    let takes = |other: &&TensorCore| {
        let reads = formats.iter().all(|format| other.operands().contains(format));
        reads && other.name() != core.name() && core.computes_as(**other)
    };
    TensorCore::ALL.iter().filter(takes).map(TensorCore::name).collect()
}

/// The calls of libraries that compute an arithmetic of operands with these granules.
fn calls(accumulation: Accumulation, problem: &Problem<'_>) -> Vec<&'static str> {
    let granules: (Option<Granule>, Option<Granule>) = problem.granules();
    let split = accumulation.split_k();
    let is_it = |call: &&'static LibraryCall| {
        let recorded = call.granules().iter().any(|&(a, b)| granules == (Some(a), Some(b)));
        let fitted = problem.fitted(&Arithmetic::Library(call, split));
        recorded && fitted.is_ok_and(|fitted| fitted == accumulation)
    };
    LibraryCall::ALL.iter().filter(is_it).map(LibraryCall::name).collect()
}

fn as_json(m: &Match, problem: &Problem<'_>, formats: &[Format]) -> serde_json::Value {
    serde_json::json!({
        "options": options(m.accumulation),
        "accumulation": m.accumulation.to_string(),
        "calls": calls(m.accumulation, problem),
        "also": also(m.accumulation, formats),
        "differ": m.differ,
        "of": m.of,
        "max_ulps": m.max_ulps,
    })
}

fn text(found: &Identification, problem: &Problem<'_>, formats: &[Format]) -> String {
    let (some, all) = (found.matches.len(), found.exact);
    let mut text = match (all, found.tried) {
        (0, tried) => format!("none of {tried} arithmetics gives every bit of d; the nearest:\n"),
        (1, tried) => format!("every bit of d is that of one arithmetic ({tried} tried):\n"),
        (all, tried) if some == all => {
            format!("every bit of d is that of {all} arithmetics ({tried} tried):\n")
        }
        (all, tried) => {
            format!("every bit of d is that of {all} arithmetics ({tried} tried), the simplest:\n")
        }
    };
    let mut table = Table::new(&["<options", "differ", "of", "ulps", "<also"]);
    for m in &found.matches {
        let names = [calls(m.accumulation, problem), also(m.accumulation, formats)].concat().join(", ");
        table.row([
            options(m.accumulation).join(" "),
            m.differ.to_string(),
            m.of.to_string(),
            m.max_ulps.to_string(),
            names,
        ]);
    }
    text += &table.render();
    if let Some(differences) = &found.differences {
        let [rows, cols, tiles] = [differences.rows, differences.cols, differences.tiles];
        text += &format!(
            "\nthe nearest differs in {} of {} rows, {} of {} columns, {} of {} tiles of 128x128\n",
            rows[0], rows[1], cols[0], cols[1], tiles[0], tiles[1]
        );
        let mut table = Table::new(&["row", "column", "d", "nearest", "ulps"]);
        for e in &differences.first {
            let [given, expected] = [e.given, e.expected].map(|x| measured(f64::from(x)));
            table.row([e.row.to_string(), e.col.to_string(), given, expected, e.ulps.to_string()]);
        }
        text += &table.render();
    }
    for line in found.hints.iter().chain(&found.undecided) {
        text += &format!("\n{line}\n");
    }
    if found.padding > 0 {
        text += &format!("\n{} elements of rows without a group are not +0\n", found.padding);
    }
    text
}
