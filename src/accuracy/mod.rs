//! How far from exact: error metrics, and the three GEMMs of a Linear under any recipe and accumulation.
//!
//! ```
//! use finegrain::accuracy::ExactPass;
//! use finegrain::Engine;
//! use finegrain::gemm::Accumulation;
//! use finegrain::linear::{Linear, Pass};
//! use finegrain::matrix::Matrix;
//! let x = Matrix::from_fn(8, 256, |t, c| ((t * 37 + c * 11) % 23) as f32 - 11.0);
//! let w = Matrix::from_fn(16, 256, |o, c| ((o * 13 + c * 7) % 19) as f32 * 0.01 - 0.09);
//! let layer = Linear::new(x, w, None)?;
//! let exact = ExactPass::new(&layer, Pass::Fprop)?;
//! let quantized = exact.quantized(&"deepseek-v3".parse()?)?;
//! let result = quantized.multiply(&Accumulation::F32.into(), &Engine::cpu())?;
//! assert!(result.report().total.relative_frobenius < 0.04);
//! assert!(result.report().accumulation.relative_frobenius < 1e-6);
//! # Ok::<(), finegrain::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod bound;
mod budget;
mod comparison;
mod effect;
pub mod identify;
mod metrics;
mod pass;
mod product;
pub mod sample;
mod sweep;
pub mod tolerance;

pub use bound::{BoundCheck, ErrorBound, bound};
pub use budget::{Budget, OperandError, Stage, StageError, TILE, TileError};
pub use comparison::{Compared, Comparison, ComparisonRow, MeasuredPass, Outcome, SweepPlan};
pub use effect::{ProductError, product_error};
pub use metrics::ErrorMetrics;
pub use pass::{ExactPass, Multiplied, OutputFormat, PassReport, QuantizedPass, Stages};
pub use product::exact_product;
pub use sweep::{Point, Series, Sweep, sweep};
pub use tolerance::{Tolerance, ToleranceCheck, Tolerances, product_rms, tolerance};
