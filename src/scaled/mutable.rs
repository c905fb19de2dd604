//! Codes and scales in memory of the caller's, for results.

use super::{Codes, CodesRef, Granule, ScaleGrid, ScaleGridRef, ScaledMatrix, ScaledRef};
use crate::error::{Error, Result};
use crate::formats::Format;

/// Codes to be written, dense and row-major.
#[derive(Debug)]
pub enum CodesSliceMut<'a> {
    /// Formats of at most 8 bits, in the low bits.
    Bytes(&'a mut [u8]),
    /// Formats of 9 to 16 bits.
    Words(&'a mut [u16]),
}

/// Scales to be written, dense and row-major.
#[derive(Debug)]
pub enum ScaleSliceMut<'a> {
    /// Any f32.
    F32(&'a mut [f32]),
    /// Powers of two, one byte each.
    E8M0(&'a mut [u8]),
    /// E4M3 codes without sign.
    E4M3(&'a mut [u8]),
}

impl ScaleSliceMut<'_> {
    /// The format that they are stored in.
    pub fn format(&self) -> Format {
        match self {
            ScaleSliceMut::F32(_) => Format::F32,
            ScaleSliceMut::E8M0(_) => Format::E8M0,
            ScaleSliceMut::E4M3(_) => Format::E4M3,
        }
    }

    fn len(&self) -> usize {
        match self {
            ScaleSliceMut::F32(s) => s.len(),
            ScaleSliceMut::E8M0(s) | ScaleSliceMut::E4M3(s) => s.len(),
        }
    }
}

/// Where a quantised matrix goes: memory that another library allocated, say.
///
/// ```
/// use finegrain::Engine;
/// use finegrain::formats::Format;
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{Recipe, Role};
/// use finegrain::scaled::{CodesSliceMut, Granule, ScaleSliceMut, ScaledMut};
/// let (mut codes, mut scales) = ([0u8; 4 * 300], [0f32; 4 * 3]);
/// let (codes, scales) = (CodesSliceMut::Bytes(&mut codes), ScaleSliceMut::F32(&mut scales));
/// let out = ScaledMut::new(Format::E4M3, codes, (4, 300), scales, Granule::TILE_1X128)?;
/// let x = Matrix::filled(4, 300, 448.0f32);
/// let (stats, tensor_scale) = Engine::cpu().quantize_to(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation, out)?;
/// assert_eq!((stats.granules, tensor_scale), (12, 1.0));
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Debug)]
pub struct ScaledMut<'a> {
    format: Format,
    codes: CodesSliceMut<'a>,
    shape: (usize, usize),
    scales: ScaleSliceMut<'a>,
    granule: Granule,
}

