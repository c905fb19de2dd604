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
//! The bundles are decoded into a panel that stays in the first-level cache too, and multiplied from there.

use super::super::accumulation::Promotion;
use super::super::buffer::Buffer;
use super::spans::{Codes, Rule};
use super::tile::promoted;
use crate::simd::{Decode, Layout, Simd, Strings};

/// Intervals of a span.
pub(super) const INTERVALS: usize = 4;

/// Bundles that make LANES rows.
const BUNDLES: usize = 4;

/// Most rows of a microtile.
const ROWS: usize = 6;

/// Elements of a panel, of `steps` steps.
pub(super) fn panel_len<S: Simd>(steps: usize) -> usize {
    BUNDLES * steps * S::LANES
}

/// Adds LANES columns of a span to the promoted sums of `rows` rows.
///
/// `a` holds four elements a step of each row. `acc` has a register a row, `width` elements apart; `panel` is room for
/// the decoded bundles.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the operands of a product")]
pub(super) fn multiply<S: Simd, D: Decode>(
    s: S,
    decoder: &D,
    rows: usize,
    rule: Rule<'_>,
    a: &[u32],
    codes: Codes<'_>,
    panel: &mut Buffer,
    acc: (&mut [f32], usize),
) {
    let steps = codes.interval / Strings::PIECE * 4 * D::CODES / S::PAIR;
    let panel = &mut panel.as_mut_slice()[..panel_len::<S>(steps)];
    for b in 0..BUNDLES {
        if codes.interval == 128 {
            // The usual number, known to the compiler.
            unpack(s, decoder, Codes { interval: 128, ..codes }, b, panel);
        } else {
            unpack(s, decoder, codes, b, panel);
        }
    }
    let tiles = rows.div_ceil(ROWS);
    let mut operands = Operands { rule, rows, a, panel, acc };
    for tile in 0..tiles {
        let (first, last) = (tile * rows / tiles, (tile + 1) * rows / tiles);
        match last - first {
            ..=3 => operands.sum::<S, 3>(s, first),
            4 => operands.sum::<S, 4>(s, first),
            5 => operands.sum::<S, 5>(s, first),
            _ => operands.sum::<S, ROWS>(s, first),
        }
    }
}

/// Decodes bundle `b`: step after step, the bundles of a step side by side. Meanwhile the codes that come next are asked for.
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
fn unpack<S: Simd, D: Decode>(s: S, decoder: &D, codes: Codes<'_>, b: usize, panel: &mut [u32]) {
    let (each, tables, strings) = (D::CODES / S::PAIR, decoder.tables(s), codes.bundle::<S>(b));
    let step = BUNDLES * S::LANES;
    for (i, panel) in panel.chunks_exact_mut(4 * each * step).enumerate() {
        for g in 0..S::LANES / 4 {
            // The four strings of a place lie together.
            s.prefetch(strings.data(), strings.place(g).wrapping_add(codes.next + i * 4 * Strings::PIECE));
        }
        let registers = s.load_pieces(&strings, i);
        for j in 0..4 {
            let values = decoder.lanes(s, &tables, registers[j]);
            for e in 0..each {
                s.store_u32(s.bits(values[e]), &mut panel[(j * each + e) * step + b * S::LANES..]);
            }
        }
    }
}

/// All rows, and a decoded panel.
struct Operands<'x> {
    rule: Rule<'x>,
    rows: usize,
    a: &'x [u32],
    panel: &'x [u32],
    acc: (&'x mut [f32], usize),
}

impl Operands<'_> {
    /// Multiplies the `MR` rows from row `first` on and promotes their sums.
    #[cfg_attr(debug_assertions, inline(never))]
    #[cfg_attr(not(debug_assertions), inline(always))]
    fn sum<S: Simd, const MR: usize>(&mut self, s: S, first: usize) {
        let Operands { rule, panel, .. } = *self;
        let row_len = panel.len() / (BUNDLES * S::LANES) * INTERVALS;
        let mut rows = [&self.a[..0]; MR];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = &self.a[(first + m) * row_len..][..row_len];
        }
        let mut tile = [[s.splat(0.0); BUNDLES]; MR];
        for (step, values) in panel.chunks_exact(BUNDLES * S::LANES).enumerate() {
            let mut bundles = [s.splat(0.0); BUNDLES];
            for b in 0..BUNDLES {
                bundles[b] = s.float(s.load_u32(&values[b * S::LANES..]));
            }
            for m in 0..MR {
                let row = s.load_fours(bytemuck::cast_slice(&rows[m][step * INTERVALS..]));
                for b in 0..BUNDLES {
                    tile[m][b] = s.step(row, bundles[b], tile[m][b]);
                }
            }
        }
        // The choice is made once a tile.
        match (rule.promotion, rule.one_column_scale) {
            (Promotion::ScalesFirst, true) => self.promote(s, first, Promotion::ScalesFirst, true, tile),
            (promotion, _) => self.promote(s, first, promotion, false, tile),
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
        tile: [[S::F32; BUNDLES]; MR],
    ) {
        let rule = self.rule;
        let mut columns = [s.splat(0.0); INTERVALS];
        for (columns, scales) in columns.iter_mut().zip(rule.scales_b.chunks_exact(S::LANES)) {
            *columns = if one_column_scale { s.splat(scales[0]) } else { s.load(scales) };
        }
        for m in 0..MR {
            let acc = &mut self.acc.0[(first + m) * self.acc.1..][..S::LANES];
            let mut sum = if rule.fresh { s.splat(0.0) } else { s.load(acc) };
            let bundles = [s.bits(tile[m][0]), s.bits(tile[m][1]), s.bits(tile[m][2]), s.bits(tile[m][3])];
            let partial = s.transpose_fours(bundles);
            for i in 0..INTERVALS {
                let row = s.splat(rule.scales_a[i * self.rows + first + m]);
                sum = promoted(s, promotion, row, columns[i], s.float(partial[i]), sum);
            }
            s.store(sum, acc);
        }
    }
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
