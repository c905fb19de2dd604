//! What has memory of its own: GPUs.

use crate::element::ElementsMut;
use crate::error::Result;
use crate::gemm::GemmBackend;
use crate::plan::Plan;
use crate::quant::{QuantStats, Recipe, Source};
use crate::scaled::{Resident, ScaledRef};

/// A device, whatever drives it.
pub(super) trait Device: Send + Sync {
    /// What multiplies on it.
    fn gemm(&self) -> &dyn GemmBackend;

    /// Puts matrices of one shape there, below each other.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for what is not read there, and with the device's word.
    fn keep(&self, group: &[ScaledRef<'_>]) -> Result<Vec<Resident>>;

    /// How something is quantised; the result stays there.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) with the reason why it is not.
    fn plan_quantize<'p>(
        &'p self,
        source: Source<'p>,
        recipe: &'p Recipe,
    ) -> Result<Plan<'p, (Resident, QuantStats)>>;

    /// How codes and scales become floats in rows of so many elements from one to the next.
    ///
    /// # Errors
    /// As [`Device::plan_quantize`].
    fn plan_dequantize<'p>(&'p self, x: ScaledRef<'p>, out: (ElementsMut<'p>, usize))
    -> Result<Plan<'p, ()>>;
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::{Arc, OnceLock};

    use super::*;
    use crate::cuda::{Cuda, CudaDriver, Driver, Float};
    use crate::engine::{Engine, Place};
    use crate::error::Error;
    use crate::matrix::Matrix;

    impl<D: Driver> Device for Cuda<D> {
        fn gemm(&self) -> &dyn GemmBackend {
            self
        }

        fn keep(&self, group: &[ScaledRef<'_>]) -> Result<Vec<Resident>> {
            self.keep(group)
        }

        fn plan_quantize<'p>(
            &'p self,
            source: Source<'p>,
            recipe: &'p Recipe,
        ) -> Result<Plan<'p, (Resident, QuantStats)>> {
            self.plan_quantize(source, recipe)
        }

        fn plan_dequantize<'p>(
            &'p self,
            x: ScaledRef<'p>,
            (out, stride): (ElementsMut<'p>, usize),
        ) -> Result<Plan<'p, ()>> {
            match out {
                ElementsMut::F32(out) => values(self.plan_dequantize(x)?, out, stride),
                ElementsMut::Bf16(out) => values(self.plan_dequantize(x)?, out, stride),
            }
        }
    }

    /// The same with its result in rows of the caller's.
    fn values<'p, T: Float>(
        plan: Plan<'p, Matrix<T>>,
        out: &'p mut [T],
        stride: usize,
    ) -> Result<Plan<'p, ()>> {
        let how = plan.to_string();
        Ok(Plan::new(how, move || {
            let values = plan.run()?;
            for (i, row) in values.view().iter_rows().enumerate().filter(|(_, row)| !row.is_empty()) {
                out[i * stride..][..row.len()].copy_from_slice(row);
            }
            Ok(())
        }))
    }

    impl Engine<'static> {
        /// A CUDA device, or what stands in for one.
        ///
        /// ```no_run
        /// use finegrain::Engine;
        /// use finegrain::cuda::{Cuda, CudaDriver};
        /// let second = Engine::cuda(Cuda::new(CudaDriver::new(1)?));
        /// # Ok::<(), finegrain::Error>(())
        /// ```
        pub fn cuda<D: Driver>(device: Cuda<D>) -> Self {
            Engine::at(Place::Device(Arc::new(device)))
        }
    }

    /// The machine's first device, opened when first asked for; all engines share it.
    pub(in crate::engine) fn first() -> Result<Engine<'static>> {
        static FIRST: OnceLock<std::result::Result<Engine<'static>, String>> = OnceLock::new();
        let open = || match CudaDriver::new(0) {
            Ok(driver) => Ok(Engine::cuda(Cuda::new(driver))),
            Err(Error::Unsupported(why)) => Err(why),
            Err(other) => Err(other.to_string()),
        };
        FIRST.get_or_init(open).clone().map_err(Error::Unsupported)
    }
}

#[cfg(feature = "cuda")]
pub(super) use cuda::first;
