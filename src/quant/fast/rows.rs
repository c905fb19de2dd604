//! Codes in the order of the elements.

use std::ops::Range;

use super::Plan;
use super::cast::Join;
use super::code::CodeWord;
use super::granules::{Decided, Peaks, ScalesMut};
use super::plain::{CastRow, Factors};
use super::scales::decide_row;
use crate::matrix::MatRef;
use crate::quant::stats::QuantStats;
use crate::simd::{Convert, Lane, Put, Stores, Work};

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
#[derive(Clone, Copy)]
struct Place {
    /// Its first column, counted from the first granule.
    first: usize,
    /// Columns of a granule.
    width: usize,
    /// How many columns ahead elements are asked for.
    ahead: usize,
    /// Whether some granule takes the general loop.
    general: bool,
}

/// Memory that a task works in.
#[derive(Default)]
struct Scratch {
    lanes: Vec<u32>,
    peaks: Vec<u32>,
    decided: Vec<Decided>,
    spread: Spread,
}

/// What belongs to every column, padded to whole groups.
#[derive(Default)]
struct Spread {
    factors: Vec<f32>,
    inverses: Vec<f32>,
    /// Whether a group of elements has a granule that is not plain.
    rough: Vec<bool>,
}

/// How codes reach memory.
struct Writer<S: Convert, C> {
    stores: Stores<S>,
    /// Codes that cannot go past the cache one register at a time.
    piece: Vec<C>,
}

impl<T: Lane, C: CodeWord> Work for RowTask<'_, T, C> {
    type Output = QuantStats;

    #[inline(always)]
    fn run<S: Convert>(mut self, s: S) -> QuantStats {
        let (rows, cols) = self.x.shape();
        let granule = self.plan.granule;
        let (height, width) = (granule.rows().min(rows), granule.cols().min(cols));
        let block = match self.granules {
            Granules::Found(_) if height > 1 => (BLOCK / height).max(1),
            _ => COLUMNS,
        };
        let block = (block / width).max(1) * width;
        let blocks = (0..rows).step_by(height).flat_map(|top| {
            let rows = top..(top + height).min(rows);
            (0..cols).step_by(block).map(move |left| (rows.clone(), left..(left + block).min(cols)))
        });
        let mut stats = QuantStats::default();
        let mut scratch = Scratch::default();
        let stores = Stores::new(s, self.plan.past_cache);
        let mut writer = Writer { stores, piece: vec![C::of(0); COLUMNS] };
        let place = Place { first: 0, width, ahead: block + block / 2, general: false };
        for (rows, cols) in blocks {
            self.look(s, width, &rows, &cols, &mut scratch, &mut stats);
            self.cast(s, rows, cols, place, &mut scratch, &mut writer, &mut stats);
        }
        stats.elements = (rows * cols) as u64;
        stats
    }
}

impl<T: Lane, C: CodeWord> RowTask<'_, T, C> {
    /// Decides over the granules of some rows and columns.
    #[inline(always)]
    fn look<S: Convert>(
        &mut self,
        s: S,
        width: usize,
        rows: &Range<usize>,
        cols: &Range<usize>,
        scratch: &mut Scratch,
        stats: &mut QuantStats,
    ) {
        let Scratch { lanes, peaks: found, decided, .. } = scratch;
        let first = cols.start / width;
        match &mut self.granules {
            Granules::Found(scales) => {
                let at = rows.start / self.plan.granule.rows() * self.x.cols().div_ceil(width) + first;
                let x = self.x.row_range(rows.start, rows.end).col_range(cols.start, cols.end);
                s.vectorize(Peaks { x, width, lanes, peaks: found });
                decide_row(s, self.plan, x, width, found, scales, at, decided, stats);
            }
            Granules::Given(all) => {
                decided.clear();
                decided.extend_from_slice(&all[first..first + cols.len().div_ceil(width)]);
            }
        }
    }

    /// Casts some rows and columns whose granules were decided over.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn cast<S: Convert>(
        &mut self,
        s: S,
        rows: Range<usize>,
        cols: Range<usize>,
        place: Place,
        scratch: &mut Scratch,
        writer: &mut Writer<S, C>,
        stats: &mut QuantStats,
    ) {
        let Scratch { decided, spread, .. } = scratch;
        let Writer { stores, piece } = writer;
        let general = decided.iter().any(|d| d.general || !d.plain);
        let plain = self.plan.is_plain() && !general;
        let splats = plain && place.width.is_multiple_of(4 * S::LANES);
        for left in cols.clone().step_by(COLUMNS) {
            let columns = left..(left + COLUMNS).min(cols.end);
            let place = Place { first: left - cols.start, general, ..place };
            if !splats {
                spread.fill(decided, place.first..columns.end - cols.start, place.width, 4 * S::LANES);
            }
            for i in rows.clone() {
                let x = &self.x.row(i)[columns.clone()];
                let out = &mut self.codes[i * self.x.cols() + left..][..x.len()];
                let put = stores.put(out);
                let codes = if put.is_some() { &mut *out } else { &mut piece[..x.len()] };
                let past_cache = put.is_some() && stores.past_cache();
                let row = Row { plan: self.plan, x, decided, spread, place, past_cache };
                match (plain, splats) {
                    (true, true) => row.plain(s, row.granules(), codes, stats),
                    (true, false) => row.plain(s, spread.factors(), codes, stats),
                    (false, _) => row.general(s, codes, stats),
                }
                if put.is_none() {
                    stores.copy(&piece[..x.len()], out);
                }
            }
        }
    }
}

