//! The microkernel: a microtile of D over a block of K, its sums and their promotion in registers.

use std::ops::Range;

use super::super::accumulation::Promotion;
use crate::simd::Simd;

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

/// One microtile's operands over some segments of K: packed panels, and the scales of its rows and columns, those of a
/// segment after another.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) segments: &'a [Segment],
    pub(super) a: &'a [u32],
    pub(super) b: &'a [u32],
    pub(super) scales_a: &'a [f32],
    pub(super) scales_b: &'a [f32],
    /// Scales from segment to segment.
    pub(super) strides: (usize, usize),
    /// Whether a segment's columns share one scale.
    pub(super) one_column_scale: bool,
    pub(super) promotion: Promotion,
}

/// Rows that a microtile may have, and for each the registers side by side. As many sums as hide the latency of a step;
/// where there are 32 registers, promoted sums have room beside them.
pub(super) const fn shapes<S: Simd>() -> &'static [(usize, usize)] {
    match S::REGISTERS {
        32 => &[(1, 8), (2, 6), (3, 4), (4, 3), (6, 2)],
        _ => &[(1, 8), (2, 4), (3, 2), (4, 2), (5, 2), (6, 2)],
    }
}

/// Sums a microtile of one of the [`shapes`], of `rows` rows.
///
/// `sums` holds partial sums between segments of one interval, `acc` the promoted ones, both row-major. `acc` is empty
/// for a bare chain, which is never promoted.
#[inline(always)]
pub(super) fn multiply<S: Simd>(s: S, rows: usize, panels: Panels<'_>, sums: &mut [f32], acc: &mut [f32]) {
    match (S::REGISTERS, rows) {
        (32, 1) => sum::<S, 1, 8>(s, panels, sums, acc),
        (32, 2) => sum::<S, 2, 6>(s, panels, sums, acc),
        (32, 3) => sum::<S, 3, 4>(s, panels, sums, acc),
        (32, 4) => sum::<S, 4, 3>(s, panels, sums, acc),
        (32, _) => sum::<S, 6, 2>(s, panels, sums, acc),
        (_, 1) => sum::<S, 1, 8>(s, panels, sums, acc),
        (_, 2) => sum::<S, 2, 4>(s, panels, sums, acc),
        (_, 3) => sum::<S, 3, 2>(s, panels, sums, acc),
        (_, 4) => sum::<S, 4, 2>(s, panels, sums, acc),
        (_, 5) => sum::<S, 5, 2>(s, panels, sums, acc),
        (_, _) => sum::<S, 6, 2>(s, panels, sums, acc),
    }
}

/// A microtile of `MR` rows and `NV` registers.
type Tile<S, const MR: usize, const NV: usize> = [[<S as Simd>::F32; NV]; MR];

#[inline(always)]
fn load<S: Simd, const MR: usize, const NV: usize>(s: S, from: &[f32]) -> Tile<S, MR, NV> {
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
fn store<S: Simd, const MR: usize, const NV: usize>(s: S, tile: Tile<S, MR, NV>, to: &mut [f32]) {
    let to = &mut to[..MR * NV * S::LANES];
    for i in 0..MR {
        for v in 0..NV {
            s.store(tile[i][v], &mut to[(i * NV + v) * S::LANES..]);
        }
    }
}

#[inline(always)]
fn sum<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    panels: Panels<'_>,
    sums: &mut [f32],
    acc: &mut [f32],
) {
    let mut promoted = [[s.splat(0.0); NV]; MR];
    if !acc.is_empty() {
        promoted = load(s, acc);
    }
    let (mut a, mut b) = (panels.a, panels.b);
    for (i, segment) in panels.segments.iter().enumerate() {
        let (a_steps, b_steps);
        (a_steps, a) = a.split_at(segment.steps * MR);
        (b_steps, b) = b.split_at(segment.steps * NV * S::LANES);
        let mut tile = [[s.splat(0.0); NV]; MR];
        if !segment.starts {
            tile = load(s, sums);
        }
        for (a, b) in a_steps.chunks_exact(MR).zip(b_steps.chunks_exact(NV * S::LANES)) {
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
        if segment.ends {
            let (scales_a, scales_b) =
                (&panels.scales_a[i * panels.strides.0..], &panels.scales_b[i * panels.strides.1..]);
            promoted = promote(s, panels, scales_a, scales_b, tile, promoted);
        } else {
            store(s, tile, sums);
        }
    }
    if !acc.is_empty() {
        store(s, promoted, acc);
    }
}

/// [`Promotion::promote`], a register at a time. The choice is made once a tile: inside the loops it would keep them
/// from being unrolled, and sums would live in memory, stored at every step of K.
#[inline(always)]
fn promote<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    panels: Panels<'_>,
    scales_a: &[f32],
    scales_b: &[f32],
    tile: Tile<S, MR, NV>,
    mut acc: Tile<S, MR, NV>,
) -> Tile<S, MR, NV> {
    let (scales_a, scales_b) = (&scales_a[..MR], &scales_b[..NV * S::LANES]);
    let mut columns = [s.splat(0.0); NV];
    for v in 0..NV {
        columns[v] = s.load(&scales_b[v * S::LANES..]);
    }
    match panels.promotion {
        Promotion::ScalesFirst if panels.one_column_scale => {
            for i in 0..MR {
                let scale = s.splat(scales_a[i] * scales_b[0]);
                for v in 0..NV {
                    acc[i][v] = s.mul_add(scale, tile[i][v], acc[i][v]);
                }
            }
        }
        Promotion::ScalesFirst => {
            for i in 0..MR {
                let row = s.splat(scales_a[i]);
                for v in 0..NV {
                    acc[i][v] = s.mul_add(s.mul(row, columns[v]), tile[i][v], acc[i][v]);
                }
            }
        }
        Promotion::PartialFirst => {
            for i in 0..MR {
                let row = s.splat(scales_a[i]);
                for v in 0..NV {
                    acc[i][v] = s.mul_add(s.mul(tile[i][v], row), columns[v], acc[i][v]);
                }
            }
        }
        Promotion::Unfused => {
            for i in 0..MR {
                let row = s.splat(scales_a[i]);
                for v in 0..NV {
                    acc[i][v] = s.add(acc[i][v], s.mul(s.mul(tile[i][v], row), columns[v]));
                }
            }
        }
    }
    acc
}
