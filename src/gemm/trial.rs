//! Small products that stand for a class, to find the instruction set that is fastest at it.

use super::accumulation::Accumulation;
use super::backend::{GemmBackend, Output};
use super::blocked::Blocked;
use super::emulated::Emulated;
use super::problem::GemmProblem;
use crate::error::Result;
use crate::matrix::Matrix;
use crate::parallel::Watch;
use crate::scaled::Granule;
use crate::scaled::trial::operand;
use crate::simd::{Isa, OpClass, Trial};

/// N and K of a product in f32: its codes stay in the second-level cache, and it takes some ten microseconds.
const SIZE: (usize, usize) = (128, 512);
/// M, N and K of an emulated one, which takes several times as long.
const EMULATED: (usize, usize, usize) = (32, 64, 256);

/// A product of this shape on the backend that `on` gives for an instruction set.
fn product<B: GemmBackend + 'static>(
    (m, n, k): (usize, usize, usize),
    accumulation: Accumulation,
    on: fn(Isa) -> Result<B>,
) -> Trial {
    let operands =
        operand(m, k, Granule::TILE_1X128).and_then(|a| Ok((a, operand(n, k, Granule::BLOCK_128X128)?)));
    let mut d = Matrix::filled(m, n, 0.0);
    Box::new(move |isa| {
        let mut run = || {
            let (a, b) = operands.as_ref().ok()?;
            let problem = GemmProblem::nt(a.view(), b.view()).ok()?.with_accumulation(accumulation).ok()?;
            on(isa).ok()?.run(&problem, Output::F32(d.view_mut()), &Watch::NONE).ok()
        };
        run().expect("a legal product on a set that the CPU has")
    })
}

/// A product in f32 with as many rows as stand for `m`.
pub(crate) fn in_f32(m: usize) -> Trial {
    product((OpClass::trial_rows(m), SIZE.0, SIZE.1), Accumulation::F32, Blocked::on)
}

/// An emulated product.
pub(crate) fn emulated() -> Trial {
    product(EMULATED, Accumulation::HOPPER.promoted::<128>(), Emulated::on)
}
