//! The dense GEMM: golden values, and the contract's clauses one by one.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::golden::{self, Score, bits, exact, oracle, tensor};
use crate::common::operands::{codes, e8m0, nvfp4, of_values, scaled, unscaled};
use finegrain::Engine;
use finegrain::checkpoint::TensorFile;
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, Model, Output, Promotion};
use finegrain::matrix::{MatRef, Matrix};
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};

fn bits_of(d: &Matrix<f32>) -> Vec<u64> {
    d.as_slice().iter().map(|x| u64::from(x.to_bits())).collect()
}

fn run(a: &ScaledMatrix, b: &ScaledMatrix, accumulation: Accumulation) -> Matrix<f32> {
    GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap().run().unwrap()
}

// ---------------------------------------------------------------------------------------------------- golden values

fn golden_operand(file: &TensorFile, p: &str, side: &str, format: Format, granule: Granule) -> ScaledMatrix {
    let codes = tensor(file, &format!("{p}.{side}")).byte_matrix().unwrap().to_matrix();
    let grid = ScaleGrid::F32(tensor(file, &format!("{p}.s{side}")).to_matrix().unwrap());
    ScaledMatrix::new(format, Codes::Bytes(codes), Some(Scales { granule, grid, tensor: 1.0 })).unwrap()
}

/// Every case of the golden file: its name and operands.
fn golden(file: &TensorFile) -> Vec<(String, ScaledMatrix, ScaledMatrix)> {
    let cases = file.names().iter().filter_map(|n| n.strip_suffix(".a"));
    let case = |p: &str| {
        let word: Vec<&str> = p.trim_start_matches("nonfinite.").split('.').collect();
        let (fa, fb) = (word[0].parse::<Format>().unwrap(), word[1].parse::<Format>().unwrap());
        let granule = if p.contains(".b1x128") { Granule::TILE_1X128 } else { Granule::BLOCK_128X128 };
        let a = golden_operand(file, p, "a", fa, Granule::TILE_1X128);
        (p.to_owned(), a, golden_operand(file, p, "b", fb, granule))
    };
    cases.map(case).collect()
}

#[test]
fn f32_and_bf16_results_are_the_golden_ones() {
    let file = oracle("gemm");
    let mut score = Score::default();
    for (p, a, b) in golden(&file) {
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
        assert_eq!(problem.accumulation(), Accumulation::F32);
        for (suffix, promotion) in [
            ("d_f32", Promotion::ScalesFirst),
            ("d_f32.te", Promotion::PartialFirst),
            ("d_f32.deepseek-v3", Promotion::Unfused),
        ] {
            let name = format!("{p}.{suffix}");
            if file.contains(&name) {
                let accumulation = Accumulation::F32.with_promotion(promotion);
                let d = problem.with_accumulation(accumulation).unwrap().run().unwrap();
                score.eq(&name, &bits_of(&d), &bits(&file, &name), golden::nan_f32, golden::all);
            }
        }
        let name = format!("{p}.d_bf16_bits");
        if file.contains(&name) {
            let d = problem.run_bf16().unwrap();
            let got: Vec<u64> = d.as_slice().iter().map(|x| u64::from(x.to_bits())).collect();
            score.eq(&name, &got, &bits(&file, &name), exact, golden::all);
        }
    }
    score.finish("f32 and bf16");
}

#[test]
fn exact_results_are_within_the_bound_of_the_golden_ones() {
    let file = oracle("gemm");
    let mut compared = 0;
    for (p, a, b) in golden(&file) {
        let name = format!("{p}.exact_f64");
        if !file.contains(&name) {
            continue;
        }
        let want: Vec<f64> = bits(&file, &name).into_iter().map(f64::from_bits).collect();
        let d = run(&a, &b, Accumulation::EXACT);
        let largest = want.iter().fold(1e-300f64, |m, x| m.max(x.abs()));
        let off = d.as_slice().iter().zip(&want).map(|(&d, w)| (f64::from(d) - w).abs()).fold(0.0, f64::max);
        // Each interval is rounded once, then there is one scale product and one fma an interval.
        let bound = (a.shape().1.div_ceil(128) + 2) as f64 * 2f64.powi(-22);
        assert!(off / largest <= bound, "{p}: off by {:.2e} of the largest value", off / largest);
        compared += want.len();
    }
    println!("exact: {compared} values compared");
    assert!(compared > 0);
}

