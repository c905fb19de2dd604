//! Packing: codes decoded and laid out as the microkernel reads them.
//!
//! A panel of `width` rows of an operand holds, for each packed step of K in ascending order, one 32-bit element of
//! every row: an f32, or a pair of BF16.

use std::ops::Range;

use crate::scaled::{CodesRef, ScaledRef};
use crate::simd::{Decoder, Simd};

/// Most lanes of any instruction set.
const MAX_LANES: usize = 16;

/// Packed panels in memory that begins at a cache line: a register of them never lies across two.
#[derive(Default)]
pub(super) struct Buffer(Vec<Line>);

/// A cache line.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Buffer {
    /// Room for `len` elements, all zero.
    pub(super) fn new(len: usize) -> Buffer {
        Buffer(vec![Line::default(); len.div_ceil(16)])
    }

    pub(super) fn as_slice(&self) -> &[u32] {
        bytemuck::cast_slice(&self.0)
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

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
        let decoder = Decoder::new(x.format())?;
        let (rows, k) = x.shape();
        let (data, stride, code_bytes) = match x.codes() {
            CodesRef::Bytes(m) => (m.strided(), m.stride(), 1),
            CodesRef::Words(m) => (bytemuck::cast_slice(m.strided()), 2 * m.stride(), 2),
        };
        Some(Source { data, stride, code_bytes, rows, k, decoder })
    }

    /// Packs rows `rows` (fewer than `width` at the edge: the rest is +0) and columns `k` into a panel.
    #[inline(always)]
    pub(super) fn pack<S: Simd>(
        &self,
        s: S,
        rows: Range<usize>,
        k: Range<usize>,
        width: usize,
        out: &mut [u32],
    ) {
        // The last first: what it stores beyond the panel's width belongs to the first columns of the next step.
        for first in (0..width).step_by(S::LANES).rev() {
            self.pack_lanes(s, rows.start + first..rows.end, k.clone(), width, first, out);
        }
    }

    /// Packs up to `LANES` rows into columns `first…` of a panel.
    ///
    /// Whole registers are stored, the excess of a narrow panel over the next step: steps are stored in ascending
    /// order, and a panel has room for one register beyond its end.
    #[inline(always)]
    fn pack_lanes<S: Simd>(
        &self,
        s: S,
        rows: Range<usize>,
        k: Range<usize>,
        width: usize,
        first: usize,
        out: &mut [u32],
    ) {
        let codes = self.decoder.codes_a_lane();
        let block = codes * S::LANES;
        let mut registers = [s.splat_u32(0); MAX_LANES];
        let mut step = 0;
        for start in (k.start..k.end).step_by(block) {
            let len = block.min(k.end - start);
            let inside = rows.start + S::LANES <= self.rows && start + block <= self.k;
            if inside && len.is_multiple_of(S::PAIR) {
                let x = &self.data[rows.start * self.stride + start * self.code_bytes..];
                s.load_transposed(x, self.stride, &mut registers);
                let ahead = (start + 2 * block).min(self.k - 1) * self.code_bytes;
                for i in 0..S::LANES {
                    s.prefetch(&self.data[(rows.start + i) * self.stride + ahead..]);
                }
            } else {
                let staged = self.stage(rows.clone(), start..start + len, 4 * S::LANES);
                s.load_transposed(&staged, 4 * S::LANES, &mut registers);
            }
            let steps = len.div_ceil(S::PAIR);
            let used = steps.div_ceil(codes / S::PAIR);
            let (mut left, mut rest) = (steps, &mut out[step * width + first..]);
            self.decoder.decode(s, &registers[..used], |value| {
                if left > 0 {
                    s.store_u32(s.bits(value), rest);
                    rest = std::mem::take(&mut rest).get_mut(width..).unwrap_or_default();
                    left -= 1;
                }
            });
            step += steps;
        }
    }

    /// A block at the edge, copied; rows and columns that do not exist are +0. A column of them fills the last pair of
    /// an odd interval: it adds +0 to a sum that is not −0, since pairs are used only where sums begin at +0.
    #[inline(never)]
    fn stage(&self, rows: Range<usize>, k: Range<usize>, width: usize) -> [u8; 4 * MAX_LANES * MAX_LANES] {
        let mut staged = [0; 4 * MAX_LANES * MAX_LANES];
        let used = k.len() * self.code_bytes;
        let last = rows.end.min(self.rows).min(rows.start + width / 4);
        for (i, to) in (rows.start..last).zip(staged.chunks_exact_mut(width)) {
            let from = &self.data[i * self.stride + k.start * self.code_bytes..];
            to[..used].copy_from_slice(&from[..used]);
        }
        staged
    }
}