impl<'a> ScaledMut<'a> {
    /// Room for a matrix of `shape`, (rows, columns).
    ///
    /// # Errors
    /// [`Error::Shape`] if a slice has another length than shape and granule ask for; [`Error::Invalid`] if the slice is
    /// not as wide as codes of the format.
    pub fn new(
        format: Format,
        codes: CodesSliceMut<'a>,
        shape: (usize, usize),
        scales: ScaleSliceMut<'a>,
        granule: Granule,
    ) -> Result<Self> {
        let (rows, cols) = shape;
        let (bits, (stored, len)) = (
            format.spec().bits(),
            match &codes {
                CodesSliceMut::Bytes(c) => (u8::BITS, c.len()),
                CodesSliceMut::Words(c) => (u16::BITS, c.len()),
            },
        );
        if stored != bits.next_power_of_two().max(u8::BITS) {
            return Err(Error::Invalid(format!(
                "{format} has {bits} bits, its codes are to be stored in {stored}"
            )));
        }
        if rows.checked_mul(cols) != Some(len) {
            return Err(Error::Shape(format!("{len} codes are to hold {rows}×{cols}")));
        }
        let (grid_rows, grid_cols) = granule.grid(rows, cols);
        if grid_rows.checked_mul(grid_cols) != Some(scales.len()) {
            return Err(Error::Shape(format!(
                "{} scales for {rows}×{cols} in {granule}, expected {grid_rows}×{grid_cols}",
                scales.len()
            )));
        }
        Ok(ScaledMut { format, codes, shape, scales, granule })
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Format of the codes.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Elements that share a scale.
    pub fn granule(&self) -> Granule {
        self.granule
    }

    /// Format of the scales.
    pub fn scale_format(&self) -> Format {
        self.scales.format()
    }

    /// Codes and scales, to be written by what keeps them legal.
    pub(crate) fn into_slices(self) -> (CodesSliceMut<'a>, ScaleSliceMut<'a>) {
        (self.codes, self.scales)
    }

    /// Copies codes and scales; the scale of the tensor has no place here.
    ///
    /// ```
    /// # use finegrain::Engine;
    /// # use finegrain::formats::Format;
    /// # use finegrain::matrix::Matrix;
    /// # use finegrain::quant::{Recipe, Role};
    /// # use finegrain::scaled::{CodesSliceMut, Granule, ScaleSliceMut, ScaledMut};
    /// let x = Matrix::filled(1, 128, 448.0f32);
    /// let q = Engine::cpu().quantize(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation)?;
    /// let (mut codes, mut scales) = ([0u8; 128], [0f32]);
    /// let room = (CodesSliceMut::Bytes(&mut codes), ScaleSliceMut::F32(&mut scales));
    /// ScaledMut::new(Format::E4M3, room.0, (1, 128), room.1, Granule::TILE_1X128)?.copy_from(q.view())?;
    /// assert_eq!((codes, scales), ([0x7E; 128], [1.0]));
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Invalid`] if they do not fit.
    pub fn copy_from(self, x: ScaledRef<'_>) -> Result<()> {
        let scales = x.scales().filter(|_| x.row_offset() == 0);
        let Some(scales) = scales else {
            return Err(Error::Invalid(
                "a matrix without scales, or from inside a granule, has no copy".into(),
            ));
        };
        self.check(x.format(), x.shape(), scales.granule, scales.grid.format())?;
        match (self.codes, x.codes()) {
            (CodesSliceMut::Bytes(to), CodesRef::Bytes(m)) => copy(to, m.iter_rows(), self.shape.1),
            (CodesSliceMut::Words(to), CodesRef::Words(m)) => copy(to, m.iter_rows(), self.shape.1),
            (CodesSliceMut::Bytes(_), CodesRef::Words(_) | CodesRef::Dwords(_))
            | (CodesSliceMut::Words(_), CodesRef::Bytes(_) | CodesRef::Dwords(_)) => {
                unreachable!("codes of one format have one width")
            }
        }
        let width = scales.grid.shape().1;
        match (self.scales, scales.grid) {
            (ScaleSliceMut::F32(to), ScaleGridRef::F32(m)) => copy(to, m.iter_rows(), width),
            (ScaleSliceMut::E8M0(to), ScaleGridRef::E8M0(m))
            | (ScaleSliceMut::E4M3(to), ScaleGridRef::E4M3(m)) => copy(to, m.iter_rows(), width),
            (
                ScaleSliceMut::F32(_) | ScaleSliceMut::E8M0(_) | ScaleSliceMut::E4M3(_),
                ScaleGridRef::F32(_) | ScaleGridRef::E8M0(_) | ScaleGridRef::E4M3(_),
            ) => unreachable!("formats were compared"),
        }
        Ok(())
    }

    /// Whether a result of this kind fits.
    pub(crate) fn check(
        &self,
        format: Format,
        shape: (usize, usize),
        granule: Granule,
        scales: Format,
    ) -> Result<()> {
        if self.shape != shape {
            let ((r, c), (rows, cols)) = (self.shape, shape);
            return Err(Error::Shape(format!("{r}×{c} codes are to hold a result of {rows}×{cols}")));
        }
        let kind = |format: Format, granule: Granule, scales: Format| {
            format!("{format} in {granule} with {scales} scales")
        };
        if (self.format, self.granule, self.scale_format()) != (format, granule, scales) {
            let (found, wanted) =
                (kind(self.format, self.granule, self.scale_format()), kind(format, granule, scales));
            return Err(Error::Invalid(format!("a matrix of {found} is to hold a result of {wanted}")));
        }
        Ok(())
    }
}

fn copy<'x, T: Copy + 'x>(to: &mut [T], rows: impl Iterator<Item = &'x [T]>, width: usize) {
    // Rows of nothing have nothing to be copied.
    if width > 0 {
        to.chunks_exact_mut(width).zip(rows).for_each(|(to, row)| to.copy_from_slice(row));
    }
}

impl ScaledMatrix {
    /// The whole, to be written; `None` without scales, and for F32.
    pub(crate) fn view_mut(&mut self) -> Option<ScaledMut<'_>> {
        let (format, shape) = (self.format, self.shape());
        let scales = self.scales.as_mut()?;
        let codes = match &mut self.codes {
            Codes::Bytes(m) => CodesSliceMut::Bytes(m.as_mut_slice()),
            Codes::Words(m) => CodesSliceMut::Words(m.as_mut_slice()),
            Codes::Dwords(_) => return None,
        };
        let granule = scales.granule;
        let scales = match &mut scales.grid {
            ScaleGrid::F32(m) => ScaleSliceMut::F32(m.as_mut_slice()),
            ScaleGrid::E8M0(m) => ScaleSliceMut::E8M0(m.as_mut_slice()),
            ScaleGrid::E4M3(m) => ScaleSliceMut::E4M3(m.as_mut_slice()),
        };
        Some(ScaledMut { format, codes, shape, scales, granule })
    }

    /// The same with a scale of the tensor, where there are scales.
    pub(crate) fn set_tensor_scale(&mut self, scale: f32) {
        if let Some(scales) = &mut self.scales {
            scales.tensor = scale;
        }
    }
}
