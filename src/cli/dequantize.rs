//! `finegrain dequantize`: codes with scales become floats again.

use std::path::PathBuf;

use crate::checkpoint::{
    Checkpoint, Dtype, Fate, Made, Pairs, Part, ReadAs, ScaledTensor, Tensor, TensorInfo, refuse_same_file,
    rewrite,
};
use crate::error::Error;
use crate::matrix::MatRef;
use crate::parallel::Watch;
use crate::scaled::Granule;
use clap::ValueEnum;
use half::bf16;
use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::output::{self, Table, measured, printable, shape};
use crate::cli::progress::Progress;
use crate::cli::reading::ReadingArgs;
use crate::cli::values;
use crate::cli::{interrupt, notes};

const EXAMPLE: &str = "\
Codes are tensors of an F8 or F4 dtype, and integers with scales beside them. Scales are known by their names: those of \
T.weight are T.weight_scale_inv, T.weight_scale, T.scale, T.scale_weight or the like, with a factor of the second level in \
_scale_2 or _scale_tensor, or a divisor in _global_scale. They are applied and dropped; codes without scales become what \
they are, and all other tensors are copied.

The granule follows from the two shapes where it is one of the field's: tensor, row, 1x128, 128x128, 1x32, 1x16, 32x32. \
Any other has to be named with --granule, and a grid that is stored transposed or padded with --scale-layout. \
Of a tensor of more than two dimensions the last two are a matrix, those before them stack matrices.

Integers need --format (with --packed where two 4-bit codes lie in a byte), and scales that are integers --scale-format.

Examples:
  finegrain dequantize nvfp4.safetensors bf16.safetensors --format e2m1 --packed
  finegrain dequantize fp8.safetensors bf16.safetensors --to bf16";

/// Turn codes with scales into floats
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// safetensors file to read
    r#in: PathBuf,

    /// safetensors file to write
    out: PathBuf,

    /// dtype of the result: code times scale in f32, for bf16 rounded to nearest even after that
    #[arg(long, value_enum, default_value_t = Target::Bf16)]
    to: Target,

    #[command(flatten)]
    reading: ReadingArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    Bf16,
    F32,
}

impl Target {
    fn dtype(self) -> Dtype {
        match self {
            Target::Bf16 => Dtype::BF16,
            Target::F32 => Dtype::F32,
        }
    }

