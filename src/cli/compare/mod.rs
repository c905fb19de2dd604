//! `finegrain compare`: which recipe and which accumulation, on your tensors or on built-in ones.
#![forbid(unsafe_code)]

mod page;
mod report;
mod summary;
mod sweep;
mod tolerances;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use crate::accuracy::{
    Budget, Comparison, ComparisonRow, Outcome as Combination, OutputFormat, ToleranceCheck, sample,
};
use crate::checkpoint::{Checkpoint, ReadAs, write_atomically};
use crate::engine::Engine;
use crate::gemm::Arithmetic;
use crate::linear::{Linear, Pass, Scheme};
use regex::Regex;
use serde::Serialize;

use self::summary::summary;
use crate::cli::arithmetic::arithmetic;
use crate::cli::output::{print, print_json};
use crate::cli::plot;
use crate::cli::progress::Progress;
use crate::cli::reading::{ReadingArgs, read_values};
use crate::cli::{Failure, Outcome, notes};

const EXAMPLE: &str = "\
Y = x w^T, and with dy also dX = dy w and dW = dy^T x, each quantised by every recipe and
summed by every accumulation, against the exact product. Best first.

An accumulation is a model (f32, exact, hopper, ada, blackwell ...), alone for the interval
that fits the scales, or with one: hopper/128, hopper/none; the order in which partial sums meet
their scales stands after it: hopper/128/partial-first (scales-first, scales-last, unfused), and
parts of K last: hopper/none/split-k=2. A library's call names all of that: cublaslt-fast,
cublaslt, cublaslt-block, deepgemm, triton-deepseek, te-blockwise. A tensor core that was never built
has a base and what differs from it: hopper:f=10/128 keeps 10 bits of the aligned products. The
parameters are l (products a step), f, result (f32, e8mN), terms and round (zero, nearest),
addend (early, late).

Examples:
  finegrain compare
  finegrain compare layers.safetensors --x q.x --w q.w --dy q.dy --recipe te
  finegrain compare --recipe te-current --accumulate hopper/none --accumulate hopper:f=10/128 --sweep
  finegrain compare layers.safetensors --x q.x --w q.w --dy q.dy --plot q.html
  finegrain compare layers.safetensors --layer 'layer0\\..*' --plot errors.svg";

/// Compare recipes and accumulations on a Linear layer: the error of Y, dX and dW against exact
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// safetensors file with the layer's tensors; without it, built-in data
    file: Option<PathBuf>,

    /// Tensor x [tokens, in]
    #[arg(long, value_name = "NAME", requires_all = ["file", "w"])]
    x: Option<String>,

    /// Tensor w [out, in]
    #[arg(long, value_name = "NAME", requires_all = ["file", "x"])]
    w: Option<String>,

    /// Tensor dy [tokens, out]; without it only Y is compared
    #[arg(long, value_name = "NAME", requires_all = ["file", "x", "w"])]
    dy: Option<String>,

    /// Every layer L of the file, with tensors L.x, L.w and perhaps L.dy, whose name matches ('.' matches all)
    #[arg(long, value_name = "REGEX", requires = "file", conflicts_with_all = ["x", "w", "dy"])]
    layer: Option<Regex>,

    /// Recipe, or bf16; repeat for more [default: a choice of per-tensor, per-row and fine-grained ones]
    #[arg(long, value_name = "NAME")]
    recipe: Vec<Scheme>,

    /// Accumulation MODEL, MODEL/N, MODEL/N/ORDER or a library's call, with /split-k=N where K is cut; repeat for more
    /// [default: f32, hopper/128 and hopper/none]
    #[arg(long, value_name = "MODEL", value_parser = arithmetic)]
    accumulate: Vec<Arithmetic>,

    /// Show the error budget for several layers too; a single layer has it anyway
    #[arg(long)]
    budget: bool,

    /// Print the error of every tile of the outputs and operands as well (as --budget)
    #[arg(long)]
    map: bool,

    /// Print atol and rtol for a kernel test, and how close the results come to their rigorous bound
    #[arg(long)]
    tolerance: bool,

    /// Print error against the bits that the tensor core keeps, and against the promotion interval
    #[arg(long)]
    sweep: bool,

    /// Write a picture of the errors (.svg; with --sweep of the sweeps), or all of it as one page (.html)
    #[arg(long, value_name = "OUT.svg|OUT.html")]
    plot: Option<PathBuf>,

    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    #[command(flatten)]
    reading: ReadingArgs,
}

/// Compared when nothing is asked for.
const SCHEMES: &[&str] = &[
    "bf16",
    "te-current",
    "te-current-hybrid",
    "torchao-rowwise",
    "deepseek-v3",
    "te",
    "mxfp8-e4m3-floor",
    "mxfp8-e4m3-rceil",
];
const ARITHMETICS: &[&str] = &["f32", "hopper/128", "hopper/none"];

