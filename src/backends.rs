//! The list of GEMM implementations, and running a problem on the fastest that computes it.
//!
//! ```
//! for backend in finegrain::backends::ALL {
//!     println!("{}", backend.name());
//! }
//! let refusal = finegrain::backends::by_name("abacus").err().unwrap();
//! assert!(refusal.to_string().starts_with("unknown backend 'abacus'; known: "));
//! ```
#![forbid(unsafe_code)]

use half::bf16;

use crate::error::{Error, Result};
use crate::gemm::{
    Blocked, Emulated, Execution, GemmBackend, GemmProblem, GroupedProblem, Output, Reference,
};
use crate::matrix::Matrix;

/// Every backend, the fastest first; the CUDA device (feature `cuda`) stands last, so that it is used only by name.
pub static ALL: &[&dyn GemmBackend] = &[
    &Blocked::AUTO,
    &Emulated::AUTO,
    &Reference,
    #[cfg(feature = "cuda")]
    &crate::cuda::FirstDevice,
];

/// Looks a backend up by name.
///
/// # Errors
/// [`Error::Unknown`] with the list of names.
pub fn by_name(name: &str) -> Result<&'static dyn GemmBackend> {
    let found = ALL.iter().find(|b| b.name() == name);
    found.copied().ok_or_else(|| Error::unknown("backend", name, ALL.iter().map(|b| b.name())))
}

/// The backend that `execution` names, or the fastest that supports the problem.
///
/// # Errors
/// [`Error::Unknown`] for a name that is not in the list; [`Error::Unsupported`] if the named backend refuses the
/// problem.
pub fn choose(problem: &GemmProblem<'_>, execution: &Execution<'_>) -> Result<&'static dyn GemmBackend> {
    match execution.backend {
        Some(name) => {
            let backend = by_name(name)?;
            backend.supports(problem)?;
            Ok(backend)
        }
        None => {
            let fastest = ALL.iter().find(|b| b.supports(problem).is_ok());
            Ok(*fastest.expect("the reference supports every problem"))
        }
    }
}

fn check_output(expected: (usize, usize), out: &Output<'_>) -> Result<()> {
    if out.shape() == expected {
        return Ok(());
    }
    let (m, n) = expected;
    let (rows, cols) = out.shape();
    Err(Error::Shape(format!("the output given is {rows}×{cols}, expected {m}×{n}")))
}

macro_rules! run_methods {
    ($problem:ident) => {
        impl $problem<'_> {
            /// D in f32, on the fastest backend and the threads of the current pool.
            ///
            /// # Errors
            /// What the outside world refuses a backend.
            pub fn run(&self) -> Result<Matrix<f32>> {
                self.run_with(&Execution::default())
            }

            /// D rounded once to BF16, to nearest even.
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($problem), "::run`].")]
            pub fn run_bf16(&self) -> Result<Matrix<bf16>> {
                self.run_bf16_with(&Execution::default())
            }

            /// D in f32, computed as told.
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($problem), "::run_into`].")]
            pub fn run_with(&self, execution: &Execution<'_>) -> Result<Matrix<f32>> {
                let (rows, cols) = self.output_shape();
                let mut d = Matrix::filled(rows, cols, 0.0);
                self.run_into(Output::F32(d.view_mut()), execution)?;
                Ok(d)
            }

            /// D rounded once to BF16, computed as told.
            ///
            /// # Errors
            #[doc = concat!("As [`", stringify!($problem), "::run_into`].")]
            pub fn run_bf16_with(&self, execution: &Execution<'_>) -> Result<Matrix<bf16>> {
                let (rows, cols) = self.output_shape();
                let mut d = Matrix::filled(rows, cols, bf16::ZERO);
                self.run_into(Output::Bf16(d.view_mut()), execution)?;
                Ok(d)
            }
        }
    };
}

run_methods!(GemmProblem);
run_methods!(GroupedProblem);

impl GemmProblem<'_> {
    /// Computes D into memory of the caller's; every element is written.
    ///
    /// # Errors
    /// [`Error::Shape`] if `out` is not M × N; [`Error::Unknown`] or [`Error::Unsupported`] as [`choose`];
    /// [`Error::Invalid`] if the threads asked for cannot be started; what the outside world refuses a backend.
    pub fn run_into(&self, out: Output<'_>, execution: &Execution<'_>) -> Result<()> {
        check_output(self.output_shape(), &out)?;
        let backend = choose(self, execution)?;
        execution.install(|| backend.run(self, out, &execution.watch()))
    }
}

impl GroupedProblem<'_> {
    /// Computes D into memory of the caller's; every element is written, +0 where no group is.
    ///
    /// # Errors
    /// As [`GemmProblem::run_into`].
    pub fn run_into(&self, mut out: Output<'_>, execution: &Execution<'_>) -> Result<()> {
        check_output(self.output_shape(), &out)?;
        if let Some(name) = execution.backend {
            let backend = by_name(name)?;
            backend.supports_grouped(self)?;
            return execution.install(|| backend.run_grouped(self, out, &execution.watch()));
        }
        out.clear();
        execution.install(|| {
            self.parts().iter().try_for_each(|part| {
                let backend = choose(part.problem(), execution)?;
                let rows = part.rows();
                backend.run(part.problem(), out.row_range(rows.start, rows.end), &execution.watch())
            })
        })
    }
}
