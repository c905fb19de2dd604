//! A step of products, aligned one by one: all tensor cores but those of FP4.

use super::microkernel::{Micropanels, Place, StepKernel, Tile};
use super::terms::{Terms, Wide, with_late};
use super::{B_REGISTERS, WORD, first_set};
use crate::simd::Fused;

/// Products as terms; exponents of rows are added to those of a step where they are `OFFSET`.
#[derive(Clone, Copy)]
pub(super) struct Products<T, const OFFSET: bool>(pub(super) T);

impl<T: Terms, const OFFSET: bool> StepKernel for Products<T, OFFSET> {
    const COUNTS: bool = true;

    #[inline(always)]
    fn rows<S: Fused>(self) -> usize {
        if size_of::<T::Value>() == size_of::<f32>() { S::NARROW_ROWS } else { S::WIDE_ROWS }
    }

    #[inline(always)]
    fn step<S: Fused, const MR: usize, const COUNTS: bool>(
        self,
        s: S,
        panels: &Micropanels<'_>,
        at: Place,
        c: Tile<S::F32, MR>,
    ) -> Tile<S::F32, MR> {
        if panels.core.late {
            self.aligned::<S, MR, COUNTS, true>(s, panels, at, c)
        } else {
            self.aligned::<S, MR, COUNTS, false>(s, panels, at, c)
        }
    }
}

/// Products in two sets, the second of which joins the first; a late accumulator joins both.
#[derive(Clone, Copy)]
pub(super) struct InTwo<const HALF: bool>(pub(super) Wide<HALF>);

impl<const HALF: bool> StepKernel for InTwo<HALF> {
    const COUNTS: bool = true;

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
        let (kernel, first) = (Products::<Wide<HALF>, false>(self.0), first_set(at.len));
        let second = Place { k: at.k + first, word: at.word + 1, len: at.len - first, ..at };
        let first = Place { len: first, ..at };
        if !panels.core.late {
            let sum = kernel.aligned::<S, MR, COUNTS, false>(s, panels, first, c);
            return kernel.aligned::<S, MR, COUNTS, false>(s, panels, second, sum);
        }
        // From +0, which takes part in nothing.
        let zeros = [[s.splat(0.0); B_REGISTERS]; MR];
        let sum = kernel.aligned::<S, MR, COUNTS, true>(s, panels, first, zeros);
        let sum = kernel.aligned::<S, MR, COUNTS, false>(s, panels, second, sum);
        for i in 0..MR {
            for v in 0..B_REGISTERS {
                c[i][v] = with_late::<S, HALF>(s, c[i][v], sum[i][v]);
            }
        }
        c
    }
}

impl<T: Terms, const OFFSET: bool> Products<T, OFFSET> {
    #[inline(always)]
    fn aligned<S: Fused, const MR: usize, const COUNTS: bool, const LATE: bool>(
        self,
        s: S,
        panels: &Micropanels<'_>,
        at: Place,
        mut c: Tile<S::F32, MR>,
    ) -> Tile<S::F32, MR> {
        let (lanes, width, zero) = (S::LANES, B_REGISTERS * S::LANES, s.splat_u32(0));
        let largest = largest_exponents::<S, MR>(s, panels, at);
        let negative = negative_products::<S, MR, COUNTS>(s, panels, at);
        let (nothing, sum) = T::nothing(s);
        let (mut opened, mut sums) = ([[nothing; B_REGISTERS]; MR], [[sum; B_REGISTERS]; MR]);
        for i in 0..MR {
            for v in 0..B_REGISTERS {
                let byte = s.and(s.shr(largest[i], 8 * v as u32), s.splat_u32(0xFF));
                let mut e = byte;
                if OFFSET {
                    let a = s.splat_u32(panels.a.scales[at.step * lanes + at.row + i]);
                    let b = s.load_u32(&panels.b.scales[at.step * width + v * lanes..]);
                    let none = s.splat_u32(panels.core.zero.cast_unsigned());
                    e = s.select_at_least(byte, 1, s.add_u32(byte, s.add_u32(a, b)), none);
                }
                (opened[i][v], sums[i][v]) = self.0.open::<S, LATE, OFFSET>(s, e, negative[i][v], c[i][v]);
            }
        }
        sums = add_products::<S, T, MR>(s, panels, at, opened, sums);
        for i in 0..MR {
            for v in 0..B_REGISTERS {
                c[i][v] = self.0.close::<S, LATE>(s, opened[i][v], zero, sums[i][v], c[i][v]);
            }
        }
        c
    }
}

