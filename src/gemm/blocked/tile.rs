//! The microkernel: a microtile of D over a block of K, and what happens to its sums at the end of each interval.
//!
//! ```text
//!            columns: NV registers of LANES
//!          ┌────────────┬────────────┬─ … ─┐
//!   a[0] → │ sum[0][0]  │ sum[0][1]  │     │      one step of K: load NV registers of the panel of B, broadcast
//!   a[1] → │ sum[1][0]  │ sum[1][1]  │     │      MR elements of A, MR · NV dot products of S::PAIR elements
//!    …     └────────────┴────────────┴─ … ─┘
//! ```
//!
//! Two steps a cycle of six cycles' latency (VDPBF16PS on Zen 4 and 5) want at least twelve sums under way; 6 × 4 of the
//! 32 registers are twice that, and leave eight for the operands. Of 16 registers 6 × 2 are just twelve: fewer rows are
//! slower even where they divide M. Where products take registers of their own, for want of fused multiply-adds, 4 × 2 are
//! faster. Promoted sums live in memory, in the first-level cache.

use std::ops::Range;

use super::super::accumulation::Promotion;
use crate::simd::Simd;

/// Packed steps of K in a block, at most: a panel of B of 64 columns takes 32 KiB, two thirds of a first-level cache.
pub(super) const STEPS: usize = 128;

/// A part of one promotion interval.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) k: Range<usize>,
    /// Packed steps.
    pub(super) steps: usize,
    /// Whether the interval begins with it: sums start at +0, else at those stored.
    pub(super) starts: bool,
    /// Whether the interval ends with it: sums are promoted, else stored.
    pub(super) ends: bool,
}

/// One microtile's operands over the segments of a block, but for B: packed rows, and the scales of its rows and columns,
/// those of a segment after another.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) segments: &'a [Segment],
    /// Rows of A from the microtile's first.
    pub(super) a: &'a [[u32; STEPS]],
    pub(super) scales_a: &'a [f32],
    pub(super) scales_b: &'a [f32],
    /// Scales from segment to segment.
    pub(super) strides: (usize, usize),
    /// Whether a segment's columns share one scale.
    pub(super) one_column_scale: bool,
    pub(super) promotion: Promotion,
    /// Whether all sums are +0 before this block, whatever the memory holds.
    pub(super) fresh: bool,
}

/// Rows that a microtile may have, and for each the registers side by side.
pub(super) const fn shapes<S: Simd>() -> &'static [(usize, usize)] {
    match S::LANES {
        16 => &[(4, 4), (5, 4), (6, 4)],
        8 => &[(6, 2)],
        _ => &[(4, 2)],
    }
}

/// Sums a microtile of one of the [`shapes`], of `rows` rows.
///
/// `b` is a packed panel. `sums` holds partial sums between segments of one interval, `acc` the promoted ones, both row-major. `acc` is empty
/// for a bare chain, which is never promoted.
#[inline(always)]
pub(super) fn multiply<S: Simd>(
    s: S,
    rows: usize,
    panels: Panels<'_>,
    b: &[u32],
    sums: &mut [f32],
    acc: &mut [f32],
) {
    match (S::LANES, rows) {
        (16, 4) => sum::<S, 4, 4>(s, panels, b, sums, acc),
        (16, 5) => sum::<S, 5, 4>(s, panels, b, sums, acc),
        (16, _) => sum::<S, 6, 4>(s, panels, b, sums, acc),
        (8, _) => sum::<S, 6, 2>(s, panels, b, sums, acc),
        (_, _) => sum::<S, 4, 2>(s, panels, b, sums, acc),
    }
}

/// A microtile of `MR` rows and `NV` registers.
pub(super) type Tile<S, const MR: usize, const NV: usize> = [[<S as Simd>::F32; NV]; MR];

#[inline(always)]
pub(super) fn load<S: Simd, const MR: usize, const NV: usize>(s: S, from: &[f32]) -> Tile<S, MR, NV> {
    let mut tile = [[s.splat(0.0); NV]; MR];
    let from = &from[..MR * NV * S::LANES];
    for i in 0..MR {
        for v in 0..NV {
            tile[i][v] = s.load(&from[(i * NV + v) * S::LANES..]);
        }
    }
    tile
}

