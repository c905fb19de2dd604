//! Cutting a matrix that holds several groups side by side along K.

use super::{CodesRef, ScaledRef, ScalesRef};
use crate::error::{Error, Result};
use crate::formats::Format;

impl<'a> ScaledRef<'a> {
    /// Cuts codes [rows, ΣKg] into groups of `sizes` columns, each with its own granules: what k-grouped GEMMs read.
    ///
    /// Granules begin anew with each group, so the grid holds ⌈Kg / granule columns⌉ columns for each group side by
    /// side, which is more than the plain grid where a group ends inside a granule. A scale for whole rows, or for the
    /// tensor, is shared by all groups.
    ///
    /// ```
    /// use finegrain::formats::Format;
    /// use finegrain::matrix::{MatRef, Matrix};
    /// use finegrain::scaled::{CodesRef, Granule, ScaleGridRef, ScaledRef, ScalesRef};
    /// let codes = [0x38u8; 300]; // 1.0 in E4M3
    /// let scales = Matrix::from_vec(1, 4, vec![1.0f32, 2.0, 3.0, 4.0])?; // 130 columns need two, 170 two more
    /// let tiles = ScalesRef { granule: Granule::TILE_1X128, grid: ScaleGridRef::F32(scales.view()), tensor: 1.0 };
    /// let codes = CodesRef::Bytes(MatRef::new(&codes, 1, 300)?);
    /// let groups = ScaledRef::k_groups(Format::E4M3, codes, Some(tiles), &[130, 170])?;
    /// assert_eq!(groups[0].scale_at(0, 129), 2.0);
    /// assert_eq!(groups[1].scale_at(0, 0), 3.0);
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes do not add up to the columns, or the grid has not the shape said above;
    /// [`Error::Invalid`] as [`ScaledRef::new`].
    pub fn k_groups(
        format: Format,
        codes: CodesRef<'a>,
        scales: Option<ScalesRef<'a>>,
        sizes: &[usize],
    ) -> Result<Vec<Self>> {
        let whole = ScaledRef { scales, ..ScaledRef::new(format, codes, None)? };
        let (rows, cols) = codes.shape();
        let total = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        if total != Some(cols) {
            let total = total.map_or("more than can be counted".to_owned(), |n| n.to_string());
            return Err(Error::Shape(format!(
                "{} groups of K add up to {total}, the matrix has {cols} columns",
                sizes.len()
            )));
        }
        let shared = scales.is_none_or(|s| s.granule.cols() == usize::MAX);
        let granules = |size: usize| scales.map_or(0, |s| s.granule.grid(rows, size).1);
        if let Some(s) = scales {
            let uncounted = (usize::MAX, usize::MAX);
            let (expected, found) = (s.granule.k_grid(rows, sizes).unwrap_or(uncounted), s.grid.shape());
            if expected != found {
                return Err(Error::Shape(format!(
                    "scale grid is {}×{}, expected {}×{} for {rows}×{cols} in {} groups along K with {} granules",
                    found.0,
                    found.1,
                    expected.0,
                    expected.1,
                    sizes.len(),
                    s.granule
                )));
            }
        }
        let (mut code, mut grid) = (0, 0);
        let group = |&size: &usize| {
            let codes = code..code + size;
            let columns = if shared { 0..1 } else { grid..grid + granules(size) };
            (code, grid) = (codes.end, columns.end);
            whole.col_group(codes, columns)
        };
        Ok(sizes.iter().map(group).collect())
    }
}
