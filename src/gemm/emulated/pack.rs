//! Packing: codes taken apart as the kernels read them.
//!
//! A panel is `registers · LANES` rows of an operand over a block of K. It holds
//!
//! - values: for each k those of all rows, a little larger in magnitude ([`Packing::pack`]);
//! - exponents: for each k a register whose bytes, together with those of the other operand, give the field of the
//!   product's exponent as an f32 has it, 0 for a product that is zero ([`Fused::sub_bytes`]). Byte v of lane i is that
//!   of row v·LANES + i; in A, whose panels have one register, all four bytes are that of row i;
//! - signs: for each word of 32 elements of a step, which are positive, and which are negative;
//! - scales of MX: for each step their exponents. Of FP4: for each group of 16 their exponents and their values.

use std::ops::Range;

use super::super::accumulation::TensorCore;
use super::plan::{Block, Kernel, Step};
use super::terms::Packing;
use crate::formats::{Format, FormatSpec};
use crate::matrix::MatRef;
use crate::scaled::{CodesRef, ScaleGridRef, ScaledRef, ue4m3_to_f32};
use crate::simd::Fused;
use finegrain_cpu::Buffer;

/// Most lanes of any instruction set.
pub(super) const MAX_LANES: usize = 16;

/// Registers of a panel of B: one for each byte of an exponent lane.
pub(super) const B_REGISTERS: usize = 4;

/// Exponent bytes are 15 − e in A and 142 + e in B: their difference is 127 + e of both.
const TOP_A: i32 = 15;
const TOP_B: i32 = 142;

/// Which operand, and so its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

/// An operand as it is packed.
#[derive(Clone, Copy)]
pub(super) struct Operand<'p> {
    x: &'p ScaledRef<'p>,
    codes: MatRef<'p, u8>,
    fields: Fields,
    kernel: Kernel,
    side: Side,
}

/// Panels of some rows of an operand over a block of K.
pub(super) struct Packed<'p> {
    operand: Operand<'p>,
    values: Buffer,
    exponents: Buffer,
    signs: Buffer,
    scales: Buffer,
    group_values: Buffer,
}

/// One panel.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a, V> {
    pub(super) values: &'a [V],
    pub(super) exponents: &'a [u32],
    pub(super) signs: &'a [u32],
    pub(super) scales: &'a [u32],
    pub(super) group_values: &'a [f64],
}

/// One panel as it is packed.
struct PanelMut<'a, V> {
    values: &'a mut [V],
    exponents: &'a mut [u32],
    signs: &'a mut [u32],
    scales: &'a mut [u32],
    group_values: &'a mut [f64],
}

/// Elements of a panel over a block of K, in each of its parts.
#[derive(Clone, Copy)]
struct Sizes {
    values: usize,
    exponents: usize,
    signs: usize,
    scales: usize,
    group_values: usize,
}

impl<'p> Operand<'p> {
    /// `None` where the format is not taken apart here: those of more than 8 bits, and those whose NaN is the code
    /// of −0.
    pub(super) fn new(x: &'p ScaledRef<'p>, kernel: Kernel, side: Side) -> Option<Self> {
        let CodesRef::Bytes(codes) = x.codes() else { return None };
        let spec = x.format().spec();
        let known = spec.signed() && spec.has_negative_zero();
        known.then_some(Operand { x, codes, fields: Fields::new(spec), kernel, side })
    }

    fn registers(&self) -> usize {
        if self.side == Side::A { 1 } else { B_REGISTERS }
    }

    fn sizes<S: Fused>(&self, block: &Block) -> Sizes {
        let rows = self.registers() * S::LANES;
        let (exponents, scales, group_values) = match self.kernel {
            Kernel::Narrow | Kernel::Wide => (block.k.len(), 0, 0),
            Kernel::WideMx => (block.k.len(), block.steps.len(), 0),
            Kernel::Fp4 => (0, block.groups, block.groups),
        };
        Sizes {
            values: block.k.len() * rows,
            exponents: exponents * S::LANES,
            signs: 2 * block.words * rows,
            scales: scales * rows,
            group_values: group_values * rows,
        }
    }
}

