//! Packing: codes taken apart as the microkernel reads them.

use std::ops::Range;

use bytemuck::Pod;

use super::fields::{Fields, nibble};
use super::terms::{Narrow, UP_LOW};
use super::{B_REGISTERS, Kernel, PanelMut, Side, WORD, first_set};
use crate::gemm::IntervalPart;
use crate::simd::{Fused, FusedWork, Isa};

/// Most lanes of any instruction set.
const MAX_LANES: usize = 16;

/// Rows of codes.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// All rows, `stride` bytes apart.
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

/// What rows have besides their codes, for each of a micropanel's.
#[derive(Clone, Copy, Debug)]
pub enum RowExponents<'a> {
    /// Nothing.
    None,
    /// Exponents that multiply the elements of each step, and the level that exponent bytes then lie below; without one they
    /// are those of the codes.
    Scales(&'a [u32], Option<i32>),
    /// The largest exponent, as an f32 has it: codes of more than a byte.
    Tops(&'a [u32]),
}

/// Packs `rows` of an operand, no more than a micropanel has, over the steps of a block of K, for a kernel: values,
/// exponents and signs.
pub fn pack(
    isa: Isa,
    kernel: Kernel,
    source: &Source<'_>,
    rows: Range<usize>,
    steps: &[IntervalPart],
    exponents_of: RowExponents<'_>,
    panel: PanelMut<'_>,
) {
    let (exponents, signs) = (panel.exponents, panel.signs);
    match kernel {
        Kernel::Narrow | Kernel::Fp4 => {
            let factor = if kernel == Kernel::Narrow { Narrow::FACTOR } else { 1.0 };
            let values = bytemuck::cast_slice_mut::<u32, f32>(panel.values);
            isa.run_fused(Pack {
                source,
                rows,
                steps,
                kernel,
                exponents_of,
                factor,
                values,
                exponents,
                signs,
            });
        }
        Kernel::Wide | Kernel::InTwo | Kernel::Offset => {
            let values = bytemuck::cast_slice_mut::<u32, f64>(panel.values);
            let factor = 1.0;
            isa.run_fused(Pack {
                source,
                rows,
                steps,
                kernel,
                exponents_of,
                factor,
                values,
                exponents,
                signs,
            });
        }
    }
}

/// A packed value.
trait Value: Pod {
    /// What `LANES` values are made larger by.
    type Factor<S: Fused>: Copy;

    /// A little, and the powers of two of these exponents.
    fn factor<S: Fused>(s: S, exponents: S::U32) -> Self::Factor<S>;
    /// Stores `LANES` values.
    fn store<S: Fused>(s: S, x: S::F32, factor: Self::Factor<S>, out: &mut [Self]);
}

/// Their factor is in x already, and powers of two are not for them.
impl Value for f32 {
    type Factor<S: Fused> = ();

    #[inline(always)]
    fn factor<S: Fused>(_: S, _: S::U32) {}

    #[inline(always)]
    fn store<S: Fused>(s: S, x: S::F32, (): (), out: &mut [f32]) {
        s.store(x, out);
    }
}

impl Value for f64 {
    type Factor<S: Fused> = S::F64;

    #[inline(always)]
    fn factor<S: Fused>(s: S, exponents: S::U32) -> S::F64 {
        let power = s.add_u32(s.shl(exponents, 20), s.splat_u32(1023 << 20));
        s.join_halves(power, s.splat_u32(UP_LOW))
    }

    #[inline(always)]
    fn store<S: Fused>(s: S, x: S::F32, factor: S::F64, out: &mut [f64]) {
        s.store_f64(s.mul_f64(s.widen(x), factor), out);
    }
}

/// See [`pack`]. Exponents are empty where none are asked for.
struct Pack<'a, V> {
    source: &'a Source<'a>,
    rows: Range<usize>,
    steps: &'a [IntervalPart],
    kernel: Kernel,
    exponents_of: RowExponents<'a>,
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
            let height = registers * S::LANES;
            match self.source.fields.bytes() {
                1 => self.pack_register::<S, 1>(s, register, height),
                2 => self.pack_register::<S, 2>(s, register, height),
                _ => self.pack_register::<S, 4>(s, register, height),
            }
        }
    }
}

