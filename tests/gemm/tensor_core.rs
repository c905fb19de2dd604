//! Tensor-core arithmetic against golden values of MMA-Sim, and against sums worked out by hand.

use crate::common::golden::{self, Score, bits, exact, nan_f32, oracle, tensor};
use crate::common::isas;
use crate::conforming;
use finegrain::Engine;
use finegrain::checkpoint::TensorFile;
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, Model, Promotion, StepResult, TensorCore};
use finegrain::matrix::{MatRef, Matrix};
use finegrain::scaled::{CodesRef, Granule, ScaleGridRef, ScaledRef, ScalesRef};

fn model_of(arch: &str) -> TensorCore {
    match arch {
        "hopper-wgmma" => TensorCore::HOPPER,
        "ada-mma" => TensorCore::ADA,
        "blackwell-tcgen05" => TensorCore::BLACKWELL,
        other => panic!("no model for {other}"),
    }
}

fn chain(core: TensorCore) -> Accumulation {
    Accumulation::new(Model::TensorCore(core))
}

fn codes(format: Format, m: &Matrix<u8>) -> ScaledRef<'_> {
    ScaledRef::new(format, CodesRef::Bytes(m.view()), None).unwrap()
}

fn scaled<'a>(format: Format, m: MatRef<'a, u8>, granule: Granule, grid: ScaleGridRef<'a>) -> ScaledRef<'a> {
    ScaledRef::new(format, CodesRef::Bytes(m), Some(ScalesRef { granule, grid, tensor: 1.0 })).unwrap()
}

fn block_scaled<'a>(kind: &str, format: Format, m: &'a Matrix<u8>, s: &'a Matrix<u8>) -> ScaledRef<'a> {
    match kind {
        "nvfp4" => scaled(format, m.view(), Granule::NVFP4_1X16, ScaleGridRef::E4M3(s.view())),
        _ => scaled(format, m.view(), Granule::MX_1X32, ScaleGridRef::E8M0(s.view())),
    }
}

fn bytes(file: &TensorFile, name: &str) -> Matrix<u8> {
    tensor(file, name).byte_matrix().unwrap().to_matrix()
}

fn floats(file: &TensorFile, name: &str, shape: (usize, usize)) -> Matrix<f32> {
    let values = bits(file, name).into_iter().map(|u| f32::from_bits(u as u32)).collect();
    Matrix::from_vec(shape.0, shape.1, values).unwrap()
}

fn bits_of(d: &Matrix<f32>) -> Vec<u64> {
    d.as_slice().iter().map(|x| u64::from(x.to_bits())).collect()
}

/// D by the reference, and by the emulated backend on every instruction set, which must be the same.
fn run(what: &str, problem: &GemmProblem<'_>) -> Matrix<f32> {
    let ran = conforming::conforms("emulated", what, problem);
    assert_eq!(ran, 2 * isas::available().len(), "{what}: the emulated backend refused it");
    Engine::reference().gemm(problem).unwrap()
}

/// Compares results; the golden values do not settle the sign of zero, ours is +.
fn compare(score: &mut Score, what: &str, d: &Matrix<f32>, want: &[u64]) {
    let same = |g: u64, w: u64| nan_f32(g, w) || (g == 0 && w == 0x8000_0000);
    score.eq(what, &bits_of(d), want, same, golden::all);
}

fn all_zeros_positive_and_nan_canonical(what: &str, d: &Matrix<f32>) {
    for x in d.as_slice() {
        assert!(*x != 0.0 || x.is_sign_positive(), "{what}: −0");
        assert!(!x.is_nan() || x.to_bits() == 0x7FFF_FFFF, "{what}: NaN {:#x}", x.to_bits());
    }
}

/// Names in the file that end in `.a`, without it.
fn cases(file: &TensorFile, kinds: &[&str]) -> Vec<String> {
    let cases = file.names().iter().filter_map(|n| n.strip_suffix(".a").map(str::to_owned));
    cases.filter(|c| kinds.contains(&c.split('.').next().unwrap())).collect()
}

