//! Packing: codes decoded and laid out as the microkernel reads them.
//!
//! One 32-bit element of a packed operand is one step of K: an f32, or a pair of BF16. B lies in panels of a
//! microtile's columns, step after step; A in rows of [`STEPS`] steps, which the microkernel broadcasts from.

use std::ops::Range;

use super::spans;
use super::stream::Codes;
use super::tile::STEPS;
use crate::scaled::{CodesRef, ScaledRef};
use crate::simd::{Decode, Decoder, Simd};

/// Most lanes of any instruction set.
const MAX_LANES: usize = 16;

/// Bytes of the widest register.
const MAX_BYTES: usize = 4 * MAX_LANES;

/// An operand as the packing reads it: bytes in rows.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    data: &'a [u8],
    /// Bytes from row to row, and of a code.
    stride: usize,
    code_bytes: usize,
    rows: usize,
    k: usize,
    decoder: Decoder,
}

impl<'a> Source<'a> {
    /// `None` where the format has no decoder.
    pub(super) fn new(x: &ScaledRef<'a>) -> Option<Source<'a>> {
        let decoder = crate::simd::decoder(x.format())?;
        let (rows, k) = x.shape();
        let (data, stride, code_bytes) = match x.codes() {
            CodesRef::Bytes(m) => (m.strided(), m.stride(), 1),
            CodesRef::Words(m) => (bytemuck::cast_slice(m.strided()), 2 * m.stride(), 2),
        };
        Some(Source { data, stride, code_bytes, rows, k, decoder })
    }

    /// What the codes are decoded with.
    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Bytes of `elements` codes.
    pub(super) fn bytes(&self, elements: usize) -> usize {
        elements * self.code_bytes
    }

    /// The same rows from column `k` on, for the kernel whose lanes are intervals of `interval` elements. The rows `next` further
    /// on are multiplied next, from column `next_k` on.
    pub(super) fn span(
        &self,
        rows: Range<usize>,
        k: usize,
        interval: usize,
        (next, next_k): (usize, usize),
    ) -> spans::Codes<'a> {
        let at = |row: usize, k: usize| row * self.stride + k * self.code_bytes;
        spans::Codes {
            data: &self.data[at(rows.start, k)..],
            stride: self.stride,
            rows: rows.len(),
            interval: interval * self.code_bytes,
            next: at(next, next_k).wrapping_sub(at(0, k)),
        }
    }

    /// Rows `rows` from column `k` on, as they lie in memory; a code `ahead` elements further in its row will be read
    /// soon.
    pub(super) fn codes(&self, rows: Range<usize>, k: usize, ahead: usize) -> Codes<'a> {
        Codes {
            data: &self.data[rows.start * self.stride + k * self.code_bytes..],
            stride: self.stride,
            rows: rows.len(),
            left: (self.k - k) * self.code_bytes,
            ahead: ahead * self.code_bytes,
        }
    }

    /// Elements of room that the packing of rows needs beyond its last.
    pub(super) const EXCESS: usize = 2 * MAX_LANES;

    /// Packs `segments` of row after row into rows of [`STEPS`] elements; rows that do not exist are +0.
    ///
    /// Whole registers are stored, their excess over what follows: elements are stored in ascending order.
    #[inline(always)]
    pub(super) fn pack_rows<S: Simd>(
        &self,
        s: S,
        rows: Range<usize>,
        segments: impl Iterator<Item = Range<usize>> + Clone,
        out: &mut [u32],
    ) {
        for (i, row) in rows.enumerate() {
            let mut to = i * STEPS;
            for k in segments.clone() {
                if row >= self.rows {
                    out[to..][..k.len().div_ceil(S::PAIR)].fill(0);
                } else {
                    let codes = &self.data[row * self.stride..][..self.k * self.code_bytes];
                    match &self.decoder {
                        Decoder::Bytes(d) => pack_row(s, d, codes, k.clone(), &mut out[to..]),
                        Decoder::Words(d) => pack_row(s, d, codes, k.clone(), &mut out[to..]),
                    }
                }
                to += k.len().div_ceil(S::PAIR);
            }
        }
    }

    /// Packs rows `rows` (fewer than `width` at the edge: the rest is +0) and columns `k` into a panel, and asks for
    /// the codes of the next panel.
    #[inline(always)]
    pub(super) fn pack_panel<S: Simd>(
        &self,
        s: S,
        rows: Range<usize>,
        k: Range<usize>,
        width: usize,
        out: &mut [u32],
    ) {
        for first in (0..width).step_by(S::LANES) {
            let rows = (rows.start + first).min(rows.end)..rows.end;
            match &self.decoder {
                Decoder::Bytes(d) => {
                    self.pack_lanes(s, d, rows, k.clone(), width, &mut out[first..]);
                }
                Decoder::Words(d) => {
                    self.pack_lanes(s, d, rows, k.clone(), width, &mut out[first..]);
                }
            }
        }
    }

    /// Packs up to `LANES` rows into the first columns of a panel.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the loop body of the packing")]
    fn pack_lanes<S: Simd, D: Decode>(
        &self,
        s: S,
        decoder: &D,
        rows: Range<usize>,
        k: Range<usize>,
        width: usize,
        out: &mut [u32],
    ) {
        let block = D::CODES * S::LANES;
        let mut step = 0;
        for start in (k.start..k.end).step_by(block) {
            let len = block.min(k.end - start);
            let mut registers = [s.splat_u32(0); MAX_LANES];
            if len == block && rows.len() >= S::LANES {
                let from = rows.start * self.stride + start * self.code_bytes;
                s.load_transposed(&self.data[from..], self.stride, &mut registers);
                for i in 0..S::LANES {
                    s.prefetch(self.data, from + (width + i) * self.stride);
                }
                store_lanes(s, decoder, &registers, block / S::PAIR, width, &mut out[step * width..]);
            } else {
                let staged = self.stage(rows.clone(), start..start + len, 4 * S::LANES);
                s.load_transposed(&staged, 4 * S::LANES, &mut registers);
                let steps = len.div_ceil(S::PAIR);
                store_lanes(s, decoder, &registers, steps, width, &mut out[step * width..]);
            }
            step += len.div_ceil(S::PAIR);
        }
    }

    /// A block at the edge, copied; rows and columns that do not exist are +0. A column of them fills the last pair of
    /// an odd interval: it adds +0 to a sum that is not −0, since pairs are used only where sums begin at +0.
    #[inline(never)]
    fn stage(&self, rows: Range<usize>, k: Range<usize>, width: usize) -> [u8; MAX_BYTES * MAX_LANES] {
        let mut staged = [0; MAX_BYTES * MAX_LANES];
        let used = k.len() * self.code_bytes;
        let last = rows.end.min(self.rows).min(rows.start + width / 4);
        for (i, to) in (rows.start..last).zip(staged.chunks_exact_mut(width)) {
            let from = &self.data[i * self.stride + k.start * self.code_bytes..];
            to[..used].copy_from_slice(&from[..used]);
        }
        staged
    }
}

/// Decodes transposed registers and stores `steps` steps, `width` apart.
#[inline(always)]
fn store_lanes<S: Simd, D: Decode>(
    s: S,
    decoder: &D,
    registers: &[S::U32; MAX_LANES],
    steps: usize,
    width: usize,
    out: &mut [u32],
) {
    let (each, tables) = (D::CODES / S::PAIR, decoder.tables(s));
    for i in 0..S::LANES {
        let values = decoder.lanes(s, &tables, registers[i]);
        for j in 0..each {
            if i * each + j < steps {
                s.store_u32(s.bits(values[j]), &mut out[(i * each + j) * width..]);
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
