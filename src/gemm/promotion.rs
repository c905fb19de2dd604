//! Promotion: a partial sum meets its scales and the accumulator.

use finegrain_cpu::gemm as cpu;

use crate::error::{Error, Result};

/// The order in which a partial sum p, its scales sa and sb and the accumulator meet; fl is one f32 rounding. With
/// scales that are powers of two all agree, but for under- and overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Promotion {
    /// acc = fma(fl(sa·sb), p, acc): DeepGEMM, and cuBLASLt on 1×128 by 128×128.
    #[default]
    ScalesFirst,
    /// acc = fma(fl(p·sa), sb, acc): cuBLASLt on 1×128 by 1×128, and Triton, whose compiler fuses the last
    /// multiplication of `acc += dot(a, b) * sa * sb` with the addition.
    PartialFirst,
    /// acc = fl(acc + p), and after the last interval acc = fl(fl(sa·sb)·acc), for scales that are constant along K:
    /// cuBLASLt without fast accumulation. Scales of rows multiply in turn, that of B first: fl(fl(acc·sb)·sa).
    ScalesLast,
    /// acc = fl(acc + fl(fl(p·sa)·sb)): what the source of DeepSeek-V3's Triton kernel reads like. No GPU was found to
    /// compute it.
    Unfused,
}

/// What [`Promotion::Unfused`] was called.
const OLD_UNFUSED: &str = "deepseek-v3";

impl Promotion {
    /// Every order.
    pub const ALL: &[Promotion] =
        &[Promotion::ScalesFirst, Promotion::PartialFirst, Promotion::ScalesLast, Promotion::Unfused];

    /// The orders that scale each partial sum, and so take scales that change along K.
    pub const SCALING_PARTIALS: &[Promotion] =
        &[Promotion::ScalesFirst, Promotion::PartialFirst, Promotion::Unfused];

    /// The name, as the command line takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Promotion::ScalesFirst => "scales-first",
            Promotion::PartialFirst => "partial-first",
            Promotion::ScalesLast => "scales-last",
            Promotion::Unfused => "unfused",
        }
    }

    /// Whether this is a name that an order once had, and still is read by.
    pub fn is_old_name(text: &str) -> bool {
        text == OLD_UNFUSED
    }

    /// One promotion: the accumulator after the partial sum `partial` with scales `sa` and `sb`.
    ///
    /// ```
    /// use finegrain::gemm::Promotion;
    /// assert_eq!(Promotion::ScalesFirst.promote(1.0, 3.0, 0.5, 4.0), 7.0);
    /// assert_eq!(Promotion::ScalesLast.promote(1.0, 3.0, 0.5, 4.0), 4.0);
    /// ```
    #[inline]
    pub fn promote(self, acc: f32, partial: f32, sa: f32, sb: f32) -> f32 {
        match self {
            Promotion::ScalesFirst => (sa * sb).mul_add(partial, acc),
            Promotion::PartialFirst => (partial * sa).mul_add(sb, acc),
            Promotion::ScalesLast => acc + partial,
            Promotion::Unfused => acc + partial * sa * sb,
        }
    }
}

/// How scales that are constant over K meet the sum of all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SumScaling {
    /// It is promoted once, into +0.
    Promoted(Promotion),
    /// fl(fl(sa·sb)·sum).
    ByProduct,
    /// fl(fl(sum·sb)·sa).
    InTurn,
}

impl SumScaling {
    /// The scaled sum.
    #[inline]
    pub(super) fn apply(self, sum: f32, sa: f32, sb: f32) -> f32 {
        match self {
            SumScaling::Promoted(order) => order.promote(0.0, sum, sa, sb),
            SumScaling::ByProduct => (sa * sb) * sum,
            SumScaling::InTurn => (sum * sb) * sa,
        }
    }
}

/// The same order, as the CPU's kernels name it. They promote what is to be scaled last without scales, which are 1:
/// fma(1, p, acc) = fl(acc + p).
impl From<Promotion> for cpu::Promotion {
    fn from(promotion: Promotion) -> cpu::Promotion {
        match promotion {
            Promotion::ScalesFirst | Promotion::ScalesLast => cpu::Promotion::ScalesFirst,
            Promotion::PartialFirst => cpu::Promotion::PartialFirst,
            Promotion::Unfused => cpu::Promotion::Unfused,
        }
    }
}

/// The same, as the CPU's kernels name it.
impl From<SumScaling> for cpu::SumScaling {
    fn from(scaling: SumScaling) -> cpu::SumScaling {
        match scaling {
            SumScaling::Promoted(order) => cpu::SumScaling::Promoted(order.into()),
            SumScaling::ByProduct => cpu::SumScaling::ByProduct,
            SumScaling::InTurn => cpu::SumScaling::InTurn,
        }
    }
}

impl std::str::FromStr for Promotion {
    type Err = Error;

    /// Looks the name up; `unfused` is also read by its old name.
    fn from_str(name: &str) -> Result<Self> {
        if Promotion::is_old_name(name) {
            return Ok(Promotion::Unfused);
        }
        let found = Promotion::ALL.iter().find(|order| order.name() == name);
        let known = || Promotion::ALL.iter().map(|order| order.name());
        found.copied().ok_or_else(|| Error::unknown("promotion", name, known()))
    }
}

impl std::fmt::Display for Promotion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
