//! How far from exact: error metrics, and the three GEMMs of a Linear under any recipe and accumulation.
//!
//! ```
//! use finegrain::accuracy::{Linear, Pass, Scheme};
//! use finegrain::gemm::{Accumulation, Execution};
//! use finegrain::matrix::Matrix;
//! let x = Matrix::from_fn(8, 256, |t, c| ((t * 37 + c * 11) % 23) as f32 - 11.0);
//! let w = Matrix::from_fn(16, 256, |o, c| ((o * 13 + c * 7) % 19) as f32 * 0.01 - 0.09);
//! let layer = Linear::new(x, w, None)?;
//! let exact = layer.exact(Pass::Fprop)?;
//! let quantized = layer.quantized(Pass::Fprop, &Scheme::by_name("deepseek-v3")?, &exact)?;
//! let (_, report) = quantized.accumulate(&Accumulation::F32.into(), &Execution::default())?;
//! assert!(report.total.relative_frobenius < 0.04);
//! assert!(report.accumulation.relative_frobenius < 1e-6);
//! # Ok::<(), finegrain::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod bound;
mod budget;
mod comparison;
mod linear;
mod metrics;
mod product;
pub mod sample;
mod sweep;
pub mod tolerance;

pub use bound::{BoundCheck, ErrorBound, bound};
pub use budget::{Budget, OperandError, Stage, StageError, TILE, TileError};
pub use comparison::{ComparisonRow, Outcome, compare};
pub use linear::{Linear, OutputFormat, Pass, PassReport, QuantizedPass, Scheme};
pub use metrics::ErrorMetrics;
pub use product::exact_product;
pub use sweep::{Point, Series, Sweep, sweep};
pub use tolerance::{Tolerance, Tolerances, product_rms, tolerance};
