//! Who touched each byte last: the race checker.
//!
//! Each warp has a clock that barriers advance and a view of the other warps' clocks that barriers join (vector
//! clocks). An access happened before another if the later one's warp has seen a clock past it, or if it is the same
//! lane's. Each byte keeps its last write and two last reads of different warps.

use crate::fault::{Accessor, FaultKind};
use crate::ptx::Space;

/// Lane number of a read by several lanes.
const MANY: u8 = 32;

/// The one who accesses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor<'a> {
    pub(crate) block: u32,
    pub(crate) warp: u8,
    pub(crate) lane: u8,
    /// The warp's own clock.
    pub(crate) clock: u32,
    /// Per warp of the block: the last clock of it that this warp has seen completed.
    pub(crate) seen: &'a [u32],
    /// Instructions that the warp has begun.
    pub(crate) step: u64,
    /// Atomic, volatile or relaxed: no race with its like.
    pub(crate) strong: bool,
}

/// An access, packed: block + 1, warp, lane, strong, clock. Zero is none.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64);

impl Stamp {
    const NONE: Stamp = Stamp(0);

    fn of(actor: &Actor<'_>) -> Stamp {
        let place =
            u64::from(actor.block + 1) << 40 | u64::from(actor.warp) << 34 | u64::from(actor.lane) << 28;
        Stamp(place | u64::from(actor.strong) << 27 | u64::from(actor.clock))
    }

    fn block(self) -> u32 {
        (self.0 >> 40) as u32 - 1
    }

    fn warp(self) -> u8 {
        (self.0 >> 34 & 63) as u8
    }

    fn lane(self) -> u8 {
        (self.0 >> 28 & 63) as u8
    }

    fn strong(self) -> bool {
        self.0 >> 27 & 1 == 1
    }

    fn clock(self) -> u32 {
        (self.0 & 0x7FF_FFFF) as u32
    }

    fn same_warp(self, actor: &Actor<'_>) -> bool {
        self != Stamp::NONE && self.block() == actor.block && self.warp() == actor.warp
    }

    fn before(self, actor: &Actor<'_>) -> bool {
        if self == Stamp::NONE || self.strong() && actor.strong {
            return true;
        }
        if self.block() != actor.block {
            return false;
        }
        if self.warp() == actor.warp {
            return self.lane() == actor.lane || self.clock() < actor.clock;
        }
        self.clock() <= actor.seen[usize::from(self.warp())]
    }

    fn accessor(self, wrote: bool) -> Accessor {
        let lane = (self.lane() != MANY).then_some(u32::from(self.lane()));
        Accessor { block: self.block(), warp: u32::from(self.warp()), lane, wrote }
    }
}

#[derive(Clone, Copy)]
struct Cell {
    write: Stamp,
    read: Stamp,
    /// The last read by another warp than `read`'s.
    other: Stamp,
}

/// The shadow of one piece of memory; empty where races are not looked for.
pub(crate) struct Shadow {
    cells: Vec<Cell>,
}

impl Shadow {
    pub(crate) fn new(bytes: usize, enabled: bool) -> Shadow {
        let none = Cell { write: Stamp::NONE, read: Stamp::NONE, other: Stamp::NONE };
        Shadow { cells: vec![none; if enabled { bytes } else { 0 }] }
    }

    /// Checks and notes a read of bytes `at..at + len`.
    pub(crate) fn read(
        &mut self,
        space: Space,
        base: u64,
        at: usize,
        len: usize,
        actor: &Actor<'_>,
    ) -> Result<(), FaultKind> {
        if self.cells.is_empty() {
            return Ok(());
        }
        let now = Stamp::of(actor);
        for (i, cell) in self.cells[at..at + len].iter_mut().enumerate() {
            if !cell.write.before(actor) {
                return Err(race(
                    space,
                    base + (at + i) as u64,
                    cell.write.accessor(true),
                    now.accessor(false),
                ));
            }
            if cell.read == now {
                continue;
            }
            if cell.read.same_warp(actor) {
                let several = cell.read.clock() == actor.clock && cell.read.lane() != actor.lane;
                let lane = if several { MANY } else { actor.lane };
                cell.read = Stamp::of(&Actor { lane, ..*actor });
            } else {
                cell.other = cell.read;
                cell.read = now;
            }
        }
        Ok(())
    }

    /// Checks and notes a write; `same[i]` says that the byte keeps its value, which lanes of one warp may do at once.
    pub(crate) fn write(
        &mut self,
        space: Space,
        base: u64,
        at: usize,
        same: impl Fn(usize) -> bool,
        len: usize,
        actor: &Actor<'_>,
    ) -> Result<(), FaultKind> {
        if self.cells.is_empty() {
            return Ok(());
        }
        let now = Stamp::of(actor);
        for (i, cell) in self.cells[at..at + len].iter_mut().enumerate() {
            let fault = |earlier| Err(race(space, base + (at + i) as u64, earlier, now.accessor(true)));
            let benign = cell.write.same_warp(actor) && same(i);
            if !(benign || cell.write.before(actor)) {
                return fault(cell.write.accessor(true));
            }
            for read in [cell.read, cell.other] {
                if !read.before(actor) {
                    return fault(read.accessor(false));
                }
            }
            cell.write = now;
        }
        Ok(())
    }
}

fn race(space: Space, address: u64, earlier: Accessor, now: Accessor) -> FaultKind {
    FaultKind::Race { space, address, earlier, now }
}
