//! The kernel for some rows: a register holds four promotion intervals each of some rows of B.
//!
//! As in [`super::spans`], what is read together lies together, here four intervals of a row. A needs 16 bytes a step, which
//! are loaded into every four lanes: a span of A stays in the first-level cache however many rows it has.
//!
//! ```text
//!   bundle b       │ row b: i0 i1 i2 i3 │ row 4 + b: i0 i1 i2 i3 │ …      lanes of a register; four bundles are LANES rows
//!   A, a step      │        i0 i1 i2 i3 │            i0 i1 i2 i3 │ …
//! ```
//!
//! The bundles are decoded into a panel that stays in the first-level cache too, while the one before is multiplied: the dot
//! products leave room for the permutations and loads of it.

use std::ops::Range;

use super::super::accumulation::Promotion;
use super::super::buffer::Buffer;
use super::spans::{Codes, Rule};
use super::tile::promoted;
use crate::simd::{Convert, Decode, Layout, Simd, Strings, Work};

/// Intervals of a span.
pub(super) const INTERVALS: usize = 4;

/// Bundles that make LANES rows.
const BUNDLES: usize = 4;

/// Most rows of a microtile: with its sums the 32 registers hold what decoding needs.
const ROWS: usize = 4;

/// The decoded panel that is multiplied, and the next.
#[derive(Default)]
pub(super) struct Decoded {
    now: Buffer,
    next: Buffer,
    /// Whether the codes of the next product were decoded with this one.
    ready: bool,
}

impl Decoded {
    /// Room for `steps` steps; nothing is decoded.
    pub(super) fn reset<S: Simd>(&mut self, steps: usize) {
        self.now.reserve(panel_len::<S>(steps));
        self.next.reserve(panel_len::<S>(steps));
        self.ready = false;
    }
}

/// Elements of a panel, of `steps` steps.
fn panel_len<S: Simd>(steps: usize) -> usize {
    BUNDLES * steps * S::LANES
}

/// Adds LANES columns of a span to the promoted sums of `rows` rows.
///
/// `a` holds, for each of the [`tiles`], four elements of each row a step, step after step. `acc` has a register a row,
/// `width` elements apart. `next` are the codes that are multiplied next, decoded meanwhile.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the operands of a product")]
pub(super) fn multiply<S: Simd, D: Decode>(
    s: S,
    decoder: &D,
    rows: usize,
    rule: Rule<'_>,
    a: &[u32],
    codes: Codes<'_>,
    next: Option<Codes<'_>>,
    decoded: &mut Decoded,
    acc: (&mut [f32], usize),
) {
    let pieces = codes.interval / Strings::PIECE;
    let len = panel_len::<S>(pieces * piece_steps::<S, D>());
    let Decoded { now, next: after, ready } = decoded;
    if !*ready {
        let (tables, panel) = (decoder.tables(s), &mut now.as_mut_slice()[..len]);
        for b in 0..BUNDLES {
            let strings = codes.bundle::<S>(b);
            for (i, panel) in panel.chunks_exact_mut(len / pieces).enumerate() {
                let registers = load(s, &strings, codes.next, i);
                for (&codes, panel) in registers.iter().zip(panel.chunks_exact_mut(len / pieces / 4)) {
                    decode(s, decoder, &tables, codes, panel, b);
                }
            }
        }
    }
    let mut operands = Operands {
        decoder,
        rule,
        rows,
        a,
        panel: &now.as_slice()[..len],
        acc,
        each: D::CODES / S::PAIR,
        codes: next.unwrap_or(codes),
        next: &mut after.as_mut_slice()[..len],
    };
    let tiles = tiles(rows).len();
    for (tile, of_tile) in self::tiles(rows).enumerate() {
        // The first tiles decode the bundles.
        let bundles = (tile..BUNDLES).step_by(tiles).len();
        let (place, bundles) = ((of_tile.start, tile, tiles), if next.is_some() { bundles } else { 0 });
        match (of_tile.len(), bundles) {
            (..=2, _) => operands.tile::<S, 2>(s, place, bundles),
            (3, _) => operands.tile::<S, 3>(s, place, bundles),
            (_, _) => operands.tile::<S, ROWS>(s, place, bundles),
        }
    }
    *ready = next.is_some();
    if *ready {
        std::mem::swap(now, after);
    }
}

/// Cuts rows into microtiles.
pub(super) fn tiles(rows: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let tiles = rows.div_ceil(ROWS);
    (0..tiles).map(move |tile| tile * rows / tiles..(tile + 1) * rows / tiles)
}

