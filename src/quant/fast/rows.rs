//! Codes in the order of the elements.

use std::ops::Range;

use super::Plan;
use super::cast::{Join, Kind, Of};
use super::code::CodeWord;
use super::granules::{Decided, ScalesMut, peaks};
use super::scales::decide_row;
use crate::matrix::MatRef;
use crate::quant::stats::QuantStats;
use crate::simd::{Convert, EncoderOn, Lane, Stores, Work};

/// Elements that are looked at before they are cast: 256 KiB of f32, a part of the second-level cache, where granules
/// have several rows.
const BLOCK: usize = 1 << 16;
/// Columns that are looked at or cast at once: with their factors and codes they stay in the first-level cache.
const COLUMNS: usize = 2048;
/// The most elements of `4 · LANES`.
const GROUP: usize = 64;

/// Where the scales of a task come from.
pub(super) enum Granules<'a> {
    /// It finds them, and stores them here.
    Found(ScalesMut<'a>),
    /// They were decided before, over rows beyond those of the task.
    Given(&'a [Decided]),
}

/// Quantises rows of a matrix: whole rows of granules, or rows of one row of granules that was decided before.
pub(super) struct RowTask<'a, T, C> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) x: MatRef<'a, T>,
    pub(super) granules: Granules<'a>,
    pub(super) codes: &'a mut [C],
}

/// Where a row of elements is among its granules.
struct Place {
    /// Its first column, counted from the first granule.
    first: usize,
    /// Columns of a granule.
    width: usize,
    /// Columns from an element to that of the next block.
    next: usize,
    /// Whether some payload is beyond the largest code.
    clips: bool,
}

/// Memory that a task works in.
struct Scratch<C> {
    lanes: Vec<u32>,
    peaks: Vec<u32>,
    decided: Vec<Decided>,
    factors: Vec<f32>,
    /// Whether a group of elements has a granule that is not plain.
    rough: Vec<bool>,
    codes: Vec<C>,
}

impl<T: Lane, C: CodeWord> Work for RowTask<'_, T, C> {
    type Output = QuantStats;

    #[inline(always)]
    fn run<S: Convert>(self, s: S) -> QuantStats {
        if self.plan.divides {
            self.blocks::<S, Of<true, true>, Of<true, false>>(s)
        } else {
            self.blocks::<S, Of<false, true>, Of<false, false>>(s)
        }
    }
}

impl<T: Lane, C: CodeWord> RowTask<'_, T, C> {
    #[inline(always)]
    fn blocks<S: Convert, Plain: Kind, General: Kind>(mut self, s: S) -> QuantStats {
        let (rows, cols) = self.x.shape();
        let granule = self.plan.granule;
        let (height, width) = (granule.rows().min(rows), granule.cols().min(cols));
        let block = match self.granules {
            Granules::Found(_) if height > 1 => (BLOCK / height).max(1),
            _ => COLUMNS,
        };
        let block = (block / width).max(1) * width;
        let stores = Stores::new(s, self.plan.past_cache);
        let encoder = self.plan.encoder.on(s);
        let mut stats = QuantStats::default();
        let mut scratch = Scratch {
            lanes: Vec::new(),
            peaks: Vec::new(),
            decided: Vec::new(),
            factors: Vec::new(),
            rough: Vec::new(),
            codes: vec![C::of(0); COLUMNS + GROUP],
        };
        let (_, grid_cols) = granule.grid(rows, cols);
        for (grid_row, top) in (0..rows).step_by(height).enumerate() {
            let stripe = top..(top + height).min(rows);
            for left in (0..cols).step_by(block) {
                let part = left..(left + block).min(cols);
                let x = self.x.row_range(stripe.start, stripe.end).col_range(part.start, part.end);
                let first = left / width;
                match &mut self.granules {
                    Granules::Found(scales) => {
                        peaks(s, x, width, &mut scratch.lanes, &mut scratch.peaks);
                        let Scratch { peaks, decided, .. } = &mut scratch;
                        let at = grid_row * grid_cols + first;
                        decide_row(s, self.plan, x, width, peaks, scales, at, decided, &mut stats);
                    }
                    Granules::Given(decided) => {
                        let count = part.len().div_ceil(width);
                        scratch.decided.clear();
                        scratch.decided.extend_from_slice(&decided[first..first + count]);
                    }
                }
                let clips = scratch.decided.iter().any(|d| d.clips);
                let plain = self.plan.is_plain() && !clips;
                let splats = width.is_multiple_of(4 * S::LANES);
                for left in (0..x.cols()).step_by(COLUMNS) {
                    let columns = left..(left + COLUMNS).min(x.cols());
                    if !splats {
                        scratch.spread(columns.clone(), width, 4 * S::LANES);
                    }
                    let place = Place { first: columns.start, width, next: block, clips };
                    for (i, row) in x.iter_rows().enumerate() {
                        let row = &row[columns.clone()];
                        let row = Row { plan: self.plan, x: row, place: &place };
                        match (plain, splats) {
                            (true, true) => {
                                row.by_granule::<S, C, Plain>(s, &encoder, &mut scratch, &mut stats)
                            }
                            (true, false) => {
                                row.by_column::<S, C, Plain>(s, &encoder, &mut scratch, &mut stats)
                            }
                            (false, true) => {
                                row.by_granule::<S, C, General>(s, &encoder, &mut scratch, &mut stats);
                            }
                            (false, false) => {
                                row.by_column::<S, C, General>(s, &encoder, &mut scratch, &mut stats);
                            }
                        }
                        let at = (stripe.start + i) * cols + part.start + columns.start;
                        stores.copy(&scratch.codes[..columns.len()], &mut self.codes[at..at + columns.len()]);
                    }
                }
            }
        }
        stats.elements = (rows * cols) as u64;
        stats
    }
}

