//! What is no legal GEMM, and the sentence that says so.

use crate::common::operands::{e8m0, nvfp4, scaled, unscaled};
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, Arithmetic, GemmProblem};
use finegrain::matrix::Matrix;
use finegrain::scaled::Granule;

#[test]
fn refusals_say_what_does_not_fit() {
    let refuse = |result: finegrain::Result<GemmProblem<'_>>, text: &str| {
        let message = result.expect_err(text).to_string();
        assert_eq!(message, text);
    };
    let every = |accumulation: Accumulation, n| accumulation.promote_every(n).unwrap();
    let (x, y) = (unscaled(Format::E4M3, 4, 256, 1), unscaled(Format::E4M3, 5, 255, 2));
    refuse(GemmProblem::nt(x.view(), y.view()), "A is 4×256 [M, K] and B is 5×255 [N, K]: they differ in K");

    let a = scaled(Format::E4M3, 4, 256, Granule::TILE_1X128, 1);
    let b = unscaled(Format::E4M3, 5, 256, 2);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    refuse(
        problem.with_accumulation(every(Accumulation::F32, 96)),
        "the scales of A change every 128 elements of K: the promotion interval 96 does not divide 128",
    );
    refuse(
        problem.with_accumulation(every(Accumulation::F32, 256)),
        "the scales of A change every 128 elements of K: the promotion interval 256 does not divide 128",
    );
    refuse(
        problem.with_accumulation(Accumulation::HOPPER),
        "the scales of A change every 128 elements of K: without promotion they would have to be constant over \
         K = 256; promote every 128",
    );
    assert!(problem.with_accumulation(every(Accumulation::F32, 64)).is_ok());
    let c = Matrix::filled(4, 6, 0.0);
    refuse(problem.with_addend(c.view()), "the addend is 4×6, the output 4×5");

    let bf16 = unscaled(Format::Bf16, 4, 256, 3);
    let mixed = GemmProblem::nt(b.view(), bf16.view()).unwrap();
    refuse(mixed.with_accumulation(Accumulation::HOPPER), "hopper multiplies e4m3, e5m2; B is bf16");

    // Scales outside the model, an addend, and no promotion.
    let rows = scaled(Format::E4M3, 4, 256, Granule::ROW, 4);
    let c = Matrix::filled(4, 5, 1.0);
    let problem = GemmProblem::nt(rows.view(), b.view()).unwrap();
    let text = "f32/none has no promotion, so the addend is the initial accumulator of the chain, and the scales that \
                are applied after the chain would scale it too: promote the partial sums (every 128), or add afterwards";
    let bare = Accumulation::F32.without_promotion();
    refuse(problem.with_accumulation(bare).unwrap().with_addend(c.view()), text);
    refuse(problem.with_addend(c.view()).unwrap().with_accumulation(bare), text);
    let (na, nb) = (nvfp4(4, 64, 1, 0.5), nvfp4(5, 64, 2, 1.0));
    let problem = GemmProblem::nt(na.view(), nb.view()).unwrap();
    let problem = problem.with_accumulation(Accumulation::BLACKWELL_FP4).unwrap();
    assert!(problem.with_addend(c.view()).unwrap_err().to_string().contains("no promotion"));
    let problem = GemmProblem::nt(nb.view(), nb.view()).unwrap();
    let c = Matrix::filled(5, 5, 1.0);
    assert!(problem.with_accumulation(Accumulation::BLACKWELL_FP4).unwrap().with_addend(c.view()).is_ok());

    // Scales that the model applies.
    let (mx, plain) = (e8m0(Format::E4M3, 4, 256, 1), unscaled(Format::E4M3, 5, 256, 2));
    let problem = GemmProblem::nt(mx.view(), plain.view()).unwrap();
    refuse(
        problem.with_accumulation(Accumulation::BLACKWELL_MX),
        "blackwell-mx applies block scales itself and takes e8m0 scales in 1x32 on both operands, or none on either; \
         A has e8m0 in 1x32, B has none",
    );
    let problem = GemmProblem::nt(a.view(), a.view()).unwrap();
    assert!(problem.with_accumulation(every(Accumulation::BLACKWELL_MX, 128)).is_err());
    let e2m1 = unscaled(Format::E2M1, 5, 64, 2);
    refuse(
        GemmProblem::nt(e2m1.view(), e2m1.view()).unwrap().with_accumulation(Accumulation::BLACKWELL_FP4),
        "blackwell-fp4 applies block scales itself and takes e8m0 scales in 1x32 or e4m3 scales in 1x16, the same on \
         both operands; A has none, B has none",
    );
    let mixed = e8m0(Format::E2M1, 4, 64, 3);
    let problem = GemmProblem::nt(mixed.view(), nb.view()).unwrap();
    assert!(problem.with_accumulation(Accumulation::BLACKWELL_FP4).is_err());
    let problem = GemmProblem::nt(mixed.view(), mixed.view()).unwrap();
    refuse(
        problem.with_accumulation(every(Accumulation::BLACKWELL_FP4, 16)),
        "the scales of A change every 32 elements of K: the promotion interval 16 is no multiple of 32",
    );
    assert!(problem.with_accumulation(every(Accumulation::BLACKWELL_FP4, 32)).is_ok());
}

