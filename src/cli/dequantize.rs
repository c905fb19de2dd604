//! `finegrain dequantize`: codes with scales become floats again.

use std::path::PathBuf;

use crate::checkpoint::{
    Dtype, SCALE_SUFFIX, TENSOR_SCALE_SUFFIX, Tensor, TensorFile, TensorWriter, dequantize_tensor,
    refuse_same_file,
};
use crate::formats::Format;
use crate::scaled::Granule;
use clap::ValueEnum;
use half::bf16;
use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::output::{Table, measured, print_report, printable, shape};
use crate::cli::progress::Progress;
use crate::cli::values;

const EXAMPLE: &str = "\
Every F8 tensor T becomes a float: with T_scale_inv beside it times its scales (and T_scale_tensor), alone as it \
is. The granule follows from the two shapes. Other tensors are copied, scales that were used are dropped.

Example:
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

    /// Elements that share a scale, such as 1x128, tensor or row, for shapes that do not say it
    #[arg(long, value_name = "RxC")]
    granule: Option<Granule>,

    /// Format of codes that are stored as U8 or U16
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
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

    fn tensor(self, shape: &[usize], values: &[f32]) -> crate::Result<Tensor> {
        let data = match self {
            Target::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            Target::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Tensor::new(self.dtype(), shape.to_vec(), data)
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
}

#[derive(Serialize)]
struct Stats {
    elements: usize,
    amax: f32,
    nan: usize,
    infinite: usize,
}

/// What becomes of a tensor of the input.
enum Fate {
    Copied,
    /// Scales: they go into the tensor they belong to.
    Used,
    Dequantized(Format),
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    refuse_same_file(&args.r#in, &args.out)?;
    let file = TensorFile::open(&args.r#in)?;
    let report = dequantize_file(&args, &file)?;
    print_report(&report, json, table)
}

/// The format of a tensor of codes; `None` for what is no codes.
fn codes(args: &Args, file: &TensorFile, name: &str) -> crate::Result<Option<Format>> {
    let dtype = file.info(name)?.dtype;
    match dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ => {
            Ok(Tensor::format(dtype))
        }
        Dtype::U8 | Dtype::U16 if file.contains(&format!("{name}{SCALE_SUFFIX}")) => {
            let missing =
                || file.blame(name, format!("{dtype} codes with scales: --format must say which format"));
            args.format.map(Some).ok_or_else(missing)
        }
        _ => Ok(None),
    }
}

fn fate(args: &Args, file: &TensorFile, name: &str) -> crate::Result<Fate> {
    for suffix in [SCALE_SUFFIX, TENSOR_SCALE_SUFFIX] {
        if let Some(of) = name.strip_suffix(suffix).filter(|of| file.contains(of))
            && codes(args, file, of)?.is_some()
        {
            return Ok(Fate::Used);
        }
    }
    Ok(codes(args, file, name)?.map_or(Fate::Copied, Fate::Dequantized))
}

fn dequantize_file(args: &Args, file: &TensorFile) -> crate::Result<Report> {
    let mut plan = Vec::new();
    let mut bytes = 0;
    for name in file.names() {
        let info = file.info(name)?;
        bytes += info.bytes() as u64;
        match fate(args, file, name)? {
            Fate::Copied => plan.push((name.clone(), info.dtype, info.shape)),
            Fate::Used => {}
            Fate::Dequantized(_) => plan.push((name.clone(), args.to.dtype(), info.shape)),
        }
    }
    let progress = Progress::bytes(bytes);
    let mut lines = Vec::new();
    let mut out = TensorWriter::create(&args.out, plan, file.metadata())?;
    for name in file.names() {
        progress.on(name);
        let info = file.info(name)?;
        let (granule, stats) = match fate(args, file, name)? {
            Fate::Used => {
                progress.advance(info.bytes() as u64);
                continue;
            }
            Fate::Copied => {
                out.put(name, &file.read(name)?)?;
                (None, None)
            }
            Fate::Dequantized(format) => {
                let (values, granule) = values_of(args, file, name, format)?;
                out.put(name, &args.to.tensor(&info.shape, &values)?)?;
                (granule, Some(Stats::of(&values)))
            }
        };
        progress.advance(info.bytes() as u64);
        let to = if stats.is_some() { args.to.dtype() } else { info.dtype };
        lines.push(Line {
            name: name.clone(),
            from: info.dtype.to_string(),
            to: to.to_string(),
            shape: info.shape,
            granule: granule.map(|g| g.to_string()),
            stats,
        });
    }
    out.finish()?;
    Ok(Report {
        input: args.r#in.display().to_string(),
        output: args.out.display().to_string(),
        to: values::word(&args.to),
        tensors: lines,
    })
}

fn values_of(
    args: &Args,
    file: &TensorFile,
    name: &str,
    format: Format,
) -> crate::Result<(Vec<f32>, Option<Granule>)> {
    let codes = file.read(name)?;
    let scale_name = format!("{name}{SCALE_SUFFIX}");
    if !file.contains(&scale_name) {
        return Ok((codes.to_f32().map_err(|e| file.blame(name, e))?, None));
    }
    let scales = file.read(&scale_name)?;
    let tensor_scale_name = format!("{name}{TENSOR_SCALE_SUFFIX}");
    let tensor_scales =
        if file.contains(&tensor_scale_name) { Some(file.read(&tensor_scale_name)?) } else { None };
    let result = dequantize_tensor(&codes, format, &scales, tensor_scales.as_ref(), args.granule);
    let (values, granule) = result.map_err(|e| file.blame(name, e))?;
    Ok((values, Some(granule)))
}

impl Stats {
    fn of(values: &[f32]) -> Self {
        Stats {
            elements: values.len(),
            amax: values.iter().filter(|v| v.is_finite()).fold(0.0, |a, v| v.abs().max(a)),
            nan: values.iter().filter(|v| v.is_nan()).count(),
            infinite: values.iter().filter(|v| v.is_infinite()).count(),
        }
    }
}

fn table(report: &Report) -> String {
    let titles = ["<tensor", "<from", "<to", "<shape", "<granule", "elements", "amax", "NaN out", "inf out"];
    let mut table = Table::new(&titles);
    for line in &report.tensors {
        let granule = match (&line.granule, &line.stats) {
            (Some(granule), _) => granule.clone(),
            (None, Some(_)) => "no scales".to_owned(),
            (None, None) => String::new(),
        };
        let names = [line.name.clone(), line.from.clone(), line.to.clone(), shape(&line.shape), granule];
        match &line.stats {
            None => table.row(names.into_iter().chain(["copied".to_owned()])),
            Some(s) => {
                let amax = measured(f64::from(s.amax));
                let numbers = [s.elements.to_string(), amax, s.nan.to_string(), s.infinite.to_string()];
                table.row(names.into_iter().chain(numbers));
            }
        }
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
