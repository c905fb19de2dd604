//! Packing: micropanels of an operand over a block of K, and the block scales in them.

use std::ops::Range;

use finegrain_cpu::Buffer;
use finegrain_cpu::tensor_core::{
    self as kernels, BELOW, Fields, Kernel, Panel, PanelMut, RowExponents, Side, Source,
};

use super::super::intervals::IntervalPart;
use super::super::tensor_core::TensorCore;
use super::plan::{Block, Plan};
use crate::formats::{Format, FormatSpec};
use crate::scaled::{CodesRef, ScaleGridRef, ScaledRef, ue4m3_to_f32};
use crate::simd;

/// An operand as it is packed.
#[derive(Clone, Copy)]
pub(super) struct Operand<'p> {
    x: &'p ScaledRef<'p>,
    codes: &'p [u8],
    /// Bytes from one row to the next.
    stride: usize,
    fields: Fields,
    side: Side,
}

impl<'p> Operand<'p> {
    /// `None` where the format is not taken apart ([`Fields::new`]).
    pub(super) fn new(x: &'p ScaledRef<'p>, side: Side) -> Option<Self> {
        let (codes, stride): (&[u8], usize) = match x.codes() {
            CodesRef::Bytes(m) => (m.strided(), m.stride()),
            CodesRef::Words(m) => (bytemuck::cast_slice(m.strided()), 2 * m.stride()),
            CodesRef::Dwords(m) => (bytemuck::cast_slice(m.strided()), 4 * m.stride()),
        };
        let fields = simd::fields(x.format(), TensorCore::mantissa_bits(x.format()))?;
        Some(Operand { x, codes, stride, fields, side })
    }
}

/// Micropanels of some rows of an operand over a block of K.
pub(super) struct Packed<'p> {
    plan: &'p Plan<'p>,
    operand: &'p Operand<'p>,
    /// Rows of a micropanel.
    height: usize,
    values: Buffer,
    exponents: Buffer,
    signs: Buffer,
    scales: Buffer,
    group_values: Buffer,
    /// The top of each row of the operand ([`Rows::tops`](super::rows::Rows::tops)), where it has tops.
    tops: &'p [u32],
}

/// Rows of the highest micropanel of any instruction set.
const MAX_HEIGHT: usize = 64;

/// Elements of a micropanel over a block of K, in each of its parts.
#[derive(Clone, Copy)]
struct Sizes {
    values: usize,
    exponents: usize,
    signs: usize,
    scales: usize,
    group_values: usize,
}

/// The sizes over a block of micropanels of `height` rows.
fn sizes(plan: &Plan<'_>, block: &Block, height: usize) -> Sizes {
    let (exponents, scales, group_values) = match plan.kernel {
        Kernel::Wide if plan.is_mx() => (block.k.len(), block.steps.len(), 0),
        Kernel::Narrow | Kernel::Wide | Kernel::InTwo => (block.k.len(), 0, 0),
        Kernel::Offset => (block.k.len(), block.steps.len(), 0),
        Kernel::Fp4 => (0, block.groups, block.groups),
    };
    Sizes {
        values: block.k.len() * height * plan.kernel.value_bytes() / size_of::<u32>(),
        exponents: exponents * plan.geometry.lanes,
        signs: 2 * block.words * height,
        scales: scales * height,
        group_values: group_values * height,
    }
}

/// Micropanel `i` of a buffer whose micropanels are `len` long.
fn part<T: bytemuck::Pod>(buffer: &Buffer, i: usize, len: usize) -> &[T] {
    &buffer.as_slice()[i * len..][..len]
}

/// See [`part`].
fn part_mut<T: bytemuck::Pod>(buffer: &mut Buffer, i: usize, len: usize) -> &mut [T] {
    &mut buffer.as_mut_slice()[i * len..][..len]
}

impl<'p> Packed<'p> {
    /// Room for `rows` rows of an operand over any block of the plan.
    pub(super) fn new(plan: &'p Plan<'p>, operand: &'p Operand<'p>, tops: &'p [u32], rows: usize) -> Self {
        let height = match operand.side {
            Side::A => plan.geometry.lanes,
            Side::B => plan.geometry.nr,
        };
        let panels = rows.div_ceil(height);
        let room = |part: fn(Sizes) -> usize| {
            let of_block = |block| part(sizes(plan, block, height));
            Buffer::zeros(panels * plan.blocks.iter().map(of_block).max().unwrap_or(0))
        };
        Packed {
            plan,
            operand,
            height,
            values: room(|s| s.values),
            exponents: room(|s| s.exponents),
            signs: room(|s| s.signs),
            scales: room(|s| s.scales),
            group_values: room(|s| s.group_values * (size_of::<f64>() / size_of::<u32>())),
            tops,
        }
    }

