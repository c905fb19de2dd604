//! The kernel for few rows whose lanes are columns, for chains that are not promoted and for what is left of K beside spans: it
//! decodes each weight once, in registers, on its way from memory to the sums.
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
    /// Bytes of a row from there.
    pub(super) left: usize,
    /// Bytes from a code to the one in its row that is asked for from memory.
    pub(super) ahead: usize,
}

/// [`super::tile::multiply`] for one of the [`shapes`], of `rows` rows.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the operands of a product")]
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
type Buffer<S> = [[<S as Simd>::U32; MAX_LANES]; SQUARES];

/// Squares of each group that are read together: where K is a power of two, all rows fall on the same sets of the caches,
/// and what is read of a line but not used at once is lost.
const ALONG: usize = 4;

/// The most registers side by side, times that.
const SQUARES: usize = 4 * ALONG;

/// What is multiplied, and what is read meanwhile.
pub(super) struct Squares<S: Simd> {
    buffers: [Buffer<S>; 2],
    /// Which of them is multiplied.
    now: usize,
    /// The element of K with which it begins, of the panel at hand.
    begins: Option<usize>,
}

impl<S: Simd> Squares<S> {
    #[inline(always)]
    pub(super) fn new(s: S) -> Squares<S> {
        let buffer = [[s.splat_u32(0); MAX_LANES]; SQUARES];
        Squares { buffers: [buffer; 2], now: 0, begins: None }
    }

    /// What is multiplied, and what is read.
    #[inline(always)]
    fn both(&mut self) -> (&mut Buffer<S>, &mut Buffer<S>) {
        let [first, second] = &mut self.buffers;
        if self.now == 0 { (first, second) } else { (second, first) }
    }

    /// Forgets what was read of another panel.
    pub(super) fn forget(&mut self) {
        self.begins = None;
    }
}

#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
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
    let (square, bytes) = (D::CODES * S::LANES, 4 * S::LANES);
    let last = panels.segments.last().map_or(first, |x| x.k.end);
    // Whether squares lie in one segment each and exist whole, so that they can be read together and in advance.
    let whole = codes.rows == NV * S::LANES
        && last - first == ALONG * square
        && panels.segments.iter().all(|x| x.k.len().is_multiple_of(square));
    let more = whole && codes.left >= 2 * ALONG * bytes;
    if whole && squares.begins != Some(first) {
        for unit in 0..NV * ALONG {
            codes.read_whole::<S>(s, unit, 0, squares.both().0);
        }
    }
    for (i, segment) in panels.segments.iter().enumerate() {
        let mut tile = [[s.splat(0.0); NV]; MR];
        if !(segment.starts || (fresh && acc.is_empty())) {
            tile = load(s, sums);
        }
        for k in segment.k.clone().step_by(square) {
            let at = Position { step, square: if whole { (k - first) / square } else { 0 } };
            // Thrice, for the compiler to know the steps of a whole square, and whether more is read.
            if more {
                let (now, next) = squares.both();
                add::<S, D, MR, NV>(s, decoder, now, a, at, square / S::PAIR, Some((codes, next)), &mut tile);
            } else if whole {
                add::<S, D, MR, NV>(s, decoder, squares.both().0, a, at, square / S::PAIR, None, &mut tile);
            } else {
                let used = square.min(segment.k.end - k);
                codes.read_part::<S, NV>(
                    s,
                    (k - first) * 4 / D::CODES,
                    used * 4 / D::CODES,
                    squares.both().0,
                );
                add::<S, D, MR, NV>(
                    s,
                    decoder,
                    squares.both().0,
                    a,
                    at,
                    used.div_ceil(S::PAIR),
                    None,
                    &mut tile,
                );
            }
            step += square.min(segment.k.end - k).div_ceil(S::PAIR);
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
    squares.begins = None;
    if more {
        squares.now = 1 - squares.now;
        squares.begins = Some(last);
    }
}

/// Where in a block the kernel is.
#[derive(Clone, Copy)]
struct Position {
    step: usize,
    square: usize,
}

/// Adds `steps` steps of a square of each group, times A. Meanwhile as many squares of the next block are read, each
/// between a few registers, so that the loads have time; and the codes after those are asked for.
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
#[allow(clippy::too_many_arguments, reason = "the loop body of the kernel")]
fn add<S: Simd, D: Decode, const MR: usize, const NV: usize>(
    s: S,
    decoder: &D,
    squares: &Buffer<S>,
    a: &[[u32; STEPS]; MR],
    at: Position,
    steps: usize,
    mut next: Option<(Codes<'_>, &mut Buffer<S>)>,
    tile: &mut Tile<S, MR, NV>,
) {
    let each = D::CODES / S::PAIR;
    let (mut sums, tables) = (*tile, decoder.tables(s));
    assert!(at.step + steps <= STEPS && at.square < ALONG);
    let mut ahead = next.as_ref().map_or(0, |(codes, _)| codes.ahead + 4 * S::LANES * at.square);
    for unit in 0..NV {
        if let Some((codes, next)) = &mut next {
            codes.read_whole::<S>(s, at.square * NV + unit, ALONG * 4 * S::LANES, next);
        }
        for i in unit * S::LANES / NV..(unit + 1) * S::LANES / NV {
            for v in 0..NV {
                if let Some((codes, _)) = &next {
                    s.prefetch(codes.data, ahead);
                    ahead += codes.stride;
                }
                let values = decoder.lanes(s, &tables, squares[v * ALONG + at.square][i]);
                for j in 0..each {
                    if i * each + j < steps {
                        for r in 0..MR {
                            let row = s.splat(f32::from_bits(a[r][at.step + i * each + j]));
                            sums[r][v] = s.step(row, values[j], sums[r][v]);
                        }
                    }
                }
            }
        }
    }
    *tile = sums;
}

impl Codes<'_> {
    /// Transposes a whole square: number `unit` of those from byte `from` on.
    #[inline(always)]
    fn read_whole<S: Simd>(&self, s: S, unit: usize, from: usize, squares: &mut Buffer<S>) {
        let from = from + unit % ALONG * 4 * S::LANES + unit / ALONG * S::LANES * self.stride;
        s.load_transposed(&self.data[from..], self.stride, &mut squares[unit]);
    }

    /// Transposes the first square of each group, of which `used` bytes of each row from byte `from` on exist.
    #[inline(always)]
    fn read_part<S: Simd, const NV: usize>(&self, s: S, from: usize, used: usize, squares: &mut Buffer<S>) {
        for v in 0..NV {
            let staged = self.stage::<S>(v, from, used);
            s.load_transposed(&staged, 4 * S::LANES, &mut squares[v * ALONG]);
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