// --------------------------------------------------------------------------------------- independent plain arithmetic

/// The sum of exact products in 128-bit integers, rounded once by rustc_apfloat.
#[test]
fn exact_intervals_equal_integer_arithmetic() {
    use rustc_apfloat::{Float, Round, ieee};
    let mut compared = 0;
    for (fa, fb) in [
        (Format::E4M3, Format::E4M3),
        (Format::E5M2, Format::E4M3),
        (Format::E5M2, Format::E5M2),
        (Format::E5M6, Format::E2M3),
    ] {
        for k in [1, 2, 127, 128, 200] {
            let (a, b) = (unscaled(fa, 9, k, k as u64), unscaled(fb, 7, k, 77 + k as u64));
            let (va, vb) = (a.dequantize().unwrap(), b.dequantize().unwrap());
            let lowest = fa.spec().quantum_floor() + fb.spec().quantum_floor();
            let d = run(&a, &b, Accumulation::EXACT.without_promotion());
            for i in 0..9 {
                for j in 0..7 {
                    let product =
                        |k: usize| (f64::from(va.row(i)[k]) * f64::from(vb.row(j)[k])) * 2f64.powi(-lowest);
                    let sum: i128 = (0..k).map(|k| product(k) as i128).sum();
                    let want = ieee::Quad::from_i128(sum).value.scalbn(lowest);
                    let mut loses = false;
                    let want = rustc_apfloat::FloatConvert::<ieee::Single>::convert_r(
                        want,
                        Round::NearestTiesToEven,
                        &mut loses,
                    );
                    assert_eq!(u128::from(d.row(i)[j].to_bits()), want.value.to_bits(), "{fa} {fb} K = {k}");
                    compared += 1;
                }
            }
        }
    }
    println!("exact against i128: {compared} values compared");
}

/// The contract's f32 clauses, written again as one loop over whole matrices of values.
fn plain(a: &ScaledMatrix, b: &ScaledMatrix, interval: usize, addend: Option<&Matrix<f32>>) -> Matrix<f32> {
    let (a, b) = (a.view(), b.view());
    let ((m, k), n) = (a.shape(), b.shape().0);
    let value = |x: &finegrain::scaled::ScaledRef<'_>, i, k| x.format().decode_f32(x.codes().at(i, k) as u16);
    Matrix::from_fn(m, n, |i, j| {
        let (mut acc, mut partial) = (0.0f32, 0.0f32);
        for t in 0..k {
            partial = soft_fma(value(&a, i, t), value(&b, j, t), partial);
            if (t + 1) % interval == 0 || t + 1 == k {
                acc = soft_fma(a.scale_at(i, t) * b.scale_at(j, t), partial, acc);
                partial = 0.0;
            }
        }
        addend.map_or(acc, |c| acc + c.row(i)[j])
    })
}

/// A fused multiply-add in software (LLVM's APFloat): independent of `f32::mul_add`.
fn soft_fma(x: f32, y: f32, z: f32) -> f32 {
    use rustc_apfloat::{Float, Round, ieee::Single};
    let [x, y, z] = [x, y, z].map(|v| Single::from_bits(u128::from(v.to_bits())));
    f32::from_bits(x.mul_add_r(y, z, Round::NearestTiesToEven).value.to_bits() as u32)
}

fn assert_same(what: &str, got: &Matrix<f32>, want: &Matrix<f32>) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    for (i, (g, w)) in got.as_slice().iter().zip(want.as_slice()).enumerate() {
        if w.is_nan() {
            assert_eq!(g.to_bits(), 0x7FC0_0000, "{what}: element {i}");
        } else {
            assert_eq!(g.to_bits(), w.to_bits(), "{what}: element {i}: {g:e}, expected {w:e}");
        }
    }
}

#[test]
fn f32_equals_a_plain_loop_for_every_pair_of_formats() {
    let formats =
        [Format::E4M3, Format::E5M2, Format::E4M3Fnuz, Format::E5M6, Format::E2M1, Format::Bf16, Format::F16];
    for (x, fa) in formats.into_iter().enumerate() {
        for (y, fb) in formats.into_iter().enumerate() {
            let seed = (10 * x + y) as u64;
            let a = scaled(fa, 5, 150, Granule::new(1, 64).unwrap(), seed);
            let b = scaled(fb, 4, 150, Granule::new(2, 32).unwrap(), seed + 1000);
            let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
            assert_eq!(problem.interval(), 32);
            let want = plain(&a, &b, 32, None);
            assert_same(&format!("{fa} {fb}"), &problem.run().unwrap(), &want);
        }
    }
}

