//! The emulated tensor cores give the reference's bits on every instruction set: every model and custom ones, shapes at
//! the edges of steps and blocks, values at the edges of the formats, block scales, promotion orders, addends, one
//! thread or many.

use crate::common::isas::available;
use crate::common::operands::{Random, codes, e8m0, nvfp4, scaled, unscaled};
use crate::conforming::{self, chosen};
use finegrain::Engine;
use finegrain::engine::Product;
use finegrain::formats::Format;
use finegrain::gemm::{
    Accumulation, Addend, BlockScales, GemmProblem, GroupedProblem, Model, Promotion, StepResult, StepSum,
    TensorCore,
};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};

/// The models over FP8 without block scales of their own, in f32 and f16.
fn plain() -> Vec<TensorCore> {
    let names = [
        "ada",
        "hopper",
        "hopper-mma",
        "blackwell",
        "blackwell-mma",
        "hopper:result=f16",
        "hopper-mma:result=f16",
        "blackwell:result=f16",
        "blackwell-mma:result=f16",
    ];
    names.iter().map(|name| name.parse().unwrap()).collect()
}

/// The models over F16, BF16 and F32, late accumulators too.
fn of_words() -> Vec<TensorCore> {
    let names = [
        "hopper-f16",
        "ampere",
        "volta",
        "hopper-tf32",
        "hopper-f16:result=f16",
        "volta:result=f16",
        "blackwell-f16:addend=late",
        "turing:result=f16,addend=late",
        "hopper-tf32:l=40",
        "ampere:l=7,f=9,result=e8m10",
    ];
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn chain(core: TensorCore) -> Accumulation {
    Accumulation::new(Model::TensorCore(core))
}

/// Compares with the reference; every instruction set runs every problem given here.
fn conforms<'p>(what: &str, product: impl Into<Product<'p>>) {
    let ran = conforming::conforms("emulated", what, product);
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
        for core in plain() {
            let accumulation = chain(core).promote_every(128).unwrap();
            let problem =
                GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
            conforms(&format!("{m}×{n}×{k} {fa}×{fb} {accumulation}"), &problem);
        }
    }
}

/// Intervals that steps do not divide, and steps that are one element long.
#[test]
fn promotion_orders_intervals_and_addends() {
    let (m, n, k) = (7, 70, 300);
    let a = scaled(Format::E4M3, m, k, Granule::TILE_1X128, 5);
    let b = scaled(Format::E4M3, n, k, Granule::BLOCK_128X128, 6);
    let c = Matrix::from_fn(m, n, |i, j| if (i + j) % 5 == 0 { -0.0 } else { (i as f32 - j as f32) / 3.0 });
    for core in plain() {
        for promotion in [Promotion::ScalesFirst, Promotion::PartialFirst, Promotion::Unfused] {
            for interval in [1, 32, 128] {
                let accumulation = chain(core).with_promotion(promotion).promote_every(interval).unwrap();
                let problem =
                    GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
                conforms(&format!("{accumulation}"), &problem);
                conforms(&format!("{accumulation} + C"), &problem.with_addend(c.view()).unwrap());
            }
        }
    }
    let (a, b) = (unscaled(Format::E5M2, m, k, 7), unscaled(Format::E4M3, n, k, 8));
    for interval in [3, 5, 48, 50, 100, 299, 1000] {
        let accumulation = chain(TensorCore::HOPPER).promote_every(interval).unwrap();
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
        conforms(&format!("{accumulation}"), &problem);
    }
}

/// Addends of every size: their bits below F, zeros of both signs, subnormals, what overflows, infinities, NaN.
fn addends(m: usize, n: usize, seed: u64) -> Matrix<f32> {
    let mut random = Random(seed);
    let edges = [
        0,
        0x8000_0000,
        1,
        0x8000_0001,
        0x007F_FFFF,
        0x807F_FFFF,
        0x0080_0000,
        0x7F7F_FFFF,
        0xFF7F_FFFF,
        0x7F80_0000,
        0xFF80_0000,
        0x7F80_0001,
        0xFFC0_1234,
    ];
    Matrix::from_fn(m, n, |_, _| {
        let bits = random.next() as u32;
        f32::from_bits(match random.below(6) {
            0 => edges[random.below(edges.len() as u64) as usize],
            1 => bits,
            // Of the size of the products, with all 24 bits.
            _ => bits & 0x807F_FFFF | (110 + random.below(40) as u32) << 23,
        })
    })
}

