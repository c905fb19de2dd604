//! Distances between a computed matrix and the exact one.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::matrix::MatRef;

/// How far a computed matrix D lies from the exact E. Sums run over the elements where both are finite.
///
/// A Frobenius norm hardly tells scalings apart (E4M3's relative step is the same over 15 binades): judge also by the
/// worst row, by the bias and by what was flushed to zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ErrorMetrics {
    /// Elements compared.
    pub elements: usize,
    /// Elements where D or E is not finite; they are left out of all sums.
    pub nonfinite: usize,
    /// ‖D − E‖ / ‖E‖ (Frobenius).
    pub relative_frobenius: f64,
    /// max |D − E| / max |E|.
    pub max_relative: f64,
    /// −20 log10 (‖D − E‖ / ‖E‖), in dB; infinite for equal matrices.
    pub snr_db: f64,
    /// DeepGEMM's calc_diff: 1 − 2 Σ D E / Σ (D² + E²).
    pub calc_diff: f64,
    /// Σ (D − E) sign E / Σ |E|: below 0 where magnitudes shrink, as truncation makes them.
    pub bias: f64,
    /// ‖D − E‖ / ‖E‖ of the row where it is largest.
    pub worst_row: f64,
    /// That row.
    pub worst_row_index: usize,
}

/// The sums of one row.
#[derive(Clone, Copy, Default)]
struct Sums {
    nonfinite: usize,
    error2: f64,
    exact2: f64,
    computed2: f64,
    cross: f64,
    signed: f64,
    exact1: f64,
    max_error: f64,
    max_exact: f64,
}

impl Sums {
    #[inline]
    fn add(&mut self, d: f64, e: f64) {
        if !d.is_finite() || !e.is_finite() {
            self.nonfinite += 1;
            return;
        }
        let error = d - e;
        self.error2 += error * error;
        self.exact2 += e * e;
        self.computed2 += d * d;
        self.cross += d * e;
        self.signed += if e < 0.0 { -error } else { error };
        self.exact1 += e.abs();
        self.max_error = self.max_error.max(error.abs());
        self.max_exact = self.max_exact.max(e.abs());
    }

    fn merge(&mut self, o: &Sums) {
        self.nonfinite += o.nonfinite;
        self.error2 += o.error2;
        self.exact2 += o.exact2;
        self.computed2 += o.computed2;
        self.cross += o.cross;
        self.signed += o.signed;
        self.exact1 += o.exact1;
        self.max_error = self.max_error.max(o.max_error);
        self.max_exact = self.max_exact.max(o.max_exact);
    }

    fn relative(&self) -> f64 {
        ratio(self.error2, self.exact2).sqrt()
    }
}

/// a / b, with 0 / 0 = 0: no error against a zero reference is no error.
pub(super) fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / b }
}

impl ErrorMetrics {
    /// Compares D with E.
    ///
    /// ```
    /// use approx::assert_relative_eq;
    /// use finegrain::accuracy::ErrorMetrics;
    /// use finegrain::matrix::Matrix;
    /// let exact = Matrix::from_vec(1, 2, vec![3.0, 4.0])?;
    /// let computed = Matrix::from_vec(1, 2, vec![3.0f32, 4.5])?;
    /// let m = ErrorMetrics::of(computed.view(), exact.view())?;
    /// assert_relative_eq!(m.relative_frobenius, 0.1);
    /// assert_relative_eq!(m.max_relative, 0.125);
    /// assert_relative_eq!(m.snr_db, 20.0);
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn of<D: Copy + Into<f64>>(computed: MatRef<'_, D>, exact: MatRef<'_, f64>) -> Result<Self> {
        if computed.shape() != exact.shape() {
            let ((a, b), (c, d)) = (computed.shape(), exact.shape());
            return Err(Error::Shape(format!("computed matrix is {a}×{b}, the exact one {c}×{d}")));
        }
        let mut total = Sums::default();
        let (mut worst_row, mut worst_row_index) = (0.0, 0);
        for i in 0..exact.rows() {
            let mut row = Sums::default();
            computed.row(i).iter().zip(exact.row(i)).for_each(|(&d, &e)| row.add(d.into(), e));
            if row.relative() > worst_row {
                (worst_row, worst_row_index) = (row.relative(), i);
            }
            total.merge(&row);
        }
        let relative_frobenius = total.relative();
        Ok(ErrorMetrics {
            elements: exact.rows() * exact.cols(),
            nonfinite: total.nonfinite,
            relative_frobenius,
            max_relative: ratio(total.max_error, total.max_exact),
            snr_db: -20.0 * relative_frobenius.log10(),
            calc_diff: if total.error2 == 0.0 {
                0.0
            } else {
                1.0 - 2.0 * total.cross / (total.computed2 + total.exact2)
            },
            bias: ratio(total.signed, total.exact1),
            worst_row,
            worst_row_index,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;
    use approx::assert_relative_eq;

    #[test]
    fn equal_matrices_have_no_error() {
        let e = Matrix::from_vec(2, 2, vec![1.0, -2.0, 0.0, 0.0]).unwrap();
        let m = ErrorMetrics::of(e.map(|&x| x as f32).view(), e.view()).unwrap();
        assert_eq!((m.relative_frobenius, m.max_relative, m.calc_diff, m.bias), (0.0, 0.0, 0.0, 0.0));
        assert_eq!(m.snr_db, f64::INFINITY);
        assert!(ErrorMetrics::of(e.view().row_range(0, 1), e.view()).is_err());
    }

    /// calc_diff of y = (1 + ε) x is ε² / (1 + (1 + ε)²).
    #[test]
    fn known_distances() {
        let e = Matrix::from_fn(3, 50, |i, j| (i as f64 + 1.0) * (j as f64 - 20.5));
        let shrunk = e.map(|&x| x * 0.99);
        let m = ErrorMetrics::of(shrunk.view(), e.view()).unwrap();
        assert_relative_eq!(m.relative_frobenius, 0.01, max_relative = 1e-9);
        assert_relative_eq!(m.bias, -0.01, max_relative = 1e-9);
        assert_relative_eq!(m.calc_diff, 1e-4 / (1.0 + 0.99 * 0.99), max_relative = 1e-6);
    }

    #[test]
    fn the_worst_row_is_named_and_nonfinite_values_are_counted() {
        let e = Matrix::from_fn(4, 8, |_, j| j as f64 + 1.0);
        let mut d = e.map(|&x| x as f32);
        d.row_mut(2)[0] += 0.5;
        d.row_mut(3)[7] = f32::NAN;
        let m = ErrorMetrics::of(d.view(), e.view()).unwrap();
        assert_eq!((m.worst_row_index, m.nonfinite, m.elements), (2, 1, 32));
    }
}
