//! One tensor in memory: dtype, shape and little-endian bytes, and its conversions to and from matrices.

use half::{bf16, f16};
use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::{MatRef, Matrix};

/// A tensor as a safetensors file holds it: row-major, little-endian. Shape, dtype and number of bytes agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Tensor {
    /// Joins dtype, shape and bytes.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of bytes is not what dtype and shape ask for.
    pub fn new(dtype: Dtype, shape: Vec<usize>, data: Vec<u8>) -> Result<Self> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
        if bits.is_none_or(|b| b % 8 != 0 || b / 8 != data.len()) {
            return Err(Error::Shape(format!("{} bytes given for {dtype} {shape:?}", data.len())));
        }
        Ok(Tensor { dtype, shape, data })
    }

    /// An F32 tensor [rows, cols].
    pub fn from_f32(m: &Matrix<f32>) -> Self {
        Self::of_matrix(Dtype::F32, m, |x| x.to_le_bytes())
    }

    /// A BF16 tensor [rows, cols].
    pub fn from_bf16(m: &Matrix<bf16>) -> Self {
        Self::of_matrix(Dtype::BF16, m, |x| x.to_le_bytes())
    }

    /// An F16 tensor [rows, cols].
    pub fn from_f16(m: &Matrix<f16>) -> Self {
        Self::of_matrix(Dtype::F16, m, |x| x.to_le_bytes())
    }

    /// A tensor [rows, cols] of one-byte elements: codes, or E8M0/E4M3 scales.
    ///
    /// # Panics
    /// If `dtype` is not one byte wide.
    pub fn from_bytes(dtype: Dtype, m: &Matrix<u8>) -> Self {
        assert_eq!(dtype.bitsize(), 8, "{dtype} is not one byte wide");
        Self::of_matrix(dtype, m, |x| [*x])
    }

    /// A U16 tensor [rows, cols].
    pub fn from_words(m: &Matrix<u16>) -> Self {
        Self::of_matrix(Dtype::U16, m, |x| x.to_le_bytes())
    }

    fn of_matrix<T, const N: usize>(dtype: Dtype, m: &Matrix<T>, bytes: impl Fn(&T) -> [u8; N]) -> Self {
        let data = m.as_slice().iter().flat_map(bytes).collect();
        Tensor { dtype, shape: vec![m.rows(), m.cols()], data }
    }

    /// The same bytes under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of elements changes.
    pub fn reshaped(self, shape: Vec<usize>) -> Result<Self> {
        Self::new(self.dtype, shape, self.data)
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Sizes, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bytes.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, given up.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// Whether the dtype is F64, F32, F16 or BF16: what a cast or a quantiser reads.
    pub fn is_float(dtype: Dtype) -> bool {
        matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    /// The dtypes that name codes of a format.
    const DTYPES: [(Dtype, Format); 9] = [
        (Dtype::F8_E4M3, Format::E4M3),
        (Dtype::F8_E5M2, Format::E5M2),
        (Dtype::F8_E4M3FNUZ, Format::E4M3Fnuz),
        (Dtype::F8_E5M2FNUZ, Format::E5M2Fnuz),
        (Dtype::F8_E8M0, Format::E8M0),
        (Dtype::BF16, Format::Bf16),
        (Dtype::F16, Format::F16),
        (Dtype::F32, Format::F32),
        (Dtype::F64, Format::F64),
    ];

    /// The format of the elements' codes: floats and F8 dtypes; `None` for integers.
    pub fn format(dtype: Dtype) -> Option<Format> {
        Self::DTYPES.iter().find(|(d, _)| *d == dtype).map(|(_, format)| *format)
    }

    /// The dtype that names codes of `format`; formats of 4, 6 and 12 bits have none (U8 and U16 hold them).
    pub fn dtype_of(format: Format) -> Option<Dtype> {
        Self::DTYPES.iter().find(|(_, f)| *f == format).map(|(dtype, _)| *dtype)
    }

    /// The dtype that holds one code of `format` an element: the one of its name, else the smallest unsigned integer.
    pub fn code_dtype(format: Format) -> Dtype {
        Self::dtype_of(format).unwrap_or(match format.spec().bits() {
            0..=8 => Dtype::U8,
            9..=16 => Dtype::U16,
            _ => Dtype::U32,
        })
    }

    /// The elements' bit patterns, widened to 64 bits. Whole bytes only.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for dtypes narrower than a byte.
    pub fn to_bits(&self) -> Result<Vec<u64>> {
        let width = self.dtype.bitsize() / 8;
        if width == 0 || !self.dtype.bitsize().is_multiple_of(8) || width > 8 {
            return Err(Error::Unsupported(format!("{} elements are not whole bytes", self.dtype)));
        }
        let little_endian = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        Ok(self.data.chunks_exact(width).map(little_endian).collect())
    }

    /// The elements as f32: F32, BF16, F16 and the F8 dtypes exactly, F64 rounded to nearest even.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for integer dtypes.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let words = || self.data.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b));
        Ok(match (self.dtype, Self::format(self.dtype)) {
            (Dtype::F32, _) => self.data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            (Dtype::F64, _) => {
                self.data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect()
            }
            (Dtype::BF16 | Dtype::F16, Some(format)) => words().map(|c| format.decode_f32(c)).collect(),
            (_, Some(format)) => self.data.iter().map(|&c| format.decode_f32(u16::from(c))).collect(),
            (dtype, None) => return Err(Error::Unsupported(format!("dtype {dtype}, expected a float"))),
        })
    }

    /// The elements as i32, of an I32 tensor.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other dtype.
    pub fn to_i32(&self) -> Result<Vec<i32>> {
        match self.dtype {
            Dtype::I32 => Ok(self.data.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect()),
            other => Err(Error::Unsupported(format!("dtype {other}, expected I32"))),
        }
    }

    /// (rows, columns) of the tensor as a matrix: the last dimension gives the columns, all others the rows; a vector is
    /// one row, a scalar 1×1.
    pub fn matrix_shape(&self) -> (usize, usize) {
        match self.shape.split_last() {
            None => (1, 1),
            Some((&cols, rest)) => (rest.iter().product(), cols),
        }
    }

    /// [`Tensor::to_f32`] in the shape of [`Tensor::matrix_shape`].
    ///
    /// # Errors
    /// As [`Tensor::to_f32`].
    pub fn to_matrix(&self) -> Result<Matrix<f32>> {
        let (rows, cols) = self.matrix_shape();
        Matrix::from_vec(rows, cols, self.to_f32()?)
    }

    /// One-byte elements in the shape of [`Tensor::matrix_shape`], without a copy.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the elements are not one byte wide.
    pub fn byte_matrix(&self) -> Result<MatRef<'_, u8>> {
        if self.dtype.bitsize() != 8 {
            return Err(Error::Unsupported(format!("dtype {}, expected one byte an element", self.dtype)));
        }
        let (rows, cols) = self.matrix_shape();
        MatRef::new(&self.data, rows, cols)
    }

    /// Two-byte elements in the shape of [`Tensor::matrix_shape`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the elements are not two bytes wide.
    pub fn word_matrix(&self) -> Result<Matrix<u16>> {
        if self.dtype.bitsize() != 16 {
            return Err(Error::Unsupported(format!("dtype {}, expected two bytes an element", self.dtype)));
        }
        let (rows, cols) = self.matrix_shape();
        Matrix::from_vec(rows, cols, self.data.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b)).collect())
    }

    /// Four-byte elements in the shape of [`Tensor::matrix_shape`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the elements are not four bytes wide.
    pub fn dword_matrix(&self) -> Result<Matrix<u32>> {
        if self.dtype.bitsize() != 32 {
            return Err(Error::Unsupported(format!("dtype {}, expected four bytes an element", self.dtype)));
        }
        let (rows, cols) = self.matrix_shape();
        Matrix::from_vec(rows, cols, self.data.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_a_dtype_that_holds_its_codes() {
        for &format in Format::ALL {
            let bits = format.spec().bits() as usize;
            match Tensor::dtype_of(format) {
                Some(dtype) => {
                    assert_eq!((Tensor::format(dtype), dtype.bitsize()), (Some(format), bits), "{format}");
                }
                None => assert!(!bits.is_power_of_two() || bits < 8, "{format} of {bits} bits has no dtype"),
            }
            let holder = Tensor::code_dtype(format).bitsize();
            assert!(holder >= bits && (holder == 8 || holder / 2 < bits), "{format}: {holder} bits");
        }
    }
}
