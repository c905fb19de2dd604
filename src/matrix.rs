//! Row-major matrices with a row stride: an owned one and two views.
//!
//! Element (i, j) of a view lies at `data[i * stride + j]`. A constructed view is legal: every row it names lies
//! inside its slice.
#![forbid(unsafe_code)]

use std::ops::{Index, IndexMut, Range};

use crate::error::{Error, Result};

/// An owned, dense, row-major matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix<T> {
    data: Vec<T>,
    rows: usize,
    cols: usize,
}

/// A borrowed view of a row-major matrix.
#[derive(Debug)]
pub struct MatRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

/// A mutable view of a row-major matrix.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<T> Clone for MatRef<'_, T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for MatRef<'_, T> {}

/// A block of a [`MatMut`]: where it lies, and its part of each of its rows.
pub(crate) struct MatBlock<'a, T> {
    pub(crate) rows: Range<usize>,
    pub(crate) cols: Range<usize>,
    pub(crate) parts: Vec<&'a mut [T]>,
}

impl<T> Matrix<T> {
    /// Wraps `rows × cols` elements in row-major order.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` does not hold exactly `rows × cols` elements.
    pub fn from_vec(rows: usize, cols: usize, data: Vec<T>) -> Result<Self> {
        MatRef::new(&data, rows, cols)?;
        Ok(Matrix { data, rows, cols })
    }

    /// Element (i, j) is `f(i, j)`.
    #[inline]
    pub fn from_fn(rows: usize, cols: usize, mut f: impl FnMut(usize, usize) -> T) -> Self {
        // Rows of nothing may be more than can be counted through.
        let counted = if cols == 0 { 0 } else { rows };
        let data = (0..counted).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| f(i, j)).collect();
        Matrix { data, rows, cols }
    }

    /// Number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// (rows, columns).
    #[inline]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// All elements in row-major order.
    #[inline]
    pub fn as_slice(&self) -> &[T] {
        &self.data
    }

    /// All elements in row-major order, mutable.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.data
    }

    /// The elements, given up.
    pub fn into_vec(self) -> Vec<T> {
        self.data
    }

    /// Row `i`.
    #[inline]
    pub fn row(&self, i: usize) -> &[T] {
        &self.data[i * self.cols..][..self.cols]
    }

    /// Row `i`, mutable.
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        &mut self.data[i * self.cols..][..self.cols]
    }

    /// A view of the whole.
    #[inline]
    pub fn view(&self) -> MatRef<'_, T> {
        MatRef { data: &self.data, rows: self.rows, cols: self.cols, stride: self.cols }
    }

    /// A mutable view of the whole.
    #[inline]
    pub fn view_mut(&mut self) -> MatMut<'_, T> {
        MatMut { data: &mut self.data, rows: self.rows, cols: self.cols, stride: self.cols }
    }

    /// Applies `f` to every element.
    pub fn map<U>(&self, f: impl FnMut(&T) -> U) -> Matrix<U> {
        Matrix { data: self.data.iter().map(f).collect(), rows: self.rows, cols: self.cols }
    }
}

impl<T: Clone> Matrix<T> {
    /// `rows × cols` copies of `value`.
    ///
    /// # Panics
    /// If `rows × cols` overflows or cannot be allocated, as `vec!` does.
    pub fn filled(rows: usize, cols: usize, value: T) -> Self {
        let len = rows.checked_mul(cols).expect("matrix size overflows usize");
        Matrix { data: vec![value; len], rows, cols }
    }
}

/// Element (row, column).
///
/// ```
/// use finegrain::matrix::Matrix;
/// let mut m = Matrix::from_fn(2, 3, |i, j| 10 * i + j);
/// m[(1, 2)] += 100;
/// assert_eq!((m[(1, 2)], m.view()[(0, 1)]), (112, 1));
/// ```
///
/// # Panics
/// If there is no such row or column.
impl<T> Index<(usize, usize)> for Matrix<T> {
    type Output = T;

    #[inline]
    fn index(&self, (i, j): (usize, usize)) -> &T {
        &self.row(i)[j]
    }
}

