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

mod cast;
mod catalog;
mod count;
mod custom;
mod delayed;
mod derive;
mod diff;
mod fast;
mod infer;
mod on_cpu;
mod recipe;
mod reference;
mod source;
mod stats;
mod swiglu;
pub(crate) mod trial;

pub use crate::element::Element;
pub use cast::{CastStats, Caster};
pub use delayed::DelayedScaling;
pub use derive::{GranuleScale, Payload, StoredScale, TensorScale};
pub use diff::{Cause, CauseDifferences, Differences, RecipeDiff, diff_recipes, rules_apart};
pub use infer::{GranuleDiff, QuantizedDiff, diff_quantized};

pub(crate) use count::differences;
pub(crate) use infer::diff_watched;
pub use recipe::{
    Amax, ElementCast, MultiplierForm, MxRule, NanAmax, Nvfp4Rule, PayloadForm, PowerOfTwo, Recipe,
    ScaleForm, ScaleFormat, Scaling,
};
pub use stats::QuantStats;
pub use swiglu::{silu, swiglu};

pub(crate) use on_cpu::OnCpu;
pub(crate) use source::Source;

use crate::element::panel;
use crate::error::Result;
use crate::matrix::MatRef;
use crate::name::by_name;
use crate::scaled::{Granule, ScaledMatrix, ScaledRef};
use crate::simd::Cpu;

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

impl Role {
    /// Every role.
    pub const ALL: &[Role] = &[Role::Weight, Role::Activation, Role::Transposed];

    /// The name, as the command line takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Activation => "activation",
            Role::Weight => "weight",
            Role::Transposed => "transposed",
        }
    }
}

by_name!(Role, "role");

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

/// Quantises by one recipe on this CPU, on the instruction set that it chooses and the threads of the current pool. An
/// [`Engine`](crate::Engine) quantises elsewhere, and watched.
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
    /// [`Error::Unsupported`](crate::Error::Unsupported) if `FINEGRAIN_ISA` names an instruction set that the CPU lacks.
    pub fn activation<T: Element>(&self, x: MatRef<'_, T>) -> Result<Quantized> {
        self.quantize(x, Role::Activation)
    }

    /// Groups in the recipe's weight granule.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn weight<T: Element>(&self, w: MatRef<'_, T>) -> Result<Quantized> {
        self.quantize(w, Role::Weight)
    }

    /// Groups along the first dimension and returns the transposed matrix.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn transposed<T: Element>(&self, x: MatRef<'_, T>) -> Result<Quantized> {
        self.quantize(x, Role::Transposed)
    }

    /// One of the three above.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn quantize<T: Element>(&self, x: MatRef<'_, T>, role: Role) -> Result<Quantized> {
        self.on_cpu().quantize(&Source::matrix(x, role))
    }

    /// The same into the memory of an earlier result of the same shape, recipe and role, which is overwritten.
    ///
    /// ```
    /// use finegrain::matrix::Matrix;
    /// use finegrain::quant::{Quantizer, Recipe, Role};
    /// let x = Matrix::from_fn(4, 300, |i, j| (i as f32 - 1.5) * j as f32);
    /// let quantizer = Quantizer::new(Recipe::DEEPSEEK_V3);
    /// let mut q = quantizer.activation(x.view())?.matrix;
    /// let next = Matrix::from_fn(4, 300, |i, j| (i + j) as f32);
    /// let stats = quantizer.quantize_into(next.view(), Role::Activation, &mut q)?;
    /// assert_eq!(q, quantizer.activation(next.view())?.matrix);
    /// assert_eq!(stats.elements, 1200);
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Quantizer::activation`]; [`Error::Shape`](crate::Error::Shape) and
    /// [`Error::Invalid`](crate::Error::Invalid) if `out` is no such result.
    pub fn quantize_into<T: Element>(
        &self,
        x: MatRef<'_, T>,
        role: Role,
        out: &mut ScaledMatrix,
    ) -> Result<QuantStats> {
        self.on_cpu().quantize_into(panel(x), role, out)
    }

    /// Any granule, with the recipe's arithmetic.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn in_granules<T: Element>(&self, x: MatRef<'_, T>, granule: Granule) -> Result<Quantized> {
        self.on_cpu().in_granules(panel(x), granule)
    }

    /// The transpose of an already quantised matrix, grouped anew: dequantise, regroup, quantise, tile by tile where the
    /// recipe allows it. What DeepSeek-V3's backward pass does with a cached FP8 activation, 1×128 → 128×1 (report
    /// 3.3.3). With power-of-two scales on both sides values that do not underflow survive unchanged.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn requantize_transposed(&self, x: ScaledRef<'_>) -> Result<Quantized> {
        self.on_cpu().quantize(&Source::Scaled(x))
    }

    fn on_cpu(&self) -> OnCpu<'_> {
        OnCpu { recipe: &self.recipe, cpu: Cpu::AUTOMATIC }
    }
}
