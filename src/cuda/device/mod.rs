//! The launcher: matrices in, matrices out, on any [`Driver`].
//!
//! Desc → Config → [`Launch`]: what is asked for, how it is cut, what is run. Each can be printed.

mod dequantize;
mod gemm;
mod operand;
mod quantize;

use std::sync::Arc;

use super::driver::{Arg, Driver};
use super::kernels::{Config, Desc, Kernel};
use super::{CudaDriver, Launch};
use crate::error::{Error, Result};
use crate::matrix::{MatRef, Matrix};
use crate::quant::Element;

pub use gemm::{Form, GemmDesc};

/// A device that quantises and multiplies.
///
/// ```no_run
/// use finegrain::cuda::{Cuda, CudaDriver};
/// use finegrain::gemm::{Accumulation, GemmProblem};
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{Recipe, Role};
/// let gpu = Cuda::new(CudaDriver::new(0)?);
/// let x = gpu.quantize(Matrix::filled(256, 512, 0.5f32).view(), &Recipe::DEEPSEEK_V3, Role::Activation)?;
/// let w = gpu.quantize(Matrix::filled(128, 512, 0.1f32).view(), &Recipe::DEEPSEEK_V3, Role::Weight)?;
/// let hopper = Accumulation::HOPPER.promote_every(128)?;
/// let y = gpu.gemm(&GemmProblem::nt(x.view(), w.view())?.with_accumulation(hopper)?)?;
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Debug)]
pub struct Cuda<D = CudaDriver> {
    driver: Arc<D>,
}

impl<D> Clone for Cuda<D> {
    /// The same device.
    fn clone(&self) -> Self {
        Cuda { driver: Arc::clone(&self.driver) }
    }
}

/// An element that kernels read and write as it lies in memory.
pub trait Float: Element + bytemuck::Pod {
    /// Its name at the end of a kernel's.
    const NAME: &'static str;
}

impl Float for f32 {
    const NAME: &'static str = "f32";
}

impl Float for half::bf16 {
    const NAME: &'static str = "bf16";
}

impl<D: Driver> Cuda<D> {
    /// A device.
    pub fn new(driver: D) -> Self {
        Cuda { driver: Arc::new(driver) }
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// A launch in words.
    fn describe(&self, kernel: &Kernel, desc: Desc) -> String {
        // There is none for nothing.
        let config = kernel.config(desc).map_or(String::new(), |config| format!(" {config}"));
        format!("cuda on {}: {}{config}", self.driver.arch(), kernel.name)
    }

    fn run(&self, launch: &Launch) -> Result<()> {
        let shared = launch.config().dynamic_shared;
        if shared > Config::SHARED_WITHOUT_ASKING {
            self.driver.allow_shared(launch.kernel(), shared)?;
        }
        // SAFETY: launches are made in this module alone, with the arguments that the kernels' sources document and with
        // memory sized from the same shapes, which its owners keep until they have downloaded the result. The
        // interpreter runs each kind of launch in the tests.
        unsafe { self.driver.launch(launch.kernel(), launch.config(), launch.args()) }
    }

    /// The matrix in device memory, without gaps between its rows.
    fn upload<T: bytemuck::Pod>(&self, x: MatRef<'_, T>) -> Result<D::Memory> {
        let rows: Vec<T> = x.iter_rows().flatten().copied().collect();
        self.driver.upload(bytemuck::cast_slice(&rows))
    }

    /// A matrix of this shape from device memory of this shape.
    fn download<T: bytemuck::Pod>(&self, memory: &D::Memory, rows: usize, cols: usize) -> Result<Matrix<T>> {
        Matrix::from_vec(rows, cols, values(&self.driver.download(memory)?))
    }

    fn address(&self, memory: &D::Memory) -> Arg {
        Arg::Address(self.driver.address(memory))
    }
}

/// What the bytes hold.
fn values<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut values = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes);
    values
}

/// A kernel of the table.
fn kernel(name: &str) -> &'static Kernel {
    Kernel::by_name(name).expect("the launcher names kernels of the table")
}

/// A size as kernels take it.
fn size(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| {
        Error::Unsupported(format!("{n} elements along one side: the CUDA kernels count to 2^31"))
    })
}
