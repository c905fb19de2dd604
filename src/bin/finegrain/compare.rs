//! `finegrain compare`: which recipe and which accumulation, on your tensors or on built-in ones.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use finegrain::accuracy::{
    Budget, ComparisonRow, Linear, Outcome as Combination, OutputFormat, Pass, PassReport, Scheme, Stage,
    TILE, compare, sample,
};
use finegrain::checkpoint::TensorFile;
use finegrain::gemm::{Arithmetic, Execution};
use finegrain::matrix::Matrix;
use regex::Regex;
use serde::Serialize;

use crate::output::{Table, print, print_json};
use crate::plot;
use crate::progress::Progress;
use crate::{Failure, Outcome};

const EXAMPLE: &str = "\
Y = x w^T, and with dy also dX = dy w and dW = dy^T x, each quantised by every recipe and
summed by every accumulation, against the exact product. Best first.

An accumulation is a model (f32, exact, hopper, ada, blackwell ...), alone for the interval
that fits the scales, or with one: hopper/128, hopper/none.

Examples:
  finegrain compare
  finegrain compare layers.safetensors --x q.x --w q.w --dy q.dy --recipe te
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
    #[arg(long, value_name = "NAME", value_parser = Scheme::by_name)]
    recipe: Vec<Scheme>,

    /// Accumulation MODEL, MODEL/N or MODEL/none; repeat for more [default: f32, hopper/128 and hopper/none]
    #[arg(long, value_name = "MODEL")]
    accumulate: Vec<Arithmetic>,

    /// Show the error budget for several layers too; a single layer has it anyway
    #[arg(long)]
    budget: bool,

    /// Write a plot of the errors
    #[arg(long, value_name = "OUT.svg")]
    plot: Option<PathBuf>,

    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
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
}

/// Where one result's error comes from, for the best accumulation of each recipe.
#[derive(Serialize)]
struct BudgetLine {
    recipe: String,
    accumulation: String,
    pass: Pass,
    budget: Budget,
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    let layers = layers(&args)?;
    // Combinations that the defaults happen to contain but no arithmetic has are not worth a line.
    let all_asked_for = !args.recipe.is_empty() && !args.accumulate.is_empty();
    let schemes = or_default(&args.recipe, SCHEMES, Scheme::by_name)?;
    let arithmetics = or_default(&args.accumulate, ARITHMETICS, |name| name.parse())?;
    let execution = Execution { threads: args.threads, ..Execution::default() };

