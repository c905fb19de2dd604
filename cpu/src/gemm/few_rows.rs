//! The kernel for some rows: a register holds four promotion intervals each of some rows of B.
//!
//! As in [`gemv`](super::gemv), what is read together lies together, here four intervals of a row. A needs 16 bytes a step,
//! which are loaded into every four lanes: packed A stays in the first-level cache however many rows it has.
//!
//! ```text
//!   register r     │ row r: i0 i1 i2 i3 │ row 4 + r: i0 i1 i2 i3 │ …      four registers are LANES rows
//!   A, a step      │        i0 i1 i2 i3 │            i0 i1 i2 i3 │ …
//! ```
//!
//! B is decoded into a panel that stays in the first-level cache too, while the one before is multiplied: the dot products
//! leave room for the permutations and loads of it.

use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

use super::promote::{Promotion, promote};
use super::side_by_side::{Accumulators, Columns, INTERVALS, SideBySide};
use crate::buffer::Buffer;
use crate::simd::{Convert, Decode, Decoder, Gather, Isa, Simd, Work};

/// Registers that make LANES rows of B.
const REGISTERS: usize = 4;

/// Most rows of a microtile: with its sums the 32 registers hold what decoding needs.
const ROWS: usize = 4;

/// The decoded panel that is multiplied, and the next.
#[derive(Debug, Default)]
pub struct DecodedPanels {
    now: Buffer,
    next: Buffer,
    /// Whether the codes of the next product were decoded with this one.
    ready: bool,
}

impl DecodedPanels {
    /// Forgets what was decoded.
    pub fn reset(&mut self) {
        self.ready = false;
    }
}

/// Cuts rows into microtiles, which are packed together.
pub fn row_tiles(rows: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let tiles = rows.div_ceil(ROWS);
    (0..tiles).map(move |tile| tile * rows / tiles..(tile + 1) * rows / tiles)
}

/// Adds LANES columns over four intervals to the accumulators of five rows or more.
///
/// A is packed with four intervals side by side, the rows of each of the [`row_tiles`] together. `next` is what is multiplied
/// next: it is decoded meanwhile, to `panels`.
///
/// # Panics
/// If the instruction set has not enough registers, or an operand is too short.
pub fn few_rows(
    isa: Isa,
    x: &SideBySide<'_>,
    next: Option<&Columns<'_>>,
    panels: &mut DecodedPanels,
    acc: &mut Accumulators<'_>,
) {
    assert!(isa.geometry().few_rows && x.intervals == INTERVALS, "{isa}, {} intervals", x.intervals);
    match x.decoder {
        Decoder::Bytes(decoder) => isa.run(FewRows { decoder, x, next, panels, acc }),
        Decoder::Words(decoder) => isa.run(FewRows { decoder, x, next, panels, acc }),
    }
}

struct FewRows<'x, 'acc, D> {
    decoder: &'x D,
    x: &'x SideBySide<'x>,
    next: Option<&'x Columns<'x>>,
    panels: &'x mut DecodedPanels,
    acc: &'x mut Accumulators<'acc>,
}

impl<D: Decode> Work for FewRows<'_, '_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        if const { S::GEOMETRY.few_rows } {
            self.multiply(s);
        }
    }
}

impl<D: Decode> FewRows<'_, '_, D> {
    #[inline(always)]
    fn multiply<S: Simd>(self, s: S) {
        let FewRows { decoder, x, next, panels, acc } = self;
        let steps = x.b.interval / Gather::CHUNK * (4 * D::CODES / S::PAIR);
        let len = REGISTERS * steps * S::LANES;
        let DecodedPanels { now, next: after, ready } = panels;
        now.reserve(len);
        after.reserve(len);
        if !*ready {
            s.vectorize(DecodePanel { decoder, b: &x.b, panel: &mut now.as_mut_slice()[..len] });
        }
        let mut operands = Operands {
            decoder,
            x,
            first: 0,
            panel: &now.as_slice()[..len],
            acc,
            each: D::CODES / S::PAIR,
            b: next.unwrap_or(&x.b),
            next: &mut after.as_mut_slice()[..len],
            tile: 0,
            tiles: row_tiles(x.rows).len(),
        };
        for (tile, rows) in row_tiles(x.rows).enumerate() {
            (operands.tile, operands.first) = (tile, rows.start);
            // The first tiles decode the registers of the next panel.
            let registers = if next.is_some() { (tile..REGISTERS).step_by(operands.tiles).len() } else { 0 };
            match (rows.len(), registers) {
                (1 | 2, 0) => s.vectorize(Tile::<D, 2, 0>(&mut operands)),
                (1 | 2, 1) => s.vectorize(Tile::<D, 2, 1>(&mut operands)),
                (1 | 2, 2) => s.vectorize(Tile::<D, 2, 2>(&mut operands)),
                (3, 0) => s.vectorize(Tile::<D, 3, 0>(&mut operands)),
                (3, 1) => s.vectorize(Tile::<D, 3, 1>(&mut operands)),
                (3, 2) => s.vectorize(Tile::<D, 3, 2>(&mut operands)),
                (4, 0) => s.vectorize(Tile::<D, 4, 0>(&mut operands)),
                (4, 1) => s.vectorize(Tile::<D, 4, 1>(&mut operands)),
                (4, 2) => s.vectorize(Tile::<D, 4, 2>(&mut operands)),
                (rows, registers) => panic!("{registers} registers beside a microtile of {rows} rows"),
            }
        }
        *ready = next.is_some();
        if *ready {
            std::mem::swap(now, after);
        }
    }
}