#[test]
fn bare_chains_begin_with_the_addend() {
    let (m, n) = (5, 67);
    for k in [0, 1, 16, 31, 32, 97] {
        let c = addends(m, n, 40 + k as u64);
        for (fa, fb) in [(Format::E4M3, Format::E4M3), (Format::E5M2, Format::E4M3)] {
            let (a, b) = (unscaled(fa, m, k, 7), unscaled(fb, n, k, 8));
            // Rows and columns of zeros: the addend alone decides.
            let zeros = chosen(fa, m, k, 9, &|v| v == 0.0);
            for core in plain() {
                for a in [&a, &zeros] {
                    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
                    let problem = problem.with_accumulation(chain(core)).unwrap();
                    conforms(&format!("{} k {k}", core.name()), &problem);
                    let what = format!("{} k {k} + C", core.name());
                    conforms(&what, &problem.with_addend(c.view()).unwrap());
                }
            }
        }
    }
}

/// Codes at the edges: all of a format's, NaN and infinities included; the largest; subnormals; zeros of both signs;
/// one-signed; one huge and many tiny.
#[test]
fn values_at_the_edges() {
    for format in [Format::E4M3, Format::E5M2] {
        let spec = format.spec();
        let kinds: [(&str, &dyn Fn(f32) -> bool); 7] = [
            ("any", &|_| true),
            ("largest", &|v| f64::from(v.abs()) == spec.max_finite()),
            ("subnormal", &|v| v != 0.0 && f64::from(v.abs()) < spec.min_normal()),
            ("zero", &|v| v == 0.0),
            ("positive", &|v| v >= 0.0 && v.is_finite()),
            ("negative", &|v| v.is_finite() && v.is_sign_negative()),
            ("tiny and huge", &|v| v == 0.0 || v.abs() < 1e-3 || v.is_finite() && v.abs() >= 256.0),
        ];
        for (kind, keep) in kinds {
            for other in [Format::E4M3, Format::E5M2] {
                let a = chosen(format, 6, 200, 21, keep);
                let b = chosen(other, 37, 200, 22, &|v| v.is_finite());
                for core in plain() {
                    for (x, y) in [(&a, &b), (&b, &a), (&a, &a)] {
                        for accumulation in [chain(core), chain(core).promote_every(128).unwrap()] {
                            let problem = GemmProblem::nt(x.view(), y.view()).unwrap();
                            let problem = problem.with_accumulation(accumulation).unwrap();
                            conforms(&format!("{format} {kind} × {other} {accumulation}"), &problem);
                        }
                    }
                }
            }
        }
    }
}

/// One infinity or NaN in a row of A, or of B, and nowhere else.
#[test]
fn single_infinities_and_nans() {
    let (m, n, k) = (20, 90, 100);
    let with = |rows, seed, places: &[(usize, usize, u8)]| {
        let Codes::Bytes(mut m) = codes(Format::E5M2, rows, k, seed, f32::is_finite) else { unreachable!() };
        for &(row, col, code) in places {
            m.row_mut(row)[col] = code;
        }
        ScaledMatrix::new(Format::E5M2, Codes::Bytes(m), None).unwrap()
    };
    let a = with(m, 1, &[(3, 50, 0x7C), (4, 99, 0xFC), (19, 0, 0x7D)]);
    let b = with(n, 2, &[(0, 50, 0x7C), (64, 99, 0x7F), (89, 1, 0xFC)]);
    let c = addends(m, n, 3);
    for core in plain() {
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(chain(core)).unwrap();
        conforms(core.name(), &problem);
        conforms(&format!("{} + C", core.name()), &problem.with_addend(c.view()).unwrap());
        let promoted = problem.with_accumulation(chain(core).promote_every(32).unwrap()).unwrap();
        conforms(&format!("{}/32 + C", core.name()), &promoted.with_addend(c.view()).unwrap());
    }
}

/// Scales of promotion that are zero, huge, infinite and NaN.
#[test]
fn extreme_scales_of_promotion() {
    let (m, n, k) = (6, 40, 256);
    let extreme = |rows, seed| {
        let mut random = Random(seed);
        let scales = [0.0, -1.0, 1e-38, 1e38, 3e-45, f32::INFINITY, f32::NAN, 1.5];
        let grid = Matrix::from_fn(rows, 2, |_, _| scales[random.below(8) as usize]);
        let scales = Scales { granule: Granule::TILE_1X128, grid: ScaleGrid::F32(grid), tensor: 0.75 };
        let codes = codes(Format::E4M3, rows, k, seed, f32::is_finite);
        ScaledMatrix::new(Format::E4M3, codes, Some(scales)).unwrap()
    };
    let (a, b) = (extreme(m, 1), extreme(n, 2));
    for core in plain() {
        for &promotion in Promotion::SCALING_PARTIALS {
            let accumulation = chain(core).with_promotion(promotion).promote_every(128).unwrap();
            let problem =
                GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
            conforms(&format!("{accumulation}"), &problem);
        }
    }
}

