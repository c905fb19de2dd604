//! What it usually means where no arithmetic is exact, or several are.

use super::computed::Computed;
use super::search::Search;
use super::tiles::Parts;
use super::{Differences, Match};
use crate::error::Result;
use crate::gemm::GemmProblem;
use crate::scaled::{ScaleGridRef, ScaledRef};

/// Units in the last place up to which a result is one of other roundings.
const ROUNDINGS: u32 = 64;
/// What kernels cut K into.
const STEPS: [usize; 4] = [128, 64, 32, 16];

/// A change of the operands, and what was forgotten if a result fits it.
type Change<'c, 'p> = (String, Box<dyn Fn(&GemmProblem<'p>) -> Option<GemmProblem<'p>> + 'c>);

/// The hints of a search that found `nearest` and nothing exact.
pub(super) fn of<'p>(
    search: &Search<'_, 'p>,
    nearest: &[Match],
    differences: Option<&Differences>,
) -> Result<Vec<String>> {
    let mut hints = Vec::new();
    for (what, change) in changes(&search.parts) {
        if let Some(accumulation) = search.exact_if(&*change)? {
            hints.push(format!("{what}: without it {accumulation} gives every bit of a sample"));
        }
    }
    if let (true, Some(nearest), Some(differences)) = (hints.is_empty(), nearest.first(), differences) {
        hints.push(by_place(nearest, differences));
    }
    Ok(hints)
}

/// What may have been left out.
fn changes<'p>(parts: &Parts<'p>) -> Vec<Change<'static, 'p>> {
    let mut all: Vec<Change<'static, 'p>> = Vec::new();
    if parts.problems().any(|p| p.addend().is_some()) {
        all.push(("d was computed without c".to_owned(), Box::new(|p| GemmProblem::nt(*p.a(), *p.b()).ok())));
    }
    let scaled =
        |of: fn(&GemmProblem<'p>) -> ScaledRef<'p>| parts.problems().any(|p| of(p).scales().is_some());
    let (a, b) = (scaled(|p| *p.a()), scaled(|p| *p.b()));
    let sides = [("a", a, [true, false]), ("b", b, [false, true]), ("a and b", a && b, [true, true])];
    for (name, there, without) in sides {
        if there {
            all.push((
                format!("d was computed without the scales of {name}"),
                Box::new(move |p| {
                    let bare =
                        |x: &ScaledRef<'p>, without: bool| if without { x.without_scales() } else { *x };
                    again(p, bare(p.a(), without[0]), bare(p.b(), without[1]))
                }),
            ));
        }
    }
    let k = parts.k();
    let mut tails: Vec<usize> =
        STEPS.iter().map(|step| k / step * step).filter(|&whole| 0 < whole && whole < k).collect();
    tails.dedup();
    for whole in tails {
        all.push((
            format!("d lacks the tail of K from {whole} to {k}"),
            Box::new(move |p| {
                let end = whole.min(p.k());
                again(p, p.a().k_range(0..end)?, p.b().k_range(0..end)?)
            }),
        ));
    }
    all
}

/// A problem with other operands.
fn again<'p>(p: &GemmProblem<'p>, a: ScaledRef<'p>, b: ScaledRef<'p>) -> Option<GemmProblem<'p>> {
    let problem = GemmProblem::nt(a, b).ok()?;
    match p.addend() {
        Some(c) => problem.with_addend(c).ok(),
        None => Some(problem),
    }
}

/// What the places of the differences say.
fn by_place(nearest: &Match, differences: &Differences) -> String {
    let Differences { rows, cols, tiles, .. } = differences;
    let few = |[differ, of]: [usize; 2]| differ * 2 < of;
    let most = |[differ, of]: [usize; 2]| differ * 10 > of * 9;
    let accumulation = nearest.accumulation;
    if few(*rows) && most(*cols) {
        return format!(
            "only {} of {} rows differ: scales of other rows, rows of another group, or a tile of rows that is not full",
            rows[0], rows[1]
        );
    }
    if few(*cols) && most(*rows) {
        return format!(
            "only {} of {} columns differ: scales of other rows of b, or a tile of columns that is not full",
            cols[0], cols[1]
        );
    }
    if nearest.differ * 100 < nearest.of {
        return format!(
            "all but {} of {} elements are those of {accumulation}: a race, memory that was overwritten, or a path of the \
             kernel that few elements take",
            nearest.differ, nearest.of
        );
    }
    if few(*tiles) {
        return format!(
            "only {} of {} tiles of 128x128 differ from {accumulation}: a scale of those blocks, or a kernel that cuts K for \
             some tiles only",
            tiles[0], tiles[1]
        );
    }
    if nearest.max_ulps <= ROUNDINGS {
        return format!(
            "{} of {} elements differ from {accumulation}, by at most {} units in the last place: other roundings of the same \
             product, such as an order of sums, an interval or an accumulator that is not among those tried",
            nearest.differ, nearest.of, nearest.max_ulps
        );
    }
    format!(
        "{} of {} elements differ from {accumulation}, by up to {} units in the last place, in all rows and columns: other \
         operands, scales that belong elsewhere (transposed, or of another granule), or elements lost to cancellation",
        nearest.differ, nearest.of, nearest.max_ulps
    )
}

/// What would tell several exact arithmetics apart.
pub(super) fn undecided(parts: &Parts<'_>, d: &Computed<'_>, exact: usize, tried: usize) -> String {
    let mut means = Vec::new();
    if parts.k() <= STEPS[0] {
        means.push(format!("K above {} (it is {}), so that sums are promoted", STEPS[0], parts.k()));
    }
    if !matches!(d, Computed::F32(_)) {
        means.push(format!("d in f32 ({} hides the last bits of sums)", d.format()));
    }
    let powers = |x: &ScaledRef<'_>| match x.scales().map(|s| s.grid) {
        None | Some(ScaleGridRef::E8M0(_)) => true,
        Some(ScaleGridRef::F32(grid)) => grid.iter_rows().flatten().all(|s| s.to_bits() & 0x7F_FFFF == 0),
        Some(ScaleGridRef::E4M3(_)) => false,
    };
    let scaled = parts.problems().any(|p| p.a().scales().is_some() || p.b().scales().is_some());
    if scaled && parts.problems().all(|p| powers(p.a()) && powers(p.b())) {
        means.push("scales that are no powers of two, which no order rounds".to_owned());
    }
    if parts.elements() < 1 << 12 {
        means.push(format!("more elements than {}", parts.elements()));
    }
    if means.is_empty() {
        means.push(
            "operands of more exponents, whose sums no accumulator holds exactly, and a longer K".to_owned(),
        );
    }
    format!("{exact} of {tried} arithmetics give these bits; to tell them apart: {}", means.join("; "))
}
