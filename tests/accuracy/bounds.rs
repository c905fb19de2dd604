//! The rigorous bound, attacked: no result may lie beyond it, and some must come close.

use crate::common::operands::{Random, of_values};
use finegrain::Engine;
use finegrain::accuracy::{OutputFormat, bound};
use finegrain::formats::{Format, Unpacked};
use finegrain::gemm::{Accumulation, Arithmetic, BlockScales, GemmProblem, Model, Promotion, TensorCore};
use finegrain::matrix::Matrix;
use finegrain::quant::{Quantizer, Recipe};
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};

const REFERENCE: Engine<'static> = Engine::reference();

/// Every model, and custom ones that differ in each parameter.
fn models() -> Vec<Model> {
    let custom = [
        "hopper:terms=nearest",
        "hopper:round=nearest",
        "hopper:f=10,result=e8m10,terms=nearest,round=nearest",
        "hopper:addend=late",
        "hopper:result=f32",
        "hopper:l=1,f=7",
        "blackwell:l=100,f=38",
        "blackwell:f=0,result=e8m3",
        "ampere:terms=nearest,addend=late,round=nearest",
        "blackwell-mma:terms=nearest",
        "blackwell-fp4:f=9,terms=nearest",
        "blackwell-mx:l=7,f=12,result=e8m13",
        "hopper:result=f16",
        "hopper-f16:result=f16",
        "hopper-mma:result=f16",
        "ada:result=f16,round=zero",
        "hopper-mma:addend=early,terms=nearest",
    ];
    let cores = TensorCore::ALL.iter().map(|&core| Model::TensorCore(core));
    let custom = custom.iter().map(|name| name.parse::<Model>().unwrap());
    [Model::F32, Model::Exact].into_iter().chain(cores).chain(custom).collect()
}

fn formats(model: Model) -> Vec<(Format, Format)> {
    match model {
        Model::TensorCore(core) => {
            let all = core.operands();
            all.iter()
                .zip(all.iter().cycle().skip(1))
                .map(|(&a, &b)| (a, b))
                .chain([(all[0], all[0])])
                .collect()
        }
        _ => vec![
            (Format::E4M3, Format::E4M3),
            (Format::E5M2, Format::E4M3),
            (Format::Bf16, Format::E5M2),
            (Format::Bf16, Format::Bf16),
            (Format::E5M6, Format::E5M6),
        ],
    }
}

fn block(model: Model) -> BlockScales {
    match model {
        Model::TensorCore(core) => core.scales(),
        _ => BlockScales::None,
    }
}

/// Rows of codes of one kind each.
fn row(format: Format, k: usize, kind: u64, random: &mut Random) -> Vec<u32> {
    let spec = format.spec();
    let (top, sign) = (spec.max_code(), spec.sign_mask());
    let one = spec.encode(Unpacked::power_of_two(0)).unwrap();
    let fraction = (1u64 << spec.mantissa_bits) - 1;
    let finite = |random: &mut Random| random.below(top + 1) | if random.below(2) == 1 { sign } else { 0 };
    let code = |j: usize, random: &mut Random| match kind {
        // One huge and many tiny of one sign, whose last bits are all set.
        1 if j == 0 => top,
        1 => ((one / 2) & !fraction) | fraction,
        // Large at the end.
        2 if j + 1 == k => top,
        2 => one.saturating_sub(random.below(4) << spec.mantissa_bits) & !fraction | fraction,
        // Pairs that cancel.
        3 => (random.below(top + 1) & !1) | if j % 2 == 1 { sign } else { 0 },
        // Subnormals.
        4 => random.below(fraction + 1) | if random.below(2) == 1 { sign } else { 0 },
        // One sign, one binade.
        5 => one | random.below(fraction + 1),
        // Sparse.
        6 if random.below(8) != 0 => 0,
        _ => finite(random),
    };
    (0..k).map(|j| code(j, random) as u32).collect()
}

fn codes(format: Format, rows: Vec<Vec<u32>>) -> Codes {
    let (m, k) = (rows.len(), rows[0].len());
    let codes = Matrix::from_vec(m, k, rows.concat()).unwrap();
    Codes::new(format, &codes)
}

