//! What the launcher asks of a GPU, and the real one.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError,
    LaunchConfig, PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;

use super::args::{RecipeArgs, ScaleGridArgs};
use super::kernels::{Config, Kernel};
use super::{Arch, Compiler, Target};
use crate::error::{Error, Result};

/// One argument of a kernel, of the type that its source declares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A device address; 0 is null.
    Address(u64),
    /// `u32`.
    U32(u32),
    /// `i32`.
    I32(i32),
    /// `i64`.
    I64(i64),
    /// `float`.
    F32(f32),
    /// `ScaleGrid`, by value.
    Scales(ScaleGridArgs),
    /// `Recipe`, by value.
    Recipe(RecipeArgs),
}

/// A GPU, or what stands in for one: memory and launches, in order.
pub trait Driver: Send + Sync + 'static {
    /// Memory on the device; dropping it gives it back.
    type Memory: Send + Sync + 'static;

    /// What kernels are compiled for.
    fn arch(&self) -> Arch;

    /// Memory with these contents; of one byte at least, so that it has an address.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the driver's word.
    fn upload(&self, bytes: &[u8]) -> Result<Self::Memory>;

    /// Memory without contents.
    ///
    /// # Errors
    /// As [`Driver::upload`].
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;

    /// Memory of zeros.
    ///
    /// # Errors
    /// As [`Driver::upload`].
    fn zeros(&self, bytes: usize) -> Result<Self::Memory> {
        self.upload(&vec![0; bytes])
    }

    /// Where it lies.
    fn address(&self, memory: &Self::Memory) -> u64;

    /// Its contents, after all launches before.
    ///
    /// # Errors
    /// As [`Driver::upload`]; a failed launch may show here.
    fn download(&self, memory: &Self::Memory) -> Result<Vec<u8>>;

    /// A part of its contents.
    ///
    /// # Errors
    /// As [`Driver::download`].
    fn download_part(&self, memory: &Self::Memory, bytes: Range<usize>) -> Result<Vec<u8>> {
        Ok(self.download(memory)?[bytes].to_vec())
    }

    /// Lets launches of a kernel have this much dynamic shared memory: asked for above
    /// [`Config::SHARED_WITHOUT_ASKING`].
    ///
    /// # Errors
    /// As [`Driver::upload`]; the device has less.
    fn allow_shared(&self, kernel: &'static Kernel, bytes: u32) -> Result<()>;

    /// Seconds that the launches of `work` take on the device.
    ///
    /// # Errors
    /// Those of `work`, and as [`Driver::upload`].
    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;

    /// Runs a kernel.
    ///
    /// # Safety
    /// The arguments are those that the kernel's source declares, in number, order and type, and the memory they name
    /// is as large as they say and lives until the next download.
    ///
    /// # Errors
    /// As [`Driver::upload`].
    unsafe fn launch(&self, kernel: &'static Kernel, config: Config, args: &[Arg]) -> Result<()>;
}

/// A CUDA device. Kernels are compiled when first launched.
#[derive(Debug)]
pub struct CudaDriver {
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    compiler: Compiler,
    arch: Arch,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
}

// SAFETY: `RecipeArgs` is repr(C) of 13 words without padding, laid out as the device's struct (a test compares), and
// holds no references.
unsafe impl DeviceRepr for RecipeArgs {}
// SAFETY: `ScaleGridArgs` is repr(C) with its padding a field, laid out as the device's struct (a test compares), and
// holds no references.
unsafe impl DeviceRepr for ScaleGridArgs {}

fn refused(e: DriverError) -> Error {
    Error::Unsupported(format!("CUDA driver: {e}"))
}

impl CudaDriver {
    /// The device of this number.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is no driver, no such device, no NVRTC, or the device's architecture is not one
    /// that kernels are written for.
    pub fn new(ordinal: usize) -> Result<Self> {
        // SAFETY: it only tries to load the library. Without it, what follows would panic.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Unsupported("no CUDA driver on this machine: libcuda was not found".into()));
        }
        let context = CudaContext::new(ordinal).map_err(refused)?;
        let (major, minor) = context.compute_capability().map_err(refused)?;
        let Some(arch) = Arch::of_capability(major, minor) else {
            let known = Arch::ALL.iter().map(|a| a.sm()).collect::<Vec<_>>().join(", ");
            let message = format!(
                "device {ordinal} is of compute capability {major}.{minor}; kernels exist for {known}"
            );
            return Err(Error::Unsupported(message));
        };
        let stream = context.default_stream();
        let (compiler, modules, functions) = (Compiler::new()?, Mutex::default(), Mutex::default());
        Ok(CudaDriver { stream, context, compiler, arch, modules, functions })
    }

    /// The device's name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the driver's word.
    pub fn name(&self) -> Result<String> {
        self.context.name().map_err(refused)
    }

    /// The newest version of CUDA that the driver knows, and NVRTC's: (major, minor) each.
    ///
    /// # Errors
    /// As [`CudaDriver::name`].
    pub fn versions(&self) -> Result<[(i32, i32); 2]> {
        let mut version = 0;
        // SAFETY: the library is loaded, since there is a context; the pointer is valid for one write.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(refused)?;
        // 1000 · major + 10 · minor
        Ok([(version / 1000, version % 1000 / 10), self.compiler.version()])
    }

    fn function(&self, kernel: &'static Kernel) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(kernel.name) {
            return Ok(function.clone());
        }
        let function = self.module(kernel)?.load_function(kernel.name).map_err(refused)?;
        functions.insert(kernel.name, function.clone());
        Ok(function)
    }

    fn module(&self, kernel: &'static Kernel) -> Result<Arc<CudaModule>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(kernel.source.file) {
            return Ok(Arc::clone(module));
        }
        let compiled = self.compiler.compile(kernel.source, self.arch, Target::Cubin)?;
        let module = self.context.load_module(Ptx::from_binary(compiled.image.clone())).map_err(refused)?;
        modules.insert(kernel.source.file, Arc::clone(&module));
        Ok(module)
    }
}

