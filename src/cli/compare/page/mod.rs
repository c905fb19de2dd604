//! The comparison as one page that needs nothing else: no script, no font, no network.
//!
//! Every chart has its numbers beside it or in a table below it, colours are told apart in every common form of colour
//! blindness, and everything fits a window 360 pixels wide.
#![forbid(unsafe_code)]

mod charts;

use std::fmt::{Display, Write};

use crate::accuracy::{ComparisonRow, Stage, TileError};
use crate::gemm::Arithmetic;
use crate::linear::{Pass, Scheme};

use self::charts::{heat_map, line_chart};
use super::report::{STAGES, digits, share, tile_name};
use super::summary::summary;
use super::{BudgetLine, Layer};

const STYLE: &str = include_str!("style.css");

/// Colours of the three results, of series, and of the stages of a budget.
const COLORS: [&str; 6] = ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)"];

/// Tiles in the table of the worst.
const WORST: usize = 5;

/// Text as HTML shows it: names come from files.
struct Escaped<T>(T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Control characters are not allowed even escaped.
                c if c.is_control() => f.write_char('\u{FFFD}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The page.
pub(super) fn render(layers: &[Layer]) -> String {
    let mut body = String::new();
    if layers.len() > 1 {
        body += &over_all(layers);
    }
    layers.iter().for_each(|layer| body += &section(layer));
    let title = match layers {
        [layer] => format!("finegrain: {}", Escaped(&layer.name)),
        _ => format!("finegrain: {} layers", layers.len()),
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n\
         <p>Error of Y = X&middot;W<sup>T</sup>, dX = dY&middot;W and dW = dY<sup>T</sup>&middot;X against the exact \
         product, by recipe (how numbers became codes) and accumulation (how products became sums).</p>\n\
         {body}</main>\n</body>\n</html>\n"
    )
}

fn section(layer: &Layer) -> String {
    let mut text = format!(
        "<section aria-label=\"{name}\">\n<h2>{name}</h2>\n<p class=\"note\">x {}&times;{}, w {}&times;{}</p>\n",
        layer.tokens,
        layer.r#in,
        layer.out,
        layer.r#in,
        name = Escaped(&layer.name)
    );
    text += &ranking(layer);
    if !layer.budgets.is_empty() {
        text += &budget(&layer.budgets);
        text += &tiles(&layer.budgets);
    }
    if let Some(sweep) = &layer.sweep {
        text += "<h3>Error against bits and interval</h3>\n<p class=\"note\">What the sums alone add to the error \
                 of Y.</p>\n<div class=\"charts\" data-part=\"sweep\">\n";
        sweep.charts(&layer.name).iter().for_each(|chart| text += &line_chart(chart));
        text += "</div>\n";
    }
    text + "</section>\n"
}

fn key<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let item = |(name, color): (&str, &str)| {
        format!("<li><i style=\"background:{color}\"></i>{}</li>", Escaped(name))
    };
    let items: String = names.into_iter().zip(COLORS).map(item).collect();
    format!("<ul class=\"key\" aria-hidden=\"true\">{items}</ul>\n")
}

/// A table that scrolls sideways in a narrow window, closed at first.
fn numbers(summary: &str, titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = String>| -> String {
        cells.map(|c| format!("<{tag}>{}</{tag}>", Escaped(c))).collect()
    };
    let head = cells("th", &mut titles.iter().map(|t| (*t).to_owned()));
    let rows: String =
        rows.into_iter().map(|row| format!("<tr>{}</tr>\n", cells("td", &mut row.into_iter()))).collect();
    format!(
        "<details><summary>{summary}</summary>\n<div class=\"scroll\" tabindex=\"0\"><table>\n<thead><tr>{head}</tr>\
         </thead>\n<tbody>\n{rows}</tbody></table></div></details>\n"
    )
}

/// Bars on a logarithmic scale from the decade below the smallest error.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Scale {
        let positive = || values.clone().filter(|v| *v > 0.0 && v.is_finite());
        let low = positive().fold(f64::INFINITY, f64::min).log10().floor();
        let high = positive().fold(f64::NEG_INFINITY, f64::max).log10();
        if low < high { Scale { low, high } } else { Scale { low: low - 1.0, high: low.max(high) } }
    }

    /// Length in percent.
    fn length(&self, value: f64) -> f64 {
        if value <= 0.0 || !self.low.is_finite() {
            return 0.0;
        }
        (100.0 * (value.log10() - self.low) / (self.high - self.low)).clamp(0.0, 100.0)
    }
}

