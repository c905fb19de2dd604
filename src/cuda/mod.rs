//! CUDA kernels: what they are, how they are compiled, what the compiler made of them (feature `cuda`).
//!
//! The sources lie in `kernels/` and are part of the library; [`Compiler`] turns them into device code at run time with
//! NVRTC, so that building finegrain needs no CUDA. Neither NVRTC nor the driver is linked: both are looked for when
//! first used, and their absence is an [`Error::Unsupported`](crate::Error::Unsupported) with a sentence.
//!
//! - [`kernels`]: the table of kernels with their launch geometry and what their machine code must contain.
//! - [`Compiler`]: source and architecture in, cubin or PTX out, cached in memory and on disk.
//! - [`disasm`]: machine code in, instruction counts out: the check that needs no GPU.
//! - [`Cuda`]: the launcher, over a [`Driver`]: a real device, or what stands in for one. [`GemmDesc`] → [`kernels::Config`]
//!   → [`Launch`]: what is asked for, how it is cut, what is run.
//! - [`roofline`]: what a kernel can reach at best, estimated from its machine code and published peaks.
//! - [`Engine::cuda`](crate::Engine::cuda), or `cuda` by name: a device as the place where operations run.
//! - [`RecipeArgs`], [`ScaleGridArgs`]: recipes and scale grids as kernel arguments.
//!
//! The kernels give the bits of [`quant`](crate::quant), with one difference: each NaN they write is the canonical one
//! (code 7F, f32 7FC00000, bf16 7FC0), while the sign of a NaN that a CPU's arithmetic makes depends on the CPU.
#![deny(unsafe_op_in_unsafe_fn)]

mod arch;
mod args;
mod compile;
mod device;
pub mod disasm;
mod driver;
mod gemm_args;
pub mod kernels;
mod launch;
pub mod roofline;

pub use arch::Arch;
pub use args::{RecipeArgs, ScaleGridArgs, ScaleKind};
pub use compile::{Compiled, Compiler, Resources, Target, nvrtc_present};
pub use device::{Cuda, Float, Form, GemmDesc};
pub use driver::{Arg, CudaDriver, Driver};
pub use launch::Launch;
