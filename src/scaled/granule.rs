//! Granules: how many elements share one scale.

use crate::error::{Error, Result};

/// The elements that share one scale: `rows × cols` of them, counted from the matrix' top left corner; edge granules
/// hold what is left.
///
/// ```
/// use finegrain::scaled::Granule;
/// let block: Granule = "128x128".parse()?;
/// assert_eq!(block.grid(300, 520), (3, 5));
/// assert_eq!(Granule::ROW.grid(300, 520), (300, 1));
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Granule {
    rows: usize,
    cols: usize,
}

/// A side that takes the whole matrix, however large.
const WHOLE: usize = usize::MAX;

impl Granule {
    /// One scale for the matrix.
    pub const TENSOR: Granule = Granule { rows: WHOLE, cols: WHOLE };
    /// One scale for each row.
    pub const ROW: Granule = Granule { rows: 1, cols: WHOLE };
    /// DeepSeek-V3's activation tile: one token × 128 channels.
    pub const TILE_1X128: Granule = Granule { rows: 1, cols: 128 };
    /// DeepSeek-V3's weight block.
    pub const BLOCK_128X128: Granule = Granule { rows: 128, cols: 128 };
    /// The group of OCP MX formats.
    pub const MX_1X32: Granule = Granule { rows: 1, cols: 32 };
    /// The group of NVFP4.
    pub const NVFP4_1X16: Granule = Granule { rows: 1, cols: 16 };

    /// A square granule.
    ///
    /// # Panics
    /// If `side` is 0.
    pub const fn square(side: usize) -> Granule {
        assert!(side > 0, "a granule has at least one element");
        Granule { rows: side, cols: side }
    }

    /// A granule of `rows × cols`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a side is 0.
    pub fn new(rows: usize, cols: usize) -> Result<Self> {
        if rows == 0 || cols == 0 {
            return Err(Error::Invalid(format!("a granule of {rows}x{cols} elements: sides start at 1")));
        }
        Ok(Granule { rows, cols })
    }

    /// Rows of one granule; `usize::MAX` for all.
    #[inline]
    pub const fn rows(self) -> usize {
        self.rows
    }

    /// Columns of one granule; `usize::MAX` for all.
    #[inline]
    pub const fn cols(self) -> usize {
        self.cols
    }

    /// The granule of the transposed matrix.
    #[inline]
    pub const fn transposed(self) -> Granule {
        Granule { rows: self.cols, cols: self.rows }
    }

    /// Shape of the scale grid of a matrix: ⌈rows / granule rows⌉ × ⌈cols / granule cols⌉; a whole side gives 1 even
    /// for an empty matrix.
    pub const fn grid(self, rows: usize, cols: usize) -> (usize, usize) {
        const fn count(size: usize, granule: usize) -> usize {
            if granule == WHOLE { 1 } else { size.div_ceil(granule) }
        }
        (count(rows, self.rows), count(cols, self.cols))
    }

    /// Whether this granule and another cut a matrix of `rows × cols` into the same parts: 1×128 and a whole row do for 96
    /// columns.
    pub fn cuts_as(self, other: Granule, rows: usize, cols: usize) -> bool {
        let sides = |g: Granule| (g.rows.min(rows), g.cols.min(cols));
        sides(self) == sides(other)
    }

    /// The granules of the field: what [`Granule::infer`] knows, in the order it tries them.
    pub const FIELD: [Granule; 7] = [
        Granule::TILE_1X128,
        Granule::BLOCK_128X128,
        Granule::ROW,
        Granule::TENSOR,
        Granule::MX_1X32,
        Granule::NVFP4_1X16,
        Granule { rows: 32, cols: 32 },
    ];

