//! A block: its warps take turns until all are done.

use finegrain::gemm::Model;

use std::collections::BTreeMap;

use super::Options;
use super::warp::{Place, State, Warp};
use crate::fault::{Fault, FaultKind, ThreadId};
use crate::memory::{Global, Segment};
use crate::ptx::{Answer, BarrierReduction, Kernel, Space};
use crate::report::{MemoryLine, Report};

/// A fault and its lane.
pub(super) type At = (FaultKind, u8);
pub(super) type Step<T> = Result<T, At>;

/// What all blocks of a launch share.
pub(super) struct Machine<'a> {
    pub(super) options: &'a Options,
    /// The accumulation of mma.sync on FP8.
    pub(super) fp8_model: Model,
    pub(super) global: &'a mut Global,
    pub(super) params: Segment,
    pub(super) constants: Segment,
    /// Executions by instruction.
    pub(super) executed: Vec<u64>,
    pub(super) memory_lines: Vec<Option<MemoryLine>>,
}

/// A warp at a barrier.
pub(super) struct Waiting {
    pub(super) warp: usize,
    /// `false` for bar.arrive.
    pub(super) blocks: bool,
    pub(super) dst: Option<(BarrierReduction, Answer)>,
    pub(super) mask: u32,
}

#[derive(Default)]
pub(super) struct Barrier {
    pub(super) arrived: u32,
    pub(super) expected: Option<u32>,
    pub(super) ayes: u32,
    pub(super) votes: u32,
    pub(super) waiting: Vec<Waiting>,
}

const BARRIERS: usize = 16;

pub(super) struct Block<'a, 'm> {
    pub(super) machine: &'a mut Machine<'m>,
    pub(super) kernel: &'a Kernel,
    pub(super) index: u32,
    place: Place,
    pub(super) warps: Vec<Warp>,
    pub(super) shared: Segment,
    pub(super) barriers: Vec<Barrier>,
    /// Per warpgroup: the products its warps issued, as instruction, descriptors of A and B, and whether they add.
    pub(super) issued: Vec<Vec<(usize, u64, u64, bool)>>,
}

/// Runs one block to its end.
pub(super) fn run(machine: &mut Machine<'_>, kernel: &Kernel, index: u32, place: Place) -> Result<(), Fault> {
    let [x, y, z] = place.ntid;
    let warps = (x * y * z).div_ceil(32) as usize;
    let races = machine.options.check_races;
    let shared = Segment::new(Space::Shared, 0, place.total_shared as usize, races);
    let mut block = Block {
        machine,
        kernel,
        index,
        place,
        warps: (0..warps).map(|i| Warp::new(kernel, i, warps, place)).collect(),
        shared,
        barriers: (0..BARRIERS).map(|_| Barrier::default()).collect(),
        issued: Vec::new(),
    };
    block.run()
}

impl Block<'_, '_> {
    fn run(&mut self) -> Result<(), Fault> {
        let turn = self.machine.options.turn.max(1);
        loop {
            let mut ran = false;
            for w in 0..self.warps.len() {
                for _ in 0..turn {
                    if self.warps[w].state != State::Ready {
                        break;
                    }
                    ran = true;
                    self.step(w).map_err(|(pc, at)| self.fault(w, pc, at))?;
                    if self.warps[w].state == State::Done {
                        // Threads that exit are no longer waited for.
                        (0..BARRIERS).for_each(|id| self.complete(id));
                    }
                }
            }
            if !ran {
                break;
            }
        }
        if let Some(w) = self.warps.iter().position(|w| w.state == State::Waiting) {
            let stuck = |b: &Barrier| b.waiting.iter().any(|x| x.warp == w && x.blocks);
            let id = self.barriers.iter().position(stuck).unwrap_or(0);
            let live: u32 = self.warps.iter().map(|w| w.live.count_ones()).sum();
            let barrier = &self.barriers[id];
            let (arrived, expected) = (barrier.arrived, barrier.expected.unwrap_or(live));
            let pc = self.warps[w].stack.last().map_or(0, |p| p.pc.saturating_sub(1));
            return Err(self.fault(w, pc, (FaultKind::Deadlock { id: id as u32, arrived, expected }, 0)));
        }
        if let Some(w) = self.warps.iter().position(|w| !w.copies.is_empty()) {
            let (count, lane) = (self.warps[w].copies.len(), self.warps[w].copies[0].lane);
            let pc = self.kernel.insts.len().saturating_sub(1);
            return Err(self.fault(w, pc, (FaultKind::PendingCopyAtExit { count }, lane)));
        }
        for (w, warp) in self.warps.iter().enumerate() {
            let count = warp.products.len();
            let pc = self.kernel.insts.len().saturating_sub(1);
            if count != 0 {
                return Err(self.fault(w, pc, (FaultKind::PendingProductsAtExit { count }, 0)));
            }
            if self.issued.get(w / 4).is_some_and(|log| log.len() != warp.issued) {
                let what = "its warps issue different numbers of products".to_owned();
                return Err(self.fault(w, pc, (FaultKind::Warpgroup(what), 0)));
            }
        }
        Ok(())
    }

    pub(super) fn thread_exists(&self, w: usize, lane: u32) -> bool {
        let [x, y, z] = self.place.ntid;
        w as u32 * 32 + lane < x * y * z
    }

    fn fault(&self, w: usize, pc: usize, (kind, lane): At) -> Fault {
        let tid = &self.warps[w].tid;
        let thread = [0, 1, 2].map(|axis| tid[axis][usize::from(lane)]);
        let inst = self.kernel.insts.get(pc);
        Fault {
            kind,
            kernel: self.kernel.name.clone(),
            line: inst.map_or(0, |i| i.line),
            opcode: inst.map_or(String::new(), |i| i.opcode.clone()),
            at: ThreadId { block: self.place.ctaid, thread },
        }
    }
}

impl Machine<'_> {
    pub(super) fn report(self, kernel: &Kernel) -> Report {
        let mut by_opcode: BTreeMap<String, u64> = BTreeMap::new();
        for (inst, &count) in kernel.insts.iter().zip(&self.executed).filter(|(_, n)| **n != 0) {
            *by_opcode.entry(inst.opcode.clone()).or_default() += count;
        }
        let lines = kernel.insts.iter().map(|i| i.line).zip(self.memory_lines);
        let memory = lines.filter_map(|(line, m)| m.map(|m| (line, m))).collect();
        Report { instructions: self.executed.iter().sum(), by_opcode, memory }
    }
}