/// Adds the products of a step.
///
/// Sums are copied in and out, one by one: what callers index is in memory, these are in registers.
#[inline(always)]
fn add_products<S: Fused, T: Terms, const MR: usize>(
    s: S,
    panels: &Micropanels<'_>,
    at: Place,
    opened: Tile<T::Open<S>, MR>,
    from: Tile<T::Lanes<S>, MR>,
) -> Tile<T::Lanes<S>, MR> {
    let (lanes, width, Place { k, len, .. }) = (S::LANES, B_REGISTERS * S::LANES, at);
    let mut a = values::<T>(panels.a.values)[k * lanes..][..len * lanes].chunks_exact(lanes);
    let mut b = values::<T>(panels.b.values)[k * width..][..len * width].chunks_exact(width);
    let zero = T::nothing(s).1;
    let (mut sums, mut to) = ([[zero; B_REGISTERS]; MR], [[zero; B_REGISTERS]; MR]);
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            sums[i][v] = from[i][v];
        }
    }
    while let (Some(a), Some(b)) = (a.next(), b.next()) {
        let a = &a[at.row..][..MR];
        let mut columns = [T::load(s, b); B_REGISTERS];
        for v in 1..B_REGISTERS {
            columns[v] = T::load(s, &b[v * lanes..]);
        }
        for i in 0..MR {
            let a = T::splat(s, a[i]);
            for v in 0..B_REGISTERS {
                sums[i][v] = T::add(s, opened[i][v], sums[i][v], a, columns[v]);
            }
        }
    }
    for i in 0..MR {
        for v in 0..B_REGISTERS {
            to[i][v] = sums[i][v];
        }
    }
    to
}

fn values<T: Terms>(packed: &[u32]) -> &[T::Value] {
    bytemuck::cast_slice(packed)
}

/// The exponent bytes of the largest products of a step, for each row of the panels.
#[inline(always)]
fn largest_exponents<S: Fused, const MR: usize>(s: S, panels: &Micropanels<'_>, at: Place) -> [S::U32; MR] {
    let Place { row, k, len, .. } = at;
    let mut a = panels.a.exponents[k * S::LANES..][..len * S::LANES].chunks_exact(S::LANES);
    let mut b = panels.b.exponents[k * S::LANES..][..len * S::LANES].chunks_exact(S::LANES);
    let mut largest = [s.splat_u32(0); MR];
    while let (Some(a), Some(b)) = (a.next(), b.next()) {
        let (a, b) = (&a[row..][..MR], s.load_u32(b));
        for i in 0..MR {
            largest[i] = s.max_bytes(largest[i], s.sub_bytes(b, s.splat_u32(a[i])));
        }
    }
    largest
}

/// How many products of a step are negative.
#[inline(always)]
fn negative_products<S: Fused, const MR: usize, const COUNTS: bool>(
    s: S,
    panels: &Micropanels<'_>,
    at: Place,
) -> Tile<S::U32, MR> {
    let (lanes, width) = (S::LANES, B_REGISTERS * S::LANES);
    let mut negative = [[s.splat_u32(0); B_REGISTERS]; MR];
    for word in at.word..at.word + at.len.div_ceil(WORD) {
        let (plus_a, minus_a) = panels.a.signs[2 * word * lanes..][..2 * lanes].split_at(lanes);
        let (plus_b, minus_b) = panels.b.signs[2 * word * width..][..2 * width].split_at(width);
        let (plus_a, minus_a) = (&plus_a[at.row..][..MR], &minus_a[at.row..][..MR]);
        for v in 0..B_REGISTERS {
            let (plus_b, minus_b) = (s.load_u32(&plus_b[v * lanes..]), s.load_u32(&minus_b[v * lanes..]));
            for i in 0..MR {
                let bits = s.and_or(s.splat_u32(plus_a[i]), minus_b, s.splat_u32(minus_a[i]), plus_b);
                negative[i][v] = s.add_u32(negative[i][v], s.count_ones::<COUNTS>(bits));
            }
        }
    }
    negative
}
