//! Tolerances for a kernel test of a layer, and how much of them and of the rigorous bound the results use.

use super::ToleranceLine;
use super::report::short;
use crate::cli::output::Table;

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
        let check = &line.check;
        let (m, n, k) = check.shape;
        table.row([
            line.recipe.to_string(),
            line.accumulation.to_string(),
            line.result.to_owned(),
            format!("{m}x{n}x{k}"),
            format!("{:.2e}", check.quantized.atol),
            short(100.0 * check.quantized_used),
            format!("{:.2e}", check.original.atol),
            short(100.0 * check.original_used),
            format!("{:.1e}", check.original.rtol),
            check.largest_bound.map_or("-".to_owned(), |b| format!("{b:.2e}")),
            short(100.0 * check.bound.worst),
            check.bound.violations.to_string(),
        ]);
    }
    table.render()
}

pub(super) const LEGEND: &str = "\
tolerance      |D - R| <= atol + rtol |R|, R from the quantised operands or from the originals; made for products of
               mean 0, so that more than 100 % is used where they have one sign
largest bound  rigorous for this data; 'beyond' counts results that break their own, which no right kernel has
";
