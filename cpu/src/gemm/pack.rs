//! Packing: codes decoded and laid out as the kernels read them; see [the contract](super).

use std::ops::Range;

use super::{IntervalPart, LINE};
use crate::simd::{Convert, Decode, Decoder, Isa, KC, Simd, Work};

/// Bytes of the widest register.
const MAX_BYTES: usize = 4 * LINE;

/// Elements of room that the packing of rows needs beyond its last: whole registers are stored.
pub const PACK_EXCESS: usize = 2 * LINE;

/// An operand as it lies in memory: rows of codes, contiguous along K.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    /// The bytes, from the first row's first code on.
    pub data: &'a [u8],
    /// Bytes from row to row.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Codes of a row.
    pub k: usize,
    /// What they are decoded with.
    pub decoder: Decoder,
}

impl Codes<'_> {
    /// Bytes of a code.
    pub fn code_bytes(&self) -> usize {
        self.decoder.code_bytes()
    }
}

/// Packs the parts' elements of rows of A, side by side in rows of [`KC`] elements; rows that do not exist are +0.
///
/// # Panics
/// If `out` has no room for all of it and [`PACK_EXCESS`] more, or the parts reach beyond K.
pub fn pack_a(isa: Isa, x: &Codes<'_>, rows: Range<usize>, parts: &[IntervalPart], out: &mut [u32]) {
    match &x.decoder {
        Decoder::Bytes(decoder) => isa.run(PackA { x, decoder, rows, parts, out }),
        Decoder::Words(decoder) => isa.run(PackA { x, decoder, rows, parts, out }),
    }
}

struct PackA<'x, D> {
    x: &'x Codes<'x>,
    decoder: &'x D,
    rows: Range<usize>,
    parts: &'x [IntervalPart],
    out: &'x mut [u32],
}

impl<D: Decode> Work for PackA<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        let PackA { x, decoder, rows, parts, out } = self;
        for (i, row) in rows.enumerate() {
            // The excess of a part lies where the next is stored: elements are stored in ascending order.
            let mut to = i * KC;
            for part in parts {
                if row < x.rows {
                    let codes = &x.data[row * x.stride..][..x.k * 4 / D::CODES];
                    pack_row(s, decoder, codes, part.k.clone(), &mut out[to..]);
                } else {
                    out[to..][..part.steps(S::PAIR)].fill(0);
                }
                to += part.steps(S::PAIR);
            }
        }
    }
}

/// Decodes columns `k` of one row.
#[inline(always)]
fn pack_row<S: Simd, D: Decode>(s: S, decoder: &D, row: &[u8], k: Range<usize>, out: &mut [u32]) {
    let (registers, code_bytes) = (D::row_registers::<S>(), 4 / D::CODES);
    let codes = registers * S::LANES * S::PAIR;
    for start in (k.start..k.end).step_by(codes) {
        let x = &row[start * code_bytes..];
        let values = if start + codes <= k.end {
            decoder.row(s, x)
        } else {
            let mut staged = [0; MAX_BYTES];
            let used = (k.end - start) * code_bytes;
            staged[..used].copy_from_slice(&x[..used]);
            decoder.row(s, &staged)
        };
        let to = (start - k.start) / S::PAIR;
        for (i, &value) in values[..registers].iter().enumerate() {
            s.store_u32(s.bits(value), &mut out[to + i * S::LANES..]);
        }
    }
}

/// Packs the parts' elements of columns of D, rows of B, into a micropanel; columns that do not exist are +0. The codes
/// `ahead` bytes from those read are asked for from memory.
///
/// # Panics
/// If `out` has no room for the parts' steps, or the parts reach beyond K.
pub fn pack_b(
    isa: Isa,
    x: &Codes<'_>,
    columns: Range<usize>,
    parts: &[IntervalPart],
    ahead: usize,
    out: &mut [u32],
) {
    match &x.decoder {
        Decoder::Bytes(decoder) => isa.run(PackB { x, decoder, columns, parts, ahead, out }),
        Decoder::Words(decoder) => isa.run(PackB { x, decoder, columns, parts, ahead, out }),
    }
}