fn bar(color: &str, length: f64, label: &str, value: &str) -> String {
    format!(
        "<div class=\"bar\"><div class=\"track\" role=\"img\" aria-label=\"{label} {value}\" title=\"{label} \
         {value}\"><div class=\"fill\" style=\"width:{length:.1}%;background:{color}\"></div></div>\
         <span class=\"value\">{value}</span></div>"
    )
}

fn named(recipe: &Scheme, accumulation: &Arithmetic, bars: &str) -> String {
    format!(
        "<div class=\"row\"><div class=\"name\"><b>{}</b> {}</div><div class=\"bars\">{bars}</div></div>\n",
        Escaped(recipe),
        Escaped(accumulation)
    )
}

fn ranking(layer: &Layer) -> String {
    let error = |row: &ComparisonRow, pass| row.pass(pass).map(|p| 100.0 * p.report.total.relative_frobenius);
    let measured: Vec<&ComparisonRow> = layer.rows.iter().filter(|r| !r.passes().is_empty()).collect();
    let scale = Scale::of(measured.iter().flat_map(|r| Pass::ALL.map(|p| error(r, p))).flatten());
    let passes: Vec<Pass> =
        Pass::ALL.into_iter().filter(|p| measured.iter().any(|r| r.pass(*p).is_some())).collect();
    let mut text = format!(
        "<h3>Ranking</h3>\n<p class=\"note\">Relative error, best first; bars are logarithmic.</p>\n{}\
         <div class=\"rows\" data-part=\"ranking\">\n",
        key(passes.iter().map(|p| p.result()))
    );
    for row in measured {
        let bars = passes.iter().zip(COLORS).filter_map(|(pass, color)| {
            let value = error(row, *pass)?;
            Some(bar(color, scale.length(value), pass.result(), &format!("{} %", digits(value))))
        });
        text += &named(&row.scheme, &row.accumulation, &bars.collect::<String>());
    }
    text + "</div>\n"
}

fn over_all(layers: &[Layer]) -> String {
    let rows = summary(layers);
    let scale = Scale::of(rows.iter().map(|r| r.error));
    let mut text = format!(
        "<section aria-label=\"all layers\">\n<h2>All {} layers</h2>\n<p class=\"note\">Geometric mean of the \
         relative errors, best first; bars are logarithmic.</p>\n<div class=\"rows\" data-part=\"summary\">\n",
        layers.len()
    );
    for row in rows {
        let value = format!("{} %", digits(row.error));
        let bar = bar(COLORS[0], scale.length(row.error), "mean error", &value);
        text += &named(&row.recipe, &row.arithmetic, &bar);
    }
    text + "</div>\n</section>\n"
}

/// Without the percent sign that a table's column has.
fn stage_names() -> impl Iterator<Item = &'static str> {
    STAGES.iter().map(|name| name.trim_end_matches(" %"))
}

/// Shares as a bar: what a stage took back stands, hatched, to the left of zero.
fn stack(shares: &[(usize, f64)]) -> String {
    let whole: f64 = shares.iter().map(|(_, s)| s.abs()).sum();
    let segment = |&(at, s): &(usize, f64)| {
        let (width, class) = (100.0 * s.abs() / whole, if s < 0.0 { "negative" } else { "" });
        let name = stage_names().nth(at).unwrap_or_default();
        format!(
            "<span class=\"{class}\" style=\"width:{width:.2}%;background-color:{}\" title=\"{name} {} %\"></span>",
            COLORS[at],
            share(s)
        )
    };
    let part = |negative: bool| -> String {
        shares.iter().filter(|(_, s)| *s != 0.0 && (*s < 0.0) == negative).map(segment).collect()
    };
    let words: Vec<String> = shares
        .iter()
        .map(|&(at, s)| format!("{} {} %", stage_names().nth(at).unwrap_or_default(), share(s)))
        .collect();
    // A mark for what cannot be seen would be taken for more.
    let visible = shares.iter().any(|(_, s)| *s < -0.005);
    let zero = if visible { "<span class=\"zero\"></span>" } else { "" };
    format!(
        "<div class=\"stack\" role=\"img\" aria-label=\"{}\">{}{zero}{}</div>",
        words.join(", "),
        part(true),
        part(false)
    )
}

