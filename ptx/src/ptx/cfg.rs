//! Where diverging paths meet again: immediate post-dominators.

use super::inst::{Inst, Op};

/// For each instruction, the first one that every path from it to the end passes, itself not counted; `insts.len()`
/// stands for the end.
///
/// Cooper, Harvey and Kennedy's algorithm on the reversed graph, instruction by instruction: kernels are small enough
/// that blocks would save nothing worth their code.
pub(crate) fn reconvergence(insts: &[Inst]) -> Vec<usize> {
    let end = insts.len();
    let successors: Vec<Vec<usize>> =
        insts.iter().enumerate().map(|(at, i)| successors(i, at, end)).collect();
    let mut predecessors = vec![Vec::new(); end + 1];
    for (at, next) in successors.iter().enumerate() {
        next.iter().for_each(|&n| predecessors[n].push(at));
    }
    let order = postorder_of_reverse(&predecessors, end);
    let mut number = vec![usize::MAX; end + 1];
    order.iter().enumerate().for_each(|(n, &at)| number[at] = n);
    let mut dominator = vec![usize::MAX; end + 1];
    dominator[end] = end;
    let mut changed = true;
    while changed {
        changed = false;
        for &at in order.iter().rev().filter(|&&at| at != end) {
            let known = successors[at].iter().copied().filter(|&s| dominator[s] != usize::MAX);
            let Some(meet) = known.reduce(|x, y| intersect(x, y, &dominator, &number)) else { continue };
            changed |= dominator[at] != meet;
            dominator[at] = meet;
        }
    }
    // What cannot reach the end (an endless loop) meets nowhere.
    dominator.iter().map(|&d| if d == usize::MAX { end } else { d }).take(end).collect()
}

fn successors(inst: &Inst, at: usize, end: usize) -> Vec<usize> {
    let next = (at + 1).min(end);
    let mut found = match &inst.op {
        Op::Branch { target } => vec![*target],
        Op::BranchIndexed { targets, .. } => targets.clone(),
        Op::Exit | Op::Trap => vec![end],
        _ => return vec![next],
    };
    if inst.guard.is_some() {
        found.push(next);
    }
    found
}

fn postorder_of_reverse(predecessors: &[Vec<usize>], end: usize) -> Vec<usize> {
    let (mut seen, mut order, mut stack) = (vec![false; end + 1], Vec::new(), vec![(end, 0)]);
    seen[end] = true;
    while let Some((at, child)) = stack.pop() {
        if let Some(&next) = predecessors[at].get(child) {
            stack.push((at, child + 1));
            if !seen[next] {
                seen[next] = true;
                stack.push((next, 0));
            }
        } else {
            order.push(at);
        }
    }
    order
}

fn intersect(mut x: usize, mut y: usize, dominator: &[usize], number: &[usize]) -> usize {
    while x != y {
        while number[x] < number[y] {
            x = dominator[x];
        }
        while number[y] < number[x] {
            y = dominator[y];
        }
    }
    x
}
