//! The microkernel's step for FP4: groups of 16 products, exact in f32, aligned at the exponents of their scales.

use super::super::accumulation::TensorCore;
use super::pack::{B_REGISTERS, MAX_LANES};
use super::terms::{Packing, Terms, Wide};
use super::tile::{Inputs, Place, StepKernel, Tile};
use crate::simd::Fused;

/// The most rows of a tile.
const MAX_ROWS: usize = 2;

/// Groups of 16 products of E2M1.
#[derive(Clone, Copy)]
pub(super) struct Groups;

/// Terms are summed in f64; their scales are part of their values.
type Sum = Wide<true>;

impl<S: Fused> Packing<S> for Groups {
    type Value = f32;

    const FACTOR: f32 = 1.0;

    #[inline(always)]
    fn store(s: S, x: S::F32, out: &mut [f32]) {
        s.store(x, out);
    }
}

impl<S: Fused> StepKernel<S> for Groups {
    const ROWS: usize = if S::REGISTERS == 32 { MAX_ROWS } else { 1 };

    #[inline(always)]
    fn step<const MR: usize, const COUNTS: bool>(
        s: S,
        inputs: &Inputs<'_, f32>,
        at: Place,
        mut c: Tile<S::F32, MR>,
    ) -> Tile<S::F32, MR> {
        let (core, a, b, row) = (inputs.core, inputs.a, inputs.b, inputs.row);
        let (lanes, width) = (S::LANES, B_REGISTERS * S::LANES);
        let zero = s.splat_u32(0);
        let none = s.splat_u32(core.zero.cast_unsigned());

        let (mut opened, mut sums) =
            ([[<Sum as Terms<S>>::nothing(s); B_REGISTERS]; MR], [[s.splat_f64(0.0); B_REGISTERS]; MR]);
        let mut negative = [[zero; B_REGISTERS]; MR];
        for i in 0..MR {
            for v in 0..B_REGISTERS {
                let mut largest = none;
                for g in 0..at.groups {
                    let a = s.splat_u32(a.scales[(at.group + g) * lanes + row + i]);
                    let e = s.add_u32(a, s.load_u32(&b.scales[(at.group + g) * width + v * lanes..]));
                    let products = products(s, inputs, at.word, g, i, v);
                    largest = s.max_i32(largest, s.select_at_least(products, 1, e, none));
                }
                (opened[i][v], sums[i][v]) = Sum::open::<false>(core, s, largest, zero, zero, c[i][v]);
            }
        }

        let mut group = [0.0; MAX_ROWS * B_REGISTERS * MAX_LANES];
        for g in 0..at.groups {
            let first = g * TensorCore::FP4_GROUP;
            let (k, len) = (at.k + first, TensorCore::FP4_GROUP.min(at.len - first));
            let (values_a, values_b) =
                (&a.values[k * lanes..][..len * lanes], &b.values[k * width..][..len * width]);
            dot::<S, MR>(s, row, values_a, values_b, &mut group);
            for i in 0..MR {
                let scale_a = s.splat_f64(a.group_values[(at.group + g) * lanes + row + i]);
                for v in 0..B_REGISTERS {
                    let sum = s.load(&group[(i * B_REGISTERS + v) * lanes..]);
                    let scale_b = s.load_f64(&b.group_values[(at.group + g) * width + v * lanes..]);
                    let scaled = s.mul_f64(s.widen(sum), scale_b);
                    sums[i][v] = Sum::add(s, opened[i][v], sums[i][v], scaled, scale_a);
                    let minus = s.shr(s.bits(sum), 31);
                    let minus = s.select_at_least(products(s, inputs, at.word, g, i, v), 1, minus, zero);
                    negative[i][v] = s.add_u32(negative[i][v], minus);
                }
            }
        }

        for i in 0..MR {
            for v in 0..B_REGISTERS {
                c[i][v] =
                    Sum::close::<false>(core, s, opened[i][v], zero, negative[i][v], sums[i][v], c[i][v]);
            }
        }
        c
    }
}

/// The sums of a group's products, exact, into `out`: in memory, so that the loop has them in registers.
#[inline(always)]
fn dot<S: Fused, const MR: usize>(s: S, row: usize, a: &[f32], b: &[f32], out: &mut [f32]) {
    let mut sums = [[s.splat(0.0); B_REGISTERS]; MR];
    let (mut a, mut b) = (a.chunks_exact(S::LANES), b.chunks_exact(B_REGISTERS * S::LANES));
    while let (Some(a), Some(b)) = (a.next(), b.next()) {
        let a = &a[row..][..MR];
        for v in 0..B_REGISTERS {
            let b = s.load(&b[v * S::LANES..]);
            for i in 0..MR {
                sums[i][v] = s.step(s.splat(a[i]), b, sums[i][v]);
            }
        }
    }
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            s.store(sums[i][v], &mut out[(i * B_REGISTERS + v) * S::LANES..]);
        }
    }
}

/// Not zero where group `g` of the step at `word` has a product that is not, of row `i` of the tile and register `v` of
/// the panel.
#[inline(always)]
fn products<S: Fused>(s: S, inputs: &Inputs<'_, f32>, word: usize, g: usize, i: usize, v: usize) -> S::U32 {
    let (lanes, width, word) = (S::LANES, B_REGISTERS * S::LANES, word + g / 2);
    let a = &inputs.a.signs[2 * word * lanes + inputs.row + i..];
    let b = &inputs.b.signs[2 * word * width + v * lanes..];
    let of_group = 0xFFFF << (g % 2 * TensorCore::FP4_GROUP);
    s.and(s.splat_u32((a[0] | a[lanes]) & of_group), s.or(s.load_u32(b), s.load_u32(&b[width..])))
}
