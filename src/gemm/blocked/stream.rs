//! The kernel for few rows: it decodes each weight once, in registers, on its way from memory to the sums.
//!
//! A panel is NV · LANES rows of B; all of K is summed before the next. For each of the NV groups of rows a square of
//! codes (a register of each row) is transposed, then register after register is decoded and multiplied with the MR rows
//! of A at once: decoding goes on beside the multiplications, and NV · MR sums are under way.

use super::tile::{Panels, STEPS, Tile, load, promote, store};
use crate::simd::{Decode, Simd};

/// Most lanes of any instruction set.
const MAX_LANES: usize = 16;

/// Rows that the kernel takes at once, and for each the registers side by side.
pub(super) const fn shapes<S: Simd>() -> &'static [(usize, usize)] {
    match S::REGISTERS {
        32 => &[(1, 4), (2, 4), (3, 4), (4, 4), (6, 2), (8, 2), (12, 1), (16, 1)],
        _ => &[(1, 4), (2, 4), (3, 2), (4, 2), (6, 1), (8, 1)],
    }
}

/// A panel of B as it lies in memory, over a block of K.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    /// From the panel's first row and the block's first element.
    pub(super) data: &'a [u8],
    /// Bytes from row to row.
    pub(super) stride: usize,
    /// Rows that exist.
    pub(super) rows: usize,
    /// Bytes from a code to the one in its row that is asked for from memory.
    pub(super) ahead: usize,
}

/// [`super::tile::multiply`] for one of the [`shapes`], of `rows` rows.
#[inline(always)]
pub(super) fn multiply<S: Simd, D: Decode>(
    s: S,
    decoder: &D,
    rows: usize,
    panels: Panels<'_>,
    codes: Codes<'_>,
    squares: &mut Squares<S>,
    sums: &mut [f32],
    acc: &mut [f32],
) {
    match (S::REGISTERS, rows) {
        (32, 1) => sum::<S, D, 1, 4>(s, decoder, panels, codes, squares, sums, acc),
        (32, 2) => sum::<S, D, 2, 4>(s, decoder, panels, codes, squares, sums, acc),
        (32, 3) => sum::<S, D, 3, 4>(s, decoder, panels, codes, squares, sums, acc),
        (32, 4) => sum::<S, D, 4, 4>(s, decoder, panels, codes, squares, sums, acc),
        (32, 6) => sum::<S, D, 6, 2>(s, decoder, panels, codes, squares, sums, acc),
        (32, 8) => sum::<S, D, 8, 2>(s, decoder, panels, codes, squares, sums, acc),
        (32, 12) => sum::<S, D, 12, 1>(s, decoder, panels, codes, squares, sums, acc),
        (32, _) => sum::<S, D, 16, 1>(s, decoder, panels, codes, squares, sums, acc),
        (_, 1) => sum::<S, D, 1, 4>(s, decoder, panels, codes, squares, sums, acc),
        (_, 2) => sum::<S, D, 2, 4>(s, decoder, panels, codes, squares, sums, acc),
        (_, 3) => sum::<S, D, 3, 2>(s, decoder, panels, codes, squares, sums, acc),
        (_, 4) => sum::<S, D, 4, 2>(s, decoder, panels, codes, squares, sums, acc),
        (_, 6) => sum::<S, D, 6, 1>(s, decoder, panels, codes, squares, sums, acc),
        (_, _) => sum::<S, D, 8, 1>(s, decoder, panels, codes, squares, sums, acc),
    }
}

/// Squares of codes, transposed: lane i of a register has codes of the group's row i. Group after group, along K in each.
pub(super) struct Squares<S: Simd>([[S::U32; MAX_LANES]; SQUARES]);

/// Squares that are transposed together. Longer pieces of a row are read at once where more rows would fall on the same
/// sets of the first-level cache, as they do where K is a power of two.
const SQUARES: usize = 16;

impl<S: Simd> Squares<S> {
    #[inline(always)]
    pub(super) fn new(s: S) -> Squares<S> {
        Squares([[s.splat_u32(0); MAX_LANES]; SQUARES])
    }
}