/// Decodes a panel by itself.
struct DecodePanel<'x, D> {
    decoder: &'x D,
    b: &'x Columns<'x>,
    panel: &'x mut [u32],
}

impl<D: Decode> Work for DecodePanel<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let (tables, chunks) = (self.decoder.tables(s), self.b.interval / Gather::CHUNK);
        let len = self.panel.len();
        for r in 0..REGISTERS {
            let gather = lanes::<S>(self.b, r);
            for (i, panel) in self.panel.chunks_exact_mut(len / chunks).enumerate() {
                let registers = load(s, &gather, self.b.next, i);
                for (&codes, panel) in registers.iter().zip(panel.chunks_exact_mut(len / chunks / 4)) {
                    decode(s, self.decoder, &tables, codes, panel, r);
                }
            }
        }
    }
}

/// Chunk `i` of a register; what lies `next` bytes further is asked for.
#[inline(always)]
fn load<S: Simd>(s: S, gather: &Gather<'_>, next: usize, i: usize) -> [S::U32; 4] {
    for g in 0..S::LANES / 4 {
        // The four runs of a place lie together.
        s.prefetch(gather.data(), gather.place(g).wrapping_add(next + i * 4 * Gather::CHUNK));
    }
    s.load_chunks(gather, i)
}

/// Decodes codes of register `r` to the steps at the start of a panel, where the registers lie side by side.
#[inline(always)]
fn decode<S: Simd, D: Decode>(
    s: S,
    decoder: &D,
    tables: &D::Tables<S>,
    codes: S::U32,
    panel: &mut [u32],
    r: usize,
) {
    let values = decoder.lanes(s, tables, codes);
    let lanes = REGISTERS * S::LANES;
    let panel = &mut panel[..D::CODES / S::PAIR * lanes];
    for e in 0..D::CODES / S::PAIR {
        s.store_u32(s.bits(values[e]), &mut panel[e * lanes + r % REGISTERS * S::LANES..]);
    }
}

/// Four intervals of the rows r, 4 + r, … Rows beyond the last are the last again: what becomes of them is not stored.
#[inline(always)]
fn lanes<'a, S: Simd>(b: &Columns<'a>, r: usize) -> Gather<'a> {
    let mut offsets = [0; 4];
    for (g, offset) in offsets.iter_mut().take(S::LANES / 4).enumerate() {
        *offset = b.row(4 * g + r) - b.row(r);
    }
    Gather::new(b.data, b.row(r), offsets, b.interval, b.interval / Gather::CHUNK)
}

/// A microtile of A, the decoded panel, and what becomes the next.
struct Operands<'x, 'acc, D> {
    decoder: &'x D,
    x: &'x SideBySide<'x>,
    /// The first row.
    first: usize,
    panel: &'x [u32],
    acc: &'x mut Accumulators<'acc>,
    /// Steps of a register of codes, as a number that the compiler does not know: it would unroll the loop and do all loads
    /// of several steps first, for which there are no registers.
    each: usize,
    /// What is decoded to `next`.
    b: &'x Columns<'x>,
    next: &'x mut [u32],
    /// Which of how many microtiles this is.
    tile: usize,
    tiles: usize,
}

/// The sums of a microtile.
type Sums<S, const MR: usize> = [[<S as Simd>::F32; REGISTERS]; MR];

/// Multiplies a microtile of `MR` rows and promotes its sums. Meanwhile registers `tile` and `tile + tiles` of the next panel
/// are decoded, `NB` of them.
struct Tile<'o, 'x, 'acc, D, const MR: usize, const NB: usize>(&'o mut Operands<'x, 'acc, D>);

impl<D: Decode, const MR: usize, const NB: usize> Work for Tile<'_, '_, '_, D, MR, NB> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        if const { S::GEOMETRY.few_rows } {
            self.sum(s);
        }
    }
}

