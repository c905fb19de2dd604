//! One instruction of one warp.

use super::block::{At, Block, Step};
use super::warp::{Lanes, State, lanes};
use crate::fault::FaultKind;
use crate::ptx::{self, Inst, Logic, Op, Src};

fn logic(logic: Logic, x: u32, y: u32) -> u32 {
    match logic {
        Logic::And => x & y,
        Logic::Or => x | y,
        Logic::Xor => x ^ y,
    }
}

fn width_mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

impl Block<'_, '_> {
    /// Runs the next instruction of warp `w`, which is ready.
    pub(super) fn step(&mut self, w: usize) -> Result<(), (usize, At)> {
        let warp = &mut self.warps[w];
        let Some(path) = warp.path() else {
            warp.state = State::Done;
            return Ok(());
        };
        let kernel = self.kernel;
        let inst = &kernel.insts[path.pc];
        let locate = |at: At| (path.pc, at);
        warp.steps += 1;
        if warp.steps > self.machine.options.step_limit {
            return Err(locate((FaultKind::StepLimit(self.machine.options.step_limit), first(path.mask))));
        }
        self.machine.executed[path.pc] += 1;
        let mut active = path.mask;
        if let Some((pred, negated)) = inst.guard {
            let (truth, unset) = warp.read_pred(ptx::PredSrc::Reg { pred, negated });
            if unset & path.mask != 0 {
                return Err(locate(unset_register("the guard", unset & path.mask)));
            }
            active &= truth;
        }
        let branches = matches!(inst.op, Op::Branch { .. } | Op::BranchIndexed { .. });
        if !branches {
            warp.advance(path.pc + 1);
            if active == 0 {
                return Ok(());
            }
        }
        self.execute(w, inst, path.pc, path.mask, active).map_err(locate)
    }

