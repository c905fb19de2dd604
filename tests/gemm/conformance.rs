//! Every backend on every instruction set gives the reference's bits: shapes at the edges of the blocking, recipes'
//! granules, promotion orders, addends, values at the edges of the formats, one thread or many.
//!
//! `FINEGRAIN_ISA=NAME` tries that instruction set only; `FINEGRAIN_REQUIRE_ISA=NAME` makes the absence of an
//! instruction set a failure; without it the absent are named.

use crate::common::isas::available;
use crate::common::operands::{Random, e8m0, scaled, unscaled};
use crate::conforming::{self, chosen};
use finegrain::engine::Product;
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, GroupedProblem, Promotion};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Granule, ScaledMatrix};
use finegrain::simd::Isa;

/// Compares the blocked backend on every instruction set with the reference; returns how many combinations ran.
fn conforms<'p>(what: &str, product: impl Into<Product<'p>>) -> usize {
    conforming::conforms("blocked", what, product)
}

const FORMATS: [Format; 3] = [Format::E4M3, Format::E5M2, Format::Bf16];

/// Around the microtiles' rows and columns, the streamed path's rows, the packed blocks and the intervals.
#[test]
fn ragged_shapes() {
    let rows = [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 31, 32, 33, 61];
    let cols = [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129];
    let depths = [0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 383, 515];
    let mut random = Random(11);
    let mut ran = 0;
    for round in 0..160 {
        let mut pick = |from: &[usize]| from[random.below(from.len() as u64) as usize];
        let (m, n, k) = (pick(&rows), pick(&cols), pick(&depths));
        let (fa, fb) = (FORMATS[pick(&[0, 1, 2])], FORMATS[pick(&[0, 0, 1])]);
        let a = scaled(fa, m, k, Granule::TILE_1X128, round);
        let b = scaled(fb, n, k, [Granule::BLOCK_128X128, Granule::TILE_1X128][pick(&[0, 1])], round + 1000);
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
        ran += conforms(&format!("{m}×{n}×{k} {fa}×{fb}"), &problem);
    }
    assert!(ran >= 160, "{ran}");
}

/// Few rows over many intervals, which are summed side by side: whole, half and quarter spans, a rest, and intervals of
/// every length that qualifies or does not.
#[test]
fn intervals_side_by_side() {
    let mut random = Random(12);
    let mut ran = 0;
    for round in 0..120 {
        let mut pick = |from: &[usize]| from[random.below(from.len() as u64) as usize];
        let (m, n) = (pick(&[1, 2, 3, 4, 5, 7, 8, 10, 13, 18, 24, 31]), pick(&[1, 15, 16, 17, 40, 65, 130]));
        let (intervals, rest) = (pick(&[4, 7, 8, 12, 16, 21, 28, 31, 45]), pick(&[0, 0, 1, 17, 64]));
        let (fa, fb) = (FORMATS[pick(&[0, 1, 2])], FORMATS[pick(&[0, 0, 1, 2])]);
        let interval = pick(&[8, 16, 32, 64, 128, 128]);
        let k = intervals * interval + rest % interval;
        let a = scaled(fa, m, k, Granule::TILE_1X128, round);
        let b = scaled(fb, n, k, [Granule::BLOCK_128X128, Granule::TILE_1X128][pick(&[0, 1])], round + 1000);
        let accumulation = Accumulation::F32.promote_every(interval).unwrap();
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
        ran += conforms(&format!("{m}×{n}×{k} {fa}×{fb} every {interval}"), &problem);
    }
    assert!(ran >= 120, "{ran}");
}

/// Blocks of D beyond one task, and intervals beyond one packed block.
#[test]
fn shapes_beyond_one_block() {
    for (m, n, k, granule) in [
        (1030, 70, 130, Granule::BLOCK_128X128),
        (40, 1100, 300, Granule::TILE_1X128),
        (200, 200, 1500, Granule::TENSOR),
        (7, 300, 1500, Granule::ROW),
        (34, 40, 2000, Granule::ROW),
    ] {
        let activations = if granule == Granule::BLOCK_128X128 { Granule::TILE_1X128 } else { granule };
        let a = scaled(Format::E4M3, m, k, activations, 3);
        let b = scaled(Format::E5M2, n, k, granule, 4);
        let mut problem = GemmProblem::nt(a.view(), b.view()).unwrap();
        if granule == Granule::TENSOR || granule == Granule::ROW {
            problem = problem.with_accumulation(Accumulation::F32.without_promotion()).unwrap();
        }
        assert!(conforms(&format!("{m}×{n}×{k} {granule}"), &problem) >= 2);
    }
}

