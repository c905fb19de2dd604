//! What a difference between two quantised matrices does to a product.

use super::exact_product;
use super::identify::Extent;
use super::metrics::ratio;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::matrix::{MatRef, Matrix};
use crate::scaled::ScaledRef;

/// Multiply-adds up to which all rows of X are multiplied unless asked for.
const WORK: u64 = 20_000_000_000;
/// Rows of the weights that are multiplied at a time.
const BAND: usize = 256;

/// How far two products lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductError {
    /// ‖X·Bᵀ − X·Aᵀ‖ / ‖X·Aᵀ‖ (Frobenius) over the elements where both are finite.
    pub relative: f64,
    /// Elements where one of the two is not.
    pub nonfinite: u64,
    /// Rows of X that were multiplied.
    pub rows: usize,
}

/// The relative error of Y = X·Wᵀ between the weights `a` and `b`, in f64 from their exact values: what two quantisations of
/// one matrix do to an activation. X [T, K], weights [N, K]. With [`Extent::Sampled`] at most 2·10^10 multiply-adds: rows of
/// X spread evenly.
///
/// ```
/// use finegrain::Engine;
/// use finegrain::accuracy::{identify::Extent, product_error};
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::Quantizer;
/// let w = Matrix::from_fn(64, 256, |i, j| ((i * 37 + j * 11) % 101) as f32 * 0.1 - 5.0);
/// let x = Matrix::from_fn(8, 256, |i, j| ((i * 13 + j * 7) % 97) as f32 - 48.0);
/// let [a, b] = ["te", "te-f32"].map(|name| Quantizer::new(name.parse().unwrap()).weight(w.view()).unwrap());
/// let error = product_error(x.view(), a.view(), b.view(), Extent::All, &Engine::cpu())?;
/// assert!(error.relative > 1e-4 && error.relative < 0.1);
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the weights differ in shape or X has another K; [`Error::Cancelled`].
pub fn product_error(
    x: MatRef<'_, f32>,
    a: ScaledRef<'_>,
    b: ScaledRef<'_>,
    extent: Extent,
    engine: &Engine<'_>,
) -> Result<ProductError> {
    let ((n, k), (r, c)) = (a.shape(), b.shape());
    if (n, k) != (r, c) {
        return Err(Error::Shape(format!("the first weights are {n}×{k}, the second {r}×{c}")));
    }
    if x.cols() != k {
        return Err(Error::Shape(format!("x has {} columns, the weights {k}", x.cols())));
    }
    a.fetch()?;
    b.fetch()?;
    let each = 2 * n as u64 * k as u64;
    let most = match extent {
        Extent::All => x.rows(),
        Extent::Sampled => (WORK / each.max(1)).clamp(1, x.rows().max(1) as u64) as usize,
    };
    let rows = x.rows().min(most);
    let x = Matrix::from_fn(rows, k, |i, j| f64::from(x.at(i * x.rows() / rows, j)));
    let watch = engine.watch();
    let (mut error, mut exact, mut nonfinite) = (0.0, 0.0, 0);
    for start in (0..n).step_by(BAND) {
        watch.check()?;
        let [y, other] = [a, b].map(|w| {
            let w = w.row_range(start, (start + BAND).min(n)).to_f64();
            engine.install(|| exact_product(x.view(), w.view()))
        });
        for (y, other) in y.as_slice().iter().zip(other.as_slice()) {
            if !y.is_finite() || !other.is_finite() {
                nonfinite += 1;
                continue;
            }
            error += (other - y) * (other - y);
            exact += y * y;
        }
    }
    Ok(ProductError { relative: ratio(error, exact).sqrt(), nonfinite, rows })
}