/// Operands with random E8M0 scales among `scales`.
fn mx(format: Format, rows: usize, cols: usize, seed: u64, scales: &[u8]) -> ScaledMatrix {
    let mut random = Random(seed ^ 0xE8);
    let (grid_rows, grid_cols) = Granule::MX_1X32.grid(rows, cols);
    let grid =
        Matrix::from_fn(grid_rows, grid_cols, |_, _| scales[random.below(scales.len() as u64) as usize]);
    let scales = Scales { granule: Granule::MX_1X32, grid: ScaleGrid::E8M0(grid), tensor: 1.0 };
    ScaledMatrix::new(format, codes(format, rows, cols, seed, f32::is_finite), Some(scales)).unwrap()
}

/// Scales in the middle, at both ends (sums overflow, products lie below every f32), and NaN.
const MX_SCALES: [&[u8]; 4] = [&[120, 127, 130], &[0, 1, 2, 30], &[190, 250, 254], &[0, 127, 254, 255]];

/// Shapes at the edges of steps, micropanels and registers; the whole range of the formats, where rows are left to the
/// reference, and exponents that a row holds; bare chains from every addend, and promoted ones.
#[test]
fn operands_of_words() {
    let kinds: [(&str, &dyn Fn(f32) -> bool); 5] = [
        ("any", &f32::is_finite),
        ("near one", &|v| v == 0.0 || (2f32.powi(-30)..2f32.powi(30)).contains(&v.abs())),
        ("smallest", &|v| v.abs() < 1e-5),
        ("largest", &|v| v.is_finite() && v.abs() > 2f32.powi(if v.abs() < 65536.0 { 10 } else { 100 })),
        ("positive", &|v| v > 0.0 && v < 1e3),
    ];
    let mut random = Random(31);
    for core in of_words() {
        for (at, &fa) in core.operands().iter().enumerate() {
            let fb = core.operands()[random.below(core.operands().len() as u64) as usize];
            for (i, (kind, keep)) in kinds.into_iter().enumerate() {
                for (m, n, k) in
                    [(1, 1, 1), (5, 70, 300), (3, 17, 31), (17, 33, 16), (2, 65, 0), (4, 129, 65)]
                {
                    let seed = (at * 100 + i * 10) as u64;
                    let operand = |format: Format, rows, seed| {
                        if format != Format::F32 {
                            return chosen(format, rows, k, seed, keep);
                        }
                        let Codes::Dwords(mut codes) = codes(format, rows, k, seed, f32::is_finite) else {
                            unreachable!()
                        };
                        if kind != "any" {
                            // Exponents of a few binades.
                            let first = if kind == "largest" { 230 } else { 100 };
                            codes = codes.map(|&c| c & 0x807F_FFFF | (first + (c >> 3) % 24) << 23);
                        }
                        ScaledMatrix::new(format, Codes::Dwords(codes), None).unwrap()
                    };
                    let (a, b) = (operand(fa, m, seed + 1), operand(fb, n, seed + 2));
                    let c = addends(m, n, seed + 3);
                    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
                    let problem = problem.with_accumulation(chain(core)).unwrap();
                    let what = format!("{core} {fa}×{fb} {kind} {m}×{n}×{k}");
                    conforms(&what, &problem);
                    conforms(&format!("{what} + C"), &problem.with_addend(c.view()).unwrap());
                    let promoted = problem.with_accumulation(chain(core).promote_every(48).unwrap()).unwrap();
                    conforms(&format!("{what} promoted + C"), &promoted.with_addend(c.view()).unwrap());
                }
            }
        }
    }
}

