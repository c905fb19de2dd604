//! How a problem is cut: microtile, segments of K, blocks of K, blocks of D.

use std::ops::Range;

use super::super::problem::GemmProblem;
use super::pack::Source;
use super::spans::{self, Span};
use super::tile::{self, STEPS, Segment};
use super::{quads, stream};
use crate::scaled::ScaledRef;
use crate::simd::{Isa, Simd, Strings, Work};

/// Rows up to which B is streamed, and the most elements of A that are packed whole for it (4 MiB).
const STREAMED_ROWS: usize = 32;
const STREAMED_ELEMENTS: usize = 1 << 20;

/// Rows and columns of a block of D, at most: its sums take 4 MiB, its packed A half of a second-level cache.
const TASK: usize = 1024;

/// Codes of B between one that is used and one that is asked for from memory, where B is streamed.
const AHEAD: usize = 32768;

/// Segments that are packed together.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) segments: Range<usize>,
    pub(super) steps: usize,
    /// Whether nothing was summed, or promoted, before it.
    pub(super) fresh: bool,
}

/// A problem and how it is cut.
pub(super) struct Plan<'p> {
    pub(super) problem: &'p GemmProblem<'p>,
    pub(super) a: Source<'p>,
    pub(super) b: Source<'p>,
    /// Rows of a microtile.
    pub(super) mr: usize,
    /// Columns of a microtile.
    pub(super) width: usize,
    /// The intervals that are summed side by side, from the first on, where rows are few.
    pub(super) spans: Vec<Span>,
    /// Whether spans are of four intervals, for [`quads`].
    pub(super) quads: bool,
    /// Packed elements of A for a step of a span.
    pub(super) span_lanes: usize,
    /// Elements of K a step.
    pair: usize,
    /// The rest of K.
    pub(super) segments: Vec<Segment>,
    pub(super) blocks: Vec<Block>,
    /// Whether some interval is longer than a block.
    pub(super) is_cut: bool,
    /// Whether the columns of every microtile share one scale.
    pub(super) one_column_scale: bool,
    /// Whether A is packed whole and B decoded on its way to the sums.
    pub(super) streams_b: bool,
    /// Elements of K from a code of B to the one in its row that is asked for from memory.
    pub(super) ahead: usize,
    /// Where blocks of D begin, and the end.
    pub(super) row_cuts: Vec<usize>,
    pub(super) col_cuts: Vec<usize>,
}

/// What the plan asks of an instruction set.
struct Geometry {
    m: usize,
    streams_b: bool,
    /// The elements of intervals that may be summed side by side.
    interval: Option<usize>,
}

/// What it answers.
struct Microtile {
    rows: usize,
    cols: usize,
    /// Elements of K a step.
    pair: usize,
    /// The most intervals side by side, or 0.
    side_by_side: usize,
    /// Whether they lie in fours.
    quads: bool,
}

impl Work for Geometry {
    type Output = Microtile;

    fn run<S: Simd>(self, _: S) -> Microtile {
        let side_by_side = self.interval.is_some_and(|interval| interval <= STEPS * S::PAIR);
        let quads = side_by_side && self.m > spans::ROWS && S::REGISTERS == 32;
        // Rows that are computed, and what decoding B for each microtile costs, in rows.
        let (shapes, decoding) =
            if self.streams_b { (stream::shapes::<S>(), 4) } else { (tile::shapes::<S>(), 0) };
        let cost = |rows: usize| self.m.max(1).div_ceil(rows) * (rows + decoding);
        let best = shapes.iter().rev().min_by_key(|(rows, _)| cost(*rows));
        let &(rows, registers) = best.expect("there are microtiles");
        let side_by_side = match side_by_side {
            true if quads => quads::INTERVALS,
            true if self.m <= spans::ROWS => S::LANES,
            _ => 0,
        };
        Microtile { rows, cols: registers * S::LANES, pair: S::PAIR, side_by_side, quads }
    }
}

