//! How a problem is cut: microtiles, blocks of K, blocks of D.

use std::ops::Range;

use finegrain_cpu::gemm::{self as cpu, Codes, GEMV_ROWS, INTERVALS, Intervals};

use super::super::intervals::{IntervalPart, cut};
use super::super::problem::GemmProblem;
use crate::scaled::{CodesRef, ScaledRef};
use crate::simd::{Gather, Geometry, Isa, KC, decoder};

/// Rows up to which A is packed whole, and the most elements of it (4 MiB packed).
const FEW_ROWS: usize = 32;
const FEW_ELEMENTS: usize = 1 << 20;

/// Rows and columns of a block of D, at most: its accumulators take 4 MiB, its packed A half of a second-level cache.
const BLOCK: usize = 1024;

/// Elements of K between a code of B that is packed and the one that is asked for from memory, where rows are few: two to
/// four blocks of K, each of which takes longer than memory does.
const AHEAD: usize = 512;

/// A problem and how it is cut.
pub(super) struct Plan<'p> {
    pub(super) problem: &'p GemmProblem<'p>,
    pub(super) isa: Isa,
    pub(super) geometry: &'static Geometry,
    pub(super) a: Codes<'p>,
    pub(super) b: Codes<'p>,
    pub(super) promotion: cpu::Promotion,
    /// MR.
    pub(super) mr: usize,
    /// Whether A is packed whole and the micropanels of B run outside the blocks of K.
    pub(super) few_rows: bool,
    /// The intervals that are summed side by side, from the first on, where rows are few.
    pub(super) side_by_side: Vec<Intervals>,
    /// How many of them packed A has side by side.
    pub(super) side_by_side_lanes: usize,
    /// The rest of K.
    pub(super) parts: Vec<IntervalPart>,
    /// Parts that are packed together, at most KC steps; where rows are many and K is 0, one of none.
    pub(super) k_blocks: Vec<Range<usize>>,
    /// Whether some interval goes beyond a block.
    pub(super) is_cut: bool,
    /// Where blocks of D begin, and the end.
    pub(super) row_cuts: Vec<usize>,
    pub(super) col_cuts: Vec<usize>,
}

/// An operand as the packing reads it; `None` where the format has no decoder.
pub(super) fn codes<'a>(x: &ScaledRef<'a>) -> Option<Codes<'a>> {
    let decoder = decoder(x.format())?;
    let (rows, k) = x.shape();
    let (data, stride) = match x.codes() {
        CodesRef::Bytes(m) => (m.strided(), m.stride()),
        CodesRef::Words(m) => (bytemuck::cast_slice(m.strided()), 2 * m.stride()),
        CodesRef::Dwords(_) => return None,
    };
    Some(Codes { data, stride, rows, k, decoder })
}

