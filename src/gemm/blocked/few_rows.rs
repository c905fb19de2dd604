//! Few rows: A is packed once, and each weight is read once, in order; jr runs outside pc.

use std::ops::Range;

use finegrain_cpu::Buffer;
use finegrain_cpu::gemm::{
    Accumulators, Columns, GEMV_ROWS, Scales, SideBySide, few_rows, gemv, pack_side_by_side, row_tiles,
};

use super::block::{Block, PackedRows, Scratch};
use super::plan::Plan;
use crate::error::Result;
use crate::parallel::{self, Watch};

/// All of A, packed.
pub(super) struct PackedA {
    /// For each group of intervals side by side, [`Plan::side_by_side_len`] elements.
    side_by_side: Buffer,
    /// For each of their intervals, those of all rows.
    side_by_side_scales: Vec<f32>,
    /// For each block of the rest of K.
    blocks: Vec<PackedRows>,
}

impl PackedA {
    /// Packs it, groups of intervals on all threads.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`].
    pub(super) fn new(plan: &Plan<'_>, watch: &Watch<'_>) -> Result<PackedA> {
        let (m, len) = (plan.problem.m(), plan.side_by_side_len());
        let blocks = plan.k_blocks.iter().map(|parts| {
            let mut rows = PackedRows::default();
            rows.pack(plan, 0..m, &plan.parts[parts.clone()]);
            rows
        });
        let mut side_by_side = Buffer::zeros(plan.side_by_side.len() * len);
        if len > 0 {
            let microtiles: Vec<Range<usize>> = if m <= GEMV_ROWS {
                (0..m).map(|row| row..row + 1).collect()
            } else {
                row_tiles(m).collect()
            };
            let packed = side_by_side.as_mut_slice().chunks_exact_mut(len).take(plan.side_by_side.len());
            parallel::for_each_part(watch, packed.collect(), &|i, out| {
                let lanes = plan.side_by_side_lanes;
                pack_side_by_side(plan.isa, &plan.a, plan.side_by_side[i], &microtiles, lanes, out);
            })?;
        }
        let mut side_by_side_scales = vec![1.0; plan.side_by_side_intervals().count() * m];
        for (k, scales) in plan.side_by_side_intervals().zip(side_by_side_scales.chunks_exact_mut(m.max(1))) {
            plan.problem.a().scales_at(0..m, k, scales);
        }
        Ok(PackedA { side_by_side, side_by_side_scales, blocks: blocks.collect() })
    }
}

/// Computes a block of D.
pub(super) fn multiply(plan: &Plan<'_>, a: &PackedA, block: &mut Block<'_>, scratch: &mut Scratch) {
    scratch.reserve(plan, block.acc_len(plan));
    scratch.decoded.reset();
    for jr in 0..block.panels(plan) {
        block.begin(plan, jr, &mut scratch.acc.as_mut_slice()[..block.acc_len(plan)]);
        if !plan.side_by_side.is_empty() {
            side_by_side(plan, a, block, jr, scratch);
        }
        for (parts, rows) in plan.k_blocks.iter().zip(&a.blocks) {
            block.multiply_panel(plan, rows, &plan.parts[parts.clone()], (jr, None), 0, scratch);
        }
        block.finish(plan, jr, &scratch.acc.as_slice()[..block.acc_len(plan)]);
    }
}

/// The intervals side by side, for the columns of a micropanel and all rows.
fn side_by_side(plan: &Plan<'_>, a: &PackedA, block: &Block<'_>, jr: usize, scratch: &mut Scratch) {
    let (m, lanes, cols) = (plan.problem.m(), plan.geometry.lanes, block.panel_cols(plan, jr));
    let Scratch { acc, decoded, side_by_side_scales: scales, .. } = scratch;
    let groups = plan.side_by_side.len();
    for first in (cols.start..cols.end).step_by(lanes) {
        if first == block.cols.start || plan.scales_change_at(first) {
            scales.resize(plan.side_by_side_intervals().count() * lanes, 1.0);
            for (k, scales) in plan.side_by_side_intervals().zip(scales.chunks_exact_mut(lanes)) {
                plan.problem.b().scales_at(first..cols.end.min(first + lanes), k, scales);
            }
        }
        let (mut scales_a, mut scales_b) = (&a.side_by_side_scales[..], &scales[..]);
        for (i, group) in plan.side_by_side.iter().enumerate() {
            // The next in this order.
            let after = if i + 1 < groups { (first, i + 1) } else { (first + lanes, 0) };
            let x = SideBySide {
                rows: m,
                intervals: group.count,
                a: &a.side_by_side.as_slice()[i * plan.side_by_side_len()..][..plan.side_by_side_len()],
                b: columns(plan, block, (first, i)),
                decoder: &plan.b.decoder,
                scales: Scales { promotion: plan.promotion, a: scales_a, b: scales_b },
            };
            let acc = &mut acc.as_mut_slice()[first - cols.start..];
            let mut acc = Accumulators { data: acc, stride: plan.geometry.nr };
            if m <= GEMV_ROWS {
                gemv(plan.isa, &x, &mut acc);
            } else {
                let next = (after.0 < block.cols.end).then(|| columns(plan, block, after));
                few_rows(plan.isa, &x, next.as_ref(), decoded, &mut acc);
            }
            (scales_a, scales_b) = (&scales_a[group.count * m..], &scales_b[group.count * lanes..]);
        }
    }
}

/// A register of columns from column `first` on, over group `i` of intervals.
fn columns<'p>(plan: &Plan<'p>, block: &Block<'_>, (first, i): (usize, usize)) -> Columns<'p> {
    let b = &plan.b;
    let at = |row: usize, i: usize| row * b.stride + plan.side_by_side[i].k * b.code_bytes();
    let (lanes, groups) = (plan.geometry.lanes, plan.side_by_side.len());
    let next = if i + 1 < groups { at(first, i + 1) } else { at(first + lanes, 0) };
    Columns {
        data: &b.data[at(first, i)..],
        stride: b.stride,
        rows: lanes.min(block.cols.end - first),
        interval: plan.problem.interval() * b.code_bytes(),
        next: next.wrapping_sub(at(first, i)),
    }
}