#[test]
fn mma_chains_are_those_of_mma_sim() {
    let file = oracle("tensor_core");
    let mut score = Score::default();
    for p in cases(&file, &["mma"]) {
        let word: Vec<&str> = p.split('.').collect();
        let (fa, fb) = (word[1].parse::<Format>().unwrap(), word[2].parse::<Format>().unwrap());
        let (a, b) = (bytes(&file, &format!("{p}.a")), bytes(&file, &format!("{p}.b")));
        let c = floats(&file, &format!("{p}.c_bits"), (a.rows(), b.rows()));
        for arch in ["hopper-wgmma", "ada-mma", "blackwell-tcgen05"] {
            let name = format!("{p}.d_bits.{arch}");
            if !file.contains(&name) {
                continue;
            }
            let problem = GemmProblem::nt(codes(fa, &a), codes(fb, &b)).unwrap();
            let problem = problem.with_accumulation(chain(model_of(arch))).unwrap();
            let d = run(&name, &problem.with_addend(c.view()).unwrap());
            compare(&mut score, &name, &d, &bits(&file, &name));
            all_zeros_positive_and_nan_canonical(&name, &d);
        }
    }
    score.finish("mma chains");
}

#[test]
fn block_scaled_chains_are_those_of_mma_sim() {
    let file = oracle("tensor_core");
    let mut score = Score::default();
    for p in cases(&file, &["mxfp8", "mxfp4", "nvfp4"]) {
        let word: Vec<&str> = p.split('.').collect();
        let (fa, fb) = (word[1].parse::<Format>().unwrap(), word[2].parse::<Format>().unwrap());
        let [a, b, sa, sb] = ["a", "b", "sa", "sb"].map(|t| bytes(&file, &format!("{p}.{t}")));
        let c = floats(&file, &format!("{p}.c_bits"), (a.rows(), b.rows()));
        let core = if word[0] == "mxfp8" { TensorCore::BLACKWELL_MX } else { TensorCore::BLACKWELL_FP4 };
        let problem =
            GemmProblem::nt(block_scaled(word[0], fa, &a, &sa), block_scaled(word[0], fb, &b, &sb)).unwrap();
        let problem = problem.with_accumulation(chain(core)).unwrap().with_addend(c.view()).unwrap();
        let name = format!("{p}.d_bits.blackwell-tcgen05");
        let d = run(&name, &problem);
        compare(&mut score, &name, &d, &bits(&file, &name));
        all_zeros_positive_and_nan_canonical(&name, &d);
    }
    score.finish("block-scaled chains");
}

#[test]
fn promoted_chains_and_their_partial_sums_are_the_golden_ones() {
    let file = oracle("tensor_core");
    let mut score = Score::default();
    for p in cases(&file, &["promoted"]) {
        let word: Vec<&str> = p.split('.').collect();
        let core = model_of(word[1]);
        let (fa, fb) = (word[2].parse::<Format>().unwrap(), word[3].parse::<Format>().unwrap());
        let (a, b) = (bytes(&file, &format!("{p}.a")), bytes(&file, &format!("{p}.b")));
        let (m, n) = (a.rows(), b.rows());

        let partials = bits(&file, &format!("{p}.partial_bits"));
        for (t, want) in partials.chunks(m * n).enumerate() {
            let part = |f, x: &Matrix<u8>| {
                let x = x.view().col_range(t * 128, (t + 1) * 128);
                ScaledRef::new(f, CodesRef::Bytes(x), None).map(|x| x.to_matrix()).unwrap()
            };
            let (a, b) = (part(fa, &a), part(fb, &b));
            let problem =
                GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(chain(core)).unwrap();
            let name = format!("{p}.partial {t}");
            compare(&mut score, &name, &run(&name, &problem), want);
        }

        let sa = tensor(&file, &format!("{p}.sa")).to_matrix().unwrap();
        for (granule, tag) in [(Granule::BLOCK_128X128, "block"), (Granule::TILE_1X128, "tile")] {
            let sb = tensor(&file, &format!("{p}.sb_{tag}")).to_matrix().unwrap();
            let a = scaled(fa, a.view(), Granule::TILE_1X128, ScaleGridRef::F32(sa.view()));
            let b = scaled(fb, b.view(), granule, ScaleGridRef::F32(sb.view()));
            for (order, promotion) in [
                ("deepgemm", Promotion::ScalesFirst),
                ("te", Promotion::PartialFirst),
                ("deepseek-v3", Promotion::Unfused),
            ] {
                let accumulation = chain(core).promote_every(128).unwrap().with_promotion(promotion);
                let problem = GemmProblem::nt(a, b).unwrap().with_accumulation(accumulation).unwrap();
                let name = format!("{p}.d_bits.{order}.{tag}");
                score.eq(&name, &bits_of(&run(&name, &problem)), &bits(&file, &name), exact, golden::all);
            }
        }
    }
    score.finish("promoted chains");
}

