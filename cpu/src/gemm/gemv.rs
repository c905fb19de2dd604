//! The kernel for the fewest rows: a register holds a promotion interval of a row of B in each lane.
//!
//! ```text
//!   a row of B    │ interval 0 │ interval 1 │ interval 2 │ … │      as many as there are lanes
//!   a register       lane 0       lane 1       lane 2      …       16 bytes of each, transposed: four steps of codes
//! ```
//!
//! Half or a quarter as many intervals take as many rows at once. The partial sums of LANES rows are transposed, so that
//! lanes are rows again, and promoted interval after interval.

use std::sync::atomic::{Ordering, compiler_fence};

use super::LINE;
use super::promote::promote;
use super::side_by_side::{Accumulators, Columns, SideBySide};
use crate::simd::{Convert, Decode, Decoder, Gather, Isa, Simd, Work};

/// Adds LANES columns over some intervals to the accumulators of at most four rows.
///
/// There are as many intervals as lanes, half or a quarter; A is packed with LANES of them side by side, each row by itself.
///
/// # Panics
/// If there are more rows, or an operand is too short.
pub fn gemv(isa: Isa, x: &SideBySide<'_>, acc: &mut Accumulators<'_>) {
    match (x.decoder, x.rows) {
        (Decoder::Bytes(decoder), 1) => isa.run(Gemv::<_, 1> { x, decoder, acc }),
        (Decoder::Bytes(decoder), 2) => isa.run(Gemv::<_, 2> { x, decoder, acc }),
        (Decoder::Bytes(decoder), 3) => isa.run(Gemv::<_, 3> { x, decoder, acc }),
        (Decoder::Bytes(decoder), 4) => isa.run(Gemv::<_, 4> { x, decoder, acc }),
        (Decoder::Words(decoder), 1) => isa.run(Gemv::<_, 1> { x, decoder, acc }),
        (Decoder::Words(decoder), 2) => isa.run(Gemv::<_, 2> { x, decoder, acc }),
        (Decoder::Words(decoder), 3) => isa.run(Gemv::<_, 3> { x, decoder, acc }),
        (Decoder::Words(decoder), 4) => isa.run(Gemv::<_, 4> { x, decoder, acc }),
        (_, rows) => panic!("{rows} rows: there are one to four"),
    }
}

struct Gemv<'x, 'acc, D, const MR: usize> {
    x: &'x SideBySide<'x>,
    decoder: &'x D,
    acc: &'x mut Accumulators<'acc>,
}

/// Registers of B at once, whose sums are independent: four cover the latency of a dot product.
const REGISTERS: usize = 4;

impl<D: Decode, const MR: usize> Work for Gemv<'_, '_, D, MR> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let Gemv { x, decoder, acc } = self;
        let &SideBySide { intervals, ref b, ref scales, .. } = x;
        // Partial sums, those of a row of B side by side.
        let mut partial = [[0.0f32; LINE * LINE]; MR];
        let rows = REGISTERS * S::LANES / intervals;
        for first in (0..S::LANES).step_by(rows) {
            let last = first + rows == S::LANES;
            let next = if last { b.next.wrapping_sub(first * b.stride) } else { rows * b.stride };
            let sums = if b.interval == 128 && intervals == S::LANES {
                // The usual numbers, known to the compiler.
                sum::<S, D, MR>(s, decoder, [S::LANES, 128], x.a, b, first, next)
            } else {
                sum::<S, D, MR>(s, decoder, [intervals, b.interval], x.a, b, first, next)
            };
            for (r, sums) in sums.iter().enumerate() {
                for (m, &x) in sums.iter().enumerate() {
                    // Lanes are intervals of a row and then of the next, so that rows lie one after the other.
                    s.store(x, &mut partial[m][first * intervals + r * S::LANES..]);
                }
            }
        }
        for (m, sums) in partial.iter().enumerate() {
            let mut columns = [s.splat_u32(0); LINE];
            s.load_transposed(bytemuck::cast_slice(sums), 4 * intervals, &mut columns);
            let to = &mut acc.data[m * acc.stride..][..S::LANES];
            let mut sum = s.load(to);
            let scales_of = scales.a[m..].iter().step_by(MR).zip(scales.b.chunks_exact(S::LANES));
            for (&column, (&sa, sb)) in columns[..intervals].iter().zip(scales_of) {
                sum = promote(s, scales.promotion, sum, s.float(column), s.splat(sa), s.load(sb));
            }
            s.store(sum, to);
        }
    }
}