/// The signs of some elements of a step: bits that wait for their word to be full.
#[derive(Clone, Copy)]
struct Signs<S: Fused> {
    bit: u32,
    positive: S::U32,
    negative: S::U32,
}

impl<S: Fused> Signs<S> {
    #[inline(always)]
    fn none(s: S) -> Self {
        Signs { bit: 0, positive: s.splat_u32(0), negative: s.splat_u32(0) }
    }

    /// Adds the lowest `count` bits.
    #[inline(always)]
    fn push(&mut self, s: S, nonzero: S::U32, minus: S::U32, count: u32) {
        let plus = s.sub_u32(nonzero, minus);
        self.negative = s.or(self.negative, s.shl(minus, self.bit));
        self.positive = s.or(self.positive, s.shl(plus, self.bit));
        self.bit += count;
    }

    /// Stores the word of a register, and begins the next; gives what lies behind it.
    #[inline(always)]
    fn flush<'a>(&mut self, s: S, signs: &'a mut [u32], first: usize, height: usize) -> &'a mut [u32] {
        let (word, signs) = signs.split_at_mut(2 * height);
        s.store_u32(self.positive, &mut word[first..]);
        s.store_u32(self.negative, &mut word[height + first..]);
        *self = Signs::none(s);
        signs
    }
}

impl<V: Value> Pack<'_, V> {
    /// Packs up to `LANES` rows of codes of `W` bytes into a register of a panel of `height` rows.
    #[inline(always)]
    fn pack_register<S: Fused, const W: usize>(&mut self, s: S, register: usize, height: usize) {
        let (fields, side) = (&self.source.fields, self.source.side);
        let (first, in_two) = (register * S::LANES, self.kernel == Kernel::InTwo);
        // Codes of a lane, and of a chunk of as many registers as there are lanes.
        let (lane, chunk) = (4 / W, 4 / W * S::LANES);
        let start_row = self.rows.start + first;
        let rows = start_row..self.rows.end.min(start_row + S::LANES);
        let factor = s.splat(fields.restored() * self.factor);
        let block = self.steps.first().map_or(0, |step| step.k.start);
        let tops = match self.exponents_of {
            RowExponents::Tops(tops) => s.load_u32(&tops[first..]),
            RowExponents::None | RowExponents::Scales(..) => s.splat_u32(0),
        };
        // Short steps share what is loaded.
        let (mut loaded, mut window) = ([s.splat_u32(0); MAX_LANES], 0..0);
        let end = self.steps.last().map_or(0, |step| step.k.end);
        let mut signs = &mut self.signs[..];
        for (index, step) in self.steps.iter().enumerate() {
            let (powers, level) = match self.exponents_of {
                RowExponents::Scales(scales, level) => (s.load_u32(&scales[index * height + first..]), level),
                RowExponents::None | RowExponents::Tops(_) => (s.splat_u32(0), None),
            };
            let power = V::factor(s, powers);
            let shift = level.map_or(s.splat_u32(0), |level| side.shift(s, level, powers));
            let begin = step.k.start - block;
            let of_first = if in_two { first_set(step.k.len()) } else { step.k.len() };
            let mut sets = [Signs::none(s); 2];
            for start in step.k.clone().step_by(chunk) {
                let len = (step.k.end - start).min(chunk);
                let within = window.contains(&start) && start + len <= window.end;
                if !within || !(start - window.start).is_multiple_of(lane) {
                    window = start..end.min(start + chunk);
                    self.source.load_transposed::<S, W>(s, rows.clone(), window.clone(), &mut loaded);
                }
                let first_lane = (start - window.start) / lane;
                for (i, &codes) in loaded[first_lane..][..len.div_ceil(lane)].iter().enumerate() {
                    // Where this lane's first code lies in the step, and how many of its codes do.
                    let at = start - step.k.start + lane * i;
                    let here = lane.min(step.k.len() - at);
                    // Of four codes in two sets, two go to each.
                    let place = |j: usize| match (in_two, j < 2) {
                        (false, _) => begin + at + j,
                        (true, true) => begin + at / 2 + j,
                        (true, false) => begin + of_first + at / 2 + j - 2,
                    };
                    if W == 1 {
                        let (bytes, nonzero, minus) = fields.take_apart(s, codes, side, shift);
                        for j in 0..here {
                            let value = fields.value(s, codes, j as u32, factor);
                            V::store(s, value, power, &mut self.values[place(j) * height + first..]);
                            if !self.exponents.is_empty() {
                                let byte = s.and(s.shr(bytes, 8 * j as u32), s.splat_u32(0xFF));
                                let to = &mut self.exponents[place(j) * S::LANES..];
                                store_exponents(s, side, byte, register, to);
                            }
                        }
                        let valid = s.splat_u32((1 << here) - 1);
                        let (nonzero, minus) =
                            (s.and(nibble(s, nonzero), valid), s.and(nibble(s, minus), valid));
                        if in_two {
                            let pair = s.splat_u32(3);
                            sets[0].push(s, s.and(nonzero, pair), s.and(minus, pair), 2);
                            sets[1].push(s, s.shr(nonzero, 2), s.shr(minus, 2), 2);
                        } else {
                            sets[0].push(s, nonzero, minus, 4);
                        }
                    } else {
                        for j in 0..here {
                            // The sign to bit 31.
                            let word = if W == 2 && j == 0 { s.shl(codes, 16) } else { codes };
                            let word = if W == 2 { s.and(word, s.splat_u32(0xFFFF << 16)) } else { word };
                            let (value, byte, nonzero, minus) = fields.of_word(s, word, side, tops, factor);
                            V::store(s, value, power, &mut self.values[place(j) * height + first..]);
                            store_exponents(
                                s,
                                side,
                                byte,
                                register,
                                &mut self.exponents[place(j) * S::LANES..],
                            );
                            sets[0].push(s, nonzero, minus, 1);
                        }
                    }
                    if !in_two && (sets[0].bit == WORD as u32 || at + here == step.k.len()) {
                        signs = sets[0].flush(s, signs, first, height);
                    }
                }
            }
            if in_two {
                signs = sets[0].flush(s, signs, first, height);
                signs = sets[1].flush(s, signs, first, height);
            }
        }
    }
}

