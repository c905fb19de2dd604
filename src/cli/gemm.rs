//! `finegrain gemm`: D = A B^T of a file, dense or grouped, with named arithmetic.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use crate::checkpoint::{Checkpoint, Dtype, ScaledTensor, Tensor, TensorWriter, refuse_same_file};
use crate::engine::Engine;
use crate::formats::Format;
use crate::gemm::{Model, StepResult, TensorCore};
use crate::matrix::Matrix;
use clap::ValueEnum;

use crate::cli::Outcome;
use crate::cli::arithmetic::{ArithmeticArgs, options};
use crate::cli::operand::OperandArgs;
use crate::cli::output;
use crate::cli::product::{Grouped, Problem, read_groups};
use crate::cli::progress::Progress;
use crate::cli::{interrupt, notes};

const EXAMPLE: &str = "\
IN holds a [M, K] and b [N, K] as F8_*, BF16, F16, or F32 where the model reads TF32, or as U8/U16
codes with --format-a and --format-b; optional scales a_scale_inv and b_scale_inv whose shapes say the granule ([1]
tensor, [M, 1] row, [M, K/128] tile, [N/128, K/128] block; F8_E8M0 in 1x32; F8_E4M3 in 1x16
with a_scale_tensor and b_scale_tensor); optional c [M, N] F32, or F16 where the model
accumulates in it. OUT gets d. Scales of codes are
known by other names too (a_scale, a.scale, ...). Other granules are named by --granule-a and
--granule-b, grids that are stored transposed or padded by --scale-layout-a and -b.

Grouped, with a tensor 'groups' (I32): contiguous (the group of each row of a, -1 padding;
b [G, N, K]), masked (rows valid in each group; a [G, M, K]), k (K of each group; a and b
concatenated along K; d [G, M, N]).

Examples:
  finegrain gemm problem.safetensors d.safetensors
  finegrain gemm problem.safetensors d.safetensors --accumulate hopper --promote 128
  finegrain gemm problem.safetensors d.safetensors --accumulate cublaslt-block --split-k 2";

/// Multiply quantised matrices: D = C + A B^T with named arithmetic
#[derive(clap::Args)]
#[command(after_help = EXAMPLE, args_override_self = true)]
pub(crate) struct Args {
    /// safetensors file with a, b and what belongs to them
    r#in: PathBuf,

    /// safetensors file to write d to
    #[arg(value_name = "OUT")]
    out_file: PathBuf,

    #[command(flatten)]
    arithmetic: ArithmeticArgs,

    /// Format of d
    #[arg(long, value_enum, default_value_t = Out::F32)]
    out: Out,

    #[command(flatten)]
    operands: OperandArgs,

    /// The form of a grouped problem, which IN's tensor 'groups' describes [default: contiguous]
    #[arg(long, value_enum)]
    grouped: Option<Grouped>,

