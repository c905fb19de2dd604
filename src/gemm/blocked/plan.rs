//! How a problem is cut: microtile, segments of K, blocks of K, blocks of D.

use std::ops::Range;

use super::super::problem::GemmProblem;
use super::pack::Source;
use super::tile::{self, Segment};
use crate::scaled::ScaledRef;
use crate::simd::{Isa, Simd, Work};

/// Rows up to which B is streamed, and the most elements of A that are packed whole for it (4 MiB).
const STREAMED_ROWS: usize = 32;
const STREAMED_ELEMENTS: usize = 1 << 20;

/// Rows and columns of a block of D, at most: its sums take 4 MiB.
const TASK: usize = 1024;

/// Packed steps of K in a block: a micropanel of B stays in the first-level cache.
const KC: usize = 256;

/// Rows of A packed at a time, about: they stay in the second-level cache.
const MC: usize = 192;

/// Segments that are packed together.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) segments: Range<usize>,
    pub(super) steps: usize,
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
    /// Microtiles whose A is packed at a time.
    pub(super) mc: usize,
    pub(super) segments: Vec<Segment>,
    pub(super) blocks: Vec<Block>,
    /// Packed steps of all of K.
    pub(super) steps: usize,
    /// Whether some interval is longer than a segment.
    pub(super) is_cut: bool,
    /// Whether the columns of every microtile share one scale.
    pub(super) one_column_scale: bool,
    /// Whether A is packed whole and each micropanel of B used at once.
    pub(super) streams_b: bool,
    /// Rows and columns of a block of D.
    pub(super) task: (usize, usize),
}

/// What the plan asks of an instruction set: a microtile's rows and columns for `m` rows, and elements of K a step.
struct Geometry {
    m: usize,
}

impl Work for Geometry {
    type Output = (usize, usize, usize);

    fn run<S: Simd>(self, _: S) -> (usize, usize, usize) {
        // With few rows, what leaves the fewest of a microtile empty.
        let padded = |rows: usize| self.m.max(1).next_multiple_of(rows);
        let (mut rows, mut registers) = *tile::shapes::<S>().last().expect("there are microtiles");
        if self.m <= STREAMED_ROWS {
            for &shape in tile::shapes::<S>().iter().rev() {
                if padded(shape.0) < padded(rows) {
                    (rows, registers) = shape;
                }
            }
        }
        (rows, registers * S::LANES, S::PAIR)
    }
}

impl<'p> Plan<'p> {
    pub(super) fn new(problem: &'p GemmProblem<'p>, isa: Isa) -> Plan<'p> {
        const SUPPORTED: &str = "supported formats have decoders";
        let (m, n, k) = (problem.m(), problem.n(), problem.k());
        let streams_b = m <= STREAMED_ROWS && m * k <= STREAMED_ELEMENTS;
        let (mr, width, pair) = isa.run(Geometry { m });
        let kc = KC * pair;
        let segments = segments(problem, kc, pair);
        let blocks = blocks(&segments, kc);
        Plan {
            problem,
            a: Source::new(problem.a()).expect(SUPPORTED),
            b: Source::new(problem.b()).expect(SUPPORTED),
            mr,
            width,
            mc: MC.div_ceil(mr),
            steps: segments.iter().map(|s| s.steps).sum(),
            is_cut: segments.iter().any(|s| !s.ends),
            one_column_scale: one_scale(problem.b(), width),
            segments,
            blocks,
            streams_b,
            task: task(m, n, mr, width, streams_b),
        }
    }

    /// Packs rows of an operand into panels of `width` rows, one after the other, each over the given segments.
    #[inline(always)]
    pub(super) fn pack<S: Simd>(
        &self,
        s: S,
        source: &Source<'_>,
        rows: Range<usize>,
        width: usize,
        segments: Range<usize>,
        out: &mut [u32],
    ) {
        let mut to = 0;
        for first in rows.clone().step_by(width) {
            for segment in &self.segments[segments.clone()] {
                source.pack(s, first..rows.end, segment.k.clone(), width, &mut out[to..]);
                to += segment.steps * width;
            }
        }
    }
}

/// K cut at the promotion intervals, and intervals at every `kc` elements; the segments of a bare chain neither start
/// nor end.
fn segments(problem: &GemmProblem<'_>, kc: usize, pair: usize) -> Vec<Segment> {
    let (k, interval, promoted) = (problem.k(), problem.interval(), !problem.is_bare_chain());
    let mut segments = Vec::new();
    for start in (0..k).step_by(interval) {
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

/// Segments of at most `kc` elements together.
fn blocks(segments: &[Segment], kc: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut elements = 0;
    for (i, segment) in segments.iter().enumerate() {
        elements += segment.k.len();
        match blocks.last_mut() {
            Some(block) if elements <= kc => {
                block.segments.end = i + 1;
                block.steps += segment.steps;
            }
            _ => {
                blocks.push(Block { segments: i..i + 1, steps: segment.steps });
                elements = segment.k.len();
            }
        }
    }
    blocks
}

/// Blocks of D: as large as the scratch allows, and a multiple of the threads where there is work for that many.
fn task(m: usize, n: usize, mr: usize, width: usize, streams_b: bool) -> (usize, usize) {
    let threads = rayon::current_num_threads();
    let even = |size: usize, parts: usize, unit: usize| size.div_ceil(parts).next_multiple_of(unit).max(unit);
    let (row_parts, col_parts) = (m.div_ceil(TASK).max(1), n.div_ceil(TASK).max(1));
    if threads == 1 {
        return (even(m, row_parts, mr), even(n, col_parts, width));
    }
    if streams_b {
        // Small enough that no thread waits long for another.
        return (even(m, 1, mr), even(n, 4 * threads, width));
    }
    if n >= threads * 4 * width {
        return (even(m, row_parts, mr), even(n, col_parts.next_multiple_of(threads), width));
    }
    (even(m, row_parts.next_multiple_of(threads), mr), even(n, col_parts, width))
}

/// Whether `width` rows from every multiple of `width` share one scale.
fn one_scale(x: &ScaledRef<'_>, width: usize) -> bool {
    let granule = x.scales().map_or(usize::MAX, |s| s.granule.rows());
    let (first, last) = (x.row_offset(), x.row_offset() + x.shape().0);
    last <= granule || (granule % width == 0 && first % width == 0)
}

/// Writes the scale of each of `rows` at column `k`.
pub(super) fn fill_scales(x: &ScaledRef<'_>, rows: Range<usize>, k: usize, out: &mut [f32]) {
    let granule = x.scales().map_or(usize::MAX, |s| s.granule.rows());
    let mut row = rows.start;
    while row < rows.end {
        let place = row + x.row_offset();
        let end = rows.end.min(row.saturating_add(granule - place % granule));
        out[row - rows.start..end - rows.start].fill(x.scale_at(row, k));
        row = end;
    }
}
