//! Where and how operations run, as one value that is built once: [`Engine`].
//!
//! ```
//! use finegrain::Engine;
//! use finegrain::gemm::GemmProblem;
//! use finegrain::matrix::Matrix;
//! use finegrain::quant::{Recipe, Role};
//! use std::num::NonZeroUsize;
//! let engine = Engine::cpu().with_threads(NonZeroUsize::new(2).unwrap())?;
//! let x = Matrix::from_fn(4, 300, |i, j| (i as f32 - 1.5) * j as f32);
//! let q = engine.quantize(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation)?;
//! let problem = GemmProblem::nt(q.view(), q.view())?;
//! println!("{}", engine.plan_gemm(&problem)?);
//! let d = engine.gemm(&problem)?;
//! // Wherever it runs, the bits are the reference's.
//! assert_eq!(d, Engine::reference().gemm(&problem)?);
//! # Ok::<(), finegrain::Error>(())
//! ```
//!
//! Every operation has a method that does it, such as [`Engine::quantize`], and one that says how it would be done or why
//! not, such as [`Engine::plan_quantize`]. Where nothing is to be said, [`GemmProblem::run`](crate::gemm::GemmProblem::run),
//! [`Quantizer`](crate::quant::Quantizer) and [`Caster`](crate::quant::Caster) do the same on [`Engine::cpu`].
#![forbid(unsafe_code)]

mod device;
mod elements;
mod gemm;
mod quantize;
mod resident;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

pub use gemm::{GemmPlan, Product};

pub use crate::plan::Plan;
pub use crate::scaled::Resident;

use self::device::Device;
use crate::error::{Error, Result};
use crate::gemm::{GemmBackend, OnCpu, Only};
use crate::parallel::{Cancellation, Watch};
use crate::quant::Role;
use crate::simd::{Cpu, Isa, OpClass, Path, Trial};

/// The most threads that an engine starts.
const MOST_THREADS: usize = 1024;

/// Where operations run (the reference, this CPU, a device), on which threads, who is told how far they are and who may
/// stop them. Nothing of it changes a bit of a result.
///
/// Cloning is cheap: clones share their threads.
#[derive(Clone)]
pub struct Engine<'w> {
    place: Place,
    pool: Option<Arc<ThreadPool>>,
    watch: Watch<'w>,
}

#[derive(Clone)]
enum Place {
    /// A CPU: by the reference or in registers, and what multiplies there.
    Cpu(Path, OnCpu),
    /// Something else, with memory of its own.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "devices are CUDA's"))]
    Device(Arc<dyn Device>),
}

impl Default for Engine<'_> {
    fn default() -> Self {
        Engine::cpu()
    }
}