#[inline(always)]
fn sum<S: Simd, D: Decode, const MR: usize, const NV: usize>(
    s: S,
    decoder: &D,
    panels: Panels<'_>,
    codes: Codes<'_>,
    squares: &mut Squares<S>,
    sums: &mut [f32],
    acc: &mut [f32],
) {
    let a: &[[u32; STEPS]; MR] = panels.a.first_chunk().expect("the rows of a microtile are packed");
    let (first, mut step) = (panels.segments[0].k.start, 0);
    let mut fresh = panels.fresh;
    let square = D::CODES * S::LANES;
    let last = panels.segments.last().map_or(first, |x| x.k.end);
    // Whether squares lie in one segment each and exist whole, so that those of several segments can be read together.
    let whole =
        panels.segments.iter().all(|x| x.k.len().is_multiple_of(square)) && codes.rows == NV * S::LANES;
    let mut read = first..first;
    for (i, segment) in panels.segments.iter().enumerate() {
        let mut tile = [[s.splat(0.0); NV]; MR];
        if !(segment.starts || (fresh && acc.is_empty())) {
            tile = load(s, sums);
        }
        for k in segment.k.clone().step_by(square) {
            let used = square.min(segment.k.end - k);
            if k >= read.end {
                let end = if whole { last.min(k + square * (SQUARES / NV)) } else { k + used };
                read = k..end;
                codes.read::<S, NV>(s, (k - first) * 4 / D::CODES, (end - k) * 4 / D::CODES, squares);
            }
            let (c, ahead) = ((k - read.start) / square, (k - first) * 4 / D::CODES + codes.ahead);
            // Twice, for the compiler to know the steps of a whole square.
            if used == square {
                let steps = square / S::PAIR;
                add::<S, D, MR, NV>(s, decoder, squares, c, a, step, steps, (codes, ahead), &mut tile);
                step += steps;
            } else {
                let steps = used.div_ceil(S::PAIR);
                add::<S, D, MR, NV>(s, decoder, squares, c, a, step, steps, (codes, ahead), &mut tile);
                step += steps;
            }
        }
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

/// Adds `steps` steps of square `c` of each group, times A from `step` on, and asks for codes further on.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the loop body of the kernel")]
fn add<S: Simd, D: Decode, const MR: usize, const NV: usize>(
    s: S,
    decoder: &D,
    Squares(squares): &Squares<S>,
    c: usize,
    a: &[[u32; STEPS]; MR],
    step: usize,
    steps: usize,
    (codes, ahead): (Codes<'_>, usize),
    tile: &mut Tile<S, MR, NV>,
) {
    let each = D::CODES / S::PAIR;
    let mut sums = *tile;
    assert!(step + steps <= STEPS && c < SQUARES / NV);
    for i in 0..S::LANES {
        for v in 0..NV {
            s.prefetch(codes.data, ahead + (v * S::LANES + i) * codes.stride);
            let values = decoder.lanes(s, squares[v * (SQUARES / NV) + c][i]);
            for j in 0..each {
                if i * each + j < steps {
                    for r in 0..MR {
                        let row = s.splat(f32::from_bits(a[r][step + i * each + j]));
                        sums[r][v] = s.step(row, values[j], sums[r][v]);
                    }
                }
            }
        }
    }
    *tile = sums;
}

impl Codes<'_> {
    /// Transposes `bytes` of each row from byte `from`: whole squares, or part of one.
    #[inline(always)]
    fn read<S: Simd, const NV: usize>(&self, s: S, from: usize, bytes: usize, squares: &mut Squares<S>) {
        let square = 4 * S::LANES;
        for (v, squares) in squares.0.chunks_exact_mut(SQUARES / NV).enumerate() {
            for (c, registers) in squares[..bytes.div_ceil(square)].iter_mut().enumerate() {
                let from = from + c * square;
                if bytes.is_multiple_of(square) && self.rows == NV * S::LANES {
                    s.load_transposed(
                        &self.data[from + v * S::LANES * self.stride..],
                        self.stride,
                        registers,
                    );
                } else {
                    s.load_transposed(&self.stage::<S>(v, from, bytes), square, registers);
                }
            }
        }
    }

    /// The square of group `v` at the edge, copied; what does not exist is +0.
    #[inline(never)]
    fn stage<S: Simd>(&self, v: usize, from: usize, used: usize) -> [u8; 4 * MAX_LANES * MAX_LANES] {
        let mut staged = [0; 4 * MAX_LANES * MAX_LANES];
        let rows = self.rows.saturating_sub(v * S::LANES).min(S::LANES);
        for (i, to) in staged.chunks_exact_mut(4 * S::LANES).take(rows).enumerate() {
            let row = &self.data[from + (v * S::LANES + i) * self.stride..];
            to[..used].copy_from_slice(&row[..used]);
        }
        staged
    }
}
