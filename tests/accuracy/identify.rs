//! Identification: what gave a result is found, and what gave none is explained.

use finegrain::accuracy::identify::{Computed, Extent, Identification, identify};
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, GroupedProblem};
use finegrain::matrix::Matrix;
use finegrain::scaled::{CodesRef, Granule, ScaledMatrix, ScaledRef};
use finegrain::{Engine, Error};
use half::{bf16, f16};

use crate::common::operands::{Random, e8m0, scaled, unscaled};

fn found(problem: &GemmProblem<'_>, d: Computed<'_>) -> Identification {
    identify(problem, d, Extent::Sampled, &Engine::cpu()).unwrap()
}

/// Operands in 1×128 by 128×128 of a size that no block divides.
fn operands(m: usize, n: usize, k: usize) -> (ScaledMatrix, ScaledMatrix) {
    let a = scaled(Format::E4M3, m, k, Granule::TILE_1X128, 1);
    let b = scaled(Format::E4M3, n, k, Granule::BLOCK_128X128, 2);
    (a, b)
}

#[test]
fn what_gave_a_result_is_found() {
    let (a, b) = operands(70, 150, 1800);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    for name in [
        "f32/128",
        "hopper/128",
        "hopper/128/partial-first",
        "hopper/128/unfused",
        "hopper/64",
        "hopper-mma/128",
        "ada/32/partial-first",
        "blackwell/128",
        "exact/128",
        "hopper/128/split-k=2",
        "hopper/128/partial-first/split-k=5",
    ] {
        let accumulation: Accumulation = name.parse().unwrap();
        let d = problem.with_accumulation(accumulation).unwrap().run().unwrap();
        let found = found(&problem, Computed::F32(d.view()));
        assert_eq!(found.matches[0].accumulation, accumulation, "{name}: {found:?}");
        assert_eq!((found.matches[0].differ, found.matches[0].of), (0, 70 * 150), "{name}");
        assert_eq!((found.exact, found.undecided.as_deref(), found.hints.len()), (1, None, 0), "{name}");
    }
}

#[test]
fn accumulators_in_f16_and_rounded_results_are_told_apart() {
    let (a, b) = (unscaled(Format::F16, 64, 256, 3), unscaled(Format::F16, 64, 256, 4));
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    for name in ["hopper-f16:result=f16/none", "hopper-f16/none", "turing:result=f16/none", "f32/none"] {
        let d = problem.with_accumulation(name.parse().unwrap()).unwrap().run_f16().unwrap();
        let found = found(&problem, Computed::F16(d.view()));
        let exact: Vec<String> = found.matches.iter().map(|m| m.accumulation.to_string()).collect();
        assert!(exact.contains(&name.to_owned()), "{name}: {exact:?}");
        assert_eq!(
            exact.iter().any(|other| other.contains("result=f16")),
            name.contains("result=f16"),
            "{name}: {exact:?}"
        );
    }
}

#[test]
fn folded_scales_are_found() {
    let a = e8m0(Format::E4M3, 64, 512, 7);
    let b = e8m0(Format::E4M3, 96, 512, 8);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    for name in ["hopper-f16/none/fold-scales", "f32/none/fold-scales", "blackwell-mx/none", "hopper/32"] {
        let d = problem.with_accumulation(name.parse().unwrap()).unwrap().run().unwrap();
        let found = found(&problem, Computed::F32(d.view()));
        let exact: Vec<String> = found.matches.iter().map(|m| m.accumulation.to_string()).collect();
        assert!(found.is_exact() && exact.contains(&name.to_owned()), "{name}: {exact:?}");
    }
}

#[test]
fn bf16_results_are_compared_as_bf16() {
    let (a, b) = operands(128, 256, 1024);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    let hopper: Accumulation = "hopper/128".parse().unwrap();
    let d = problem.with_accumulation(hopper).unwrap().run_bf16().unwrap();
    let found = found(&problem, Computed::Bf16(d.view()));
    assert!(found.matches.iter().any(|m| m.accumulation == hopper), "{found:?}");
    assert!(!found.matches.iter().any(|m| m.accumulation == Accumulation::F32), "{found:?}");
}

#[test]
fn groups_are_looked_into_and_padding_is_left_to_others() {
    let a = scaled(Format::E4M3, 40, 384, Granule::TILE_1X128, 5);
    let experts: Vec<ScaledMatrix> =
        (0..3).map(|seed| scaled(Format::E4M3, 130, 384, Granule::BLOCK_128X128, 6 + seed)).collect();
    let views: Vec<ScaledRef<'_>> = experts.iter().map(ScaledMatrix::view).collect();
    let groups: Vec<i32> = (0..40).map(|row| [2, 2, -1, 0, 1][row / 8]).collect();
    let accumulation: Accumulation = "hopper/128/partial-first".parse().unwrap();
    let problem = GroupedProblem::contiguous(a.view(), &groups, &views).unwrap();
    let mut d = problem.clone().with_accumulation(accumulation).unwrap().run().unwrap();
    d.row_mut(17)[3] = f32::NAN;
    d.row_mut(18)[129] = -0.0;
    let found = identify(&problem, Computed::F32(d.view()), Extent::All, &Engine::cpu()).unwrap();
    assert_eq!((found.matches[0].accumulation, found.matches[0].of), (accumulation, 32 * 130));
    assert_eq!(found.padding, 2);
}