#[test]
fn mx_block_scales() {
    for format in [Format::E4M3, Format::E5M2, Format::E3M2, Format::E2M3, Format::E2M1] {
        for (i, scales) in MX_SCALES.iter().enumerate() {
            for k in [1, 32, 33, 330] {
                let (a, b) = (mx(format, 5, k, 9, scales), mx(Format::E4M3, 70, k, 10, scales));
                let c = addends(5, 70, 11);
                let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
                let problem = problem.with_accumulation(Accumulation::BLACKWELL_MX).unwrap();
                let what = format!("mx {format} scales {i} k {k}");
                conforms(&what, &problem);
                conforms(&format!("{what} + C"), &problem.with_addend(c.view()).unwrap());
                let promoted = Accumulation::BLACKWELL_MX.promote_every(64).unwrap();
                let problem = problem.with_accumulation(promoted).unwrap();
                conforms(&format!("{what} promoted + C"), &problem.with_addend(c.view()).unwrap());
            }
        }
    }
    // Without scales, and scales outside of other models.
    let (a, b) = (unscaled(Format::E2M3, 5, 100, 1), unscaled(Format::E5M2, 70, 100, 2));
    for core in [TensorCore::BLACKWELL_MX, TensorCore::BLACKWELL] {
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(chain(core)).unwrap();
        conforms(core.name(), &problem);
    }
    let (a, b) = (e8m0(Format::E4M3, 5, 100, 1), e8m0(Format::E5M2, 70, 100, 2));
    let hopper = GemmProblem::nt(a.view(), b.view()).unwrap().with_arithmetic(&"hopper".parse().unwrap());
    conforms("hopper with e8m0", &hopper.unwrap());
}

#[test]
fn fp4_groups() {
    for k in [1, 15, 16, 17, 64, 65, 100, 330] {
        let c = addends(5, 70, 12);
        for (i, scales) in MX_SCALES.iter().enumerate() {
            let (a, b) = (mx(Format::E2M1, 5, k, 9, scales), mx(Format::E2M1, 70, k, 10, scales));
            let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
            let problem = problem.with_accumulation(Accumulation::BLACKWELL_FP4).unwrap();
            conforms(&format!("mxfp4 scales {i} k {k}"), &problem);
            conforms(&format!("mxfp4 scales {i} k {k} + C"), &problem.with_addend(c.view()).unwrap());
        }
        // Zero scales among them; with a scale of the tensor no addend.
        for tensor in [1.0, 0.3] {
            let (a, b) = (nvfp4(5, k, 1, tensor), nvfp4(70, k, 2, 1.0));
            let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
            let bare = problem.with_accumulation(Accumulation::BLACKWELL_FP4).unwrap();
            conforms(&format!("nvfp4 {tensor} k {k}"), &bare);
            let promoted =
                problem.with_accumulation(Accumulation::BLACKWELL_FP4.promote_every(32).unwrap()).unwrap();
            conforms(&format!("nvfp4 {tensor} k {k} + C"), &promoted.with_addend(c.view()).unwrap());
        }
        let zeros = chosen(Format::E2M1, 5, k, 3, &|v| v == 0.0);
        let Codes::Bytes(zeros) = zeros.codes().clone() else { unreachable!() };
        let scales = nvfp4(5, k, 4, 1.0).scales().unwrap().clone();
        let zeros = ScaledMatrix::new(Format::E2M1, Codes::Bytes(zeros), Some(scales)).unwrap();
        let b = nvfp4(70, k, 5, 1.0);
        let problem = GemmProblem::nt(zeros.view(), b.view()).unwrap();
        let problem = problem.with_accumulation(Accumulation::BLACKWELL_FP4).unwrap();
        conforms(&format!("zeros k {k} + C"), &problem.with_addend(c.view()).unwrap());
    }
}