    /// The values as they are written, and what became of them.
    fn tensor(self, shape: &[usize], values: &[f32]) -> crate::Result<(Tensor, Stats)> {
        let mut stats = Stats { elements: values.len(), ..Stats::default() };
        let data = match self {
            Target::F32 => {
                values.iter().for_each(|&v| stats.add(v, v));
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            Target::Bf16 => {
                let narrowed = |&v: &f32| {
                    let narrow = bf16::from_f32(v);
                    stats.add(v, narrow.to_f32());
                    narrow.to_le_bytes()
                };
                values.iter().flat_map(narrowed).collect()
            }
        };
        Ok((Tensor::new(self.dtype(), shape.to_vec(), data)?, stats))
    }
}

#[derive(Serialize)]
struct Report {
    input: String,
    output: String,
    to: String,
    tensors: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    from: String,
    to: String,
    shape: Vec<usize>,
    /// None for codes without scales and for tensors that were copied.
    granule: Option<String>,
    /// None for tensors that were copied.
    stats: Option<Stats>,
    /// Why it was copied, or how it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// Counts over the values as they were written.
#[derive(Clone, Copy, Default, Serialize)]
struct Stats {
    elements: usize,
    amax: f32,
    nan: u64,
    infinite: u64,
    /// Finite in f32, infinite once rounded to bf16.
    overflowed: u64,
    /// Scales that are NaN.
    nan_scales: u64,
}

impl Stats {
    fn add(&mut self, value: f32, written: f32) {
        if written.is_finite() {
            self.amax = self.amax.max(written.abs());
        }
        self.nan += u64::from(written.is_nan());
        self.infinite += u64::from(written.is_infinite());
        self.overflowed += u64::from(value.is_finite() && written.is_infinite());
    }
}

/// What is said of codes that became values.
struct Said {
    stats: Stats,
    granule: Option<Granule>,
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    let read_as = args.reading.read_as()?;
    refuse_same_file(&args.r#in, &args.out)?;
    let file = Checkpoint::open(&args.r#in)?;
    notes::refuse_folder(&file, "dequantize")?;
    dequantize_file(&args, &read_as, &file, json)
}

/// The shape of the values that codes become, if it can be told before they are read.
fn shape_of_values(info: &TensorInfo, name: &str, read_as: &ReadAs) -> crate::Result<Vec<usize>> {
    let mut shape = info.shape.clone();
    if read_as.packed && matches!(info.dtype, Dtype::U8 | Dtype::I8) {
        if is_blocks(name)
            && let [.., groups, bytes] = shape[..]
        {
            shape.truncate(shape.len() - 2);
            shape.push(groups * bytes);
        }
        let last = shape.last_mut().ok_or_else(|| Error::Shape("a scalar is no packed codes".to_owned()))?;
        *last = last.checked_mul(2).ok_or_else(|| Error::Shape("too many packed codes".to_owned()))?;
    }
    if is_blocks(name) && shape.len() > 1 {
        let last = shape.len() - 1;
        shape.swap(last - 1, last);
    }
    Ok(shape)
}

/// Blocks of bytes in a dimension of their own, whose values are held transposed (gpt-oss).
fn is_blocks(name: &str) -> bool {
    name.ends_with("blocks") && Pairs::name_of_values(name) != name
}

fn fate<'a>(
    args: &'a Args,
    read_as: &'a ReadAs,
    file: &'a Checkpoint,
    name: &'a str,
    info: &TensorInfo,
) -> crate::Result<Fate<'a, Said>> {
    if let Some((codes, part)) = file.pairs().owner(name) {
        // Codes in another shard still need them there.
        let used = matches!(part, Part::Block | Part::Tensor | Part::Divisor) && file.owns(codes);
        return Ok(if used { Fate::Used } else { Fate::Kept });
    }
    if !file.pairs().is_codes(name) {
        return Ok(Fate::Kept);
    }
    let shape = shape_of_values(info, name, read_as).map_err(|e| file.blame(name, e))?;
    let values = Pairs::name_of_values(name);
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    let width = 4 + args.to.dtype().bitsize() as u64 / 8;
    let memory = elements.and_then(|n| n.checked_mul(width)?.checked_add(2 * info.bytes() as u64));
    let announced = shape.clone();
    let make = move |_: &Watch<'_>| {
        let codes = ScaledTensor::read(file, name, read_as)?;
        let mut values = codes.dequantize().map_err(|e| file.blame(name, e))?;
        if is_blocks(name)
            && let [.., rows, cols] = *codes.shape()
            && rows * cols > 0
        {
            let turned = |m: &[f32]| Ok(MatRef::new(m, rows, cols)?.transposed().into_vec());
            let turned: Vec<Vec<f32>> =
                values.chunks_exact(rows * cols).map(turned).collect::<crate::Result<_>>()?;
            values = turned.concat();
        }
        let (tensor, mut stats) = args.to.tensor(&announced, &values).map_err(|e| file.blame(name, e))?;
        stats.nan_scales = codes.nan_scales();
        Ok((vec![tensor], Said { stats, granule: codes.granule() }))
    };
    let tensors = vec![(values.to_owned(), args.to.dtype(), shape)];
    Ok(Fate::Made(Made { tensors, memory, make: Box::new(make) }))
}

fn dequantize_file(args: &Args, read_as: &ReadAs, file: &Checkpoint, json: bool) -> Outcome {
    let mut plan = Vec::new();
    for name in file.names() {
        plan.push(fate(args, read_as, file, name, &file.info(name)?)?);
    }
    if !plan.iter().any(|fate| matches!(fate, Fate::Made(_))) {
        let message = format!(
            "none of {} tensors is codes (F8, F4, or integers with scales beside them): nothing to dequantise",
            plan.len()
        );
        return Err(Error::file(&args.r#in, message).into());
    }
    let progress = Progress::bytes(file.bytes());
    let report = |bytes| progress.advance(bytes);
    let (said, out) = rewrite(file, &args.out, &plan, &|name| progress.on(name), &interrupt::watch(&report))?;
    drop(progress);
    let mut lines = Vec::new();
    for ((name, fate), said) in file.names().iter().zip(&plan).zip(said) {
        let info = file.info(name)?;
        let (name, to, shape) = match fate {
            Fate::Used => continue,
            Fate::Kept => (name.clone(), info.dtype, info.shape.clone()),
            Fate::Made(made) => made.tensors[0].clone(),
        };
        let note = match &said {
            None => notes::copied(file, &name, info.dtype),
            Some(_) => notes::rank(&info.shape),
        };
        lines.push(Line {
            name,
            from: info.dtype.to_string(),
            to: to.to_string(),
            shape,
            granule: said.as_ref().and_then(|s| s.granule).map(|g| g.to_string()),
            stats: said.map(|s| s.stats),
            note,
        });
    }
    let report = Report {
        input: args.r#in.display().to_string(),
        output: args.out.display().to_string(),
        to: values::word(&args.to),
        tensors: lines,
    };
    let warnings = warnings(&report);
    output::finish(out, &report, json, table, &warnings)
}

fn warnings(report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    for line in &report.tensors {
        let Some(stats) = line.stats else { continue };
        let mut warn = |count: u64, what: &str| {
            if count > 0 {
                warnings.push(format!("tensor '{}': {count} {what}", line.name));
            }
        };
        warn(stats.nan_scales, "scales are NaN, and with them all values of their granules");
        warn(stats.overflowed, "values are finite in f32 and became infinite in bf16");
        warn(stats.infinite - stats.overflowed, "values are infinite");
    }
    warnings
}

fn table(report: &Report) -> String {
    let titles = [
        "<tensor",
        "<from",
        "<to",
        "<shape",
        "<granule",
        "elements",
        "amax",
        "NaN out",
        "inf out",
        "overflowed",
        "NaN scales",
        "<note",
    ];
    let mut table = Table::new(&titles);
    for line in &report.tensors {
        let granule = match (&line.granule, &line.stats) {
            (Some(granule), _) => granule.clone(),
            (None, Some(_)) => "no scales".to_owned(),
            (None, None) => String::new(),
        };
        let names = [line.name.clone(), line.from.clone(), line.to.clone(), shape(&line.shape), granule];
        let numbers = match &line.stats {
            None => ["copied", "", "", "", "", ""].map(str::to_owned),
            Some(s) => [
                s.elements.to_string(),
                measured(f64::from(s.amax)),
                s.nan.to_string(),
                s.infinite.to_string(),
                s.overflowed.to_string(),
                s.nan_scales.to_string(),
            ],
        };
        table.row(names.into_iter().chain(numbers).chain(line.note.clone()));
    }
    let copied = report.tensors.iter().filter(|line| line.stats.is_none()).count();
    let done = report.tensors.len() - copied;
    let output = printable(&report.output);
    format!(
        "{}\n{output}: {done} tensors dequantised to {}, {copied} copied unchanged\n",
        table.render(),
        report.to
    )
}
