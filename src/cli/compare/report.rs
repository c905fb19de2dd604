//! The comparison as text.

use crate::accuracy::{ComparisonRow, Outcome as Combination, Stage, TILE, TileError};
use crate::linear::Pass;

use super::summary::{largest, summary};
use super::{BudgetLine, Layer, tolerances};
use crate::cli::output::Table;

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
worst tiles    the 128x128 tiles of the result that hold most of the squared error, and what each stage adds to it
";

pub(super) fn text(layers: &[Layer], map: bool) -> String {
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
            text += &worst_tiles(&layer.budgets);
        }
        if map {
            layer.budgets.iter().for_each(|line| text += &maps(line));
        }
        if !layer.tolerances.is_empty() {
            text += &tolerances::table(&layer.tolerances);
            text += "\n";
        }
        if let Some(sweep) = &layer.sweep {
            text += &sweep.table();
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
            table.row([s.recipe.to_string(), s.arithmetic.to_string()].into_iter().chain(formatted));
        }
        text += &table.render();
        text += "\n";
    }
    text += LEGEND;
    if layers.iter().any(|l| !l.tolerances.is_empty()) {
        text += tolerances::LEGEND;
    }
    text
}

/// Shares of the error, which add up to 100 %.
fn budget_table(lines: &[BudgetLine]) -> String {
    let mut table =
        Table::new(&[&["<error budget", "<accumulation", "<of", "error %"], &STAGES[..]].concat());
    for line in lines {
        let names = [line.recipe.to_string(), line.accumulation.to_string(), line.pass.result().to_owned()];
        let shares = Stage::ALL.map(|s| line.budget.share(s).map_or("-".to_owned(), share));
        table.row(names.into_iter().chain([digits(100.0 * line.budget.total)]).chain(shares));
    }
    table.render()
}

/// The columns of a budget, in the order of [`Stage::ALL`].
pub(super) const STAGES: [&str; 6] =
    ["codes A %", "scales A %", "codes B %", "scales B %", "sums %", "bf16 out %"];

/// A share in percent; adding 0 turns a rounded -0.0 into 0.0.
pub(super) fn share(x: f64) -> String {
    format!("{:.1}", (1000.0 * x).round() / 10.0 + 0.0)
}

/// Tiles named for each result.
const WORST: usize = 3;

/// A tile as `Y[128-255, 0-127]`.
pub(super) fn tile_name(matrix: &str, tile: &TileError, shape: (usize, usize)) -> String {
    let last = |start: usize, size: usize| (start + TILE).min(size) - 1;
    format!("{matrix}[{}-{}, {}-{}]", tile.row, last(tile.row, shape.0), tile.col, last(tile.col, shape.1))
}

/// The tiles that hold most of the error, with what each stage adds to it: rows add up to the tile's share.
fn worst_tiles(lines: &[BudgetLine]) -> String {
    let titles = ["<worst tiles", "<accumulation", "<tile [rows, columns]", "error %", "share %"];
    let mut table = Table::new(&[&titles, &STAGES[..]].concat());
    let mut any = false;
    for line in lines.iter().filter(|l| l.budget.tiles.len() > 1) {
        for tile in line.budget.tiles.iter().take(WORST) {
            let name = tile_name(line.pass.result(), tile, line.budget.shape);
            let stage = |s: &Stage| {
                let at = line.budget.stages.iter().position(|other| other.stage == *s);
                at.map_or("-".to_owned(), |at| share(tile.stages[at]))
            };
            let names = [line.recipe.to_string(), line.accumulation.to_string(), name];
            let cells = names.into_iter().chain([digits(100.0 * tile.relative)]);
            table.row(cells.chain([share(tile.share)]).chain(Stage::ALL.iter().map(stage)));
            any = true;
        }
    }
    if any { table.render() + "\n" } else { String::new() }
}

/// The error of every tile of a result and of its operands.
fn maps(line: &BudgetLine) -> String {
    let budget = &line.budget;
    let mut text = map(line, line.pass.result(), budget.shape, &budget.tiles);
    for operand in &budget.operands {
        text += &map(line, operand.name, operand.shape, &operand.tiles);
    }
    text
}

fn map(line: &BudgetLine, name: &str, shape: (usize, usize), tiles: &[TileError]) -> String {
    let columns: Vec<usize> = (0..shape.1).step_by(TILE).collect();
    let title = format!("<{name} by tile, %");
    let titles: Vec<String> = [title].into_iter().chain(columns.iter().map(usize::to_string)).collect();
    let mut table = Table::new(&titles.iter().map(String::as_str).collect::<Vec<_>>());
    for row in (0..shape.0).step_by(TILE) {
        let error = |col: &usize| {
            let tile = tiles.iter().find(|t| (t.row, t.col) == (row, *col));
            tile.map_or("-".to_owned(), |t| digits(100.0 * t.relative))
        };
        table.row([row.to_string()].into_iter().chain(columns.iter().map(error)));
    }
    format!("{} {} ({}x{}):\n{}\n", line.recipe, line.accumulation, shape.0, shape.1, table.render())
}

fn cells(row: &ComparisonRow) -> Vec<String> {
    let mut cells = vec![row.scheme.to_string(), row.accumulation.to_string()];
    if row.passes().is_empty() {
        cells.extend(std::iter::repeat_n("-".to_owned(), COLUMNS.len() - 2));
        return cells;
    }
    for pass in Pass::ALL {
        cells.push(row.pass(pass).map_or("-".to_owned(), |p| match p.report.total.nonfinite {
            0 => digits(100.0 * p.report.total.relative_frobenius),
            n => format!("{n} not finite"),
        }));
    }
    let y = row.pass(Pass::Fprop).map(|p| p.report.total);
    cells.push(digits(100.0 * largest(row, |r| r.total.worst_row)));
    cells.push(y.map_or("-".to_owned(), |m| format!("{:.1}", m.snr_db)));
    cells.push(y.map_or("-".to_owned(), |m| format!("{:.1e}", m.calc_diff)));
    cells.push(short(100.0 * largest(row, |r| r.accumulation.relative_frobenius)));
    cells.push(short(100.0 * largest(row, |r| r.total.bias)));
    let stats: crate::quant::QuantStats = row.passes().iter().map(|p| p.report.stats).sum();
    cells.push(short(stats.percent_of_elements(stats.flushed)));
    cells.push(short(stats.percent_of_elements(stats.saturated)));
    cells
}

/// Three decimals: enough to tell recipes apart.
pub(super) fn digits(x: f64) -> String {
    format!("{x:.3}")
}

/// Two significant digits, for quantities that span many decades.
pub(super) fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        magnitude if magnitude >= 0.01 => format!("{x:.2}"),
        _ => format!("{x:.1e}"),
    }
}
