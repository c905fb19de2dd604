//! What the kernels of the f32 GEMM are made of on each instruction set: one table.

use super::Isa;

/// The registers of an instruction set and the microtiles that are cut from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// 32-bit lanes of a register.
    pub lanes: usize,
    /// Registers.
    pub registers: usize,
    /// Elements of K in one 32-bit element of a packed operand, a step: an f32, or two BF16.
    pub pair: usize,
    /// NR: columns of a microtile.
    pub nr: usize,
    /// MR: rows that a microtile may have, ascending.
    pub mr: &'static [usize],
    /// Whether [`few_rows`](crate::gemm::few_rows) has registers enough.
    pub few_rows: bool,
}

/// KC: steps of K that are packed together, at most. A micropanel of B of 64 columns takes 32 KiB, two thirds of a
/// first-level cache.
pub const KC: usize = 128;

/// 6 × 4 sums of 32 registers leave eight for the operands. Two steps a cycle of four to six cycles' latency (FMA,
/// VDPBF16PS on Zen 4 and 5) want eight to twelve sums under way, so that 4 × 4 and 5 × 4 are as fast where they divide M.
const AVX512: Geometry =
    Geometry { lanes: 16, registers: 32, pair: 1, nr: 64, mr: &[1, 2, 3, 4, 5, 6], few_rows: true };

impl Isa {
    /// What it is made of.
    pub const fn geometry(self) -> &'static Geometry {
        match self {
            // Products take registers of their own, for want of fused multiply-adds.
            Isa::Scalar => {
                &Geometry { lanes: 4, registers: 16, pair: 1, nr: 8, mr: &[1, 2, 4], few_rows: false }
            }
            // Of 16 registers 6 × 2 are just the twelve sums that hide a step's latency: where rows are many, fewer of
            // them are slower even where they divide M.
            Isa::Avx2 => {
                &Geometry { lanes: 8, registers: 16, pair: 1, nr: 16, mr: &[1, 2, 4, 6], few_rows: false }
            }
            Isa::Avx512 => &AVX512,
            Isa::Avx512Bf16 => &Geometry { pair: 2, ..AVX512 },
        }
    }
}

impl Geometry {
    /// Whether microtiles may have `rows` rows.
    pub(crate) const fn has_rows(&self, rows: usize) -> bool {
        let mut i = 0;
        while i < self.mr.len() {
            if self.mr[i] == rows {
                return true;
            }
            i += 1;
        }
        false
    }

    /// MR for `m` rows: the fewest that are computed in vain, each microtile as dear as one row more.
    pub fn mr(&self, m: usize) -> usize {
        let cost = |rows: usize| m.max(1).div_ceil(rows) * (rows + 1);
        let best = self.mr.iter().rev().copied().min_by_key(|&rows| cost(rows));
        best.expect("an instruction set has microtiles")
    }
}
