//! The product that errors are measured against.

use crate::matrix::{MatRef, Matrix};
use crate::parallel::{Watch, for_each_part};

/// Partial sums that run side by side: enough to fill the machine's vector units.
const LANES: usize = 16;

/// A · Bᵀ in f64.
///
/// The result is off by at most (K + 1) · 2^−53 · Σ|a b|: for K = 16384 that is 2^−39, five decimal digits below one f32
/// rounding of the same sum. Products of f32 values are exact. That is what "exact" means in every metric here; the
/// exact accumulation model of the GEMM has no rounding at all.
///
/// # Panics
/// If the numbers of columns differ.
pub fn exact_product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Matrix<f64> {
    assert_eq!(a.cols(), b.cols(), "A and B share K");
    let mut product = Matrix::filled(a.rows(), b.rows(), 0.0);
    let rows = product.view_mut().into_rows();
    let row = |i: usize, row: &mut [f64]| {
        row.iter_mut().zip(b.iter_rows()).for_each(|(d, other)| *d = dot(a.row(i), other));
    };
    for_each_part(&Watch::NONE, rows, &row).expect("nobody cancels");
    product
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        for l in 0..LANES {
            sums[l] += x[l] * y[l];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn agrees_with_the_plain_sum() {
        let a = Matrix::from_fn(3, 77, |i, k| ((i * 7 + k * 3) % 11) as f64 - 5.0);
        let b = Matrix::from_fn(2, 77, |j, k| ((j * 5 + k) % 13) as f64 * 0.5);
        let d = exact_product(a.view(), b.view());
        for i in 0..3 {
            for j in 0..2 {
                let plain: f64 = (0..77).map(|k| a.row(i)[k] * b.row(j)[k]).sum();
                assert_relative_eq!(d.row(i)[j], plain, epsilon = 1e-9);
            }
        }
    }
}