/// Elements of a row.
#[derive(Clone, Copy)]
struct Row<'a, T> {
    plan: &'a Plan<'a>,
    x: &'a [T],
    decided: &'a [Decided],
    spread: &'a Spread,
    place: Place,
    /// Whether codes go past the cache, one register at a time.
    past_cache: bool,
}

impl<'a, T: Lane> Row<'a, T> {
    /// The factors of granules that are whole groups.
    fn granules(&self) -> Factors<'a> {
        let Place { first, width, .. } = self.place;
        Factors::Granules { decided: &self.decided[first / width..], first: first % width, width }
    }

    /// Where nothing is to be asked of a granule.
    #[inline(always)]
    fn plain<S: Convert, C: CodeWord>(
        &self,
        s: S,
        factors: Factors<'_>,
        codes: &mut [C],
        stats: &mut QuantStats,
    ) {
        let (group, Place { ahead, .. }) = (4 * S::LANES, self.place);
        let whole = self.x.len() / group * group;
        let (encoder, divides) = (&self.plan.encoder, self.plan.divides);
        let (x, rest) = self.x.split_at(whole);
        let (codes, last) = codes.split_at_mut(whole);
        let past_cache = self.past_cache;
        stats.flushed += s.vectorize(CastRow { encoder, divides, x, factors, ahead, codes, past_cache });
        if !rest.is_empty() {
            let (mut x, mut codes) = ([T::default(); GROUP], [C::of(0); GROUP]);
            x[..rest.len()].copy_from_slice(rest);
            let (x, codes, factors) = (&x[..group], &mut codes[..group], factors.after(whole));
            stats.flushed +=
                s.vectorize(CastRow { encoder, divides, x, factors, ahead, codes, past_cache: false });
            last.copy_from_slice(&codes[..last.len()]);
        }
    }

    /// By all rules, group by group.
    #[inline(always)]
    fn general<S: Convert, C: CodeWord>(&self, s: S, codes: &mut [C], stats: &mut QuantStats) {
        let (encoder, group) = (self.plan.encoder.on(s), 4 * S::LANES);
        let put = Put::new(s, self.past_cache);
        for (g, &rough) in self.spread.rough.iter().enumerate() {
            let at = g * group;
            let (x, codes) = (&self.x[at..], &mut codes[at..]);
            let (mut padded, mut joined) = ([T::default(); GROUP], None);
            let elements = if x.len() < group {
                padded[..x.len()].copy_from_slice(x);
                &padded[..group]
            } else {
                &x[..group]
            };
            if !rough {
                let (mut values, mut factors) = ([s.splat(0.0); 4], [s.splat(1.0); 4]);
                for i in 0..4 {
                    values[i] = T::load(s, &elements[i * S::LANES..]);
                    factors[i] = s.load(&self.spread.factors[at + i * S::LANES..]);
                }
                let general = self.place.general;
                joined = self.plan.cast::<S, C>(s, &encoder, values, factors, Join::Row, general, stats);
            }
            match joined {
                Some(joined) if x.len() >= group => C::put(put, joined, codes),
                Some(joined) => {
                    let mut last = [C::of(0); GROUP];
                    C::put(Put::cached(s), joined, &mut last);
                    codes.copy_from_slice(&last[..codes.len()]);
                }
                None => self.singly(at, &x[..x.len().min(group)], codes, stats),
            }
        }
    }

    /// The same as the reference does it.
    #[cold]
    #[inline(never)]
    fn singly<C: CodeWord>(&self, at: usize, x: &[T], codes: &mut [C], stats: &mut QuantStats) {
        let Place { first, width, .. } = self.place;
        for ((j, &v), code) in (first + at..).zip(x).zip(codes) {
            *code = C::of(self.plan.cast_one(v, &self.decided[j / width], stats));
        }
    }
}

impl Spread {
    fn factors(&self) -> Factors<'_> {
        Factors::Columns { values: &self.factors, inverses: &self.inverses }
    }

    /// For some columns, counted from the first granule.
    #[inline(always)]
    fn fill(&mut self, decided: &[Decided], columns: Range<usize>, width: usize, group: usize) {
        let groups = columns.len().div_ceil(group);
        for spread in [&mut self.factors, &mut self.inverses] {
            spread.clear();
            spread.resize(groups * group, 1.0);
        }
        self.rough.clear();
        self.rough.resize(groups, false);
        let mut column = columns.start;
        while column < columns.end {
            let decided = &decided[column / width];
            let end = (column / width + 1).saturating_mul(width).min(columns.end);
            let span = column - columns.start..end - columns.start;
            self.factors[span.clone()].fill(decided.factor);
            self.inverses[span.clone()].fill(decided.inverse);
            if !decided.plain {
                self.rough[span.start / group..=(span.end - 1) / group].fill(true);
            }
            column = end;
        }
    }
}
