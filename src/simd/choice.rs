//! Which instruction set an operation runs on.

use std::sync::OnceLock;
use std::time::Instant;

use super::{Isa, IsaError};
use crate::parallel::{self, Watch};

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

impl OpClass {
    /// How many choices there are.
    const CHOICES: usize = 12;

    /// Which of the choices this is: products differ by how often a decoded weight is used.
    fn choice(self) -> usize {
        match self {
            OpClass::Gemm { m: 0 | 1, .. } => 0,
            OpClass::Gemm { m: 2, .. } => 1,
            OpClass::Gemm { m: 3 | 4, .. } => 2,
            OpClass::Gemm { m: 5..=8, .. } => 3,
            OpClass::Gemm { m: 9..=16, .. } => 4,
            OpClass::Gemm { m: 17..=32, .. } => 5,
            OpClass::Gemm { .. } => 6,
            OpClass::Emulated { .. } => 7,
            OpClass::Quantize => 8,
            OpClass::QuantizeTransposed => 9,
            OpClass::Dequantize => 10,
            OpClass::Cast => 11,
        }
    }

    /// Rows of a product that stands for all of its choice.
    pub(crate) fn trial_rows(m: usize) -> usize {
        match m {
            0 | 1 => 1,
            2..=32 => m.next_power_of_two(),
            _ => 64,
        }
    }
}

/// A small operation that stands for a class, to be run on one instruction set after the other.
pub(crate) type Trial = Box<dyn FnMut(Isa)>;

/// The instruction set that runs an operation unless one is asked for: what `FINEGRAIN_ISA` forces, else the fastest of
/// those that the CPU has, as its `trial` shows when the class is first met. That takes some hundred microseconds.
///
/// What is fastest is no property of a set, nor of a vendor: VDPBF16PS does twice the multiply-adds of an f32 FMA in a cycle
/// on Zen 4 and 5, and half of them on Emerald Rapids, where it still wins with the fewest rows, since it decodes faster.
///
/// # Errors
/// [`IsaError::Forced`] if `FINEGRAIN_ISA` names one that does not exist or that the CPU lacks.
pub(crate) fn isa_for(op: OpClass, trial: &dyn Fn() -> Trial) -> Result<Isa, IsaError> {
    static CHOSEN: [OnceLock<Isa>; OpClass::CHOICES] = [const { OnceLock::new() }; OpClass::CHOICES];
    if let Some(forced) = Isa::forced()? {
        return Ok(forced);
    }
    Ok(*CHOSEN[op.choice()].get_or_init(|| {
        let mut candidates: Vec<Isa> = Isa::ALL.iter().copied().filter(|isa| isa.is_available()).collect();
        // Scalar code is for CPUs that have nothing else.
        if candidates.len() > 1 {
            candidates.retain(|&isa| isa != Isa::Scalar);
        }
        match candidates[..] {
            [only] => only,
            _ => fastest(&candidates, &mut trial()),
        }
    }))
}

/// The widest of the sets that come within [`CLOSE`] of the fastest. They run in turns, so that all see the same machine; the
/// least time counts, since everything that disturbs makes it longer.
fn fastest(candidates: &[Isa], trial: &mut Trial) -> Isa {
    const TURNS: usize = 4;
    const CLOSE: f64 = 1.03;
    let mut least = vec![f64::INFINITY; candidates.len()];
    parallel::alone(|| {
        for _ in 0..TURNS {
            for (&isa, least) in candidates.iter().zip(&mut least) {
                let start = Instant::now();
                trial(isa);
                *least = least.min(start.elapsed().as_secs_f64());
            }
        }
    });
    let best = least.iter().copied().fold(f64::INFINITY, f64::min);
    let close = candidates.iter().zip(&least).rfind(|&(_, &seconds)| seconds <= CLOSE * best);
    *close.expect("the fastest is close to itself").0
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
    pub(crate) fn isa(&self, op: OpClass, trial: &dyn Fn() -> Trial) -> Result<Option<Isa>, IsaError> {
        match self.path {
            Path::Reference => Ok(None),
            Path::Registers(Some(isa)) => Ok(Some(isa)),
            Path::Registers(None) => isa_for(op, trial).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each class and number of rows has a choice, those of one choice the same trial.
    #[test]
    fn classes_have_choices() {
        let product = |m| OpClass::Gemm { m, n: 4096, k: 4096 };
        for m in 0..200 {
            let trial = OpClass::trial_rows(m);
            assert_eq!(product(m).choice(), product(trial).choice(), "{m} rows are tried as {trial}");
        }
        let others = [OpClass::Quantize, OpClass::QuantizeTransposed, OpClass::Dequantize, OpClass::Cast];
        let mut choices: Vec<usize> = (0..200).map(|m| product(m).choice()).collect();
        choices.push(OpClass::Emulated { m: 1, n: 1, k: 1 }.choice());
        choices.extend(others.map(OpClass::choice));
        choices.sort_unstable();
        choices.dedup();
        assert_eq!(choices, (0..OpClass::CHOICES).collect::<Vec<_>>());
    }

    #[test]
    fn the_fastest_wins_and_the_widest_of_equals() {
        let spin = |micros: u64| {
            let begin = Instant::now();
            while begin.elapsed().as_micros() < u128::from(micros) {}
        };
        let all = [Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];
        let slow = |slow: Isa| -> Trial { Box::new(move |isa| spin(if isa == slow { 3000 } else { 1000 })) };
        assert_eq!(fastest(&all, &mut slow(Isa::Avx512Bf16)), Isa::Avx512);
        assert_eq!(fastest(&all, &mut slow(Isa::Avx2)), Isa::Avx512Bf16);
    }
}