/// The code of a value that the format has.
fn code(format: Format, value: f64) -> u16 {
    format.spec().encode(finegrain::formats::Unpacked::from_f64(value)).unwrap() as u16
}

/// One dot product of (a, b) pairs on a core, with an addend.
fn dot(core: TensorCore, format: Format, pairs: &[(f64, f64)], c: f32) -> f32 {
    let row =
        |side: fn(&(f64, f64)) -> f64| -> Vec<u16> { pairs.iter().map(|p| code(format, side(p))).collect() };
    let (a, b) = (row(|p| p.0), row(|p| p.1));
    let (a8, b8): (Vec<u8>, Vec<u8>) =
        (a.iter().map(|&c| c as u8).collect(), b.iter().map(|&c| c as u8).collect());
    let operand = |words, bytes| {
        let wide = format.spec().bits() > 8;
        let codes = if wide {
            CodesRef::Words(MatRef::new(words, 1, pairs.len()).unwrap())
        } else {
            CodesRef::Bytes(MatRef::new(bytes, 1, pairs.len()).unwrap())
        };
        ScaledRef::new(format, codes, None).unwrap()
    };
    let c = [c];
    let problem = GemmProblem::nt(operand(&a, &a8), operand(&b, &b8)).unwrap();
    let problem = problem.with_accumulation(chain(core)).unwrap();
    problem.with_addend(MatRef::new(&c, 1, 1).unwrap()).unwrap().run().unwrap().as_slice()[0]
}

/// numerics.md 4.3: c = 2^23 with products −2^23, −0.5, −0.25, −0.125.
#[test]
fn check_vector_of_the_specification() {
    let pairs = [(-2048.0, 4096.0), (-0.5, 1.0), (-0.5, 0.5), (-0.25, 0.5)];
    for (core, format, expected) in [
        (TensorCore::VOLTA, Format::F16, 0.0f32),
        (TensorCore::TURING, Format::F16, -0.5),
        (TensorCore::AMPERE, Format::F16, -0.5),
        (TensorCore::AMPERE, Format::Bf16, -0.5),
        (TensorCore::HOPPER_F16, Format::F16, -0.75),
        (TensorCore::HOPPER_F16, Format::Bf16, -0.75),
        (TensorCore::BLACKWELL, Format::E5M2, -0.75),
        (TensorCore::ADA, Format::E5M2, 0.0),
        (TensorCore::HOPPER, Format::E5M2, 0.0),
    ] {
        let d = dot(core, format, &pairs, 8_388_608.0);
        assert_eq!(d.to_bits(), expected.to_bits(), "{} {format}: {d}", core.name());
    }
}

/// The FP4 line of the check vector: groups whose scales make −2^23, −0.5, −0.25 and −0.125 of a product −1.
#[test]
fn check_vector_of_fp4() {
    let one = code(Format::E2M1, 1.0) as u8;
    let minus_one = code(Format::E2M1, -1.0) as u8;
    let a = Matrix::from_fn(1, 128, |_, k| if k % 32 == 0 { one } else { 0 });
    let b = Matrix::from_fn(1, 128, |_, k| if k % 32 == 0 { minus_one } else { 0 });
    let scale = |exponents: [i32; 4]| Matrix::from_fn(1, 4, |_, t| (127 + exponents[t]) as u8);
    // One step has 64 elements, so the vector is two blocks of 32 a step; the first step has −2^23 and −0.5.
    let (sa, sb) = (scale([11, -1, -1, -2]), scale([12, 0, -1, -1]));
    let a = scaled(Format::E2M1, a.view(), Granule::MX_1X32, ScaleGridRef::E8M0(sa.view()));
    let b = scaled(Format::E2M1, b.view(), Granule::MX_1X32, ScaleGridRef::E8M0(sb.view()));
    let c = [8_388_608.0f32];
    let problem = GemmProblem::nt(a, b).unwrap().with_accumulation(Accumulation::BLACKWELL_FP4).unwrap();
    let d = problem.with_addend(MatRef::new(&c, 1, 1).unwrap()).unwrap().run().unwrap();
    assert_eq!(d.as_slice(), [-0.875]);
}

