//! K cut at the promotion intervals, as the backends that pack sum it.

use super::problem::GemmProblem;
pub(super) use finegrain_cpu::gemm::IntervalPart;

/// K from element `from` on, where an interval begins, cut at the promotion intervals, and intervals into parts of at most
/// `longest` elements. The parts of a bare chain neither start nor end one.
pub(super) fn cut(problem: &GemmProblem<'_>, from: usize, longest: usize) -> Vec<IntervalPart> {
    let (k, interval, promoted) = (problem.k(), problem.interval(), !problem.is_bare_chain());
    let mut parts = Vec::new();
    for start in (from..k).step_by(interval) {
        let end = k.min(start.saturating_add(interval));
        for first in (start..end).step_by(longest) {
            let last = end.min(first + longest);
            let (starts, ends) = (promoted && first == start, promoted && last == end);
            parts.push(IntervalPart { k: first..last, starts, ends });
        }
    }
    parts
}