impl<T> IndexMut<(usize, usize)> for Matrix<T> {
    #[inline]
    fn index_mut(&mut self, (i, j): (usize, usize)) -> &mut T {
        &mut self.row_mut(i)[j]
    }
}

/// Element (row, column).
///
/// # Panics
/// If there is no such row or column.
impl<T> Index<(usize, usize)> for MatRef<'_, T> {
    type Output = T;

    #[inline]
    fn index(&self, (i, j): (usize, usize)) -> &T {
        &self.row(i)[j]
    }
}

impl<'a, T> MatRef<'a, T> {
    /// A dense view of `rows × cols` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` does not hold exactly that many.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        if rows.checked_mul(cols) != Some(data.len()) {
            return Err(Error::Shape(format!("{} elements given for a {rows}×{cols} matrix", data.len())));
        }
        Ok(MatRef { data, rows, cols, stride: cols })
    }

    /// A view whose rows start `stride` elements apart.
    ///
    /// # Errors
    /// [`Error::Shape`] if `stride < cols` or the last row would end past `data`.
    pub fn with_stride(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        let needed = rows.saturating_sub(1).checked_mul(stride).and_then(|n| n.checked_add(cols));
        if stride < cols || (rows > 0 && needed.is_none_or(|n| n > data.len())) {
            let len = data.len();
            return Err(Error::Shape(format!(
                "{len} elements cannot hold {rows}×{cols} with a row stride of {stride}"
            )));
        }
        Ok(MatRef { data, rows, cols, stride })
    }

    /// Number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// (rows, columns).
    #[inline]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Elements between the starts of two rows.
    #[inline]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `i`.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows, "row {i} of a matrix with {} rows", self.rows);
        &self.data[i * self.stride..][..self.cols]
    }

    /// All of the data, the first row first, [`MatRef::stride`] elements from row to row.
    #[inline]
    pub(crate) fn strided(&self) -> &'a [T] {
        self.data
    }

    /// The view of rows `start..end`.
    #[inline]
    pub fn row_range(&self, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= self.rows, "rows {start}..{end} of {}", self.rows);
        let data = if start == end { &[] } else { &self.data[start * self.stride..] };
        MatRef { data, rows: end - start, cols: self.cols, stride: self.stride }
    }

    /// The view of columns `start..end`.
    #[inline]
    pub fn col_range(&self, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= self.cols, "columns {start}..{end} of {}", self.cols);
        let data = if self.rows == 0 { &[] } else { &self.data[start..] };
        MatRef { data, rows: self.rows, cols: end - start, stride: self.stride }
    }

    /// The rows, in order.
    #[inline]
    pub fn iter_rows(self) -> impl ExactSizeIterator<Item = &'a [T]> {
        (0..self.rows).map(move |i| self.row(i))
    }

    /// Applies `f` to every element.
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Matrix<U> {
        // Rows of nothing may be more than can be counted through.
        let counted = if self.cols == 0 { 0 } else { self.rows };
        let data = self.iter_rows().take(counted).flatten().map(&mut f).collect();
        Matrix { data, rows: self.rows, cols: self.cols }
    }
}

impl<T: Copy> MatRef<'_, T> {
    /// Element (i, j).
    #[inline]
    pub fn at(&self, i: usize, j: usize) -> T {
        self.row(i)[j]
    }

    /// A dense copy.
    #[inline]
    pub fn to_matrix(&self) -> Matrix<T> {
        self.map(|&x| x)
    }

    /// A dense copy of the transpose.
    #[inline]
    pub fn transposed(&self) -> Matrix<T> {
        Matrix::from_fn(self.cols, self.rows, |i, j| self.at(j, i))
    }
}

