//! Which instruction set an operation runs on.

use super::{Isa, IsaError};
use crate::parallel::Watch;

/// An operation, as far as the choice of its instruction set depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpClass {
    /// A product of M×N×K in f32.
    Gemm {
        /// Rows of A and D.
        m: usize,
        /// Rows of B, columns of D.
        n: usize,
        /// Elements summed.
        k: usize,
    },
    /// A product of M×N×K as a tensor core sums it.
    Emulated {
        /// Rows of A and D.
        m: usize,
        /// Rows of B, columns of D.
        n: usize,
        /// Elements summed.
        k: usize,
    },
    /// Quantisation whose result lies as what is read: tiles and blocks.
    Quantize,
    /// Quantisation of the transpose.
    QuantizeTransposed,
    /// Codes and scales to floats.
    Dequantize,
    /// Floats to codes without scales.
    Cast,
}

/// The instruction set that runs an operation unless one is asked for. `FINEGRAIN_ISA` forces one for all.
///
/// # Errors
/// [`IsaError::Forced`] if `FINEGRAIN_ISA` names one that does not exist or that the CPU lacks.
pub fn isa_for(_: OpClass) -> Result<Isa, IsaError> {
    Isa::active()
}

/// Where on a CPU something runs, and who watches. The bits do not depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu<'w> {
    pub(crate) path: Path,
    pub(crate) watch: Watch<'w>,
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// The definition: one element after the other.
    Reference,
    /// An instruction set; `None` for the one of [`isa_for`].
    Registers(Option<Isa>),
}

impl Cpu<'_> {
    /// The instruction set of choice, and nobody watches.
    pub(crate) const AUTOMATIC: Cpu<'static> = Cpu { path: Path::Registers(None), watch: Watch::NONE };

    /// The instruction set of an operation; `None` for the definition.
    pub(crate) fn isa(&self, op: OpClass) -> Result<Option<Isa>, IsaError> {
        match self.path {
            Path::Reference => Ok(None),
            Path::Registers(Some(isa)) => Ok(Some(isa)),
            Path::Registers(None) => isa_for(op).map(Some),
        }
    }
}