impl Engine<'static> {
    /// The names that [`Engine::by_name`] knows, but "cpu".
    pub const NAMES: &'static [&'static str] = &[
        "blocked",
        "emulated",
        "reference",
        #[cfg(feature = "cuda")]
        "cuda",
    ];

    /// This CPU: each operation on the instruction set that is chosen for it, products on the fastest backend that has
    /// their bits.
    pub const fn cpu() -> Self {
        Engine::at(Place::Cpu(Path::Registers(None), OnCpu::AUTO))
    }

    /// The definition of every operation: one element after the other.
    pub const fn reference() -> Self {
        Engine::at(Place::Cpu(Path::Reference, OnCpu::AUTO.only(Only::Reference)))
    }

    /// An engine by the name of what multiplies: `reference`, `blocked` and `emulated` (this CPU, products by that backend
    /// alone), `cuda` (the machine's first device, with feature `cuda`), `cpu`.
    ///
    /// ```
    /// use finegrain::Engine;
    /// assert_eq!(Engine::by_name("blocked")?.name(), "blocked");
    /// let refusal = Engine::by_name("abacus").unwrap_err().to_string();
    /// assert!(refusal.starts_with("unknown backend 'abacus'; known: "));
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unknown`] with the names; [`Error::Unsupported`] if there is no such device, and why.
    pub fn by_name(name: &str) -> Result<Self> {
        let only = |only| Ok(Engine::at(Place::Cpu(Path::Registers(None), OnCpu::AUTO.only(only))));
        match name {
            "cpu" => Ok(Engine::cpu()),
            "reference" => Ok(Engine::reference()),
            "blocked" => only(Only::Blocked),
            "emulated" => only(Only::Emulated),
            #[cfg(feature = "cuda")]
            "cuda" => device::first(),
            _ => Err(Error::unknown("backend", name, Engine::NAMES.iter().copied())),
        }
    }

    const fn at(place: Place) -> Self {
        Engine { place, pool: None, watch: Watch::NONE }
    }
}

impl<'w> Engine<'w> {
    /// The same on an instruction set of this CPU.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the CPU lacks it, or if the engine is none of a CPU's instruction sets.
    pub fn on(self, isa: Isa) -> Result<Self> {
        let isa = isa.checked()?;
        match self.place {
            Place::Cpu(Path::Registers(_), gemm) => {
                let place = Place::Cpu(Path::Registers(Some(isa)), gemm.on(isa)?);
                Ok(Engine { place, ..self })
            }
            Place::Cpu(Path::Reference, _) | Place::Device(_) => {
                Err(Error::Unsupported(format!("engine {} does not run on {isa}", self.name())))
            }
        }
    }

    /// The same on threads of its own, started here. Without them an engine works on the threads of the pool that it is
    /// called from: rayon's global one, if from none.
    ///
    /// # Errors
    /// [`Error::Invalid`] if that many cannot be started.
    pub fn with_threads(self, threads: NonZeroUsize) -> Result<Self> {
        let refuse = |why: &str| Error::Invalid(format!("{threads} threads: {why}"));
        if threads.get() > MOST_THREADS {
            return Err(refuse(&format!("expected at most {MOST_THREADS}")));
        }
        let pool = ThreadPoolBuilder::new().num_threads(threads.get()).build();
        let pool = pool.map_err(|e| refuse(&e.to_string()))?;
        Ok(Engine { pool: Some(Arc::new(pool)), ..self })
    }

    /// The same with somebody who is told, from any thread, how much more is done: multiply-adds of a product, elements of
    /// everything else.
    pub fn with_progress<'v>(self, progress: &'v (dyn Fn(u64) + Sync)) -> Engine<'v>
    where
        'w: 'v,
    {
        let Engine { place, pool, watch } = self;
        Engine { place, pool, watch: Watch { progress: Some(progress), ..watch } }
    }

    /// The same with somebody who may stop it: operations then fail with [`Error::Cancelled`].
    ///
    /// ```
    /// use finegrain::Engine;
    /// use finegrain::matrix::Matrix;
    /// use finegrain::parallel::Cancellation;
    /// use finegrain::quant::{Recipe, Role};
    /// let cancellation = Cancellation::new();
    /// let engine = Engine::cpu().with_cancellation(&cancellation);
    /// let x = Matrix::filled(4, 300, 1.0f32);
    /// assert!(engine.quantize(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation).is_ok());
    /// cancellation.request();
    /// assert!(engine.quantize(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation).is_err());
    /// ```
    pub fn with_cancellation<'v>(self, cancellation: &'v Cancellation) -> Engine<'v>
    where
        'w: 'v,
    {
        let Engine { place, pool, watch } = self;
        Engine { place, pool, watch: Watch { cancellation: Some(cancellation), ..watch } }
    }

    /// What multiplies: a name of [`Engine::by_name`].
    pub fn name(&self) -> &'static str {
        self.backend().name()
    }

    /// The instruction set of this CPU that an operation runs on; `None` for the definition and on a device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::Unknown`] if `FINEGRAIN_ISA` names one that the CPU lacks or that there is not.
    pub fn isa_for(&self, op: OpClass) -> Result<Option<Isa>> {
        match &self.place {
            &Place::Cpu(path, _) => Ok(self.on_cpu(path).isa(op, &|| trial(op))?),
            Place::Device(_) => Ok(None),
        }
    }

    /// The threads that it works on.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
    }

    /// Runs `work` on its threads: what is parallel in it stays there.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Who is told of its work and may stop it.
    pub(crate) fn watch(&self) -> Watch<'w> {
        self.watch
    }

    /// What multiplies.
    fn backend(&self) -> &dyn GemmBackend {
        match &self.place {
            Place::Cpu(_, gemm) => gemm,
            Place::Device(device) => device.gemm(),
        }
    }

    /// What there is no kernel for.
    fn refuses(&self, does: &str) -> Error {
        Error::Unsupported(format!("backend {} {does} nothing", self.name()))
    }

    /// This CPU, as the engine uses it.
    fn on_cpu(&self, path: Path) -> Cpu<'w> {
        Cpu { path, watch: self.watch }
    }
}

/// A small operation that stands for a class.
fn trial(op: OpClass) -> Trial {
    match op {
        OpClass::Gemm { m, .. } => crate::gemm::trial::in_f32(m),
        OpClass::Emulated { .. } => crate::gemm::trial::emulated(),
        OpClass::Quantize => crate::quant::trial::quantize(Role::Activation),
        OpClass::QuantizeTransposed => crate::quant::trial::quantize(Role::Transposed),
        OpClass::Dequantize => crate::scaled::trial::dequantize(),
        OpClass::Cast => crate::quant::trial::cast(),
    }
}

impl fmt::Display for Engine<'_> {
    /// Its name, and the instruction set and the threads where they were chosen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match &self.place {
            Place::Cpu(Path::Registers(Some(isa)), _) => write!(f, " on {isa}")?,
            Place::Cpu(..) | Place::Device(_) => {}
        }
        match &self.pool {
            Some(pool) => write!(f, ", {} threads", pool.current_num_threads()),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Engine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Engine").field(&self.to_string()).field(&self.watch).finish()
    }
}
