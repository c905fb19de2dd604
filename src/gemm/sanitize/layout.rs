//! What kernels ask of a grouped layout beyond its shapes.

use serde::Serialize;

use super::{GroupedOperands, Groups};
use crate::formats::{Unpacked, e8m0};
use crate::name::by_name;
use crate::scaled::{Granule, ScaledMatrix};

/// A rule of grouped layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Groups start at, and matrices end at, a multiple of the tile's rows; K of a k-group is a multiple of it.
    Alignment,
    /// Rows of two groups share no tile.
    BoundaryInTile,
    /// A group is one run of rows.
    SplitGroup,
    /// Every group has rows.
    EmptyGroup,
    /// Indices and counts lie in their range.
    IndexOutOfRange,
    /// Padding has the index −1.
    PaddingIndex,
    /// Scales are powers of two, where UE8M0 is asked for.
    PowerOfTwo,
    /// Scales of valid rows are finite and above 0.
    ScaleRange,
    /// Codes of valid rows are finite.
    NonFinite,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 9] = [
        Rule::Alignment,
        Rule::BoundaryInTile,
        Rule::SplitGroup,
        Rule::EmptyGroup,
        Rule::IndexOutOfRange,
        Rule::PaddingIndex,
        Rule::PowerOfTwo,
        Rule::ScaleRange,
        Rule::NonFinite,
    ];

    /// The name, as the command line takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::Alignment => "alignment",
            Rule::BoundaryInTile => "boundary-in-tile",
            Rule::SplitGroup => "split-group",
            Rule::EmptyGroup => "empty-group",
            Rule::IndexOutOfRange => "index-out-of-range",
            Rule::PaddingIndex => "padding-index",
            Rule::PowerOfTwo => "power-of-two",
            Rule::ScaleRange => "scale-range",
            Rule::NonFinite => "non-finite",
        }
    }
}

by_name!(Rule, "layout rule");

/// What a kernel asks of its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutRules {
    /// Rows of a tile (elements of K in k-grouped problems); DeepGEMM's is 128.
    pub align: usize,
    /// Whether scales must be powers of two, as UE8M0 stores them.
    pub power_of_two: bool,
}

impl Default for LayoutRules {
    fn default() -> Self {
        LayoutRules { align: 128, power_of_two: false }
    }
}

/// A rule that a layout breaks, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The group concerned, where there is one.
    pub group: Option<usize>,
    /// Where and how, with both numbers.
    pub message: String,
}

impl GroupedOperands {
    /// Every rule that the layout breaks, in the order of its rows.
    pub fn violations(&self, rules: LayoutRules) -> Vec<Violation> {
        let rules = LayoutRules { align: rules.align.max(1), ..rules };
        let mut found = Vec::new();
        let mut add = |rule, group: Option<usize>, message| {
            found.push(Violation { rule, group, message });
        };
        match self.groups() {
            Groups::Contiguous(rows) => contiguous(rows, self.b().len(), rules.align, &mut add),
            Groups::Masked(valid) => masked(valid, self.a(), rules.align, &mut add),
            Groups::K => {
                for (g, a) in self.a().iter().enumerate() {
                    let k = a.shape().1;
                    if k == 0 {
                        add(Rule::EmptyGroup, Some(g), format!("group {g} has K = 0"));
                    } else if !k.is_multiple_of(rules.align) {
                        let message = format!("K of group {g} is {k}, no multiple of {}", rules.align);
                        add(Rule::Alignment, Some(g), message);
                    }
                }
            }
        }
        for (g, a) in self.a().iter().enumerate() {
            let name = if self.a().len() == 1 { "a".to_owned() } else { format!("a of group {g}") };
            values(
                &name,
                a,
                |i| self.is_valid(g, i),
                rules,
                Some(g).filter(|_| self.a().len() > 1),
                &mut add,
            );
        }
        for (g, b) in self.b().iter().enumerate() {
            values(&format!("b of group {g}"), b, |_| self.is_used(g), rules, Some(g), &mut add);
        }
        found
    }
}

type Add<'a> = dyn FnMut(Rule, Option<usize>, String) + 'a;

/// The index of padding.
const PADDING: i32 = -1;

