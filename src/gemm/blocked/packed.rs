//! Weights that are packed once: the micropanels of B, kept with the matrix that an engine keeps.

use std::sync::Arc;

use finegrain_cpu::Buffer;
use finegrain_cpu::gemm::pack_b;

use super::plan::Plan;
use crate::error::Result;
use crate::parallel::{self, Watch};
use crate::scaled::Kept;
use crate::simd::KC;

/// All micropanels of B over all blocks of K, those of a micropanel after one another, KC steps of NR columns each.
pub(super) struct PackedB {
    panels: Buffer,
    k_blocks: usize,
    /// Of a micropanel over a block of K.
    len: usize,
}

impl PackedB {
    /// Those of a B that is kept: as they were packed for an earlier product that is cut alike, else packed now. `None` for
    /// other matrices.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`].
    pub(super) fn of(plan: &Plan<'_>, watch: &Watch<'_>) -> Result<Option<Arc<PackedB>>> {
        let Some(kept) = plan.problem.b().handle().and_then(|b| b.downcast_ref::<Kept>()) else {
            return Ok(None);
        };
        // What decides how B lies when it is packed.
        let form = (plan.isa, plan.problem.interval());
        kept.form(form, || PackedB::pack(plan, watch)).map(Some)
    }

    fn pack(plan: &Plan<'_>, watch: &Watch<'_>) -> Result<PackedB> {
        let (n, nr, k_blocks) = (plan.problem.n(), plan.geometry.nr, plan.k_blocks.len());
        let len = KC * nr;
        let mut panels = Buffer::zeros(n.div_ceil(nr) * k_blocks * len);
        let parts: Vec<&mut [u32]> =
            panels.as_mut_slice().chunks_exact_mut(k_blocks * len).take(n.div_ceil(nr)).collect();
        parallel::for_each_part(watch, parts, &|jr, out| {
            let cols = jr * nr..n.min((jr + 1) * nr);
            for (parts, out) in plan.k_blocks.iter().zip(out.chunks_exact_mut(len)) {
                let parts = &plan.parts[parts.clone()];
                pack_b(plan.isa, &plan.b, cols.clone(), parts, plan.ahead(parts), out);
            }
        })?;
        Ok(PackedB { panels, k_blocks, len })
    }

    /// The micropanel that begins with column `col`, over block `pc` of K.
    pub(super) fn micropanel(&self, plan: &Plan<'_>, col: usize, pc: usize) -> &[u32] {
        let at = col / plan.geometry.nr * self.k_blocks + pc;
        &self.panels.as_slice()[at * self.len..(at + 1) * self.len]
    }
}
