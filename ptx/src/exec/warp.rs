//! A warp: registers, which of them were ever written, and the stack of its diverged paths.

use crate::memory::Segment;
use crate::ptx::{Kernel, MmaShape, Pred, PredSrc, Reg, Space, Special, Src};

/// One value a lane.
pub(super) type Lanes = [u64; 32];

/// The lanes of a mask, ascending.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

/// One path of a diverged warp.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) pc: usize,
    /// Where it ends: the path below goes on there.
    pub(super) meet: usize,
    pub(super) mask: u32,
}

/// What the special registers say, for all threads of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) ctaid: [u32; 3],
    pub(super) ntid: [u32; 3],
    pub(super) nctaid: [u32; 3],
    pub(super) dynamic_shared: u32,
    pub(super) total_shared: u32,
}

/// A cp.async under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub(super) lane: u8,
    pub(super) group: u32,
    pub(super) to: usize,
    pub(super) from: u64,
    pub(super) bytes: u8,
    pub(super) copied: u8,
}

/// A wgmma under way.
#[derive(Clone, Debug)]
pub(super) struct Product {
    pub(super) shape: MmaShape,
    pub(super) d: Vec<Reg>,
    /// Addresses of A's and B's rows in pieces of 16 bytes.
    pub(super) a: Vec<u64>,
    pub(super) b: Vec<u64>,
    pub(super) adds: bool,
    pub(super) group: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    Waiting,
    Done,
}

/// The last fence.proxy.async of a lane, and the last one before the barrier before it: who has not passed that barrier
/// has seen only the latter.
#[derive(Clone, Copy, Default)]
pub(super) struct ProxyFences {
    /// The warp's step at the last one.
    step: u64,
    /// The warp's clock at the last one.
    clock: u32,
    /// The step of the last one at an earlier clock.
    earlier: u64,
}

impl ProxyFences {
    /// A fence at a step and a clock.
    pub(super) fn fence(&mut self, step: u64, clock: u32) {
        if clock != self.clock {
            self.earlier = self.step;
        }
        (self.step, self.clock) = (step, clock);
    }

    /// The step of the last fence that is known to one who has seen the warp's clock up to `seen`.
    pub(super) fn known_at(&self, seen: u32) -> u64 {
        if self.clock <= seen { self.step } else { self.earlier }
    }
}

pub(super) struct Warp {
    pub(super) index: u8,
    pub(super) place: Place,
    pub(super) tid: [[u32; 32]; 3],
    regs: Vec<Lanes>,
    /// Per register: lanes whose value was never written, or was made of such.
    unset: Vec<u32>,
    preds: Vec<u32>,
    preds_unset: Vec<u32>,
    pub(super) stack: Vec<Path>,
    pub(super) live: u32,
    pub(super) state: State,
    pub(super) steps: u64,
    pub(super) clock: u32,
    pub(super) seen: Vec<u32>,
    pub(super) local: Vec<Segment>,
    pub(super) copies: Vec<Copy>,
    pub(super) committed: [u32; 32],
    /// Products under way, oldest first, and groups of them that were committed.
    pub(super) products: Vec<Product>,
    pub(super) product_groups: u32,
    /// Products issued since the start.
    pub(super) issued: usize,
    /// Whether wgmma.fence came after the last wait.
    pub(super) fenced: bool,
    /// Per lane: its last fences.
    pub(super) proxy_fences: [ProxyFences; 32],
}

impl Warp {
    pub(super) fn new(kernel: &Kernel, index: usize, warps: usize, place: Place) -> Warp {
        let [nx, ny, nz] = place.ntid;
        let threads = nx * ny * nz;
        let first = index as u32 * 32;
        let live = (0..32).filter(|lane| first + lane < threads).fold(0, |mask, lane| mask | 1 << lane);
        let mut tid = [[0; 32]; 3];
        for lane in 0..32 {
            let linear = first + lane as u32;
            tid[0][lane] = linear % nx;
            tid[1][lane] = linear / nx % ny;
            tid[2][lane] = linear / (nx * ny);
        }
        let local = || Segment::new(Space::Local, 0, kernel.local_bytes, false);
        Warp {
            index: index as u8,
            place,
            tid,
            regs: vec![[0; 32]; kernel.registers],
            unset: vec![u32::MAX; kernel.registers],
            preds: vec![0; kernel.predicates],
            preds_unset: vec![u32::MAX; kernel.predicates],
            stack: vec![Path { pc: 0, meet: kernel.insts.len(), mask: live }],
            live,
            state: State::Ready,
            steps: 0,
            clock: 1,
            seen: vec![0; warps],
            local: if kernel.local_bytes == 0 { Vec::new() } else { (0..32).map(|_| local()).collect() },
            copies: Vec::new(),
            committed: [0; 32],
            products: Vec::new(),
            product_groups: 0,
            issued: 0,
            fenced: false,
            proxy_fences: [ProxyFences::default(); 32],
        }
    }

