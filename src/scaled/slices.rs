//! Two slices as a scaled matrix: codes in memory that another library filled, without a copy.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

use super::{CodesRef, Granule, ScaleGridRef, ScaledRef, ScalesRef};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::MatRef;

mod sealed {
    pub trait Sealed {}
}

/// What a slice of codes may hold: `u8` and `u16` for codes of any format of that width, one in each, and the types of
/// `float8` and `half`, whose format is known.
pub trait CodeElement: Copy + sealed::Sealed {
    /// The format that the type is made for; `None` for plain integers.
    const FORMAT: Option<Format>;

    /// The codes of a dense row-major matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] if the slice does not hold `rows × cols` of them.
    fn codes(slice: &[Self], rows: usize, cols: usize) -> Result<CodesRef<'_>>;
}

macro_rules! code_elements {
    ($($element:ty: $format:expr, $kind:ident;)*) => {$(
        impl sealed::Sealed for $element {}

        impl CodeElement for $element {
            const FORMAT: Option<Format> = $format;

            fn codes(slice: &[Self], rows: usize, cols: usize) -> Result<CodesRef<'_>> {
                Ok(CodesRef::$kind(MatRef::new(bytemuck::cast_slice(slice), rows, cols)?))
            }
        }
    )*};
}

code_elements! {
    u8: None, Bytes;
    u16: None, Words;
    F8E4M3: Some(Format::E4M3), Bytes;
    F8E5M2: Some(Format::E5M2), Bytes;
    bf16: Some(Format::Bf16), Words;
    f16: Some(Format::F16), Words;
    f32: Some(Format::F32), Dwords;
}

/// A slice of scales, row-major. f32 scales need no word: a slice or a vector of them is one.
#[derive(Clone, Copy, Debug)]
pub enum ScaleSlice<'a> {
    /// Any f32.
    F32(&'a [f32]),
    /// Powers of two, one byte each.
    E8M0(&'a [u8]),
    /// E4M3 codes whose sign bit is ignored.
    E4M3(&'a [u8]),
}

impl<'a> From<&'a [f32]> for ScaleSlice<'a> {
    fn from(scales: &'a [f32]) -> Self {
        ScaleSlice::F32(scales)
    }
}

impl<'a, const N: usize> From<&'a [f32; N]> for ScaleSlice<'a> {
    fn from(scales: &'a [f32; N]) -> Self {
        ScaleSlice::F32(scales)
    }
}

impl<'a> From<&'a Vec<f32>> for ScaleSlice<'a> {
    fn from(scales: &'a Vec<f32>) -> Self {
        ScaleSlice::F32(scales)
    }
}

impl<'a> ScaledRef<'a> {
    /// A view of `rows × cols` codes and of the scales of their granules, both dense and row-major. Nothing is copied.
    ///
    /// ```
    /// use finegrain::formats::Format;
    /// use finegrain::scaled::{Granule, ScaledRef};
    /// let codes = [0x38u8; 2 * 256]; // 1.0 in E4M3
    /// let scales = [0.5f32, 0.25, 2.0, 1.0];
    /// let x = ScaledRef::from_slices(Format::E4M3, &codes, 2, 256, &scales, Granule::TILE_1X128)?;
    /// assert_eq!(x.scale_at(1, 0), 2.0);
    ///
    /// let theirs = [float8::F8E4M3::from_f32(1.5); 2 * 256];
    /// let x = ScaledRef::from_slices(Format::E4M3, &theirs, 2, 256, &scales, Granule::TILE_1X128)?;
    /// assert_eq!(x.to_f64()[(0, 200)], 0.375);
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] if a slice has another length than shape and granule ask for; [`Error::Invalid`] as
    /// [`ScaledRef::new`], and if the codes' type is made for another format.
    pub fn from_slices<C: CodeElement>(
        format: Format,
        codes: &'a [C],
        rows: usize,
        cols: usize,
        scales: impl Into<ScaleSlice<'a>>,
        granule: Granule,
    ) -> Result<Self> {
        let codes = plain(format, codes, rows, cols)?;
        let (grid_rows, grid_cols) = granule.grid(rows, cols);
        let sized = |found: usize| {
            let what =
                || format!("{found} scales for {rows}×{cols} in {granule}, expected {grid_rows}×{grid_cols}");
            if found == grid_rows * grid_cols { Ok(()) } else { Err(Error::Shape(what())) }
        };
        let grid = match scales.into() {
            ScaleSlice::F32(s) => {
                sized(s.len()).and_then(|()| MatRef::new(s, grid_rows, grid_cols)).map(ScaleGridRef::F32)
            }
            ScaleSlice::E8M0(s) => {
                sized(s.len()).and_then(|()| MatRef::new(s, grid_rows, grid_cols)).map(ScaleGridRef::E8M0)
            }
            ScaleSlice::E4M3(s) => {
                sized(s.len()).and_then(|()| MatRef::new(s, grid_rows, grid_cols)).map(ScaleGridRef::E4M3)
            }
        }?;
        ScaledRef::new(format, codes, Some(ScalesRef { granule, grid, tensor: 1.0 }))
    }

    /// A view of `rows × cols` codes without scales.
    ///
    /// # Errors
    /// As [`ScaledRef::from_slices`].
    pub fn from_codes<C: CodeElement>(
        format: Format,
        codes: &'a [C],
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        ScaledRef::new(format, plain(format, codes, rows, cols)?, None)
    }
}

