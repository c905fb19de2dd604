//! finegrain (manual to come)
pub mod backends;
pub mod checkpoint;
pub mod error;
pub mod formats;
pub mod gemm;
pub mod matrix;
pub mod quant;
pub mod scaled;
pub use error::{Error, Result};
