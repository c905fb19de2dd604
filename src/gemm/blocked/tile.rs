//! The microkernel and what happens to its sums at the end of an interval.

use super::super::accumulation::Promotion;
use crate::simd::Simd;

/// Where the sums of a microtile start and end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Whether the interval begins here: sums start at +0, else at those stored.
    pub(super) starts: bool,
    /// Whether it ends here: sums are promoted, else stored.
    pub(super) ends: bool,
}

/// One microtile's operands: packed panels, and the scales of its rows and columns.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) a: &'a [u32],
    pub(super) b: &'a [u32],
    pub(super) scales_a: &'a [f32],
    pub(super) scales_b: &'a [f32],
}

/// Most rows of a microtile.
pub(super) const MAX_ROWS: usize = 6;

/// Registers side by side in a microtile of `rows` rows: with few rows more of them, so that enough sums are under way
/// to hide the latency of a step.
pub(super) const fn registers<S: Simd>(rows: usize) -> usize {
    match (S::TILE_REGISTERS, rows) {
        (2, 1) => 8,
        (2, 2) => 4,
        (registers, _) => registers,
    }
}

/// [`sum`] for a microtile of `rows` rows and [`registers`] registers.
#[inline(always)]
pub(super) fn multiply<S: Simd>(
    s: S,
    rows: usize,
    panels: Panels<'_>,
    span: Span,
    promotion: Promotion,
    sums: &mut [f32],
    acc: &mut [f32],
) {
    match (S::TILE_REGISTERS, rows) {
        (2, 1) => sum::<S, 1, 8>(s, panels, span, promotion, sums, acc),
        (2, 2) => sum::<S, 2, 4>(s, panels, span, promotion, sums, acc),
        (2, 3) => sum::<S, 3, 2>(s, panels, span, promotion, sums, acc),
        (2, 4) => sum::<S, 4, 2>(s, panels, span, promotion, sums, acc),
        (2, 5) => sum::<S, 5, 2>(s, panels, span, promotion, sums, acc),
        (2, _) => sum::<S, 6, 2>(s, panels, span, promotion, sums, acc),
        (_, 1) => sum::<S, 1, 4>(s, panels, span, promotion, sums, acc),
        (_, 2) => sum::<S, 2, 4>(s, panels, span, promotion, sums, acc),
        (_, 3) => sum::<S, 3, 4>(s, panels, span, promotion, sums, acc),
        (_, 4) => sum::<S, 4, 4>(s, panels, span, promotion, sums, acc),
        (_, 5) => sum::<S, 5, 4>(s, panels, span, promotion, sums, acc),
        (_, _) => sum::<S, 6, 4>(s, panels, span, promotion, sums, acc),
    }
}

/// Sums the steps of two panels over a microtile of `MR` rows and `NV` registers, from and into row-major memory.
///
/// `sums` holds partial sums between segments of one interval, `acc` the promoted ones.
#[inline(always)]
fn sum<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    panels: Panels<'_>,
    span: Span,
    promotion: Promotion,
    sums: &mut [f32],
    acc: &mut [f32],
) {
    let width = NV * S::LANES;
    let mut tile = [[s.splat(0.0); NV]; MR];
    if !span.starts {
        for i in 0..MR {
            for v in 0..NV {
                tile[i][v] = s.load(&sums[i * width + v * S::LANES..]);
            }
        }
    }
    for (a, b) in panels.a.chunks_exact(MR).zip(panels.b.chunks_exact(width)) {
        let mut columns = [s.splat(0.0); NV];
        for v in 0..NV {
            columns[v] = s.float(s.load_u32(&b[v * S::LANES..]));
        }
        for i in 0..MR {
            let row = s.splat(f32::from_bits(a[i]));
            for v in 0..NV {
                tile[i][v] = s.step(row, columns[v], tile[i][v]);
            }
        }
    }
    if span.ends {
        promote::<S, MR, NV>(s, &tile, panels, promotion, acc);
    } else {
        for i in 0..MR {
            for v in 0..NV {
                s.store(tile[i][v], &mut sums[i * width + v * S::LANES..]);
            }
        }
    }
}

/// [`Promotion::promote`], a register at a time. One choice for the whole tile: with it inside, the loops would not be
/// unrolled, and the tile would live in memory, stored at every step of K.
#[inline(always)]
fn promote<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    tile: &[[S::F32; NV]; MR],
    panels: Panels<'_>,
    promotion: Promotion,
    acc: &mut [f32],
) {
    match promotion {
        Promotion::ScalesFirst => each(s, tile, panels, acc, |sa, sb, partial, before| {
            s.mul_add(s.mul(sa, sb), partial, before)
        }),
        Promotion::PartialFirst => each(s, tile, panels, acc, |sa, sb, partial, before| {
            s.mul_add(s.mul(partial, sa), sb, before)
        }),
        Promotion::Unfused => each(s, tile, panels, acc, |sa, sb, partial, before| {
            s.add(before, s.mul(s.mul(partial, sa), sb))
        }),
    }
}

/// `after(scale of the row, scale of the column, partial, before)` of every register.
#[inline(always)]
fn each<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    tile: &[[S::F32; NV]; MR],
    panels: Panels<'_>,
    acc: &mut [f32],
    after: impl Fn(S::F32, S::F32, S::F32, S::F32) -> S::F32,
) {
    let width = NV * S::LANES;
    let mut columns = [s.splat(0.0); NV];
    for v in 0..NV {
        columns[v] = s.load(&panels.scales_b[v * S::LANES..]);
    }
    let (acc, rows) = (&mut acc[..MR * width], &panels.scales_a[..MR]);
    for i in 0..MR {
        let row = s.splat(rows[i]);
        for v in 0..NV {
            let acc = &mut acc[i * width + v * S::LANES..][..S::LANES];
            s.store(after(row, columns[v], tile[i][v], s.load(acc)), acc);
        }
    }
}