impl<'p> Plan<'p> {
    pub(super) fn new(problem: &'p GemmProblem<'p>, isa: Isa) -> Plan<'p> {
        const SUPPORTED: &str = "supported formats have decoders";
        let (m, n, k) = (problem.m(), problem.n(), problem.k());
        let streams_b = m <= STREAMED_ROWS && m * k <= STREAMED_ELEMENTS;
        let (b, interval) = (Source::new(problem.b()).expect(SUPPORTED), problem.interval());
        let whole = b.bytes(interval).is_multiple_of(Strings::PIECE);
        let sums_side_by_side = streams_b && m > 0 && whole && !problem.is_bare_chain();
        let Microtile { rows: mr, cols: width, pair, side_by_side, quads } =
            isa.run(Geometry { m, streams_b, interval: sums_side_by_side.then_some(interval) });
        let spans = spans::spans(k / interval, interval, side_by_side);
        let rest = spans.last().map_or(0, |span| span.k + span.intervals * interval);
        let segments = segments(problem, rest, STEPS * pair, pair);
        let (row_parts, col_parts) = parts(m, n, width, streams_b);
        Plan {
            problem,
            a: Source::new(problem.a()).expect(SUPPORTED),
            b,
            mr,
            width,
            is_cut: segments.iter().any(|s| !s.ends),
            one_column_scale: one_scale(problem.b(), width),
            blocks: blocks(&segments, spans.is_empty(), problem.is_bare_chain()),
            spans,
            quads,
            span_lanes: side_by_side,
            pair,
            segments,
            streams_b,
            ahead: AHEAD / width,
            row_cuts: cuts(m, row_parts, mr),
            col_cuts: cuts(n, col_parts, width),
        }
    }
}

impl Plan<'_> {
    /// Packed elements of A for a span.
    pub(super) fn span_len(&self) -> usize {
        self.problem.m() * self.problem.interval().div_ceil(self.pair) * self.span_lanes
    }

    /// Rows whose packed spans lie together, a step of each after the other.
    pub(super) fn tiles(&self) -> Vec<Range<usize>> {
        let rows = self.problem.m();
        if self.quads { quads::tiles(rows).collect() } else { (0..rows).map(|row| row..row + 1).collect() }
    }

    /// Whether the columns from `col` on, a multiple of the lanes, have other scales than those before.
    pub(super) fn scales_change_at(&self, col: usize) -> bool {
        let b = self.problem.b();
        !self.one_column_scale
            || b.scales().is_some_and(|s| (b.row_offset() + col).is_multiple_of(s.granule.rows()))
    }
}

/// K from `rest` on cut at the promotion intervals, and intervals at every `kc` elements; the segments of a bare chain
/// neither start nor end.
fn segments(problem: &GemmProblem<'_>, rest: usize, kc: usize, pair: usize) -> Vec<Segment> {
    let (k, interval, promoted) = (problem.k(), problem.interval(), !problem.is_bare_chain());
    let mut segments = Vec::new();
    for start in (rest..k).step_by(interval) {
        let end = k.min(start.saturating_add(interval));
        for first in (start..end).step_by(kc) {
            let last = end.min(first + kc);
            let steps = (last - first).div_ceil(pair);
            let (starts, ends) = (promoted && first == start, promoted && last == end);
            segments.push(Segment { k: first..last, steps, starts, ends });
        }
    }
    segments
}

/// Segments of at most [`STEPS`] steps together, `fresh` where nothing is summed before them.
fn blocks(segments: &[Segment], mut fresh: bool, bare: bool) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        match blocks.last_mut() {
            Some(block) if block.steps + segment.steps <= STEPS => {
                block.segments.end = i + 1;
                block.steps += segment.steps;
            }
            _ => blocks.push(Block { segments: i..i + 1, steps: segment.steps, fresh }),
        }
        fresh &= !bare && !segment.ends;
    }
    blocks
}

/// Into how many blocks the rows and columns of D are cut: each as large as the scratch allows, their number a multiple
/// of the threads where there is work for that many.
fn parts(m: usize, n: usize, width: usize, streams_b: bool) -> (usize, usize) {
    let threads = rayon::current_num_threads();
    let (rows, cols) = (m.div_ceil(TASK).max(1), n.div_ceil(TASK).max(1));
    if threads == 1 {
        return (rows, cols);
    }
    if streams_b {
        // Small enough that no thread waits long for another.
        return (1, 4 * threads);
    }
    if n >= threads * 4 * width {
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

/// Whether `width` rows from every multiple of `width` share one scale.
fn one_scale(x: &ScaledRef<'_>, width: usize) -> bool {
    let granule = x.scales().map_or(usize::MAX, |s| s.granule.rows());
    let (first, last) = (x.row_offset(), x.row_offset() + x.shape().0);
    last <= granule || (granule.is_multiple_of(width) && first.is_multiple_of(width))
}