/// Every F and many L, around the widths at which a kernel gives way to the next; where none is wide enough the
/// backend says so, and the problem falls to the reference.
#[test]
fn custom_cores() {
    let (m, n, k) = (5, 33, 150);
    let c = addends(m, n, 50);
    let (mut ran, mut refused) = (0, 0);
    let emulated = Engine::by_name("emulated").unwrap();
    let mut try_all = |base: TensorCore, a: &ScaledMatrix, b: &ScaledMatrix, steps: &[usize]| {
        for f in 0..=38 {
            for &step in steps {
                let result =
                    if (f as usize + step).is_multiple_of(2) { StepResult::F32 } else { StepResult::E8M13 };
                let core = base.customized(step, f, result).unwrap();
                let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
                let problem = problem.with_accumulation(chain(core)).unwrap();
                let problem = problem.with_addend(c.view()).unwrap();
                let what = format!("{} L {step} F {f} {result:?}", base.name());
                if emulated.plan_gemm(&problem).is_ok() {
                    conforms(&what, &problem);
                    ran += 1;
                } else {
                    assert_eq!(Engine::cpu().plan_gemm(&problem).unwrap().backend(), "reference");
                    refused += 1;
                }
            }
        }
    };
    let (a, b) = (unscaled(Format::E5M2, m, k, 1), unscaled(Format::E4M3, n, k, 2));
    try_all(TensorCore::HOPPER, &a, &b, &[1, 8, 33, 64, 1024]);
    try_all(TensorCore::BLACKWELL_MMA, &a, &b, &[5, 32, 128]);
    try_all(TensorCore::HOPPER_MMA, &a, &b, &[1, 2, 3, 7, 64]);
    let (a, b) = (mx(Format::E4M3, m, k, 3, &[100, 127, 140]), mx(Format::E2M3, n, k, 4, &[100, 127, 140]));
    try_all(TensorCore::BLACKWELL_MX, &a, &b, &[4, 16, 24, 64]);
    let (a, b) = (nvfp4(m, k, 5, 1.0), nvfp4(n, k, 6, 1.0));
    try_all(TensorCore::BLACKWELL_FP4, &a, &b, &[16, 48, 128]);
    // MX steps of 24 and 64 do not keep to blocks of 32, and eight FP4 groups do not fit with F of 37 and 38.
    assert_eq!(refused, 2 * 39 + 2, "of {}", ran + refused);
}

/// More rows and columns than one block of D.
#[test]
fn shapes_beyond_one_block() {
    for (m, n, core) in [(530, 70, TensorCore::HOPPER), (9, 1100, TensorCore::BLACKWELL)] {
        let a = scaled(Format::E4M3, m, 200, Granule::TILE_1X128, 3);
        let b = scaled(Format::E4M3, n, 200, Granule::BLOCK_128X128, 4);
        let accumulation = chain(core).promote_every(128).unwrap();
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
        conforms(&format!("{m}×{n} {accumulation}"), &problem);
    }
}

/// Rows of A that do not begin at a granule, as grouped problems make them.
#[test]
fn grouped_problems() {
    let k = 300;
    let a = scaled(Format::E4M3, 90, k, Granule::new(3, 128).unwrap(), 41);
    let experts: Vec<_> =
        (0..3).map(|g| scaled(Format::E4M3, 70, k, Granule::BLOCK_128X128, 50 + g)).collect();
    let experts: Vec<_> = experts.iter().map(ScaledMatrix::view).collect();
    let groups: Vec<i32> = (0..90).map(|i| [2, 2, 0, -1, 1, 1, 1, 2, 2][i / 10]).collect();
    let problem = GroupedProblem::contiguous(a.view(), &groups, &experts).unwrap();
    let problem = problem.with_arithmetic(&"hopper".parse().unwrap()).unwrap();
    for part in problem.parts() {
        conforms("contiguous", part.problem());
    }
    conforms("contiguous", &problem);
}

/// NVIDIA's run here; AMD's are refused with their reason.
#[test]
fn what_runs_here_is_said() {
    let emulated = Engine::by_name("emulated").unwrap();
    for &core in TensorCore::ALL {
        let format = core.operands()[0];
        let scales = match core.scales() {
            BlockScales::None => None,
            BlockScales::Mx | BlockScales::Fp4 => e8m0(format, 3, 64, 1).scales().cloned(),
        };
        let x = ScaledMatrix::new(format, codes(format, 3, 64, 1, f32::is_finite), scales).unwrap();
        let problem = GemmProblem::nt(x.view(), x.view()).unwrap().with_accumulation(chain(core)).unwrap();
        let fused = matches!(core.sum(), StepSum::Fused | StepSum::FusedInTwo);
        match emulated.plan_gemm(&problem) {
            Ok(_) => assert!(fused),
            Err(e) => {
                assert!(e.to_string().contains(&format!("does not sum the steps of {core}")), "{e}");
                assert!(!fused);
            }
        }
        let engine = Engine::cpu();
        let chosen = engine.plan_gemm(&problem).unwrap().backend();
        assert_eq!(chosen == "emulated", fused, "{}", core.name());
    }
    let x = unscaled(Format::E4M3, 3, 64, 1);
    let problem = GemmProblem::nt(x.view(), x.view()).unwrap();
    let refusal = emulated.plan_gemm(&problem).unwrap_err().to_string();
    assert!(refusal.contains("as tensor cores do, not as f32/128"), "{refusal}");
    assert_eq!(TensorCore::BLACKWELL_MMA.addend(), Addend::Late);
}
