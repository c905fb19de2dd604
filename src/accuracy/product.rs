//! The product that errors are measured against.

use finegrain_cpu::product;

use crate::matrix::{MatRef, Matrix};
use crate::parallel::{Watch, for_each_part};
use crate::simd::Isa;

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
    // An instruction set that is forced but absent is refused where results depend on it; here none does.
    let isa = Isa::active().unwrap_or(Isa::Scalar);
    let row = |i: usize, row: &mut [f64]| product::row_f64(isa, a.row(i), b.strided(), b.stride(), row);
    for_each_part(&Watch::NONE, rows, &row).expect("nobody cancels");
    product
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
