//! The microkernel: microtiles of D over a block of K, steps and promotions.
//!
//! For each step of the block, c being the microtile's chains:
//!
//! ```text
//! c ← 0                                where an interval starts
//! c ← truncate(c + Σ a[k]·b[k])        as the tensor core sums
//! acc ← promote(acc, c, scales)        where an interval ends
//! ```
//!
//! ```text
//!                   b: one micropanel, NR = 4 registers of columns
//!                   k ┌────┬────┬────┬────┐
//!                     └────┴────┴────┴────┘
//!  a: rows of a   k   ┌────┬────┬────┬────┐
//!  micropanel,  ┌─┬─┐ │ c  │    │    │    │ MR
//!  splatted     └─┴─┘ └────┴────┴────┴────┘
//! ```
//!
//! Columns beyond D are computed from zeros and stored: rows of D are as long as whole micropanels.

use super::groups::Groups;
use super::products::{InTwo, Products};
use super::terms::{Narrow, Wide};
use super::{B_REGISTERS, Core, Kernel, Panel, groups};
use crate::gemm::{IntervalPart, Promotion, promote};
use crate::simd::{Fused, FusedWork, Isa};

/// Scales of promotion: for each promotion of a block those of rows, `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct ScaleRows<'a> {
    /// From the block's first row on.
    pub values: &'a [f32],
    /// From one promotion to the next.
    pub stride: usize,
}

/// A micropanel of A and one of B, over a block of K.
#[derive(Clone, Copy, Debug)]
pub struct Micropanels<'a> {
    /// How steps are summed.
    pub kernel: Kernel,
    /// The tensor core.
    pub core: Core,
    /// The steps of the block.
    pub steps: &'a [IntervalPart],
    /// The micropanel of A.
    pub a: Panel<'a>,
    /// Rows in it that exist.
    pub rows: usize,
    /// The micropanel of B.
    pub b: Panel<'a>,
    /// How chains are promoted.
    pub promotion: Promotion,
    /// The scales of the rows of A.
    pub scales_a: ScaleRows<'a>,
    /// The scales of the columns, rows of B.
    pub scales_b: ScaleRows<'a>,
}

/// Chains and promoted sums of a block of D: as many rows as exist, [`Geometry::nr`](super::Geometry::nr) columns.
#[derive(Debug)]
pub struct Sums<'a> {
    /// Rows of chains, from the block's first element on.
    pub chains: &'a mut [f32],
    /// The same of promoted sums; empty where nothing is promoted.
    pub acc: &'a mut [f32],
    /// From one row to the next.
    pub stride: usize,
}

/// The next chains and promoted sums after a block of K.
pub fn multiply(isa: Isa, panels: &Micropanels<'_>, sums: Sums<'_>) {
    let core = panels.core;
    match panels.kernel {
        Kernel::Narrow => run(isa, panels, sums, Products::<_, false>(Narrow { core })),
        Kernel::Wide => run(isa, panels, sums, Products::<_, false>(Wide::<false> { core })),
        Kernel::InTwo if core.half => run(isa, panels, sums, InTwo(Wide::<true> { core })),
        Kernel::InTwo => run(isa, panels, sums, InTwo(Wide::<false> { core })),
        Kernel::Offset if core.half => run(isa, panels, sums, Products::<_, true>(Wide::<true> { core })),
        Kernel::Offset => run(isa, panels, sums, Products::<_, true>(Wide::<false> { core })),
        Kernel::Fp4 => run(isa, panels, sums, Groups(Wide { core })),
    }
}

/// Microtiles of MR rows, then the rows beyond the last, one by one: each a function of its own.
fn run<K: StepKernel>(isa: Isa, panels: &Micropanels<'_>, mut sums: Sums<'_>, kernel: K) {
    let whole = isa.run_fused(Multiply::<K, false> { panels, first: 0, sums: &mut sums, kernel });
    if whole < panels.rows {
        isa.run_fused(Multiply::<K, true> { panels, first: whole, sums: &mut sums, kernel });
    }
}

/// Microtiles from row `first` on; gives the row beyond the last.
struct Multiply<'a, 's, K, const ONE_ROW: bool> {
    panels: &'a Micropanels<'a>,
    first: usize,
    sums: &'a mut Sums<'s>,
    kernel: K,
}

impl<K: StepKernel, const ONE_ROW: bool> FusedWork for Multiply<'_, '_, K, ONE_ROW> {
    type Output = usize;
    const COUNTS: bool = K::COUNTS;

