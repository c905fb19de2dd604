//! Pictures as SVG: relative error by recipe and accumulation as a dot plot, and errors of a sweep as lines.

use std::path::Path;

use crate::checkpoint::write_atomically;
use crate::{Error, Result};
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
const COLORS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];

/// A chart of errors in percent over a number: names and points.
pub(crate) struct Chart {
    pub(crate) title: String,
    /// What x is.
    pub(crate) x: String,
    /// Whether x is on a logarithmic axis; errors always are.
    pub(crate) logarithmic: bool,
    pub(crate) lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// What is written, by the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Svg,
    Html,
}

impl Kind {
    pub(crate) fn of(path: &Path) -> Result<Kind> {
        let is = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
        match (is("svg"), is("html")) {
            (true, _) => Ok(Kind::Svg),
            (_, true) => Ok(Kind::Html),
            _ => Err(Error::file(path, "plots are written as .svg, pages as .html")),
        }
    }
}

/// Writes the dot plot. Values are in percent; the axis is logarithmic.
pub(crate) fn errors(path: &Path, title: &str, series: &[&str], lines: &[Line]) -> Result<()> {
    write(path, draw(title, series, lines))
}

/// Writes charts below one another.
pub(crate) fn sweeps(path: &Path, charts: &[Chart]) -> Result<()> {
    write(path, draw_charts(charts))
}

type Drawn = std::result::Result<String, Box<dyn std::error::Error>>;

fn write(path: &Path, drawn: Drawn) -> Result<()> {
    let svg = drawn.map_err(|e| Error::file(path, format!("plot: {e}")))?;
    write_atomically(path, |out| out.write_all(svg.as_bytes()))
}

const CHART_HEIGHT: u32 = 380;

fn draw_charts(charts: &[Chart]) -> Drawn {
    let mut svg = String::new();
    {
        let height = CHART_HEIGHT * charts.len().max(1) as u32;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        for (chart, area) in charts.iter().zip(root.split_evenly((charts.len().max(1), 1))) {
            draw_chart(chart, &area)?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// One chart. A logarithmic x is drawn as log2, with ticks that say 2^x.
fn draw_chart(
    chart: &Chart,
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let place = |x: f64| if chart.logarithmic { x.log2() } else { x };
    let all = || chart.lines.iter().flat_map(|(_, points)| points.iter().copied());
    let (low, high) = range(all().map(|(_, y)| y));
    let left = all().map(|(x, _)| place(x)).fold(f64::INFINITY, f64::min);
    let right = all().map(|(x, _)| place(x)).fold(f64::NEG_INFINITY, f64::max);
    let (left, right) = if left < right { (left, right) } else { (0.0, 1.0) };
    let mut plot = ChartBuilder::on(area)
        .caption(&chart.title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(90)
        .build_cartesian_2d(left..right, (low..high).log_scale())?;
    plot.configure_mesh()
        .x_desc(chart.x.as_str())
        .y_desc("error, %")
        .y_label_formatter(&|v| format!("{}", (v * 1e9).round() / 1e9))
        .x_label_formatter(&|v| {
            if chart.logarithmic { format!("{}", v.exp2().round()) } else { format!("{v}") }
        })
        .light_line_style(BLACK.mix(0.06))
        .draw()?;
    for (s, ((name, points), color)) in chart.lines.iter().zip(COLORS).enumerate() {
        // A logarithmic axis has no place for an error of 0.
        let shown: Vec<(f64, f64)> = points.iter().filter(|p| p.1 > 0.0).map(|p| (place(p.0), p.1)).collect();
        let line = LineSeries::new(shown.iter().copied(), color.stroke_width(2));
        plot.draw_series(line)?.label(name).legend(move |(x, y)| marker(s, (x + 10, y), color));
        plot.draw_series(shown.into_iter().map(|p| marker(s, p, color)))?;
    }
    // Curves over F fall and leave the lower left free; those over the interval leave a gap between two models.
    let free =
        if chart.logarithmic { SeriesLabelPosition::MiddleRight } else { SeriesLabelPosition::LowerLeft };
    plot.configure_series_labels()
        .position(free)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Whole decades around the positive values, so that the axis has ticks at both ends.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let positive = || values.clone().filter(|v| *v > 0.0 && v.is_finite());
    let low = positive().fold(f64::INFINITY, f64::min);
    let high = positive().fold(0.0, f64::max);
    if low <= high { (decade(low / 1.05, f64::floor), decade(high * 1.05, f64::ceil)) } else { (0.1, 10.0) }
}

fn draw(title: &str, series: &[&str], lines: &[Line]) -> Drawn {
    let (low, high) = range(lines.iter().flat_map(|l| l.values.iter().flatten().copied()));
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
        let gray = BLACK.mix(0.15);
        for (i, line) in lines.iter().enumerate() {
            let y = i as f64 + 0.5;
            chart.draw_series(std::iter::once(PathElement::new(vec![(low, y), (high, y)], gray)))?;
            let style = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
            let (_, pixel_y) = chart.backend_coord(&(low, y));
            root.draw(&Text::new(line.label.clone(), (LABEL_WIDTH as i32 + 4, pixel_y), style))?;
        }
        for (s, (name, color)) in series.iter().zip(COLORS).enumerate() {
            let points: Vec<(f64, f64)> = lines
                .iter()
                .enumerate()
                .filter_map(|(i, l)| Some((l.values[s].filter(|v| *v > 0.0)?, i as f64 + 0.5)))
                .collect();
            chart.draw_series(points.into_iter().map(|p| marker(s, p, color)))?;
            // The legend stands below the labels, where no point can be.
            let y = height as i32 - 14 - 20 * (series.len() - 1 - s) as i32;
            root.draw(&marker(s, (22, y), color))?;
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
    color: RGBColor,
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
        0 => Circle::new(at, 5, color.filled()).into_dyn(),
        1 => TriangleMarker::new(at, 6, color.filled()).into_dyn(),
        _ => Cross::new(at, 5, color.stroke_width(2)).into_dyn(),
    }
}