/// BF16 × BF16 with products that under- and overflow: where fused and unfused differ.
#[test]
fn bf16_products_are_fused() {
    let mut differ = 0;
    for seed in 0..40u64 {
        // Exponents near ±64 put products at both ends of f32.
        let near = |x: f32| {
            let e = x.abs().log2();
            x.is_finite() && ((60.0..64.5).contains(&e) || (-76.0..-60.0).contains(&e))
        };
        let pick = |rows, seed| {
            ScaledMatrix::new(Format::Bf16, codes(Format::Bf16, rows, 40, seed, near), None).unwrap()
        };
        let (a, b) = (pick(6, seed + 1), pick(6, seed + 100));
        let d = run(&a, &b, Accumulation::F32);
        assert_same("near the ends", &d, &plain(&a, &b, 128, None));
        let tiny = |x: f32| x != 0.0 && x.abs() < 1e-18;
        let small = |rows, seed| {
            ScaledMatrix::new(Format::Bf16, codes(Format::Bf16, rows, 40, seed, tiny), None).unwrap()
        };
        let (a, b) = (small(6, seed + 1), small(6, seed + 100));
        let d = run(&a, &b, Accumulation::F32);
        assert_same("tiny", &d, &plain(&a, &b, 128, None));
        let (va, vb) = (a.dequantize().unwrap(), b.dequantize().unwrap());
        let unfused =
            |i: usize, j: usize| va.row(i).iter().zip(vb.row(j)).fold(0.0f32, |p, (x, y)| p + x * y);
        differ +=
            (0..36).filter(|&x| unfused(x / 6, x % 6).to_bits() != d.row(x / 6)[x % 6].to_bits()).count();
    }
    assert!(differ > 0, "no value told fused from unfused");
}

#[test]
fn exact_handles_the_widest_products() {
    let (big, tiny) = (2f32.powi(127), f32::from_bits(1 << 16)); // 2^-133, BF16's smallest
    let a = of_values(Format::Bf16, 1, 5, &[big, 1.0, tiny, -big, 1.0]);
    let b = of_values(Format::Bf16, 1, 5, &[big, 1.0, tiny, big, 2f32.powi(-24)]);
    // 2^254 cancels; 1 + 2^-24 is a tie that the 2^-266 breaks upward.
    assert_eq!(run(&a, &b, Accumulation::EXACT).as_slice(), [1.0 + f32::EPSILON]);
    let a = of_values(Format::Bf16, 1, 2, &[big, 1.0]);
    assert_eq!(run(&a, &a, Accumulation::EXACT).as_slice(), [f32::INFINITY]);
}

// ------------------------------------------------------------------------------------------- the contract's clauses

#[test]
fn intervals_and_scales_of_every_granule_equal_the_plain_loop() {
    let granules = [
        Granule::TILE_1X128,
        Granule::BLOCK_128X128,
        Granule::ROW,
        Granule::TENSOR,
        Granule::new(3, 96).unwrap(),
    ];
    for k in [0, 1, 31, 32, 33, 127, 128, 129, 300] {
        for (x, ga) in granules.into_iter().enumerate() {
            for (y, gb) in granules.into_iter().enumerate() {
                let seed = (k * 100 + 10 * x + y) as u64;
                let (a, b) = (scaled(Format::E4M3, 4, k, ga, seed), scaled(Format::E5M2, 7, k, gb, seed + 1));
                let c = Matrix::from_fn(4, 7, |i, j| (i as f32 - 1.5) * 10f32.powi(j as i32 - 3));
                let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
                let finest = if k > 96 && (x == 4 || y == 4) { 32 } else { 128 };
                assert_eq!(problem.interval(), finest, "{ga} {gb} K = {k}");
                for interval in [16, 32] {
                    let accumulation = Accumulation::F32.promote_every(interval).unwrap();
                    let problem = problem.with_accumulation(accumulation).unwrap();
                    let what = format!("{ga} {gb} K = {k}, every {interval}");
                    assert_same(&what, &problem.run().unwrap(), &plain(&a, &b, interval, None));
                    let d = problem.with_addend(c.view()).unwrap().run().unwrap();
                    assert_same(&what, &d, &plain(&a, &b, interval, Some(&c)));
                }
            }
        }
    }
}

