//! Planted bugs: each of these changes to the sources of the kernels must be noticed, by the compiler, by the interpreter's
//! checks, by other bits on a problem that the kernel as it is solves, or by what its machine code must look like. One that
//! is not noticed is a test to write. Needs NVRTC, no GPU.

use crate::common::operands::{scaled, unscaled};
use crate::support::compiler::compiler;
use crate::support::emulated_gemm::{Case, Form, Layout, Plain, options};
use crate::support::gemm_bugs::{
    EDGES, FRAGMENTS, GROUPS, PIPELINE, PLAIN_MUTANTS, PROMOTION, WGMMA_MUTANTS,
};
use crate::support::mutant::{Mutant, survivors};
use crate::support::quantize_bugs;
use finegrain::formats::Format::{E4M3, E5M2};
use finegrain::gemm::{Accumulation, Promotion};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};
use ptx_emulator::Module;

const TILE: Granule = Granule::TILE_1X128;
const BLOCK: Granule = Granule::BLOCK_128X128;

/// Scales that are given.
fn with_scales(
    x: &ScaledMatrix,
    granule: Granule,
    tensor: f32,
    scale: impl Fn(usize) -> f32,
) -> ScaledMatrix {
    let (rows, cols) = x.shape();
    let (down, across) = granule.grid(rows, cols);
    let grid = ScaleGrid::F32(Matrix::from_fn(down, across, |i, j| scale(i + j)));
    ScaledMatrix::new(x.format(), x.codes().clone(), Some(Scales { granule, grid, tensor })).unwrap()
}

fn gemm_problem(name: &str) -> Case {
    let dense = |a, b| Case::new(name, Form::Dense, vec![a], vec![b]);
    let several =
        |n: usize, rows, k, g, seed: u64| (0..n).map(|i| scaled(E4M3, rows, k, g, seed + i as u64)).collect();
    match name {
        "deep" => dense(scaled(E4M3, 128, 640, TILE, 1), scaled(E4M3, 128, 640, BLOCK, 2)),
        "partial-first" => Case {
            promotion: Promotion::PartialFirst,
            ..dense(scaled(E4M3, 128, 384, TILE, 3), scaled(E4M3, 128, 384, TILE, 4))
        },
        "unfused" => Case { promotion: Promotion::Unfused, ..gemm_problem("partial-first") },
        "shallow" => dense(scaled(E4M3, 128, 128, TILE, 1), scaled(E4M3, 128, 128, BLOCK, 2)),
        "long" => dense(scaled(E4M3, 20, 1400, TILE, 1), scaled(E4M3, 24, 1400, BLOCK, 2)),
        // Two tiles down, with blocks and with rows.
        "tall" => dense(scaled(E4M3, 136, 144, TILE, 1), scaled(E4M3, 136, 144, BLOCK, 2)),
        "e5m2" => dense(scaled(E5M2, 64, 256, TILE, 1), scaled(E4M3, 64, 256, BLOCK, 2)),
        "edges" => {
            let addend = Some(Matrix::from_fn(67, 131, |i, j| (i * j) as f32 - 700.0));
            Case { addend, ..dense(scaled(E4M3, 67, 400, TILE, 5), scaled(E4M3, 131, 400, BLOCK, 6)) }
        }
        "edges in bf16" => Case { bf16: true, ..gemm_problem("edges") },
        "gapped" => Case {
            layout: Layout::GAPPED,
            ..dense(scaled(E4M3, 67, 333, TILE, 5), scaled(E4M3, 70, 333, TILE, 6))
        },
        "two levels" => {
            let addend = Some(Matrix::from_fn(20, 24, |i, j| (i * j) as f32 + 1.0));
            let a = with_scales(&unscaled(E4M3, 20, 144, 7), TILE, 0.3, |i| 1.0 + i as f32);
            let b = with_scales(&unscaled(E4M3, 24, 144, 8), BLOCK, 1.0, |_| 1.5);
            Case { addend, ..dense(a, b) }
        }
        "negative zero" => {
            // A sum of 0 with a negative second scale: −0, which + 0 would make +0.
            let zero = |tensor| {
                let codes = Codes::Bytes(Matrix::filled(8, 1, 0));
                with_scales(&ScaledMatrix::new(E4M3, codes, None).unwrap(), TILE, tensor, |_| 1.0)
            };
            dense(zero(-0.5), zero(1.0))
        }
        "intervals of 64" => dense(scaled(E5M2, 13, 300, TILE, 5), scaled(E4M3, 131, 300, BLOCK, 6)),
        "nan" => {
            // A NaN among the scales passes its sign and fraction on, unless it is made canonical at the end.
            let a = with_scales(&unscaled(E4M3, 20, 144, 9), TILE, 1.0, |_| f32::from_bits(0xFFFF_FFFF));
            dense(a, with_scales(&unscaled(E4M3, 24, 144, 10), BLOCK, 1.0, |_| 1.0))
        }
        "nan in bf16" => Case { bf16: true, ..gemm_problem("nan") },
        "ties to bf16" => {
            // Few products of scale 1: sums of few bits, of which many lie between two bf16.
            let one = |rows, seed| with_scales(&unscaled(E4M3, rows, 16, seed), TILE, 1.0, |_| 1.0);
            Case { bf16: true, ..dense(one(64, 11), one(64, 12)) }
        }
        "contiguous" => {
            let groups = (0..290).map(|i| [i32::from(i < 100), 2, 0][i / 128]);
            let groups =
                groups.enumerate().map(|(i, g)| if (100..128).contains(&i) { -1 } else { g }).collect();
            let (a, b) = (several(1, 290, 144, TILE, 13), several(3, 24, 144, BLOCK, 14));
            let addend = Some(Matrix::from_fn(290, 24, |i, j| (i * j) as f32 + 1.0));
            Case { addend, ..Case::new(name, Form::Contiguous(groups), a, b) }
        }
        "masked" => {
            let (a, b) = (several(3, 140, 144, TILE, 15), several(3, 24, 144, BLOCK, 16));
            let addend = Some(Matrix::from_fn(3 * 140, 24, |i, j| (i * j) as f32 + 1.0));
            Case { addend, ..Case::new(name, Form::Masked(vec![3, 0, 140]), a, b) }
        }
        "k-grouped" => {
            let sizes = [130, 0, 150];
            let of = |rows, seed| sizes.map(|k| scaled(E4M3, rows, k, TILE, seed + k as u64)).to_vec();
            Case::new(name, Form::KGrouped, of(40, 17), of(24, 18))
        }
        _ => panic!("no problem {name}"),
    }
}

