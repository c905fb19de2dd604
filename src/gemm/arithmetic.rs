//! An accumulation, or a model whose promotion interval is chosen to fit the operands.

use std::num::NonZeroUsize;

use super::accumulation::{Accumulation, Model};
use crate::error::{Error, Result};

/// What a user asks for: `hopper/128` is one accumulation, `hopper` a model whose interval follows from the operands.
///
/// ```
/// use finegrain::gemm::{Accumulation, Arithmetic, Model};
/// assert_eq!("f32/128".parse::<Arithmetic>()?, Arithmetic::Fixed(Accumulation::F32));
/// assert_eq!("exact".parse::<Arithmetic>()?, Arithmetic::Fitting(Model::Exact));
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// The model with the interval that fits: 128, or the finest granule along K where that is finer; one chain over K
    /// for models that apply block scales themselves.
    Fitting(Model),
    /// Exactly this.
    Fixed(Accumulation),
}

impl Arithmetic {
    /// The accumulation for operands whose scales allow promotion every `interval` elements of K.
    pub(super) fn fit(&self, interval: NonZeroUsize) -> Accumulation {
        match *self {
            Arithmetic::Fixed(accumulation) => accumulation,
            Arithmetic::Fitting(model) if model.takes_block_scales() => Accumulation::new(model),
            Arithmetic::Fitting(model) => Accumulation::new(model).with_interval(Some(interval)),
        }
    }
}

impl From<Accumulation> for Arithmetic {
    fn from(accumulation: Accumulation) -> Self {
        Arithmetic::Fixed(accumulation)
    }
}

impl From<Model> for Arithmetic {
    fn from(model: Model) -> Self {
        Arithmetic::Fitting(model)
    }
}

impl std::str::FromStr for Arithmetic {
    type Err = Error;

    /// Reads a model alone, or an accumulation: `MODEL/N`, `MODEL/none`.
    fn from_str(text: &str) -> Result<Self> {
        if text.contains('/') {
            text.parse().map(Arithmetic::Fixed)
        } else {
            text.parse().map(Arithmetic::Fitting)
        }
    }
}

impl std::fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Arithmetic::Fitting(model) => model.fmt(f),
            Arithmetic::Fixed(accumulation) => accumulation.fmt(f),
        }
    }
}