/// Rows of every kind, with the scales that the model takes; `wild` spreads them over the whole range.
fn operand(
    format: Format,
    model: Model,
    granule: Option<Granule>,
    k: usize,
    wild: bool,
    seed: u64,
) -> ScaledMatrix {
    let mut random = Random(seed | 1);
    let rows = (0..8).map(|kind| row(format, k, kind, &mut random)).collect();
    let grid = |g: Granule| g.grid(8, k);
    let scales = match (block(model), granule) {
        (BlockScales::Fp4, Some(_)) => {
            let g = Granule::NVFP4_1X16;
            let grid = Matrix::from_fn(grid(g).0, grid(g).1, |_, _| random.below(0x7F) as u8);
            Some(Scales { granule: g, grid: ScaleGrid::E4M3(grid), tensor: if wild { 3.25e-7 } else { 1.0 } })
        }
        (BlockScales::Mx | BlockScales::Fp4, _) => {
            let g = Granule::MX_1X32;
            let around = if wild { 255 } else { 15 };
            let byte = |_, _| (127 - around / 2 + random.below(around)) as u8;
            Some(Scales {
                granule: g,
                grid: ScaleGrid::E8M0(Matrix::from_fn(grid(g).0, grid(g).1, byte)),
                tensor: 1.0,
            })
        }
        (BlockScales::None, Some(g)) => {
            let fields = if wild { 1..230 } else { 124..131 };
            let scale = |_, _| {
                let field = fields.start + random.below(fields.end - fields.start);
                f32::from_bits(((field << 23) | random.below(1 << 23)) as u32)
            };
            Some(Scales {
                granule: g,
                grid: ScaleGrid::F32(Matrix::from_fn(grid(g).0, grid(g).1, scale)),
                tensor: 1.0,
            })
        }
        (BlockScales::None, None) => None,
    };
    ScaledMatrix::new(format, codes(format, rows), scales).unwrap()
}

/// The share of its bound that a problem reaches in f32, and the elements without a bound; beyond it is a failure.
fn in_f32(problem: &GemmProblem<'_>, what: &str) -> (f64, usize) {
    let check = bound(problem, OutputFormat::F32).check(REFERENCE.gemm(problem).unwrap().view()).unwrap();
    assert_eq!(check.violations, 0, "{what}, {}: {check:?}", problem.accumulation());
    assert!(check.worst <= 1.0);
    (check.worst, check.unbounded)
}

/// The same with the result stored in BF16 held to its bound too.
fn worst(problem: &GemmProblem<'_>, what: &str) -> (f64, usize) {
    let d = REFERENCE.gemm_bf16(problem).unwrap();
    let check = bound(problem, OutputFormat::Bf16).check(d.view()).unwrap();
    assert_eq!(check.violations, 0, "{what}, {}, bf16: {check:?}", problem.accumulation());
    let d = REFERENCE.gemm_f16(problem).unwrap();
    let check = bound(problem, OutputFormat::F16).check(d.view()).unwrap();
    assert_eq!(check.violations, 0, "{what}, {}, f16: {check:?}", problem.accumulation());
    in_f32(problem, what)
}

/// Every model, format, kind of row, promotion order, interval, addend and output.
#[test]
fn no_result_lies_beyond_its_bound() {
    const K: usize = 300;
    let (mut elements, mut unbounded) = (0, 0);
    for model in models() {
        for (at, (fa, fb)) in formats(model).into_iter().enumerate() {
            for (granules, wild) in [
                (None, false),
                (Some(Granule::TILE_1X128), false),
                (Some(Granule::TILE_1X128), true),
                (Some(Granule::TENSOR), false),
            ] {
                let a = operand(fa, model, granules, K, wild, 11 + at as u64);
                let b = operand(fb, model, granules, K, wild, 97 + at as u64);
                let mut random = Random(5);
                let c = Matrix::from_fn(8, 8, |i, _| {
                    let field = if i % 2 == 0 { 120 + random.below(20) } else { random.below(200) };
                    f32::from_bits((random.below(2) << 31 | field << 23 | random.below(1 << 23)) as u32)
                });
                let chain = Accumulation::new(model);
                let mut accumulations = vec![chain];
                for &order in Promotion::ALL {
                    accumulations
                        .extend([32, 64, 128].map(|n| chain.promote_every(n).unwrap().with_promotion(order)));
                    let split =
                        |parts: &str| chain.with_promotion(order).with_split_k(parts.parse().unwrap());
                    accumulations.extend([split("1"), split("2"), split("3").promote_every(32).unwrap()]);
                }
                let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
                for accumulation in accumulations {
                    let Ok(problem) = problem.with_accumulation(accumulation) else { continue };
                    let what = format!("{fa} x {fb}, scales {granules:?}, wild {wild}");
                    let mut problems = vec![problem];
                    problems.extend(problem.with_addend(c.view()).ok());
                    for problem in problems {
                        unbounded += worst(&problem, &what).1;
                        elements += 64;
                    }
                }
            }
        }
    }
    println!("{elements} elements within their bounds, {unbounded} of them may overflow");
    assert!(elements > 50_000 && unbounded * 4 < elements, "{elements}, {unbounded}");
}

