//! Quantisation, of floats and of what is quantised already.

use super::{Engine, Place, Plan};
use crate::element::{Panel, panel};
use crate::error::Result;
use crate::matrix::MatRef;
use crate::quant::{Element, OnCpu, QuantStats, Quantized, Recipe, Role, Source};
use crate::scaled::{Granule, Kept, Resident, ScaledMatrix, ScaledMut, ScaledRef};

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
        self.plan_source(Source::matrix(x, role), recipe)
    }

    /// Codes and scales of a matrix, by a recipe, grouped as its role asks for: along the last dimension (activation), in
    /// the recipe's weight granule, or along the first and transposed.
    ///
    /// # Errors
    /// As [`Engine::plan_quantize`]; [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn quantize<T: Element>(&self, x: MatRef<'_, T>, recipe: &Recipe, role: Role) -> Result<Quantized> {
        self.plan_quantize(x, recipe, role)?.run()
    }

    /// The same, kept where the engine works: a product there takes it as it lies.
    ///
    /// ```
    /// use finegrain::Engine;
    /// use finegrain::gemm::GemmProblem;
    /// use finegrain::matrix::Matrix;
    /// use finegrain::quant::{Recipe, Role};
    /// let engine = Engine::cpu(); // or Engine::by_name("cuda")?
    /// let (x, w) = (Matrix::filled(4, 256, 1.0f32), Matrix::filled(8, 256, 0.5f32));
    /// let (x, stats) = engine.quantize_resident(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation)?;
    /// let (w, _) = engine.quantize_resident(w.view(), &Recipe::DEEPSEEK_V3, Role::Weight)?;
    /// let d = engine.gemm(&GemmProblem::nt(x.view(), w.view())?)?;
    /// assert_eq!((stats.granules, d.shape()), (8, (4, 8)));
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::quantize`].
    pub fn quantize_resident<T: Element>(
        &self,
        x: MatRef<'_, T>,
        recipe: &Recipe,
        role: Role,
    ) -> Result<(Resident, QuantStats)> {
        self.keep_source(Source::matrix(x, role), recipe)
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
        let on_cpu = |cpu, x: Panel<'_>, out: &mut ScaledMatrix| {
            self.install(|| OnCpu { recipe, cpu }.quantize_into(x, role, out))
        };
        match &self.place {
            Place::Cpu(path, _) => on_cpu(self.on_cpu(*path), panel(x), out),
            Place::Device(_) => {
                let Quantized { matrix, stats } = self.quantize(x, recipe, role)?;
                *out = matrix;
                Ok(stats)
            }
        }
    }

    /// The same into memory that somebody else allocated, of the shape and the granule that [`Recipe::result_of`] gives:
    /// what happened, and the scale of the tensor, which is 1 but for two-level formats. See [`ScaledMut`].
    ///
    /// # Errors
    /// As [`Engine::quantize_into`].
    pub fn quantize_to<T: Element>(
        &self,
        x: MatRef<'_, T>,
        recipe: &Recipe,
        role: Role,
        out: ScaledMut<'_>,
    ) -> Result<(QuantStats, f32)> {
        match &self.place {
            Place::Cpu(path, _) => {
                let on_cpu = OnCpu { recipe, cpu: self.on_cpu(*path) };
                self.install(|| on_cpu.quantize_to(panel(x), role, out))
            }
            Place::Device(_) => {
                let Quantized { matrix, stats } = self.quantize(x, recipe, role)?;
                out.copy_from(matrix.view())?;
                Ok((stats, matrix.view().tensor_scale()))
            }
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
                let on_cpu = OnCpu { recipe, cpu: self.on_cpu(*path) };
                self.install(|| on_cpu.in_granules(panel(x), granule))
            }
            Place::Device(_) => {
                let recipe = Recipe { activation: granule, ..*recipe };
                self.quantize(x, &recipe, Role::Activation)
            }
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
        self.plan_source(Source::Scaled(x), recipe)
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
        self.plan_source(Source::swiglu(gate, up)?, recipe)
    }

    /// silu(gate) · up in f32, quantised along the last dimension: [`swiglu`](crate::quant::swiglu()) and
    /// [`Engine::quantize`] as one.
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

    fn plan_source<'p>(&'p self, source: Source<'p>, recipe: &'p Recipe) -> Result<Plan<'p, Quantized>> {
        match &self.place {
            Place::Cpu(path, _) => {
                let on_cpu = OnCpu { recipe, cpu: self.on_cpu(*path) };
                let how = on_cpu.how(&source)?;
                Ok(Plan::new(how, move || self.install(|| on_cpu.quantize(&source))))
            }
            Place::Device(device) => {
                let plan = device.plan_quantize(source, recipe)?;
                let how = format!("quantize {source} by {}: {plan}", recipe.name);
                let work = move || {
                    let (kept, stats) = self.on_device(source.shape(), || plan.run())?;
                    Ok(Quantized { matrix: kept.download()?, stats })
                };
                Ok(Plan::new(how, work))
            }
        }
    }

    fn keep_source(&self, source: Source<'_>, recipe: &Recipe) -> Result<(Resident, QuantStats)> {
        match &self.place {
            Place::Cpu(..) => {
                let Quantized { matrix, stats } = self.plan_source(source, recipe)?.run()?;
                Ok((Kept::resident(matrix), stats))
            }
            Place::Device(device) => {
                let plan = device.plan_quantize(source, recipe)?;
                self.on_device(source.shape(), || plan.run())
            }
        }
    }

    /// Runs on a device what is one task there: watched before and after.
    pub(super) fn on_device<R>(
        &self,
        (rows, cols): (usize, usize),
        work: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        self.watch.check()?;
        let result = work()?;
        self.watch.report((rows * cols) as u64);
        Ok(result)
    }
}
