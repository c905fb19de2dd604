//! Executes the PTX of finegrain's CUDA kernels on the CPU, and checks what no GPU checks.
//!
//! A module is parsed once ([`Module`]), a [`Device`] holds global memory, [`Device::launch`] runs a kernel to its end
//! or to the first [`Fault`], and answers with a [`Report`] of what was executed.
//!
//! # What it executes
//!
//! What NVRTC 13 emits for compute_89: integers, f32, f64, packed halves, conversions with FP8, shared, local, constant
//! and generic addresses, atomics, barriers, shuffles, votes, `cp.async`, `ldmatrix`, `mma.sync` on FP8, FP16 and BF16;
//! and for compute_90a `wgmma` on FP8 with both operands in shared memory, by descriptors of any swizzle. The arithmetic
//! of both is one of finegrain's accumulation models ([`Options::fp8_model`], [`Options::wgmma_model`]). Instructions
//! whose bits no document fixes (`ex2.approx` and its kin, clocks) fault when they are reached. TMA, `mbarrier`,
//! clusters and calls are refused by the parser, with the line.
//!
//! # What it checks
//!
//! Each is a [`FaultKind`]: accesses outside of any allocation, misaligned accesses, reads of memory that nothing wrote,
//! addresses, branches and matrix operands made of registers that nothing wrote, races on shared memory (between
//! warps, and between lanes that no `bar.warp.sync` orders) and on global memory (between blocks too), barriers that
//! not all live threads of a warp reach, barriers that are never complete, collectives that name absent lanes, shared
//! memory that is touched while a `cp.async` to it is under way, copies pending at exit, endless loops. Of wgmma: a
//! missing `wgmma.fence`, writes to operands or accumulators before the wait, writes that no `fence.proxy.async` of their
//! thread made visible before a barrier that the reader has passed, warps of a warpgroup that disagree, products pending
//! at exit.
//!
//! # What it leaves out
//!
//! Blocks run one after the other, so kernels whose blocks wait for each other do not end. Fences order nothing here:
//! a flag in global memory hands data over only through atomics, and the data itself is reported as a race. A byte
//! remembers two of its readers, so that a write after reads by three warps, of which a named barrier orders two, may
//! pass. A `fence.proxy.async` by the reader, which PTX allows too, is not seen, and a `wgmma.fence` is asked for once
//! after each wait, whatever registers were touched. Barriers count threads that have exited as if they had arrived.
#![forbid(unsafe_code)]

mod device;
mod exec;
mod fault;
mod memory;
mod ptx;
mod report;

pub use device::Device;
pub use exec::{Arg, Launch, Options};
pub use fault::{Accessor, Fault, FaultKind, ThreadId};
pub use ptx::{Module, ParseError, Space};
pub use report::{MemoryLine, Report};
