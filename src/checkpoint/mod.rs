//! Tensors on disk: safetensors files, read one tensor at a time and written so that nothing half-done is left.
#![forbid(unsafe_code)]

mod cast;
mod file;
mod header;
mod inspect;
mod quantized;
mod tensor;
mod write;

pub use cast::{CastOptions, CastRounding, CastStats, cast_tensor};
pub use file::TensorFile;
pub use header::{Header, HeaderFault, TensorInfo};
pub use inspect::{
    Finding, Inspection, SCALE_SUFFIX, ScaleReport, Severity, TENSOR_SCALE_SUFFIX, TensorReport, inspect,
};
pub use quantized::{QuantizedLayout, dequantize_tensor, quantize_tensor};
pub use safetensors::Dtype;
pub use tensor::Tensor;
pub use write::{TensorWriter, refuse_same_file, write_atomically, write_tensors};
