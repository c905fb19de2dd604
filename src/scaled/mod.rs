//! Scaled matrices: codes, scales, and how many elements share a scale.
//!
//! value(i, j) = code(i, j) × scale(⌊i / granule rows⌋, ⌊j / granule cols⌋) × tensor scale, where the tensor scale is 1
//! but for two-level formats (NVFP4). `scale` is the factor that **dequantises**, what checkpoints call
//! `weight_scale_inv`.
//!
//! [`ScaledMatrix`] owns, [`ScaledRef`] borrows; both are legal once constructed, so nothing downstream checks again.
//! [`layout`] converts scale grids to and from the layouts that GPU kernels read.
#![forbid(unsafe_code)]

mod codes;
mod dequantize;
mod granule;
mod groups;
pub mod layout;
mod lie;
mod mutable;
mod parts;
mod resident;
mod slices;
pub(crate) mod trial;

use codes::each;
pub use codes::{Codes, CodesRef};
pub use granule::Granule;
pub(crate) use lie::Elsewhere;
pub use mutable::{CodesSliceMut, ScaleSliceMut, ScaledMut};
pub(crate) use parts::Scratch as DequantizeScratch;
pub(crate) use resident::Kept;
pub use resident::Resident;
pub use slices::{CodeElement, ScaleSlice};

use std::any::Any;
use std::ops::Range;

use self::lie::Lie;
use crate::error::{Error, Result};
use crate::formats::{Format, e8m0};
use crate::matrix::{MatRef, Matrix};

/// The grid of scales as stored.
#[derive(Clone, Debug, PartialEq)]
pub enum ScaleGrid {
    /// Any f32; power-of-two recipes keep their scales here too when their source stores f32.
    F32(Matrix<f32>),
    /// Powers of two, one byte each.
    E8M0(Matrix<u8>),
    /// NVFP4's block scales: E4M3 codes whose sign bit is ignored (UE4M3).
    E4M3(Matrix<u8>),
}

/// A borrowed view of [`ScaleGrid`].
#[derive(Clone, Copy, Debug)]
pub enum ScaleGridRef<'a> {
    /// See [`ScaleGrid::F32`].
    F32(MatRef<'a, f32>),
    /// See [`ScaleGrid::E8M0`].
    E8M0(MatRef<'a, u8>),
    /// See [`ScaleGrid::E4M3`].
    E4M3(MatRef<'a, u8>),
}

/// A grid of scales, its granule and the second-level scale of the tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Elements that share one scale.
    pub granule: Granule,
    /// The scales.
    pub grid: ScaleGrid,
    /// Multiplies every scale; 1 but for two-level formats.
    pub tensor: f32,
}

/// A borrowed view of [`Scales`].
#[derive(Clone, Copy, Debug)]
pub struct ScalesRef<'a> {
    /// Elements that share one scale.
    pub granule: Granule,
    /// The scales.
    pub grid: ScaleGridRef<'a>,
    /// Multiplies every scale; 1 but for two-level formats.
    pub tensor: f32,
}

/// An owned matrix of codes with its scales, if it has any.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaledMatrix {
    format: Format,
    codes: Codes,
    scales: Option<Scales>,
}

/// A borrowed matrix of codes with its scales, if it has any.
///
/// ```
/// use finegrain::formats::Format;
/// use finegrain::scaled::{Granule, ScaledRef};
/// let codes = [0x38u8; 256]; // 1.0 in E4M3
/// let x = ScaledRef::from_slices(Format::E4M3, &codes, 1, 256, &[0.5, 2.0], Granule::TILE_1X128)?;
/// assert_eq!(x.dequantize()?.row(0)[127..129], [0.5, 2.0]);
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ScaledRef<'a> {
    format: Format,
    codes: Lie<'a>,
    scales: Option<ScalesRef<'a>>,
    /// Rows of the first granule that lie above this view: row ranges need not start at a granule.
    row_offset: usize,
}