/// The codes, if their type is not made for another format.
fn plain<C: CodeElement>(format: Format, codes: &[C], rows: usize, cols: usize) -> Result<CodesRef<'_>> {
    match C::FORMAT {
        Some(of) if of != format => {
            Err(Error::Invalid(format!("a slice of {of} codes is to be read as {format}")))
        }
        _ => C::codes(codes, rows, cols),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_codes_is_viewed_in_place() {
        fn check<C: CodeElement>(format: Format, one: C) {
            let (codes, scales) = (vec![one; 6], vec![2.0, 3.0]);
            let x = ScaledRef::from_slices(format, &codes, 2, 3, &scales, Granule::ROW).unwrap();
            assert_eq!(x.to_f64().as_slice(), [2.0, 2.0, 2.0, 3.0, 3.0, 3.0], "{format}");
            let start = match x.codes() {
                CodesRef::Bytes(m) => m.row(0).as_ptr().cast::<C>(),
                CodesRef::Words(m) => m.row(0).as_ptr().cast::<C>(),
                CodesRef::Dwords(m) => m.row(0).as_ptr().cast::<C>(),
            };
            assert_eq!(start, codes.as_ptr(), "{format} is copied");
            assert_eq!(ScaledRef::from_codes(format, &codes, 3, 2).unwrap().to_f64().as_slice(), [1.0; 6]);
        }
        check(Format::E4M3, 0x38u8);
        check(Format::E2M1, 0x02u8);
        check(Format::E5M6, 0x3C0u16);
        check(Format::E4M3, F8E4M3::from_f32(1.0));
        check(Format::E5M2, F8E5M2::from_f32(1.0));
        check(Format::Bf16, bf16::ONE);
        check(Format::F16, f16::ONE);
        check(Format::F32, 1.0f32);
    }

    #[test]
    fn bytes_are_scales_by_name() {
        let codes = [0x02u8; 64];
        let view = |scales| ScaledRef::from_slices(Format::E2M1, &codes, 1, 64, scales, Granule::new(1, 32)?);
        assert_eq!(
            view(ScaleSlice::E8M0(&[127, 128])).unwrap().to_f64().as_slice()[30..34],
            [1.0, 1.0, 2.0, 2.0]
        );
        assert_eq!(
            view(ScaleSlice::E4M3(&[0x38, 0x40])).unwrap().to_f64().as_slice()[30..34],
            [1.0, 1.0, 2.0, 2.0]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        let (codes, scales) = ([F8E4M3::from_f32(1.0); 256], [1.0f32; 2]);
        let view = |format, rows, cols, scales: &[f32]| {
            ScaledRef::from_slices(format, &codes, rows, cols, scales, Granule::TILE_1X128)
                .unwrap_err()
                .to_string()
        };
        assert!(view(Format::E5M2, 1, 256, &scales).contains("e4m3 codes is to be read as e5m2"));
        let short = view(Format::E4M3, 1, 256, &scales[..1]);
        assert!(short.contains("1 scales") && short.contains("1×2"), "{short}");
        let long = view(Format::E4M3, 2, 256, &[1.0; 4]);
        assert!(long.contains("256 elements") && long.contains("2×256"), "{long}");
        let stray = ScaledRef::from_codes(Format::E2M1, &[0x10u8], 1, 1).unwrap_err().to_string();
        assert!(stray.contains("0x10"), "{stray}");
    }
}
