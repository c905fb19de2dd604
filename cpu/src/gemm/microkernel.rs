//! The microkernel: a microtile of D over a block of K, and what becomes of its sums at the end of each interval.
//!
//! ```text
//!             columns: NR, in registers
//!           ┌────────────┬────────────┬─ … ─┐
//!   a[0] →  │ sum[0][0]  │ sum[0][1]  │     │      one step of K: load NR columns of the micropanel of B, broadcast MR
//!   a[1] →  │ sum[1][0]  │ sum[1][1]  │     │      elements of A, a dot product of a pair of elements in each lane
//!    …      └────────────┴────────────┴─ … ─┘
//! ```
//!
//! Accumulators live in memory, in the first-level cache: they are touched once an interval.

use super::promote::{Promotion, promote};
use super::{IntervalPart, LINE};
use crate::simd::{Convert, Isa, KC, Simd, Work};

/// The packed operands of a microtile over a block of K.
#[derive(Clone, Copy, Debug)]
pub struct Micropanels<'a> {
    /// The block, cut at the promotion intervals.
    pub parts: &'a [IntervalPart],
    /// Rows of A from the microtile's first, [`KC`] elements apart.
    pub a: &'a [u32],
    /// Steps of NR elements of B.
    pub b: &'a [u32],
    /// The scale of row i in part p at \[p · `scales_a_stride` + i\].
    pub scales_a: &'a [f32],
    /// See there.
    pub scales_a_stride: usize,
    /// The scale of column j in part p at \[p · NR + j\].
    pub scales_b: &'a [f32],
    /// How partial sums are promoted.
    pub promotion: Promotion,
}

/// Sums a microtile of `mr` rows over a block of K: [the contract](super).
///
/// `acc` begins with the microtile's accumulators, MR · NR of them in rows; what follows is asked for from memory, since the next
/// microtile is there. `partial` holds as many sums of an interval that goes beyond the block.
///
/// # Panics
/// If microtiles of the instruction set cannot have so many rows, or an operand is too short.
pub fn microkernel(isa: Isa, mr: usize, panels: &Micropanels<'_>, partial: &mut [f32], acc: &mut [f32]) {
    match mr {
        1 => isa.run(Microtile::<1> { panels, partial, acc }),
        2 => isa.run(Microtile::<2> { panels, partial, acc }),
        3 => isa.run(Microtile::<3> { panels, partial, acc }),
        4 => isa.run(Microtile::<4> { panels, partial, acc }),
        5 => isa.run(Microtile::<5> { panels, partial, acc }),
        6 => isa.run(Microtile::<6> { panels, partial, acc }),
        _ => no_microtile(isa, mr),
    }
}

#[cold]
#[inline(never)]
fn no_microtile(isa: Isa, mr: usize) -> ! {
    panic!("{isa} has no microtiles of {mr} rows: {:?}", isa.geometry().mr)
}

struct Microtile<'x, const MR: usize> {
    panels: &'x Micropanels<'x>,
    partial: &'x mut [f32],
    acc: &'x mut [f32],
}

impl<const MR: usize> Work for Microtile<'_, MR> {
    type Output = ();

    #[inline(always)]
    fn run<S: Convert>(self, s: S) {
        if const { S::GEOMETRY.has_rows(MR) } {
            self.sum(s);
        } else {
            no_microtile(S::ISA, MR);
        }
    }
}

impl<const MR: usize> Microtile<'_, MR> {
    #[inline(always)]
    fn sum<S: Simd>(self, s: S) {
        let Microtile { panels, partial, acc } = self;
        let (nr, mut b, mut step) = (S::GEOMETRY.nr, panels.b, 0);
        let (rows, _) = panels.a.as_chunks::<KC>();
        let a: &[[u32; KC]; MR] = rows.first_chunk().expect("the rows of a microtile are packed");
        for line in (MR * nr..2 * MR * nr).step_by(LINE) {
            s.prefetch(acc, line);
        }
        for (p, part) in panels.parts.iter().enumerate() {
            let steps = part.steps(S::PAIR);
            let b_steps;
            (b_steps, b) = b.split_at(steps * nr);
            let mut tile = [s.columns(s.splat(0.0)); MR];
            if !part.starts {
                load(s, partial, &mut tile);
            }
            for (b, step) in b_steps.chunks_exact(nr).zip(step..KC) {
                let mut columns = s.columns(s.splat(0.0));
                for v in 0..nr / S::LANES {
                    columns[v] = s.float(s.load_u32(&b[v * S::LANES..]));
                }
                for i in 0..MR {
                    let row = s.splat(f32::from_bits(a[i][step]));
                    for v in 0..nr / S::LANES {
                        tile[i][v] = s.step(row, columns[v], tile[i][v]);
                    }
                }
            }
            step += steps;
            if !part.ends {
                store(s, &tile, partial);
                continue;
            }
            let rows = &panels.scales_a[p * panels.scales_a_stride..][..MR];
            let columns = &panels.scales_b[p * nr..][..nr];
            // The choice is made once a tile: inside the loops it would keep them from being unrolled.
            match panels.promotion {
                Promotion::ScalesFirst => promote_tile(s, Promotion::ScalesFirst, &tile, rows, columns, acc),
                Promotion::PartialFirst => {
                    promote_tile(s, Promotion::PartialFirst, &tile, rows, columns, acc)
                }
                Promotion::Unfused => promote_tile(s, Promotion::Unfused, &tile, rows, columns, acc),
            }
        }
    }
}

/// The sums of a microtile, in registers.
type Tile<S, const MR: usize> = [<S as Simd>::Columns; MR];

#[inline(always)]
fn load<S: Simd, const MR: usize>(s: S, from: &[f32], tile: &mut Tile<S, MR>) {
    let from = &from[..MR * S::GEOMETRY.nr];
    for i in 0..MR {
        for v in 0..S::GEOMETRY.nr / S::LANES {
            tile[i][v] = s.load(&from[i * S::GEOMETRY.nr + v * S::LANES..]);
        }
    }
}

#[inline(always)]
fn store<S: Simd, const MR: usize>(s: S, tile: &Tile<S, MR>, to: &mut [f32]) {
    let to = &mut to[..MR * S::GEOMETRY.nr];
    for i in 0..MR {
        for v in 0..S::GEOMETRY.nr / S::LANES {
            s.store(tile[i][v], &mut to[i * S::GEOMETRY.nr + v * S::LANES..]);
        }
    }
}

#[inline(always)]
fn promote_tile<S: Simd, const MR: usize>(
    s: S,
    promotion: Promotion,
    tile: &Tile<S, MR>,
    rows: &[f32],
    columns: &[f32],
    acc: &mut [f32],
) {
    let acc = &mut acc[..MR * S::GEOMETRY.nr];
    for i in 0..MR {
        let row = s.splat(rows[i]);
        for v in 0..S::GEOMETRY.nr / S::LANES {
            let acc = &mut acc[i * S::GEOMETRY.nr + v * S::LANES..];
            let column = s.load(&columns[v * S::LANES..]);
            s.store(promote(s, promotion, s.load(acc), tile[i][v], row, column), acc);
        }
    }
}