/// Clause 5: scales outside the model without promotion make one interval of all K.
#[test]
fn row_scales_without_promotion_are_one_interval() {
    let (a, b) =
        (scaled(Format::E4M3, 5, 300, Granule::ROW, 1), scaled(Format::E4M3, 6, 300, Granule::TENSOR, 2));
    let d = run(&a, &b, Accumulation::F32.without_promotion());
    assert_same("rows", &d, &plain(&a, &b, 300, None));
    for model in [Model::Exact, "hopper".parse::<Model>().unwrap()] {
        let bare = |x: &ScaledMatrix| {
            let (format, codes, _) = x.clone().into_parts();
            ScaledMatrix::new(format, codes, None).unwrap()
        };
        let chain = run(&bare(&a), &bare(&b), Accumulation::new(model));
        let d = run(&a, &b, Accumulation::new(model));
        let want = Matrix::from_fn(5, 6, |i, j| {
            (a.view().scale_at(i, 0) * b.view().scale_at(j, 0)).mul_add(chain.row(i)[j], 0.0)
        });
        assert_same(model.name(), &d, &want);
    }
}

/// Clause 6: with promotion the addend comes last, without it first.
#[test]
fn the_addend_enters_where_the_contract_says() {
    // 2^24 + 1 + 1: from the front each 1 is lost to a tie, at the end 2 is kept.
    let (a, b) = (of_values(Format::E4M3, 1, 2, &[1.0, 1.0]), of_values(Format::E4M3, 1, 2, &[1.0, 1.0]));
    let c = [16_777_216.0f32];
    let problem =
        GemmProblem::nt(a.view(), b.view()).unwrap().with_addend(MatRef::new(&c, 1, 1).unwrap()).unwrap();
    let with = |accumulation| problem.with_accumulation(accumulation).unwrap().run().unwrap().as_slice()[0];
    assert_eq!(with(Accumulation::F32), 16_777_218.0);
    assert_eq!(with(Accumulation::F32.without_promotion()), 16_777_216.0);
    assert_eq!(with(Accumulation::EXACT.without_promotion()), 16_777_218.0);
    // Hopper keeps 14 bits: 2^24 swallows the products, at the end it does not.
    assert_eq!(with(Accumulation::HOPPER), 16_777_216.0);
    assert_eq!(with(Accumulation::HOPPER.promote_every(128).unwrap()), 16_777_218.0);
}

#[test]
fn an_empty_k_gives_the_addend_or_zero() {
    let (a, b) = (unscaled(Format::E4M3, 2, 0, 1), unscaled(Format::E4M3, 3, 0, 2));
    let c = Matrix::from_fn(2, 3, |i, j| if j == 0 { -0.0 } else { i as f32 + 0.1 });
    for model in ["f32", "exact", "hopper", "blackwell-mma"] {
        let bare = Accumulation::new(model.parse::<Model>().unwrap());
        for accumulation in [bare, bare.promote_every(128).unwrap()] {
            let problem =
                GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
            assert!(problem.run().unwrap().as_slice().iter().all(|x| x.to_bits() == 0));
            let d = problem.with_addend(c.view()).unwrap().run().unwrap();
            assert_eq!(d, c, "{accumulation}");
            // Clause 7: as a chain's own addend −0 stays; added to an accumulator of +0 it does not.
            let kept = d.as_slice()[0].is_sign_negative();
            assert_eq!(kept, accumulation.interval().is_none(), "{accumulation}");
        }
    }
    let none = unscaled(Format::E4M3, 0, 16, 3);
    assert_eq!(run(&none, &unscaled(Format::E4M3, 3, 16, 4), Accumulation::F32).shape(), (0, 3));
}