/// Steps of a piece.
const fn piece_steps<S: Simd, D: Decode>() -> usize {
    4 * D::CODES / S::PAIR
}

/// Piece `i` of a bundle; what lies `next` bytes further is asked for.
#[inline(always)]
fn load<S: Simd>(s: S, strings: &Strings<'_>, next: usize, i: usize) -> [S::U32; 4] {
    for g in 0..S::LANES / 4 {
        // The four strings of a place lie together.
        s.prefetch(strings.data(), strings.place(g).wrapping_add(next + i * 4 * Strings::PIECE));
    }
    s.load_pieces(strings, i)
}

/// Decodes a register of bundle `b` to the steps at the start of a panel, where the bundles lie side by side.
#[inline(always)]
fn decode<S: Simd, D: Decode>(
    s: S,
    decoder: &D,
    tables: &D::Tables<S>,
    codes: S::U32,
    panel: &mut [u32],
    b: usize,
) {
    let values = decoder.lanes(s, tables, codes);
    let lanes = BUNDLES * S::LANES;
    let panel = &mut panel[..D::CODES / S::PAIR * lanes];
    for e in 0..D::CODES / S::PAIR {
        s.store_u32(s.bits(values[e]), &mut panel[e * lanes + b % BUNDLES * S::LANES..]);
    }
}

/// All rows, a decoded panel, and what becomes the next.
struct Operands<'x, D> {
    decoder: &'x D,
    rule: Rule<'x>,
    rows: usize,
    a: &'x [u32],
    panel: &'x [u32],
    acc: (&'x mut [f32], usize),
    /// Steps of a register of codes, as a number that the compiler does not know: it would unroll the loop and do all loads
    /// of several steps first, for which there are no registers.
    each: usize,
    /// The codes that are decoded to `next`.
    codes: Codes<'x>,
    next: &'x mut [u32],
}

/// The sums of a microtile.
type Tile<S, const MR: usize> = [[<S as Simd>::F32; BUNDLES]; MR];

impl<D: Decode> Operands<'_, D> {
    /// [`Sum`] of `MR` rows.
    #[inline(always)]
    fn tile<S: Simd, const MR: usize>(&mut self, s: S, place: (usize, usize, usize), bundles: usize) {
        match bundles {
            0 => s.vectorize(Sum::<D, MR, 0> { operands: self, place }),
            1 => s.vectorize(Sum::<D, MR, 1> { operands: self, place }),
            _ => s.vectorize(Sum::<D, MR, 2> { operands: self, place }),
        }
    }

    /// Promotes the sums of rows from row `first` on.
    #[allow(
        clippy::needless_range_loop,
        reason = "by reference the sums would live in memory in the loop before"
    )]
    #[cfg_attr(debug_assertions, inline(never))]
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn promote<S: Simd, const MR: usize>(
        &mut self,
        s: S,
        first: usize,
        promotion: Promotion,
        one_column_scale: bool,
        tile: Tile<S, MR>,
    ) {
        let rule = self.rule;
        let mut columns = [s.splat(0.0); INTERVALS];
        for (columns, scales) in columns.iter_mut().zip(rule.scales_b.chunks_exact(S::LANES)) {
            *columns = if one_column_scale { s.splat(scales[0]) } else { s.load(scales) };
        }
        let mut rows = [&rule.scales_a[..MR]; INTERVALS];
        for (i, rows) in rows.iter_mut().enumerate() {
            *rows = &rule.scales_a[i * self.rows + first..][..MR];
        }
        let accs = self.acc.0[first * self.acc.1..].chunks_mut(self.acc.1);
        for (m, acc) in accs.take(MR).enumerate() {
            let acc = &mut acc[..S::LANES];
            let mut sum = if rule.fresh { s.splat(0.0) } else { s.load(acc) };
            let bundles = [s.bits(tile[m][0]), s.bits(tile[m][1]), s.bits(tile[m][2]), s.bits(tile[m][3])];
            let partial = s.transpose_fours(bundles);
            for i in 0..INTERVALS {
                sum = promoted(s, promotion, s.splat(rows[i][m]), columns[i], s.float(partial[i]), sum);
            }
            s.store(sum, acc);
        }
    }
}

/// Multiplies the `MR` rows of a tile, of some tiles, from row `first` on and promotes their sums. Meanwhile bundles `tile` and
/// `tile + tiles` of the next panel are decoded, `NB` of them.
struct Sum<'o, 'x, D, const MR: usize, const NB: usize> {
    operands: &'o mut Operands<'x, D>,
    place: (usize, usize, usize),
}