    fn execute(&mut self, w: usize, inst: &Inst, pc: usize, path: u32, active: u32) -> Step<()> {
        let warp = &mut self.warps[w];
        match &inst.op {
            Op::Unary { f, dst, a } => {
                let (a, unset) = warp.read(*a);
                warp.write(*dst, &a.map(f), unset, active);
            }
            Op::Binary { f, dst, a, b } => {
                let ((a, ua), (b, ub)) = (warp.read(*a), warp.read(*b));
                let values: Lanes = std::array::from_fn(|i| f(a[i], b[i]));
                warp.write(*dst, &values, ua | ub, active);
            }
            Op::Ternary { f, dst, a, b, c } => {
                let ((a, ua), (b, ub), (c, uc)) = (warp.read(*a), warp.read(*b), warp.read(*c));
                let values: Lanes = std::array::from_fn(|i| f(a[i], b[i], c[i]));
                warp.write(*dst, &values, ua | ub | uc, active);
            }
            Op::BitInsert { wide, dst, a, b, c, d } => {
                let ((a, ua), (b, ub), (c, uc), (d, ud)) =
                    (warp.read(*a), warp.read(*b), warp.read(*c), warp.read(*d));
                let values: Lanes = std::array::from_fn(|i| ptx::insert(*wide, a[i], b[i], c[i], d[i]));
                warp.write(*dst, &values, ua | ub | uc | ud, active);
            }
            Op::Lop3 { table, dst, a, b, c } => {
                let ((a, ua), (b, ub), (c, uc)) = (warp.read(*a), warp.read(*b), warp.read(*c));
                let values: Lanes = std::array::from_fn(|i| ptx::lop3(*table, a[i], b[i], c[i]));
                warp.write(*dst, &values, ua | ub | uc, active);
            }
            Op::Convert { conversion, dst, dst_bits, a, b } => {
                let (a, ua) = warp.read(*a);
                let (b, ub) = b.map(|b| warp.read(b)).unzip();
                let mut values = [0; 32];
                for lane in lanes(active) {
                    let value = ptx::convert(*conversion, a[lane], b.map(|b| b[lane]));
                    values[lane] = value.unwrap_or(0) & width_mask(*dst_bits);
                }
                warp.write(*dst, &values, ua | ub.unwrap_or(0), active);
            }
            Op::Pack { dst, parts, part_bits } => {
                let (mut values, mut unset) = ([0; 32], 0);
                for (i, part) in parts.iter().enumerate() {
                    let (part, u) = warp.read(*part);
                    unset |= u;
                    let mask = width_mask(*part_bits);
                    values.iter_mut().zip(part).for_each(|(v, p)| *v |= (p & mask) << (i as u32 * part_bits));
                }
                warp.write(*dst, &values, unset, active);
            }
            Op::Unpack { parts, part_bits, a } => {
                let (a, unset) = warp.read(*a);
                for (i, part) in parts.iter().enumerate() {
                    let Some(part) = part else { continue };
                    let values = a.map(|a| a >> (i as u32 * part_bits) & width_mask(*part_bits));
                    warp.write(*part, &values, unset, active);
                }
            }
            Op::Compare { f, dst, complement, a, b, combine } => {
                let ((a, ua), (b, ub)) = (warp.read(*a), warp.read(*b));
                let holds = (0..32).fold(0, |mask, i| mask | u32::from(f(a[i], b[i])) << i);
                let (third, uc) = combine.map_or((0, 0), |(_, p)| warp.read_pred(p));
                let with = |x: u32| combine.map_or(x, |(op, _)| logic(op, x, third));
                for (dst, value) in [(dst, holds), (complement, !holds)] {
                    if let Some(dst) = dst {
                        warp.write_pred(*dst, with(value), ua | ub | uc, active);
                    }
                }
            }
            Op::Set { f, yes, dst, a, b } => {
                let ((a, ua), (b, ub)) = (warp.read(*a), warp.read(*b));
                let values: Lanes = std::array::from_fn(|i| if f(a[i], b[i]) { *yes } else { 0 });
                warp.write(*dst, &values, ua | ub, active);
            }
            Op::Select { dst, a, b, pred } => {
                let ((a, ua), (b, ub), (p, up)) = (warp.read(*a), warp.read(*b), warp.read_pred(*pred));
                let values: Lanes = std::array::from_fn(|i| if p >> i & 1 == 1 { a[i] } else { b[i] });
                warp.write(*dst, &values, ua & p | ub & !p | up, active);
            }
            Op::PredLogic { logic: op, dst, a, b } => {
                let ((a, ua), (b, ub)) = (warp.read_pred(*a), warp.read_pred(*b));
                // What one side decides alone does not depend on the other.
                let decided = match op {
                    Logic::And => !a & !ua | !b & !ub,
                    Logic::Or => a & !ua | b & !ub,
                    Logic::Xor => 0,
                };
                warp.write_pred(*dst, logic(*op, a, b), (ua | ub) & !decided, active);
            }
            Op::PredMove { dst, a } => {
                let (a, unset) = warp.read_pred(*a);
                warp.write_pred(*dst, a, unset, active);
            }
            Op::Branch { target } => {
                let stay = path & !active;
                if stay == 0 {
                    warp.advance(*target);
                } else if active == 0 {
                    warp.advance(pc + 1);
                } else {
                    warp.diverge(&[(pc + 1, stay), (*target, active)], self.kernel.reconverge[pc]);
                }
            }
            Op::BranchIndexed { index, targets } => {
                let (index, unset) = warp.read(*index);
                if unset & active != 0 {
                    return Err(unset_register("the branch index", unset & active));
                }
                let mut paths = vec![(pc + 1, path & !active)];
                for (i, &target) in targets.iter().enumerate() {
                    let mask = lanes(active).filter(|&l| index[l] == i as u64).fold(0, |m, l| m | 1 << l);
                    paths.push((target, mask));
                }
                warp.diverge(&paths, self.kernel.reconverge[pc]);
            }
            Op::Exit => warp.exit(active),
            Op::Trap => return Err((FaultKind::Trap, first(active))),
            Op::Irreproducible => {
                return Err((FaultKind::Irreproducible { opcode: inst.opcode.clone() }, first(active)));
            }
            Op::Fence => {}
            Op::ProxyFence => {
                let (step, clock) = (warp.steps, warp.clock);
                lanes(active).for_each(|lane| warp.proxy_fences[lane].fence(step, clock));
            }
            Op::ActiveMask { dst } => warp.write(*dst, &[u64::from(active); 32], 0, active),
            Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } => self.access(w, &inst.op, pc, active)?,
            Op::AsyncCopy { .. } | Op::CommitGroup | Op::WaitGroup(_) => {
                self.copy(w, &inst.op, pc, active)?
            }
            Op::LoadMatrix { .. } | Op::Mma { .. } => self.matrix(w, &inst.op, pc, active)?,
            Op::Product { .. } | Op::ProductFence | Op::CommitProducts | Op::WaitProducts(_) => {
                self.warpgroup(w, &inst.op, pc, active)?;
            }
            Op::Barrier { .. } => self.barrier(w, &inst.op, active)?,
            Op::SyncWarp { .. }
            | Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Reduce { .. } => {
                self.collective(w, &inst.op, active)?;
            }
        }
        Ok(())
    }

    /// A number that all active lanes share, such as a barrier's.
    pub(super) fn uniform(&self, w: usize, src: Src, active: u32, what: &str) -> Step<u32> {
        let (values, unset) = self.warps[w].read(src);
        if unset & active != 0 {
            return Err(unset_register(what, unset & active));
        }
        Ok(values[usize::from(first(active))] as u32)
    }
}

/// The lowest lane of a mask.
pub(super) fn first(mask: u32) -> u8 {
    mask.trailing_zeros().min(31) as u8
}

pub(super) fn unset_register(what: &str, mask: u32) -> At {
    (FaultKind::UninitialisedRegister { what: what.to_owned() }, first(mask))
}