impl ScaleGrid {
    /// A view of the whole.
    #[inline]
    pub fn view(&self) -> ScaleGridRef<'_> {
        each!(self, ScaleGrid => ScaleGridRef { F32, E8M0, E4M3 }, m => m.view())
    }

    #[inline]
    fn transposed(&self) -> ScaleGrid {
        each!(self, ScaleGrid => ScaleGrid { F32, E8M0, E4M3 }, m => m.view().transposed())
    }
}

impl<'a> ScaleGridRef<'a> {
    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        match self {
            ScaleGridRef::F32(m) => m.shape(),
            ScaleGridRef::E8M0(m) | ScaleGridRef::E4M3(m) => m.shape(),
        }
    }

    /// The scale at a place of the grid, decoded.
    #[inline]
    pub fn at(&self, i: usize, j: usize) -> f32 {
        match self {
            ScaleGridRef::F32(m) => m.at(i, j),
            ScaleGridRef::E8M0(m) => e8m0::to_f32(m.at(i, j)),
            ScaleGridRef::E4M3(m) => ue4m3_to_f32(m.at(i, j)),
        }
    }

    /// The element type of the grid.
    pub fn format(&self) -> Format {
        match self {
            ScaleGridRef::F32(_) => Format::F32,
            ScaleGridRef::E8M0(_) => Format::E8M0,
            ScaleGridRef::E4M3(_) => Format::E4M3,
        }
    }

    /// All scales, decoded.
    pub fn to_f32(self) -> Matrix<f32> {
        let (rows, cols) = self.shape();
        Matrix::from_fn(rows, cols, |i, j| self.at(i, j))
    }

    #[inline]
    fn row_range(&self, start: usize, end: usize) -> Self {
        each!(self, ScaleGridRef => ScaleGridRef { F32, E8M0, E4M3 }, m => m.row_range(start, end))
    }

    #[inline]
    fn col_range(&self, start: usize, end: usize) -> Self {
        each!(self, ScaleGridRef => ScaleGridRef { F32, E8M0, E4M3 }, m => m.col_range(start, end))
    }

    #[inline]
    fn to_grid(self) -> ScaleGrid {
        each!(self, ScaleGridRef => ScaleGrid { F32, E8M0, E4M3 }, m => m.to_matrix())
    }
}

/// UE4M3: an E4M3 code without its sign bit.
pub fn ue4m3_to_f32(code: u8) -> f32 {
    Format::E4M3.decode_f32(u16::from(code & 0x7F))
}

impl Scales {
    /// A view of the whole.
    #[inline]
    pub fn view(&self) -> ScalesRef<'_> {
        ScalesRef { granule: self.granule, grid: self.grid.view(), tensor: self.tensor }
    }
}

impl ScaledMatrix {
    /// Joins codes and scales.
    ///
    /// # Errors
    /// As [`ScaledRef::new`].
    pub fn new(format: Format, codes: Codes, scales: Option<Scales>) -> Result<Self> {
        ScaledRef::new(format, codes.view(), scales.as_ref().map(Scales::view))?;
        Ok(ScaledMatrix { format, codes, scales })
    }

    /// Codes of zero with scales of format `scales`, all bits zero: what a quantiser writes into.
    pub(crate) fn zeros(format: Format, rows: usize, cols: usize, granule: Granule, scales: Format) -> Self {
        let codes = match format.spec().bits() {
            ..=8 => Codes::Bytes(Matrix::filled(rows, cols, 0)),
            9..=16 => Codes::Words(Matrix::filled(rows, cols, 0)),
            _ => Codes::Dwords(Matrix::filled(rows, cols, 0)),
        };
        let (grid_rows, grid_cols) = granule.grid(rows, cols);
        let grid = match scales {
            Format::E8M0 => ScaleGrid::E8M0(Matrix::filled(grid_rows, grid_cols, 0)),
            Format::E4M3 => ScaleGrid::E4M3(Matrix::filled(grid_rows, grid_cols, 0)),
            _ => ScaleGrid::F32(Matrix::filled(grid_rows, grid_cols, 0.0)),
        };
        ScaledMatrix { format, codes, scales: Some(Scales { granule, grid, tensor: 1.0 }) }
    }