impl<'a, T> MatMut<'a, T> {
    /// A dense mutable view of `rows × cols` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` does not hold exactly that many.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        MatRef::new(data, rows, cols)?;
        Ok(MatMut { data, rows, cols, stride: cols })
    }

    /// A mutable view whose rows start `stride` elements apart.
    ///
    /// # Errors
    /// As [`MatRef::with_stride`].
    pub fn with_stride(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Result<Self> {
        MatRef::with_stride(data, rows, cols, stride)?;
        Ok(MatMut { data, rows, cols, stride })
    }

    /// (rows, columns).
    #[inline]
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// The same view, borrowed for a shorter time.
    #[inline]
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// Row `i`.
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of a matrix with {} rows", self.rows);
        &mut self.data[i * self.stride..][..self.cols]
    }

    /// The mutable view of rows `start..end`.
    #[inline]
    pub fn row_range(self, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= self.rows, "rows {start}..{end} of {}", self.rows);
        let data = if start == end { &mut [] } else { &mut self.data[start * self.stride..] };
        MatMut { data, rows: end - start, cols: self.cols, stride: self.stride }
    }

    /// The mutable view of columns `start..end`.
    #[inline]
    pub fn col_range(self, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= self.cols, "columns {start}..{end} of {}", self.cols);
        let data = if self.rows == 0 { &mut [] } else { &mut self.data[start..] };
        MatMut { data, rows: self.rows, cols: end - start, stride: self.stride }
    }

    /// All of the data, the first row first, and the elements from row to row.
    #[inline]
    pub(crate) fn into_strided(self) -> (&'a mut [T], usize) {
        (self.data, self.stride)
    }

    /// The rows, in order, each a slice of its own: what parallel code distributes.
    pub fn into_rows(self) -> Vec<&'a mut [T]> {
        let (rows, cols) = (self.rows, self.cols);
        if cols == 0 {
            return (0..rows).map(|_| &mut [][..]).collect();
        }
        self.data.chunks_mut(self.stride).take(rows).map(|row| &mut row[..cols]).collect()
    }

    /// The blocks between cuts, which ascend from 0 to the number of rows or columns.
    pub(crate) fn into_blocks(self, row_cuts: &[usize], col_cuts: &[usize]) -> Vec<MatBlock<'a, T>> {
        let mut rows = self.into_rows().into_iter();
        let mut blocks = Vec::new();
        for cut in row_cuts.windows(2) {
            let first = blocks.len();
            let block = |c: &[usize]| MatBlock { rows: cut[0]..cut[1], cols: c[0]..c[1], parts: Vec::new() };
            blocks.extend(col_cuts.windows(2).map(block));
            for mut row in rows.by_ref().take(cut[1] - cut[0]) {
                for block in &mut blocks[first..] {
                    let part;
                    (part, row) = row.split_at_mut(block.cols.len());
                    block.parts.push(part);
                }
            }
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_address_the_same_elements_as_the_matrix() {
        let m = Matrix::from_fn(5, 7, |i, j| 10 * i + j);
        let v = m.view().row_range(1, 4).col_range(2, 6);
        assert_eq!(v.shape(), (3, 4));
        assert_eq!(v.at(2, 3), 35);
        assert_eq!(v.transposed().row(3), [15, 25, 35]);
        assert_eq!(v.to_matrix().as_slice().len(), 12);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert!(Matrix::from_vec(2, 3, vec![0u8; 5]).is_err());
        assert!(MatRef::new(&[0u8; 4], usize::MAX, 2).is_err());
        assert!(MatRef::with_stride(&[0u8; 10], 3, 4, 4).is_err());
        assert!(MatRef::with_stride(&[0u8; 12], 3, 4, 3).is_err());
        assert!(MatRef::with_stride(&[0u8; 10], 3, 2, 4).is_ok());
        assert!(MatMut::with_stride(&mut [0u8; 9], 3, 2, 4).is_err());
        assert!(MatMut::with_stride(&mut [0u8; 10], 3, 2, 4).is_ok_and(|mut m| m.row_mut(2).len() == 2));
    }

    #[test]
    fn empty_matrices_have_rows() {
        let mut m = Matrix::<f32>::filled(3, 0, 0.0);
        assert_eq!(m.view().iter_rows().len(), 3);
        assert_eq!(m.view_mut().into_rows().len(), 3);
        assert_eq!(Matrix::<f32>::filled(0, 4, 0.0).view_mut().into_rows().len(), 0);
    }
}
