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
mod delayed;
mod derive;
mod diff;
mod fast;
mod recipe;
mod reference;
mod stats;
mod swiglu;

pub use crate::element::Element;
pub(crate) use cast::elements;
pub use cast::{CastStats, Caster};
pub use delayed::DelayedScaling;
pub use derive::{GranuleScale, Payload, StoredScale, TensorScale};
pub use diff::{Cause, CauseDifferences, Differences, RecipeDiff, diff_recipes};
pub use recipe::{
    Amax, ElementCast, MultiplierForm, MxRule, NanAmax, Nvfp4Rule, PayloadForm, PowerOfTwo, Recipe,
    ScaleForm, ScaleFormat, Scaling,
};
pub use stats::QuantStats;
pub use swiglu::{silu, swiglu};

use self::fast::Order;
use crate::element::panel;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::{MatRef, Matrix};
use crate::parallel::Watch;
use crate::scaled::{Granule, ScaledMatrix, ScaledRef};
use crate::simd::Isa;

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
    path: Path,
}

/// Who does the work. The bits do not depend on it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Path {
    /// The definition.
    Reference,
    /// An instruction set; `None` for the active one.
    Registers(Option<Isa>),
}

impl Quantizer {
    /// A quantiser for a recipe, on the active instruction set.
    pub const fn new(recipe: Recipe) -> Self {
        Quantizer { recipe, path: Path::Registers(None) }
    }

    /// The definition: one element after the other. [`Quantizer::new`] gives the same codes, scales and statistics.
    pub const fn reference(recipe: Recipe) -> Self {
        Quantizer { recipe, path: Path::Reference }
    }

    /// The same on an instruction set.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the CPU lacks it.
    pub fn on(self, isa: Isa) -> Result<Self> {
        Ok(Quantizer { path: Path::Registers(Some(isa.checked()?)), ..self })
    }

    /// The recipe.
    pub const fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The instruction set that quantises a matrix of this shape by this recipe; `None` where it is the reference: for
    /// formats that registers do not encode, and for nothing.
    fn isa(&self, shape: (usize, usize)) -> Result<Option<Isa>> {
        let isa = match self.path {
            Path::Reference => return Ok(None),
            Path::Registers(Some(isa)) => isa,
            Path::Registers(None) => Isa::active()?,
        };
        Ok((fast::supports(&self.recipe) && shape.0 > 0 && shape.1 > 0).then_some(isa))
    }

    /// Groups along the last dimension.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if `FINEGRAIN_ISA` names an instruction set that the CPU lacks.
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
        let Some(isa) = self.isa(x.shape())? else {
            return self.by_reference(x.transposed().view(), self.recipe.activation);
        };
        let mut matrix = fast::blank(&self.recipe, x.cols(), x.rows(), self.recipe.activation);
        let stats =
            fast::quantize(panel(x), &self.recipe, Order::Transposed, isa, &mut matrix, &Watch::NONE)?;
        Ok(Quantized { matrix, stats })
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
    /// As [`Quantizer::activation`]; [`Error::Shape`] and [`Error::Invalid`] if `out` is no such result.
    pub fn quantize_into<T: Element>(
        &self,
        x: MatRef<'_, T>,
        role: Role,
        out: &mut ScaledMatrix,
    ) -> Result<QuantStats> {
        let (rows, cols) = x.shape();
        let (granule, shape) = match role {
            Role::Activation => (self.recipe.activation, (rows, cols)),
            Role::Weight => (self.recipe.weight, (rows, cols)),
            Role::Transposed => (self.recipe.activation, (cols, rows)),
        };
        self.check_result(out, granule, shape)?;
        let Some(isa) = self.isa(shape)? else {
            let Quantized { matrix, stats } = self.quantize(x, role)?;
            *out = matrix;
            return Ok(stats);
        };
        let order = if role == Role::Transposed { Order::Transposed } else { Order::Same };
        fast::quantize(panel(x), &self.recipe, order, isa, out, &Watch::NONE)
    }

    /// Whether a matrix has the shape, formats and granule of a result.
    fn check_result(&self, out: &ScaledMatrix, granule: Granule, shape: (usize, usize)) -> Result<()> {
        if out.shape() != shape {
            let ((r, c), (rows, cols)) = (out.shape(), shape);
            return Err(Error::Shape(format!("{r}×{c} codes are to hold a result of {rows}×{cols}")));
        }
        let kind = |format: Format, granule: Granule, scales: Format| {
            format!("{format} in {granule} with {scales} scales")
        };
        let wanted = kind(self.recipe.element, granule, fast::scale_format(&self.recipe));
        let found = match out.scales() {
            Some(s) => kind(out.format(), s.granule, s.grid.view().format()),
            None => format!("{} without scales", out.format()),
        };
        if found != wanted {
            return Err(Error::Invalid(format!("a matrix of {found} is to hold a result of {wanted}")));
        }
        Ok(())
    }

    /// Any granule, with the recipe's arithmetic.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn in_granules<T: Element>(&self, x: MatRef<'_, T>, granule: Granule) -> Result<Quantized> {
        let Some(isa) = self.isa(x.shape())? else { return self.by_reference(x, granule) };
        let mut matrix = fast::blank(&self.recipe, x.rows(), x.cols(), granule);
        let stats = fast::quantize(panel(x), &self.recipe, Order::Same, isa, &mut matrix, &Watch::NONE)?;
        Ok(Quantized { matrix, stats })
    }

    fn by_reference<T: Element>(&self, x: MatRef<'_, T>, granule: Granule) -> Result<Quantized> {
        let x = x.map(|v| v.to_f32());
        let (matrix, stats) = reference::quantize(x.view(), &self.recipe, granule, &Watch::NONE)?;
        Ok(Quantized { matrix, stats })
    }

    /// The transpose of an already quantised matrix, grouped anew: dequantise, regroup, quantise, tile by tile where the
    /// recipe allows it. What DeepSeek-V3's backward pass does with a cached FP8 activation, 1×128 → 128×1 (report
    /// 3.3.3). With power-of-two scales on both sides values that do not underflow survive unchanged.
    ///
    /// # Errors
    /// As [`Quantizer::activation`].
    pub fn requantize_transposed(&self, x: ScaledRef<'_>) -> Result<Quantized> {
        match self.isa(x.shape())? {
            None => self.transposed(x.dequantize_reference::<f32>().view()),
            Some(isa) if fast::requantizes_by_tiles(&self.recipe) => {
                let (rows, cols) = x.shape();
                let mut matrix = fast::blank(&self.recipe, cols, rows, self.recipe.activation);
                let stats = fast::requantize_transposed(&x, &self.recipe, isa, &mut matrix, &Watch::NONE)?;
                Ok(Quantized { matrix, stats })
            }
            Some(isa) => {
                let mut values = Matrix::filled(x.shape().0, x.shape().1, 0.0f32);
                x.dequantize_into(values.view_mut(), isa)?;
                self.transposed(values.view())
            }
        }
    }
}