    /// Micropanel `i` of those packed last, over `block`.
    pub(super) fn panel(&self, block: &Block, i: usize) -> Panel<'_> {
        let sizes = sizes(self.plan, block, self.height);
        Panel {
            values: part(&self.values, i, sizes.values),
            exponents: part(&self.exponents, i, sizes.exponents),
            signs: part(&self.signs, i, sizes.signs),
            scales: part(&self.scales, i, sizes.scales),
            group_values: part(&self.group_values, i, sizes.group_values),
        }
    }

    /// Packs `rows` over a block; rows that do not exist are zeros.
    pub(super) fn pack(&mut self, rows: Range<usize>, block: &Block) {
        let Packed { plan, operand, height, .. } = *self;
        let (sizes, steps) = (sizes(plan, block, height), &plan.steps[block.steps.clone()]);
        let source = Source {
            codes: operand.codes,
            stride: operand.stride,
            cols: operand.x.shape().1,
            fields: operand.fields,
            side: operand.side,
        };
        for (i, first) in rows.clone().step_by(height).enumerate() {
            let rows = first..rows.end.min(first + height);
            let scales = part_mut(&mut self.scales, i, sizes.scales);
            let mut row_tops = [0; MAX_HEIGHT];
            if !self.tops.is_empty() {
                row_tops[..rows.len()].copy_from_slice(&self.tops[rows.clone()]);
            }
            let level = plan.levels.map(|[a, b]| if operand.side == Side::A { a } else { b });
            let exponents_of = match plan.kernel {
                Kernel::Offset | Kernel::Wide if !self.tops.is_empty() => {
                    operand.pack_tops(&row_tops[..height], scales);
                    RowExponents::Tops(&row_tops)
                }
                Kernel::Offset | Kernel::Wide if plan.is_mx() => {
                    operand.pack_mx_scales(rows.clone(), height, steps, scales);
                    RowExponents::Scales(scales, level)
                }
                Kernel::Narrow | Kernel::Wide | Kernel::InTwo | Kernel::Offset | Kernel::Fp4 => {
                    RowExponents::None
                }
            };
            let panel = PanelMut {
                values: part_mut(&mut self.values, i, sizes.values),
                exponents: part_mut(&mut self.exponents, i, sizes.exponents),
                signs: part_mut(&mut self.signs, i, sizes.signs),
            };
            kernels::pack(plan.isa, plan.kernel, &source, rows.clone(), steps, exponents_of, panel);
            match plan.kernel {
                Kernel::Narrow | Kernel::Wide | Kernel::InTwo | Kernel::Offset => {}
                Kernel::Fp4 => {
                    let panel = GroupScales {
                        height,
                        signs: part_mut(&mut self.signs, i, sizes.signs),
                        exponents: part_mut(&mut self.scales, i, sizes.scales),
                        values: part_mut(&mut self.group_values, i, sizes.group_values),
                    };
                    operand.pack_group_scales(rows, steps, panel);
                }
            }
        }
    }
}

/// The scales of FP4 in a micropanel, and the signs: products with a scale of zero are zero.
struct GroupScales<'a> {
    height: usize,
    signs: &'a mut [u32],
    exponents: &'a mut [u32],
    values: &'a mut [f64],
}

impl Operand<'_> {
    /// What the exponents of a step's elements are below, for all steps: a product has the exponent field of A's and B's
    /// tops together, less the bias and what its bytes give.
    fn pack_tops(&self, tops: &[u32], to: &mut [u32]) {
        let less = match self.side {
            Side::A => BELOW + E8M0.bias.cast_unsigned(),
            Side::B => 0,
        };
        for to in to.chunks_exact_mut(tops.len()) {
            to.iter_mut().zip(tops).for_each(|(to, top)| *to = top.wrapping_sub(less));
        }
    }

    /// The scales of MX of `rows`, into a micropanel of `height` rows.
    fn pack_mx_scales(&self, rows: Range<usize>, height: usize, steps: &[IntervalPart], to: &mut [u32]) {
        let Some(scales) = self.x.scales() else { return };
        let ScaleGridRef::E8M0(grid) = scales.grid else { unreachable!("MX scales are E8M0") };
        for (lane, row) in rows.enumerate() {
            for (step, to) in steps.iter().zip(to.chunks_exact_mut(height)) {
                let exponent = i32::from(grid.at(row, step.k.start / scales.granule.cols())) - E8M0.bias;
                to[lane] = exponent.cast_unsigned();
            }
        }
    }

    /// The scales of FP4 of `rows`.
    fn pack_group_scales(&self, rows: Range<usize>, steps: &[IntervalPart], panel: GroupScales<'_>) {
        let Some(scales) = self.x.scales() else { return };
        let GroupScales { height, signs, exponents, values } = panel;
        for (lane, row) in rows.enumerate() {
            let (mut group, mut word) = (0, 0);
            for step in steps {
                for (i, start) in step.k.clone().step_by(TensorCore::FP4_GROUP).enumerate() {
                    let (exponent, value) = group_scale(scales.grid, row, start / scales.granule.cols());
                    // Exponents are those of A, and fields of an f32 those of B.
                    let exponent = if self.side == Side::A { exponent } else { exponent + E8M0.bias };
                    exponents[group * height + lane] = exponent.cast_unsigned();
                    values[group * height + lane] = value;
                    if value == 0.0 {
                        let zeros = !(0xFFFF << (i % 2 * TensorCore::FP4_GROUP));
                        let at = 2 * (word + i / 2) * height + lane;
                        signs[at] &= zeros;
                        signs[at + height] &= zeros;
                    }
                    group += 1;
                }
                word += Kernel::Fp4.words(step);
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
