//! The dense products of what is identified, and the elements of D that stand for all.

use std::ops::Range;

use half::f16;

use crate::engine::Product;
use crate::error::Result;
use crate::gemm::{Accumulation, GemmProblem};
use crate::matrix::Matrix;

/// The most groups that a sample looks into.
const GROUPS: usize = 8;
/// Rows, and columns, that libraries compute together: samples lie across the edges of such tiles.
const EDGE: usize = 128;
/// Bands of a sample in each direction, and rows or columns of one.
const BANDS: usize = 16;

/// The dense products, and where the rows of each begin in D.
pub(super) struct Parts<'p>(Vec<(GemmProblem<'p>, usize)>);

/// Rows and columns of one of the products.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) part: usize,
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
}

impl<'p> Parts<'p> {
    pub(super) fn of(product: Product<'p>) -> Self {
        let all = match product {
            Product::Dense(p) => vec![(*p, 0)],
            Product::Grouped(p) => {
                p.parts().iter().map(|part| (*part.problem(), part.rows().start)).collect()
            }
        };
        Parts(all.into_iter().filter(|(p, _)| p.m() * p.n() > 0).collect())
    }

    /// What `change` makes of each; `None` if it makes nothing of one.
    pub(super) fn changed(
        &self,
        change: &dyn Fn(&GemmProblem<'p>) -> Option<GemmProblem<'p>>,
    ) -> Option<Self> {
        self.0.iter().map(|(p, first)| Some((change(p)?, *first))).collect::<Option<_>>().map(Parts)
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = &GemmProblem<'p>> {
        self.0.iter().map(|(problem, _)| problem)
    }

    /// The longest K.
    pub(super) fn k(&self) -> usize {
        self.problems().map(GemmProblem::k).max().unwrap_or(0)
    }

    /// Elements of D that are computed.
    pub(super) fn elements(&self) -> usize {
        self.problems().map(|p| p.m() * p.n()).sum()
    }

    /// Whether there are addends.
    pub(super) fn have_addend(&self) -> bool {
        self.problems().any(|p| p.addend().is_some())
    }

    /// Whether all addends are numbers of f16, as an accumulator of that type would start with.
    pub(super) fn addend_is_half(&self) -> bool {
        let is_half = |x: &f32| x.is_nan() || f16::from_f32(*x).to_f32() == *x;
        self.problems().filter_map(GemmProblem::addend).all(|c| c.iter_rows().all(|r| r.iter().all(is_half)))
    }

    /// The row of D that is row `i` of a product.
    pub(super) fn row(&self, part: usize, i: usize) -> usize {
        self.0[part].1 + i
    }

    /// The rows of D that belong to a product.
    pub(super) fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        self.0.iter().map(|(p, first)| *first..first + p.m())
    }

    /// All elements.
    pub(super) fn all(&self) -> Vec<Tile> {
        let tile = |(part, (p, _)): (usize, &(GemmProblem<'_>, usize))| Tile {
            part,
            rows: 0..p.m(),
            cols: 0..p.n(),
        };
        self.0.iter().enumerate().map(tile).collect()
    }

    /// At least so many elements, or all: bands of rows and columns from the first to the last, every other one across an
    /// edge of tiles.
    pub(super) fn sample(&self, elements: usize) -> Vec<Tile> {
        if self.elements() <= elements {
            return self.all();
        }
        let count = self.0.len().min(GROUPS);
        let mut tiles = Vec::new();
        for i in 0..count {
            let part = if count == 1 { 0 } else { i * (self.0.len() - 1) / (count - 1) };
            let (m, n) = self.0[part].0.output_shape();
            let quota = elements.div_ceil(count);
            let side = quota.isqrt() + usize::from(quota.isqrt().pow(2) < quota);
            // What one direction is short of, the other has more of.
            let rows = side.max(quota.div_ceil(n)).min(m);
            let cols = quota.div_ceil(rows).min(n);
            for rows in bands(m, rows) {
                let tile = |cols| Tile { part, rows: rows.clone(), cols };
                tiles.extend(bands(n, cols).into_iter().map(tile));
            }
        }
        tiles
    }

    /// D of a tile.
    pub(super) fn multiply(&self, tile: &Tile, accumulation: Accumulation) -> Result<Matrix<f32>> {
        let Tile { part, rows, cols } = tile;
        let (whole, _) = &self.0[*part];
        let (a, b) = (whole.a().row_range(rows.start, rows.end), whole.b().row_range(cols.start, cols.end));
        let problem = GemmProblem::nt(a, b)?.with_accumulation(accumulation)?;
        match whole.addend() {
            Some(c) => {
                let c = c.row_range(rows.start, rows.end).col_range(cols.start, cols.end);
                problem.with_addend(c)?.run()
            }
            None => problem.run(),
        }
    }
}

/// Bands of together at least `wanted` of `len` rows or columns.
fn bands(len: usize, wanted: usize) -> Vec<Range<usize>> {
    let count = (wanted / BANDS).clamp(2, BANDS);
    let height = wanted.div_ceil(count);
    if count * height >= len {
        return std::iter::once(0..len).collect();
    }
    let mut bands: Vec<Range<usize>> = Vec::new();
    for i in 0..count {
        let even = i * (len - height) / (count - 1);
        let across = (even / EDGE * EDGE + EDGE).saturating_sub(height / 2);
        let free = bands.last().map_or(0, |band| band.end);
        // What is left beyond it has to hold the bands that follow.
        let last = len - height * (count - i);
        let start = if i % 2 == 1 { across } else { even };
        let start = start.max(free).min(last);
        bands.push(start..start + height);
    }
    bands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_lie_apart_from_the_first_to_the_last() {
        for (len, wanted) in [(7168, 256), (4096, 4), (300, 32), (129, 4), (40, 32), (3, 2), (257, 256)] {
            let bands = bands(len, wanted);
            assert!(bands.iter().map(Range::len).sum::<usize>() >= wanted, "{len} {wanted} {bands:?}");
            assert!(bands.windows(2).all(|pair| pair[0].end <= pair[1].start), "{bands:?}");
            assert_eq!((bands[0].start, bands.last().unwrap().end <= len), (0, true));
        }
        let far = bands(7168, 256);
        assert!(far.iter().any(|band| band.contains(&127) && band.contains(&128) || band.start % 128 == 120));
        assert_eq!(far.last().unwrap().end.div_ceil(128), 56);
    }
}