struct PackB<'x, D> {
    x: &'x Codes<'x>,
    decoder: &'x D,
    columns: Range<usize>,
    parts: &'x [IntervalPart],
    ahead: usize,
    out: &'x mut [u32],
}

impl<D: Decode> Work for PackB<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(mut self, s: S) {
        let (nr, mut step) = (S::GEOMETRY.nr, 0);
        for part in self.parts {
            for first in (0..nr).step_by(S::LANES) {
                self.pack_lanes(s, first, part.k.clone(), step * nr + first);
            }
            step += part.steps(S::PAIR);
        }
    }
}

impl<D: Decode> PackB<'_, D> {
    /// Packs elements `k` of a register of columns, from column `first` on, to element `to` and every NR from there.
    #[inline(always)]
    fn pack_lanes<S: Simd>(&mut self, s: S, first: usize, k: Range<usize>, to: usize) {
        let (x, nr, code_bytes) = (self.x, S::GEOMETRY.nr, 4 / D::CODES);
        let rows = (self.columns.start + first).min(self.columns.end)..self.columns.end;
        let tables = self.decoder.tables(s);
        // Codes that are transposed together, and their steps.
        let (codes, mut to) = (D::CODES * S::LANES, to);
        for start in (k.start..k.end).step_by(codes) {
            let used = codes.min(k.end - start);
            let steps = used.div_ceil(S::PAIR);
            let mut registers = [s.splat_u32(0); LINE];
            if used == codes && rows.len() >= S::LANES {
                let from = rows.start * x.stride + start * code_bytes;
                s.load_transposed(&x.data[from..], x.stride, &mut registers);
                for i in 0..S::LANES {
                    s.prefetch(x.data, from.wrapping_add(self.ahead + i * x.stride));
                }
                // Here the compiler knows the number of steps.
                let out = &mut self.out[to..][..(codes / S::PAIR - 1) * nr + S::LANES];
                store_steps(s, self.decoder, &tables, &registers, codes / S::PAIR, out);
            } else {
                let staged = self.stage(rows.clone(), start..start + used, 4 * S::LANES);
                s.load_transposed(&staged, 4 * S::LANES, &mut registers);
                store_steps(s, self.decoder, &tables, &registers, steps, &mut self.out[to..]);
            }
            to += steps * nr;
        }
    }

    /// Codes at the edge, copied to rows of `row_bytes`; rows and columns that do not exist are +0.
    #[inline(never)]
    fn stage(&self, rows: Range<usize>, k: Range<usize>, row_bytes: usize) -> [u8; MAX_BYTES * LINE] {
        let (x, code_bytes) = (self.x, 4 / D::CODES);
        let mut staged = [0; MAX_BYTES * LINE];
        let used = k.len() * code_bytes;
        let last = rows.end.min(x.rows).min(rows.start + row_bytes / 4);
        for (i, to) in (rows.start..last).zip(staged.chunks_exact_mut(row_bytes)) {
            let from = &x.data[i * x.stride + k.start * code_bytes..];
            to[..used].copy_from_slice(&from[..used]);
        }
        staged
    }
}

/// Decodes transposed registers and stores `steps` steps, NR apart.
#[inline(always)]
fn store_steps<S: Simd, D: Decode>(
    s: S,
    decoder: &D,
    tables: &D::Tables<S>,
    registers: &[S::U32; LINE],
    steps: usize,
    out: &mut [u32],
) {
    let each = D::CODES / S::PAIR;
    for i in 0..S::LANES {
        let values = decoder.lanes(s, tables, registers[i]);
        for j in 0..each {
            if i * each + j < steps {
                s.store_u32(s.bits(values[j]), &mut out[(i * each + j) * S::GEOMETRY.nr..]);
            }
        }
    }
}
