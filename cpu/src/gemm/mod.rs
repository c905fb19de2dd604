//! Kernels of the f32 GEMM, D \[M, N\] = A \[M, K\] · B \[N, K\]ᵀ, called by the loops jc, pc, ic, jr and ir.
//!
//! # The contract
//!
//! K is cut into promotion intervals, and blocks of K into parts of them ([`IntervalPart`]). For each element of a
//! microtile, [`microkernel`] computes over a block of K, part p after part:
//!
//! ```text
//! partial = +0 where p begins its interval, else what was stored
//! partial = step(a[k], b[k], partial)              for k in p, ascending; one rounding for each product added
//! acc     = promote(acc, partial, sa[p], sb[p])    where p ends its interval, else partial is stored
//! ```
//!
//! Accumulators are +0 before the first block. A chain that is never promoted has parts that neither begin nor end: `partial`
//! is then the accumulator, and begins as the addend. [`epilogue`] applies what follows the last interval.
//!
//! Packed operands are 32-bit elements, a step of K each: an f32, or a pair of BF16, the first in the high half, which the dot
//! product adds first. [`pack_a`] and [`pack_b`] decode codes to them:
//!
//! ```text
//! A    row 0 │ step 0 … step KC − 1 │      rows KC elements apart, of which the microkernel broadcasts
//!      row 1 │ step 0 … step KC − 1 │
//!
//! B   step 0 │ column 0 … column NR − 1 │  a micropanel: a register holds LANES columns of one step
//!     step 1 │ column 0 … column NR − 1 │
//! ```
//!
//! Edges: rows and columns that do not exist are packed as +0, and so is the second half of a last pair; it adds +0 to a sum
//! that is not −0, since pairs are used only where sums begin at +0. Accumulators and scales have room for whole microtiles;
//! only [`epilogue`] stores less.
//!
//! # Few rows
//!
//! Where M is small, reading and decoding B is the work. [`gemv`] and [`few_rows`] take it from memory once, in order: a
//! register holds several promotion intervals of some rows of B, whose sums meet only when they are promoted. See there for
//! their packed pictures. Every kernel gives the same bits: lanes never interact, and each is the scalar loop.

mod epilogue;
mod few_rows;
mod gemv;
mod microkernel;
mod pack;
mod promote;
mod side_by_side;

use std::ops::Range;

pub use epilogue::{Epilogue, RowsMut, SumScales, epilogue};
pub use few_rows::{DecodedPanels, few_rows, row_tiles};
pub use gemv::gemv;
pub use microkernel::{Micropanels, microkernel};
pub use pack::{Codes, PACK_EXCESS, pack_a, pack_b};
pub(crate) use promote::promote;
pub use promote::{Promotion, SumScaling};
pub use side_by_side::{
    Accumulators, Columns, GEMV_ROWS, INTERVALS, Intervals, Scales, SideBySide, pack_side_by_side,
};

/// Elements of a cache line, and of the widest register.
const LINE: usize = 16;

/// A promotion interval, or the part of it that lies in one block of K.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntervalPart {
    /// Elements of K.
    pub k: Range<usize>,
    /// Whether the interval begins with it: sums start at +0, else at those stored.
    pub starts: bool,
    /// Whether the interval ends with it: sums are promoted, else stored.
    pub ends: bool,
}

impl IntervalPart {
    /// Its steps of `pair` elements.
    pub const fn steps(&self, pair: usize) -> usize {
        (self.k.end - self.k.start).div_ceil(pair)
    }
}
