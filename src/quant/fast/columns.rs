//! Codes in the transposed order.
//!
//! Tile by tile: elements are copied to where their rows follow each other, looked at, and cast with the codes of four
//! rows in a lane; then dwords are transposed. Elements are never transposed themselves.

use std::ops::Range;

use finegrain_cpu::Stores;
use finegrain_cpu::quantize::{
    PeakScratch, TILE_COLUMNS, Tile, TileFactors, cast_tile, gather, peaks, spread, transpose,
};

use super::Plan;
use super::granules::{Decisions, GranuleRow, ScalesMut};
use crate::element::{CodesMut, ElementType, Elements, ElementsMut, Panel};
use crate::quant::stats::QuantStats;
use crate::scaled::{DequantizeScratch, ScaledRef};

/// Columns of a tile.
pub(super) const COLUMNS: usize = TILE_COLUMNS;
/// Rows of a tile, unless granules ask for a little fewer: with the columns, 64 KiB of f32 in the second-level cache.
/// Granules of more are decided beforehand.
pub(super) const ROWS: usize = 128;
/// Rows that kernels take a multiple of.
const GROUP: usize = 64;

/// Where tiles of elements come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// A matrix.
    Matrix(Panel<'a>),
    /// Codes and scales, which are dequantised to f32.
    Scaled(&'a ScaledRef<'a>),
}

impl<'a> Source<'a> {
    pub(super) fn shape(&self) -> (usize, usize) {
        match self {
            Source::Matrix(x) => (x.rows, x.cols),
            Source::Scaled(x) => x.shape(),
        }
    }

    /// The matrix, where it lies in memory.
    pub(super) fn whole(&self) -> Option<Panel<'a>> {
        match self {
            Source::Matrix(x) => Some(*x),
            Source::Scaled(_) => None,
        }
    }

    /// Bytes that are read, scales aside.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Source::Matrix(x) => x.rows * x.cols * x.data.kind().bytes(),
            Source::Scaled(x) => x.shape().0 * x.shape().1,
        }
    }

    /// The type of its elements.
    pub(super) fn kind(&self) -> ElementType {
        match self {
            Source::Matrix(x) => x.data.kind(),
            Source::Scaled(_) => ElementType::F32,
        }
    }
}

/// Where the scales of a task come from.
pub(super) enum Granules<'a> {
    /// It finds them, and stores them here: the rows of the result's grid that belong to its columns.
    Found(ScalesMut<'a>),
    /// They were decided before, all of the matrix'.
    Given(&'a Decisions),
}

/// Quantises some columns of a matrix, at most [`COLUMNS`], into rows of the result. They begin with a granule.
pub(super) struct ColumnTask<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) x: Source<'a>,
    pub(super) columns: Range<usize>,
    pub(super) granules: Granules<'a>,
    pub(super) codes: CodesMut<'a>,
}

/// Memory that a task works in.
struct Scratch {
    /// The elements of a tile, padded to [`COLUMNS`] and whole groups of rows.
    elements: Vec<u32>,
    /// A row of factors for each row of granules.
    factors: Vec<f32>,
    dwords: Vec<u32>,
    finished: Vec<u32>,
    lanes: PeakScratch,
    peaks: Vec<u32>,
    found: Decisions,
    dequantize: DequantizeScratch,
}

/// Rows of a tile and what was decided over their granules.
struct Decided<'a> {
    rows: Range<usize>,
    granules: &'a Decisions,
    /// Row and column of the tile in the grid that `granules` holds, in elements, and columns of that grid.
    origin: (usize, usize),
    grid_cols: usize,
}

impl Decided<'_> {
    /// The granules of a tile's row of them.
    fn granule(&self, granule: (usize, usize), i: usize, j: usize) -> usize {
        (self.origin.0 + i) / granule.0 * self.grid_cols + (self.origin.1 + j) / granule.1
    }
}

