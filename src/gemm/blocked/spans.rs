//! The kernel for the fewest rows, whose lanes are promotion intervals of a row of B and not rows of B.
//!
//! Sums of different intervals meet only when they are promoted, so that lanes may hold them side by side. Then what is
//! read together lies together: sixteen intervals of 128 bytes are 2 KiB of one row, whatever the distance from row to
//! row, where sixteen rows may all fall on the same sets of the caches.
//!
//! ```text
//!   a row of B    │ interval 0 │ interval 1 │ interval 2 │ … │      a span: as many as there are lanes
//!   a register       lane 0       lane 1       lane 2      …       16 bytes of each, transposed: four steps of codes
//! ```
//!
//! A span of half or a quarter of the lanes takes as many rows at once. The partial sums of LANES rows are transposed, so
//! that lanes are rows again, and promoted interval after interval.

use std::sync::atomic::{Ordering, compiler_fence};

use super::super::accumulation::Promotion;
use super::super::buffer::Buffer;
use super::tile::promoted;
use crate::simd::{Decode, Layout, Simd, Strings};

/// Most lanes of any instruction set.
const MAX_LANES: usize = 16;

/// Intervals that fill lanes: all of them, a half or a quarter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// The first element of K.
    pub(super) k: usize,
    pub(super) intervals: usize,
}

/// Cuts the first `intervals` intervals into spans, the widest first; what is left are fewer than four.
pub(super) fn spans(intervals: usize, interval: usize, lanes: usize) -> Vec<Span> {
    let (mut spans, mut first) = (Vec::new(), 0);
    let mut width = lanes;
    while width >= 4 {
        while intervals - first >= width {
            spans.push(Span { k: first * interval, intervals: width });
            first += width;
        }
        width /= 2;
    }
    spans
}

/// Rows up to which the kernel is used.
pub(super) const ROWS: usize = 4;

/// Rows of B as they lie in memory, over a span.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    /// From the first row and the span's first element.
    pub(super) data: &'a [u8],
    /// Bytes from row to row.
    pub(super) stride: usize,
    /// Rows that exist.
    pub(super) rows: usize,
    /// Bytes of an interval.
    pub(super) interval: usize,
    /// Bytes from the first row to the first of those that are multiplied next.
    pub(super) next: usize,
}

/// Adds LANES columns of a span to the promoted sums of `rows` rows.
///
/// `a` holds, for each row, a register a step: lane i is interval i modulo the span's. `acc` has a register a row, `width`
/// elements apart; `partial` is room for LANES · LANES sums of each row.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the operands of a product")]
pub(super) fn multiply<S: Simd, D: Decode>(
    s: S,
    decoder: &D,
    rows: usize,
    span: Span,
    rule: Rule<'_>,
    a: &[u32],
    codes: Codes<'_>,
    partial: &mut Buffer,
    acc: (&mut [f32], usize),
) {
    match rows {
        1 => sum::<S, D, 1>(s, decoder, span, rule, a, codes, partial, acc),
        2 => sum::<S, D, 2>(s, decoder, span, rule, a, codes, partial, acc),
        3 => sum::<S, D, 3>(s, decoder, span, rule, a, codes, partial, acc),
        _ => sum::<S, D, ROWS>(s, decoder, span, rule, a, codes, partial, acc),
    }
}

/// Bundles of rows of B at once, whose sums are independent: four cover the latency of a dot product.
const BUNDLES: usize = 4;

#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
#[allow(clippy::too_many_arguments, reason = "the operands of a product")]
fn sum<S: Simd, D: Decode, const MR: usize>(
    s: S,
    decoder: &D,
    span: Span,
    rule: Rule<'_>,
    a: &[u32],
    codes: Codes<'_>,
    partial: &mut Buffer,
    (acc, width): (&mut [f32], usize),
) {
    let (partial, sums) = (partial.as_mut_slice::<f32>(), S::LANES * S::LANES);
    let rows = BUNDLES * S::LANES / span.intervals;
    for first in (0..S::LANES).step_by(rows) {
        let last = first + rows == S::LANES;
        let next = if last { codes.next.wrapping_sub(first * codes.stride) } else { rows * codes.stride };
        let tile = if codes.interval == 128 && span.intervals == S::LANES {
            // The usual numbers, known to the compiler.
            let (span, codes) = (Span { intervals: S::LANES, ..span }, Codes { interval: 128, ..codes });
            bundles::<S, D, MR>(s, decoder, span, a, codes, first, next)
        } else {
            bundles::<S, D, MR>(s, decoder, span, a, codes, first, next)
        };
        for (b, of_bundle) in tile.iter().enumerate() {
            for (m, &x) in of_bundle.iter().enumerate() {
                // Lanes are intervals of a row and then of the next, so that rows lie one after the other.
                s.store(x, &mut partial[m * sums + first * span.intervals + b * S::LANES..]);
            }
        }
    }
    for (m, sums) in partial.chunks_exact(sums).take(MR).enumerate() {
        let mut columns = [s.splat_u32(0); MAX_LANES];
        s.load_transposed(bytemuck::cast_slice(sums), 4 * span.intervals, &mut columns);
        let acc = &mut acc[m * width..][..S::LANES];
        let mut sum = if rule.fresh { s.splat(0.0) } else { s.load(acc) };
        let scales = rule.scales_a[m..].iter().step_by(MR).zip(rule.scales_b.chunks_exact(S::LANES));
        for (&column, (&row, columns)) in columns[..span.intervals].iter().zip(scales) {
            let columns = if rule.one_column_scale { s.splat(columns[0]) } else { s.load(columns) };
            sum = promoted(s, rule.promotion, s.splat(row), columns, s.float(column), sum);
        }
        s.store(sum, acc);
    }
}