impl Driver for CudaDriver {
    type Memory = CudaSlice<u8>;

    fn arch(&self) -> Arch {
        self.arch
    }

    fn upload(&self, bytes: &[u8]) -> Result<CudaSlice<u8>> {
        self.stream.clone_htod(if bytes.is_empty() { &[0][..] } else { bytes }).map_err(refused)
    }

    fn allocate(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        self.stream.alloc_zeros(bytes.max(1)).map_err(refused)
    }

    fn zeros(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        self.allocate(bytes)
    }

    fn address(&self, memory: &CudaSlice<u8>) -> u64 {
        memory.device_ptr(&self.stream).0
    }

    fn download(&self, memory: &CudaSlice<u8>) -> Result<Vec<u8>> {
        self.stream.clone_dtoh(memory).map_err(refused)
    }

    fn download_part(&self, memory: &CudaSlice<u8>, bytes: Range<usize>) -> Result<Vec<u8>> {
        self.stream.clone_dtoh(&memory.slice(bytes)).map_err(refused)
    }

    fn allow_shared(&self, kernel: &'static Kernel, bytes: u32) -> Result<()> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.function(kernel)?.set_attribute(attribute, bytes.cast_signed()).map_err(refused)
    }

    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let event = || self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(refused);
        let start = event()?;
        work()?;
        // Waits for both, and with them for what lies between.
        let milliseconds = start.elapsed_ms(&event()?).map_err(refused)?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    unsafe fn launch(&self, kernel: &'static Kernel, config: Config, args: &[Arg]) -> Result<()> {
        let function = self.function(kernel)?;
        let mut builder = self.stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Address(v) => builder.arg(v),
                Arg::U32(v) => builder.arg(v),
                Arg::I32(v) => builder.arg(v),
                Arg::I64(v) => builder.arg(v),
                Arg::F32(v) => builder.arg(v),
                Arg::Scales(v) => builder.arg(v),
                Arg::Recipe(v) => builder.arg(v),
            };
        }
        let [[gx, gy, gz], [bx, by, bz]] = [config.grid, config.block];
        let config = LaunchConfig {
            grid_dim: (gx, gy, gz),
            block_dim: (bx, by, bz),
            shared_mem_bytes: config.dynamic_shared,
        };
        // SAFETY: the caller vouches for the arguments and their memory; the kernels stay inside what their arguments
        // describe, which the interpreter checks on every one of them.
        unsafe { builder.launch(config) }.map(|_| ()).map_err(refused)
    }
}