impl<'p> Packed<'p> {
    /// Room for `rows` rows over any of `blocks`.
    pub(super) fn new<S: Fused, P: Packing<S>>(operand: Operand<'p>, rows: usize, blocks: &[Block]) -> Self {
        let panels = rows.div_ceil(operand.registers() * S::LANES);
        let most = |part: fn(Sizes) -> usize| {
            panels * blocks.iter().map(|block| part(operand.sizes::<S>(block))).max().unwrap_or(0)
        };
        Packed {
            operand,
            values: Buffer::zeros(most(|s| s.values) * size_of::<P::Value>() / size_of::<u32>()),
            exponents: Buffer::zeros(most(|s| s.exponents)),
            signs: Buffer::zeros(most(|s| s.signs)),
            scales: Buffer::zeros(most(|s| s.scales)),
            group_values: Buffer::zeros(most(|s| s.group_values) * 2),
        }
    }

    /// Panel `i` of those packed last, over `block`.
    #[inline(always)]
    pub(super) fn panel<S: Fused, P: Packing<S>>(&self, block: &Block, i: usize) -> Panel<'_, P::Value> {
        fn part<V: bytemuck::Pod>(buffer: &Buffer, i: usize, len: usize) -> &[V] {
            &buffer.as_slice()[i * len..][..len]
        }
        let sizes = self.operand.sizes::<S>(block);
        Panel {
            values: part(&self.values, i, sizes.values),
            exponents: part(&self.exponents, i, sizes.exponents),
            signs: part(&self.signs, i, sizes.signs),
            scales: part(&self.scales, i, sizes.scales),
            group_values: part(&self.group_values, i, sizes.group_values),
        }
    }

    /// Packs `rows` into panels; rows that do not exist are zeros.
    #[inline(always)]
    pub(super) fn pack<S: Fused, P: Packing<S>>(
        &mut self,
        s: S,
        rows: Range<usize>,
        block: &Block,
        steps: &[Step],
    ) {
        fn part<V: bytemuck::Pod>(buffer: &mut Buffer, i: usize, len: usize) -> &mut [V] {
            &mut buffer.as_mut_slice()[i * len..][..len]
        }
        let (operand, sizes) = (self.operand, self.operand.sizes::<S>(block));
        let height = operand.registers() * S::LANES;
        for (i, first) in rows.clone().step_by(height).enumerate() {
            let mut panel = PanelMut {
                values: part(&mut self.values, i, sizes.values),
                exponents: part(&mut self.exponents, i, sizes.exponents),
                signs: part(&mut self.signs, i, sizes.signs),
                scales: part(&mut self.scales, i, sizes.scales),
                group_values: part(&mut self.group_values, i, sizes.group_values),
            };
            for register in 0..operand.registers() {
                let first = first + register * S::LANES;
                let lanes = first..rows.end.min(first + S::LANES);
                operand.pack_lanes::<S, P>(s, lanes, block, steps, register, &mut panel);
            }
            operand.pack_scales(first..rows.end.min(first + height), block, steps, height, &mut panel);
        }
    }
}