    let combinations = (schemes.len() * arithmetics.len()) as u64;
    let work = |linear: &Linear| linear.multiply_adds() * linear.passes().len() as u64 * combinations;
    let progress = Progress::multiply_adds(layers.iter().map(|(_, linear)| work(linear)).sum());
    let mut done = Vec::new();
    for (name, linear) in &layers {
        progress.on(name);
        let finished = |_, _| progress.advance(linear.multiply_adds());
        let mut rows = compare(linear, &schemes, &arithmetics, &execution, finished)?;
        rows.retain(|row| all_asked_for || matches!(row.outcome, Combination::Measured(_)));
        let (tokens, input, output) = linear.sizes();
        let budgets =
            if args.budget || layers.len() == 1 { budgets(linear, &rows, &execution)? } else { Vec::new() };
        done.push(Layer { name: name.clone(), tokens, r#in: input, out: output, rows, budgets });
    }
    drop(progress);
    if let Some(path) = &args.plot {
        draw(path, &done)?;
    }
    if json {
        return print_json(&serde_json::json!({ "layers": done, "summary": summary(&done) }));
    }
    print(&report(&done))
}

/// The budgets of every recipe with the accumulation that served it best.
fn budgets(
    linear: &Linear,
    rows: &[ComparisonRow],
    execution: &Execution<'_>,
) -> finegrain::Result<Vec<BudgetLine>> {
    let mut best: Vec<&ComparisonRow> = Vec::new();
    for row in rows.iter().filter(|r| !r.passes().is_empty()) {
        if best.iter().all(|b| b.scheme != row.scheme) {
            best.push(row);
        }
    }
    let mut lines = Vec::new();
    for &pass in linear.passes() {
        let exact = linear.exact(pass)?;
        for row in &best {
            let quantized = linear.quantized(pass, &Scheme::by_name(&row.scheme)?, &exact)?;
            let budget = quantized.budget(&row.arithmetic, OutputFormat::Bf16, execution)?;
            let (recipe, accumulation) = (row.scheme.clone(), row.accumulation.clone());
            lines.push(BudgetLine { recipe, accumulation, pass, budget });
        }
    }
    // One block for each recipe, the passes below one another.
    let place = |line: &BudgetLine| best.iter().position(|b| b.scheme == line.recipe);
    lines.sort_by_key(place);
    Ok(lines)
}

fn or_default<T: Copy>(
    given: &[T],
    default: &[&str],
    parse: impl Fn(&str) -> finegrain::Result<T>,
) -> finegrain::Result<Vec<T>> {
    if given.is_empty() { default.iter().map(|name| parse(name)).collect() } else { Ok(given.to_vec()) }
}

/// The layers asked for, with their names.
fn layers(args: &Args) -> Result<Vec<(String, Linear)>, Failure> {
    let Some(path) = &args.file else {
        return Ok(vec![
            ("built-in: transformer".to_owned(), sample::transformer_linear()?),
            ("built-in: one-signed".to_owned(), sample::one_signed_linear()?),
        ]);
    };
    let file = TensorFile::open(path)?;
    match (&args.x, &args.w, &args.layer) {
        (Some(x), Some(w), None) => {
            let name = x.strip_suffix(".x").unwrap_or(x).to_owned();
            Ok(vec![(name, read_layer(&file, x, w, args.dy.as_deref())?)])
        }
        (_, _, Some(regex)) => {
            let names: Vec<&str> = file.names().iter().filter_map(|n| n.strip_suffix(".x")).collect();
            let complete = |n: &&str| regex.is_match(n) && file.contains(&format!("{n}.w"));
            let mut found: Vec<&str> = names.into_iter().filter(complete).collect();
            found.sort_unstable();
            if found.is_empty() {
                let message = format!("no layer matches '{regex}': a layer L has tensors L.x and L.w");
                return Err(finegrain::Error::file(path, message).into());
            }
            let read = |name: &str| {
                let dy = format!("{name}.dy");
                let dy = file.contains(&dy).then_some(dy);
                let layer = read_layer(&file, &format!("{name}.x"), &format!("{name}.w"), dy.as_deref())?;
                Ok((name.to_owned(), layer))
            };
            found.into_iter().map(read).collect()
        }
        _ => Err(Failure::Usage("name the tensors with --x and --w, or the layers with --layer".to_owned())),
    }
}

fn read_layer(file: &TensorFile, x: &str, w: &str, dy: Option<&str>) -> finegrain::Result<Linear> {
    let read = |name: &str| -> finegrain::Result<Matrix<f32>> {
        let info = file.info(name)?;
        if info.shape.len() < 2 {
            return Err(file.blame(name, format!("shape {:?}, expected a matrix", info.shape)));
        }
        file.read(name)?.to_matrix().map_err(|e| file.blame(name, e))
    };
    let dy = dy.map(read).transpose()?;
    Linear::new(read(x)?, read(w)?, dy).map_err(|e| file.blame(x, e))
}

/// The largest of a quantity over a row's passes, by magnitude.
fn largest(row: &ComparisonRow, of: impl Fn(&PassReport) -> f64) -> f64 {
    row.passes().iter().map(|(_, r)| of(r)).fold(0.0, |a, b| if b.abs() > a.abs() { b } else { a })
}

const COLUMNS: &[&str] = &[
    "<recipe",
    "<accumulation",
    "Y %",
    "dX %",
    "dW %",
    "worst row %",
    "SNR dB",
    "calc_diff",
    "accum. %",
    "bias %",
    "flushed %",
    "clipped %",
];

const LEGEND: &str = "\
Y, dX, dW      ||D - exact|| / ||exact|| (Frobenius)
worst row      the same of the row that fares worst, in any of the passes
SNR, calc_diff of Y: signal to noise; DeepGEMM's 1 - 2 sum xy / sum (x^2 + y^2)
accum.         the part that accumulation alone adds, against the exact product of the quantised operands (largest pass)
bias           sum of signed errors over sum |exact|: below 0 where magnitudes shrink (largest pass)
flushed        non-zero elements whose code is zero; clipped: elements beyond the largest code (all operands)
error budget   what each stage adds to the squared error, which adds up to 100 %: codes with exact scales, scales as
               stored, sums, the result stored in bf16; below 0 where a stage cancels what others did
";

fn report(layers: &[Layer]) -> String {
    let mut text = String::new();
    for layer in layers {
        text +=
            &format!("{}: x {}x{}, w {}x{}\n", layer.name, layer.tokens, layer.r#in, layer.out, layer.r#in);
        let mut table = Table::new(COLUMNS);
        layer.rows.iter().for_each(|row| table.row(cells(row)));
        text += &table.render();
        for row in &layer.rows {
            if let Combination::Unsupported(reason) = &row.outcome {
                text += &format!("  {} with {}: {reason}\n", row.scheme, row.accumulation);
            }
        }
        text += "\n";
        if !layer.budgets.is_empty() {
            text += &budget_table(&layer.budgets);
            text += "\n";
        }
    }
    if layers.len() > 1 {
        text += &format!("all {} layers: geometric mean of the errors, largest of the rest\n", layers.len());
        let mut table = Table::new(&[
            "<recipe",
            "<accumulation",
            "error %",
            "worst row %",
            "accum. %",
            "bias %",
            "flushed %",
        ]);
        for s in summary(layers) {
            let numbers = [s.error, s.worst_row, s.accumulation, s.bias, s.flushed];
            let formatted = [
                digits(numbers[0]),
                digits(numbers[1]),
                short(numbers[2]),
                short(numbers[3]),
                short(numbers[4]),
            ];
            table.row([s.recipe, s.accumulation_model].into_iter().chain(formatted));
        }
        text += &table.render();
        text += "\n";
    }
    text + LEGEND
}

/// Shares of the error, which add up to 100 %, and the tile of the output that holds most of it.
fn budget_table(lines: &[BudgetLine]) -> String {
    let titles = [
        "<error budget",
        "<accumulation",
        "<of",
        "error %",
        "codes A %",
        "scales A %",
        "codes B %",
        "scales B %",
    ];
    let more = ["sums %", "bf16 out %", "<worst tile (rows, columns): its error, its share"];
    let mut table = Table::new(&[&titles[..], &more[..]].concat());
    for line in lines {
        let tile = line.budget.tiles.first().map_or(String::new(), |t| {
            let (rows, cols) = (t.row + TILE - 1, t.col + TILE - 1);
            let (error, share) = (digits(100.0 * t.relative), digits(100.0 * t.share));
            format!("{}-{rows}, {}-{cols}: {error} %, {share} %", t.row, t.col)
        });
        let names = [line.recipe.clone(), line.accumulation.clone(), line.pass.result().to_owned()];
        // Adding 0 turns a rounded −0.0 into 0.0.
        let percent = |share: f64| format!("{:.1}", (1000.0 * share).round() / 10.0 + 0.0);
        let shares = Stage::ALL.map(|s| line.budget.share(s).map_or("-".to_owned(), percent));
        table.row(names.into_iter().chain([digits(100.0 * line.budget.total)]).chain(shares).chain([tile]));
    }
    table.render()
}

fn cells(row: &ComparisonRow) -> Vec<String> {
    let mut cells = vec![row.scheme.clone(), row.accumulation.clone()];
    if row.passes().is_empty() {
        cells.extend(std::iter::repeat_n("-".to_owned(), COLUMNS.len() - 2));
        return cells;
    }
    for pass in Pass::ALL {
        cells.push(row.pass(pass).map_or("-".to_owned(), |r| match r.total.nonfinite {
            0 => digits(100.0 * r.total.relative_frobenius),
            n => format!("{n} not finite"),
        }));
    }
    let y = row.pass(Pass::Fprop).map(|r| r.total);
    cells.push(digits(100.0 * largest(row, |r| r.total.worst_row)));
    cells.push(y.map_or("-".to_owned(), |m| format!("{:.1}", m.snr_db)));
    cells.push(y.map_or("-".to_owned(), |m| format!("{:.1e}", m.calc_diff)));
    cells.push(short(100.0 * largest(row, |r| r.accumulation.relative_frobenius)));
    cells.push(short(100.0 * largest(row, |r| r.total.bias)));
    let stats: finegrain::quant::QuantStats = row.passes().iter().map(|(_, r)| r.stats).sum();
    cells.push(short(stats.percent_of_elements(stats.flushed)));
    cells.push(short(stats.percent_of_elements(stats.saturated)));
    cells
}

/// Three decimals: enough to tell recipes apart.
fn digits(x: f64) -> String {
    format!("{x:.3}")
}

/// Two significant digits, for quantities that span many decades.
fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        magnitude if magnitude >= 0.01 => format!("{x:.2}"),
        _ => format!("{x:.1e}"),
    }
}

/// One combination over all layers.
#[derive(Serialize)]
struct SummaryRow {
    recipe: String,
    #[serde(rename = "accumulation")]
    accumulation_model: String,
    /// Geometric mean over layers and passes, in percent.
    error: f64,
    /// Largest over layers and passes, in percent.
    worst_row: f64,
    #[serde(rename = "accumulation_error")]
    accumulation: f64,
    bias: f64,
    flushed: f64,
}

/// The combinations that every layer has, best first.
fn summary(layers: &[Layer]) -> Vec<SummaryRow> {
    let Some((first, rest)) = layers.split_first() else { return Vec::new() };
    let mut rows = Vec::new();
    for row in &first.rows {
        let same = |r: &&ComparisonRow| r.scheme == row.scheme && r.accumulation == row.accumulation;
        let others: Option<Vec<&ComparisonRow>> = rest.iter().map(|l| l.rows.iter().find(same)).collect();
        let Some(mut all) = others else { continue };
        all.push(row);
        if all.iter().any(|r| r.passes().is_empty()) {
            continue;
        }
        let extreme = |of: &dyn Fn(&PassReport) -> f64| {
            let each = all.iter().map(|r| largest(r, of));
            100.0 * each.fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a })
        };
        let mean = all.iter().map(|r| r.score().ln()).sum::<f64>() / all.len() as f64;
        rows.push(SummaryRow {
            recipe: row.scheme.clone(),
            accumulation_model: row.accumulation.clone(),
            error: 100.0 * mean.exp(),
            worst_row: extreme(&|r| r.total.worst_row),
            accumulation: extreme(&|r| r.accumulation.relative_frobenius),
            bias: extreme(&|r| r.total.bias),
            flushed: extreme(&|r| r.stats.percent_of_elements(r.stats.flushed) / 100.0),
        });
    }
    rows.sort_by(|a, b| a.error.total_cmp(&b.error));
    rows
}

/// One layer: a marker for each pass. Several: the summary.
fn draw(path: &Path, layers: &[Layer]) -> finegrain::Result<()> {
    if let [layer] = layers {
        let percent = |row: &ComparisonRow, pass| row.pass(pass).map(|r| 100.0 * r.total.relative_frobenius);
        let line = |row: &ComparisonRow| plot::Line {
            label: format!("{}  {}", row.scheme, row.accumulation),
            values: Pass::ALL.map(|pass| percent(row, pass)).to_vec(),
        };
        let lines: Vec<plot::Line> = layer.rows.iter().map(line).collect();
        return plot::errors(path, &layer.name, &Pass::ALL.map(Pass::result), &lines);
    }
    let line = |s: SummaryRow| plot::Line {
        label: format!("{}  {}", s.recipe, s.accumulation_model),
        values: vec![Some(s.error), Some(s.worst_row)],
    };
    let lines: Vec<plot::Line> = summary(layers).into_iter().map(line).collect();
    let title = format!("{} layers", layers.len());
    plot::errors(path, &title, &["geometric mean of Y, dX, dW", "worst row of any"], &lines)
}
