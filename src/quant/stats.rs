//! What quantisation did to the data: counted, never silently lost.

use serde::Serialize;

/// Counts over the elements and granules of one or more quantised matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QuantStats {
    /// Elements quantised.
    pub elements: u64,
    /// NaN among the inputs.
    pub nan: u64,
    /// Infinities among the inputs.
    pub infinite: u64,
    /// Finite elements whose payload lay beyond the largest code.
    pub saturated: u64,
    /// Non-zero elements whose code is zero.
    pub flushed: u64,
    /// Finite elements whose code is NaN or infinite.
    pub lost: u64,
    /// Granules.
    pub granules: u64,
    /// Granules of zeros only.
    pub zero_granules: u64,
    /// Granules, not all zero, whose amax was raised to the recipe's floor.
    pub floored_granules: u64,
    /// Granules with NaN or infinity among their elements.
    pub nonfinite_granules: u64,
}

impl QuantStats {
    /// A count as a share of the elements, in percent; 0 of an empty matrix.
    pub fn percent_of_elements(&self, count: u64) -> f64 {
        if self.elements == 0 { 0.0 } else { 100.0 * count as f64 / self.elements as f64 }
    }

    /// A count as a share of the granules, in percent; 0 of an empty matrix.
    pub fn percent_of_granules(&self, count: u64) -> f64 {
        if self.granules == 0 { 0.0 } else { 100.0 * count as f64 / self.granules as f64 }
    }
}

impl std::ops::Add for QuantStats {
    type Output = QuantStats;

    fn add(self, o: QuantStats) -> QuantStats {
        QuantStats {
            elements: self.elements + o.elements,
            nan: self.nan + o.nan,
            infinite: self.infinite + o.infinite,
            saturated: self.saturated + o.saturated,
            flushed: self.flushed + o.flushed,
            lost: self.lost + o.lost,
            granules: self.granules + o.granules,
            zero_granules: self.zero_granules + o.zero_granules,
            floored_granules: self.floored_granules + o.floored_granules,
            nonfinite_granules: self.nonfinite_granules + o.nonfinite_granules,
        }
    }
}

impl std::iter::Sum for QuantStats {
    fn sum<I: Iterator<Item = QuantStats>>(all: I) -> QuantStats {
        all.fold(QuantStats::default(), |a, b| a + b)
    }
}