/// One layer and what came of it.
#[derive(Serialize)]
struct Layer {
    name: String,
    tokens: usize,
    r#in: usize,
    out: usize,
    rows: Vec<ComparisonRow>,
    budgets: Vec<BudgetLine>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tolerances: Vec<ToleranceLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep: Option<sweep::LayerSweep>,
}

/// Where one result's error comes from, for the best accumulation of each recipe.
#[derive(Serialize)]
struct BudgetLine {
    recipe: Scheme,
    #[serde(serialize_with = "as_text")]
    accumulation: Arithmetic,
    pass: Pass,
    budget: Budget,
}

/// The tolerances of one GEMM.
#[derive(Serialize)]
struct ToleranceLine {
    recipe: Scheme,
    #[serde(serialize_with = "as_text")]
    accumulation: Arithmetic,
    result: &'static str,
    #[serde(flatten)]
    check: ToleranceCheck,
}

fn as_text<S: serde::Serializer>(value: &Arithmetic, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    let layers = layers(&args)?;
    // Combinations that the defaults happen to contain but no arithmetic has are not worth a line.
    let all_asked_for = !args.recipe.is_empty() && !args.accumulate.is_empty();
    let schemes = or_default(&args.recipe, SCHEMES)?;
    let arithmetics = or_default(&args.accumulate, ARITHMETICS)?;
    let mut engine = Engine::cpu();
    if let Some(threads) = args.threads {
        engine = engine.with_threads(threads)?;
    }
    if let Some(path) = &args.plot {
        plot::Kind::of(path)?;
    }

    let combinations = (schemes.len() * arithmetics.len()) as u64;
    let work = |linear: &Linear| linear.multiply_adds() * linear.passes().len() as u64 * combinations;
    let progress = Progress::multiply_adds(layers.iter().map(|(_, linear)| work(linear)).sum());
    let page = is_page(args.plot.as_deref());
    let comparison = Comparison {
        schemes: &schemes,
        arithmetics: &arithmetics,
        budgets: (args.budget || args.map || page || layers.len() == 1).then_some(OutputFormat::Bf16),
        tolerances: args.tolerance,
        sweep: (args.sweep || page).then(|| sweep::plan(&schemes, &arithmetics)).transpose()?,
    };
    let mut done = Vec::new();
    for (name, linear) in &layers {
        progress.on(name);
        let finished = |_, _| progress.advance(linear.multiply_adds());
        let mut compared = comparison.run(linear, &engine, finished)?;
        compared.rows.retain(|row| all_asked_for || matches!(row.outcome, Combination::Measured(_)));
        let sweep = match compared.sweep {
            Some(Ok((scheme, swept))) => Some(sweep::LayerSweep::new(scheme, &comparison, swept)),
            Some(Err(reason)) if args.sweep => return Err(reason.into()),
            _ => None,
        };
        let (tokens, input, output) = linear.sizes();
        done.push(Layer {
            name: name.clone(),
            tokens,
            r#in: input,
            out: output,
            budgets: budgets(&mut compared.rows),
            tolerances: tolerances(linear, &mut compared.rows),
            rows: compared.rows,
            sweep,
        });
    }
    drop(progress);
    if let Some(path) = &args.plot {
        draw(path, &done, args.sweep)?;
    }
    if json {
        return print_json(&serde_json::json!({ "layers": done, "summary": summary(&done) }));
    }
    print(&report::text(&done, args.map))
}

fn is_page(path: Option<&Path>) -> bool {
    path.is_some_and(|path| matches!(plot::Kind::of(path), Ok(plot::Kind::Html)))
}

/// A page of everything; or a picture of the sweeps, of one layer (a marker for each pass), or of several (the summary).
fn draw(path: &Path, layers: &[Layer], sweep: bool) -> crate::Result<()> {
    if plot::Kind::of(path)? == plot::Kind::Html {
        let page = page::render(layers);
        return write_atomically(path, |out| out.write_all(page.as_bytes()));
    }
    if sweep {
        let sweeps: Vec<(&str, &sweep::LayerSweep)> =
            layers.iter().filter_map(|l| Some((l.name.as_str(), l.sweep.as_ref()?))).collect();
        return plot::sweeps(path, &sweeps.iter().flat_map(|(name, s)| s.charts(name)).collect::<Vec<_>>());
    }
    if let [layer] = layers {
        let percent =
            |row: &ComparisonRow, pass| row.pass(pass).map(|p| 100.0 * p.report.total.relative_frobenius);
        let line = |row: &ComparisonRow| plot::Line {
            label: format!("{}  {}", row.scheme, row.accumulation),
            values: Pass::ALL.map(|pass| percent(row, pass)).to_vec(),
        };
        let lines: Vec<plot::Line> = layer.rows.iter().map(line).collect();
        return plot::errors(path, &layer.name, &Pass::ALL.map(Pass::result), &lines);
    }
    let line = |s: summary::SummaryRow| plot::Line {
        label: format!("{}  {}", s.recipe, s.arithmetic),
        values: vec![Some(s.error), Some(s.worst_row)],
    };
    let lines: Vec<plot::Line> = summary(layers).into_iter().map(line).collect();
    let title = format!("{} layers", layers.len());
    plot::errors(path, &title, &["geometric mean of Y, dX, dW", "worst row of any"], &lines)
}