    /// The granule of [`Granule::FIELD`] that fits codes of shape `codes` with scales of shape `grid`, as checkpoints and
    /// kernels store them: no or one scale dimension of size 1 is a tensor's, `[M]` or `[M, 1]` are a row's each, and
    /// otherwise both shapes have the same leading dimensions and the last two are matched. Where several granules fit (a
    /// matrix smaller than a granule), they mean the same. No other granule is ever made up: a grid that is transposed or
    /// padded has a quotient too.
    ///
    /// ```
    /// use finegrain::scaled::Granule;
    /// assert_eq!(Granule::infer(&[300, 520], &[3, 5]), Some(Granule::BLOCK_128X128));
    /// assert_eq!(Granule::infer(&[300, 520], &[300, 17]), Some(Granule::MX_1X32));
    /// assert_eq!(Granule::infer(&[256, 512], &[4, 8]), None); // 64x64 would fit; is it meant?
    /// ```
    pub fn infer(codes: &[usize], grid: &[usize]) -> Option<Granule> {
        let (lead, rows, cols) = match codes {
            [] => (&codes[..0], 1, 1),
            [cols] => (&codes[..0], 1, *cols),
            [lead @ .., rows, cols] => (lead, *rows, *cols),
        };
        let grid = match grid {
            [] | [1] => return Some(Granule::TENSOR),
            [n] if codes.len() == 2 && *n == rows => return Some(Granule::ROW),
            [n] if codes.len() == 1 => (1, *n),
            [grid_lead @ .., r, c] if grid_lead == lead => (*r, *c),
            _ => return None,
        };
        Self::FIELD.into_iter().find(|g| g.grid(rows, cols) == grid)
    }

    /// The granule of [`Granule::FIELD`] of a matrix of `rows` that holds groups of `sizes` columns side by side, each with
    /// granules of its own ([`ScaledRef::k_groups`](crate::scaled::ScaledRef::k_groups)); one for whole rows is shared by
    /// all groups.
    ///
    /// ```
    /// use finegrain::scaled::Granule;
    /// // 160 columns take two tiles of 128: the grid of the plain matrix would have three.
    /// assert_eq!(Granule::infer_k_groups(8, &[160, 160], (8, 4)), Some(Granule::TILE_1X128));
    /// assert_eq!(Granule::infer_k_groups(8, &[160, 160], (8, 3)), None);
    /// ```
    pub fn infer_k_groups(rows: usize, sizes: &[usize], grid: (usize, usize)) -> Option<Granule> {
        Self::FIELD.into_iter().find(|g| g.k_grid(rows, sizes) == Some(grid))
    }

    /// Shape of the scale grid of groups of K side by side; `None` for more columns than can be counted.
    pub(super) fn k_grid(self, rows: usize, sizes: &[usize]) -> Option<(usize, usize)> {
        let columns = |sum: usize, &size: &usize| sum.checked_add(self.grid(rows, size).1);
        let cols = if self.cols == WHOLE { Some(1) } else { sizes.iter().try_fold(0, columns) };
        cols.map(|cols| (self.grid(rows, 0).0, cols))
    }

    /// The half-open range of elements that granule `index` of a side covers.
    #[inline]
    pub fn span(size: usize, granule: usize, index: usize) -> std::ops::Range<usize> {
        let start = index.saturating_mul(granule).min(size);
        start..start.saturating_add(granule).min(size)
    }
}

impl std::fmt::Display for Granule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match *self {
            Granule::TENSOR => "tensor".to_owned(),
            Granule::ROW => "row".to_owned(),
            Granule { rows, cols } => {
                let side = |n| if n == WHOLE { "*".to_owned() } else { format!("{n}") };
                format!("{}x{}", side(rows), side(cols))
            }
        };
        f.pad(&text)
    }
}

impl std::str::FromStr for Granule {
    type Err = Error;

