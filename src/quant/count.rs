//! How many codes and scales of two matrices differ: rows are compared as bytes, and only those that are not the same are
//! looked into.

use super::diff::Differences;
use crate::error::Result;
use crate::formats::Format;
use crate::parallel::{Watch, map};
use crate::scaled::{CodesRef, Granule, ScaledRef};

/// Elements of one task.
const TASK: usize = 1 << 16;

/// Counts what differs between two matrices of one shape, granule and format of at most 16 bits. NaN codes and scales are
/// equal to each other, and so are all codes under scales that are both NaN: they have no value.
///
/// # Errors
/// [`Error::Cancelled`](crate::Error::Cancelled).
pub(crate) fn differences(a: ScaledRef<'_>, b: ScaledRef<'_>, watch: &Watch<'_>) -> Result<Differences> {
    let (rows, cols) = a.shape();
    if rows == 0 || cols == 0 {
        return Ok(Differences::default());
    }
    let granule = a.scales().map_or(Granule::TENSOR, |s| s.granule);
    let (grid_rows, _) = granule.grid(rows, cols);
    let pair = Pair { sides: [a, b], codes: [a.codes(), b.codes()], nan: Nan::of(a.format()) };
    // Granules of one row are few bytes.
    let each = (TASK / (granule.rows().min(rows) * cols)).max(1);
    let of_task = |task: usize| -> Differences {
        let rows = task * each..((task + 1) * each).min(grid_rows);
        rows.map(|i| pair.of_granules(granule, i)).sum()
    };
    Ok(map(watch, grid_rows.div_ceil(each), &of_task)?.into_iter().sum())
}

struct Pair<'a> {
    sides: [ScaledRef<'a>; 2],
    codes: [CodesRef<'a>; 2],
    nan: Nan,
}

impl Pair<'_> {
    /// What differs in row `i` of the granules.
    fn of_granules(&self, granule: Granule, i: usize) -> Differences {
        let (rows, cols) = self.sides[0].shape();
        let rows = Granule::span(rows, granule.rows(), i);
        let [x, y] = self.codes;
        let changed: Vec<usize> = rows.clone().filter(|&i| !same_codes(x, y, i)).collect();
        let mut found = Differences::default();
        for j in 0..granule.grid(rows.len(), cols).1 {
            let cols = Granule::span(cols, granule.cols(), j);
            let scales = self.sides.map(|side| scale(&side, rows.start, cols.start));
            found.scales += u64::from(!same(scales[0], scales[1]));
            if scales.iter().all(|s| s.is_nan()) {
                continue;
            }
            let differ = |i: usize| cols.clone().filter(|&j| self.nan.differ(x.at(i, j), y.at(i, j))).count();
            found.codes += changed.iter().map(|&i| differ(i) as u64).sum::<u64>();
        }
        found
    }
}

/// Which codes of a format are NaN.
pub(super) struct Nan(Vec<bool>);

impl Nan {
    pub(super) fn of(format: Format) -> Nan {
        let codes = 0..=format.spec().code_mask();
        Nan(codes.map(|code| format.spec().decode(code).to_f64().is_nan()).collect())
    }

    /// Whether two codes are neither the same nor both NaN.
    pub(super) fn differ(&self, x: u32, y: u32) -> bool {
        x != y && !(self.0[x as usize] && self.0[y as usize])
    }
}

/// What a code at (i, j) is multiplied by, exactly.
pub(super) fn scale(x: &ScaledRef<'_>, i: usize, j: usize) -> f64 {
    f64::from(x.scale_at(i, j)) * f64::from(x.tensor_scale())
}

/// Equal, or both NaN.
pub(super) fn same(x: f64, y: f64) -> bool {
    x == y || x.is_nan() && y.is_nan()
}

/// Whether row `i` of two matrices has the same bytes.
pub(super) fn same_codes(x: CodesRef<'_>, y: CodesRef<'_>, i: usize) -> bool {
    match (x, y) {
        (CodesRef::Bytes(x), CodesRef::Bytes(y)) => x.row(i) == y.row(i),
        (CodesRef::Words(x), CodesRef::Words(y)) => x.row(i) == y.row(i),
        (CodesRef::Dwords(x), CodesRef::Dwords(y)) => x.row(i) == y.row(i),
        (CodesRef::Bytes(_) | CodesRef::Words(_) | CodesRef::Dwords(_), _) => false,
    }
}
