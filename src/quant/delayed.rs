//! Delayed scaling: the per-tensor baseline whose scale comes from earlier steps (TransformerEngine, DelayedScaling).

use std::collections::VecDeque;

use super::reference::count;
use super::stats::QuantStats;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::formats::{Format, Overflow};
use crate::matrix::{MatRef, Matrix};
use crate::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};

/// A tensor's amax history and the multiplier it gives.
///
/// m = fl(MAX / amax) / 2^margin with amax the largest of the last `length` steps; amax 0 or non-finite keeps the old m;
/// an infinite m becomes the largest finite f32. A step quantises with the m of the steps **before** it, saturating.
/// The stored scale is fl(1/m).
///
/// Source: TransformerEngine, `DelayedScaling` (history 1024, `amax_compute_algo="max"`), E4M3 forward and E5M2 backward.
///
/// ```
/// use finegrain::formats::Format;
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::DelayedScaling;
/// let mut scaling = DelayedScaling::new(Format::E4M3, 1024, 0)?;
/// let x = Matrix::from_vec(1, 2, vec![896.0f32, 1.0])?;
/// let (_, first) = scaling.quantize(x.view())?;
/// assert_eq!(first.saturated, 1); // m was still 1
/// let (_, second) = scaling.quantize(x.view())?;
/// assert_eq!(second.saturated, 0); // m = 448 / 896
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DelayedScaling {
    format: Format,
    length: usize,
    margin: i32,
    history: VecDeque<f32>,
    multiplier: f32,
}

impl DelayedScaling {
    /// The history TransformerEngine keeps.
    pub const HISTORY: usize = 1024;

    /// An empty history; the multiplier starts at 1.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a history of length 0, a margin outside −64 … 64, or a format wider than 8 bits.
    pub fn new(format: Format, length: usize, margin: i32) -> Result<Self> {
        if length == 0 {
            return Err(Error::Invalid("an amax history of length 0".into()));
        }
        if !(-64..=64).contains(&margin) {
            return Err(Error::Invalid(format!("margin {margin} is outside -64…64")));
        }
        if format.spec().bits() > 8 || format == Format::E8M0 {
            return Err(Error::Invalid(format!("{format} is not an FP8, FP6 or FP4 element format")));
        }
        Ok(DelayedScaling { format, length, margin, history: VecDeque::new(), multiplier: 1.0 })
    }

    /// The multiplier the next step will use.
    pub fn multiplier(&self) -> f32 {
        self.multiplier
    }

    /// The amax values kept, oldest first.
    pub fn history(&self) -> impl ExactSizeIterator<Item = f32> {
        self.history.iter().copied()
    }

    /// Records the amax of a step and recomputes the multiplier.
    pub fn record(&mut self, amax: f32) {
        if self.history.len() == self.length {
            self.history.pop_front();
        }
        self.history.push_back(amax);
        let largest = self.history.iter().fold(0.0f32, |a, &b| if b.is_nan() { f32::NAN } else { a.max(b) });
        if largest > 0.0 && largest.is_finite() {
            let m = self.format.spec().max_finite() as f32 / largest / 2f32.powi(self.margin);
            self.multiplier = if m.is_infinite() { f32::MAX } else { m };
        }
    }

    /// Quantises with the multiplier of the steps before, then records this step's amax.
    ///
    /// # Errors
    /// None today; the signature is that of the other quantisers.
    pub fn quantize<T: Element>(&mut self, x: MatRef<'_, T>) -> Result<(ScaledMatrix, QuantStats)> {
        let m = self.multiplier;
        let mut stats = QuantStats { granules: 1, ..QuantStats::default() };
        let mut amax = 0.0f32;
        let codes = x.map(|v| {
            let v = v.to_f32();
            amax = if v.is_nan() || amax.is_nan() { f32::NAN } else { amax.max(v.abs()) };
            let cast = self.format.cast_f32(v * m, Overflow::Saturate);
            count(&mut stats, self.format, v, cast.code, cast.events);
            cast.code as u8
        });
        stats.zero_granules = u64::from(amax == 0.0);
        stats.nonfinite_granules = u64::from(stats.nan + stats.infinite > 0);
        self.record(amax);
        let grid = ScaleGrid::F32(Matrix::filled(1, 1, 1.0 / m));
        let scales = Scales { granule: Granule::TENSOR, grid, tensor: 1.0 };
        Ok((ScaledMatrix::new(self.format, Codes::Bytes(codes), Some(scales))?, stats))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_the_window_decides() {
        let mut s = DelayedScaling::new(Format::E4M3, 3, 0).unwrap();
        for (amax, m) in [(448.0, 1.0), (896.0, 0.5), (1.0, 0.5), (1.0, 0.5), (1.0, 448.0)] {
            s.record(amax);
            assert_eq!(s.multiplier(), m);
        }
        assert_eq!(s.history().len(), 3);
    }

    #[test]
    fn zero_and_nonfinite_amax_keep_the_old_multiplier() {
        let mut s = DelayedScaling::new(Format::E5M2, 1, 1).unwrap();
        s.record(57344.0);
        assert_eq!(s.multiplier(), 0.5, "margin 1 halves it");
        for amax in [0.0, f32::INFINITY, f32::NAN] {
            s.record(amax);
            assert_eq!(s.multiplier(), 0.5);
        }
        s.record(1e-45);
        assert_eq!(s.multiplier(), f32::MAX);
        assert!(DelayedScaling::new(Format::E4M3, 0, 0).is_err());
        assert!(DelayedScaling::new(Format::Bf16, 1, 0).is_err());
    }
}