/// Clause 7: −0 and subnormals.
#[test]
fn signs_of_zero_and_subnormals_are_kept() {
    // fma(−2^-80, 2^-80, +0) underflows to −0; a bare chain keeps it, promotion adds it to +0.
    let (x, y) = (-(2f32.powi(-80)), 2f32.powi(-80));
    let (a, b) = (of_values(Format::Bf16, 1, 1, &[x]), of_values(Format::Bf16, 1, 1, &[y]));
    let bare = run(&a, &b, Accumulation::F32.without_promotion());
    assert_eq!(bare.as_slice()[0].to_bits(), 0x8000_0000);
    assert_eq!(run(&a, &b, Accumulation::F32).as_slice()[0].to_bits(), 0);
    assert_eq!(run(&a, &b, Accumulation::EXACT.without_promotion()).as_slice()[0].to_bits(), 0x8000_0000);
    // A chain of zeros keeps an addend of −0 if all products are −0.
    let (a, b) = (of_values(Format::E4M3, 1, 2, &[-0.0, 0.0]), of_values(Format::E4M3, 1, 2, &[1.0, -1.0]));
    let c = [-0.0f32];
    let problem =
        GemmProblem::nt(a.view(), b.view()).unwrap().with_addend(MatRef::new(&c, 1, 1).unwrap()).unwrap();
    let with = |accumulation| {
        problem.with_accumulation(accumulation).unwrap().run().unwrap().as_slice()[0].to_bits()
    };
    assert_eq!(with(Accumulation::F32.without_promotion()), 0x8000_0000);
    assert_eq!(with(Accumulation::EXACT.without_promotion()), 0);
    assert_eq!(with(Accumulation::HOPPER), 0);
    // A subnormal survives.
    let (a, b) =
        (of_values(Format::Bf16, 1, 1, &[2f32.powi(-100)]), of_values(Format::Bf16, 1, 1, &[2f32.powi(-49)]));
    assert_eq!(run(&a, &b, Accumulation::F32).as_slice()[0].to_bits(), 1);
}

#[test]
fn non_finite_operands_give_infinity_or_the_canonical_nan() {
    let inf = f32::INFINITY;
    let a = of_values(Format::E5M2, 3, 2, &[inf, 1.0, 1.0, 1.0, f32::NAN, 1.0]);
    let b = of_values(Format::E5M2, 3, 2, &[1.0, 1.0, 0.0, 1.0, -1.0, -inf]);
    let want = |nan: u32| {
        [
            inf.to_bits(),
            nan,
            (-inf).to_bits(),
            2f32.to_bits(),
            1f32.to_bits(),
            (-inf).to_bits(),
            nan,
            nan,
            nan,
        ]
    };
    for (accumulation, nan) in [
        (Accumulation::F32, 0x7FC0_0000),
        (Accumulation::F32.without_promotion(), 0x7FC0_0000),
        (Accumulation::EXACT, 0x7FC0_0000),
        (Accumulation::EXACT.without_promotion(), 0x7FC0_0000),
        (Accumulation::HOPPER, 0x7FFF_FFFF),
        (Accumulation::BLACKWELL_MMA, 0x7FFF_FFFF),
        (Accumulation::HOPPER.promote_every(128).unwrap(), 0x7FC0_0000),
    ] {
        let d = run(&a, &b, accumulation);
        let got: Vec<u32> = d.as_slice().iter().map(|x| x.to_bits()).collect();
        assert_eq!(got, want(nan), "{accumulation}");
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
        assert_eq!(problem.run_bf16().unwrap().row(0)[1].to_bits(), 0x7FC0, "{accumulation}");
    }
    // A NaN scale reaches its own elements only.
    let mut grid = Matrix::filled(2, 1, 1.0);
    grid.row_mut(1)[0] = f32::from_bits(0xFFC0_0001);
    let scales = Some(Scales { granule: Granule::ROW, grid: ScaleGrid::F32(grid), tensor: 1.0 });
    let a = ScaledMatrix::new(Format::E4M3, Codes::Bytes(Matrix::filled(2, 2, 0x38)), scales).unwrap();
    let d = run(&a, &of_values(Format::E4M3, 1, 2, &[1.0, 1.0]), Accumulation::F32);
    assert_eq!((d.row(0)[0], d.row(1)[0].to_bits()), (2.0, 0x7FC0_0000));
}