impl<D: Decode, const MR: usize, const NB: usize> Tile<'_, '_, '_, D, MR, NB> {
    #[inline(always)]
    fn sum<S: Simd>(self, s: S) {
        let Operands { decoder, x, first, panel, each: each_unknown, b, tile, tiles, .. } = *self.0;
        let (next, acc) = (&mut *self.0.next, &mut *self.0.acc);
        let (lanes, row_len) = (REGISTERS * S::LANES, panel.len() / (REGISTERS * S::LANES) * INTERVALS);
        let a = &x.a[first * row_len..][..MR * row_len];
        let mut gathers = [(tile, self::lanes::<S>(b, tile)); NB];
        if NB == 2 {
            gathers[NB - 1] = (tile + tiles, self::lanes::<S>(b, tile + tiles));
        }
        let tables = decoder.tables(s);
        let (each, steps) = (D::CODES / S::PAIR, 4 * D::CODES / S::PAIR);
        let mut sums = [[s.splat(0.0); REGISTERS]; MR];
        let mut codes = [s.splat_u32(0); 4];
        let chunks = panel.chunks_exact(steps * lanes).zip(a.chunks_exact(steps * MR * INTERVALS));
        for (i, (values, rows)) in chunks.enumerate() {
            let next = if NB == 0 { &mut [][..] } else { &mut next[i * steps * lanes..][..steps * lanes] };
            // A macro and no loop: it would not be unrolled, and the sums would live in memory.
            macro_rules! quarter {
                ($j:literal) => {
                    if $j * NB % 4 == 0 && NB > 0 {
                        let (r, gather) = &gathers[$j * NB / 4];
                        codes = load(s, gather, b.next, i);
                        // Those that wait longest do so where they are decoded to, not in registers beside the sums.
                        if NB == 1 {
                            for j in 0..4 {
                                s.store_u32(codes[j], &mut next[j * each * lanes + r % REGISTERS * S::LANES..]);
                            }
                            compiler_fence(Ordering::SeqCst);
                        }
                    }
                    let values = &values[$j * each * lanes..][..each * lanes];
                    let rows = &rows[$j * each * MR * INTERVALS..][..each * MR * INTERVALS];
                    let by_step = values.chunks_exact(lanes).zip(rows.chunks_exact(MR * INTERVALS));
                    for (values, rows) in by_step.take(each_unknown) {
                        step::<S, MR>(s, values, rows, &mut sums);
                    }
                    if NB > 0 {
                        // Which register of B, and which of its registers of codes.
                        let (r, j) = (gathers[$j * NB / 4].0, $j * NB % 4);
                        for j in j..j + NB {
                            let next = &mut next[j * each * lanes..];
                            if NB == 1 {
                                codes[j] = s.load_u32(&next[r % REGISTERS * S::LANES..]);
                            }
                            decode(s, decoder, &tables, codes[j], next, r);
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
        match x.scales.promotion {
            Promotion::ScalesFirst => promote_tile(s, Promotion::ScalesFirst, x, first, &sums, acc),
            Promotion::PartialFirst => promote_tile(s, Promotion::PartialFirst, x, first, &sums, acc),
            Promotion::Unfused => promote_tile(s, Promotion::Unfused, x, first, &sums, acc),
        }
    }
}

/// A step of a microtile.
#[inline(always)]
fn step<S: Simd, const MR: usize>(s: S, values: &[u32], rows: &[u32], sums: &mut Sums<S, MR>) {
    let b0 = s.float(s.load_u32(values));
    let b1 = s.float(s.load_u32(&values[S::LANES..]));
    let b2 = s.float(s.load_u32(&values[2 * S::LANES..]));
    let b3 = s.float(s.load_u32(&values[3 * S::LANES..]));
    // Literal indices and no loop: the sums would live in memory.
    macro_rules! row {
        ($m:literal) => {
            if $m < MR {
                let row = s.broadcast_4(bytemuck::cast_slice(&rows[$m * INTERVALS..]));
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

/// Promotes the sums of a microtile from row `first` on, of all in `acc`.
#[allow(
    clippy::needless_range_loop,
    reason = "by reference the sums would live in memory in the loop before"
)]
#[inline(always)]
fn promote_tile<S: Simd, const MR: usize>(
    s: S,
    promotion: Promotion,
    x: &SideBySide<'_>,
    first: usize,
    sums: &Sums<S, MR>,
    acc: &mut Accumulators<'_>,
) {
    let mut columns = [s.splat(0.0); INTERVALS];
    for (columns, scales) in columns.iter_mut().zip(x.scales.b.chunks_exact(S::LANES)) {
        *columns = s.load(scales);
    }
    let mut rows = [&x.scales.a[..MR]; INTERVALS];
    for (i, rows) in rows.iter_mut().enumerate() {
        *rows = &x.scales.a[i * x.rows + first..][..MR];
    }
    for (m, acc) in acc.data[first * acc.stride..].chunks_mut(acc.stride).take(MR).enumerate() {
        let acc = &mut acc[..S::LANES];
        let mut sum = s.load(acc);
        let registers = [s.bits(sums[m][0]), s.bits(sums[m][1]), s.bits(sums[m][2]), s.bits(sums[m][3])];
        let partial = s.transpose_4x4(registers);
        for i in 0..INTERVALS {
            sum = promote(s, promotion, sum, s.float(partial[i]), s.splat(rows[i][m]), columns[i]);
        }
        s.store(sum, acc);
    }
}