    /// BF16 elements without scales: the unquantised operand.
    pub fn from_bf16(m: MatRef<'_, half::bf16>) -> Self {
        ScaledMatrix { format: Format::Bf16, codes: Codes::Words(m.map(|x| x.to_bits())), scales: None }
    }

    /// F32 elements without scales: what tensor cores for TF32 multiply.
    pub fn from_f32(m: MatRef<'_, f32>) -> Self {
        ScaledMatrix { format: Format::F32, codes: Codes::Dwords(m.map(|x| x.to_bits())), scales: None }
    }

    /// A view of the whole.
    pub fn view(&self) -> ScaledRef<'_> {
        let scales = self.scales.as_ref().map(Scales::view);
        ScaledRef { format: self.format, codes: Lie::Here(self.codes.view()), scales, row_offset: 0 }
    }

    /// Element format.
    #[inline]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The codes.
    #[inline]
    pub fn codes(&self) -> &Codes {
        &self.codes
    }

    /// The scales, if any.
    #[inline]
    pub fn scales(&self) -> Option<&Scales> {
        self.scales.as_ref()
    }

    /// Codes and scales, given up.
    pub fn into_parts(self) -> (Format, Codes, Option<Scales>) {
        (self.format, self.codes, self.scales)
    }

    /// (rows, columns).
    #[inline]
    pub fn shape(&self) -> (usize, usize) {
        self.codes.view().shape()
    }

    /// The transposed matrix: codes and scale grid transposed, every value unchanged. What Dgrad reads of a weight that
    /// was quantised once in square blocks.
    pub fn transposed(&self) -> ScaledMatrix {
        let scales = self.scales.as_ref().map(|s| Scales {
            granule: s.granule.transposed(),
            grid: s.grid.transposed(),
            tensor: s.tensor,
        });
        ScaledMatrix { format: self.format, codes: self.codes.transposed(), scales }
    }
}

impl<'a> ScaledRef<'a> {
    /// Joins codes and scales.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the format is no element format, its codes are stored in the wrong width, or a code of a
    /// 4-, 6- or 12-bit format has other bits set; [`Error::Shape`] if the scale grid has not the shape that matrix and
    /// granule ask for.
    pub fn new(format: Format, codes: CodesRef<'a>, scales: Option<ScalesRef<'a>>) -> Result<Self> {
        let spec = format.spec();
        let bits = spec.bits();
        if format == Format::E8M0 || bits > 16 && format != Format::F32 {
            return Err(Error::Invalid(format!("{format} is not an element format")));
        }
        let stored = codes.width();
        if stored != bits.next_power_of_two().max(u8::BITS) {
            return Err(Error::Invalid(format!(
                "{format} has {bits} bits, its codes are stored in {stored}"
            )));
        }
        let mask = spec.code_mask() as u16;
        let stray = match codes {
            // Rows of nothing may be more than can be counted through.
            _ if codes.shape().1 == 0 => None,
            CodesRef::Bytes(m) if bits < 8 => {
                m.iter_rows().flatten().copied().map(u16::from).find(|c| c & !mask != 0)
            }
            CodesRef::Words(m) if bits < 16 => m.iter_rows().flatten().copied().find(|c| c & !mask != 0),
            CodesRef::Bytes(_) | CodesRef::Words(_) | CodesRef::Dwords(_) => None,
        };
        if let Some(code) = stray {
            return Err(Error::Invalid(format!("code {code:#x} is wider than the {bits} bits of {format}")));
        }
        if let Some(s) = &scales {
            let (rows, cols) = codes.shape();
            let (expected, found) = (s.granule.grid(rows, cols), s.grid.shape());
            if expected != found {
                let granules = match s.granule {
                    Granule::TENSOR => "one scale for the tensor".to_owned(),
                    Granule::ROW => "one scale a row".to_owned(),
                    g => format!("{g} granules"),
                };
                return Err(Error::Shape(format!(
                    "scale grid is {}×{}, expected {}×{} for {rows}×{cols} with {granules}",
                    found.0, found.1, expected.0, expected.1
                )));
            }
        }
        Ok(ScaledRef { format, codes: Lie::Here(codes), scales, row_offset: 0 })
    }

