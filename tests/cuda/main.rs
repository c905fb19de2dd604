//! The CUDA kernels and their launcher, without a GPU: their PTX in an emulated device, their machine code where NVRTC is
//! at hand. On a GPU `device` runs the same checks there.

#[path = "../common/mod.rs"]
mod common;
mod compile;
mod device;
mod gemm;
mod launcher;
mod mutants;
mod quantize;
mod quantize_mutants;
mod support;
