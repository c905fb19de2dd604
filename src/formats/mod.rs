//! Number formats: what a code means, and how a number becomes a code.
//!
//! Three functions, kept apart: [`FormatSpec::decode`] (code → value), [`FormatSpec::round`] (value → value of the
//! format, the one place that rounds) and [`FormatSpec::encode`] (value → code). [`Format::cast`] joins the last two.
//! All of it is integer arithmetic on [`Unpacked`] numbers, so the same bits come out everywhere.
//!
//! ```
//! use finegrain::formats::{Format, Overflow, Rounding, Unpacked};
//! for format in Format::ALL {
//!     let spec = format.spec();
//!     println!("{:10} {:2} bits, largest {:e}", spec.name, spec.bits(), spec.max_finite());
//! }
//! let cast = Format::E4M3.cast(Unpacked::from_f32(464.5), Rounding::NearestEven, Overflow::NonSaturating);
//! assert_eq!(cast.code, 0x7F); // NaN: E4M3 has no infinity
//! ```
//!
//! Sources: OCP 8-bit Floating Point Specification 1.0, OCP Microscaling Formats 1.0, DeepSeek-V3 report (arXiv
//! 2412.19437) 3.3, DeepSeek TileKernels for E5M6, "Insights into DeepSeek-V3" (arXiv 2505.09343) for LogFMT.
#![forbid(unsafe_code)]

mod codec;
mod codes;
pub mod e5m6;
pub mod e8m0;
pub mod logfmt;
pub mod packed;
mod round;
mod spec;
mod unpacked;

pub(crate) use codec::counter_hash;
pub use codec::{Cast, TensorRounding};
pub use codes::*;
pub use e8m0::ScaleRound;
pub use round::{Events, Loss, Overflow, Rounded, Rounding};
pub use spec::{Format, FormatSpec, Specials, WrittenNan};
pub use unpacked::Unpacked;
