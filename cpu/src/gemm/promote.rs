//! Promotion: how a partial sum joins the accumulator.

use crate::simd::Simd;

/// The order in which a partial sum p, its scales sa and sb and the accumulator meet; fl is one f32 rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// acc = fma(fl(sa·sb), p, acc).
    ScalesFirst,
    /// acc = fma(fl(p·sa), sb, acc).
    PartialFirst,
    /// acc = fl(acc + fl(fl(p·sa)·sb)).
    Unfused,
}

/// How scales that are constant over K meet the sum of all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumScaling {
    /// It is promoted once, into +0.
    Promoted(Promotion),
    /// fl(fl(sa·sb)·sum).
    ByProduct,
    /// fl(fl(sum·sb)·sa).
    InTurn,
}

/// The scaled sum, lane by lane.
#[inline(always)]
pub(crate) fn scale_sum<S: Simd>(s: S, scaling: SumScaling, sum: S::F32, sa: S::F32, sb: S::F32) -> S::F32 {
    match scaling {
        SumScaling::Promoted(order) => promote(s, order, s.splat(0.0), sum, sa, sb),
        SumScaling::ByProduct => s.mul(s.mul(sa, sb), sum),
        SumScaling::InTurn => s.mul(s.mul(sum, sb), sa),
    }
}

/// The accumulator after one promotion, lane by lane.
#[inline(always)]
pub(crate) fn promote<S: Simd>(
    s: S,
    promotion: Promotion,
    acc: S::F32,
    partial: S::F32,
    sa: S::F32,
    sb: S::F32,
) -> S::F32 {
    match promotion {
        Promotion::ScalesFirst => s.mul_add(s.mul(sa, sb), partial, acc),
        Promotion::PartialFirst => s.mul_add(s.mul(partial, sa), sb, acc),
        Promotion::Unfused => s.add(acc, s.mul(s.mul(partial, sa), sb)),
    }
}
