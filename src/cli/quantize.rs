//! `finegrain quantize`: float tensors of a file become codes with scales.

use std::path::PathBuf;

use crate::checkpoint::{
    QuantizedLayout, SCALE_SUFFIX, TENSOR_SCALE_SUFFIX, Tensor, TensorFile, TensorWriter, quantize_tensor,
    refuse_same_file,
};
use crate::quant::{QuantStats, Recipe, Role};
use regex::Regex;
use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::output::{Table, print_report, printable, shape};
use crate::cli::progress::Progress;
use crate::cli::values;

const EXAMPLE: &str = "\
Tensor T becomes T (codes) and T_scale_inv (the factors that dequantise), with NVFP4 also T_scale_tensor. \
Without --tensor every float tensor of two or more dimensions is quantised; the others are copied.

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
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    refuse_same_file(&args.r#in, &args.out)?;
    let file = TensorFile::open(&args.r#in)?;
    let report = quantize_file(&args, &file)?;
    print_report(&report, json, table)
}

/// Whether a tensor is to be quantised. Scales of tensors that are codes already stay what they are.
fn chosen(args: &Args, file: &TensorFile, name: &str) -> crate::Result<bool> {
    let info = file.info(name)?;
    let is_scale = [SCALE_SUFFIX, TENSOR_SCALE_SUFFIX]
        .iter()
        .any(|suffix| name.strip_suffix(suffix).is_some_and(|codes| file.contains(codes)));
    let matches = args.tensor.as_ref().is_none_or(|regex| regex.is_match(name));
    let usable = Tensor::is_float(info.dtype) && info.shape.len() >= 2 && info.elements() > 0;
    Ok(usable && matches && !is_scale)
}

fn quantize_file(args: &Args, file: &TensorFile) -> crate::Result<Report> {
    let mut plan = Vec::new();
    let mut layouts = Vec::new();
    let mut bytes = 0;
    for name in file.names() {
        let info = file.info(name)?;
        bytes += info.bytes() as u64;
        let layout = if chosen(args, file, name)? {
            let layout = QuantizedLayout::of(&info.shape, &args.recipe, args.role);
            Some(layout.map_err(|e| file.blame(name, e))?)
        } else {
            None
        };
        match &layout {
            Some(layout) => plan.extend(layout.tensors(name)),
            None => plan.push((name.clone(), info.dtype, info.shape)),
        }
        layouts.push(layout);
    }
    if layouts.iter().all(Option::is_none) {
        let count = layouts.len();
        let which = args.tensor.as_ref().map_or(String::new(), |r| format!(" and a name that matches '{r}'"));
        return Err(crate::Error::file(
            &args.r#in,
            format!("none of {count} tensors is a float with two dimensions{which}: nothing to quantise"),
        ));
    }
    let progress = Progress::bytes(bytes);
    let mut lines = Vec::new();
    let mut out = TensorWriter::create(&args.out, plan, file.metadata())?;
    for (name, layout) in file.names().iter().zip(&layouts) {
        progress.on(name);
        let tensor = file.read(name)?;
        let mut line = Line {
            name: name.clone(),
            from: tensor.dtype().to_string(),
            to: tensor.dtype().to_string(),
            shape: tensor.shape().to_vec(),
            granule: None,
            stats: None,
        };
        match layout {
            None => out.put(name, &tensor)?,
            Some(layout) => {
                let quantized = quantize_tensor(&tensor, name, &args.recipe, args.role);
                let (tensors, stats) = quantized.map_err(|e| file.blame(name, e))?;
                tensors.iter().try_for_each(|(name, tensor)| out.put(name, tensor))?;
                line.to = layout.codes.0.to_string();
                line.shape = layout.codes.1.clone();
                line.granule = Some(layout.granule.to_string());
                line.stats = Some(stats);
            }
        }
        progress.advance(tensor.data().len() as u64);
        lines.push(line);
    }
    out.finish()?;
    Ok(Report {
        input: args.r#in.display().to_string(),
        output: args.out.display().to_string(),
        recipe: args.recipe.to_string(),
        r#as: values::word(&args.role),
        total: lines.iter().filter_map(|l| l.stats).sum(),
        tensors: lines,
    })
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
        "flushed",
        "inf in",
        "NaN in",
        "granules",
        "zero",
        "under floor",
    ];
    let mut table = Table::new(&titles);
    let numbers = |s: &QuantStats| {
        let counts = [s.elements, s.saturated, s.flushed, s.infinite, s.nan, s.granules, s.zero_granules];
        counts.into_iter().chain([s.floored_granules]).map(|n| n.to_string())
    };
    for line in &report.tensors {
        let granule = line.granule.clone().unwrap_or_default();
        let names = [line.name.clone(), line.from.clone(), line.to.clone(), shape(&line.shape), granule];
        match &line.stats {
            None => table.row(names.into_iter().chain(["copied".to_owned()])),
            Some(stats) => table.row(names.into_iter().chain(numbers(stats))),
        }
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
