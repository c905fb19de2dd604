//! Error against the bits that a tensor core keeps, and against the promotion interval.

use crate::accuracy::{Comparison, Series, Sweep, SweepPlan};
use crate::gemm::{Accumulation, Arithmetic, Model, TensorCore};
use crate::linear::Scheme;
use serde::Serialize;

use super::report::short;
use crate::cli::output::Table;
use crate::cli::plot::Chart;

/// The sweep of a layer's Fprop.
#[derive(Serialize)]
pub(super) struct LayerSweep {
    pub(super) recipe: Scheme,
    /// The promotion interval at which F is swept; `null` for one chain.
    pub(super) interval: Option<usize>,
    #[serde(flatten)]
    pub(super) sweep: Sweep,
}

/// One scale for each tensor allows every interval.
const DEFAULT_RECIPE: &str = "te-current";

/// The first tensor core asked for, with the first recipe that it takes; or Hopper with scales per tensor.
pub(super) fn plan(schemes: &[Scheme], arithmetics: &[Arithmetic]) -> crate::Result<SweepPlan> {
    let core_of = |a: &Arithmetic| match a.model() {
        Model::TensorCore(core) => Some(match a {
            Arithmetic::Fixed(fixed) => (core, fixed.interval()),
            Arithmetic::Fitting(_) | Arithmetic::Library(..) => (core, Accumulation::F32.interval()),
        }),
        Model::F32 | Model::Exact => None,
    };
    let (core, interval) =
        arithmetics.iter().find_map(core_of).unwrap_or((TensorCore::HOPPER, Accumulation::F32.interval()));
    let default: Scheme = DEFAULT_RECIPE.parse()?;
    Ok(SweepPlan { core, interval, scheme: schemes.contains(&default).then_some(default) })
}

impl LayerSweep {
    pub(super) fn new(recipe: Scheme, comparison: &Comparison<'_>, sweep: Sweep) -> LayerSweep {
        let interval = comparison.sweep.and_then(|plan| plan.interval);
        LayerSweep { recipe, interval: interval.map(|n| n.get()), sweep }
    }

    /// What is swept, in words: once against F, once against the interval.
    pub(super) fn titles(&self) -> [String; 2] {
        let interval =
            self.interval.map_or("without promotion".to_owned(), |n| format!("promoted every {n}"));
        [
            format!("{}, {}, {interval}", self.recipe, self.sweep.core),
            format!("{}, {} and f32", self.recipe, self.sweep.core),
        ]
    }

    pub(super) fn table(&self) -> String {
        let [by_bits, by_interval] = self.titles();
        let one = |title: &str, x: &str, series: &[Series]| {
            let head: Vec<String> =
                series.iter().flat_map(|s| [format!("{} %", s.name), "bias %".to_owned()]).collect();
            let titles: Vec<&str> = [x].into_iter().chain(head.iter().map(String::as_str)).collect();
            let mut table = Table::new(&titles);
            for x in places(series) {
                let of = |s: &Series| {
                    let point = s.points.iter().find(|p| p.x == x);
                    point.map_or(["-".to_owned(), "-".to_owned()], |p| {
                        [short(100.0 * p.error), short(100.0 * p.bias)]
                    })
                };
                table.row([x.to_string()].into_iter().chain(series.iter().flat_map(of)));
            }
            format!("{title}: error of Y by the sums alone\n{}\n", table.render())
        };
        one(&format!("sweep of F: {by_bits}"), "F", &self.sweep.fraction_bits)
            + &one(
                &format!("sweep of the promotion interval: {by_interval}"),
                "interval",
                &self.sweep.intervals,
            )
    }

    /// Both sweeps as charts.
    pub(super) fn charts(&self, layer: &str) -> [Chart; 2] {
        let [by_bits, by_interval] = self.titles();
        let lines = |series: &[Series]| {
            let points = |s: &Series| s.points.iter().map(|p| (p.x as f64, 100.0 * p.error)).collect();
            series.iter().map(|s| (s.name.clone(), points(s))).collect()
        };
        [
            Chart {
                title: format!("{layer}: {by_bits}"),
                x: "F, fraction bits kept of the aligned products".to_owned(),
                logarithmic: false,
                lines: lines(&self.sweep.fraction_bits),
            },
            Chart {
                title: format!("{layer}: {by_interval}"),
                x: "promotion interval, elements of K (the last: no promotion)".to_owned(),
                logarithmic: true,
                lines: lines(&self.sweep.intervals),
            },
        ]
    }
}

/// Every x of the series, ascending.
pub(super) fn places(series: &[Series]) -> Vec<usize> {
    let mut all: Vec<usize> = series.iter().flat_map(|s| s.points.iter().map(|p| p.x)).collect();
    all.sort_unstable();
    all.dedup();
    all
}
