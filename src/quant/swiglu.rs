//! SwiGLU in f32, operation by operation, so that every processor gives the same bits.
//!
//! A library's exponential differs from machine to machine; this one is f32 operations of IEEE 754 alone (fused
//! multiply-add, addition, multiplication, division), the same in `kernels/common/swiglu.cuh`. Against silu(x) · y in exact
//! arithmetic the error is below 3 · 2^−23 of the result where it is a normal number (the test measures it).

use crate::element::{Element, Panel, panel};
use crate::error::{Error, Result};
use crate::matrix::{MatRef, Matrix};
use crate::parallel::{self, Watch};

/// e^t for use in 1 + e^t: below −64 as at −64, where 1 + e^t is 1; above 88 infinite.
///
/// t = n ln 2 + r with |r| ≤ ln 2 / 2, ln 2 in two parts; Taylor's series of e^r to the seventh power, whose remainder is
/// below 2^−27; then the exponent n is added.
fn exp(t: f32) -> f32 {
    const LOWEST: f32 = -64.0;
    const HIGHEST: f32 = 88.0;
    /// 1.5 · 2^23: adding it rounds to an integer and leaves that in the low bits.
    const ROUND_TO_INTEGER: f32 = 12_582_912.0;
    /// ln 2 to ten bits, so that its product with n is exact, and the rest.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// 1/k! from k = 7 down to 0.
    const SERIES: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    if t > HIGHEST {
        return f32::INFINITY;
    }
    let t = if t < LOWEST { LOWEST } else { t };
    let shifted = t.mul_add(std::f32::consts::LOG2_E, ROUND_TO_INTEGER);
    let n = shifted - ROUND_TO_INTEGER;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, t));
    let p = SERIES[1..].iter().fold(SERIES[0], |p, &c| p.mul_add(r, c));
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// x / (1 + e^−x): one rounding each for the sum and the quotient. silu(−∞) is NaN, as the formula says.
///
/// ```
/// use finegrain::quant::silu;
/// assert_eq!(silu(0.0), 0.0);
/// assert_eq!(silu(100.0), 100.0);
/// assert!((silu(-1.0) + 0.26894143).abs() < 1e-7);
/// ```
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// silu(gate) · up, element by element, in f32: what the fused kernels quantise.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub fn swiglu<T: Element>(gate: MatRef<'_, T>, up: MatRef<'_, T>) -> Result<Matrix<f32>> {
    check_shapes(gate.shape(), up.shape())?;
    swiglu_of(panel(gate), panel(up), &Watch::NONE)
}

/// The same of matrices of one shape, watched.
///
/// # Errors
/// [`Error::Cancelled`].
pub(super) fn swiglu_of(gate: Panel<'_>, up: Panel<'_>, watch: &Watch<'_>) -> Result<Matrix<f32>> {
    let mut y = Matrix::filled(gate.rows, gate.cols, 0.0f32);
    parallel::for_each_part(watch, y.view_mut().into_rows(), &|i, y| {
        let (gate, up) = (gate.row(i), up.row(i));
        y.iter_mut().enumerate().for_each(|(j, y)| *y = silu(gate.at(j)) * up.at(j));
        watch.report(y.len() as u64);
    })?;
    Ok(y)
}

/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub(super) fn check_shapes(gate: (usize, usize), up: (usize, usize)) -> Result<()> {
    if gate == up {
        return Ok(());
    }
    let ((rows, cols), (r, c)) = (gate, up);
    Err(Error::Shape(format!("gate is {rows}x{cols}, up is {r}x{c}: they must agree")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_below_three_ulps() {
        let mut worst = 0f64;
        for i in -800_000..=1_000_000 {
            let x = i as f32 * 1.1e-4;
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            if exact.abs() >= f64::from(f32::MIN_POSITIVE) {
                worst = worst.max(((f64::from(silu(x)) - exact) / exact).abs());
            }
        }
        assert!(worst < 3.0 / 8_388_608.0, "{}", worst * 8_388_608.0);
        println!("worst relative error: {} · 2^-23", worst * 8_388_608.0);
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(silu(-0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(silu(f32::MIN_POSITIVE / 8.0), f32::MIN_POSITIVE / 16.0);
        assert_eq!(silu(f32::INFINITY), f32::INFINITY);
        assert_eq!(silu(f32::MAX), f32::MAX);
        assert_eq!(silu(-89.0).to_bits(), (-0.0f32).to_bits());
        assert!(silu(-87.9) < 0.0);
        assert!(silu(f32::NAN).is_nan() && silu(f32::NEG_INFINITY).is_nan());
    }

    /// The constants of the device's copy, read from its source.
    #[test]
    fn device_has_the_same_constants() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/common/swiglu.cuh"));
        let text = text.unwrap();
        let value = |name: &str| {
            let (_, rest) = text.split_once(&format!("{name} = ")).unwrap();
            rest[..rest.find(['f', ';']).unwrap()].parse::<f32>().unwrap()
        };
        assert_eq!(value("LOG2_E"), std::f32::consts::LOG2_E);
        assert_eq!(value("LN2_HIGH"), 0.693_359_4);
        assert_eq!(value("LN2_LOW"), -2.121_944_4e-4);
        let ln2 = f64::from(value("LN2_HIGH")) + f64::from(value("LN2_LOW"));
        assert!((ln2 - std::f64::consts::LN_2).abs() < 1e-11);
    }
}
