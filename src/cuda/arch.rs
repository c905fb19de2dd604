//! The GPU architectures that kernels are compiled for.

use std::fmt;

/// An architecture with native FP8 conversion. `a` names features that hold for this architecture alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// Ada (L4, L40, RTX 40): FP8 `mma.sync`.
    Sm89,
    /// Hopper (H100, H200) with `wgmma`.
    Sm90a,
    /// Blackwell for data centres (B200) with `tcgen05`.
    Sm100a,
    /// Blackwell for workstations (RTX 50, RTX PRO 6000): FP8 `mma.sync`.
    Sm120a,
}

impl Arch {
    /// Every architecture, oldest first.
    pub const ALL: &'static [Arch] = &[Arch::Sm89, Arch::Sm90a, Arch::Sm100a, Arch::Sm120a];

    /// 32-bit registers of one multiprocessor, on all of them.
    pub const REGISTERS: u32 = 65_536;

    /// Registers are given out to warps in units of this many a thread.
    pub const REGISTER_UNIT: u32 = 8;

    /// The most registers one thread can have.
    pub const MAX_REGISTERS_A_THREAD: u32 = 255;

    /// Shared memory that the system takes of each block, in bytes.
    pub const SHARED_OF_THE_SYSTEM: u32 = 1024;

    /// Shared memory of one multiprocessor, in bytes (CUDA programming guide, technical specifications per compute
    /// capability, as the next two).
    pub const fn shared_of_multiprocessor(self) -> u32 {
        match self {
            Arch::Sm89 | Arch::Sm120a => 100 * 1024,
            Arch::Sm90a | Arch::Sm100a => 228 * 1024,
        }
    }

    /// Threads that one multiprocessor holds at a time.
    pub const fn threads_of_multiprocessor(self) -> u32 {
        match self {
            Arch::Sm89 | Arch::Sm120a => 1536,
            Arch::Sm90a | Arch::Sm100a => 2048,
        }
    }

    /// Blocks that one multiprocessor holds at a time.
    pub const fn blocks_of_multiprocessor(self) -> u32 {
        match self {
            Arch::Sm89 | Arch::Sm120a => 24,
            Arch::Sm90a | Arch::Sm100a => 32,
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Arch::Sm89 => "89",
            Arch::Sm90a => "90a",
            Arch::Sm100a => "100a",
            Arch::Sm120a => "120a",
        }
    }

    /// `sm_XX`: the name for machine code.
    pub fn sm(self) -> String {
        format!("sm_{}", self.suffix())
    }

    /// `compute_XX`: the name for PTX.
    pub fn compute(self) -> String {
        format!("compute_{}", self.suffix())
    }

    /// The architecture whose code a device of this compute capability runs.
    ///
    /// ```
    /// use finegrain::cuda::Arch;
    /// assert_eq!(Arch::of_capability(8, 9), Some(Arch::Sm89));
    /// assert_eq!(Arch::of_capability(8, 0), None);
    /// ```
    pub const fn of_capability(major: i32, minor: i32) -> Option<Arch> {
        match (major, minor) {
            (8, 9) => Some(Arch::Sm89),
            (9, 0) => Some(Arch::Sm90a),
            (10, 0) => Some(Arch::Sm100a),
            (12, 0) => Some(Arch::Sm120a),
            _ => None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.sm())
    }
}