/// The budgets of every recipe with the accumulation that served it best; the passes below one another.
fn budgets(rows: &mut [ComparisonRow]) -> Vec<BudgetLine> {
    let mut lines: Vec<BudgetLine> = Vec::new();
    let mut recipes: Vec<Scheme> = Vec::new();
    for row in rows {
        let Combination::Measured(passes) = &mut row.outcome else { continue };
        if recipes.contains(&row.scheme) {
            continue;
        }
        recipes.push(row.scheme);
        let (recipe, accumulation) = (row.scheme, row.accumulation);
        let line = |pass, budget| BudgetLine { recipe, accumulation, pass, budget };
        lines.extend(passes.iter_mut().filter_map(|p| Some(line(p.pass, p.budget.take()?))));
    }
    lines
}

/// The tolerances of every combination, pass by pass.
fn tolerances(linear: &Linear, rows: &mut [ComparisonRow]) -> Vec<ToleranceLine> {
    let mut lines = Vec::new();
    for &pass in linear.passes() {
        for row in rows.iter_mut() {
            let Combination::Measured(passes) = &mut row.outcome else { continue };
            let recipe = row.scheme;
            lines.extend(passes.iter_mut().filter(|p| p.pass == pass).filter_map(|p| {
                let (accumulation, result) = (p.accumulation.into(), pass.result());
                Some(ToleranceLine { recipe, accumulation, result, check: p.tolerance.take()? })
            }));
        }
    }
    lines
}

fn or_default<T: Copy + std::str::FromStr<Err = crate::Error>>(
    given: &[T],
    default: &[&str],
) -> crate::Result<Vec<T>> {
    if given.is_empty() { default.iter().map(|name| name.parse()).collect() } else { Ok(given.to_vec()) }
}

/// The layers asked for, with their names.
fn layers(args: &Args) -> Result<Vec<(String, Linear)>, Failure> {
    let Some(path) = &args.file else {
        return Ok(vec![
            ("built-in: transformer".to_owned(), sample::transformer_linear()?),
            ("built-in: one-signed".to_owned(), sample::one_signed_linear()?),
        ]);
    };
    let read_as = args.reading.read_as()?;
    let file = Checkpoint::open(path)?;
    notes::refuse_folder(&file, "compare")?;
    match (&args.x, &args.w, &args.layer) {
        (Some(x), Some(w), None) => {
            let name = x.strip_suffix(".x").unwrap_or(x).to_owned();
            Ok(vec![(name, read_layer(&file, x, w, args.dy.as_deref(), &read_as)?)])
        }
        (_, _, Some(regex)) => {
            let names: Vec<&str> = file.names().iter().filter_map(|n| n.strip_suffix(".x")).collect();
            let complete = |n: &&str| regex.is_match(n) && file.contains(&format!("{n}.w"));
            let mut found: Vec<&str> = names.into_iter().filter(complete).collect();
            found.sort_unstable();
            if found.is_empty() {
                let message = format!("no layer matches '{regex}': a layer L has tensors L.x and L.w");
                return Err(crate::Error::file(path, message).into());
            }
            let read = |name: &str| {
                let dy = format!("{name}.dy");
                let dy = file.contains(&dy).then_some(dy);
                let (x, w) = (format!("{name}.x"), format!("{name}.w"));
                let layer = read_layer(&file, &x, &w, dy.as_deref(), &read_as)?;
                Ok((name.to_owned(), layer))
            };
            found.into_iter().map(read).collect()
        }
        _ => Err(Failure::Usage("name the tensors with --x and --w, or the layers with --layer".to_owned())),
    }
}

fn read_layer(
    file: &Checkpoint,
    x: &str,
    w: &str,
    dy: Option<&str>,
    read_as: &ReadAs,
) -> crate::Result<Linear> {
    let read = |name: &str| read_values(file, name, read_as);
    let dy = dy.map(read).transpose()?;
    Linear::new(read(x)?, read(w)?, dy).map_err(|e| file.blame(x, e))
}
