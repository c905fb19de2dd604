//! What has memory of its own: GPUs.

use crate::gemm::GemmBackend;

/// A device, whatever drives it.
pub(super) trait Device: Send + Sync {
    /// What multiplies on it.
    fn gemm(&self) -> &dyn GemmBackend;
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::{Arc, OnceLock};

    use super::{Device, GemmBackend};
    use crate::cuda::{Cuda, CudaDriver, Driver};
    use crate::engine::{Engine, Place};
    use crate::error::{Error, Result};

    impl<D: Driver> Device for Cuda<D> {
        fn gemm(&self) -> &dyn GemmBackend {
            self
        }
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
        pub fn cuda<D: Driver + 'static>(device: Cuda<D>) -> Self {
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