/// The partial sums of the registers from row `first` on, of intervals given by their number and bytes; meanwhile the codes `next` bytes away are asked for.
#[inline(always)]
fn sum<S: Simd, D: Decode, const MR: usize>(
    s: S,
    decoder: &D,
    [intervals, interval]: [usize; 2],
    a: &[u32],
    b: &Columns<'_>,
    first: usize,
    next: usize,
) -> [[S::F32; MR]; REGISTERS] {
    let (rows, tables) = (S::LANES / intervals, decoder.tables(s));
    // No closure: one that is not inlined knows none of the usual numbers.
    let gathers = [
        lanes(b, [intervals, interval], rows, first),
        lanes(b, [intervals, interval], rows, first + rows),
        lanes(b, [intervals, interval], rows, first + 2 * rows),
        lanes(b, [intervals, interval], rows, first + 3 * rows),
    ];
    let chunks = interval / Gather::CHUNK;
    let size = 4 * D::CODES / S::PAIR * S::LANES;
    let mut sums = [[s.splat(0.0); MR]; REGISTERS];
    for i in 0..chunks {
        let mut rows = [&a[..0]; MR];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = &a[(m * chunks + i) * size..][..size];
        }
        // Calls and no loop: it would not be unrolled, and the sums would live in memory. With one row there are registers for
        // all in turns, so that the sums of one wait less for each other.
        let [sums0, sums1, sums2, sums3] = &mut sums;
        let [gather0, gather1, gather2, gather3] = &gathers;
        if MR == 1 && S::REGISTERS == 32 {
            let gathers = [gather0, gather1, gather2, gather3];
            add(s, decoder, &tables, rows, gathers, i, next, [sums0, sums1, sums2, sums3]);
        } else {
            add(s, decoder, &tables, rows, [gather0], i, next, [sums0]);
            add(s, decoder, &tables, rows, [gather1], i, next, [sums1]);
            add(s, decoder, &tables, rows, [gather2], i, next, [sums2]);
            add(s, decoder, &tables, rows, [gather3], i, next, [sums3]);
        }
    }
    sums
}

/// Adds chunk `i` of some registers, in turns; meanwhile the codes `next` bytes away are asked for.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the loop body of the kernel")]
fn add<S: Simd, D: Decode, const MR: usize, const NR: usize>(
    s: S,
    decoder: &D,
    tables: &D::Tables<S>,
    a: [&[u32]; MR],
    gathers: [&Gather<'_>; NR],
    i: usize,
    next: usize,
    sums: [&mut [S::F32; MR]; NR],
) {
    let each = D::CODES / S::PAIR;
    let mut registers = [[s.splat_u32(0); 4]; NR];
    for r in 0..NR {
        registers[r] = s.load_chunks(gathers[r], i);
    }
    for j in 0..4 {
        let mut values = [[s.splat(0.0); 4]; NR];
        for r in 0..NR {
            if j < S::LANES / 4 {
                // The four runs of a place lie together.
                let place = gathers[r].place(j);
                s.prefetch(gathers[r].data(), place.wrapping_add(next + i * 4 * Gather::CHUNK));
            }
            values[r] = decoder.lanes(s, tables, registers[r][j]);
        }
        for step in 0..each {
            for m in 0..MR {
                let row = s.float(s.load_u32(&a[m][(j * each + step) * S::LANES..]));
                for r in 0..NR {
                    sums[r][m] = s.step(values[r][step], row, sums[r][m]);
                }
            }
        }
        // No load moves across: the compiler would do all of a body's first, and store what does not fit the registers.
        compiler_fence(Ordering::SeqCst);
    }
}

/// The intervals of the `rows` rows that fill a register, from row `first` on. Rows beyond the last are the last again: what
/// becomes of them is not stored.
#[inline(always)]
fn lanes<'a>(b: &Columns<'a>, [intervals, interval]: [usize; 2], rows: usize, first: usize) -> Gather<'a> {
    let mut offsets = [0; LINE / 4];
    for (g, offset) in offsets.iter_mut().take(rows * intervals / 4).enumerate() {
        let (rows, i) = (4 * g / intervals, 4 * g % intervals);
        *offset = i * interval + if rows == 0 { 0 } else { b.row(first + rows) - b.row(first) };
    }
    Gather::new(b.data, b.row(first), offsets, interval, interval / Gather::CHUNK)
}
