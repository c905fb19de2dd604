//! What the lanes of a warp do together, and barriers of a block.

use super::block::{Block, Step, Waiting};
use super::step::{first, unset_register};
use super::warp::{Lanes, State, lanes};
use crate::fault::FaultKind;
use crate::ptx::{Answer, BarrierReduction, Op, ShuffleMode, Src, VoteMode};

impl Block<'_, '_> {
    /// The members: every lane of the mask that exists must be here, and every lane that is here must be a member.
    fn members(&self, w: usize, mask: Src, active: u32) -> Step<u32> {
        let (masks, unset) = self.warps[w].read(mask);
        if unset & active != 0 {
            return Err(unset_register("the member mask", unset & active));
        }
        let named = masks[usize::from(first(active))] as u32;
        let exist = (0..32).filter(|&l| self.thread_exists(w, l)).fold(0, |m, l| m | 1u32 << l);
        if active & !named != 0 || named & exist & !active != 0 {
            return Err((FaultKind::InactiveLanes { named, active }, first(active)));
        }
        Ok(named & active)
    }

    pub(super) fn collective(&mut self, w: usize, op: &Op, active: u32) -> Step<()> {
        match op {
            Op::SyncWarp { mask } => {
                self.members(w, *mask, active)?;
                self.warps[w].clock += 1;
            }
            Op::Shuffle { mode, dst, valid, a, lane: operand, clamp, mask } => {
                let members = self.members(w, *mask, active)?;
                let warp = &mut self.warps[w];
                let ((a, ua), (operand, uo), (clamp, uc)) =
                    (warp.read(*a), warp.read(*operand), warp.read(*clamp));
                if (uo | uc) & active != 0 {
                    return Err(unset_register("the lane of a shuffle", (uo | uc) & active));
                }
                let (mut values, mut unset, mut in_range) = ([0; 32], 0, 0u32);
                for lane in lanes(active) {
                    let (source, ok) =
                        shuffle_source(*mode, lane as u32, operand[lane] as u32, clamp[lane] as u32);
                    in_range |= u32::from(ok) << lane;
                    values[lane] = a[source as usize];
                    // A lane that is not here has nothing to give.
                    let given = ua >> source & 1 == 0 && members >> source & 1 == 1;
                    unset |= u32::from(!given) << lane;
                }
                warp.write(*dst, &values, unset, active);
                if let Some(valid) = valid {
                    warp.write_pred(*valid, in_range, 0, active);
                }
            }
            Op::Vote { mode, dst, pred, mask } => {
                let members = self.members(w, *mask, active)?;
                let warp = &mut self.warps[w];
                let (truth, unset) = warp.read_pred(*pred);
                if unset & members != 0 {
                    return Err(unset_register("a vote", unset & members));
                }
                let ayes = truth & members;
                let answer = match mode {
                    VoteMode::All => ayes == members,
                    VoteMode::Any => ayes != 0,
                    VoteMode::Uniform => ayes == 0 || ayes == members,
                    VoteMode::Ballot => false,
                };
                match dst {
                    Answer::Value(dst) => warp.write(*dst, &[u64::from(ayes); 32], 0, active),
                    Answer::Truth(dst) => warp.write_pred(*dst, if answer { u32::MAX } else { 0 }, 0, active),
                }
            }
            Op::Match { all, dst, pred, a, mask } => {
                let members = self.members(w, *mask, active)?;
                let (a, unset) = self.warps[w].read(*a);
                if unset & members != 0 {
                    return Err(unset_register("match", unset & members));
                }
                let equal =
                    |lane: usize| lanes(members).filter(|&o| a[o] == a[lane]).fold(0, |m, o| m | 1u32 << o);
                let same = equal(usize::from(first(active))) == members;
                let values: Lanes = std::array::from_fn(|lane| match (*all, same) {
                    (true, true) => u64::from(members),
                    (true, false) => 0,
                    _ => u64::from(equal(lane)),
                });
                self.warps[w].write(*dst, &values, 0, active);
                if let Some(pred) = pred {
                    self.warps[w].write_pred(*pred, if same { u32::MAX } else { 0 }, 0, active);
                }
            }
            Op::Reduce { f, dst, a, mask } => {
                let members = self.members(w, *mask, active)?;
                let (a, unset) = self.warps[w].read(*a);
                if unset & members != 0 {
                    return Err(unset_register("redux", unset & members));
                }
                let sum = lanes(members).map(|l| a[l]).reduce(f).unwrap_or(0);
                self.warps[w].write(*dst, &[sum; 32], 0, active);
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn barrier(&mut self, w: usize, op: &Op, active: u32) -> Step<()> {
        let Op::Barrier { id, threads, wait, reduce } = op else { return Ok(()) };
        let id = self.uniform(w, *id, active, "the barrier's number")?;
        let expected = threads.map(|t| self.uniform(w, t, active, "the barrier's count")).transpose()?;
        let live = self.warps[w].live;
        if active != live {
            return Err((FaultKind::DivergentBarrier { active, live }, first(active)));
        }
        let Some(barrier) = self.barriers.get_mut(id as usize) else {
            return Err((FaultKind::Unsupported(format!("barrier {id} of 16")), first(active)));
        };
        barrier.expected = expected;
        barrier.arrived += if expected.is_some() { 32 } else { active.count_ones() };
        let mut dst = None;
        if let Some((reduction, answer, pred)) = reduce {
            let (truth, unset) = self.warps[w].read_pred(*pred);
            if unset & active != 0 {
                return Err(unset_register("the barrier's predicate", unset & active));
            }
            barrier.ayes += (truth & active).count_ones();
            barrier.votes += active.count_ones();
            dst = Some((*reduction, *answer));
        }
        barrier.waiting.push(Waiting { warp: w, blocks: *wait, dst, mask: active });
        if *wait {
            self.warps[w].state = State::Waiting;
        }
        self.complete(id as usize);
        Ok(())
    }

    /// Lets the warps at barrier `id` go, if all are there.
    pub(super) fn complete(&mut self, id: usize) {
        let live: u32 = self.warps.iter().map(|w| w.live.count_ones()).sum();
        let barrier = &mut self.barriers[id];
        if barrier.waiting.is_empty() || barrier.arrived < barrier.expected.unwrap_or(live) {
            return;
        }
        let barrier = std::mem::take(barrier);
        // All that the arrived warps have done and seen is seen by those that waited.
        let mut seen = vec![0; self.warps.len()];
        for arrived in &barrier.waiting {
            let warp = &self.warps[arrived.warp];
            seen.iter_mut().zip(&warp.seen).for_each(|(s, t)| *s = (*s).max(*t));
            seen[arrived.warp] = seen[arrived.warp].max(warp.clock);
        }
        for arrived in &barrier.waiting {
            let warp = &mut self.warps[arrived.warp];
            warp.clock += 1;
            if !arrived.blocks {
                continue;
            }
            warp.state = State::Ready;
            warp.seen.iter_mut().zip(&seen).for_each(|(s, t)| *s = (*s).max(*t));
            let truth = |yes: bool| if yes { u32::MAX } else { 0 };
            match arrived.dst {
                Some((BarrierReduction::And, Answer::Truth(p))) => {
                    warp.write_pred(p, truth(barrier.ayes == barrier.votes), 0, arrived.mask);
                }
                Some((_, Answer::Truth(p))) => warp.write_pred(p, truth(barrier.ayes != 0), 0, arrived.mask),
                Some((_, Answer::Value(r))) => warp.write(r, &[u64::from(barrier.ayes); 32], 0, arrived.mask),
                None => {}
            }
        }
    }
}

/// The lane that a shuffle reads, and whether it is in the segment; else it reads itself.
fn shuffle_source(mode: ShuffleMode, lane: u32, operand: u32, clamp: u32) -> (u32, bool) {
    let (b, segment, c) = (operand & 31, clamp >> 8 & 31, clamp & 31);
    let (low, high) = (lane & segment, lane & segment | c & !segment);
    let (source, ok) = match mode {
        ShuffleMode::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= high as i32),
        ShuffleMode::Down => (lane + b, lane + b <= high),
        ShuffleMode::Butterfly => (lane ^ b, (lane ^ b) <= high),
        ShuffleMode::Index => (low | b & !segment, (low | b & !segment) <= high),
    };
    if ok { (source, true) } else { (lane, false) }
}
