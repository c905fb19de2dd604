//! Dequantisers.

use half::bf16;

use super::quantize::readable;
use super::{Cuda, Float, kernel, size};
use crate::cuda::Launch;
use crate::cuda::driver::{Arg, Driver};
use crate::cuda::kernels::Desc;
use crate::error::Result;
use crate::matrix::Matrix;
use crate::plan::Plan;
use crate::scaled::ScaledRef;

impl<D: Driver> Cuda<D> {
    /// The values in f32: [`ScaledRef::dequantize`], NaN canonical.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for operands that the kernel does not read, and with the driver's
    /// word.
    pub fn dequantize(&self, x: ScaledRef<'_>) -> Result<Matrix<f32>> {
        self.plan_dequantize(x)?.run()
    }

    /// The values rounded to BF16, to nearest even.
    ///
    /// # Errors
    /// As [`Cuda::dequantize`].
    pub fn dequantize_bf16(&self, x: ScaledRef<'_>) -> Result<Matrix<bf16>> {
        self.plan_dequantize(x)?.run()
    }

    /// How the values are computed.
    ///
    /// # Errors
    /// As [`Cuda::dequantize`].
    pub(crate) fn plan_dequantize<'p, T: Float>(&'p self, x: ScaledRef<'p>) -> Result<Plan<'p, Matrix<T>>> {
        let granule = readable(&x)?;
        let kernel = kernel(&format!("dequantize_e4m3_{}", T::NAME));
        let (rows, cols) = x.shape();
        let desc = Desc::matrix(rows, cols);
        let work = move || {
            let out = self.driver.allocate(rows * cols * size_of::<T>())?;
            if rows * cols != 0 {
                let scaled = self.scaled(&x)?;
                let args = vec![
                    scaled.codes,
                    scaled.ld,
                    Arg::Scales(scaled.grid),
                    Arg::I32(size(granule.rows())?),
                    Arg::I32(size(rows)?),
                    Arg::I32(size(cols)?),
                    self.address(&out),
                    Arg::I64(cols as i64),
                ];
                self.run(&Launch::new(kernel, desc, args)?)?;
            }
            self.download(&out, rows, cols)
        };
        Ok(Plan::new(self.describe(kernel, desc), work))
    }
}