#[inline(always)]
pub(super) fn store<S: Simd, const MR: usize, const NV: usize>(s: S, tile: Tile<S, MR, NV>, to: &mut [f32]) {
    let to = &mut to[..MR * NV * S::LANES];
    for i in 0..MR {
        for v in 0..NV {
            s.store(tile[i][v], &mut to[(i * NV + v) * S::LANES..]);
        }
    }
}

#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
fn sum<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    panels: Panels<'_>,
    mut b: &[u32],
    sums: &mut [f32],
    acc: &mut [f32],
) {
    let a: &[[u32; STEPS]; MR] = panels.a.first_chunk().expect("the rows of a microtile are packed");
    let mut step = 0;
    let mut fresh = panels.fresh;
    for (i, segment) in panels.segments.iter().enumerate() {
        let b_steps;
        (b_steps, b) = b.split_at(segment.steps * NV * S::LANES);
        let mut tile = [[s.splat(0.0); NV]; MR];
        // Of a bare chain, whose segments never start, `sums` are all there is.
        let nothing_yet = segment.starts || (fresh && acc.is_empty());
        if !nothing_yet {
            tile = load(s, sums);
        }
        for (b, step) in b_steps.chunks_exact(NV * S::LANES).zip(step..STEPS) {
            let mut columns = [s.splat(0.0); NV];
            for v in 0..NV {
                columns[v] = s.float(s.load_u32(&b[v * S::LANES..]));
            }
            for i in 0..MR {
                let row = s.splat(f32::from_bits(a[i][step]));
                for v in 0..NV {
                    tile[i][v] = s.step(row, columns[v], tile[i][v]);
                }
            }
        }
        step += segment.steps;
        if segment.ends {
            let (scales_a, scales_b) =
                (&panels.scales_a[i * panels.strides.0..], &panels.scales_b[i * panels.strides.1..]);
            promote(s, panels, scales_a, scales_b, tile, fresh, acc);
            fresh = false;
        } else {
            store(s, tile, sums);
            fresh &= !acc.is_empty();
        }
    }
}

/// [`Promotion::promote`], a register at a time. The choice is made once a tile: inside the loops it would keep them
/// from being unrolled, and sums would live in memory, stored at every step of K.
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
pub(super) fn promote<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    panels: Panels<'_>,
    scales_a: &[f32],
    scales_b: &[f32],
    tile: Tile<S, MR, NV>,
    fresh: bool,
    acc: &mut [f32],
) {
    let (rows, scales_b) = (&scales_a[..MR], &scales_b[..NV * S::LANES]);
    let acc = &mut acc[..MR * NV * S::LANES];
    // A macro and no closure: one that is not inlined runs without the instruction set.
    macro_rules! each {
        ($promotion:expr, $v:ident => $column:expr) => {
            for i in 0..MR {
                let row = s.splat(rows[i]);
                for $v in 0..NV {
                    let acc = &mut acc[(i * NV + $v) * S::LANES..][..S::LANES];
                    let before = if fresh { s.splat(0.0) } else { s.load(acc) };
                    s.store(promoted(s, $promotion, row, $column, tile[i][$v], before), acc);
                }
            }
        };
    }
    let one = s.splat(scales_b[0]);
    match panels.promotion {
        Promotion::ScalesFirst if panels.one_column_scale => each!(Promotion::ScalesFirst, _v => one),
        Promotion::ScalesFirst => each!(Promotion::ScalesFirst, v => s.load(&scales_b[v * S::LANES..])),
        Promotion::PartialFirst => each!(Promotion::PartialFirst, v => s.load(&scales_b[v * S::LANES..])),
        Promotion::Unfused => each!(Promotion::Unfused, v => s.load(&scales_b[v * S::LANES..])),
    }
}

/// [`Promotion::promote`] of a register.
#[inline(always)]
pub(super) fn promoted<S: Simd>(
    s: S,
    promotion: Promotion,
    scale_a: S::F32,
    scale_b: S::F32,
    partial: S::F32,
    before: S::F32,
) -> S::F32 {
    match promotion {
        Promotion::ScalesFirst => s.mul_add(s.mul(scale_a, scale_b), partial, before),
        Promotion::PartialFirst => s.mul_add(s.mul(partial, scale_a), scale_b, before),
        Promotion::Unfused => s.add(before, s.mul(s.mul(partial, scale_a), scale_b)),
    }
}
