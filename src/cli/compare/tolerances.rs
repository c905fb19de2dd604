//! Tolerances for a kernel test of a layer, and how much of them and of the rigorous bound the results use.

use crate::accuracy::{
    BoundCheck, ComparisonRow, Linear, OutputFormat, Scheme, Tolerance, Tolerances, bound, product_rms,
    tolerance,
};
use crate::gemm::Execution;
use crate::matrix::Matrix;
use serde::Serialize;

use super::report::short;
use crate::cli::output::Table;

/// The tolerances of one GEMM. `atol` is for its operands as they are: multiplied by their [`product_rms`].
#[derive(Serialize)]
pub(super) struct ToleranceLine {
    recipe: String,
    accumulation: String,
    result: &'static str,
    shape: (usize, usize, usize),
    /// Against the exact product of the quantised operands.
    quantised: Tolerance,
    /// The largest error over its tolerance.
    quantised_used: f64,
    /// Against the exact product of the originals.
    original: Tolerance,
    original_used: f64,
    /// The rigorous bound, and the largest error over it.
    bound: BoundCheck,
    /// The largest bound that there is; null if there is none.
    largest_bound: Option<f64>,
}

pub(super) fn measure(
    linear: &Linear,
    rows: &[ComparisonRow],
    execution: &Execution<'_>,
) -> crate::Result<Vec<ToleranceLine>> {
    let mut lines = Vec::new();
    for &pass in linear.passes() {
        let exact = linear.exact(pass)?;
        for row in rows.iter().filter(|r| !r.passes().is_empty()) {
            let scheme = Scheme::by_name(&row.scheme)?;
            let quantized = linear.quantized(pass, &scheme, &exact)?;
            let problem = quantized.problem()?.with_arithmetic(&row.arithmetic)?;
            let d = problem.run_with(execution)?;
            let shape = (problem.m(), problem.n(), problem.k());
            let Tolerances { quantised, original } =
                tolerance(shape, &scheme, pass, problem.accumulation(), OutputFormat::F32);
            let scale = product_rms(problem.a().to_f64().view(), problem.b().to_f64().view());
            let (quantised, original) = (quantised.scaled(scale), original.scaled(scale));
            let used = |t: Tolerance, r: &Matrix<f64>| t.used(d.as_slice(), r.as_slice());
            let bound = execution.install(|| Ok(bound(&problem, OutputFormat::F32)))?;
            let finite = bound.bound.as_slice().iter().copied().filter(|b| b.is_finite());
            lines.push(ToleranceLine {
                recipe: row.scheme.clone(),
                accumulation: problem.accumulation().to_string(),
                result: pass.result(),
                shape,
                quantised,
                quantised_used: used(quantised, quantized.product()),
                original,
                original_used: used(original, &exact),
                bound: bound.check(d.view())?,
                largest_bound: finite.reduce(f64::max),
            });
        }
    }
    Ok(lines)
}

/// atol for this layer's operands, the largest error as a share of it, and of the bound.
pub(super) fn table(lines: &[ToleranceLine]) -> String {
    let mut table = Table::new(&[
        "<tolerance",
        "<accumulation",
        "<of",
        "MxNxK",
        "atol (quantised)",
        "used %",
        "atol (original)",
        "used %",
        "rtol",
        "largest bound",
        "used %",
        "beyond",
    ]);
    for line in lines {
        let (m, n, k) = line.shape;
        table.row([
            line.recipe.clone(),
            line.accumulation.clone(),
            line.result.to_owned(),
            format!("{m}x{n}x{k}"),
            format!("{:.2e}", line.quantised.atol),
            short(100.0 * line.quantised_used),
            format!("{:.2e}", line.original.atol),
            short(100.0 * line.original_used),
            format!("{:.1e}", line.original.rtol),
            line.largest_bound.map_or("-".to_owned(), |b| format!("{b:.2e}")),
            short(100.0 * line.bound.worst),
            line.bound.violations.to_string(),
        ]);
    }
    table.render()
}

pub(super) const LEGEND: &str = "\
tolerance      |D - R| <= atol + rtol |R|, R from the quantised operands or from the originals; made for products of
               mean 0, so that more than 100 % is used where they have one sign
largest bound  rigorous for this data; 'beyond' counts results that break their own, which no right kernel has
";
