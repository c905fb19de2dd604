//! Quantisers: matrices in, codes and scales out, by a named recipe.
//!
//! A group always runs along the K of its GEMM. [`Quantizer::activation`] groups along the last dimension (Fprop's X,
//! Dgrad's dY), [`Quantizer::weight`] in the recipe's weight granule, [`Quantizer::transposed`] along the first: it
//! returns the **transposed** matrix in the activation granule, as Wgrad reads it (dYᵀ and Xᵀ in 1×128 along tokens,
//! DeepSeek-V3 report 3.3).
//!
//! ```
//! use finegrain::matrix::Matrix;
//! use finegrain::quant::{Quantizer, Recipe};
//! let x = Matrix::from_fn(4, 300, |i, j| (i as f32 - 1.5) * j as f32);
//! let q = Quantizer::new(Recipe::DEEPSEEK_V3).activation(x.view())?;
//! assert_eq!(q.matrix.shape(), (4, 300));
//! assert_eq!(q.matrix.scales().unwrap().grid.view().shape(), (4, 3));
//! assert_eq!(q.stats.saturated, 0);
//! # Ok::<(), finegrain::Error>(())
//! ```
#![forbid(unsafe_code)]

mod catalog;
mod delayed;
mod derive;
mod recipe;
mod reference;
mod stats;
mod swiglu;

pub use delayed::DelayedScaling;
pub use derive::{GranuleScale, Payload, StoredScale, TensorScale};
pub use recipe::{
    Amax, ElementCast, MultiplierForm, MxRule, NanAmax, Nvfp4Rule, PayloadForm, PowerOfTwo, Recipe,
    ScaleForm, ScaleFormat, Scaling,
};
pub use reference::Element;
pub use stats::QuantStats;
pub use swiglu::{silu, swiglu};

use crate::error::Result;
use crate::matrix::MatRef;
use crate::scaled::{Granule, ScaledMatrix, ScaledRef};

/// What a matrix is to its GEMM, which decides how it is grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Grouped along the last dimension.
    Activation,
    /// Grouped in the recipe's weight granule.
    Weight,
    /// Grouped along the first dimension; stored transposed.
    Transposed,
}

/// A quantised matrix and what happened on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Codes and scales.
    pub matrix: ScaledMatrix,
    /// What was saturated, flushed, floored or not finite.
    pub stats: QuantStats,
}

impl Quantized {
    /// A view of the codes and scales.
    pub fn view(&self) -> ScaledRef<'_> {
        self.matrix.view()
    }
}

/// Quantises by one recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantizer {
    recipe: Recipe,
}

impl Quantizer {
    /// A quantiser for a recipe.
    pub const fn new(recipe: Recipe) -> Self {
        Quantizer { recipe }
    }

    /// The recipe.
    pub const fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Groups along the last dimension.
    ///
    /// # Errors
    /// None for a legal view; the signature leaves room for faster paths that allocate.
    pub fn activation<T: Element>(&self, x: MatRef<'_, T>) -> Result<Quantized> {
        self.in_granules(x, self.recipe.activation)
    }

    /// Groups in the recipe's weight granule.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn weight<T: Element>(&self, w: MatRef<'_, T>) -> Result<Quantized> {
        self.in_granules(w, self.recipe.weight)
    }

    /// Groups along the first dimension and returns the transposed matrix.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn transposed<T: Element>(&self, x: MatRef<'_, T>) -> Result<Quantized> {
        self.in_granules(x.transposed().view(), self.recipe.activation)
    }

    /// One of the three above.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn quantize<T: Element>(&self, x: MatRef<'_, T>, role: Role) -> Result<Quantized> {
        match role {
            Role::Activation => self.activation(x),
            Role::Weight => self.weight(x),
            Role::Transposed => self.transposed(x),
        }
    }

    /// Any granule, with the recipe's arithmetic.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn in_granules<T: Element>(&self, x: MatRef<'_, T>, granule: Granule) -> Result<Quantized> {
        let (matrix, stats) = reference::quantize(x, &self.recipe, granule)?;
        Ok(Quantized { matrix, stats })
    }

    /// The transpose of an already quantised matrix, grouped anew: dequantise, regroup, quantise. What DeepSeek-V3's
    /// backward pass does with a cached FP8 activation, 1×128 → 128×1 (report 3.3.3). With power-of-two scales on both
    /// sides values that do not underflow survive unchanged.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn requantize_transposed(&self, x: ScaledRef<'_>) -> Result<Quantized> {
        self.transposed(x.dequantize().view())
    }
}
