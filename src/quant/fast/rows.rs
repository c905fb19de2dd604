//! Codes in the order of the elements.

use std::ops::Range;

use finegrain_cpu::Stores;
use finegrain_cpu::quantize::{Factors, PeakScratch, PlainRows, Row, cast_plain, cast_row, peaks, spread};

use super::Plan;
use super::granules::{Decisions, GranuleRow, ScalesMut};
use crate::element::{CodesMut, Panel};
use crate::quant::stats::QuantStats;

/// Elements that are looked at before they are cast: 256 KiB of f32, a part of the second-level cache, where granules
/// have several rows.
const BLOCK: usize = 1 << 16;
/// Columns that are looked at or cast at once: with their factors and codes they stay in the first-level cache.
const COLUMNS: usize = 2048;
/// Columns that kernels cast together.
const GROUP: usize = 64;

/// Where the scales of a task come from.
pub(super) enum Granules<'a> {
    /// It finds them, and stores them here.
    Found(ScalesMut<'a>),
    /// They were decided before, over rows beyond those of the task: those from an entry on.
    Given(&'a Decisions, usize),
}

/// Quantises rows of a matrix: whole rows of granules, or rows of one row of granules that was decided before.
pub(super) struct RowTask<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) x: Panel<'a>,
    pub(super) granules: Granules<'a>,
    pub(super) codes: CodesMut<'a>,
}

/// Memory that a task works in.
#[derive(Default)]
struct Scratch {
    lanes: PeakScratch,
    peaks: Vec<u32>,
    found: Decisions,
    spread: Spread,
}

/// What belongs to every column, padded to whole groups.
#[derive(Default)]
struct Spread {
    factors: Vec<f32>,
    inverses: Vec<f32>,
    /// Whether a group of elements has a granule that is rough.
    rough: Vec<bool>,
}

/// A block of elements, and the granules above it.
struct Block {
    rows: Range<usize>,
    cols: Range<usize>,
    /// Columns of a granule.
    width: usize,
    /// How many columns ahead elements are asked for.
    ahead: usize,
}