/// NVFP4 has four groups of 16 in one step; their scales need not be powers of two.
#[test]
fn nvfp4_groups_are_summed_exactly_and_scaled_by_significands() {
    let e2m1 = |v| code(Format::E2M1, v) as u8;
    let ue4m3 = |v| code(Format::E4M3, v) as u8;
    // Group 0: 16 products 6·6 = 576, scales 1.75·1.75; group 1: products that cancel; group 2: 0.25, scale 2^-9
    // subnormal; group 3: scale 0.
    let a = Matrix::from_fn(1, 64, |_, k| match k / 16 {
        1 => e2m1(if k % 2 == 0 { 6.0 } else { -6.0 }),
        2 => e2m1(if k % 16 == 0 { 0.5 } else { 0.0 }),
        _ => e2m1(6.0),
    });
    let b = Matrix::from_fn(1, 64, |_, k| e2m1(if k / 16 == 2 { 0.5 } else { 6.0 }));
    let sa = Matrix::from_vec(1, 4, vec![ue4m3(1.75), ue4m3(448.0), ue4m3(2f64.powi(-9)), 0x80]).unwrap();
    let sb = Matrix::from_vec(1, 4, vec![ue4m3(1.75), ue4m3(448.0), ue4m3(1.0), ue4m3(1.0)]).unwrap();
    let (a, b) = (block_scaled("nvfp4", Format::E2M1, &a, &sa), block_scaled("nvfp4", Format::E2M1, &b, &sb));
    let problem = GemmProblem::nt(a, b).unwrap();
    let d = problem.with_accumulation(Accumulation::BLACKWELL_FP4).unwrap().run().unwrap();
    // 576 · 3.0625 + 0.25 · 2^-9 = 1764 + 2^-11. The group that cancels has the exponent 16 of its scales, and
    // 16 − 35 = −19 still keeps 2^-11; f32 at 2^10 keeps 2^-13.
    assert_eq!(d.as_slice(), [1764.0 + 2f32.powi(-11)]);
}

/// `blackwell-mma`: the products are summed and truncated to f32 first, then c is added to nearest even.
#[test]
fn late_addend_is_rounded_to_nearest_even() {
    let core = TensorCore::BLACKWELL_MMA;
    let small = 2f64.powi(-12);
    // Sum of products: 1 + 2^-24 + 2^-24, truncated at 2^-25 loses nothing: 1 + 2^-23, an f32.
    let pairs = [(1.0, 1.0), (small, small), (small, small)];
    assert_eq!(dot(core, Format::E5M2, &pairs, 0.0), 1.0 + f32::EPSILON);
    // One of them: 1 + 2^-24 is truncated to 1 before c is added, where early addition would keep it: 2^-24 + 1 − 1.
    assert_eq!(dot(core, Format::E5M2, &pairs[..2], -1.0), 0.0);
    assert_eq!(dot(TensorCore::BLACKWELL, Format::E5M2, &pairs[..2], -1.0), 2f32.powi(-24));
    // c = 2^24 + 3 products of 1: nearest even gives 2^24 + 4, truncation 2^24 + 2.
    let ones = [(1.0, 1.0); 3];
    assert_eq!(dot(core, Format::E4M3, &ones, 16_777_216.0), 16_777_220.0);
    assert_eq!(dot(TensorCore::BLACKWELL, Format::E4M3, &ones, 16_777_216.0), 16_777_218.0);
    assert_eq!(dot(core, Format::E5M2, &[(f64::INFINITY, 1.0)], f32::NEG_INFINITY).to_bits(), 0x7FFF_FFFF);
}