    /// Brings the innermost path that still has lanes to the top; `None` at the end.
    pub(super) fn path(&mut self) -> Option<Path> {
        while let Some(path) = self.stack.last_mut() {
            path.mask &= self.live;
            if path.mask != 0 && path.pc != path.meet {
                return Some(*path);
            }
            self.stack.pop();
        }
        None
    }

    pub(super) fn advance(&mut self, pc: usize) {
        if let Some(path) = self.stack.last_mut() {
            path.pc = pc;
        }
    }

    /// Splits the top path over several targets; they meet at `meet`.
    pub(super) fn diverge(&mut self, targets: &[(usize, u32)], meet: usize) {
        let Some(top) = self.stack.last_mut() else { return };
        top.pc = meet;
        if top.meet == meet {
            // The path below waits there for all of them already.
            self.stack.pop();
        }
        for &(pc, mask) in targets.iter().filter(|t| t.1 != 0 && t.0 != meet) {
            self.stack.push(Path { pc, meet, mask });
        }
    }

    pub(super) fn exit(&mut self, mask: u32) {
        self.live &= !mask;
    }

    /// Values, and the lanes where they are unset.
    #[inline]
    pub(super) fn read(&self, src: Src) -> (Lanes, u32) {
        match src {
            Src::Reg(reg) => (self.regs[reg as usize], self.unset[reg as usize]),
            Src::Imm(value) => ([value; 32], 0),
            Src::Special(special) => (self.special(special), 0),
        }
    }

    #[inline]
    pub(super) fn write(&mut self, dst: Reg, values: &Lanes, unset: u32, mask: u32) {
        let (reg, flags) = (&mut self.regs[dst as usize], &mut self.unset[dst as usize]);
        if mask == u32::MAX {
            *reg = *values;
        } else {
            for lane in lanes(mask) {
                reg[lane] = values[lane];
            }
        }
        *flags = *flags & !mask | unset & mask;
    }

    /// Forgets that a register was written, but not its value.
    pub(super) fn poison(&mut self, reg: Reg) {
        self.unset[reg as usize] = u32::MAX;
    }

    /// Truths as a mask, and the lanes where they are unset.
    pub(super) fn read_pred(&self, src: PredSrc) -> (u32, u32) {
        match src {
            PredSrc::Reg { pred, negated } => {
                let value = self.preds[pred as usize];
                (if negated { !value } else { value }, self.preds_unset[pred as usize])
            }
            PredSrc::Const(value) => (if value { u32::MAX } else { 0 }, 0),
        }
    }

    pub(super) fn write_pred(&mut self, dst: Pred, value: u32, unset: u32, mask: u32) {
        let (pred, flags) = (&mut self.preds[dst as usize], &mut self.preds_unset[dst as usize]);
        *pred = *pred & !mask | value & mask;
        *flags = *flags & !mask | unset & mask;
    }

    fn special(&self, special: Special) -> Lanes {
        let place = &self.place;
        let all = |x: u32| [u64::from(x); 32];
        let per_lane = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|lane| u64::from(f(lane as u32)));
        match special {
            Special::Tid(axis) => self.tid[usize::from(axis)].map(u64::from),
            Special::Ntid(axis) => all(place.ntid[usize::from(axis)]),
            Special::Ctaid(axis) => all(place.ctaid[usize::from(axis)]),
            Special::Nctaid(axis) => all(place.nctaid[usize::from(axis)]),
            Special::LaneId => per_lane(&|lane| lane),
            Special::WarpId => all(u32::from(self.index)),
            Special::NWarpId => all(self.seen.len() as u32),
            Special::LaneMask(order, or_equal) => per_lane(&|lane| {
                (0..32u32)
                    .filter(|other| other.cmp(&lane) == order || or_equal && *other == lane)
                    .fold(0, |mask, other| mask | 1 << other)
            }),
            Special::DynamicShared => all(place.dynamic_shared),
            Special::TotalShared => all(place.total_shared),
        }
    }
}
