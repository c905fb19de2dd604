//! `finegrain quantize`: float tensors of a file become codes with scales.

use std::path::PathBuf;

use crate::checkpoint::{
    Checkpoint, Fate, Made, QuantizedLayout, Tensor, TensorInfo, quantize_tensor, refuse_same_file, rewrite,
};
use crate::parallel::Watch;
use crate::quant::{QuantStats, Recipe, Role};
use regex::Regex;
use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::output::{self, Table, printable, shape};
use crate::cli::progress::Progress;
use crate::cli::values;
use crate::cli::{interrupt, notes};

const EXAMPLE: &str = "\
Tensor T becomes T (codes) and T_scale_inv (the factors that dequantise), with NVFP4 also T_scale_tensor. \
Without --tensor every float tensor of two or more dimensions is quantised; the others are copied, and so are codes \
that are in the checkpoint already and their scales, whatever they are called. Of a tensor of more than two dimensions \
(stacked experts, convolutions) the last two are a matrix, those before them stack matrices, and each matrix is quantised \
on its own.

Example:
  finegrain quantize in.safetensors fp8.safetensors --recipe deepseek-v3 --as weight --tensor 'proj'";

/// Quantise the float tensors of a file: codes and scales by a named recipe
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// safetensors file to read
    r#in: PathBuf,

    /// safetensors file to write
    out: PathBuf,

    /// Recipe: deepseek-v3, deepseek-v3-ue8m0, deepgemm, te, mxfp8-e4m3-floor, nvfp4-te-1x16 … (an unknown name lists all)
    #[arg(long, value_name = "NAME")]
    recipe: Recipe,

    /// What the tensors are to their GEMM
    #[arg(long = "as", value_name = "ROLE", value_enum)]
    role: Role,

    /// Quantise only float tensors whose name matches
    #[arg(long, value_name = "REGEX", value_parser = values::regex)]
    tensor: Option<Regex>,
}

#[derive(Serialize)]
struct Report {
    input: String,
    output: String,
    recipe: String,
    r#as: String,
    tensors: Vec<Line>,
    total: QuantStats,
}

#[derive(Serialize)]
struct Line {
    name: String,
    from: String,
    to: String,
    shape: Vec<usize>,
    granule: Option<String>,
    /// None for tensors that were copied.
    stats: Option<QuantStats>,
    /// Why it was copied, or how it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    refuse_same_file(&args.r#in, &args.out)?;
    let file = Checkpoint::open(&args.r#in)?;
    notes::refuse_folder(&file, "quantize")?;
    quantize_file(&args, &file, json)
}

/// What becomes of a tensor. Codes and scales stay what they are.
fn fate<'a>(
    args: &'a Args,
    file: &'a Checkpoint,
    name: &'a str,
    info: &TensorInfo,
) -> crate::Result<Fate<'a, (QuantStats, String)>> {
    let matches = args.tensor.as_ref().is_none_or(|regex| regex.is_match(name));
    let usable = Tensor::is_float(info.dtype) && info.shape.len() >= 2 && info.elements() > 0;
    if !usable || !matches || file.pairs().owner(name).is_some() {
        return Ok(Fate::Kept);
    }
    let layout = QuantizedLayout::of(&info.shape, &args.recipe, args.role);
    let layout = layout.map_err(|e| file.blame(name, e))?;
    let granule = layout.granule.to_string();
    // The values in f32, the codes and their copy, and no more scales than codes.
    let width = 4 + 3 * (layout.codes.0.bitsize() / 8);
    let memory = info.elements().checked_mul(width).and_then(|n| n.checked_add(info.bytes()));
    let make = move |_: &Watch<'_>| {
        let quantized = quantize_tensor(&file.read(name)?, name, &args.recipe, args.role);
        let (tensors, stats) = quantized.map_err(|e| file.blame(name, e))?;
        Ok((tensors.into_iter().map(|(_, tensor)| tensor).collect(), (stats, granule.clone())))
    };
    let tensors = layout.tensors(name);
    if let Some((there, ..)) = tensors[1..].iter().find(|(scales, ..)| file.owns(scales)) {
        let message =
            format!("its scales would be '{there}', which is there already and would be written twice");
        return Err(file.blame(name, message));
    }
    Ok(Fate::Made(Made { tensors, memory: memory.map(|n| n as u64), make: Box::new(make) }))
}