    /// Codes that were put where an engine works, with their scales, which have been checked.
    pub(crate) fn elsewhere(
        format: Format,
        codes: &'a dyn Elsewhere,
        shape: (usize, usize),
        scales: Option<ScalesRef<'a>>,
    ) -> Self {
        ScaledRef { format, codes: Lie::elsewhere(codes, shape), scales, row_offset: 0 }
    }

    /// What an engine knows all of the matrix by, where it lies at one.
    #[inline]
    pub(crate) fn handle(&self) -> Option<&'a dyn Any> {
        self.codes.handle()
    }

    /// Makes sure that the host has the codes, so that reading them cannot fail.
    ///
    /// # Errors
    /// What keeps a device from giving them.
    pub(crate) fn fetch(&self) -> Result<()> {
        self.codes.fetch().map(drop)
    }

    /// Element format.
    #[inline]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The codes. Those of a matrix that lies on a device are fetched, once.
    ///
    /// # Panics
    /// If the device does not give them.
    pub fn codes(&self) -> CodesRef<'a> {
        self.codes.fetch().expect("a device gives what lies in its memory")
    }

    /// The scales, if any. After [`ScaledRef::row_range`] the first granule may begin above the first row; see
    /// [`ScaledRef::scale_at`].
    #[inline]
    pub fn scales(&self) -> Option<ScalesRef<'a>> {
        self.scales
    }

    /// Rows of the first granule that lie above this view.
    #[inline]
    pub fn row_offset(&self) -> usize {
        self.row_offset
    }

    /// (rows, columns).
    #[inline]
    pub fn shape(&self) -> (usize, usize) {
        self.codes.shape()
    }

    /// The first-level scale of element (i, j); 1 without scales.
    #[inline]
    pub fn scale_at(&self, i: usize, j: usize) -> f32 {
        match &self.scales {
            Some(s) => s.grid.at((i + self.row_offset) / s.granule.rows(), j / s.granule.cols()),
            None => 1.0,
        }
    }

    /// The same of all `rows` at column `j`, into the first of `out`.
    pub(crate) fn scales_at(&self, rows: Range<usize>, j: usize, out: &mut [f32]) {
        let granule = self.scales.map_or(usize::MAX, |s| s.granule.rows());
        let mut row = rows.start;
        while row < rows.end {
            let next = row.saturating_add(granule - (row + self.row_offset) % granule).min(rows.end);
            out[row - rows.start..next - rows.start].fill(self.scale_at(row, j));
            row = next;
        }
    }

    /// The scale of the whole tensor; 1 but for two-level formats.
    #[inline]
    pub fn tensor_scale(&self) -> f32 {
        self.scales.map_or(1.0, |s| s.tensor)
    }

    /// Rows `start..end`, with the scales that belong to them; `start` need not lie on a granule.
    pub fn row_range(&self, start: usize, end: usize) -> Self {
        let mut part = *self;
        part.codes = self.codes.range(start..end, 0..self.shape().1);
        if let Some(s) = &mut part.scales {
            let first = self.row_offset + start;
            if s.granule.rows() != usize::MAX {
                let last = (self.row_offset + end).div_ceil(s.granule.rows()).max(first / s.granule.rows());
                s.grid = s.grid.row_range(first / s.granule.rows(), last.min(s.grid.shape().0));
                part.row_offset = first % s.granule.rows();
            }
        }
        part
    }

    /// Columns `codes` of the codes with columns `grid` of the scale grid: one group of a k-grouped operand.
    pub(crate) fn col_group(&self, codes: std::ops::Range<usize>, grid: std::ops::Range<usize>) -> Self {
        let mut part = *self;
        part.codes = self.codes.range(0..self.shape().0, codes);
        if let Some(s) = &mut part.scales {
            s.grid = s.grid.col_range(grid.start, grid.end);
        }
        part
    }

    /// Columns `cols`, with the scales that belong to them; `None` if they begin inside a granule and go beyond it.
    pub(crate) fn k_range(&self, cols: Range<usize>) -> Option<Self> {
        let columns = match self.scales.map(|s| (s.granule.cols(), s.grid.shape().1)) {
            None => 0..0,
            Some((usize::MAX, shared)) => 0..shared,
            Some((granule, grid)) => {
                let (first, last) = (cols.start / granule, cols.end.div_ceil(granule));
                if !cols.start.is_multiple_of(granule) && last > first + 1 {
                    return None;
                }
                first.min(grid)..last.min(grid)
            }
        };
        Some(self.col_group(cols, columns))
    }

    /// The codes alone.
    pub(crate) fn without_scales(&self) -> Self {
        ScaledRef { scales: None, row_offset: 0, ..*self }
    }

    /// The same with a tensor scale of 1.
    pub(crate) fn without_tensor_scale(&self) -> Self {
        ScaledRef { scales: self.scales.map(|s| ScalesRef { tensor: 1.0, ..s }), ..*self }
    }

    /// Decodes the codes of row `i`, scales not applied.
    ///
    /// # Panics
    /// If `out` is not as long as a row.
    pub fn decode_row(&self, i: usize, out: &mut [f32]) {
        match self.codes() {
            CodesRef::Bytes(m) => {
                let table = self.format.table().expect("formats of at most 8 bits have tables");
                let row = m.row(i);
                assert_eq!(out.len(), row.len());
                out.iter_mut().zip(row).for_each(|(o, &c)| *o = table[usize::from(c)]);
            }
            CodesRef::Words(m) => {
                let row = m.row(i);
                assert_eq!(out.len(), row.len());
                out.iter_mut().zip(row).for_each(|(o, &c)| *o = self.format.decode_f32(c));
            }
            CodesRef::Dwords(m) => {
                let row = m.row(i);
                assert_eq!(out.len(), row.len());
                out.iter_mut().zip(row).for_each(|(o, &c)| *o = f32::from_bits(c));
            }
        }
    }

    /// All values exactly: code · scale has at most 35 significant bits. With a tensor scale the product is rounded to
    /// f64 once.
    pub fn to_f64(&self) -> Matrix<f64> {
        let (rows, cols) = self.shape();
        let mut codes = vec![0.0f32; cols];
        let mut data = Vec::with_capacity(rows * cols);
        for i in 0..if cols == 0 { 0 } else { rows } {
            self.decode_row(i, &mut codes);
            let value = |(j, &c): (usize, &f32)| f64::from(c) * f64::from(self.scale_at(i, j));
            data.extend(codes.iter().enumerate().map(value).map(|v| v * f64::from(self.tensor_scale())));
        }
        Matrix::from_vec(rows, cols, data).expect("one value each code")
    }

    /// An owned copy of the scales.
    #[inline]
    pub(crate) fn own_scales(&self) -> Option<Scales> {
        self.scales.map(|s| Scales { granule: s.granule, grid: s.grid.to_grid(), tensor: s.tensor })
    }

    /// An owned, dense copy.
    ///
    /// # Panics
    /// If the view starts inside a granule; an owned matrix begins with one.
    pub fn to_matrix(&self) -> ScaledMatrix {
        assert_eq!(self.row_offset, 0, "the view starts inside a granule");
        ScaledMatrix { format: self.format, codes: self.codes().to_codes(), scales: self.own_scales() }
    }
}