/// One dot product of K elements: codes, and a scale for every 32 of them where there is a use for it.
#[derive(Clone)]
struct Dot {
    codes: [Vec<u32>; 2],
    scales: [Vec<u8>; 2],
}

impl Dot {
    fn start(formats: [Format; 2], k: usize, kind: u64, random: &mut Random) -> Dot {
        let codes = formats.map(|f| row(f, k, kind, random));
        let blocks = Granule::MX_1X32.grid(1, k).1;
        Dot { codes, scales: [vec![127; blocks], vec![127; blocks]] }
    }

    /// Changes one to four places: a random code, a code from elsewhere in the row, or a scale.
    fn mutate(&mut self, formats: [Format; 2], random: &mut Random) {
        for _ in 0..=random.below(3) {
            let side = random.below(2) as usize;
            let (spec, codes) = (formats[side].spec(), &mut self.codes[side]);
            let place = |random: &mut Random| random.below(codes.len() as u64) as usize;
            let (at, from) = (place(random), place(random));
            codes[at] = match random.below(3) {
                0 => codes[from],
                _ => (random.below(spec.max_code() + 1) | (random.below(2) * spec.sign_mask())) as u32,
            };
            if random.below(4) == 0 {
                let scales = &mut self.scales[side];
                let block = random.below(scales.len() as u64) as usize;
                scales[block] = 107 + random.below(41) as u8;
            }
        }
    }

    /// The share of its bound that it reaches. Scales are the model's own, or those that promotion applies.
    fn share(&self, accumulation: Accumulation, formats: [Format; 2]) -> f64 {
        let operand = |side: usize| {
            let bytes = Matrix::from_vec(1, self.scales[side].len(), self.scales[side].clone()).unwrap();
            let grid = match (block(accumulation.model()), accumulation.interval()) {
                (BlockScales::None, None) => None,
                (BlockScales::None, Some(_)) => Some(ScaleGrid::F32(bytes.map(|&s| f32::from(s) / 91.0))),
                _ => Some(ScaleGrid::E8M0(bytes)),
            };
            let scales = grid.map(|grid| Scales { granule: Granule::MX_1X32, grid, tensor: 1.0 });
            ScaledMatrix::new(formats[side], codes(formats[side], vec![self.codes[side].clone()]), scales)
                .unwrap()
        };
        let (a, b) = (operand(0), operand(1));
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
        in_f32(&problem, &format!("{a:?} {b:?}")).0
    }
}

/// Climbs from rows of every kind: mutates codes and scales and keeps what brings the result closer to its bound. The
/// bound must hold all the way; gives the largest share of it that was reached.
fn climb(accumulation: Accumulation, moves: usize) -> f64 {
    const K: usize = 96;
    let formats: [Format; 2] = formats(accumulation.model())[0].into();
    let mut best = 0.0f64;
    for start in 0..8 {
        let mut random = Random(0xC11B + start);
        let mut dot = Dot::start(formats, K, start, &mut random);
        let mut reached = dot.share(accumulation, formats);
        for _ in 0..moves {
            let mut next = dot.clone();
            next.mutate(formats, &mut random);
            let found = next.share(accumulation, formats);
            if found >= reached {
                (dot, reached) = (next, found);
            }
        }
        best = best.max(reached);
    }
    println!("{accumulation}: {best:.3} of the bound");
    best
}

#[test]
fn climbing_comes_close_to_the_bound_of_a_chain() {
    for model in models() {
        let best = climb(model.into(), 400);
        assert!(best > 0.9, "{model}: no more than {best} of the bound was reached");
    }
}

#[test]
fn climbing_comes_close_to_the_bound_with_promotion() {
    for model in [
        Model::F32,
        Model::Exact,
        "hopper".parse::<Model>().unwrap(),
        "blackwell-mma".parse::<Model>().unwrap(),
    ] {
        for &order in Promotion::SCALING_PARTIALS {
            let best = climb(Accumulation::new(model).promote_every(32).unwrap().with_promotion(order), 250);
            assert!(best > 0.5, "{model}, {order}: no more than {best} of the bound was reached");
        }
    }
}

/// Quantised bell-shaped data, where errors of both signs cancel: below the bound by the factor that chance is below
/// the worst case, and no more.
#[test]
fn random_data_stays_within_sight_of_the_bound() {
    let mut random = Random(3);
    let mut bell = |_, _| (0..12).map(|_| random.below(1 << 20) as f32 / (1 << 20) as f32).sum::<f32>() - 6.0;
    let quantizer = Quantizer::new(Recipe::DEEPSEEK_V3);
    let a = quantizer.activation(Matrix::from_fn(64, 1024, &mut bell).view()).unwrap().matrix;
    let b = quantizer.weight(Matrix::from_fn(64, 1024, &mut bell).view()).unwrap().matrix;
    for (name, at_least) in [("f32/128", 0.02), ("hopper/128", 0.05), ("ada/128", 0.05), ("exact/128", 0.1)] {
        let arithmetic: Arithmetic = name.parse().unwrap();
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_arithmetic(&arithmetic).unwrap();
        let (share, _) = worst(&problem, name);
        println!("{name}: {share:.3} of the bound");
        assert!(share > at_least, "{name}: {share}");
    }
}

