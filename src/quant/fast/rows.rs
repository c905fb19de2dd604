//! Codes in the order of the elements.

use std::ops::Range;

use super::Plan;
use super::cast::{Factor, Join, Kind, Of};
use super::code::CodeWord;
use super::granules::{Decided, ScalesMut, peaks};
use super::scales::decide_row;
use crate::matrix::MatRef;
use crate::quant::stats::QuantStats;
use crate::simd::{Convert, EncoderOn, Lane, Mode, Put, Stores, Work};

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
            self.cast::<S, Plain, General>(s, rows, cols, place, &mut scratch, &mut writer, &mut stats);
        }
        stats.elements = (rows * cols) as u64;
        stats
    }

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
                peaks(s, x, width, lanes, found);
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
    fn cast<S: Convert, Plain: Kind, General: Kind>(
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
        let encoder = self.plan.encoder.on(s);
        let general = decided.iter().any(|d| d.general || !d.plain);
        let plain = self.plan.is_plain() && !general;
        let splats = place.width.is_multiple_of(4 * S::LANES);
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
                let row = Row { plan: self.plan, x, decided, place };
                let to = On { s, encoder, put: put.unwrap_or(Put::cached(s)) };
                match (plain, splats) {
                    (true, true) => row.by_granule::<S, C, Plain>(to, codes, stats),
                    (true, false) => row.by_column::<S, C, Plain>(to, spread, codes, stats),
                    (false, true) => row.by_granule::<S, C, General>(to, codes, stats),
                    (false, false) => row.by_column::<S, C, General>(to, spread, codes, stats),
                }
                if put.is_none() {
                    stores.copy(&piece[..x.len()], out);
                }
            }
        }
    }
}

/// What encodes and stores in registers. Apart from [`Row`], which is handed to functions that are not inlined: what
/// they might see would lie in memory.
#[derive(Clone, Copy)]
struct On<S: Convert> {
    s: S,
    encoder: EncoderOn<S>,
    put: Put<S>,
}

/// Elements of a row.
#[derive(Clone, Copy)]
struct Row<'a, T> {
    plan: &'a Plan<'a>,
    x: &'a [T],
    decided: &'a [Decided],
    place: Place,
}

impl<T: Lane> Row<'_, T> {
    /// Granules are whole groups: one factor for all of a group.
    #[inline(always)]
    fn by_granule<S: Convert, C: CodeWord, K: Kind>(
        &self,
        on: On<S>,
        codes: &mut [C],
        stats: &mut QuantStats,
    ) {
        let (s, Place { first, width, .. }) = (on.s, self.place);
        let whole = self.x.len() / (4 * S::LANES) * (4 * S::LANES);
        let (mut at, mut end) = (0, width - first % width);
        for granule in &self.decided[first / width..] {
            end = end.min(whole);
            let factors = [Factor::of(s, granule); 4];
            let groups = self.x[at..end].chunks_exact(4 * S::LANES);
            for (x, codes) in groups.zip(codes[at..end].chunks_exact_mut(4 * S::LANES)) {
                self.group::<S, C, K>(on, at, x, factors, !granule.plain, codes, stats);
                at += 4 * S::LANES;
            }
            end = end.saturating_add(width);
        }
        if whole < self.x.len() {
            let granule = &self.decided[(first + whole) / width];
            let factors = [Factor::of(s, granule); 4];
            self.rest::<S, C, K>(on, whole, factors, !granule.plain, &mut codes[whole..], stats);
        }
    }

    /// By the factors that were spread over the columns.
    #[inline(always)]
    fn by_column<S: Convert, C: CodeWord, K: Kind>(
        &self,
        on: On<S>,
        spread: &Spread,
        codes: &mut [C],
        stats: &mut QuantStats,
    ) {
        for (g, &rough) in spread.rough.iter().enumerate() {
            let at = g * 4 * S::LANES;
            let mut factors = [Factor::one(on.s); 4];
            for (i, factor) in factors.iter_mut().enumerate() {
                let at = at + i * S::LANES;
                *factor = Factor::load(on.s, &spread.factors[at..], &spread.inverses[at..]);
            }
            match self.x.get(at..at + 4 * S::LANES) {
                Some(x) => self.group::<S, C, K>(on, at, x, factors, rough, &mut codes[at..], stats),
                None => self.rest::<S, C, K>(on, at, factors, rough, &mut codes[at..], stats),
            }
        }
    }

    /// The group of elements `x` at `at`, into the first of `codes`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn group<S: Convert, C: CodeWord, K: Kind>(
        &self,
        on: On<S>,
        at: usize,
        x: &[T],
        factors: [Factor<S>; 4],
        rough: bool,
        codes: &mut [C],
        stats: &mut QuantStats,
    ) {
        match self.joined::<S, C, K>(on, x, factors, rough, stats) {
            Some(joined) => C::put(on.put, joined, codes),
            None => self.singly(at, x, codes, stats),
        }
    }

    /// The last elements, from `at` on, into as many `codes`.
    #[inline(always)]
    fn rest<S: Convert, C: CodeWord, K: Kind>(
        &self,
        on: On<S>,
        at: usize,
        factors: [Factor<S>; 4],
        rough: bool,
        codes: &mut [C],
        stats: &mut QuantStats,
    ) {
        let (x, mut padded, mut group) = (&self.x[at..], [T::default(); GROUP], [C::of(0); GROUP]);
        padded[..x.len()].copy_from_slice(x);
        match self.joined::<S, C, K>(on, &padded[..4 * S::LANES], factors, rough, stats) {
            Some(joined) => {
                C::put(Put::cached(on.s), joined, &mut group);
                codes.copy_from_slice(&group[..codes.len()]);
            }
            None => self.singly(at, x, codes, stats),
        }
    }

    /// The codes of a group; `None` if something in it is infinite or NaN.
    #[inline(always)]
    fn joined<S: Convert, C: CodeWord, K: Kind>(
        &self,
        on: On<S>,
        x: &[T],
        factors: [Factor<S>; 4],
        rough: bool,
        stats: &mut QuantStats,
    ) -> Option<[S::U32; 2]> {
        // No call in the plain loop: what it keeps in registers would have to be loaded again for every group.
        if rough && !K::Mode::PLAIN {
            return None;
        }
        let (s, Place { ahead, general, .. }) = (on.s, self.place);
        let mut values = [s.splat(0.0); 4];
        for i in 0..4 {
            values[i] = T::load(s, &x[i * S::LANES..]);
            s.prefetch(&x[i * S::LANES..], ahead);
        }
        self.plan.cast::<S, C, K>(s, &on.encoder, values, factors, Join::Row, general, stats)
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
