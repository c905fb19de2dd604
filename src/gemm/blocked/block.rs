//! The loops inside a block of D: pc over blocks of K, jr over micropanels of B, ir over microtiles.

use std::ops::Range;

use finegrain_cpu::Buffer;
use finegrain_cpu::gemm::{
    DecodedPanels, Epilogue, Micropanels, PACK_EXCESS, RowsMut, epilogue, microkernel, pack_a, pack_b,
};
use half::bf16;

use super::super::intervals::IntervalPart;
use super::super::reference::NAN;
use super::packed::PackedB;
use super::plan::Plan;
use crate::scaled::ScaledRef;
use crate::simd::KC;

/// A block of D: its rows and columns, and where they go.
pub(super) struct Block<'d> {
    pub(super) rows: Range<usize>,
    pub(super) cols: Range<usize>,
    pub(super) out: Rows<'d>,
}

/// The rows of a block, in either format.
pub(super) enum Rows<'d> {
    F32(Vec<&'d mut [f32]>),
    Bf16(Vec<&'d mut [bf16]>),
}

/// What a thread needs besides its part of D.
#[derive(Default)]
pub(super) struct Scratch {
    /// The accumulators of some micropanels, micropanel after micropanel, NR of each row.
    pub(super) acc: Buffer,
    /// As many sums of intervals that go beyond a block of K.
    partial: Buffer,
    /// The micropanel of B, and for each part of K the scales of its columns.
    b: Buffer,
    scales_b: Vec<f32>,
    a: PackedRows,
    /// For each of the intervals side by side the scales of a register of columns.
    pub(super) side_by_side_scales: Vec<f32>,
    pub(super) decoded: DecodedPanels,
}

/// Rows of A over a block of K, packed.
#[derive(Default)]
pub(super) struct PackedRows {
    packed: Buffer,
    /// For each part those of all rows.
    scales: Vec<f32>,
}

impl PackedRows {
    /// Packs rows of A over some parts of K, as many rows as fill microtiles.
    pub(super) fn pack(&mut self, plan: &Plan<'_>, rows: Range<usize>, parts: &[IntervalPart]) {
        let padded = rows.start..rows.start + rows.len().next_multiple_of(plan.mr);
        self.packed.reserve(padded.len() * KC + PACK_EXCESS);
        load_scales(plan.problem.a(), rows, padded.len(), parts, &mut self.scales);
        pack_a(plan.isa, &plan.a, padded, parts, self.packed.as_mut_slice());
    }
}

/// The scales of rows of an operand, for each part `stride` of them.
fn load_scales(
    x: &ScaledRef<'_>,
    rows: Range<usize>,
    stride: usize,
    parts: &[IntervalPart],
    scales: &mut Vec<f32>,
) {
    scales.resize(parts.len() * stride, 1.0);
    for (part, scales) in parts.iter().zip(scales.chunks_exact_mut(stride.max(1))) {
        x.scales_at(rows.clone(), part.k.start, scales);
    }
}

/// Computes a block of D.
pub(super) fn multiply(
    plan: &Plan<'_>,
    packed_b: Option<&PackedB>,
    block: &mut Block<'_>,
    scratch: &mut Scratch,
) {
    let panels = block.panels(plan);
    scratch.reserve(plan, panels * block.acc_len(plan));
    let mut a = std::mem::take(&mut scratch.a);
    for (pc, parts) in plan.k_blocks.iter().enumerate() {
        let parts = &plan.parts[parts.clone()];
        a.pack(plan, block.rows.clone(), parts);
        for jr in 0..panels {
            let acc = jr * block.acc_len(plan)..(jr + 1) * block.acc_len(plan);
            if pc == 0 {
                block.begin(plan, jr, &mut scratch.acc.as_mut_slice()[acc.clone()]);
            }
            let col = block.panel_cols(plan, jr).start;
            let b = packed_b.map(|b| b.micropanel(plan, col, pc));
            block.multiply_panel(plan, &a, parts, (jr, b), acc.start, scratch);
            if pc + 1 == plan.k_blocks.len() {
                block.finish(plan, jr, &scratch.acc.as_slice()[acc]);
            }
        }
    }
    scratch.a = a;
}

impl Scratch {
    /// Room for `len` accumulators.
    pub(super) fn reserve(&mut self, plan: &Plan<'_>, len: usize) {
        self.acc.reserve(len);
        if plan.is_cut && !plan.problem.is_bare_chain() {
            self.partial.reserve(len);
        }
        self.b.reserve(KC * plan.geometry.nr);
    }
}

impl Block<'_> {
    /// Micropanels of B.
    pub(super) fn panels(&self, plan: &Plan<'_>) -> usize {
        self.cols.len().div_ceil(plan.geometry.nr)
    }

    /// Accumulators of all rows over a micropanel's columns.
    pub(super) fn acc_len(&self, plan: &Plan<'_>) -> usize {
        self.rows.len().next_multiple_of(plan.mr) * plan.geometry.nr
    }

    /// The columns of micropanel `jr`.
    pub(super) fn panel_cols(&self, plan: &Plan<'_>, jr: usize) -> Range<usize> {
        let start = self.cols.start + jr * plan.geometry.nr;
        start..self.cols.end.min(start + plan.geometry.nr)
    }

    /// What the accumulators of a micropanel's columns are before all of K: +0, or the addend of a bare chain.
    pub(super) fn begin(&self, plan: &Plan<'_>, jr: usize, acc: &mut [f32]) {
        acc.fill(0.0);
        let Some(c) = plan.problem.addend().filter(|_| plan.problem.is_bare_chain()) else { return };
        let cols = self.panel_cols(plan, jr);
        for (acc, i) in acc.chunks_exact_mut(plan.geometry.nr).zip(self.rows.clone()) {
            acc[..cols.len()].copy_from_slice(&c.row(i)[cols.clone()]);
        }
    }

    /// A micropanel of B over some parts of K, which is packed already or is not, and all rows, whose accumulators begin at
    /// `acc`.
    pub(super) fn multiply_panel(
        &self,
        plan: &Plan<'_>,
        a: &PackedRows,
        parts: &[IntervalPart],
        (jr, packed): (usize, Option<&[u32]>),
        acc: usize,
        scratch: &mut Scratch,
    ) {
        let (cols, nr, size) = (self.panel_cols(plan, jr), plan.geometry.nr, plan.mr * plan.geometry.nr);
        load_scales(plan.problem.b(), cols.clone(), nr, parts, &mut scratch.scales_b);
        if packed.is_none() {
            pack_b(plan.isa, &plan.b, cols, parts, plan.ahead(parts), scratch.b.as_mut_slice());
        }
        let rows = self.rows.len().next_multiple_of(plan.mr);
        let (accs, partials) = (scratch.acc.as_mut_slice(), scratch.partial.as_mut_slice());
        // The sums of a bare chain are its accumulators.
        let (partials, accs) =
            if plan.problem.is_bare_chain() { (accs, &mut [][..]) } else { (partials, accs) };
        for ir in 0..rows / plan.mr {
            let panels = Micropanels {
                parts,
                a: &a.packed.as_slice()[ir * plan.mr * KC..],
                b: packed.unwrap_or_else(|| scratch.b.as_slice()),
                scales_a: a.scales.get(ir * plan.mr..).unwrap_or_default(),
                scales_a_stride: rows,
                scales_b: &scratch.scales_b,
                promotion: plan.promotion,
            };
            let at = acc + ir * size;
            let partial = partials.get_mut(at..).unwrap_or_default();
            let acc = accs.get_mut(at..).unwrap_or_default();
            microkernel(plan.isa, plan.mr, &panels, partial, acc);
        }
    }

    /// Stores a micropanel's columns.
    pub(super) fn finish(&mut self, plan: &Plan<'_>, jr: usize, acc: &[f32]) {
        let (problem, cols) = (plan.problem, self.panel_cols(plan, jr));
        let addend = problem.addend().filter(|_| !problem.is_bare_chain());
        let addend =
            addend.map(|c| c.row_range(self.rows.start, self.rows.end).col_range(cols.start, cols.end));
        let x = Epilogue {
            acc,
            stride: plan.geometry.nr,
            scales: None,
            tensor_scale: problem.tensor_scale(),
            addend: addend.as_ref().map(|c| (c.strided(), c.stride())),
            nan: NAN,
        };
        let rows = match &mut self.out {
            Rows::F32(rows) => RowsMut::F32(rows),
            Rows::Bf16(rows) => RowsMut::Bf16(rows),
        };
        epilogue(plan.isa, &x, rows, cols.start - self.cols.start, plan.geometry.nr);
    }
}
