//! What a kernel did wrong, and where.

use crate::ptx::Space;

/// A thread: its block and its place in the block, each as (x, y, z).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadId {
    /// %ctaid
    pub block: [u32; 3],
    /// %tid
    pub thread: [u32; 3],
}

/// One side of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accessor {
    /// The block, counted along x, then y, then z.
    pub block: u32,
    /// The warp in its block.
    pub warp: u32,
    /// The lane; `None` where several lanes of the warp read.
    pub lane: Option<u32>,
    /// Whether it wrote.
    pub wrote: bool,
}

impl std::fmt::Display for Accessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.wrote { "written" } else { "read" };
        write!(f, "{how} by block {} warp {}", self.block, self.warp)?;
        self.lane.map_or(Ok(()), |lane| write!(f, " lane {lane}"))
    }
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside every allocation.
    #[error("{bytes} bytes at {address:#x} are in no allocation{}", .nearest.map_or(String::new(), |(base, size)| format!("; the nearest is {base:#x} of {size} bytes")))]
    GlobalOutOfBounds {
        /// First byte.
        address: u64,
        /// How many.
        bytes: usize,
        /// The allocation below: base and size.
        nearest: Option<(u64, usize)>,
    },
    /// An access outside shared, local, parameter or constant memory.
    #[error("{bytes} bytes at {address:#x} of {space} memory, which has {size}")]
    OutOfBounds {
        /// Which memory.
        space: Space,
        /// First byte, in the space.
        address: u64,
        /// How many.
        bytes: usize,
        /// What there is.
        size: usize,
    },
    /// An address that is no multiple of the access's size.
    #[error("{bytes} bytes at {address:#x} of {space} memory are not aligned")]
    Misaligned {
        /// Which memory.
        space: Space,
        /// First byte.
        address: u64,
        /// How many.
        bytes: usize,
    },
    /// A read of memory that nothing has written.
    #[error("{space} memory at {address:#x} is read before it is written")]
    UninitialisedMemory {
        /// Which memory.
        space: Space,
        /// The byte.
        address: u64,
    },
    /// A decision, an address or an mma that depends on a register that nothing has written.
    #[error("{what} depends on a value that was never written")]
    UninitialisedRegister {
        /// The register, or the role it plays.
        what: String,
    },
    /// Two accesses, one a write, with nothing that orders them.
    #[error("race on {space} memory at {address:#x}: {earlier}, now {now}, and nothing orders the two")]
    Race {
        /// Which memory.
        space: Space,
        /// The byte.
        address: u64,
        /// The access that came first here.
        earlier: Accessor,
        /// The access that found it.
        now: Accessor,
    },
    /// A barrier that some live threads of a warp do not reach together.
    #[error("barrier with lanes {active:#010x} of the live {live:#010x}")]
    DivergentBarrier {
        /// Lanes at the barrier.
        active: u32,
        /// Lanes that have not exited.
        live: u32,
    },
    /// Every warp waits at a barrier that will never be complete.
    #[error("warps wait for ever: barrier {id} has {arrived} of {expected} threads")]
    Deadlock {
        /// The barrier.
        id: u32,
        /// Threads that are there.
        arrived: u32,
        /// Threads it waits for.
        expected: u32,
    },
    /// shfl, vote, match, redux or a warp barrier that names lanes which are not there.
    #[error("lanes {named:#010x} are named, {active:#010x} are there")]
    InactiveLanes {
        /// The member mask.
        named: u32,
        /// Lanes at the instruction.
        active: u32,
    },
    /// Shared memory is touched while a cp.async to it is under way.
    #[error("shared memory at {address:#x} is touched while a cp.async to it is pending")]
    PendingCopy {
        /// The byte.
        address: u64,
    },
    /// Shared memory is written while a wgmma that was not waited for may still read it.
    #[error("shared memory at {address:#x} is written while a wgmma may still read it")]
    PendingRead {
        /// The byte.
        address: u64,
    },
    /// wgmma reads what its writer has not made visible to the asynchronous proxy.
    #[error(
        "shared memory at {address:#x} is read by wgmma without a fence.proxy.async of the thread that wrote it"
    )]
    MissingProxyFence {
        /// The byte.
        address: u64,
    },
    /// wgmma starts to accumulate into registers that no wgmma.fence ordered.
    #[error("wgmma accumulates without a wgmma.fence since the last wait")]
    MissingProductFence,
    /// An accumulator is written while a wgmma to it is under way.
    #[error("an accumulator of wgmma is written while the product is pending")]
    AccumulatorWritten,
    /// A block ends while products are under way.
    #[error("{count} wgmma are pending at exit")]
    PendingProductsAtExit {
        /// How many.
        count: usize,
    },
    /// The threads of a warpgroup disagree.
    #[error("warpgroup: {0}")]
    Warpgroup(String),
    /// A block ends while copies are under way.
    #[error("{count} cp.async are pending at exit")]
    PendingCopyAtExit {
        /// How many.
        count: usize,
    },
    /// A warp ran longer than allowed.
    #[error("the warp ran {0} instructions and did not end")]
    StepLimit(u64),
    /// mma or ldmatrix by less than a whole warp.
    #[error("a whole warp is needed, lanes {active:#010x} are there")]
    PartialWarp {
        /// Lanes at the instruction.
        active: u32,
    },
    /// An instruction whose bits no document fixes.
    #[error("{opcode} is not reproducible: its bits are not defined")]
    Irreproducible {
        /// As written.
        opcode: String,
    },
    /// Constant or parameter memory is written.
    #[error("{space} memory at {address:#x} is read-only")]
    ReadOnly {
        /// Which memory.
        space: Space,
        /// First byte.
        address: u64,
    },
    /// trap
    #[error("trap")]
    Trap,
    /// The emulator cannot do it.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The launch itself is wrong.
    #[error("launch: {0}")]
    Launch(String),
}

/// A [`FaultKind`] and where it happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kernel}, line {line} ({opcode}), block {:?} thread {:?}: {kind}", .at.block, .at.thread)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// The entry.
    pub kernel: String,
    /// The line in the PTX text, from 1; 0 for a fault of the launch.
    pub line: u32,
    /// The opcode as written.
    pub opcode: String,
    /// The first thread it was seen in.
    pub at: ThreadId,
}