/// Elements of a row, cast into the scratch.
struct Row<'a, T> {
    plan: &'a Plan<'a>,
    x: &'a [T],
    place: &'a Place,
}

impl<T: Lane> Row<'_, T> {
    /// Granules are whole groups: one factor for all of a group.
    #[inline(always)]
    fn by_granule<S: Convert, C: CodeWord, K: Kind>(
        &self,
        s: S,
        encoder: &EncoderOn<S>,
        scratch: &mut Scratch<C>,
        stats: &mut QuantStats,
    ) {
        let Scratch { decided, codes, .. } = scratch;
        let Place { first, width, .. } = *self.place;
        let (mut at, mut index) = (0, first / width);
        while at < self.x.len() {
            let granule = &decided[index];
            let end = ((index + 1).saturating_mul(width) - first).min(self.x.len());
            let factor = s.splat(granule.factor);
            while at < end {
                self.group::<S, C, K>(s, encoder, at, [factor; 4], !granule.plain, decided, codes, stats);
                at += 4 * S::LANES;
            }
            index += 1;
        }
    }

    /// By the factors that were spread over the columns.
    #[inline(always)]
    fn by_column<S: Convert, C: CodeWord, K: Kind>(
        &self,
        s: S,
        encoder: &EncoderOn<S>,
        scratch: &mut Scratch<C>,
        stats: &mut QuantStats,
    ) {
        let Scratch { decided, factors, rough, codes, .. } = scratch;
        for (g, &rough) in rough.iter().enumerate() {
            let at = g * 4 * S::LANES;
            let mut spread = [s.splat(1.0); 4];
            for i in 0..4 {
                spread[i] = s.load(&factors[at + i * S::LANES..]);
            }
            self.group::<S, C, K>(s, encoder, at, spread, rough, decided, codes, stats);
        }
    }

    /// The group of elements at `at`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn group<S: Convert, C: CodeWord, K: Kind>(
        &self,
        s: S,
        encoder: &EncoderOn<S>,
        at: usize,
        factors: [S::F32; 4],
        rough: bool,
        decided: &[Decided],
        codes: &mut [C],
        stats: &mut QuantStats,
    ) {
        let group = 4 * S::LANES;
        let padded;
        let elements = match self.x.get(at..at + group) {
            Some(elements) => elements,
            None => {
                padded = padded_group(&self.x[at..]);
                &padded[..group]
            }
        };
        let codes = &mut codes[at..at + group];
        let mut values = [s.splat(0.0); 4];
        for i in 0..4 {
            values[i] = T::load(s, &elements[i * S::LANES..]);
            // The next block is looked at when this one is done: its elements are to be on their way.
            s.prefetch(&elements[i * S::LANES..], self.place.next);
        }
        let clips = self.place.clips;
        let joined = if rough {
            None
        } else {
            self.plan.cast::<S, C, K>(s, encoder, values, factors, Join::Row, clips, stats)
        };
        match joined {
            Some(joined) => C::store(s, joined, codes),
            None => {
                let elements = &elements[..group.min(self.x.len() - at)];
                let Place { first, width, .. } = *self.place;
                cast_singly(self.plan, elements, first + at, width, decided, codes, stats);
            }
        }
    }
}

impl<C> Scratch<C> {
    /// Writes the factor of every column, padded to whole groups.
    #[inline(always)]
    fn spread(&mut self, columns: Range<usize>, width: usize, group: usize) {
        let groups = columns.len().div_ceil(group);
        self.factors.clear();
        self.factors.resize(groups * group, 1.0);
        self.rough.clear();
        self.rough.resize(groups, false);
        let mut column = columns.start;
        while column < columns.end {
            let decided = &self.decided[column / width];
            let end = (column / width + 1).saturating_mul(width).min(columns.end);
            let span = column - columns.start..end - columns.start;
            self.factors[span.clone()].fill(decided.factor);
            if !decided.plain {
                self.rough[span.start / group..=(span.end - 1) / group].fill(true);
            }
            column = end;
        }
    }
}

/// The last elements of a row, with zeros behind them.
#[inline(never)]
fn padded_group<T: Lane>(x: &[T]) -> [T; GROUP] {
    let mut padded = [T::default(); GROUP];
    padded[..x.len()].copy_from_slice(x);
    padded
}

/// Casts a group that registers cannot: something in it is infinite or NaN.
#[cold]
#[inline(never)]
fn cast_singly<T: Lane, C: CodeWord>(
    plan: &Plan<'_>,
    elements: &[T],
    first: usize,
    width: usize,
    decided: &[Decided],
    codes: &mut [C],
    stats: &mut QuantStats,
) {
    for (j, (&v, code)) in elements.iter().zip(codes).enumerate() {
        *code = C::of(plan.cast_one(v, &decided[(first + j) / width], stats));
    }
}
