//! finegrain for Python: the library's calls on arrays that Python holds. No arithmetic of its own: each call reads its
//! arrays as the library's views, and an [`Engine`](finegrain::Engine) computes.
#![deny(unsafe_op_in_unsafe_fn)]

mod array;
mod cast;
mod catalog;
mod dequantize;
mod dtypes;
mod errors;
mod gemm;
mod identify;
mod operand;
mod product;
mod quantize;
mod quantized;
mod work;

use std::process::ExitCode;

use pyo3::prelude::*;

/// Runs the command line, the program's name first, and gives its exit status.
#[pyfunction]
fn run_cli(py: Python<'_>, args: Vec<String>) -> i32 {
    let code = py.detach(|| finegrain::cli::run(args));
    // An exit status tells whether it is a success and nothing else; those of the program are 0 to 3.
    (0..=u8::MAX).find(|&n| ExitCode::from(n) == code).map_or(1, i32::from)
}

/// finegrain, compiled.
#[pymodule]
mod _finegrain {
    #[pymodule_export]
    use super::cast::cast;
    #[pymodule_export]
    use super::catalog::{formats, models, recipes};
    #[pymodule_export]
    use super::dequantize::dequantize;
    #[pymodule_export]
    use super::errors::Error;
    #[pymodule_export]
    use super::gemm::gemm;
    #[pymodule_export]
    use super::identify::{Match, RecipeMatch, assert_same_bits, identify, identify_recipe};
    #[pymodule_export]
    use super::quantize::{quantize, requantize_transposed};
    #[pymodule_export]
    use super::quantized::Quantized;
    #[pymodule_export]
    use super::run_cli;

    /// The version of the package.
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "what Python calls it")]
    const version: &str = env!("CARGO_PKG_VERSION");
}
