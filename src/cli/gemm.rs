//! `finegrain gemm`: D = A B^T of a file, dense or grouped, with named arithmetic.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use crate::checkpoint::{Checkpoint, Dtype, ScaledTensor, Tensor, TensorWriter, refuse_same_file};
use crate::engine::{Engine, Product};
use crate::formats::Format;
use crate::gemm::{Arithmetic, GemmProblem, GroupedProblem, Model, StepResult, TensorCore};
use crate::matrix::Matrix;
use crate::scaled::{Granule, ScaledRef};
use clap::ValueEnum;

use crate::cli::Outcome;
use crate::cli::arithmetic::{ArithmeticArgs, options};
use crate::cli::operand::{OperandArgs, require_room};
use crate::cli::output;
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

/// How `groups` is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Grouped {
    /// 'groups' names the group of each row of a
    Contiguous,
    /// 'groups' counts the valid rows of each group
    Masked,
    /// 'groups' holds K of each group
    K,
}

/// Either kind of problem; a grouped one with the shape of d as it is stored.
enum Problem<'a> {
    Dense(Box<GemmProblem<'a>>),
    Grouped(Box<GroupedProblem<'a>>, Vec<usize>),
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
    let blame_file = |e: crate::Error| crate::Error::file(&args.r#in, e);
    let problem = problem(&args, &arithmetic, (&a, &b), c.as_ref(), groups.as_deref()).map_err(blame_file)?;
    let (accumulation, product) = match &problem {
        Problem::Dense(p) => (p.accumulation(), Product::from(&**p)),
        Problem::Grouped(p, _) => (p.accumulation(), Product::from(&**p)),
    };

    let (granule_a, granule_b) = granules(&problem);
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
    let d = match &problem {
        Problem::Dense(_) => d,
        Problem::Grouped(_, shape) => d.reshaped(shape.clone())?,
    };
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

/// The granules of the operands as they are multiplied: groups along K have their own.
fn granules(problem: &Problem<'_>) -> (Option<Granule>, Option<Granule>) {
    let of = |p: &GemmProblem<'_>| {
        let granule = |operand: &ScaledRef<'_>| operand.scales().map(|s| s.granule);
        (granule(p.a()), granule(p.b()))
    };
    match problem {
        Problem::Dense(p) => of(p),
        Problem::Grouped(p, _) => p.parts().first().map_or((None, None), |part| of(part.problem())),
    }
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

/// The tensor `groups`, which a grouped problem must have.
pub(crate) fn read_groups(file: &Checkpoint, grouped: Option<Grouped>) -> crate::Result<Option<Vec<i32>>> {
    if grouped.is_none() && !file.contains("groups") {
        return Ok(None);
    }
    file.read("groups")?.to_i32().map(Some).map_err(|e| file.blame("groups", e))
}

fn problem<'a>(
    args: &Args,
    arithmetic: &Arithmetic,
    (a, b): (&'a ScaledTensor, &'a ScaledTensor),
    c: Option<&'a Matrix<f32>>,
    groups: Option<&[i32]>,
) -> crate::Result<Problem<'a>> {
    let Some(groups) = groups else {
        let dense = GemmProblem::nt(a.whole()?, b.whole()?)?;
        let fitted = dense.fitted(arithmetic)?;
        let dense = dense.with_accumulation(args.arithmetic.complete(fitted))?;
        require_room(dense.m(), dense.n())?;
        return Ok(Problem::Dense(Box::new(match c {
            Some(c) => dense.with_addend(c.view())?,
            None => dense,
        })));
    };
    let (grouped, count) = match args.grouped.unwrap_or(Grouped::Contiguous) {
        Grouped::Contiguous => (GroupedProblem::contiguous(a.whole()?, groups, &b.groups()?)?, None),
        Grouped::Masked => {
            (GroupedProblem::masked(&a.groups()?, &sizes(groups)?, &b.groups()?)?, Some(groups.len()))
        }
        Grouped::K => {
            let sizes = sizes(groups)?;
            (GroupedProblem::k_grouped(&a.k_groups(&sizes)?, &b.k_groups(&sizes)?)?, Some(groups.len()))
        }
    };
    let (rows, n) = grouped.output_shape();
    require_room(rows, n)?;
    let shape = count.map_or(vec![rows, n], |g| vec![g, rows / g, n]);
    let accumulation = args.arithmetic.complete(grouped.fitted(arithmetic)?);
    let grouped = grouped.with_accumulation(accumulation)?;
    Ok(Problem::Grouped(
        Box::new(match c {
            Some(c) => grouped.with_addend(c.view())?,
            None => grouped,
        }),
        shape,
    ))
}

/// Sizes of groups: I32 in the file, none negative.
pub(crate) fn sizes(groups: &[i32]) -> crate::Result<Vec<usize>> {
    let size = |(i, &g): (usize, &i32)| {
        usize::try_from(g).map_err(|_| crate::Error::Invalid(format!("groups[{i}] is {g}, expected a size")))
    };
    groups.iter().enumerate().map(size).collect()
}