/// Where every product is cut as far as it can be, the result lies on its bound.
#[test]
fn the_bound_is_reached() {
    // 2^13 and 31 products just below its last bit in Hopper: all are lost.
    let mut a = vec![0.9375f32; 32];
    a[0] = 128.0;
    let mut b = a.clone();
    b[0] = 64.0;
    let hopper =
        GemmProblem::nt(of_values(Format::E4M3, 1, 32, &a).view(), of_values(Format::E4M3, 1, 32, &b).view())
            .unwrap()
            .with_accumulation(Accumulation::HOPPER)
            .map(|p| bound(&p, OutputFormat::F32).check(p.run().unwrap().view()).unwrap())
            .unwrap();
    assert!(hopper.worst > 0.999 && hopper.violations == 0, "{hopper:?}");
    // 2^16 and products just below half its last bit in f32.
    let mut a = vec![2f32.powi(-6) * 1.875; 128];
    let mut b = vec![2f32.powi(-4) * 1.875; 128];
    (a[0], b[0]) = (256.0, 256.0);
    let a = of_values(Format::E4M3, 1, 128, &a);
    let b = of_values(Format::E4M3, 1, 128, &b);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(Accumulation::F32).unwrap();
    let f32 = bound(&problem, OutputFormat::F32).check(problem.run().unwrap().view()).unwrap();
    assert!(f32.worst > 0.8 && f32.violations == 0, "{f32:?}");
}

/// The exact value is that of the exact model to f64, and the error in it is allowed for.
#[test]
fn exact_values_are_exact() {
    let a = of_values(Format::E4M3, 1, 4, &[448.0, 0.015625, -448.0, 3.0]);
    let b = of_values(Format::E4M3, 1, 4, &[448.0, 0.015625, 448.0, 0.5]);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    assert_eq!(bound(&problem, OutputFormat::F32).exact.row(0), [1.5 + 2f64.powi(-12)]);
}

#[test]
fn nothing_is_promised_where_a_result_may_overflow_or_is_no_number() {
    let scales = |s: f32| {
        Some(Scales {
            granule: Granule::ROW,
            grid: ScaleGrid::F32(Matrix::from_vec(2, 1, vec![s, 1.0]).unwrap()),
            tensor: 1.0,
        })
    };
    let ones = || Codes::Bytes(Matrix::filled(2, 4, 0x38u8));
    let a = ScaledMatrix::new(Format::E4M3, ones(), scales(3e38)).unwrap();
    let b = ScaledMatrix::new(Format::E4M3, ones(), scales(2.0)).unwrap();
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    let overflow = bound(&problem, OutputFormat::F32);
    assert_eq!(overflow.bound.row(0), [f64::INFINITY, f64::INFINITY]);
    assert!(overflow.bound.row(1).iter().all(|b| b.is_finite()));
    assert_eq!(overflow.exact.row(1), [8.0, 4.0]);
    assert!(overflow.exact.row(0).iter().all(|e| e.is_finite()), "E is a number even where D is none");

    let mut codes = Matrix::filled(2, 4, 0x38u8);
    codes.row_mut(0)[2] = 0x7F;
    let nan = ScaledMatrix::new(Format::E4M3, Codes::Bytes(codes), None).unwrap();
    let b = ScaledMatrix::new(Format::E4M3, ones(), None).unwrap();
    let problem = GemmProblem::nt(nan.view(), b.view()).unwrap();
    let bound = bound(&problem, OutputFormat::F32);
    assert!(bound.exact.row(0).iter().all(|e| e.is_nan()) && bound.exact.row(1) == [4.0, 4.0]);
    let check = bound.check(problem.run().unwrap().view()).unwrap();
    assert_eq!((check.unbounded, check.violations), (2, 0));
    // A wrong result is told from a right one.
    let mut wrong = problem.run().unwrap();
    wrong.row_mut(1)[1] += 1e-3;
    let check = bound.check(wrong.view()).unwrap();
    assert_eq!((check.violations, check.at), (1, (1, 1)));
    assert!(bound.check(wrong.view().row_range(0, 1)).unwrap_err().to_string().contains("1×2"));
}
