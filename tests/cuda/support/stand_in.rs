//! A GPU that is the PTX interpreter, behind the launcher's driver trait.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use finegrain::cuda::kernels::{Config, Kernel};
use finegrain::cuda::{Arch, Arg, Driver};
use finegrain::error::{Error, Result};
use ptx_emulator::{Device, Module, Options};

use super::kept::{alone, read};

/// The interpreter as a device of `arch`, all checks on.
pub struct StandIn {
    arch: Arch,
    device: Mutex<Device>,
    modules: Mutex<HashMap<&'static str, Arc<Module>>>,
    /// Dynamic shared memory that kernels were allowed.
    allowed: Mutex<HashMap<&'static str, u32>>,
    /// What was launched, in order.
    launches: Mutex<Vec<(&'static str, Config)>>,
    /// Bytes that can still be allocated.
    free: Mutex<usize>,
    /// Bytes that went to the device, and that came back.
    moved: Mutex<(usize, usize)>,
}

/// Memory of the stand-in: address and size.
pub struct Memory(u64, usize);

fn fault(e: impl ToString) -> Error {
    Error::Unsupported(e.to_string())
}

impl StandIn {
    pub fn new(arch: Arch) -> StandIn {
        StandIn::with_memory(arch, usize::MAX)
    }

    /// A device that runs out of memory after this many bytes.
    pub fn with_memory(arch: Arch, bytes: usize) -> StandIn {
        StandIn {
            arch,
            device: Mutex::default(),
            modules: Mutex::default(),
            allowed: Mutex::default(),
            launches: Mutex::default(),
            free: Mutex::new(bytes),
            moved: Mutex::default(),
        }
    }

    /// The last launch.
    pub fn last(&self) -> Option<(&'static str, Config)> {
        self.launches.lock().unwrap().last().copied()
    }

    /// Bytes that went to the device, and that came back, since this was last asked.
    pub fn moved(&self) -> (usize, usize) {
        std::mem::take(&mut *self.moved.lock().unwrap())
    }

    pub fn launches(&self) -> usize {
        self.launches.lock().unwrap().len()
    }

    /// Bytes of shared memory that a block may have at most.
    fn most_shared(&self) -> u32 {
        let kib = match self.arch {
            Arch::Sm89 | Arch::Sm120a => 99,
            Arch::Sm90a | Arch::Sm100a => 227,
        };
        kib * 1024
    }

    fn module(&self, kernel: &'static Kernel) -> Arc<Module> {
        let mut modules = self.modules.lock().unwrap();
        let load = || {
            let kept = kernel.source.ptx;
            let arch = if kept.contains(&self.arch) { self.arch } else { kept[0] };
            Arc::new(Module::parse(&alone(&read(kernel.source, arch), kernel.name)).unwrap())
        };
        Arc::clone(modules.entry(kernel.name).or_insert_with(load))
    }
}

/// An argument as the bytes that a kernel reads.
fn argument(arg: &Arg) -> ptx_emulator::Arg {
    match *arg {
        Arg::Address(v) => ptx_emulator::Arg::Ptr(v),
        Arg::U32(v) => ptx_emulator::Arg::U32(v),
        Arg::I32(v) => ptx_emulator::Arg::I32(v),
        Arg::I64(v) => ptx_emulator::Arg::U64(v.cast_unsigned()),
        Arg::F32(v) => ptx_emulator::Arg::F32(v),
        Arg::Scales(s) => {
            let words = [s.data, s.row_stride as u64, s.col_stride as u64, s.kind as u64];
            ptx_emulator::Arg::Bytes(words.iter().flat_map(|w| w.to_le_bytes()).collect())
        }
        Arg::Recipe(r) => {
            let whole = [r.form, r.power_of_two, r.payload, r.cast, r.ignores_nan, r.replaces]
                .map(i32::cast_unsigned);
            let floats = [r.floor, r.max, r.inv_max, r.zero, r.overflow, r.infinite, r.nan].map(f32::to_bits);
            let words = whole.into_iter().chain(floats);
            ptx_emulator::Arg::Bytes(words.flat_map(u32::to_le_bytes).collect())
        }
    }
}

impl Driver for StandIn {
    type Memory = Memory;

    fn arch(&self) -> Arch {
        self.arch
    }

    fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        let memory = self.zeros(bytes.len())?;
        self.moved.lock().unwrap().0 += bytes.len();
        self.device.lock().unwrap().write(memory.0, bytes).map_err(fault)?;
        Ok(memory)
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        let mut free = self.free.lock().unwrap();
        *free = free.checked_sub(bytes).ok_or_else(|| fault(format!("out of memory: {bytes} of {free}")))?;
        Ok(Memory(self.device.lock().unwrap().alloc(bytes.max(1)), bytes))
    }

    fn zeros(&self, bytes: usize) -> Result<Memory> {
        let memory = self.allocate(bytes)?;
        self.device.lock().unwrap().write(memory.0, &vec![0; bytes]).map_err(fault)?;
        Ok(memory)
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.0
    }

    fn download(&self, memory: &Memory) -> Result<Vec<u8>> {
        self.download_part(memory, 0..memory.1)
    }

    fn download_part(&self, memory: &Memory, bytes: Range<usize>) -> Result<Vec<u8>> {
        self.moved.lock().unwrap().1 += bytes.len();
        self.device.lock().unwrap().read(memory.0 + bytes.start as u64, bytes.len()).map_err(fault)
    }

    fn allow_shared(&self, kernel: &'static Kernel, bytes: u32) -> Result<()> {
        if bytes > self.most_shared() {
            return Err(fault(format!("{bytes} bytes of shared memory of {}", self.most_shared())));
        }
        self.allowed.lock().unwrap().insert(kernel.name, bytes);
        Ok(())
    }

    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }

    // What a wrong argument does here is a fault, not undefined behaviour.
    unsafe fn launch(&self, kernel: &'static Kernel, config: Config, args: &[Arg]) -> Result<()> {
        let allowed = self.allowed.lock().unwrap().get(kernel.name).copied();
        let shared_limit = allowed.unwrap_or(Config::SHARED_WITHOUT_ASKING);
        if config.dynamic_shared > shared_limit {
            return Err(fault(format!("{} bytes of shared memory of {shared_limit}", config.dynamic_shared)));
        }
        let launch = ptx_emulator::Launch {
            grid: config.grid,
            block: config.block,
            dynamic_shared: config.dynamic_shared,
            args: args.iter().map(argument).collect(),
        };
        let options = Options { shared_limit, ..Options::default() };
        self.launches.lock().unwrap().push((kernel.name, config));
        let module = self.module(kernel);
        self.device.lock().unwrap().launch(&module, kernel.name, &launch, &options).map_err(fault)?;
        Ok(())
    }
}
