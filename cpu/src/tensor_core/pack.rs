//! Packing: codes taken apart as the microkernel reads them.

use std::ops::Range;

use bytemuck::Pod;

use super::fields::{Fields, nibble};
use super::terms::{Narrow, Wide};
use super::{B_REGISTERS, Kernel, PanelMut, Side, WORD};
use crate::gemm::IntervalPart;
use crate::simd::{Fused, FusedWork, Isa};

/// Most lanes of any instruction set.
const MAX_LANES: usize = 16;

/// Rows of codes.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// All rows, `stride` codes apart.
    pub codes: &'a [u8],
    /// From one row to the next.
    pub stride: usize,
    /// Codes of a row.
    pub cols: usize,
    /// What a code means.
    pub fields: Fields,
    /// Which operand they are.
    pub side: Side,
}

/// Packs `rows` of an operand, no more than a micropanel has, over the steps of a block of K, for a kernel: values,
/// exponents and signs.
pub fn pack(
    isa: Isa,
    kernel: Kernel,
    source: &Source<'_>,
    rows: Range<usize>,
    steps: &[IntervalPart],
    panel: PanelMut<'_>,
) {
    let (exponents, signs) = (panel.exponents, panel.signs);
    match kernel {
        Kernel::Narrow | Kernel::Fp4 => {
            let factor = if kernel == Kernel::Narrow { Narrow::FACTOR } else { 1.0 };
            let values = bytemuck::cast_slice_mut::<u32, f32>(panel.values);
            isa.run_fused(Pack { source, rows, steps, factor, values, exponents, signs });
        }
        Kernel::Wide | Kernel::Mx => {
            let values = bytemuck::cast_slice_mut::<u32, f64>(panel.values);
            isa.run_fused(Pack { source, rows, steps, factor: 1.0, values, exponents, signs });
        }
    }
}

/// A packed value.
trait Value: Pod {
    /// Stores `LANES` values.
    fn store<S: Fused>(s: S, x: S::F32, out: &mut [Self]);
}

impl Value for f32 {
    #[inline(always)]
    fn store<S: Fused>(s: S, x: S::F32, out: &mut [f32]) {
        s.store(x, out);
    }
}

/// Made a little larger in magnitude.
impl Value for f64 {
    #[inline(always)]
    fn store<S: Fused>(s: S, x: S::F32, out: &mut [f64]) {
        s.store_f64(s.mul_f64(s.widen(x), s.splat_f64(Wide::UP)), out);
    }
}

/// See [`pack`]. Exponents are empty where none are asked for.
struct Pack<'a, V> {
    source: &'a Source<'a>,
    rows: Range<usize>,
    steps: &'a [IntervalPart],
    factor: f32,
    values: &'a mut [V],
    exponents: &'a mut [u32],
    signs: &'a mut [u32],
}

impl<V: Value> FusedWork for Pack<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Fused, const COUNTS: bool>(mut self, s: S) {
        let registers = if self.source.side == Side::A { 1 } else { B_REGISTERS };
        for register in 0..registers {
            self.pack_register(s, register, registers * S::LANES);
        }
    }
}

impl<V: Value> Pack<'_, V> {
    /// Packs up to `LANES` rows into a register of a panel of `height` rows.
    #[inline(always)]
    fn pack_register<S: Fused>(&mut self, s: S, register: usize, height: usize) {
        let (fields, side) = (&self.source.fields, self.source.side);
        let first = register * S::LANES;
        let start_row = self.rows.start + first;
        let rows = start_row..self.rows.end.min(start_row + S::LANES);
        let factor = s.splat(fields.restored() * self.factor);
        let block = self.steps.first().map_or(0, |step| step.k.start);
        let mut loaded = [s.splat_u32(0); MAX_LANES];
        let mut signs = &mut self.signs[..];
        for step in self.steps {
            let (mut bit, mut positive, mut negative) = (0, s.splat_u32(0), s.splat_u32(0));
            for start in step.k.clone().step_by(4 * S::LANES) {
                let len = (step.k.end - start).min(4 * S::LANES);
                self.source.load_transposed(s, rows.clone(), start..start + len, &mut loaded);
                let begin = start - block;
                for (i, &codes) in loaded[..len.div_ceil(4)].iter().enumerate() {
                    let k = begin + 4 * i;
                    let here = 4.min(begin + len - k);
                    for j in 0..here {
                        let value = fields.value(s, codes, j as u32, factor);
                        V::store(s, value, &mut self.values[(k + j) * height + first..]);
                    }
                    let (bytes, nonzero, minus) = fields.take_apart(s, codes, side);
                    if !self.exponents.is_empty() {
                        let to = &mut self.exponents[k * S::LANES..];
                        store_exponents(s, side, bytes, register, to, here);
                    }
                    let valid = s.splat_u32((1 << here) - 1);
                    let plus = s.sub_u32(nonzero, minus);
                    negative = s.or(negative, s.shl(s.and(nibble(s, minus), valid), bit));
                    positive = s.or(positive, s.shl(s.and(nibble(s, plus), valid), bit));
                    bit += 4;
                    if bit == WORD as u32 || start + 4 * i + here == step.k.end {
                        let word;
                        (word, signs) = signs.split_at_mut(2 * height);
                        s.store_u32(positive, &mut word[first..]);
                        s.store_u32(negative, &mut word[height + first..]);
                        (bit, positive, negative) = (0, s.splat_u32(0), s.splat_u32(0));
                    }
                }
            }
        }
    }
}

/// Stores the exponent bytes of `count` elements, the lowest first.
#[inline(always)]
fn store_exponents<S: Fused>(s: S, side: Side, bytes: S::U32, register: usize, to: &mut [u32], count: usize) {
    for (j, to) in to.chunks_exact_mut(S::LANES).take(count).enumerate() {
        let byte = s.and(s.shr(bytes, 8 * j as u32), s.splat_u32(0xFF));
        let lanes = match (side, register) {
            (Side::A, _) => {
                let pair = s.or(byte, s.shl(byte, 8));
                s.or(pair, s.shl(pair, 16))
            }
            (Side::B, 0) => byte,
            (Side::B, _) => s.or(s.load_u32(to), s.shl(byte, 8 * register as u32)),
        };
        s.store_u32(lanes, to);
    }
}

impl Source<'_> {
    /// Loads a block of codes, lane i of register j being four codes of row i: up to `LANES` rows, and no more of `k`
    /// than fill `LANES` registers. What does not exist is zero.
    #[inline(always)]
    fn load_transposed<S: Fused>(
        &self,
        s: S,
        rows: Range<usize>,
        k: Range<usize>,
        registers: &mut [S::U32; MAX_LANES],
    ) {
        if rows.len() == S::LANES && k.start + 4 * S::LANES <= self.cols {
            s.load_transposed(&self.codes[rows.start * self.stride + k.start..], self.stride, registers);
        } else {
            s.load_transposed(&self.stage(rows, k), 4 * MAX_LANES, registers);
        }
    }

    /// A block at the edge, copied.
    #[inline(never)]
    fn stage(&self, rows: Range<usize>, k: Range<usize>) -> [u8; 4 * MAX_LANES * MAX_LANES] {
        let mut staged = [0; 4 * MAX_LANES * MAX_LANES];
        for (row, to) in rows.zip(staged.chunks_exact_mut(4 * MAX_LANES)) {
            to[..k.len()].copy_from_slice(&self.codes[row * self.stride + k.start..][..k.len()]);
        }
        staged
    }
}