impl ColumnTask<'_> {
    /// Quantises tile by tile.
    pub(super) fn run(mut self) -> QuantStats {
        let (rows, _) = self.x.shape();
        let granule_rows = self.plan.granule.rows().min(rows);
        let height = match self.granules {
            Granules::Found(_) => ROWS / granule_rows * granule_rows,
            Granules::Given(_) => ROWS,
        };
        let area = height.next_multiple_of(GROUP) * COLUMNS;
        let mut scratch = Scratch {
            elements: vec![0; (area * self.x.kind().bytes()).div_ceil(4)],
            factors: Vec::new(),
            dwords: vec![0; area * self.codes.code_bytes() / 4],
            finished: vec![0; area * self.codes.code_bytes() / 4],
            lanes: PeakScratch::default(),
            peaks: Vec::new(),
            found: Decisions::default(),
            dequantize: DequantizeScratch::default(),
        };
        let stores = Stores::new(self.plan.isa, self.plan.past_cache);
        let mut stats = QuantStats::default();
        for top in (0..rows).step_by(height) {
            self.tile(top..(top + height).min(rows), &mut scratch, &stores, &mut stats);
        }
        stats.elements = (rows * self.columns.len()) as u64;
        stats
    }

    fn tile(&mut self, rows: Range<usize>, scratch: &mut Scratch, stores: &Stores, stats: &mut QuantStats) {
        self.fetch(rows.clone(), scratch);
        let Scratch { elements, factors, dwords, finished, lanes, peaks: found_peaks, found, .. } = scratch;
        let (all_rows, all_cols) = self.x.shape();
        let (grid_rows, grid_cols) = self.plan.granule.grid(all_rows, all_cols);
        let granule = (self.plan.granule.rows().min(all_rows), self.plan.granule.cols().min(all_cols));
        let shape = (rows.len(), self.columns.len());
        let padded = Elements::in_memory(self.x.kind(), elements, elements.len() * 4 / self.x.kind().bytes());
        let x = Panel { data: padded, rows: shape.0, cols: shape.1, stride: COLUMNS };
        let decided = match &mut self.granules {
            Granules::Found(scales) => {
                let (width, count) = (granule.1, shape.1.div_ceil(granule.1));
                for (row, first) in (0..shape.0).step_by(granule.0).enumerate() {
                    let x = x.part(first..(first + granule.0).min(shape.0), 0..shape.1);
                    peaks(self.plan.isa, &x, width, lanes, found_peaks);
                    GranuleRow { x: &x, width, peaks: found_peaks }.decide(
                        self.plan,
                        found,
                        row * count,
                        stats,
                    );
                    let row = row * count..(row + 1) * count;
                    scales.store((rows.start + first) / granule.0, grid_rows, found, row);
                }
                Decided { rows, granules: found, origin: (0, 0), grid_cols: count }
            }
            Granules::Given(all) => {
                let origin = (rows.start, self.columns.start);
                Decided { rows, granules: all, origin, grid_cols }
            }
        };
        let (plain, clips, rough) = spread_factors(self.plan, &decided, granule, shape, factors);
        let mut singly = |top: usize, columns: Range<usize>, dwords: &mut [u32]| {
            cast_singly(self.plan, &x, (&decided, granule), (top, columns), dwords, stats);
        };
        if rough {
            let four_rows = COLUMNS * self.codes.code_bytes();
            for (group, dwords) in dwords.chunks_exact_mut(four_rows).enumerate() {
                singly(4 * group, 0..COLUMNS, dwords);
            }
        } else {
            let above = decided.origin.0 % granule.0;
            let factors = TileFactors { values: factors, height: granule.0, above, rows: shape.0 };
            let tile = Tile { rule: &self.plan.rule, x: padded, factors, plain, clips };
            let counts = cast_tile(self.plan.isa, &tile, dwords, &mut singly);
            stats.add(&counts);
        }
        transpose(self.plan.isa, dwords, bytemuck::cast_slice_mut(finished));
        let (width, finished) = (self.codes.code_bytes(), bytemuck::cast_slice(finished));
        let column = finished.len() / COLUMNS;
        let (skip, len) = (decided.rows.start * width, decided.rows.len() * width);
        for (from, to) in
            finished.chunks_exact(column).zip(self.codes.bytes().chunks_exact_mut(all_rows * width))
        {
            stores.copy(&from[..len], &mut to[skip..skip + len]);
        }
    }

    /// Fetches the elements of a tile.
    fn fetch(&self, rows: Range<usize>, scratch: &mut Scratch) {
        let memory = &mut scratch.elements;
        let (bytes, shape) = (self.x.kind().bytes(), (rows.len(), self.columns.len()));
        if shape.0 * COLUMNS * bytes < memory.len() * 4 || shape.1 < COLUMNS {
            memory.fill(0);
        }
        match self.x {
            Source::Matrix(x) => {
                let part = x.part(rows, self.columns.clone());
                let widths = [shape.0, shape.1 * bytes, part.stride * bytes];
                let memory = bytemuck::cast_slice_mut(memory);
                gather(self.plan.isa, part.data.bytes(), widths, memory, COLUMNS * bytes);
            }
            Source::Scaled(x) => {
                let out = ElementsMut::F32(bytemuck::cast_slice_mut(memory));
                let stores = Stores::new(self.plan.isa, false);
                x.dequantize_part(&stores, rows, self.columns.clone(), out, COLUMNS, &mut scratch.dequantize);
            }
        }
    }
}