#[test]
fn promotion_orders_intervals_and_addends() {
    let (m, n, k) = (13, 70, 700);
    let a = scaled(Format::E4M3, m, k, Granule::TILE_1X128, 5);
    let b = scaled(Format::E4M3, n, k, Granule::BLOCK_128X128, 6);
    let c = Matrix::from_fn(m, n, |i, j| if (i + j) % 5 == 0 { -0.0 } else { (i as f32 - j as f32) / 3.0 });
    for promotion in [Promotion::ScalesFirst, Promotion::PartialFirst, Promotion::Unfused] {
        for interval in [1, 2, 32, 64, 128] {
            let accumulation = Accumulation::F32.with_promotion(promotion).promote_every(interval).unwrap();
            let problem =
                GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
            assert!(conforms(&format!("{accumulation}"), &problem) >= 2);
            assert!(conforms(&format!("{accumulation} + C"), &problem.with_addend(c.view()).unwrap()) >= 2);
        }
    }
    // Bare chains, whose addend is the first accumulator; odd K, so that pairs need padding.
    for k in [0, 1, 255, 257, 640, 641] {
        let (a, b) = (unscaled(Format::E4M3, m, k, 7), unscaled(Format::E5M2, n, k, 8));
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
        let bare = problem.with_accumulation(Accumulation::F32.without_promotion()).unwrap();
        assert!(conforms("bare", &bare) >= 2);
        assert!(conforms("bare + C", &bare.with_addend(c.view()).unwrap()) >= 2);
    }
}

#[test]
fn mx_scales_and_small_formats() {
    for format in [Format::E4M3, Format::E5M2, Format::E3M2, Format::E2M3, Format::E2M1] {
        for m in [3, 40] {
            let (a, b) = (e8m0(format, m, 330, 9), e8m0(Format::E4M3, 50, 330, 10));
            assert!(conforms(&format!("mx {format}"), &GemmProblem::nt(a.view(), b.view()).unwrap()) >= 2);
        }
    }
}

/// Codes at the edges: all of a format's, NaN and infinities included; the largest only; subnormals only; zeros of both
/// signs; one-signed.
#[test]
fn values_at_the_edges() {
    let mut ran = 0;
    for format in FORMATS {
        let spec = format.spec();
        let kinds: [(&str, &dyn Fn(f32) -> bool); 6] = [
            ("any", &|_| true),
            ("largest", &|v| f64::from(v.abs()) == spec.max_finite()),
            ("subnormal", &|v| v != 0.0 && f64::from(v.abs()) < spec.min_normal()),
            ("zero", &|v| v == 0.0),
            ("positive", &|v| v >= 0.0),
            ("tiny and huge", &|v| v == 0.0 || v.abs() > 2e38 || v.abs() < 1e-20 || v.abs() >= 256.0),
        ];
        for (kind, keep) in kinds {
            for other in FORMATS {
                for m in [5, 37] {
                    let a = chosen(format, m, 260, 21, keep);
                    let b = chosen(other, 35, 260, 22, &|_| true);
                    for problem in [GemmProblem::nt(a.view(), b.view()), GemmProblem::nt(a.view(), a.view())]
                    {
                        ran += conforms(&format!("{format} {kind} × {other}"), &problem.unwrap());
                    }
                }
            }
        }
    }
    // Two numbers of threads on each of the 120 problems that every set has: scalar leaves out inexact products.
    assert!(ran >= 240 * available().len(), "{ran}");
}

/// Products of BF16 that are subnormal: dot-product instructions flush them, the contract does not.
#[test]
fn subnormal_products_of_bf16() {
    let bf16 = |rows, exponent: i32, seed| {
        let binades = 2f32.powi(exponent)..2f32.powi(exponent + 3);
        chosen(Format::Bf16, rows, 130, seed, &|v| binades.contains(&v.abs()))
    };
    let fused = available().iter().filter(|&&isa| isa != Isa::Scalar).count();
    for exponent in [-70, -66, -63, -60, -56, -50] {
        let (a, b) = (bf16(9, exponent, 31), bf16(20, exponent, 32));
        let ran = conforms(&format!("2^{exponent}"), &GemmProblem::nt(a.view(), b.view()).unwrap());
        assert_eq!(ran, 2 * fused, "all sets but scalar, which has no fused multiply-add");
    }
}

/// Rows of A that do not begin at a granule, and column groups, as grouped problems make them.
#[test]
fn grouped_problems() {
    let k = 300;
    let a = scaled(Format::E4M3, 90, k, Granule::new(3, 128).unwrap(), 41);
    let experts: Vec<_> =
        (0..3).map(|g| scaled(Format::E4M3, 70, k, Granule::BLOCK_128X128, 50 + g)).collect();
    let experts: Vec<_> = experts.iter().map(ScaledMatrix::view).collect();
    let groups: Vec<i32> = (0..90).map(|i| [2, 2, 0, -1, 1, 1, 1, 2, 2][i / 10]).collect();
    let problem = GroupedProblem::contiguous(a.view(), &groups, &experts).unwrap();
    for part in problem.parts() {
        assert!(conforms("contiguous", part.problem()) >= 2);
    }
    assert!(conforms("contiguous", &problem) >= 2);
}
