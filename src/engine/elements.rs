//! Work by element: dequantising and casting.

use super::{Engine, Place, Plan};
use crate::element::{CodesMut, Output};
use crate::error::{Error, Result};
use crate::matrix::{MatMut, Matrix};
use crate::quant::{CastStats, Caster, Element};
use crate::scaled::ScaledRef;
use crate::scaled::trial;
use crate::simd::OpClass;

impl Engine<'_> {
    /// How codes and scales become floats in memory of the caller's.
    ///
    /// # Errors
    /// [`Error::Shape`] if `out` has another shape; [`Error::Unsupported`] with the reason why they do not.
    pub fn plan_dequantize<'p, T: Output>(
        &'p self,
        x: ScaledRef<'p>,
        out: MatMut<'p, T>,
    ) -> Result<Plan<'p, ()>> {
        let ((rows, cols), (r, c)) = (x.shape(), out.shape());
        if (rows, cols) != (r, c) {
            return Err(Error::Shape(format!("{r}×{c} values are to hold codes of {rows}×{cols}")));
        }
        match &self.place {
            Place::Cpu(path, _) => {
                let cpu = self.on_cpu(*path);
                let isa = cpu.isa(OpClass::Dequantize, &trial::dequantize)?;
                let who = isa.map_or_else(|| "reference".to_owned(), |isa| format!("registers of {isa}"));
                let how = format!("dequantize {rows}×{cols} of {}: {who}", x.format());
                Ok(Plan::new(how, move || self.install(|| x.dequantize_on(out, &cpu))))
            }
            Place::Device(device) => {
                let (data, stride) = out.into_strided();
                let plan = device.plan_dequantize(x, (T::typed_mut(data), stride))?;
                let how = format!("dequantize {rows}×{cols} of {}: {plan}", x.format());
                Ok(Plan::new(how, move || self.on_device((rows, cols), || plan.run())))
            }
        }
    }

    /// All values in f32: fl(code · scale), then times the tensor scale where there is one. NaN is the canonical one.
    ///
    /// # Errors
    /// As [`Engine::plan_dequantize`]; [`Error::Cancelled`].
    pub fn dequantize(&self, x: ScaledRef<'_>) -> Result<Matrix<f32>> {
        let (rows, cols) = x.shape();
        let mut out = Matrix::filled(rows, cols, 0.0);
        self.dequantize_into(x, out.view_mut())?;
        Ok(out)
    }

    /// The same into memory of the caller's, rounded to nearest even for bf16.
    ///
    /// # Errors
    /// As [`Engine::dequantize`].
    pub fn dequantize_into<T: Output>(&self, x: ScaledRef<'_>, out: MatMut<'_, T>) -> Result<()> {
        self.plan_dequantize(x, out)?.run()
    }

    /// Casts to a format of at most 8 bits, a code a byte, as [`Caster::bytes`] does.
    ///
    /// # Errors
    /// [`Error::Shape`] if the slices differ in length; [`Error::Invalid`] for wider formats; [`Error::Unsupported`] with
    /// the reason why the engine does not cast; [`Error::Cancelled`].
    pub fn cast_bytes<T: Element>(&self, caster: &Caster, x: &[T], codes: &mut [u8]) -> Result<CastStats> {
        match &self.place {
            Place::Cpu(path, _) => {
                let caster = caster.on_path(*path);
                self.install(|| caster.cast(T::typed(x), CodesMut::Bytes(codes), &self.watch))
            }
            Place::Device(_) => Err(self.refuses("casts")),
        }
    }

    /// Casts to a format of 9 to 16 bits, a code a word, as [`Caster::words`] does.
    ///
    /// # Errors
    /// As [`Engine::cast_bytes`].
    pub fn cast_words<T: Element>(&self, caster: &Caster, x: &[T], codes: &mut [u16]) -> Result<CastStats> {
        match &self.place {
            Place::Cpu(path, _) => {
                let caster = caster.on_path(*path);
                self.install(|| caster.cast(T::typed(x), CodesMut::Words(codes), &self.watch))
            }
            Place::Device(_) => Err(self.refuses("casts")),
        }
    }
}
