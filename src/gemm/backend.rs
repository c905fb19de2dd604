//! What a GEMM implementation is.

use std::num::NonZeroUsize;

use half::bf16;

use super::accumulation::Model;
use super::grouped::GroupedProblem;
use super::problem::GemmProblem;
use crate::error::{Error, Result};
use crate::matrix::MatMut;

/// An implementation of the [contract](super): the reference's bits, or a refusal.
pub trait GemmBackend: Sync {
    /// The name, as the command line takes it.
    fn name(&self) -> &'static str;

    /// The accumulation models that it has, each for some problems at least.
    fn models(&self) -> Vec<Model>;

    /// Whether this backend computes the problem.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason why not.
    fn supports(&self, problem: &GemmProblem<'_>) -> Result<()>;

    /// Computes D into `out`, all of it. Callers have asked [`GemmBackend::supports`], have checked that `out` is M × N,
    /// and call from the thread pool that the work is to be spread over ([`Execution::install`]).
    ///
    /// # Errors
    /// What the outside world may refuse while computing, such as a device. The CPU's backends have none.
    fn run(&self, problem: &GemmProblem<'_>, out: Output<'_>, execution: &Execution<'_>) -> Result<()>;

    /// Whether this backend computes all groups of the problem.
    ///
    /// # Errors
    /// As [`GemmBackend::supports`].
    fn supports_grouped(&self, problem: &GroupedProblem<'_>) -> Result<()> {
        problem.parts().iter().try_for_each(|part| self.supports(part.problem()))
    }

    /// Computes D of a grouped problem into `out`, all of it, on the terms of [`GemmBackend::run`]: group by group,
    /// unless the backend knows better.
    ///
    /// # Errors
    /// As [`GemmBackend::run`].
    fn run_grouped(
        &self,
        problem: &GroupedProblem<'_>,
        mut out: Output<'_>,
        execution: &Execution<'_>,
    ) -> Result<()> {
        out.clear();
        problem.parts().iter().try_for_each(|part| {
            let rows = part.rows();
            self.run(part.problem(), out.row_range(rows.start, rows.end), execution)
        })
    }
}

/// Where D goes, and in which format.
#[derive(Debug)]
pub enum Output<'a> {
    /// As computed.
    F32(MatMut<'a, f32>),
    /// Rounded once, to nearest even.
    Bf16(MatMut<'a, bf16>),
}

impl Output<'_> {
    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Output::F32(m) => m.shape(),
            Output::Bf16(m) => m.shape(),
        }
    }

    /// Rows `start..end`, borrowed for a shorter time.
    pub fn row_range(&mut self, start: usize, end: usize) -> Output<'_> {
        match self {
            Output::F32(m) => Output::F32(m.reborrow().row_range(start, end)),
            Output::Bf16(m) => Output::Bf16(m.reborrow().row_range(start, end)),
        }
    }

    /// Sets every element to +0.
    pub fn clear(&mut self) {
        match self {
            Output::F32(m) => m.reborrow().into_rows().into_iter().for_each(|row| row.fill(0.0)),
            Output::Bf16(m) => m.reborrow().into_rows().into_iter().for_each(|row| row.fill(bf16::ZERO)),
        }
    }
}

/// How a problem is computed. Nothing here changes a bit of the result.
#[derive(Clone, Copy, Default)]
pub struct Execution<'a> {
    /// Number of threads; `None` for the pool of the calling thread.
    pub threads: Option<NonZeroUsize>,
    /// Name of the backend; `None` for the fastest that supports the problem.
    pub backend: Option<&'a str>,
    /// Called from any thread with the number of multiply-adds just finished; the calls add up to M·N·K.
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
}

impl Execution<'_> {
    /// Runs `work` in a pool of the asked-for size.
    ///
    /// # Errors
    /// [`Error::Invalid`] if that many threads cannot be started; those of `work`.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let Some(threads) = self.threads else { return work() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build();
        pool.map_err(|e| Error::Invalid(format!("{threads} threads: {e}")))?.install(work)
    }

    /// Reports `macs` finished multiply-adds.
    pub fn report(&self, macs: u64) {
        if let Some(progress) = self.progress {
            progress(macs);
        }
    }
}

impl std::fmt::Debug for Execution<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Execution { threads, backend, progress } = self;
        let progress = progress.is_some();
        f.debug_struct("Execution")
            .field("threads", threads)
            .field("backend", backend)
            .field("progress", &progress)
            .finish()
    }
}
