//! Executing kernels.

mod access;
mod block;
mod collective;
mod matrix;
mod step;
mod warp;
mod warpgroup;

use std::sync::OnceLock;

use finegrain::gemm::{Model, TensorCore};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::fault::{Fault, FaultKind, ThreadId};
use crate::memory::{Global, Segment};
use crate::ptx::{Kernel, Module, Space, window};
use crate::report::Report;
use block::Machine;
use warp::Place;

/// One argument of a launch.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// `.u32`
    U32(u32),
    /// `.s32`
    I32(i32),
    /// `.u64`
    U64(u64),
    /// `.f32`
    F32(f32),
    /// An address in global memory.
    Ptr(u64),
    /// A structure by value, as it lies in memory.
    Bytes(Vec<u8>),
}

impl Arg {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Arg::U32(x) => x.to_le_bytes().to_vec(),
            Arg::I32(x) => x.to_le_bytes().to_vec(),
            Arg::U64(x) | Arg::Ptr(x) => x.to_le_bytes().to_vec(),
            Arg::F32(x) => x.to_le_bytes().to_vec(),
            Arg::Bytes(x) => x.clone(),
        }
    }
}

/// The shape of a launch and its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads along x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The arguments, in order.
    pub args: Vec<Arg>,
}

/// How to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The accumulation of mma.sync on FP8; that of the module's target where there is none: `hopper-mma` on sm_90,
    /// `blackwell-mma` beyond, `ada` before.
    pub fp8_model: Option<Model>,
    /// The accumulation of mma.sync on FP16 and BF16.
    pub half_model: Model,
    /// The accumulation of wgmma on FP8.
    pub wgmma_model: Model,
    /// Whether to look for races.
    pub check_races: bool,
    /// Instructions that a warp runs before the next has its turn.
    pub turn: u32,
    /// Instructions after which a warp is held to be in an endless loop.
    pub step_limit: u64,
    /// The most shared memory a block may have, in bytes; sm_89's by default.
    pub shared_limit: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            fp8_model: None,
            half_model: Model::TensorCore(TensorCore::AMPERE),
            wgmma_model: Model::TensorCore(TensorCore::HOPPER),
            check_races: true,
            turn: 16,
            step_limit: 50_000_000,
            shared_limit: 99 * 1024,
        }
    }
}

const MAX_THREADS: u32 = 1024;

/// A pool of one thread: every matrix product of a launch stays on the thread that emulates.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    POOL.get_or_init(|| ThreadPoolBuilder::new().num_threads(1).build().ok()).as_ref()
}

/// Runs a kernel.
pub(crate) fn launch(
    global: &mut Global,
    module: &Module,
    name: &str,
    launch: &Launch,
    options: &Options,
) -> Result<Report, Fault> {
    let refuse = |what: String| Fault {
        kind: FaultKind::Launch(what),
        kernel: name.to_owned(),
        line: 0,
        opcode: String::new(),
        at: ThreadId::default(),
    };
    let Some(kernel) = module.kernels.get(name) else {
        let known = module.kernel_names().collect::<Vec<_>>().join(", ");
        return Err(refuse(format!("there is no such kernel; there are {known}")));
    };
    let params = arguments(kernel, &launch.args).map_err(refuse)?;
    let [x, y, z] = launch.block;
    let threads = u64::from(x) * u64::from(y) * u64::from(z);
    if threads == 0 || threads > u64::from(MAX_THREADS) {
        return Err(refuse(format!("{threads} threads in a block: expected 1 to {MAX_THREADS}")));
    }
    if launch.grid.contains(&0) {
        return Err(refuse(format!("a grid of {:?} blocks", launch.grid)));
    }
    let total_shared = if launch.dynamic_shared == 0 {
        kernel.static_shared
    } else {
        kernel.dynamic_shared + launch.dynamic_shared as usize
    };
    if total_shared > options.shared_limit as usize {
        return Err(refuse(format!(
            "{total_shared} bytes of shared memory: at most {}",
            options.shared_limit
        )));
    }
    let work = || execute(global, module, kernel, params, launch, total_shared as u32, options);
    match pool() {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

fn execute(
    global: &mut Global,
    module: &Module,
    kernel: &Kernel,
    params: Segment,
    launch: &Launch,
    total_shared: u32,
    options: &Options,
) -> Result<Report, Fault> {
    global.forget_accesses(options.check_races);
    let filled = |space, base, data: &[u8]| {
        let mut segment = Segment::new(space, base, data.len(), false);
        // Nothing can be amiss with a write to all of a segment that nobody shares.
        drop(segment.write(0, data, true, None));
        segment
    };
    let of_target = match module.target {
        Some(90) => TensorCore::HOPPER_MMA,
        Some(91..) => TensorCore::BLACKWELL_MMA,
        Some(..90) | None => TensorCore::ADA,
    };
    let mut machine = Machine {
        options,
        fp8_model: options.fp8_model.unwrap_or(Model::TensorCore(of_target)),
        global,
        params,
        constants: filled(Space::Const, window::CONST, &module.constants),
        executed: vec![0; kernel.insts.len()],
        memory_lines: vec![None; kernel.insts.len()],
    };
    let [gx, gy, gz] = launch.grid;
    let mut index = 0;
    for z in 0..gz {
        for y in 0..gy {
            for x in 0..gx {
                let place = Place {
                    ctaid: [x, y, z],
                    ntid: launch.block,
                    nctaid: launch.grid,
                    dynamic_shared: launch.dynamic_shared,
                    total_shared,
                };
                block::run(&mut machine, kernel, index, place)?;
                index += 1;
            }
        }
    }
    Ok(machine.report(kernel))
}

fn arguments(kernel: &Kernel, args: &[Arg]) -> Result<Segment, String> {
    if args.len() != kernel.params.len() {
        return Err(format!("{} arguments, expected {}", args.len(), kernel.params.len()));
    }
    let mut segment = Segment::new(Space::Param, 0, kernel.param_bytes, false);
    for (i, (arg, param)) in args.iter().zip(&kernel.params).enumerate() {
        let bytes = arg.bytes();
        if bytes.len() != param.size {
            return Err(format!("argument {i} has {} bytes, expected {}", bytes.len(), param.size));
        }
        segment.write(param.offset, &bytes, true, None).map_err(|fault| fault.to_string())?;
    }
    Ok(segment)
}
