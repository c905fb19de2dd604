//! `finegrain cast`: every float tensor of a file, element by element, without scales.

use std::path::PathBuf;

use crate::checkpoint::{
    CastOptions, CastRounding, CastStats, Tensor, TensorFile, TensorWriter, cast_tensor, refuse_same_file,
};
use crate::formats::{Format, Overflow, TensorRounding};
use serde::Serialize;

use crate::cli::output::{Table, measured, print_report, printable, shape};
use crate::cli::progress::Progress;
use crate::cli::values::{self, Round};
use crate::cli::{Failure, Outcome};

const EXAMPLE: &str = "\
Codes land under the tensor's name in the F8_* dtype of the format, else one code a byte as U8 (6 and 4 bits) \
or one in a U16 (e5m6). Tensors that are no floats are copied.

Stochastic rounding takes the random bits of element i from SplitMix64 at position i of the sequence that \
starts at the seed xor the FNV-1a hash of the tensor's name.

Example:
  finegrain cast model.safetensors codes.safetensors --to e4m3 --overflow nonsaturating";

/// Cast every float tensor of a file to another format, element by element
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// safetensors file to read
    r#in: PathBuf,

    /// safetensors file to write
    out: PathBuf,

    /// Format of the result: e4m3, e5m2, e4m3fnuz, e5m2fnuz, e5m6, e3m2, e2m3, e2m1, e8m0, bf16, f16 …
    #[arg(long, value_name = "FORMAT")]
    to: Format,

    /// Rounding
    #[arg(long, value_enum, default_value_t = Round::NearestEven)]
    round: Round,

    /// What becomes of values beyond the format's range
    #[arg(long, value_enum, default_value_t = Overflow::Saturate)]
    overflow: Overflow,

    /// Seed of stochastic rounding [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Pack codes along the last dimension: 4 bits two a byte, low half first; e5m6 eight in three U32
    #[arg(long)]
    packed: bool,
}

#[derive(Serialize)]
struct Report {
    input: String,
    output: String,
    format: &'static str,
    round: String,
    overflow: String,
    seed: Option<u64>,
    packed: bool,
    tensors: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    from: String,
    to: String,
    shape: Vec<usize>,
    /// None for tensors that were copied.
    stats: Option<CastStats>,
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    let options = options(&args)?;
    refuse_same_file(&args.r#in, &args.out)?;
    let file = TensorFile::open(&args.r#in)?;
    let report = cast_file(&args, &options, &file)?;
    print_report(&report, json, table)
}

fn options(args: &Args) -> Result<CastOptions, Failure> {
    if args.seed.is_some() && args.round != Round::Stochastic {
        return Err(Failure::Usage("--seed is for --round stochastic".to_owned()));
    }
    let rounding = match args.round.fixed() {
        Some(rounding) => CastRounding::Tensor(TensorRounding::Fixed(rounding)),
        None if args.round == Round::Tilekernels => CastRounding::TileKernels,
        None => CastRounding::Tensor(TensorRounding::Stochastic { seed: args.seed.unwrap_or(0) }),
    };
    let usage = |e: crate::Error| Failure::Usage(e.to_string());
    let options = CastOptions::new(args.to, rounding, args.overflow).map_err(usage)?;
    if args.packed { options.packed().map_err(usage) } else { Ok(options) }
}

fn cast_file(args: &Args, options: &CastOptions, file: &TensorFile) -> crate::Result<Report> {
    // The whole plan stands before the first element is cast: a shape that cannot be packed fails at once.
    let mut plan = Vec::new();
    let mut bytes = 0;
    for name in file.names() {
        let info = file.info(name)?;
        bytes += info.bytes() as u64;
        plan.push(if Tensor::is_float(info.dtype) {
            let shape = options.shape(&info.shape).map_err(|e| file.blame(name, e))?;
            (name.clone(), options.dtype(), shape)
        } else {
            (name.clone(), info.dtype, info.shape)
        });
    }
    let progress = Progress::bytes(bytes);
    let mut lines = Vec::new();
    let mut out = TensorWriter::create(&args.out, plan, file.metadata())?;
    for name in file.names() {
        progress.on(name);
        let tensor = file.read(name)?;
        let from = tensor.dtype();
        let (result, stats) = if Tensor::is_float(from) {
            let width = from.bitsize() as u64 / 8;
            let done = |elements| progress.advance(elements * width);
            let (codes, stats) =
                cast_tensor(&tensor, name, options, &done).map_err(|e| file.blame(name, e))?;
            (codes, Some(stats))
        } else {
            progress.advance(tensor.data().len() as u64);
            (tensor, None)
        };
        out.put(name, &result)?;
        lines.push(Line {
            name: name.clone(),
            from: from.to_string(),
            to: result.dtype().to_string(),
            shape: result.shape().to_vec(),
            stats,
        });
    }
    out.finish()?;
    Ok(Report {
        input: args.r#in.display().to_string(),
        output: args.out.display().to_string(),
        format: options.format().name(),
        round: values::word(&args.round),
        overflow: values::word(&args.overflow),
        seed: (args.round == Round::Stochastic).then(|| args.seed.unwrap_or(0)),
        packed: args.packed,
        tensors: lines,
    })
}

fn table(report: &Report) -> String {
    // What happens to values beyond the range depends on the mode; the column says which.
    let beyond = if report.overflow == "saturate" { "saturated" } else { "overflowed" };
    let titles = [
        "<tensor",
        "<from",
        "<to",
        "<shape",
        "elements",
        beyond,
        "flushed",
        "inf in",
        "NaN in",
        "max |error|",
    ];
    let mut table = Table::new(&titles);
    for line in &report.tensors {
        let names = [line.name.clone(), line.from.clone(), line.to.clone(), shape(&line.shape)];
        let numbers = match &line.stats {
            None => ["copied", "", "", "", "", ""].map(str::to_owned),
            Some(s) => [
                s.elements.to_string(),
                s.overflowed.to_string(),
                s.flushed.to_string(),
                s.infinite.to_string(),
                s.nan.to_string(),
                measured(s.max_abs_error),
            ],
        };
        table.row(names.into_iter().chain(numbers));
    }
    let copied = report.tensors.iter().filter(|line| line.stats.is_none()).count();
    let cast = report.tensors.len() - copied;
    let how = format!("{}, {}", report.round, report.overflow);
    let output = printable(&report.output);
    format!(
        "{}\n{output}: {cast} tensors cast to {} ({how}), {copied} copied unchanged\n",
        table.render(),
        report.format
    )
}