    /// Backend [default: the fastest that computes the problem]
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,

    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Out {
    F32,
    Bf16,
    F16,
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    let arithmetic = args.arithmetic.arithmetic()?;
    refuse_same_file(&args.r#in, &args.out_file)?;
    let file = Checkpoint::open(&args.r#in)?;
    notes::refuse_folder(&file, "gemm")?;
    let (a, b) = args.operands.read(&file)?;
    refuse_f32(&file, arithmetic.model(), [("a", &a), ("b", &b)])?;
    let c = read_addend(&file, arithmetic.model())?;
    let groups = read_groups(&file, args.grouped)?;
    let problem = (|| {
        let problem = Problem::new((&a, &b), groups.as_deref(), args.grouped)?;
        let accumulation = arithmetic.completed(problem.fitted(&arithmetic)?, args.arithmetic.beside());
        problem.with_accumulation(accumulation)?.with_addend(c.as_ref())
    })();
    let problem = problem.map_err(|e| crate::Error::file(&args.r#in, e))?;
    let (accumulation, product) = (problem.accumulation(), problem.product());
    let (granule_a, granule_b) = problem.granules();
    let (a, b) = (a.describe(granule_a), b.describe(granule_b));
    let work = product.multiply_adds();
    let progress = Progress::multiply_adds(work);
    let report = |done| progress.advance(done);
    let mut engine = args.backend.as_deref().map_or_else(|| Ok(Engine::cpu()), Engine::by_name)?;
    if let Some(threads) = args.threads {
        engine = engine.with_threads(threads)?;
    }
    let engine = interrupt::watched(engine, &report);
    let start = Instant::now();
    let d = match args.out {
        Out::F32 => Tensor::from_f32(&engine.gemm(product)?),
        Out::Bf16 => Tensor::from_bf16(&engine.gemm_bf16(product)?),
        Out::F16 => Tensor::from_f16(&engine.gemm_f16(product)?),
    };
    let d = d.reshaped(problem.shape())?;
    let seconds = start.elapsed().as_secs_f64();
    drop(progress);
    let (shape, dtype) = (d.shape().to_vec(), d.dtype());
    let nonfinite = d.to_f32()?.iter().filter(|v| !v.is_finite()).count();
    let mut out = TensorWriter::create(&args.out_file, vec![("d".to_owned(), dtype, shape.clone())], None)?;
    out.put("d", &d)?;

    let gflops = 2.0 * work as f64 / seconds / 1e9;
    let report = serde_json::json!({
        "op": "gemm",
        "input": args.r#in.display().to_string(),
        "output": args.out_file.display().to_string(),
        "shape": shape,
        "dtype": dtype.to_string(),
        "a": a,
        "b": b,
        "accumulation": accumulation.to_string(),
        "promotion": accumulation.promotion().name(),
        "options": options(accumulation),
        "nonfinite": nonfinite,
        "multiply_adds": work,
        "seconds": seconds,
        "gflops": gflops,
    });
    let text = |_: &serde_json::Value| {
        let not_finite = if nonfinite == 0 { String::new() } else { format!(", {nonfinite} not finite") };
        format!(
            "d {dtype} {shape:?} = a ({a}) b^T ({b}), {accumulation}: {seconds:.3} s, {gflops:.2} GFLOP/s{not_finite}\n"
        )
    };
    output::finish(out, &report, json, text, &[])
}

/// F32 is for the models that read TF32 alone: elsewhere it is an operand that somebody forgot to quantise.
pub(crate) fn refuse_f32(
    file: &Checkpoint,
    model: Model,
    operands: [(&str, &ScaledTensor); 2],
) -> crate::Result<()> {
    let reads = |core: &TensorCore| core.operands().contains(&Format::F32);
    if matches!(model, Model::TensorCore(core) if reads(&core)) {
        return Ok(());
    }
    match operands.into_iter().find(|(_, x)| x.format() == Format::F32) {
        None => Ok(()),
        Some((name, _)) => {
            let known = TensorCore::ALL.iter().filter(|core| reads(core)).map(TensorCore::name);
            let known = known.collect::<Vec<_>>().join(" and ");
            Err(file.blame(name, format!("dtype F32, which {known} read as TF32, and {model} does not")))
        }
    }
}

/// The tensor `c`, of the type that the model accumulates in.
pub(crate) fn read_addend(file: &Checkpoint, model: Model) -> crate::Result<Option<Matrix<f32>>> {
    if !file.contains("c") {
        return Ok(None);
    }
    let c = file.read("c")?;
    let expected = match model {
        Model::TensorCore(core) if core.result() == StepResult::F16 => Dtype::F16,
        Model::TensorCore(_) | Model::F32 | Model::Exact => Dtype::F32,
    };
    if c.dtype() != expected {
        return Err(file.blame("c", format!("dtype {}, expected {expected} for {model}", c.dtype())));
    }
    c.to_matrix().map(Some).map_err(|e| file.blame("c", e))
}
