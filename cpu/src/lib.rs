//! finegrain's CPU kernels: instruction sets, and the loops that are compiled for each of them.
//!
//! They know codes, scales and strides, but nothing of recipes, problems or files: that is the package `finegrain`, which
//! cuts the work, allocates and calls a kernel once a panel, row or microtile. So they are compiled once, whatever of the
//! rest changes, and every kernel is a function of its own for each instruction set.

mod buffer;
pub mod cast;
pub mod dequantize;
pub mod elements;
pub mod gemm;
pub mod look_up;
pub mod product;
pub mod quantize;
pub mod simd;
mod stores;
pub mod tensor_core;

pub use buffer::Buffer;
pub use stores::Stores;
