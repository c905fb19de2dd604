//! Devices, launches and comparisons that the tests of the kernels share.
#![allow(unreachable_pub)]

pub mod compiler;
pub mod device_bench;
pub mod device_checks;
pub mod emulated_gemm;
pub mod gemm_bugs;
pub mod interpreter;
pub mod kept;
pub mod mutant;
pub mod promises;
pub mod quantize_bugs;
pub mod stand_in;
pub mod trials;