    #[inline(always)]
    fn run<S: Fused, const COUNTS: bool>(self, s: S) -> usize {
        match (ONE_ROW, self.kernel.rows::<S>()) {
            (true, _) => self.microtiles::<S, 1, COUNTS>(s),
            (false, 4) => self.microtiles::<S, 4, COUNTS>(s),
            (false, 2) => self.microtiles::<S, 2, COUNTS>(s),
            // All microtiles are of one row.
            (false, _) => self.first,
        }
    }
}

impl<K: StepKernel, const ONE_ROW: bool> Multiply<'_, '_, K, ONE_ROW> {
    #[inline(always)]
    fn microtiles<S: Fused, const MR: usize, const COUNTS: bool>(mut self, s: S) -> usize {
        let mut row = self.first;
        while row + MR <= self.panels.rows {
            self.microtile::<S, MR, COUNTS>(s, row);
            row += MR;
        }
        row
    }

    /// The microtile whose first row is `row` of the micropanel.
    #[inline(always)]
    fn microtile<S: Fused, const MR: usize, const COUNTS: bool>(&mut self, s: S, row: usize) {
        let (panels, Sums { chains, acc, stride }) = (self.panels, &mut *self.sums);
        let (chains, stride) = (&mut chains[row * *stride..], *stride);
        let acc = acc.get_mut(row * stride..).unwrap_or_default();
        let (width, mut place, mut promotions) =
            (B_REGISTERS * S::LANES, Place { row, ..Place::default() }, 0);
        let mut c = [[s.splat(0.0); B_REGISTERS]; MR];
        if !panels.steps[0].starts {
            for (i, c) in c.iter_mut().enumerate() {
                *c = load(s, &chains[i * stride..][..width]);
            }
        }
        for step in panels.steps {
            if step.starts {
                c = [[s.splat(0.0); B_REGISTERS]; MR];
            }
            (place.len, place.groups) = (step.k.len(), groups(step));
            c = self.kernel.step::<S, MR, COUNTS>(s, panels, place, c);
            place.step += 1;
            place.k += place.len;
            place.word += panels.kernel.words(step);
            place.group += place.groups;
            if step.ends {
                let scales_a = &panels.scales_a.values[promotions * panels.scales_a.stride + row..][..MR];
                let scales_b = &panels.scales_b.values[promotions * panels.scales_b.stride..][..width];
                let scales_b = load(s, scales_b);
                for i in 0..MR {
                    let acc = &mut acc[i * stride..][..width];
                    let (mut sums, a) = (load(s, acc), s.splat(scales_a[i]));
                    for v in 0..B_REGISTERS {
                        sums[v] = promote(s, panels.promotion, sums[v], c[i][v], a, scales_b[v]);
                    }
                    store(s, sums, acc);
                }
                promotions += 1;
            }
        }
        // A chain that was promoted is not read again.
        if !panels.steps[panels.steps.len() - 1].ends {
            for (i, &c) in c.iter().enumerate() {
                store(s, c, &mut chains[i * stride..][..width]);
            }
        }
    }
}

/// One element for each register of a microtile.
pub(super) type Tile<R, const MR: usize> = [[R; B_REGISTERS]; MR];

/// How a step is summed.
pub(super) trait StepKernel: Copy {
    /// Whether it counts bits.
    const COUNTS: bool;

    /// MR.
    fn rows<S: Fused>(self) -> usize;

    /// The next accumulators.
    fn step<S: Fused, const MR: usize, const COUNTS: bool>(
        self,
        s: S,
        panels: &Micropanels<'_>,
        at: Place,
        c: Tile<S::F32, MR>,
    ) -> Tile<S::F32, MR>;
}

/// A microtile's first row, where a step begins in micropanels, and how long it is.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) step: usize,
    pub(super) k: usize,
    pub(super) word: usize,
    pub(super) group: usize,
    pub(super) len: usize,
    pub(super) groups: usize,
}

/// A row of a tile.
#[inline(always)]
fn load<S: Fused>(s: S, x: &[f32]) -> [S::F32; B_REGISTERS] {
    let mut row = [s.splat(0.0); B_REGISTERS];
    for v in 0..B_REGISTERS {
        row[v] = s.load(&x[v * S::LANES..]);
    }
    row
}

/// See [`load`].
#[inline(always)]
fn store<S: Fused>(s: S, row: [S::F32; B_REGISTERS], out: &mut [f32]) {
    for v in 0..B_REGISTERS {
        s.store(row[v], &mut out[v * S::LANES..]);
    }
}
