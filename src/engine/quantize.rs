//! Quantisation, of floats and of what is quantised already.

use super::{Engine, Place, Plan};
use crate::error::Result;
use crate::matrix::MatRef;
use crate::quant::{Element, OnCpu, QuantStats, Quantized, Recipe, Role, swiglu};
use crate::scaled::{Granule, ScaledMatrix, ScaledRef};

impl Engine<'_> {
    /// How a matrix is quantised.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) with the reason why it is not.
    pub fn plan_quantize<'p, T: Element>(
        &'p self,
        x: MatRef<'p, T>,
        recipe: &'p Recipe,
        role: Role,
    ) -> Result<Plan<'p, Quantized>> {
        let ((rows, cols), name) = (x.shape(), recipe.name);
        match &self.place {
            Place::Cpu(path, _) => {
                let quantizer = OnCpu { recipe, cpu: self.on_cpu(*path) };
                let how = quantizer.how(x.shape(), role)?;
                let how = format!("quantize {rows}×{cols} by {name} as {}: {how}", role.name());
                Ok(Plan::new(how, move || self.install(|| quantizer.quantize(x, role))))
            }
            Place::Device(_) => Err(self.refuses("quantizes")),
        }
    }

    /// Codes and scales of a matrix, by a recipe, grouped as its role asks for: along the last dimension (activation), in
    /// the recipe's weight granule, or along the first and transposed.
    ///
    /// # Errors
    /// As [`Engine::plan_quantize`]; [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn quantize<T: Element>(&self, x: MatRef<'_, T>, recipe: &Recipe, role: Role) -> Result<Quantized> {
        self.plan_quantize(x, recipe, role)?.run()
    }

    /// The same into the memory of an earlier result of the same shape, recipe and role, which is overwritten.
    ///
    /// # Errors
    /// As [`Engine::quantize`]; [`Error::Shape`](crate::Error::Shape) and [`Error::Invalid`](crate::Error::Invalid) if
    /// `out` is no such result.
    pub fn quantize_into<T: Element>(
        &self,
        x: MatRef<'_, T>,
        recipe: &Recipe,
        role: Role,
        out: &mut ScaledMatrix,
    ) -> Result<QuantStats> {
        match &self.place {
            Place::Cpu(path, _) => {
                let quantizer = OnCpu { recipe, cpu: self.on_cpu(*path) };
                self.install(|| quantizer.quantize_into(x, role, out))
            }
            Place::Device(_) => Err(self.refuses("quantizes")),
        }
    }

    /// The same in granules of choice, with the recipe's arithmetic.
    ///
    /// # Errors
    /// As [`Engine::quantize`].
    pub fn quantize_in_granules<T: Element>(
        &self,
        x: MatRef<'_, T>,
        recipe: &Recipe,
        granule: Granule,
    ) -> Result<Quantized> {
        match &self.place {
            Place::Cpu(path, _) => {
                let quantizer = OnCpu { recipe, cpu: self.on_cpu(*path) };
                self.install(|| quantizer.in_granules(x, granule))
            }
            Place::Device(_) => Err(self.refuses("quantizes")),
        }
    }

    /// How the transpose of a quantised matrix is grouped anew.
    ///
    /// # Errors
    /// As [`Engine::plan_quantize`].
    pub fn plan_requantize_transposed<'p>(
        &'p self,
        x: ScaledRef<'p>,
        recipe: &'p Recipe,
    ) -> Result<Plan<'p, Quantized>> {
        let ((rows, cols), name) = (x.shape(), recipe.name);
        match &self.place {
            Place::Cpu(path, _) => {
                let quantizer = OnCpu { recipe, cpu: self.on_cpu(*path) };
                let how = quantizer.how(x.shape(), Role::Transposed)?;
                let how = format!("requantize the transpose of {rows}×{cols} by {name}: {how}");
                Ok(Plan::new(how, move || self.install(|| quantizer.requantize_transposed(x))))
            }
            Place::Device(_) => Err(self.refuses("requantizes")),
        }
    }

    /// The transpose of an already quantised matrix, grouped anew: what DeepSeek-V3's backward pass does with a cached FP8
    /// activation, 1×128 → 128×1 (report 3.3.3). See
    /// [`Quantizer::requantize_transposed`](crate::quant::Quantizer::requantize_transposed).
    ///
    /// # Errors
    /// As [`Engine::quantize`].
    pub fn requantize_transposed(&self, x: ScaledRef<'_>, recipe: &Recipe) -> Result<Quantized> {
        self.plan_requantize_transposed(x, recipe)?.run()
    }

    /// How silu(gate) · up is quantised.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if gate and up differ in shape; as [`Engine::plan_quantize`].
    pub fn plan_swiglu_quantize<'p, T: Element>(
        &'p self,
        gate: MatRef<'p, T>,
        up: MatRef<'p, T>,
        recipe: &'p Recipe,
    ) -> Result<Plan<'p, Quantized>> {
        swiglu::check_shapes(&gate, &up)?;
        let ((rows, cols), name) = (gate.shape(), recipe.name);
        match &self.place {
            Place::Cpu(path, _) => {
                let quantizer = OnCpu { recipe, cpu: self.on_cpu(*path) };
                let how = quantizer.how(gate.shape(), Role::Activation)?;
                let how = format!("quantize SwiGLU of {rows}×{cols} by {name}: {how}");
                let work = move || quantizer.quantize(swiglu(gate, up)?.view(), Role::Activation);
                Ok(Plan::new(how, move || self.install(work)))
            }
            Place::Device(_) => Err(self.refuses("quantizes")),
        }
    }

    /// silu(gate) · up in f32, quantised along the last dimension: [`swiglu`] and [`Engine::quantize`] as one.
    ///
    /// # Errors
    /// As [`Engine::plan_swiglu_quantize`]; [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn swiglu_quantize<T: Element>(
        &self,
        gate: MatRef<'_, T>,
        up: MatRef<'_, T>,
        recipe: &Recipe,
    ) -> Result<Quantized> {
        self.plan_swiglu_quantize(gate, up, recipe)?.run()
    }
}
