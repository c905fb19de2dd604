//! `finegrain recipe`: every recipe and where its arithmetic comes from; what differs between two of them.

use std::path::PathBuf;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::formats::Format;
use crate::gemm::LibraryCall;
use crate::quant::{ElementCast, NanAmax, Recipe, RecipeDiff, Role, ScaleFormat, diff_recipes};
use clap::Subcommand;
use regex::Regex;
use serde::Serialize;

use crate::cli::output::{Table, percent, print, print_json};
use crate::cli::progress::Progress;
use crate::cli::{Failure, Outcome, notes};

const EXAMPLE: &str = "\
Examples:
  finegrain recipe diff deepgemm deepgemm-cuda model.safetensors --as weight
  finegrain recipe list";

/// Show the recipes, or what differs between two of them on your tensors
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every recipe: formats, granules, amax floor, the source of its arithmetic, and what libraries compute of its operands
    List,

    /// Codes and scales that differ between two recipes on the float tensors of a file, and why
    Diff(Box<DiffArgs>),
}

#[derive(clap::Args)]
struct DiffArgs {
    /// First recipe
    a: Recipe,

    /// Second recipe
    b: Recipe,

    /// safetensors file
    file: PathBuf,

    /// How tensors are grouped
    #[arg(long = "as", value_enum, default_value_t = Role::Activation)]
    role: Role,

    /// Only tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    tensor: Option<Regex>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    element: &'static str,
    gradient: &'static str,
    scale: &'static str,
    activation: String,
    weight: String,
    amax_floor: f32,
    nan_in_amax: &'static str,
    overflow: String,
    /// Calls of libraries that multiply activations by weights of such granules and formats.
    multiplied_by: Vec<&'static str>,
    source: &'static str,
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    match args.command {
        Command::List => list(json),
        Command::Diff(args) => diff(&args, json),
    }
}

#[derive(Serialize)]
struct TensorDiff {
    tensor: String,
    #[serde(flatten)]
    diff: RecipeDiff,
}

fn diff(args: &DiffArgs, json: bool) -> Outcome {
    let file = Checkpoint::open(&args.file)?;
    notes::refuse_folder(&file, "recipe diff")?;
    let usable = |name: &&String| {
        let info = file.info(name).ok();
        let float = info.is_some_and(|i| Tensor::is_float(i.dtype) && i.shape.len() >= 2 && i.elements() > 0);
        // Scales are no tensors that a recipe would be used on.
        let float = float && file.pairs().owner(name).is_none();
        float && args.tensor.as_ref().is_none_or(|regex| regex.is_match(name))
    };
    let names: Vec<&String> = file.names().iter().filter(usable).collect();
    if names.is_empty() {
        let message = "no float tensor with two dimensions and such a name: nothing to compare";
        return Err(Failure::Failed(crate::Error::file(&args.file, message).to_string()));
    }
    let bytes = |name: &&&String| file.info(name).map_or(0, |i| i.bytes() as u64);
    let progress = Progress::bytes(names.iter().map(|n| bytes(&n)).sum());
    let mut diffs = Vec::new();
    for name in names {
        progress.on(name);
        let tensor = file.read(name)?;
        let matrix = tensor.to_matrix().map_err(|e| file.blame(name, e))?;
        let diff =
            diff_recipes(matrix.view(), &args.a, &args.b, args.role).map_err(|e| file.blame(name, e))?;
        progress.advance(tensor.data().len() as u64);
        diffs.push(TensorDiff { tensor: name.clone(), diff });
    }
    drop(progress);
    if json {
        return print_json(
            &serde_json::json!({ "a": args.a.to_string(), "b": args.b.to_string(), "tensors": diffs }),
        );
    }
    let titles = ["<tensor", "codes", "differ", "%", "scales", "differ", "%", "<of which (codes, scales)"];
    let mut table = Table::new(&titles);
    for TensorDiff { tensor, diff } in diffs {
        let why = |c: &crate::quant::CauseDifferences| {
            format!("{} ({}, {})", c.cause.describe(), c.differences.codes, c.differences.scales)
        };
        let changed = diff.causes.iter().filter(|c| c.differences != Default::default());
        let why: Vec<String> = changed.map(why).collect();
        table.row([
            tensor,
            diff.elements.to_string(),
            diff.total.codes.to_string(),
            percent(diff.total.codes, diff.elements),
            diff.granules.to_string(),
            diff.total.scales.to_string(),
            percent(diff.total.scales, diff.granules),
            why.join("; "),
        ]);
    }
    print(&table.render())
}

fn list(json: bool) -> Outcome {
    let lines: Vec<Line> = Recipe::ALL.iter().map(line).collect();
    if json {
        return print_json(&lines);
    }
    let mut table = Table::new(&[
        "<recipe",
        "<codes",
        "<scales",
        "<activation",
        "<weight",
        "floor",
        "<NaN in amax",
        "<multiplied by",
        "<source",
    ]);
    for l in lines {
        let codes = if l.gradient == l.element {
            l.element.to_owned()
        } else {
            format!("{}/{}", l.element, l.gradient)
        };
        let floor = if l.amax_floor == 0.0 { "-".to_owned() } else { format!("{:e}", l.amax_floor) };
        let calls = if l.multiplied_by.is_empty() { "-".to_owned() } else { l.multiplied_by.join(", ") };
        let text = [l.scale, l.nan_in_amax, l.source].map(str::to_owned);
        let [scale, nan, source] = text;
        table.row([l.name, codes, scale, l.activation, l.weight, floor, nan, calls, source]);
    }
    print(&table.render())
}

/// The calls that multiply operands of a recipe on a GPU: FP8 with scales in f32.
fn multiplied_by(recipe: &Recipe) -> Vec<&'static str> {
    let fp8 = [Format::E4M3, Format::E5M2].contains(&recipe.element);
    let f32 = matches!(recipe.scale_format(), ScaleFormat::F32 | ScaleFormat::PowerOfTwoF32);
    let granules = (recipe.activation, recipe.weight);
    let calls = LibraryCall::ALL.iter().filter(|call| fp8 && f32 && call.granules().contains(&granules));
    calls.map(LibraryCall::name).collect()
}

fn line(recipe: &Recipe) -> Line {
    Line {
        name: recipe.to_string(),
        element: recipe.element.name(),
        gradient: recipe.gradient.name(),
        scale: match recipe.scale_format() {
            ScaleFormat::F32 => "f32",
            ScaleFormat::PowerOfTwoF32 => "f32, 2^n",
            ScaleFormat::E8M0 => "e8m0",
            ScaleFormat::E4M3 => "e4m3",
        },
        activation: recipe.activation.to_string(),
        weight: recipe.weight.to_string(),
        amax_floor: recipe.amax.floor,
        nan_in_amax: match recipe.amax.nan {
            NanAmax::Ignored => "ignored",
            NanAmax::Propagates => "propagates",
        },
        overflow: match recipe.cast {
            ElementCast::Plain(overflow) => format!("{overflow:?}"),
            ElementCast::PositiveZero | ElementCast::E5m6(_) => "Saturate".to_owned(),
        },
        multiplied_by: multiplied_by(recipe),
        source: recipe.source,
    }
}
