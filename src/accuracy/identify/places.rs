//! Where elements differ.

use std::collections::BTreeMap;

use super::computed::Computed;
use super::{Differences, Element};
use crate::error::{Error, Result};
use crate::matrix::MatRef;

/// How many elements that differ are listed.
const LISTED: usize = 8;
/// Rows and columns of the tiles that are counted.
const TILE: usize = 128;

/// Whether any element of a row, a column or a tile differs, for those that were seen.
#[derive(Default)]
pub(super) struct Places {
    rows: BTreeMap<usize, bool>,
    cols: BTreeMap<usize, bool>,
    tiles: BTreeMap<(usize, usize), bool>,
    first: Vec<Element>,
}

impl Places {
    /// One more element, which may be equal.
    pub(super) fn add(&mut self, element: Element) {
        let Element { row, col, ulps, .. } = element;
        let differs = ulps > 0;
        *self.rows.entry(row).or_insert(false) |= differs;
        *self.cols.entry(col).or_insert(false) |= differs;
        *self.tiles.entry((row / TILE, col / TILE)).or_insert(false) |= differs;
        if differs && self.first.len() < LISTED {
            self.first.push(element);
        }
    }

    /// All of them.
    pub(super) fn counted(self) -> Differences {
        fn count<K>(seen: &BTreeMap<K, bool>) -> [usize; 2] {
            [seen.values().filter(|differs| **differs).count(), seen.len()]
        }
        Differences {
            rows: count(&self.rows),
            cols: count(&self.cols),
            tiles: count(&self.tiles),
            first: self.first,
        }
    }
}

/// How a result differs from what was expected of it, over all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Elements whose bits differ; NaN of any payload is NaN.
    pub differ: usize,
    /// Elements.
    pub of: usize,
    /// The largest distance of an element, as [`Match::max_ulps`](super::Match::max_ulps).
    pub max_ulps: u32,
    /// Where they differ.
    pub places: Differences,
}

/// Compares a result, element by element, with the sums that are expected of it, each rounded once to the result's format.
///
/// ```
/// use finegrain::accuracy::identify::{Computed, difference};
/// use finegrain::matrix::Matrix;
/// let expected = Matrix::filled(4, 4, 1.0f32);
/// let mut d = expected.clone();
/// d[(2, 3)] = 1.0f32.next_up();
/// let found = difference(Computed::F32(d.view()), expected.view())?;
/// assert_eq!((found.differ, found.of, found.max_ulps), (1, 16, 1));
/// assert_eq!((found.places.rows, found.places.first[0].col), ([1, 4], 3));
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub fn difference(d: Computed<'_>, expected: MatRef<'_, f32>) -> Result<Difference> {
    let ((rows, cols), (m, n)) = (d.shape(), expected.shape());
    if (rows, cols) != (m, n) {
        return Err(Error::Shape(format!("d is {rows}×{cols}, the product {m}×{n}")));
    }
    let (mut differ, mut max_ulps, mut places) = (0, 0, Places::default());
    for row in 0..if cols == 0 { 0 } else { rows } {
        for (col, &sum) in expected.row(row).iter().enumerate() {
            let (given, expected) = (d.at(row, col), d.rounded(sum));
            let ulps = given.distance(expected, d.sign());
            differ += usize::from(ulps > 0);
            max_ulps = ulps.max(max_ulps);
            places.add(Element { row, col, given: given.value, expected: expected.value, ulps });
        }
    }
    Ok(Difference { differ, of: rows * cols, max_ulps, places: places.counted() })
}