impl Operand<'_> {
    /// Packs up to `LANES` rows into a register of a panel.
    #[inline(always)]
    fn pack_lanes<S: Fused, P: Packing<S>>(
        &self,
        s: S,
        rows: Range<usize>,
        block: &Block,
        steps: &[Step],
        register: usize,
        panel: &mut PanelMut<'_, P::Value>,
    ) {
        let (height, first) = (self.registers() * S::LANES, register * S::LANES);
        let fields = &self.fields;
        let mut loaded = [s.splat_u32(0); MAX_LANES];
        let mut signs = &mut panel.signs[..];
        for step in &steps[block.steps.clone()] {
            let (mut bit, mut positive, mut negative) = (0, s.splat_u32(0), s.splat_u32(0));
            for start in step.k.clone().step_by(4 * S::LANES) {
                let len = (step.k.end - start).min(4 * S::LANES);
                self.load_transposed(s, rows.clone(), start..start + len, &mut loaded);
                let begin = start - block.k.start;
                for (i, &codes) in loaded[..len.div_ceil(4)].iter().enumerate() {
                    let k = begin + 4 * i;
                    let here = 4.min(begin + len - k);
                    for j in 0..here {
                        let value = fields.value::<S, P>(s, codes, j as u32);
                        P::store(s, value, &mut panel.values[(k + j) * height + first..]);
                    }
                    let (bytes, nonzero, minus) = fields.take_apart(s, codes, self.side);
                    if self.kernel != Kernel::Fp4 {
                        self.store_exponents(s, bytes, register, &mut panel.exponents[k * S::LANES..], here);
                    }
                    let valid = s.splat_u32((1 << here) - 1);
                    let plus = s.sub_u32(nonzero, minus);
                    negative = s.or(negative, s.shl(s.and(nibble(s, minus), valid), bit));
                    positive = s.or(positive, s.shl(s.and(nibble(s, plus), valid), bit));
                    bit += 4;
                    if bit == 32 || start + 4 * i + here == step.k.end {
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
        let (data, stride, cols) = (self.codes.strided(), self.codes.stride(), self.codes.cols());
        if rows.len() == S::LANES && k.start + 4 * S::LANES <= cols {
            s.load_transposed(&data[rows.start * stride + k.start..], stride, registers);
        } else {
            s.load_transposed(&self.stage(rows, k), 4 * MAX_LANES, registers);
        }
    }

    /// A block at the edge, copied.
    #[inline(never)]
    fn stage(&self, rows: Range<usize>, k: Range<usize>) -> [u8; 4 * MAX_LANES * MAX_LANES] {
        let mut staged = [0; 4 * MAX_LANES * MAX_LANES];
        for (row, to) in rows.zip(staged.chunks_exact_mut(4 * MAX_LANES)) {
            to[..k.len()].copy_from_slice(&self.codes.row(row)[k.clone()]);
        }
        staged
    }

    /// Stores the exponent bytes of `count` elements, the lowest first.
    #[inline(always)]
    fn store_exponents<S: Fused>(&self, s: S, bytes: S::U32, register: usize, to: &mut [u32], count: usize) {
        for (j, to) in to.chunks_exact_mut(S::LANES).take(count).enumerate() {
            let byte = s.and(s.shr(bytes, 8 * j as u32), s.splat_u32(0xFF));
            let lanes = match (self.side, register) {
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

    /// The block scales of `rows`, in a panel of `height` rows.
    fn pack_scales<V>(
        &self,
        rows: Range<usize>,
        block: &Block,
        steps: &[Step],
        height: usize,
        panel: &mut PanelMut<'_, V>,
    ) {
        let (Some(scales), true) = (self.x.scales(), matches!(self.kernel, Kernel::WideMx | Kernel::Fp4))
        else {
            return;
        };
        let (cols, bias) = (scales.granule.cols(), E8M0.bias);
        let steps = &steps[block.steps.clone()];
        for (lane, row) in rows.enumerate() {
            if self.kernel == Kernel::WideMx {
                for (step, to) in steps.iter().zip(panel.scales.chunks_exact_mut(height)) {
                    let ScaleGridRef::E8M0(grid) = scales.grid else { unreachable!("MX scales are E8M0") };
                    let exponent = i32::from(grid.at(row, step.k.start / cols)) - bias;
                    to[lane] = exponent.cast_unsigned();
                }
                continue;
            }
            let (mut group, mut word) = (0, 0);
            for step in steps {
                for (i, start) in step.k.clone().step_by(TensorCore::FP4_GROUP).enumerate() {
                    let (exponent, value) = group_scale(scales.grid, row, start / cols);
                    // Exponents are those of A, and fields of an f32 those of B.
                    let exponent = if self.side == Side::A { exponent } else { exponent + bias };
                    panel.scales[group * height + lane] = exponent.cast_unsigned();
                    panel.group_values[group * height + lane] = value;
                    if value == 0.0 {
                        // Products with a scale of zero are zero.
                        let zeros = !(0xFFFF << (i % 2 * TensorCore::FP4_GROUP));
                        let at = 2 * (word + i / 2) * height + lane;
                        panel.signs[at] &= zeros;
                        panel.signs[at + height] &= zeros;
                    }
                    group += 1;
                }
                word += step.words();
            }
        }
    }
}

const E8M0: &FormatSpec = Format::E8M0.spec();
const E4M3: &FormatSpec = Format::E4M3.spec();

/// The exponent and, a little larger in magnitude, the value of an FP4 scale.
fn group_scale(grid: ScaleGridRef<'_>, row: usize, col: usize) -> (i32, f64) {
    let (exponent, value) = match grid {
        ScaleGridRef::E8M0(grid) => {
            let exponent = i32::from(grid.at(row, col)) - E8M0.bias;
            (exponent, f64::from_bits(((f64::MAX_EXP - 1 + exponent) as u64) << (f64::MANTISSA_DIGITS - 1)))
        }
        ScaleGridRef::E4M3(grid) => {
            let code = grid.at(row, col) & 0x7F;
            let field = i32::from(code >> E4M3.mantissa_bits);
            (field.max(1) - E4M3.bias, f64::from(ue4m3_to_f32(code)))
        }
        ScaleGridRef::F32(_) => unreachable!("FP4 scales are of 8 bits"),
    };
    (exponent, value * (1.0 + 4.0 * f64::EPSILON))
}

/// Where a format's fields lie, in each byte of a register.
#[derive(Clone, Copy)]
struct Fields {
    magnitude: u32,
    mantissa_bits: u32,
    exponent: u32,
    /// From the sign to bit 7.
    sign_shift: u32,
    bias: i32,
    /// The exponent and fraction of an f32 that those of a code are moved to.
    float: u32,
    /// From the lowest exponent bit, once the sign is in bit 31, to bit 23.
    float_shift: u32,
}

/// `x` in every byte.
const fn in_bytes(x: u64) -> u32 {
    0x0101_0101 * x as u32
}

/// The upper bits of all bytes.
const SIGNS: u32 = in_bytes(0x80);
/// The sign, and the bias of the exponent, of an f32.
const SIGN: u32 = 1 << 31;
const BIAS: i32 = f32::MAX_EXP - 1;

impl Fields {
    fn new(spec: &FormatSpec) -> Fields {
        Fields {
            magnitude: in_bytes(spec.code_mask() & !spec.sign_mask()),
            mantissa_bits: spec.mantissa_bits,
            exponent: in_bytes((1 << spec.exponent_bits) - 1),
            sign_shift: 8 - spec.bits(),
            bias: spec.bias,
            float: 0x7F_FFFF & !(0x7F_FFFF >> spec.mantissa_bits) | ((1 << spec.exponent_bits) - 1) << 23,
            float_shift: 8 - spec.exponent_bits,
        }
    }

    /// The values of byte `j` of every lane, scaled and made larger as the packing asks. A code's exponent field becomes
    /// that of an f32, which is the value times 2^(bias − 127), subnormals included; infinities and NaN become numbers.
    #[inline(always)]
    fn value<S: Fused, P: Packing<S>>(&self, s: S, codes: S::U32, j: u32) -> S::F32 {
        let top = s.shl(s.shr(codes, 8 * j), 24 + self.sign_shift);
        let bits = s.and(s.sar(top, self.float_shift), s.splat_u32(SIGN | self.float));
        let restored = f32::from_bits(((2 * BIAS - self.bias) as u32) << 23);
        s.mul(s.float(bits), s.splat(restored * P::FACTOR))
    }

    /// Of every byte: the exponent byte; in bit 7 whether it is not zero, and whether it is negative and not zero.
    #[inline(always)]
    fn take_apart<S: Fused>(&self, s: S, codes: S::U32, side: Side) -> (S::U32, S::U32, S::U32) {
        let ones = s.splat_u32(in_bytes(1));
        let magnitude = s.and(codes, s.splat_u32(self.magnitude));
        let one_if_nonzero = s.sub_u32(magnitude, s.sub_bytes(magnitude, ones));
        let nonzero = s.sub_u32(s.shl(one_if_nonzero, 8), one_if_nonzero);
        let field = s.and(s.shr(magnitude, self.mantissa_bits), s.splat_u32(self.exponent));
        let field = s.max_bytes(field, ones);
        let bytes = if side == Side::A {
            let top = s.splat_u32(in_bytes((TOP_A + self.bias) as u64));
            // Zeros are more than any byte of B.
            let zeros = s.sub_u32(s.splat_u32(u32::MAX), nonzero);
            s.or(s.and(s.sub_u32(top, field), nonzero), zeros)
        } else {
            let top = s.splat_u32(in_bytes((TOP_B - self.bias) as u64));
            s.and(s.add_u32(top, field), nonzero)
        };
        let flags = s.and(nonzero, s.splat_u32(SIGNS));
        (bytes, flags, s.and(s.shl(codes, self.sign_shift), flags))
    }
}

/// Bit 7 of the four bytes, in the lowest four bits of each lane.
#[inline(always)]
fn nibble<S: Fused>(s: S, flags: S::U32) -> S::U32 {
    let x = s.shr(flags, 7);
    let pairs = s.or(x, s.shr(x, 7));
    s.and(s.or(pairs, s.shr(pairs, 14)), s.splat_u32(15))
}
