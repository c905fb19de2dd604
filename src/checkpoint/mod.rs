//! Tensors on disk: safetensors files, read one tensor at a time and written so that nothing half-done is left.
#![forbid(unsafe_code)]

mod cast;
mod file;
mod grid;
mod header;
mod inspect;
mod looks;
mod pairs;
mod quantized;
mod rewrite;
mod room;
mod scaled;
mod source;
mod survey;
mod temporary;
mod tensor;
mod write;

pub use cast::{CastOptions, CastRounding, CastStats, cast_tensor};
pub use file::TensorFile;
pub use grid::ScaleStorage;
pub use header::{Header, HeaderFault, TensorInfo};
pub use inspect::{
    Finding, Inspection, SCALE_SUFFIX, ScaleReport, Severity, TENSOR_SCALE_SUFFIX, TensorReport, inspect,
};
pub use pairs::{Pairs, Part, Partner};
pub use quantized::{QuantizedLayout, dequantize_tensor, quantize_tensor};
pub use rewrite::{Announced, Fate, Made, Maker, rewrite};
pub use room::{matrix_bytes, memory_left, require_memory};
pub use safetensors::Dtype;
pub use scaled::{ReadAs, ScaledTensor};
pub use source::Checkpoint;
pub use temporary::remove_temporaries;
pub use tensor::Tensor;
pub use write::{TensorWriter, refuse_same_file, write_atomically, write_tensors};