/// A row of factors for each row of granules of a tile; gives whether nothing is to be asked of its elements, whether some
/// payload clips, and whether some is rough.
fn spread_factors(
    plan: &Plan<'_>,
    decided: &Decided<'_>,
    granule: (usize, usize),
    shape: (usize, usize),
    factors: &mut Vec<f32>,
) -> (bool, bool, bool) {
    let first = decided.origin.0 / granule.0;
    let count = (decided.origin.0 + shape.0 - 1) / granule.0 + 1 - first;
    factors.resize(count * COLUMNS, 1.0);
    let (mut clips, mut rough) = (false, false);
    for (row, factors) in factors.chunks_exact_mut(COLUMNS).enumerate() {
        let start = (first + row) * decided.grid_cols;
        let (column, end) = (decided.origin.1, (decided.origin.1 + shape.1 - 1) / granule.1 + 1);
        let care = decided.granules.any(start + column / granule.1..start + end);
        (clips, rough) = (clips | care.general, rough | care.rough);
        let values = &decided.granules.factors[start..start + end];
        spread(plan.isa, values, column, granule.1, &mut factors[..shape.1]);
        factors[shape.1..].fill(1.0);
    }
    (plan.rule.is_plain() && !clips, clips, rough)
}

/// Casts four rows of some columns as the reference does. Padding becomes 0.
#[cold]
fn cast_singly(
    plan: &Plan<'_>,
    x: &Panel<'_>,
    (decided, granule): (&Decided<'_>, (usize, usize)),
    (top, columns): (usize, Range<usize>),
    dwords: &mut [u32],
    stats: &mut QuantStats,
) {
    let registers = dwords.len() / COLUMNS;
    let codes_a_dword = 4 / registers;
    for j in columns {
        for (register, row) in dwords.chunks_exact_mut(COLUMNS).enumerate() {
            row[j] = (0..codes_a_dword).fold(0, |dword, place| {
                let i = top + register * codes_a_dword + place;
                if i >= x.rows || j >= x.cols {
                    return dword;
                }
                let payload = decided.granules.payload(decided.granule(granule, i, j));
                let code = plan.cast_one(x.at(i, j), payload, stats);
                dword | (code as u32) << (32 / codes_a_dword * place)
            });
        }
    }
}