impl<D: Decode, const MR: usize, const NB: usize> Work for Sum<'_, '_, D, MR, NB> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let Sum { operands, place: (first, tile, tiles) } = self;
        let Operands { rule, panel, decoder, .. } = *operands;
        let next = &mut *operands.next;
        let (lanes, row_len) = (BUNDLES * S::LANES, panel.len() / (BUNDLES * S::LANES) * INTERVALS);
        let a = &operands.a[first * row_len..][..MR * row_len];
        let codes = operands.codes;
        let mut bundles = [(tile, codes.bundle::<S>(tile)); NB];
        if NB == 2 {
            bundles[NB - 1] = (tile + tiles, codes.bundle::<S>(tile + tiles));
        }
        let each_unknown = operands.each;
        let tables = decoder.tables(s);
        let (each, steps) = (D::CODES / S::PAIR, 4 * D::CODES / S::PAIR);
        let mut sums = [[s.splat(0.0); BUNDLES]; MR];
        let mut registers = [s.splat_u32(0); 4];
        let pieces = panel.chunks_exact(steps * lanes).zip(a.chunks_exact(steps * MR * INTERVALS));
        for (i, (values, rows)) in pieces.enumerate() {
            let next = if NB == 0 { &mut [][..] } else { &mut next[i * steps * lanes..][..steps * lanes] };
            // A macro and no loop: it would not be unrolled, and the sums would live in memory.
            macro_rules! quarter {
                ($j:literal) => {
                    if $j * NB % 4 == 0 && NB > 0 {
                        registers = load(s, &bundles[$j * NB / 4].1, codes.next, i);
                    }
                    let values = &values[$j * each * lanes..][..each * lanes];
                    let rows = &rows[$j * each * MR * INTERVALS..][..each * MR * INTERVALS];
                    let by_step = values.chunks_exact(lanes).zip(rows.chunks_exact(MR * INTERVALS));
                    for (values, rows) in by_step.take(each_unknown) {
                        step::<S, MR>(s, values, rows, &mut sums);
                    }
                    if NB > 0 {
                        // Which of the bundles, and of its registers.
                        let (b, j) = (bundles[$j * NB / 4].0, $j * NB % 4);
                        decode(s, decoder, &tables, registers[j], &mut next[j * each * lanes..], b);
                        if NB == 2 {
                            let next = &mut next[(j + 1) * each * lanes..];
                            decode(s, decoder, &tables, registers[j + 1], next, b);
                        }
                    }
                };
            }
            quarter!(0);
            quarter!(1);
            quarter!(2);
            quarter!(3);
        }
        // The choice is made once a tile.
        match (rule.promotion, rule.one_column_scale) {
            (Promotion::ScalesFirst, true) => operands.promote(s, first, Promotion::ScalesFirst, true, sums),
            (promotion, _) => operands.promote(s, first, promotion, false, sums),
        }
    }
}

/// A step of a microtile.
#[inline(always)]
fn step<S: Simd, const MR: usize>(s: S, values: &[u32], rows: &[u32], sums: &mut Tile<S, MR>) {
    let b0 = s.float(s.load_u32(values));
    let b1 = s.float(s.load_u32(&values[S::LANES..]));
    let b2 = s.float(s.load_u32(&values[2 * S::LANES..]));
    let b3 = s.float(s.load_u32(&values[3 * S::LANES..]));
    // Literal indices and no loop: the sums would live in memory.
    macro_rules! row {
        ($m:literal) => {
            if $m < MR {
                let row = s.load_fours(bytemuck::cast_slice(&rows[$m * INTERVALS..]));
                let [s0, s1, s2, s3] = sums[$m];
                sums[$m] =
                    [s.step(row, b0, s0), s.step(row, b1, s1), s.step(row, b2, s2), s.step(row, b3, s3)];
            }
        };
    }
    row!(0);
    row!(1);
    row!(2);
    row!(3);
}

impl<'a> Codes<'a> {
    /// Four intervals of the rows b, 4 + b, … Rows beyond the last are the last again: what becomes of them is not stored.
    #[inline(always)]
    fn bundle<S: Simd>(&self, b: usize) -> Strings<'a> {
        let row = |row: usize| row.min(self.rows - 1) * self.stride;
        let mut offsets = [0; 4];
        for (g, offset) in offsets.iter_mut().take(S::LANES / 4).enumerate() {
            *offset = row(4 * g + b) - row(b);
        }
        Strings::new(self.data, row(b), Layout::new(offsets, self.interval, self.interval / Strings::PIECE))
    }
}
