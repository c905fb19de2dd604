//! `finegrain cast`: every float tensor of a file, element by element, without scales.

use std::path::PathBuf;

use crate::checkpoint::{
    CastOptions, CastRounding, CastStats, Checkpoint, Fate, Made, Tensor, TensorInfo, cast_tensor,
    refuse_same_file, rewrite,
};
use crate::formats::{Format, Overflow, TensorRounding};
use crate::parallel::Watch;
use serde::Serialize;

use crate::cli::output::{self, Table, measured, printable, shape};
use crate::cli::progress::Progress;
use crate::cli::values::{self, Round};
use crate::cli::{Failure, Outcome, interrupt, notes};

const EXAMPLE: &str = "\
Codes land under the tensor's name in the F8_* dtype of the format, else one code a byte as U8 (6 and 4 bits) \
or one in a U16 (e5m6). Tensors that are no floats are copied, and so are the scales of codes that are in the \
checkpoint, whatever they are called.

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
    /// Why it was copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    let options = options(&args)?;
    refuse_same_file(&args.r#in, &args.out)?;
    let file = Checkpoint::open(&args.r#in)?;
    notes::refuse_folder(&file, "cast")?;
    cast_file(&args, &options, &file, json)
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

/// What becomes of a tensor. A shape that cannot be packed fails here, before the first element is cast.
fn fate<'a>(
    options: &'a CastOptions,
    file: &'a Checkpoint,
    name: &'a str,
    info: &TensorInfo,
) -> crate::Result<Fate<'a, CastStats>> {
    if !Tensor::is_float(info.dtype) || file.pairs().owner(name).is_some() {
        return Ok(Fate::Kept);
    }
    let dtype = options.dtype();
    let shape = options.shape(&info.shape).map_err(|e| file.blame(name, e))?;
    let width = options.format().spec().bits().div_ceil(8) as usize;
    let codes = info.elements().checked_mul(2 * width).map(|bytes| bytes as u64);
    let (bytes, from_width) = (info.bytes() as u64, info.dtype.bitsize() as u64 / 8);
    let make = move |watch: &Watch<'_>| {
        let tensor = file.read(name)?;
        let done = |elements| watch.report(elements * from_width);
        let cast = cast_tensor(&tensor, name, options, &done).map_err(|e| file.blame(name, e))?;
        Ok((vec![cast.0], cast.1))
    };
    Ok(Fate::Made(Made {
        tensors: vec![(name.to_owned(), dtype, shape)],
        memory: codes.and_then(|codes| codes.checked_add(bytes)),
        make: Box::new(make),
    }))
}

fn cast_file(args: &Args, options: &CastOptions, file: &Checkpoint, json: bool) -> Outcome {
    let mut plan = Vec::new();
    for name in file.names() {
        plan.push(fate(options, file, name, &file.info(name)?)?);
    }
    let progress = Progress::bytes(file.bytes());
    let report = |bytes| progress.advance(bytes);
    let (stats, out) =
        rewrite(file, &args.out, &plan, &|name| progress.on(name), &interrupt::watch(&report))?;
    let mut lines = Vec::new();
    for ((name, fate), stats) in file.names().iter().zip(&plan).zip(stats) {
        let info = file.info(name)?;
        let (to, shape) = match fate {
            Fate::Made(made) => (made.tensors[0].1, made.tensors[0].2.clone()),
            _ => (info.dtype, info.shape.clone()),
        };
        let note = stats.is_none().then(|| notes::copied(file, name, info.dtype)).flatten();
        let (from, to) = (info.dtype.to_string(), to.to_string());
        lines.push(Line { name: name.clone(), from, to, shape, stats, note });
    }
    drop(progress);
    let report = Report {
        input: args.r#in.display().to_string(),
        output: args.out.display().to_string(),
        format: options.format().name(),
        round: values::word(&args.round),
        overflow: values::word(&args.overflow),
        seed: (args.round == Round::Stochastic).then(|| args.seed.unwrap_or(0)),
        packed: args.packed,
        tensors: lines,
    };
    let warnings = warnings(&report, options.format());
    output::finish(out, &report, json, table, &warnings)
}

fn warnings(report: &Report, to: Format) -> Vec<String> {
    let cast = report.tensors.iter().filter_map(|line| Some((line, line.stats?)));
    let lost = cast.clone().filter(|(_, s)| s.lost > 0).map(|(line, s)| {
        format!("tensor '{}': {} finite elements became infinite or NaN in {to}", line.name, s.lost)
    });
    let forgets = !to.spec().has_nan();
    let forgotten = cast
        .filter(move |(_, s)| forgets && s.nan > 0)
        .map(|(line, s)| format!("tensor '{}': {} NaN became zero, since {to} has none", line.name, s.nan));
    lost.chain(forgotten).collect()
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
        "lost",
        "flushed",
        "inf in",
        "NaN in",
        "max |error|",
        "<note",
    ];
    let mut table = Table::new(&titles);
    for line in &report.tensors {
        let names = [line.name.clone(), line.from.clone(), line.to.clone(), shape(&line.shape)];
        let numbers = match &line.stats {
            None => ["copied", "", "", "", "", "", ""].map(str::to_owned),
            Some(s) => [
                s.elements.to_string(),
                s.overflowed.to_string(),
                s.lost.to_string(),
                s.flushed.to_string(),
                s.infinite.to_string(),
                s.nan.to_string(),
                measured(s.max_abs_error),
            ],
        };
        table.row(names.into_iter().chain(numbers).chain(line.note.clone()));
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