/// How the sums of a span are promoted.
#[derive(Clone, Copy)]
pub(super) struct Rule<'a> {
    pub(super) promotion: Promotion,
    /// For each interval, those of all rows.
    pub(super) scales_a: &'a [f32],
    /// For each interval, those of the columns, a register of them.
    pub(super) scales_b: &'a [f32],
    pub(super) one_column_scale: bool,
    /// Whether nothing was promoted before.
    pub(super) fresh: bool,
}

/// The partial sums of the bundles from row `first` on; meanwhile the codes `next` bytes away are asked for.
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
fn bundles<S: Simd, D: Decode, const MR: usize>(
    s: S,
    decoder: &D,
    span: Span,
    a: &[u32],
    codes: Codes<'_>,
    first: usize,
    next: usize,
) -> [[S::F32; MR]; BUNDLES] {
    let (rows, tables) = (S::LANES / span.intervals, decoder.tables(s));
    let strings = |b: usize| codes.strings(span, rows, first + b * rows);
    let strings = [strings(0), strings(1), strings(2), strings(3)];
    let pieces = codes.interval / Strings::PIECE;
    let size = 4 * D::CODES / S::PAIR * S::LANES;
    let mut sums = [[s.splat(0.0); MR]; BUNDLES];
    for i in 0..pieces {
        let mut rows = [&a[..0]; MR];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = &a[(m * pieces + i) * size..][..size];
        }
        // Calls and no loop: it would not be unrolled, and the sums would live in memory. With one row there are registers for
        // all bundles in turns, so that the sums of one wait less for each other.
        let [sums0, sums1, sums2, sums3] = &mut sums;
        let [strings0, strings1, strings2, strings3] = &strings;
        if MR == 1 && S::REGISTERS == 32 {
            add(
                s,
                decoder,
                &tables,
                rows,
                [strings0, strings1, strings2, strings3],
                i,
                next,
                [sums0, sums1, sums2, sums3],
            );
        } else {
            add(s, decoder, &tables, rows, [strings0], i, next, [sums0]);
            add(s, decoder, &tables, rows, [strings1], i, next, [sums1]);
            add(s, decoder, &tables, rows, [strings2], i, next, [sums2]);
            add(s, decoder, &tables, rows, [strings3], i, next, [sums3]);
        }
    }
    sums
}

/// Adds piece `i` of each string of some bundles, in turns; meanwhile the codes `next` bytes away are asked for.
#[cfg_attr(debug_assertions, inline(never))]
#[cfg_attr(not(debug_assertions), inline(always))]
#[allow(clippy::too_many_arguments, reason = "the loop body of the kernel")]
fn add<S: Simd, D: Decode, const MR: usize, const NB: usize>(
    s: S,
    decoder: &D,
    tables: &D::Tables<S>,
    a: [&[u32]; MR],
    strings: [&Strings<'_>; NB],
    i: usize,
    next: usize,
    sums: [&mut [S::F32; MR]; NB],
) {
    let each = D::CODES / S::PAIR;
    let mut registers = [[s.splat_u32(0); 4]; NB];
    for b in 0..NB {
        registers[b] = s.load_pieces(strings[b], i);
    }
    for j in 0..4 {
        let mut values = [[s.splat(0.0); 4]; NB];
        for b in 0..NB {
            if j < S::LANES / 4 {
                // The four strings of a place lie together.
                let place = strings[b].place(j);
                s.prefetch(strings[b].data(), place.wrapping_add(next + i * 4 * Strings::PIECE));
            }
            values[b] = decoder.lanes(s, tables, registers[b][j]);
        }
        for step in 0..each {
            for m in 0..MR {
                let row = s.float(s.load_u32(&a[m][(j * each + step) * S::LANES..]));
                for b in 0..NB {
                    sums[b][m] = s.step(values[b][step], row, sums[b][m]);
                }
            }
        }
        // No load moves across: the compiler would do all of a body's first, and store what does not fit the registers.
        compiler_fence(Ordering::SeqCst);
    }
}

impl<'a> Codes<'a> {
    /// The intervals of a span, of the `rows` rows that fill a register, from row `first` on. Rows beyond the last are the last
    /// again: what becomes of them is not stored.
    #[inline(always)]
    fn strings(&self, span: Span, rows: usize, first: usize) -> Strings<'a> {
        let row = |row: usize| row.min(self.rows - 1) * self.stride;
        let mut offsets = [0; MAX_LANES / 4];
        for (g, offset) in offsets.iter_mut().take(rows * span.intervals / 4).enumerate() {
            let (rows, interval) = (4 * g / span.intervals, 4 * g % span.intervals);
            *offset = interval * self.interval + if rows == 0 { 0 } else { row(first + rows) - row(first) };
        }
        Strings::new(
            self.data,
            row(first),
            Layout::new(offsets, self.interval, self.interval / Strings::PIECE),
        )
    }
}
