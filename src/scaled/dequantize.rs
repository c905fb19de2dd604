//! From codes and scales to floats: the definition, and the same by kernels.

use super::parts::Part;
use super::trial;
use super::{ScaledMatrix, ScaledRef};
use crate::element::{ElementsMut, Output};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::{MatMut, Matrix};
use crate::parallel::{self, Watch};
use crate::simd::{Cpu, Isa, OpClass};

/// Elements of a task: some hundred microseconds.
const TASK: usize = 1 << 17;
/// From this size on, values go past the cache.
const PAST_CACHE: usize = 1 << 25;

impl ScaledMatrix {
    /// As [`ScaledRef::dequantize`].
    ///
    /// # Errors
    /// As [`ScaledRef::dequantize`].
    pub fn dequantize(&self) -> Result<Matrix<f32>> {
        self.view().dequantize()
    }
}

impl ScaledRef<'_> {
    /// The value of a code under a scale: fl(code · scale), then times the tensor scale where there is one. NaN is the
    /// canonical one.
    pub(super) fn value(&self, code: u32, scale: f32) -> f32 {
        let mut value = match self.format {
            Format::F32 => f32::from_bits(code),
            _ => self.format.decode_f32(code as u16),
        };
        if self.scales.is_some() {
            value *= scale;
        }
        if self.tensor_scale() != 1.0 {
            value *= self.tensor_scale();
        }
        if value.is_nan() { f32::NAN } else { value }
    }

    /// All values, one after the other: fl(code · scale), then times the tensor scale where there is one, all in f32;
    /// then one rounding to nearest even for bf16. The definition that [`ScaledRef::dequantize_into`] is held to.
    pub fn dequantize_reference<T: Output>(&self) -> Matrix<T> {
        let (rows, cols) = self.shape();
        let rows = if cols == 0 { 0 } else { rows };
        let codes = self.codes();
        let at = |i, j| T::from_f32(self.value(codes.at(i, j), self.scale_at(i, j)));
        let data = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect();
        Matrix::from_vec(self.shape().0, cols, data).expect("one value each code")
    }

    /// All values in f32, the bits of [`ScaledRef::dequantize_reference`], on this CPU.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if `FINEGRAIN_ISA` names an instruction set that the CPU lacks.
    pub fn dequantize(&self) -> Result<Matrix<f32>> {
        let (rows, cols) = self.shape();
        let mut out = Matrix::filled(rows, cols, 0.0);
        self.dequantize_into(out.view_mut())?;
        Ok(out)
    }

    /// All values in f32 or bf16 into memory of the caller, on this CPU; an [`Engine`](crate::Engine) does it elsewhere, and
    /// watched. The bits are those of [`ScaledRef::dequantize_reference`].
    ///
    /// ```
    /// use finegrain::matrix::Matrix;
    /// use finegrain::quant::{Quantizer, Recipe};
    /// use half::bf16;
    /// let w = Matrix::from_fn(200, 300, |i, j| (i * j) as f32);
    /// let q = Quantizer::new(Recipe::DEEPSEEK_V3).weight(w.view())?;
    /// let mut values = Matrix::filled(200, 300, bf16::ZERO);
    /// q.view().dequantize_into(values.view_mut())?;
    /// assert_eq!(values, q.view().dequantize_reference());
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] if `out` has another shape; as [`ScaledRef::dequantize`].
    pub fn dequantize_into<T: Output>(&self, out: MatMut<'_, T>) -> Result<()> {
        self.dequantize_on(out, &Cpu::AUTOMATIC)
    }

    /// The same where and watched as told.
    ///
    /// # Errors
    /// As [`ScaledRef::dequantize_into`]; [`Error::Cancelled`].
    pub(crate) fn dequantize_on<T: Output>(&self, mut out: MatMut<'_, T>, cpu: &Cpu<'_>) -> Result<()> {
        let (rows, cols) = self.shape();
        if out.shape() != (rows, cols) {
            let (r, c) = out.shape();
            return Err(Error::Shape(format!("{r}×{c} values are to hold codes of {rows}×{cols}")));
        }
        self.fetch()?;
        // F32 has no kernel: it is what the others are made into.
        let isa = match self.format {
            Format::F32 => None,
            _ => cpu.isa(OpClass::Dequantize, &trial::dequantize)?,
        };
        let Some(isa) = isa else {
            cpu.watch.check()?;
            let values = self.dequantize_reference::<T>();
            (0..rows).for_each(|i| out.row_mut(i).copy_from_slice(values.row(i)));
            cpu.watch.report((rows * cols) as u64);
            return Ok(());
        };
        let (data, stride) = out.into_strided();
        self.dequantize_rows(T::typed_mut(data), stride, isa, &cpu.watch)
    }

    /// All values into rows `stride` apart, which are shared out among threads.
    fn dequantize_rows(
        &self,
        out: ElementsMut<'_>,
        stride: usize,
        isa: Isa,
        watch: &Watch<'_>,
    ) -> Result<()> {
        let (rows, cols) = self.shape();
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let past_cache = (out.element_bytes() + 1) * rows * cols > PAST_CACHE;
        // As high as blocks where there is work for all threads, since something is made for every block.
        let share = rows.div_ceil(4 * crate::parallel::threads());
        let block = self.scales.map_or(1, |scales| scales.granule.rows());
        let height = (TASK / cols).max(block.min(share));
        let mut parts = out.into_chunks(height * stride);
        parts.truncate(rows.div_ceil(height));
        parallel::for_each_part(watch, parts, &|i, out| {
            let rows = i * height..((i + 1) * height).min(rows);
            let elements = (rows.len() * cols) as u64;
            let stores = finegrain_cpu::Stores::new(isa, past_cache);
            Part { x: self, rows, cols: 0..cols, out, stride }.run(&stores, &mut Default::default());
            watch.report(elements);
        })
    }
}
