//! The machine's first device among the backends.

use std::sync::OnceLock;

use super::{Cuda, CudaDriver};
use crate::error::{Error, Result};
use crate::gemm::{GemmBackend, GemmPlan, GemmProblem, GroupedProblem, Model};

/// Device 0, opened when first asked for anything. Without a driver, or a device that kernels are written for, it
/// supports no problem and says why.
///
/// ```
/// use finegrain::cuda::FirstDevice;
/// use finegrain::gemm::GemmBackend;
/// assert_eq!(finegrain::backends::by_name("cuda")?.name(), FirstDevice.name());
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct FirstDevice;

fn device() -> Result<&'static Cuda> {
    static DEVICE: OnceLock<std::result::Result<Cuda, String>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| match CudaDriver::new(0) {
        Ok(driver) => Ok(Cuda::new(driver)),
        Err(Error::Unsupported(why)) => Err(why),
        Err(other) => Err(other.to_string()),
    });
    device.as_ref().map_err(|why| Error::Unsupported(why.clone()))
}

impl GemmBackend for FirstDevice {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn models(&self) -> Vec<Model> {
        device().map(GemmBackend::models).unwrap_or_default()
    }

    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        device()?.plan(problem)
    }

    fn plan_grouped<'p>(&'p self, problem: &'p GroupedProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        device()?.plan_grouped(problem)
    }
}