/// Runs a mutant's problem: whatever is not the library's bits, or not as planned, is an error.
fn solve(mutant: &Mutant, module: &Module) -> Result<(), String> {
    let case = gemm_problem(mutant.problem);
    let plain = mutant.kernel.starts_with("gemm_f32").then_some(match mutant.problem {
        "intervals of 64" => Plain { interval: 64 },
        _ => Plain { interval: 128 },
    });
    let accumulation = match plain {
        Some(Plain { interval }) => Accumulation::F32.promote_every(interval),
        None if mutant.kernel.starts_with("sm89") => Accumulation::ADA.promote_every(128),
        None => Accumulation::HOPPER.promote_every(128),
    };
    let (got, report) = case.run(module, mutant.kernel, plain, &options(mutant.kernel))?;
    let want = case.expected(accumulation.unwrap());
    let differing = got.iter().zip(&want).filter(|(g, w)| g != w).count();
    if differing > 0 {
        return Err(format!("{differing} of {} values differ", want.len()));
    }
    match report.extra_wavefronts() {
        0 => Ok(()),
        more => Err(format!("{more} more wavefronts: bank conflicts")),
    }
}

fn all_are_noticed(mutants: &[Mutant]) {
    let Some(compiler) = compiler() else { return };
    let survivors = survivors(compiler, mutants, solve);
    assert!(survivors.is_empty(), "not noticed: {survivors:#?}");
}

#[test]
fn bugs_in_the_pipeline_are_noticed() {
    all_are_noticed(PIPELINE);
}

#[test]
fn bugs_in_fragments_are_noticed() {
    all_are_noticed(FRAGMENTS);
}

#[test]
fn bugs_in_promotion_are_noticed() {
    all_are_noticed(PROMOTION);
}

#[test]
fn bugs_at_edges_are_noticed() {
    all_are_noticed(EDGES);
}

#[test]
fn bugs_in_groups_are_noticed() {
    all_are_noticed(GROUPS);
}

#[test]
fn bugs_in_wgmma_are_noticed() {
    all_are_noticed(WGMMA_MUTANTS);
}

#[test]
fn bugs_in_the_plain_kernel_are_noticed() {
    all_are_noticed(PLAIN_MUTANTS);
}

#[test]
fn docs_have_their_number() {
    let gemm =
        [PIPELINE, FRAGMENTS, PROMOTION, EDGES, GROUPS, WGMMA_MUTANTS, PLAIN_MUTANTS].map(|bugs| bugs.len());
    let all = gemm.iter().sum::<usize>() + quantize_bugs::MUTANTS.len();
    let sentence = format!("- {all} bugs are planted in the sources");
    assert!(include_str!("../../docs/gpu.md").contains(&sentence), "docs/gpu.md has not: {sentence}");
}