fn quantize_file(args: &Args, file: &Checkpoint, json: bool) -> Outcome {
    let mut plan = Vec::new();
    for name in file.names() {
        plan.push(fate(args, file, name, &file.info(name)?)?);
    }
    if !plan.iter().any(|fate| matches!(fate, Fate::Made(_))) {
        let count = plan.len();
        let which = args.tensor.as_ref().map_or(String::new(), |r| format!(" and a name that matches '{r}'"));
        let message =
            format!("none of {count} tensors is a float with two dimensions{which}: nothing to quantise");
        return Err(crate::Error::file(&args.r#in, message).into());
    }
    let progress = Progress::bytes(file.bytes());
    let report = |bytes| progress.advance(bytes);
    let (said, out) = rewrite(file, &args.out, &plan, &|name| progress.on(name), &interrupt::watch(&report))?;
    drop(progress);
    let mut lines = Vec::new();
    for ((name, fate), said) in file.names().iter().zip(&plan).zip(said) {
        let info = file.info(name)?;
        let (to, shape) = match fate {
            Fate::Made(made) => (made.tensors[0].1, made.tensors[0].2.clone()),
            _ => (info.dtype, info.shape.clone()),
        };
        let note = match &said {
            None => notes::copied(file, name, info.dtype),
            Some(_) => notes::rank(&info.shape),
        };
        let (stats, granule) = said.unzip();
        let (from, to) = (info.dtype.to_string(), to.to_string());
        lines.push(Line { name: name.clone(), from, to, shape, granule, stats, note });
    }
    let report = Report {
        input: args.r#in.display().to_string(),
        output: args.out.display().to_string(),
        recipe: args.recipe.to_string(),
        r#as: values::word(&args.role),
        total: lines.iter().filter_map(|l| l.stats).sum(),
        tensors: lines,
    };
    let lost = report.tensors.iter().filter_map(|line| Some((line, line.stats?.lost))).filter(|l| l.1 > 0);
    let warnings: Vec<String> = lost
        .map(|(line, n)| format!("tensor '{}': {n} finite elements became NaN or infinite codes", line.name))
        .collect();
    output::finish(out, &report, json, table, &warnings)
}

fn table(report: &Report) -> String {
    let titles = [
        "<tensor",
        "<from",
        "<to",
        "<shape",
        "<granule",
        "elements",
        "saturated",
        "lost",
        "flushed",
        "inf in",
        "NaN in",
        "granules",
        "zero",
        "under floor",
        "<note",
    ];
    let mut table = Table::new(&titles);
    let numbers = |s: &QuantStats| {
        let counts =
            [s.elements, s.saturated, s.lost, s.flushed, s.infinite, s.nan, s.granules, s.zero_granules];
        counts.into_iter().chain([s.floored_granules]).map(|n| n.to_string())
    };
    for line in &report.tensors {
        let granule = line.granule.clone().unwrap_or_default();
        let names = [line.name.clone(), line.from.clone(), line.to.clone(), shape(&line.shape), granule];
        let counts: Vec<String> = match &line.stats {
            None => [vec!["copied".to_owned()], vec![String::new(); 8]].concat(),
            Some(stats) => numbers(stats).collect(),
        };
        table.row(names.into_iter().chain(counts).chain(line.note.clone()));
    }
    let copied = report.tensors.iter().filter(|line| line.stats.is_none()).count();
    let quantized = report.tensors.len() - copied;
    format!(
        "{}\n{}: {quantized} tensors quantised by {} as {}, {copied} copied unchanged\n",
        table.render(),
        printable(&report.output),
        report.recipe,
        report.r#as
    )
}
