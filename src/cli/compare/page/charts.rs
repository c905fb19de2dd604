//! The drawn parts of the page: heat maps and line charts as inline SVG.

use std::fmt::Write;

use crate::accuracy::{TILE, TileError};

use super::super::report::{digits, short};
use super::{COLORS, Escaped, key, numbers};
use crate::cli::plot::Chart;

/// Pixels of a tile before the picture is scaled to its place.
const CELL: usize = 10;

/// A matrix by tile, darker where the error is larger, from none to the matrix' largest.
pub(super) fn heat_map(name: &str, shape: (usize, usize), total: f64, tiles: &[TileError]) -> String {
    let finite = || tiles.iter().map(|t| t.relative).filter(|r| r.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(0.0, f64::max));
    let (rows, cols) = (shape.0.div_ceil(TILE), shape.1.div_ceil(TILE));
    let mut cells = String::new();
    for tile in tiles {
        // Never quite transparent, so that a tile is told from the page.
        let opacity = 0.08 + 0.92 * if high > 0.0 { (tile.relative / high).min(1.0) } else { 0.0 };
        let title = format!("{} {} %", super::tile_name(name, tile, shape), digits(100.0 * tile.relative));
        let _ = write!(
            cells,
            "<rect x=\"{}\" y=\"{}\" width=\"{CELL}\" height=\"{CELL}\" \
             style=\"fill:rgba(var(--heat),{opacity:.2})\"><title>{}</title></rect>",
            tile.col / TILE * CELL,
            tile.row / TILE * CELL,
            Escaped(title)
        );
    }
    let caption = format!(
        "{} {}&times;{}: {} %, tiles {} to {} %",
        Escaped(name),
        shape.0,
        shape.1,
        digits(100.0 * total),
        digits(100.0 * low.min(high)),
        digits(100.0 * high)
    );
    // A tile is this wide, or as wide as there is room for.
    let width = 28 * cols;
    format!(
        "<figure><figcaption>{caption}</figcaption><svg role=\"img\" aria-label=\"{caption}\" viewBox=\"0 0 {} {}\" \
         style=\"max-width:{width}px\">{cells}</svg></figure>\n",
        cols * CELL,
        rows * CELL
    )
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 42.0;

/// Errors over a number; both axes as the chart says, the numbers in a table below.
pub(super) fn line_chart(chart: &Chart) -> String {
    let all = || chart.lines.iter().flat_map(|(_, points)| points.iter().copied()).filter(|p| p.1 > 0.0);
    if all().next().is_none() {
        return format!(
            "<figure><figcaption>{}</figcaption><p class=\"note\">No error at all.</p></figure>\n",
            Escaped(&chart.title)
        );
    }
    let place = |x: f64| if chart.logarithmic { x.log2() } else { x };
    let fold =
        |of: fn((f64, f64)) -> f64, pick: fn(f64, f64) -> f64, start: f64| all().map(of).fold(start, pick);
    let low = fold(|p| p.1, f64::min, f64::INFINITY).log10().floor();
    let high = fold(|p| p.1, f64::max, 0.0).log10().ceil().max(low + 1.0);
    let left = place(fold(|p| p.0, f64::min, f64::INFINITY));
    let right = place(fold(|p| p.0, f64::max, 0.0)).max(left + 1e-9);
    let x = |v: f64| LEFT + (WIDTH - LEFT - RIGHT) * (place(v) - left) / (right - left);
    let y = |v: f64| TOP + (HEIGHT - TOP - BOTTOM) * (high - v.log10()) / (high - low);

    let mut svg = String::new();
    // At most six labels, whatever the number of decades.
    let every = ((high - low) / 6.0).ceil().max(1.0) as usize;
    for decade in (low as i32..=high as i32).step_by(every) {
        let (value, at) = (10f64.powi(decade), y(10f64.powi(decade)));
        let label = if decade < -3 { format!("1e{decade}") } else { format!("{value}") };
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label} %</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    let mut places: Vec<f64> = all().map(|p| p.0).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let mut free = f64::NEG_INFINITY;
    for &v in &places {
        let at = x(v);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{}\"/>",
            HEIGHT - BOTTOM
        );
        // A label where there is room for it.
        let width = 8.0 * v.to_string().len() as f64;
        if at - width / 2.0 > free {
            let anchor = if at + width / 2.0 > WIDTH { "end" } else { "middle" };
            let _ = write!(
                svg,
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{v}</text>",
                HEIGHT - BOTTOM + 15.0
            );
            free = at + width / 2.0;
        }
    }
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0,
        Escaped(&chart.x)
    );
    for (s, ((name, points), color)) in chart.lines.iter().zip(COLORS).enumerate() {
        let shown: Vec<(f64, f64)> = points.iter().copied().filter(|p| p.1 > 0.0).collect();
        let path: Vec<String> = shown.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ =
            write!(svg, "<polyline class=\"curve\" style=\"stroke:{color}\" points=\"{}\"/>", path.join(" "));
        for p in shown {
            let title = format!("<title>{}, {}: {} %</title>", Escaped(name), p.0, short(p.1));
            let (cx, cy) = (x(p.0), y(p.1));
            // Series differ by shape as well as by colour.
            let _ = match s {
                0 => write!(
                    svg,
                    "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\" style=\"fill:{color}\">{title}</circle>"
                ),
                1 => write!(
                    svg,
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"7\" height=\"7\" style=\"fill:{color}\">{title}</rect>",
                    cx - 3.5,
                    cy - 3.5
                ),
                _ => write!(
                    svg,
                    "<path d=\"M{cx:.1} {:.1}l4.5 8h-9z\" style=\"fill:{color}\">{title}</path>",
                    cy - 5.0
                ),
            };
        }
    }
    let titles: Vec<String> =
        ["x".to_owned()].into_iter().chain(chart.lines.iter().map(|(n, _)| format!("{n}, %"))).collect();
    let row = |v: &f64| {
        let of = |(_, points): &(String, Vec<(f64, f64)>)| {
            points.iter().find(|p| p.0 == *v).map_or("-".to_owned(), |p| short(p.1))
        };
        [v.to_string()].into_iter().chain(chart.lines.iter().map(of)).collect()
    };
    let table = numbers(
        "The same in numbers",
        &titles.iter().map(String::as_str).collect::<Vec<_>>(),
        places.iter().map(row),
    );
    format!(
        "<figure><figcaption>{title}</figcaption>{key}<svg role=\"img\" aria-label=\"{title}: error over {axis}\" \
         viewBox=\"0 0 {WIDTH} {HEIGHT}\">{svg}</svg>{table}</figure>\n",
        title = Escaped(&chart.title),
        axis = Escaped(&chart.x),
        key = key(chart.lines.iter().map(|(name, _)| name.as_str())),
    )
}