/// Stores the exponent bytes of an element.
#[inline(always)]
fn store_exponents<S: Fused>(s: S, side: Side, byte: S::U32, register: usize, to: &mut [u32]) {
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

impl Source<'_> {
    /// Loads a block of codes of `W` bytes, lane i of register j being four bytes of row i: up to `LANES` rows, and no more
    /// of `k` than fill `LANES` registers. What does not exist is zero.
    #[inline(always)]
    fn load_transposed<S: Fused, const W: usize>(
        &self,
        s: S,
        rows: Range<usize>,
        k: Range<usize>,
        registers: &mut [S::U32; MAX_LANES],
    ) {
        if rows.len() == S::LANES && W * k.start + 4 * S::LANES <= W * self.cols {
            s.load_transposed(&self.codes[rows.start * self.stride + W * k.start..], self.stride, registers);
        } else {
            s.load_transposed(&self.stage(rows, W * k.start..W * k.end), 4 * MAX_LANES, registers);
        }
    }

    /// A block at the edge, copied.
    #[inline(never)]
    fn stage(&self, rows: Range<usize>, bytes: Range<usize>) -> [u8; 4 * MAX_LANES * MAX_LANES] {
        let mut staged = [0; 4 * MAX_LANES * MAX_LANES];
        for (row, to) in rows.zip(staged.chunks_exact_mut(4 * MAX_LANES)) {
            to[..bytes.len()].copy_from_slice(&self.codes[row * self.stride + bytes.start..][..bytes.len()]);
        }
        staged
    }
}
