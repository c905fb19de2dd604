//! Pictures: relative error by recipe and accumulation as a dot plot, one SVG.

use std::path::Path;

use finegrain::checkpoint::write_atomically;
use finegrain::{Error, Result};
use plotters::element::{Drawable, DynElement, IntoDynElement, PointCollection};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One line of the plot: a label and a value for each series; `None` where there is none.
pub(crate) struct Line {
    pub(crate) label: String,
    pub(crate) values: Vec<Option<f64>>,
}

const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 24;
const LABEL_WIDTH: u32 = 270;
/// Colours told apart in every common form of colour blindness (Okabe and Ito), with a shape each.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];

/// Writes the plot. Values are in percent; the axis is logarithmic.
pub(crate) fn errors(path: &Path, title: &str, series: &[&str], lines: &[Line]) -> Result<()> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg")) {
        return Err(Error::file(path, "plots are written as .svg"));
    }
    let svg = draw(title, series, lines).map_err(|e| Error::file(path, format!("plot: {e}")))?;
    write_atomically(path, |out| out.write_all(svg.as_bytes()))
}

fn draw(
    title: &str,
    series: &[&str],
    lines: &[Line],
) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let positive = || lines.iter().flat_map(|l| l.values.iter().flatten().copied()).filter(|v| *v > 0.0);
    let low = positive().fold(f64::INFINITY, f64::min);
    let high = positive().fold(0.0, f64::max);
    // Whole decades, so that the axis has ticks at both ends.
    let (low, high) = if low <= high {
        (decade(low / 1.05, f64::floor), decade(high * 1.05, f64::ceil))
    } else {
        (0.1, 10.0)
    };

    let mut svg = String::new();
    {
        let height = 110 + ROW_HEIGHT * lines.len() as u32;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let rows = lines.len() as f64;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(LABEL_WIDTH)
            .build_cartesian_2d((low..high).log_scale(), rows..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc("relative error, % (smaller is better)")
            .x_label_formatter(&|v| format!("{}", (v * 1e6).round() / 1e6))
            .light_line_style(BLACK.mix(0.06))
            .draw()?;
        let grey = BLACK.mix(0.15);
        for (i, line) in lines.iter().enumerate() {
            let y = i as f64 + 0.5;
            chart.draw_series(std::iter::once(PathElement::new(vec![(low, y), (high, y)], grey)))?;
            let style = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
            let (_, pixel_y) = chart.backend_coord(&(low, y));
            root.draw(&Text::new(line.label.clone(), (LABEL_WIDTH as i32 + 4, pixel_y), style))?;
        }
        for (s, (name, colour)) in series.iter().zip(COLOURS).enumerate() {
            let points: Vec<(f64, f64)> = lines
                .iter()
                .enumerate()
                .filter_map(|(i, l)| Some((l.values[s].filter(|v| *v > 0.0)?, i as f64 + 0.5)))
                .collect();
            chart.draw_series(points.into_iter().map(|p| marker(s, p, colour)))?;
            // The legend stands below the labels, where no point can be.
            let y = height as i32 - 14 - 20 * (series.len() - 1 - s) as i32;
            root.draw(&marker(s, (22, y), colour))?;
            let style = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new((*name).to_owned(), (34, y), style))?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// The power of ten next to x on the side that `round` says.
fn decade(x: f64, round: impl Fn(f64) -> f64) -> f64 {
    // Just past it, or rounding may leave the tick outside the axis.
    let exponent = round(x.log10());
    10f64.powf(exponent) * if exponent < x.log10() { 0.9999 } else { 1.0001 }
}

/// Series differ by shape as well as by colour.
fn marker<C: Clone + 'static, DB: DrawingBackend>(
    series: usize,
    at: C,
    colour: RGBColor,
) -> DynElement<'static, DB, C>
where
    for<'a> &'a Circle<C, i32>: PointCollection<'a, C>,
    for<'a> &'a Cross<C, i32>: PointCollection<'a, C>,
    for<'a> &'a TriangleMarker<C, i32>: PointCollection<'a, C>,
    Circle<C, i32>: Drawable<DB>,
    Cross<C, i32>: Drawable<DB>,
    TriangleMarker<C, i32>: Drawable<DB>,
{
    match series {
        0 => Circle::new(at, 5, colour.filled()).into_dyn(),
        1 => TriangleMarker::new(at, 6, colour.filled()).into_dyn(),
        _ => Cross::new(at, 5, colour.stroke_width(2)).into_dyn(),
    }
}