    /// Reads `RxC`, where a side may be `*` (all), or `tensor` or `row`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "tensor" => return Ok(Granule::TENSOR),
            "row" => return Ok(Granule::ROW),
            _ => {}
        }
        let side = |s: &str| if s == "*" { Some(WHOLE) } else { s.parse::<usize>().ok() };
        let sides = text.split_once('x').and_then(|(r, c)| Some((side(r)?, side(c)?)));
        let Some((rows, cols)) = sides else {
            return Err(Error::Invalid(format!(
                "granule '{text}': expected RxC such as 1x128, or tensor, or row"
            )));
        };
        Granule::new(rows, cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_follow_from_shapes() {
        let infer = |codes: &[usize], grid: &[usize]| Granule::infer(codes, grid).map(|g| g.to_string());
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(infer(&[256, 256], &[]), some("tensor"));
        assert_eq!(infer(&[256, 256], &[1]), some("tensor"));
        assert_eq!(infer(&[256, 256], &[1, 1]), some("tensor"));
        assert_eq!(infer(&[256, 512], &[256, 1]), some("row"));
        assert_eq!(infer(&[256, 512], &[256]), some("row"));
        assert_eq!(infer(&[256, 512], &[256, 4]), some("1x128"));
        assert_eq!(infer(&[256, 512], &[2, 4]), some("128x128"));
        assert_eq!(infer(&[256, 512], &[256, 16]), some("1x32"));
        assert_eq!(infer(&[256, 512], &[256, 32]), some("1x16"));
        assert_eq!(infer(&[256, 512], &[8, 16]), some("32x32"));
        for made_up in [[2, 512], [4, 8], [4, 2], [1, 256], [256, 8], [4, 4], [256, 512]] {
            assert_eq!(infer(&[256, 512], &made_up), None, "{made_up:?}");
        }
        assert_eq!(infer(&[256, 480], &[1, 5]), None);
        assert_eq!(infer(&[512], &[4]), some("1x128"));
        assert_eq!(infer(&[6, 256, 512], &[6, 2, 4]), some("128x128"));
        assert_eq!(infer(&[6, 256, 512], &[5, 2, 4]), None);
        assert_eq!(infer(&[256, 512], &[3, 5]), None);
        assert_eq!(infer(&[256, 512], &[2, 4, 1]), None);
        assert_eq!(infer(&[256, 512], &[0, 4]), None);
        assert_eq!(infer(&[256, 512], &[512, 4]), None);
        assert_eq!(infer(&[usize::MAX, 0], &[usize::MAX, 0]), some("1x128"));
    }

    #[test]
    fn granules_beyond_a_matrix_are_the_same() {
        assert!(Granule::TILE_1X128.cuts_as(Granule::ROW, 300, 128));
        assert!(!Granule::TILE_1X128.cuts_as(Granule::ROW, 300, 129));
        assert!(Granule::BLOCK_128X128.cuts_as(Granule::TENSOR, 7, 9));
        assert!(!Granule::BLOCK_128X128.cuts_as(Granule::TENSOR, 129, 9));
    }

    #[test]
    fn groups_along_k_have_tails_of_their_own() {
        let infer = |sizes: &[usize], grid| Granule::infer_k_groups(4, sizes, grid).map(|g| g.to_string());
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(infer(&[160, 160], (4, 4)), some("1x128"));
        assert_eq!(infer(&[160, 160], (1, 4)), some("128x128"));
        assert_eq!(infer(&[160, 160], (4, 10)), some("1x32"));
        assert_eq!(infer(&[130, 0, 190], (4, 4)), some("1x128"));
        assert_eq!(infer(&[160, 160], (4, 1)), some("row"));
        assert_eq!(infer(&[160, 160], (1, 1)), some("tensor"));
        assert_eq!(infer(&[160, 160], (4, 3)), None);
        assert_eq!(infer(&[usize::MAX, usize::MAX], (4, 1)), some("row"));
    }

    #[test]
    fn whatever_is_inferred_fits() {
        for rows in 0..20 {
            for cols in 0..40 {
                for (r, c) in (0..22).flat_map(|r| (0..42).map(move |c| (r, c))) {
                    if let Some(g) = Granule::infer(&[rows, cols], &[r, c]) {
                        assert_eq!(g.grid(rows, cols), (r, c), "{g} for {rows}x{cols} with {r}x{c}");
                    }
                }
            }
        }
    }
}
