//! What the kernels for few rows share: whole promotion intervals side by side in the lanes of a register.
//!
//! Sums of different intervals meet only when they are promoted, so that lanes may hold them side by side. Then what is read
//! together lies together: sixteen intervals of 128 bytes are 2 KiB of one row of B, whatever the distance from row to row,
//! where sixteen rows may all fall on the same sets of the caches.
//!
//! A is packed for it with a step of all lanes after the other, those of a microtile's rows together:
//!
//! ```text
//! step 0 │ row 0: i0 i1 i2 … │ row 1: i0 i1 i2 … │ …     a microtile of A: element i of a row is from interval i,
//! step 1 │ row 0: i0 i1 i2 … │ row 1: i0 i1 i2 … │ …     modulo their number
//! ```

use std::ops::Range;

use super::promote::Promotion;
use super::{Codes, IntervalPart, PACK_EXCESS, pack_a};
use crate::simd::{Decoder, Isa, KC};

/// Rows up to which [`gemv`](super::gemv) is used.
pub const GEMV_ROWS: usize = 4;

/// Intervals side by side in [`few_rows`](super::few_rows).
pub const INTERVALS: usize = 4;

/// Whole promotion intervals, one after the other along K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// The first element of K.
    pub k: usize,
    /// Elements of an interval.
    pub len: usize,
    /// How many they are.
    pub count: usize,
}

/// LANES columns of D over some intervals: rows of B as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// From the first row's first code on.
    pub data: &'a [u8],
    /// Bytes from row to row.
    pub stride: usize,
    /// Rows that exist.
    pub rows: usize,
    /// Bytes of an interval.
    pub interval: usize,
    /// Bytes from the first row to the first of those that are multiplied next.
    pub next: usize,
}

impl Columns<'_> {
    /// Where row `i` begins, or the last instead of one beyond it.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> usize {
        i.min(self.rows - 1) * self.stride
    }
}

/// How the sums of the intervals are promoted.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// In which order.
    pub promotion: Promotion,
    /// For each interval, those of all rows.
    pub a: &'a [f32],
    /// For each interval, those of the columns, a register of them.
    pub b: &'a [f32],
}

/// The product of some rows of A and LANES columns of B over some intervals.
#[derive(Clone, Copy, Debug)]
pub struct SideBySide<'a> {
    /// Rows of A.
    pub rows: usize,
    /// Intervals.
    pub intervals: usize,
    /// Packed A, see [`pack_side_by_side`].
    pub a: &'a [u32],
    /// B.
    pub b: Columns<'a>,
    /// What B is decoded with.
    pub decoder: &'a Decoder,
    /// The scales of both.
    pub scales: Scales<'a>,
}

/// The accumulators of LANES columns: those of row i from \[i · `stride`\] on.
#[derive(Debug)]
pub struct Accumulators<'a> {
    /// From the first column of the first row on.
    pub data: &'a mut [f32],
    /// See there.
    pub stride: usize,
}

/// Packs A over some intervals, for kernels with `lanes` of them side by side; `microtiles` are the rows that lie together.
///
/// # Panics
/// If `out` has no room for rows · steps · `lanes` elements, or an interval is longer than [`KC`] steps.
pub fn pack_side_by_side(
    isa: Isa,
    x: &Codes<'_>,
    intervals: Intervals,
    microtiles: &[Range<usize>],
    lanes: usize,
    out: &mut [u32],
) {
    let steps = intervals.len.div_ceil(isa.geometry().pair);
    let mut rows = vec![0; x.rows * KC + PACK_EXCESS];
    for i in 0..intervals.count {
        let k = intervals.k + i * intervals.len;
        let part = IntervalPart { k: k..k + intervals.len, starts: true, ends: true };
        pack_a(isa, x, 0..x.rows, &[part], &mut rows);
        for microtile in microtiles {
            let out = &mut out[microtile.start * steps * lanes..][..microtile.len() * steps * lanes];
            for (m, row) in microtile.clone().enumerate() {
                for lane in (i..lanes).step_by(intervals.count) {
                    let steps = out[m * lanes + lane..].iter_mut().step_by(microtile.len() * lanes);
                    rows[row * KC..].iter().zip(steps).for_each(|(x, out)| *out = *x);
                }
            }
        }
    }
}