/// Truncation is toward zero and per term, never of the sum: small products of one sign vanish beside a large one.
#[test]
fn products_are_truncated_one_by_one() {
    let mut pairs = vec![(128.0, 1.0)];
    pairs.extend(vec![(-(2f64.powi(-7)), 1.0); 31]);
    // e_max 7, F 13: multiples of 2^-6 survive; 31 products of 2^-7 do not.
    assert_eq!(dot(TensorCore::HOPPER, Format::E5M2, &pairs, 0.0), 128.0);
    // Ada has steps of 16: in the second, e_max is that of c = 128 again.
    assert_eq!(dot(TensorCore::ADA, Format::E5M2, &pairs, 0.0), 128.0);
    // Blackwell keeps them: 128 − 31/128.
    assert_eq!(dot(TensorCore::BLACKWELL, Format::E5M2, &pairs, 0.0), 128.0 - 31.0 / 128.0);
}

#[test]
fn non_finite_operands_give_infinity_or_the_one_nan() {
    let inf = f64::INFINITY;
    for core in [TensorCore::HOPPER, TensorCore::ADA, TensorCore::BLACKWELL, TensorCore::BLACKWELL_MMA] {
        let dot = |pairs: &[(f64, f64)], c| dot(core, Format::E5M2, pairs, c);
        assert_eq!(dot(&[(inf, -1.0), (1.0, 1.0)], 0.0), f32::NEG_INFINITY);
        assert_eq!(dot(&[(1.0, 1.0)], f32::INFINITY), f32::INFINITY);
        for (pairs, c) in [
            (&[(inf, 0.0)][..], 0.0),
            (&[(inf, 1.0), (-inf, 1.0)], 0.0),
            (&[(inf, 1.0)], f32::NEG_INFINITY),
            (&[(1.0, 1.0)], f32::from_bits(0xFFC0_1234)),
            (&[], f32::NAN),
        ] {
            assert_eq!(dot(pairs, c).to_bits(), 0x7FFF_FFFF, "{} {pairs:?} {c}", core.name());
        }
    }
}

/// A ragged last step is a step with zero products.
#[test]
fn ragged_steps_equal_steps_padded_with_zeros() {
    let values =
        |k: usize| (2f64.powi(k as i32 % 9 - 4) * if k.is_multiple_of(3) { -1.25 } else { 1.0 }, 1.5);
    for core in [TensorCore::ADA, TensorCore::HOPPER, TensorCore::BLACKWELL, TensorCore::BLACKWELL_MMA] {
        for k in [1, 15, 16, 17, 31, 33, 63, 70] {
            let pairs: Vec<_> = (0..k).map(values).collect();
            let mut padded = pairs.clone();
            padded.resize(128, (0.0, 1.0));
            for c in [0.0, 1e-3, -7.7] {
                let (d, want) = (dot(core, Format::E4M3, &pairs, c), dot(core, Format::E4M3, &padded, c));
                // The extra steps of zeros truncate once more, to the same value for results already truncated; the
                // late addend adds +0.
                assert_eq!(d.to_bits(), want.to_bits(), "{} K = {k}, c = {c}", core.name());
            }
        }
    }
    assert_eq!(dot(TensorCore::HOPPER, Format::E4M3, &[], -0.0).to_bits(), f32::to_bits(-0.0));
}

/// With one product a step, all fraction bits and an f32 result, a chain is the sequence of truncated additions.
#[test]
fn custom_cores_follow_their_numbers() {
    let core = TensorCore::HOPPER.customized(1, 38, StepResult::F32).unwrap();
    let pairs: Vec<_> = (0..40).map(|k| (1.25 + f64::from(k % 5) / 2.0, 2f64.powi(k % 7 - 3))).collect();
    let mut c = 0.0f32;
    for (a, b) in &pairs {
        let sum = f64::from(c) + a * b; // exact in f64
        let nearest = sum as f32;
        c = if f64::from(nearest) > sum { nearest.next_down() } else { nearest };
    }
    assert_eq!(dot(core, Format::E4M3, &pairs, 0.0), c);
}
