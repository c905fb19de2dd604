//! The emulated tensor cores give the reference's bits on every instruction set: every model and custom ones, shapes at
//! the edges of steps and blocks, values at the edges of the formats, block scales, promotion orders, addends, one
//! thread or many.

#[path = "common/conforming.rs"]
mod conforming;
#[path = "common/operands.rs"]
mod operands;

use conforming::{available, chosen};
use finegrain::formats::Format;
use finegrain::gemm::{
    Accumulation, Addend, BlockScales, Emulated, Execution, GemmBackend, GemmProblem, GroupedProblem, Model,
    Promotion, StepResult, TensorCore,
};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};
use operands::{Random, codes, e8m0, nvfp4, scaled, unscaled};

/// The models without block scales of their own.
const PLAIN: [TensorCore; 4] =
    [TensorCore::ADA, TensorCore::HOPPER, TensorCore::BLACKWELL, TensorCore::BLACKWELL_MMA];

fn chain(core: TensorCore) -> Accumulation {
    Accumulation::new(Model::TensorCore(core))
}

/// Compares with the reference; every instruction set runs every problem given here.
fn conforms(what: &str, problem: &GemmProblem<'_>) {
    let ran = conforming::conforms(Emulated::on, what, problem);
    assert_eq!(ran, 2 * available().len(), "{what}: an instruction set refused it");
}

#[test]
fn ragged_shapes() {
    let rows = [0, 1, 2, 3, 4, 5, 6, 7, 9, 15, 16, 17, 33];
    let cols = [0, 1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 129];
    let depths = [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 65, 127, 128, 129, 257, 383, 515];
    let mut random = Random(11);
    for round in 0..120 {
        let mut pick = |from: &[usize]| from[random.below(from.len() as u64) as usize];
        let (m, n, k) = (pick(&rows), pick(&cols), pick(&depths));
        let formats = [Format::E4M3, Format::E5M2];
        let (fa, fb) = (formats[pick(&[0, 1])], formats[pick(&[0, 0, 1])]);
        let a = scaled(fa, m, k, Granule::TILE_1X128, round);
        let b = scaled(fb, n, k, [Granule::BLOCK_128X128, Granule::TILE_1X128][pick(&[0, 1])], round + 1000);
        for core in PLAIN {
            let accumulation = chain(core).promote_every(128).unwrap();
            let problem =
                GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
            conforms(&format!("{m}×{n}×{k} {fa}×{fb} {accumulation}"), &problem);
        }
    }
}
