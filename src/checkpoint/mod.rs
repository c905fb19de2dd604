//! Tensors on disk: safetensors files, read one tensor at a time and written so that nothing half-done is left.
#![forbid(unsafe_code)]

mod file;
mod tensor;

pub use file::{TensorFile, TensorInfo, refuse_same_file, write_atomically, write_tensors};
pub use safetensors::Dtype;
pub use tensor::Tensor;