impl RowTask<'_> {
    /// Quantises block by block.
    pub(super) fn run(mut self) -> QuantStats {
        let (rows, cols) = (self.x.rows, self.x.cols);
        let granule = self.plan.granule;
        let (height, width) = (granule.rows().min(rows), granule.cols().min(cols));
        let side = match self.granules {
            Granules::Found(_) if height > 1 => (BLOCK / height).max(1),
            _ => COLUMNS,
        };
        let side = (side / width).max(1) * width;
        let mut stats = QuantStats::default();
        let mut scratch = Scratch::default();
        let mut stores = Stores::new(self.plan.isa, self.plan.past_cache);
        for top in (0..rows).step_by(height) {
            for left in (0..cols).step_by(side) {
                let (rows, cols) = (top..(top + height).min(rows), left..(left + side).min(cols));
                let block = Block { rows, cols, width, ahead: side + side / 2 };
                self.block(&block, &mut scratch, &mut stores, &mut stats);
            }
        }
        stats.elements = (rows * cols) as u64;
        stats
    }

    /// Decides over the granules of a block, and casts it.
    fn block(&mut self, block: &Block, scratch: &mut Scratch, stores: &mut Stores, stats: &mut QuantStats) {
        let Scratch { lanes, peaks: found_peaks, found, spread } = scratch;
        let (width, count) = (block.width, block.cols.len().div_ceil(block.width));
        let first = block.cols.start / width;
        let (decided, first, care) = match &mut self.granules {
            Granules::Found(scales) => {
                let at = block.rows.start / self.plan.granule.rows() * self.x.cols.div_ceil(width) + first;
                let x = self.x.part(block.rows.clone(), block.cols.clone());
                peaks(self.plan.isa, &x, width, lanes, found_peaks);
                let care = GranuleRow { x: &x, width, peaks: found_peaks }.decide(self.plan, found, 0, stats);
                scales.store(at, 1, found, 0..count);
                (&*found, 0, care)
            }
            Granules::Given(all, row) => (*all, *row + first, all.any(*row + first..*row + first + count)),
        };
        let general = care.general || care.rough;
        let plain = self.plan.rule.is_plain() && !general;
        // Granules that are whole groups need not be spread.
        let splats = plain && width.is_multiple_of(GROUP);
        let (all_cols, encoder) = (self.x.cols, &self.plan.rule.encoder);
        for left in block.cols.clone().step_by(COLUMNS) {
            let columns = left..(left + COLUMNS).min(block.cols.end);
            let x = self.x.part(block.rows.clone(), columns.clone());
            let place = Place { decided, first, width, column: left - block.cols.start };
            if !splats {
                spread.fill(self.plan, &place, columns.len(), care.rough);
            }
            let place_of = |i: usize| (block.rows.start + i) * all_cols + left;
            if plain {
                let factors = if splats { place.factors() } else { spread.factors() };
                let rows = PlainRows {
                    encoder,
                    divides: self.plan.rule.divides,
                    x: &x,
                    factors: &factors,
                    ahead: block.ahead,
                };
                let codes = self.codes.slice(place_of(0)..place_of(x.rows - 1) + x.cols);
                stats.flushed += cast_plain(stores, &rows, codes, all_cols);
                continue;
            }
            for i in 0..x.rows {
                let (x, Spread { factors, rough, .. }) = (x.row(i), &*spread);
                let row = Row { rule: &self.plan.rule, x, factors, rough, clips: general };
                let mut singly = |columns: Range<usize>, mut codes: CodesMut<'_>| {
                    for (to, j) in columns.enumerate() {
                        let payload = decided.payload(place.granule(j));
                        codes.set(to, self.plan.cast_one(x.at(j), payload, stats));
                    }
                };
                let codes = self.codes.slice(place_of(i)..place_of(i) + x.len());
                let counts = cast_row(stores, &row, codes, &mut singly);
                stats.add(&counts);
            }
        }
    }
}

/// Where columns of a block are among its granules.
struct Place<'a> {
    decided: &'a Decisions,
    /// The entry of the block's first granule.
    first: usize,
    /// Columns of a granule.
    width: usize,
    /// The first column, counted from the first granule.
    column: usize,
}

impl<'a> Place<'a> {
    /// The entry of the granule of a column.
    fn granule(&self, j: usize) -> usize {
        self.first + (self.column + j) / self.width
    }

    /// The factors of granules that are whole groups.
    fn factors(&self) -> Factors<'a> {
        let granule = self.granule(0);
        let (values, inverses) = (&self.decided.factors[granule..], &self.decided.inverses[granule..]);
        Factors::Granules { values, inverses, first: self.column % self.width, width: self.width }
    }
}

impl Spread {
    fn factors(&self) -> Factors<'_> {
        Factors::Columns { values: &self.factors, inverses: &self.inverses }
    }

    /// Spreads what granules decided over some columns.
    fn fill(&mut self, plan: &Plan<'_>, place: &Place<'_>, cols: usize, some_rough: bool) {
        let &Place { decided, first, width, column } = place;
        let groups = cols.div_ceil(GROUP);
        for (spreads, values) in
            [(&mut self.factors, &decided.factors), (&mut self.inverses, &decided.inverses)]
        {
            spreads.resize(groups * GROUP, 1.0);
            spreads[cols..].fill(1.0);
            spread(plan.isa, &values[first..], column, width, &mut spreads[..cols]);
        }
        self.rough.clear();
        self.rough.resize(groups, false);
        if some_rough {
            for (group, rough) in self.rough.iter_mut().enumerate() {
                let (start, end) = (group * GROUP, ((group + 1) * GROUP).min(cols));
                *rough = decided.any(place.granule(start)..place.granule(end - 1) + 1).rough;
            }
        }
    }
}