impl<'p> Plan<'p> {
    pub(super) fn new(problem: &'p GemmProblem<'p>, isa: Isa) -> Plan<'p> {
        const SUPPORTED: &str = "supported formats have decoders";
        let (m, n, k, geometry) = (problem.m(), problem.n(), problem.k(), isa.geometry());
        let (a, b) = (codes(problem.a()).expect(SUPPORTED), codes(problem.b()).expect(SUPPORTED));
        let few_rows = m <= FEW_ROWS && m * k <= FEW_ELEMENTS;
        let lanes = if few_rows { side_by_side_lanes(problem, &b, geometry) } else { 0 };
        let side_by_side = side_by_side(k, problem.interval(), lanes);
        let rest = side_by_side.last().map_or(0, |x| x.k + x.count * x.len);
        let parts = cut(problem, rest, KC * geometry.pair);
        let mr = geometry.mr(m);
        let (row_parts, col_parts) = block_counts(m, n, geometry.nr, few_rows);
        Plan {
            problem,
            isa,
            geometry,
            promotion: problem.accumulation().promotion().into(),
            mr,
            few_rows,
            k_blocks: if few_rows && parts.is_empty() { Vec::new() } else { k_blocks(&parts, geometry.pair) },
            side_by_side,
            side_by_side_lanes: lanes,
            is_cut: parts.iter().any(|part| !part.ends),
            parts,
            a,
            b,
            row_cuts: cuts(m, row_parts, mr),
            col_cuts: cuts(n, col_parts, geometry.nr),
        }
    }

    /// Bytes from a code of B over some parts of K to the one that is asked for from memory while that is packed: what is
    /// packed soon, in the next micropanel where jr runs inside pc or the row ends.
    pub(super) fn ahead(&self, parts: &[IntervalPart]) -> usize {
        let k = parts.first().map_or(0, |part| part.k.start);
        let next_panel = self.geometry.nr * self.b.stride;
        match self.few_rows {
            true if k + AHEAD < self.b.k => AHEAD * self.b.code_bytes(),
            true => next_panel
                .wrapping_add(AHEAD * self.b.code_bytes())
                .wrapping_sub(self.b.k * self.b.code_bytes()),
            false => next_panel,
        }
    }

    /// Packed elements of A over intervals side by side.
    pub(super) fn side_by_side_len(&self) -> usize {
        self.problem.m() * self.problem.interval().div_ceil(self.geometry.pair) * self.side_by_side_lanes
    }

    /// Where the intervals side by side begin.
    pub(super) fn side_by_side_intervals(&self) -> impl Iterator<Item = usize> {
        self.side_by_side.iter().flat_map(|x| (x.k..).step_by(x.len).take(x.count))
    }

    /// Whether the columns from `col` on, a multiple of the lanes, have other scales than those before.
    pub(super) fn scales_change_at(&self, col: usize) -> bool {
        let (b, lanes) = (self.problem.b(), self.geometry.lanes);
        let granule = b.scales().map_or(usize::MAX, |s| s.granule.rows());
        let aligned = granule.is_multiple_of(lanes) && b.row_offset().is_multiple_of(lanes);
        let one = b.row_offset() + self.problem.n() <= granule;
        !one && (!aligned || (b.row_offset() + col).is_multiple_of(granule))
    }
}

/// How many intervals lie side by side where rows are few: as many as lanes for the fewest, four where registers suffice,
/// else none. They must be promoted, short enough to be packed and whole chunks.
fn side_by_side_lanes(problem: &GemmProblem<'_>, b: &Codes<'_>, geometry: &Geometry) -> usize {
    let (m, interval) = (problem.m(), problem.interval());
    let fits = !problem.is_bare_chain()
        && interval <= KC * geometry.pair
        && (interval * b.code_bytes()).is_multiple_of(Gather::CHUNK);
    match m {
        1..=GEMV_ROWS if fits => geometry.lanes,
        m if m > GEMV_ROWS && fits && geometry.few_rows => INTERVALS,
        _ => 0,
    }
}

/// The first whole intervals of K in groups of `lanes`, then of half and a quarter as many; what is left are fewer than four.
fn side_by_side(k: usize, interval: usize, lanes: usize) -> Vec<Intervals> {
    let (mut groups, mut first, mut count) = (Vec::new(), 0, lanes);
    while count >= INTERVALS {
        while k / interval - first >= count {
            groups.push(Intervals { k: first * interval, len: interval, count });
            first += count;
        }
        count /= 2;
    }
    groups
}

/// Parts of at most KC steps together.
fn k_blocks(parts: &[IntervalPart], pair: usize) -> Vec<Range<usize>> {
    let (mut blocks, mut first, mut steps) = (Vec::new(), 0, 0);
    for (i, part) in parts.iter().enumerate() {
        if steps + part.steps(pair) > KC {
            blocks.push(first..i);
            (first, steps) = (i, 0);
        }
        steps += part.steps(pair);
    }
    blocks.push(first..parts.len());
    blocks
}

/// Into how many blocks the rows and columns of D are cut: each as large as the scratch allows, their number a multiple
/// of the threads where there is work for that many.
fn block_counts(m: usize, n: usize, nr: usize, few_rows: bool) -> (usize, usize) {
    let threads = crate::parallel::threads();
    let (rows, cols) = (m.div_ceil(BLOCK).max(1), n.div_ceil(BLOCK).max(1));
    if threads == 1 {
        return (rows, cols);
    }
    if few_rows {
        // Small enough that no thread waits long for another.
        return (1, 4 * threads);
    }
    if n >= threads * 4 * nr {
        return (rows, cols.next_multiple_of(threads));
    }
    (rows.next_multiple_of(threads), cols)
}

/// `size` cut into at most `parts`, as even as whole units allow.
fn cuts(size: usize, parts: usize, unit: usize) -> Vec<usize> {
    let units = size.div_ceil(unit);
    let parts = parts.min(units).max(1);
    (0..=parts).map(|i| (i * units / parts * unit).min(size)).collect()
}
