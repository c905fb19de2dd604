//! Promotion: a partial sum meets its scales and the accumulator.

use finegrain_cpu::gemm as cpu;

use crate::name::by_name;

/// The order in which a partial sum p, its scales sa and sb and the accumulator meet; fl is one f32 rounding. With
/// scales that are powers of two all three agree, but for under- and overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Promotion {
    /// acc = fma(fl(sa·sb), p, acc): DeepGEMM.
    #[default]
    ScalesFirst,
    /// acc = fma(fl(p·sa), sb, acc): TransformerEngine's reference for cuBLAS.
    PartialFirst,
    /// acc = fl(acc + fl(fl(p·sa)·sb)): the Triton kernel of DeepSeek-V3's inference code.
    Unfused,
}

impl Promotion {
    /// Every order.
    pub const ALL: &[Promotion] = &[Promotion::ScalesFirst, Promotion::PartialFirst, Promotion::Unfused];

    /// The name, as the command line takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Promotion::ScalesFirst => "scales-first",
            Promotion::PartialFirst => "partial-first",
            Promotion::Unfused => "deepseek-v3",
        }
    }

    /// One promotion: the accumulator after the partial sum `partial` with scales `sa` and `sb`.
    ///
    /// ```
    /// use finegrain::gemm::Promotion;
    /// assert_eq!(Promotion::ScalesFirst.promote(1.0, 3.0, 0.5, 4.0), 7.0);
    /// ```
    #[inline]
    pub fn promote(self, acc: f32, partial: f32, sa: f32, sb: f32) -> f32 {
        match self {
            Promotion::ScalesFirst => (sa * sb).mul_add(partial, acc),
            Promotion::PartialFirst => (partial * sa).mul_add(sb, acc),
            Promotion::Unfused => acc + partial * sa * sb,
        }
    }
}

/// The same order, as the CPU's kernels name it.
impl From<Promotion> for cpu::Promotion {
    fn from(promotion: Promotion) -> cpu::Promotion {
        match promotion {
            Promotion::ScalesFirst => cpu::Promotion::ScalesFirst,
            Promotion::PartialFirst => cpu::Promotion::PartialFirst,
            Promotion::Unfused => cpu::Promotion::Unfused,
        }
    }
}

by_name!(Promotion, "promotion");