/// Two-level scales: D = fl(fl(ta·tb)·acc), then the addend.
#[test]
fn tensor_scales_come_after_the_last_interval() {
    let (a, b) = (nvfp4(6, 80, 1, 1.0), nvfp4(5, 80, 2, 1.0));
    let two_level = |x: &ScaledMatrix, tensor| {
        let (format, codes, scales) = x.clone().into_parts();
        ScaledMatrix::new(format, codes, scales.map(|s| Scales { tensor, ..s })).unwrap()
    };
    let (ta, tb) = (0.3f32, 1.7f32);
    let (a2, b2) = (two_level(&a, ta), two_level(&b, tb));
    let c = Matrix::from_fn(6, 5, |i, j| (i * 5 + j) as f32 / 7.0);
    assert_eq!(GemmProblem::nt(a2.view(), b2.view()).unwrap().interval(), 16);
    for accumulation in [
        Accumulation::F32.promote_every(16).unwrap(),
        Accumulation::BLACKWELL_FP4,
        Accumulation::BLACKWELL_FP4.promote_every(32).unwrap(),
    ] {
        let one = run(&a, &b, accumulation);
        let two = run(&a2, &b2, accumulation);
        let want = one.map(|&x| (ta * tb) * x);
        assert_same(&accumulation.to_string(), &two, &want);
        if accumulation.interval().is_some() {
            let problem =
                GemmProblem::nt(a2.view(), b2.view()).unwrap().with_accumulation(accumulation).unwrap();
            let d = problem.with_addend(c.view()).unwrap().run().unwrap();
            let want = Matrix::from_fn(6, 5, |i, j| want.row(i)[j] + c.row(i)[j]);
            assert_same(&accumulation.to_string(), &d, &want);
        }
    }
}

#[test]
fn mx_scales_promote_every_32_in_f32_and_enter_the_chain_in_mx() {
    let (a, b) = (e8m0(Format::E4M3, 5, 100, 1), e8m0(Format::E5M2, 6, 100, 2));
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    assert_eq!(problem.interval(), 32);
    assert_same("f32", &problem.run().unwrap(), &plain(&a, &b, 32, None));
    // Where nothing is truncated, scales inside and outside agree: one block, products of one exponent.
    let (a, b) = (e8m0(Format::E2M1, 5, 32, 3), e8m0(Format::E2M1, 6, 32, 4));
    let inside = run(&a, &b, Accumulation::BLACKWELL_MX);
    let outside = run(&a, &b, Accumulation::BLACKWELL.promote_every(32).unwrap());
    assert_same("mx", &inside, &outside);
    // Without any scales the model is plain Blackwell.
    let (a, b) = (unscaled(Format::E4M3, 5, 100, 5), unscaled(Format::E4M3, 6, 100, 6));
    assert_eq!(run(&a, &b, Accumulation::BLACKWELL_MX), run(&a, &b, Accumulation::BLACKWELL));
}

/// Clause 8, and what [`Engine`] promises.
#[test]
fn results_do_not_depend_on_threads() {
    let a = scaled(Format::E4M3, 37, 300, Granule::TILE_1X128, 1);
    let b = scaled(Format::E4M3, 29, 300, Granule::BLOCK_128X128, 2);
    for accumulation in
        [Accumulation::F32, Accumulation::EXACT, Accumulation::HOPPER.promote_every(128).unwrap()]
    {
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
        let want = problem.run().unwrap();
        for threads in [1, 2, 5] {
            let macs = AtomicU64::new(0);
            let count = |n| {
                macs.fetch_add(n, Ordering::Relaxed);
            };
            let engine = Engine::reference().with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
            assert_eq!(engine.threads(), threads);
            assert_same("threads", &engine.with_progress(&count).gemm(&problem).unwrap(), &want);
            assert_eq!(macs.into_inner(), 37 * 29 * 300);
        }
    }
}

#[test]
fn bf16_output_is_the_f32_result_rounded_once() {
    let a = scaled(Format::E4M3, 20, 200, Granule::TILE_1X128, 1);
    let b = scaled(Format::E4M3, 20, 200, Granule::BLOCK_128X128, 2);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    let (wide, narrow) = (problem.run().unwrap(), problem.run_bf16().unwrap());
    for (w, n) in wide.as_slice().iter().zip(narrow.as_slice()) {
        let want = Format::Bf16.cast_f32(*w, finegrain::formats::Overflow::NonSaturating).code;
        assert_eq!(u64::from(n.to_bits()), want);
    }
}

#[test]
fn running_refuses_unknown_backends_and_wrong_outputs() {
    let x = unscaled(Format::E4M3, 4, 16, 1);
    let problem = GemmProblem::nt(x.view(), x.view()).unwrap();
    let message = Engine::by_name("abacus").unwrap_err().to_string();
    assert!(
        message.starts_with("unknown backend 'abacus'; known: ") && message.contains("reference"),
        "{message}"
    );
    let mut out = Matrix::filled(3, 4, 0.0);
    let refused = Engine::cpu().gemm_into(&problem, Output::F32(out.view_mut()));
    assert_eq!(refused.unwrap_err().to_string(), "the output given is 3×4, expected 4×4");
}
