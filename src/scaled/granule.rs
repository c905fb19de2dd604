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
    pub const fn rows(self) -> usize {
        self.rows
    }

    /// Columns of one granule; `usize::MAX` for all.
    pub const fn cols(self) -> usize {
        self.cols
    }

    /// The granule of the transposed matrix.
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

    /// The half-open range of elements that granule `index` of a side covers.
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