#[test]
fn what_was_forgotten_is_named() {
    let (m, n, k) = (64, 96, 1000);
    let (a, b) = operands(m, n, k);
    let c = Matrix::from_fn(m, n, |i, j| (i * 96 + j) as f32 * 3.7 - 1e3);
    let hopper: Accumulation = "hopper/128".parse().unwrap();
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_addend(c.view()).unwrap();
    let run = |p: GemmProblem<'_>| p.with_accumulation(hopper).unwrap().run().unwrap();
    let bytes = |x: &ScaledMatrix| match x.view().codes() {
        CodesRef::Bytes(m) => m.to_matrix(),
        other => panic!("{other:?}"),
    };
    let (bytes_a, bytes_b) = (bytes(&a), bytes(&b));
    let unscaled = |m| ScaledRef::new(Format::E4M3, CodesRef::Bytes(m), None).unwrap();
    let with_c = |a, b| run(GemmProblem::nt(a, b).unwrap().with_addend(c.view()).unwrap());
    // The first 896 elements of K alone: the rest is 0.
    let cut = Matrix::from_fn(m, k, |i, j| if j < 896 { bytes_a.row(i)[j] } else { 0 });
    let cut = ScaledRef::new(Format::E4M3, CodesRef::Bytes(cut.view()), a.view().scales()).unwrap();
    for (d, words) in [
        (run(GemmProblem::nt(a.view(), b.view()).unwrap()), "without c"),
        (with_c(unscaled(bytes_a.view()), b.view()), "scales of a:"),
        (with_c(a.view(), unscaled(bytes_b.view())), "scales of b:"),
        (with_c(cut, b.view()), "from 896 to 1000"),
    ] {
        let found = found(&problem, Computed::F32(d.view()));
        assert!(!found.is_exact());
        assert!(found.hints.iter().any(|hint| hint.contains(words)), "{words}: {:?}", found.hints);
        assert!(found.hints.iter().any(|hint| hint.contains("hopper/128")), "{words}: {:?}", found.hints);
    }
}

#[test]
fn places_of_differences_are_named() {
    let (m, n) = (300, 280);
    let (a, b) = operands(m, n, 512);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    let hopper: Accumulation = "hopper/128".parse().unwrap();
    let right = problem.with_accumulation(hopper).unwrap().run().unwrap();
    let with = |change: &dyn Fn(usize, usize) -> bool| {
        let next = |x: f32| f32::from_bits(x.to_bits() + 1);
        Matrix::from_fn(m, n, |i, j| if change(i, j) { next(right[(i, j)]) } else { right[(i, j)] })
    };
    // A sample of 65,536 of 84,000 elements has rows and columns of all bands, not all of them.
    for (d, words) in [
        (with(&|i, _| i < 40), " rows differ"),
        (with(&|_, j| j < 40), " columns differ"),
        (with(&|i, j| i < 128 && j < 128), "tiles of 128x128 differ"),
        (with(&|i, j| (i * 7 + j) % 10 < 7), "by at most 1 units in the last place"),
    ] {
        let found = found(&problem, Computed::F32(d.view()));
        assert!(!found.is_exact());
        assert_eq!(found.matches[0].accumulation, hopper, "{words}: {found:?}");
        assert_eq!(found.matches[0].max_ulps, 1);
        assert!(found.hints[0].contains(words), "{words}: {:?}", found.hints);
        let first = found.differences.unwrap().first[0];
        assert_eq!((first.expected, first.ulps), (right[(first.row, first.col)], 1));
    }
}

#[test]
fn results_that_tell_nothing_are_refused_or_called_undecided() {
    let (a, b) = operands(8, 8, 32);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    let engine = Engine::cpu();
    let nan = Matrix::filled(8, 8, f32::NAN);
    let refused = identify(&problem, Computed::F32(nan.view()), Extent::All, &engine).unwrap_err();
    assert!(refused.to_string().contains("all 64 elements of d are NaN"), "{refused}");
    let wide = Matrix::filled(8, 9, 0.0);
    let refused = identify(&problem, Computed::F32(wide.view()), Extent::All, &engine).unwrap_err();
    assert!(matches!(refused, Error::Shape(_)) && refused.to_string().contains("8×9"), "{refused}");
    // One exponent, small integers: no accumulator loses anything.
    let ones = vec![0x38u8; 8 * 64];
    let ones = ScaledRef::from_codes(Format::E4M3, &ones, 8, 64).unwrap();
    let problem = GemmProblem::nt(ones, ones).unwrap();
    let d = Matrix::filled(8, 8, bf16::from_f32(64.0));
    let found = found(&problem, Computed::Bf16(d.view()));
    assert!(found.exact > 10, "{found:?}");
    let undecided = found.undecided.unwrap();
    for words in ["K above 128 (it is 64)", "d in f32", "more elements than 64"] {
        assert!(undecided.contains(words), "{undecided}");
    }
    let d = Matrix::filled(8, 8, f16::from_f32(64.0));
    let halves = identify(&problem, Computed::F16(d.view()), Extent::All, &engine).unwrap();
    assert!(halves.exact > found.exact, "accumulators in f16 hold 64 too");
}

#[test]
fn more_is_compared_when_asked() {
    let mut random = Random(11);
    let (a, b) = operands(256, 512, 128);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    let hopper: Accumulation = "hopper/none/scales-last".parse().unwrap();
    assert!(problem.with_accumulation(hopper).is_ok(), "one block of K");
    let mut d = problem.with_accumulation(hopper).unwrap().run().unwrap();
    let (i, j) = (random.below(256) as usize, random.below(512) as usize);
    d.row_mut(i)[j] = -d[(i, j)];
    // 131,072 elements: the sample of half of them may miss the one that is wrong, all of them do not.
    let found = identify(&problem, Computed::F32(d.view()), Extent::All, &Engine::cpu()).unwrap();
    assert!(!found.is_exact(), "{found:?}");
}