fn contiguous(rows: &[i32], groups: usize, align: usize, add: &mut Add<'_>) {
    let mut runs = vec![0; groups];
    let mut start = 0;
    for run in rows.chunk_by(|x, y| x == y) {
        let (index, first, last) = (run[0], start, start + run.len() - 1);
        start += run.len();
        match usize::try_from(index) {
            Ok(g) if g < groups => {
                runs[g] += 1;
                if !first.is_multiple_of(align) {
                    let message = format!("group {g} starts at row {first}, no multiple of {align}");
                    add(Rule::Alignment, Some(g), message);
                }
                if runs[g] == 2 {
                    add(
                        Rule::SplitGroup,
                        Some(g),
                        format!("group {g} goes on at row {first} after other rows"),
                    );
                }
            }
            Ok(_) => {
                let message =
                    format!("rows {first} to {last} belong to group {index}, expected 0 to {}", groups - 1);
                add(Rule::IndexOutOfRange, None, message);
            }
            Err(_) if index != PADDING => {
                let message = format!("rows {first} to {last} have index {index}, padding is {PADDING}");
                add(Rule::PaddingIndex, None, message);
            }
            Err(_) => {}
        }
    }
    if !rows.len().is_multiple_of(align) {
        add(Rule::Alignment, None, format!("a ends at row {}, no multiple of {align}", rows.len()));
    }
    for (t, tile) in rows.chunks(align).enumerate() {
        let mut inside: Vec<i32> = tile.iter().copied().filter(|&g| g >= 0).collect();
        inside.sort_unstable();
        inside.dedup();
        if inside.len() > 1 {
            let first = t * align;
            let message = format!(
                "the tile of rows {first} to {} holds rows of groups {} and {}",
                first + tile.len() - 1,
                inside[0],
                inside[1]
            );
            add(Rule::BoundaryInTile, None, message);
        }
    }
    for (g, _) in runs.iter().enumerate().filter(|(_, runs)| **runs == 0) {
        add(Rule::EmptyGroup, Some(g), format!("no row belongs to group {g}"));
    }
}

fn masked(valid: &[usize], a: &[ScaledMatrix], align: usize, add: &mut Add<'_>) {
    for (g, (&valid, a)) in valid.iter().zip(a).enumerate() {
        let rows = a.shape().0;
        if valid > rows {
            add(Rule::IndexOutOfRange, Some(g), format!("group {g} has {valid} valid rows of {rows}"));
        }
        if valid == 0 {
            add(Rule::EmptyGroup, Some(g), format!("group {g} has no valid row"));
        }
        if !rows.is_multiple_of(align) {
            add(Rule::Alignment, Some(g), format!("a of group {g} has {rows} rows, no multiple of {align}"));
        }
    }
}

/// Scales and codes of the rows that count: how many break a rule, and the first.
fn values(
    name: &str,
    m: &ScaledMatrix,
    valid: impl Fn(usize) -> bool,
    rules: LayoutRules,
    group: Option<usize>,
    add: &mut Add<'_>,
) {
    let x = m.view();
    let (rows, cols) = x.shape();
    let spec = x.format().spec();
    let not_finite = |i: usize, j: usize| {
        let value = spec.decode(u64::from(x.codes().at(i, j)));
        matches!(value, Unpacked::Nan { .. } | Unpacked::Infinite { .. })
    };
    let places = || (0..rows).filter(|&i| valid(i)).flat_map(|i| (0..cols).map(move |j| (i, j)));
    let mut bad = places().filter(|&(i, j)| not_finite(i, j));
    if let Some((i, j)) = bad.next() {
        let count = 1 + bad.count();
        add(Rule::NonFinite, group, format!("{name}: {count} codes are not finite, the first at ({i}, {j})"));
    }
    let Some(scales) = x.scales() else { return };
    let (grid_rows, grid_cols) = scales.grid.shape();
    let counts = |r: usize| Granule::span(rows, scales.granule.rows(), r).any(&valid);
    let grid: Vec<(usize, usize, f32)> = (0..grid_rows)
        .filter(|&r| counts(r))
        .flat_map(|r| (0..grid_cols).map(move |c| (r, c)))
        .map(|(r, c)| (r, c, scales.grid.at(r, c)))
        .collect();
    let mut report = |rule, what: &str, breaks: &dyn Fn(f32) -> bool| {
        let mut bad = grid.iter().filter(|(.., s)| breaks(*s));
        if let Some((r, c, s)) = bad.next() {
            let count = 1 + bad.count();
            add(rule, group, format!("{name}: {count} scales are {what}, the first {s:e} at ({r}, {c})"));
        }
    };
    let in_range = |s: f32| s.is_finite() && s > 0.0;
    report(Rule::ScaleRange, "not finite and above 0", &|s| !in_range(s));
    if rules.power_of_two {
        report(Rule::PowerOfTwo, "no powers of two", &|s| in_range(s) && e8m0::exact_log2(s).is_none());
    }
}
