//! finegrain is DeepSeek-V3's FP8 mixed-precision framework as a Rust toolkit: fine-grained tile (1×128) and block
//! (128×128) scaling, forward and backward, higher-precision accumulation, exact on ordinary CPUs, with the tensor
//! cores' arithmetic as a model you can choose.
//!
//! Its promise: **name the arithmetic, and every path gives the same bits.** A result is determined by its recipe (how
//! numbers became codes and scales) and its accumulation (how products became sums), never by threads, instruction sets
//! or machines.
//!
//! # A walk through
//!
//! Matrix → recipe → codes and scales → problem → backend → result → report:
//!
//! ```
//! use finegrain::accuracy::ErrorMetrics;
//! use finegrain::{Accumulation, GemmProblem, Matrix, Quantizer, Recipe};
//!
//! let x = Matrix::from_fn(4, 512, |t, c| ((t * 71 + c * 13) % 97) as f32 * 0.1 - 2.0);
//! let w = Matrix::from_fn(256, 512, |o, c| ((o * 29 + c * 7) % 89) as f32 * 0.01 - 0.2);
//!
//! let quantizer = Quantizer::new(Recipe::DEEPSEEK_V3);
//! let xq = quantizer.activation(x.view())?; // E4M3 in 1×128 tiles
//! let wq = quantizer.weight(w.view())?; // E4M3 in 128×128 blocks
//!
//! // What an H100 gives: 14-bit accumulation, promoted to FP32 every 128 elements of K.
//! let problem = GemmProblem::nt(xq.view(), wq.view())?
//!     .with_accumulation(Accumulation::HOPPER.promoted::<128>())?;
//! let y = problem.run()?;
//!
//! let wide = |m: &Matrix<f32>| m.map(|&v| f64::from(v));
//! let exact = finegrain::accuracy::exact_product(wide(&x).view(), wide(&w).view());
//! let error = ErrorMetrics::of(y.view(), exact.view())?;
//! assert!(error.calc_diff < 1e-3); // DeepGEMM's bound for FP8
//! # Ok::<(), finegrain::Error>(())
//! ```
//!
//! # How exact
//!
//! - [`formats`]: every code of every 4-, 6- and 8-bit format is compared with independent implementations; casts from
//!   bf16 and f16 exhaustively, from f32 over a stride of all patterns and at every midpoint.
//! - [`quant`]: 22 FP8 recipes of public code, MX, NVFP4 and E5M6, byte for byte against golden values, tiles of zeros,
//!   infinities, NaN and subnormals included.
//! - [`gemm`]: a contract in numbered clauses, a scalar reference that defines the result, and tensor-core models held
//!   to golden values of MMA-Sim, whose Hopper and Ada models agree with recordings of GPUs.
//!
//! # Modules
//!
//! Imports go one way: [`error`] → [`formats`], [`matrix`] → [`scaled`], [`simd`] → [`quant`], [`gemm`] → [`engine`] →
//! [`linear`] → [`accuracy`] → [`checkpoint`] → [`vectors`] → the command line.
//!
//! # Features
//!
//! `cli` (default) builds the `finegrain` binary; a library user turns it off with `default-features = false`. Of it,
//! `checkpoint` alone reads and writes safetensors. `cuda` adds the CUDA kernels; it needs no CUDA to build.

pub mod accuracy;
#[cfg(feature = "checkpoint")]
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod element;
pub mod engine;
pub mod error;
pub mod formats;
pub mod gemm;
pub mod linear;
pub mod matrix;
pub mod name;
pub mod parallel;
pub mod plan;
pub mod quant;
pub mod scaled;
pub mod simd;
#[cfg(feature = "checkpoint")]
pub mod vectors;

pub use engine::Engine;
pub use error::{Error, Result};
pub use formats::Format;
pub use gemm::{Accumulation, GemmProblem};
pub use matrix::{MatRef, Matrix};
pub use quant::{Quantizer, Recipe, Role};
pub use scaled::{Granule, ScaledMatrix, ScaledRef};

// Their examples are tests.
#[cfg(all(doctest, feature = "cli"))]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/library.md")]
    struct Library;
}
