//! A step of FP4: groups of 16 products, exact in f32, aligned at the exponents of their scales.

use super::microkernel::{Micropanels, Place, StepKernel, Tile};
use super::terms::{Terms, Wide};
use super::{B_REGISTERS, GROUP};
use crate::simd::Fused;

/// Groups of products of E2M1, summed in f64; their scales are part of their values.
#[derive(Clone, Copy)]
pub(super) struct Groups(pub(super) Wide<false>);

impl StepKernel for Groups {
    const COUNTS: bool = false;

    #[inline(always)]
    fn rows<S: Fused>(self) -> usize {
        S::WIDE_ROWS
    }

    #[inline(always)]
    fn step<S: Fused, const MR: usize, const COUNTS: bool>(
        self,
        s: S,
        panels: &Micropanels<'_>,
        at: Place,
        mut c: Tile<S::F32, MR>,
    ) -> Tile<S::F32, MR> {
        let (a, b, row) = (panels.a, panels.b, at.row);
        let (lanes, width) = (S::LANES, B_REGISTERS * S::LANES);
        let zero = s.splat_u32(0);
        let none = s.splat_u32(panels.core.zero.cast_unsigned());
        let (nothing, sum) = Wide::<false>::nothing(s);
        let (mut opened, mut sums) = ([[nothing; B_REGISTERS]; MR], [[sum; B_REGISTERS]; MR]);
        let mut negative = [[zero; B_REGISTERS]; MR];
        // In memory, so that the loop of products has its sums in registers.
        let mut group = [[s.splat(0.0); B_REGISTERS]; MR];

        for i in 0..MR {
            for v in 0..B_REGISTERS {
                let mut largest = none;
                for g in 0..at.groups {
                    let a = s.splat_u32(a.scales[(at.group + g) * lanes + row + i]);
                    let e = s.add_u32(a, s.load_u32(&b.scales[(at.group + g) * width + v * lanes..]));
                    let products = products(s, panels, at, g, i, v);
                    largest = s.max_i32(largest, s.select_at_least(products, 1, e, none));
                }
                (opened[i][v], sums[i][v]) = self.0.open::<S, false, true>(s, largest, zero, c[i][v]);
            }
        }

        for g in 0..at.groups {
            let first = g * GROUP;
            let group_at = Place { k: at.k + first, len: GROUP.min(at.len - first), ..at };
            dot(s, panels, group_at, &mut group);
            for i in 0..MR {
                let scale_a = s.splat_f64(a.group_values[(at.group + g) * lanes + row + i]);
                for v in 0..B_REGISTERS {
                    let sum = group[i][v];
                    let scale_b = s.load_f64(&b.group_values[(at.group + g) * width + v * lanes..]);
                    let scaled = s.mul_f64(s.widen(sum), scale_b);
                    sums[i][v] = Wide::<false>::add(s, opened[i][v], sums[i][v], scaled, scale_a);
                    let minus = s.shr(s.bits(sum), 31);
                    let minus = s.select_at_least(products(s, panels, at, g, i, v), 1, minus, zero);
                    negative[i][v] = s.add_u32(negative[i][v], minus);
                }
            }
        }

        for i in 0..MR {
            for v in 0..B_REGISTERS {
                c[i][v] = self.0.close::<S, false>(s, opened[i][v], negative[i][v], sums[i][v], c[i][v]);
            }
        }
        c
    }
}

/// The sums of a group's products, exact, into `out`.
#[inline(always)]
fn dot<S: Fused, const MR: usize>(s: S, panels: &Micropanels<'_>, at: Place, out: &mut Tile<S::F32, MR>) {
    let Place { row, k, len, .. } = at;
    let (lanes, width) = (S::LANES, B_REGISTERS * S::LANES);
    let (a, b) = (
        bytemuck::cast_slice::<u32, f32>(panels.a.values),
        bytemuck::cast_slice::<u32, f32>(panels.b.values),
    );
    let mut a = a[k * lanes..][..len * lanes].chunks_exact(lanes);
    let mut b = b[k * width..][..len * width].chunks_exact(width);
    let mut sums = [[s.splat(0.0); B_REGISTERS]; MR];
    while let (Some(a), Some(b)) = (a.next(), b.next()) {
        let a = &a[row..][..MR];
        for v in 0..B_REGISTERS {
            let b = s.load(&b[v * lanes..]);
            for i in 0..MR {
                sums[i][v] = s.step(s.splat(a[i]), b, sums[i][v]);
            }
        }
    }
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            out[i][v] = sums[i][v];
        }
    }
}

/// Not zero where group `g` of the step at `word` has a product that is not, of row `i` of the tile and register `v` of
/// the panel.
#[inline(always)]
fn products<S: Fused>(s: S, panels: &Micropanels<'_>, at: Place, g: usize, i: usize, v: usize) -> S::U32 {
    let (lanes, width, word) = (S::LANES, B_REGISTERS * S::LANES, at.word + g / 2);
    let a = &panels.a.signs[2 * word * lanes + at.row + i..];
    let b = &panels.b.signs[2 * word * width + v * lanes..];
    let of_group = 0xFFFF << (g % 2 * GROUP);
    s.and(s.splat_u32((a[0] | a[lanes]) & of_group), s.or(s.load_u32(b), s.load_u32(&b[width..])))
}