/// Scales that come last, and parts that K does not have.
#[test]
fn refusals_of_what_libraries_add() {
    let refuse = |problem: &GemmProblem<'_>, accumulation: &str, text: &str| {
        let arithmetic: Arithmetic = accumulation.parse().unwrap();
        assert_eq!(problem.with_arithmetic(&arithmetic).unwrap_err().to_string(), text);
    };
    let (tiles, blocks) = (
        scaled(Format::E4M3, 4, 512, Granule::TILE_1X128, 1),
        scaled(Format::E4M3, 130, 512, Granule::BLOCK_128X128, 2),
    );
    let problem = GemmProblem::nt(tiles.view(), blocks.view()).unwrap();
    let last = "the scales of A change every 128 elements of K: in the order scales-last they multiply the sum and have \
                to be constant over K = 512";
    refuse(&problem, "hopper/128/scales-last", last);
    refuse(&problem, "cublaslt", last);
    refuse(&problem, "hopper/128/split-k=0,512", "split-K at 512: K is 512");
    let multiples = "split-K at 64: parts begin at multiples of 128, the promotion interval or, without promotion, the \
                     step of the instruction";
    refuse(&problem, "hopper/128/split-k=0,64", multiples);
    let plain = unscaled(Format::E4M3, 4, 512, 1);
    let bare = GemmProblem::nt(plain.view(), plain.view()).unwrap();
    refuse(
        &bare,
        "hopper/none/split-k=0,48",
        "split-K at 48: parts begin at multiples of 32, the promotion interval or, without promotion, the step of the \
         instruction",
    );
    let mx = e8m0(Format::E4M3, 4, 256, 1);
    refuse(
        &GemmProblem::nt(mx.view(), mx.view()).unwrap(),
        "blackwell-mx:l=16/none/split-k=0,48",
        "split-K at 48: the scales of A that the model applies change every 32 elements of K",
    );

    // Calls that take other granules.
    let takes = "takes scales in 1x128 by 128x128 or in 1x128 by 1x128";
    refuse(&bare, "cublaslt-block", &format!("cublaslt-block {takes}; A has none, B has none"));
    let swapped = GemmProblem::nt(blocks.view(), tiles.view()).unwrap();
    refuse(&swapped, "te-blockwise", &format!("te-blockwise {takes}; A has 128x128, B has 1x128"));
    let of = |call: &str, problem: &GemmProblem<'_>| {
        problem.with_arithmetic(&call.parse().unwrap()).unwrap().accumulation().to_string()
    };
    assert_eq!(of("cublaslt-block/split-k=2", &problem), "hopper/128/split-k=2");
    let by_tiles = GemmProblem::nt(tiles.view(), tiles.view()).unwrap();
    assert_eq!(of("te-blockwise", &by_tiles), "hopper/128/partial-first");
    assert_eq!(of("cublaslt", &bare), "hopper/128/scales-last");

    // Chains that have a sum after them begin at +0: the addend comes last, whatever the scales.
    let rows = scaled(Format::E4M3, 4, 512, Granule::ROW, 4);
    let c = Matrix::filled(4, 4, 1.0);
    let problem = GemmProblem::nt(rows.view(), rows.view()).unwrap();
    for (text, legal) in [
        ("hopper/none", false),
        ("hopper/none/split-k=1", false),
        ("hopper/none/split-k=2", true),
        ("hopper/none/scales-last", true),
        ("hopper/128/scales-last", true),
    ] {
        let problem = problem.with_arithmetic(&text.parse().unwrap()).unwrap();
        assert_eq!(problem.with_addend(c.view()).is_ok(), legal, "{text}");
    }
}