fn budget(lines: &[BudgetLine]) -> String {
    let mut text = format!(
        "<h3>Error budget</h3>\n<p class=\"note\">What each stage adds to the squared error of the result stored in \
         BF16: codes with exact scales, scales as stored, sums, the store. It adds up to 100 %; what a stage takes back \
         from others stands, hatched, left of the mark.</p>\n{}<div class=\"rows\" data-part=\"budget\">\n",
        key(stage_names())
    );
    for line in lines {
        let at = |stage: Stage| Stage::ALL.iter().position(|s| *s == stage).unwrap_or_default();
        let shares: Vec<(usize, f64)> = line.budget.stages.iter().map(|s| (at(s.stage), s.share)).collect();
        let total = format!("{} {} %", line.pass.result(), digits(100.0 * line.budget.total));
        let bar = format!("<div class=\"bar\">{}<span class=\"value\">{total}</span></div>", stack(&shares));
        text += &named(&line.recipe, &line.accumulation, &bar);
    }
    text += "</div>\n";
    let titles = [&["recipe", "accumulation", "of", "error %"], &STAGES[..]].concat();
    let row = |line: &BudgetLine| {
        let names = [line.recipe.to_string(), line.accumulation.to_string(), line.pass.result().to_owned()];
        let shares = Stage::ALL.map(|s| line.budget.share(s).map_or("-".to_owned(), share));
        names.into_iter().chain([digits(100.0 * line.budget.total)]).chain(shares).collect()
    };
    text + &numbers("The budget in numbers", &titles, lines.iter().map(row))
}

/// Heat maps of every recipe's results and operands, those of the best open, and the worst tiles by name.
fn tiles(lines: &[BudgetLine]) -> String {
    let mut text =
        "<h3>Error by tile</h3>\n<p class=\"note\">Relative error of 128&times;128 tiles: of the results, \
                    and of the operands that quantisation alone changed.</p>\n"
            .to_owned();
    let mut recipes: Vec<&Scheme> = Vec::new();
    for line in lines {
        if !recipes.contains(&&line.recipe) {
            recipes.push(&line.recipe);
        }
    }
    let quantized = recipes.iter().find(|r| ***r != Scheme::Bf16);
    for recipe in &recipes {
        let open = if quantized.is_none_or(|first| first == recipe) { " open" } else { "" };
        text += &format!(
            "<details{open}><summary>{}</summary>\n<div class=\"maps\" data-part=\"tiles\">\n",
            Escaped(recipe)
        );
        for line in lines.iter().filter(|l| l.recipe == **recipe) {
            let budget = &line.budget;
            text += &heat_map(line.pass.result(), budget.shape, budget.total, &budget.tiles);
            for operand in &budget.operands {
                text += &heat_map(operand.name, operand.shape, operand.relative, &operand.tiles);
            }
        }
        text += "</div></details>\n";
    }
    let titles = [&["recipe", "accumulation", "tile", "error %", "share %"], &STAGES[..]].concat();
    let row = |line: &BudgetLine, tile: &TileError| {
        let name = tile_name(line.pass.result(), tile, line.budget.shape);
        let stage = |s: &Stage| {
            let at = line.budget.stages.iter().position(|other| other.stage == *s);
            at.map_or("-".to_owned(), |at| share(tile.stages[at]))
        };
        let names = [line.recipe.to_string(), line.accumulation.to_string(), name];
        let cells = names.into_iter().chain([digits(100.0 * tile.relative)]);
        cells.chain([share(tile.share)]).chain(Stage::ALL.iter().map(stage)).collect()
    };
    let rows = lines.iter().flat_map(|line| line.budget.tiles.iter().take(WORST).map(move |t| row(line, t)));
    text + &numbers("The tiles that hold most of the error, by name", &titles, rows)
}
