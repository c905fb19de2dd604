//! Split-K and scales that come last: the reference is the formula, and every backend on every instruction set is the
//! reference.

use crate::common::isas::available;
use crate::common::operands::{Random, codes, e8m0, scaled, unscaled};
use crate::conforming::{chosen, conforms};
use finegrain::Engine;
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, GroupedProblem, Model, Promotion, SplitK, TensorCore};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};

const REFERENCE: Engine<'static> = Engine::reference();

fn models() -> [Model; 5] {
    ["f32", "exact", "hopper", "blackwell-mma", "hopper-mma"].map(|name| name.parse().unwrap())
}

/// Columns of codes, without scales.
fn columns(x: &ScaledMatrix, k: std::ops::Range<usize>) -> ScaledMatrix {
    let (rows, cols) = (x.shape().0, k.len());
    let codes = Matrix::from_fn(rows, cols, |i, j| x.codes().view().at(i, k.start + j));
    ScaledMatrix::new(x.format(), Codes::new(x.format(), &codes), None).unwrap()
}

/// Clause 9 in f32 operations, from the chains of the intervals.
fn formula(
    accumulation: Accumulation,
    (a, b): (&ScaledMatrix, &ScaledMatrix),
    c: Option<&Matrix<f32>>,
) -> Matrix<f32> {
    let (k, chain) = (a.shape().1, Accumulation::new(accumulation.model()));
    let unit = accumulation.split_unit();
    let order = accumulation.promotion();
    let parts = accumulation.split_k().ranges(k, unit).unwrap();
    let length = accumulation.interval().map_or(usize::MAX, |n| n.get());
    let scaled = a.scales().is_some() || b.scales().is_some();
    let by_rows = a.scales().is_some_and(|s| s.granule != Granule::TENSOR);
    let sums = |k: std::ops::Range<usize>| {
        let (a, b) = (columns(a, k.clone()), columns(b, k));
        REFERENCE
            .gemm(&GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(chain).unwrap())
            .unwrap()
    };
    let (m, n) = (a.shape().0, b.shape().0);
    let mut d: Option<Matrix<f32>> = None;
    for part in parts {
        let mut acc = Matrix::filled(m, n, 0.0f32);
        for start in part.clone().step_by(length) {
            let partial = sums(start..part.end.min(start.saturating_add(length)));
            acc = Matrix::from_fn(m, n, |i, j| {
                let (p, sum) = (partial[(i, j)], acc[(i, j)]);
                let (sa, sb) = (a.view().scale_at(i, start), b.view().scale_at(j, start));
                match (accumulation.interval(), order) {
                    (None, _) => p,
                    (_, Promotion::ScalesFirst) => f32::mul_add(sa * sb, p, sum),
                    (_, Promotion::PartialFirst) => f32::mul_add(p * sa, sb, sum),
                    (_, Promotion::ScalesLast) => sum + p,
                    (_, Promotion::Unfused) => sum + p * sa * sb,
                }
            });
        }
        d = Some(match d {
            None => acc,
            Some(d) => Matrix::from_fn(m, n, |i, j| d[(i, j)] + acc[(i, j)]),
        });
    }
    let d = d.unwrap();
    Matrix::from_fn(m, n, |i, j| {
        let (sa, sb) = (a.view().scale_at(i, 0), b.view().scale_at(j, 0));
        let mut x = d[(i, j)];
        match order {
            // Scales of rows multiply in turn.
            Promotion::ScalesLast if by_rows => x = x * sb * sa,
            Promotion::ScalesLast => x *= sa * sb,
            _ if accumulation.interval().is_some() || !scaled => {}
            Promotion::ScalesFirst => x = f32::mul_add(sa * sb, x, 0.0),
            Promotion::PartialFirst => x = f32::mul_add(x * sa, sb, 0.0),
            Promotion::Unfused => x = 0.0 + x * sa * sb,
        }
        if let Some(c) = c {
            x += c[(i, j)];
        }
        if x.is_nan() { f32::from_bits(0x7FC0_0000) } else { x }
    })
}

fn bits(x: &Matrix<f32>) -> Vec<u32> {
    x.as_slice().iter().map(|x| x.to_bits()).collect()
}

/// Every model, order and interval with parts of every kind, scaled and not, with an addend and without.
#[test]
fn the_reference_is_the_formula() {
    let (m, n, k) = (4, 5, 700);
    let c = Matrix::from_fn(m, n, |i, j| (i as f32 - j as f32) / 3.0);
    let splits = ["1", "2", "3", "6", "100", "0,128", "0,128,640"].map(|s| s.parse::<SplitK>().unwrap());
    let mut compared = 0;
    for granule in [None, Some(Granule::ROW), Some(Granule::TENSOR), Some(Granule::TILE_1X128)] {
        let operand = |rows, seed| match granule {
            None => unscaled(Format::E4M3, rows, k, seed),
            Some(granule) => scaled(Format::E4M3, rows, k, granule, seed),
        };
        let (a, b) = (operand(m, 1), operand(n, 2));
        for model in models() {
            for interval in [None, Some(128), Some(64)] {
                for (&order, split) in Promotion::ALL.iter().flat_map(|o| splits.iter().map(move |s| (o, *s)))
                {
                    let accumulation = Accumulation::new(model).with_promotion(order).with_split_k(split);
                    let accumulation = match interval {
                        None => accumulation,
                        Some(n) => accumulation.promote_every(n).unwrap(),
                    };
                    let problem =
                        GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation);
                    let Ok(problem) = problem else {
                        let along_k = interval.is_none() || order == Promotion::ScalesLast;
                        assert!(
                            granule == Some(Granule::TILE_1X128) && along_k,
                            "{accumulation}, {granule:?}"
                        );
                        continue;
                    };
                    let what = format!("{accumulation}, {granule:?}");
                    if !problem.is_bare_chain() {
                        let got = REFERENCE.gemm(&problem).unwrap();
                        assert_eq!(bits(&got), bits(&formula(accumulation, (&a, &b), None)), "{what}");
                        compared += m * n;
                    }
                    // Without promotion, parts and scales last the addend begins the chain.
                    let ends = !split.is_whole() || order == Promotion::ScalesLast;
                    if interval.is_some() || ends {
                        let got = REFERENCE.gemm(&problem.with_addend(c.view()).unwrap()).unwrap();
                        assert_eq!(
                            bits(&got),
                            bits(&formula(accumulation, (&a, &b), Some(&c))),
                            "{what} + C"
                        );
                        compared += m * n;
                    }
                }
            }
        }
    }
    assert!(compared > 30_000, "{compared}");
    println!("parts by the formula: {compared} values compared");
}

/// The backend that computes a model fast.
fn backend(model: Model) -> &'static str {
    match model {
        Model::F32 => "blocked",
        Model::Exact => "cpu",
        Model::TensorCore(_) => "emulated",
    }
}

/// Holds a product to the reference on every instruction set, none of which may refuse it.
fn all_conform(what: &str, problem: &GemmProblem<'_>) {
    let accumulation = problem.accumulation();
    let ran = conforms(backend(accumulation.model()), &format!("{what} {accumulation}"), problem);
    assert_eq!(ran, 2 * available().len(), "{what} {accumulation}: an instruction set refused it");
}

/// Shapes at every edge, any order, interval and parts: few rows and many, K of nothing, parts of one element.
#[test]
fn every_instruction_set_on_ragged_shapes() {
    let rows = [0, 1, 2, 4, 5, 8, 17, 33, 61];
    let cols = [0, 1, 7, 15, 16, 17, 33, 64, 65, 130];
    let depths = [0, 1, 31, 32, 33, 127, 128, 129, 257, 515, 1100];
    let mut random = Random(77);
    for round in 0..150 {
        let mut pick = |from: &[usize]| from[random.below(from.len() as u64) as usize];
        let (m, n, k) = (pick(&rows), pick(&cols), pick(&depths));
        let model = models()[pick(&[0, 0, 1, 2, 2, 3, 4])];
        let order = Promotion::ALL[pick(&[0, 1, 2, 2, 3])];
        let interval = [None, Some(32), Some(64), Some(128)][pick(&[0, 1, 2, 3, 3])];
        let constant = interval.is_none() || order == Promotion::ScalesLast;
        let granule = match constant {
            true => [Granule::ROW, Granule::TENSOR][pick(&[0, 1])],
            false => [Granule::TILE_1X128, Granule::BLOCK_128X128, Granule::ROW][pick(&[0, 1, 2])],
        };
        let (fa, fb) = ([Format::E4M3, Format::E5M2][pick(&[0, 1])], Format::E4M3);
        let mut accumulation = Accumulation::new(model).with_promotion(order);
        if let Some(interval) = interval {
            accumulation = accumulation.promote_every(interval).unwrap();
        }
        let step = accumulation.split_unit() * if k > 500 { 4 } else { 1 };
        // Not inside a granule of scales: that is left to the reference.
        let whole = if constant { 1 } else { 128usize.div_ceil(accumulation.split_unit()) };
        let step = step.next_multiple_of(whole * accumulation.split_unit());
        let split = match pick(&[0, 1, 2, 3]) {
            0 => SplitK::Whole,
            1 => SplitK::at(&(0..k.max(1)).step_by(step).take(5).collect::<Vec<_>>()).unwrap(),
            _ if whole > 1 => SplitK::Whole,
            parts => SplitK::equal(parts + 1).unwrap(),
        };
        let accumulation = accumulation.with_split_k(split);
        let (a, b) = match pick(&[0, 1, 1, 1]) {
            0 => (unscaled(fa, m, k, round), unscaled(fb, n, k, round + 500)),
            _ => (scaled(fa, m, k, granule, round), scaled(fb, n, k, granule, round + 500)),
        };
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
        all_conform(&format!("{m}×{n}×{k} {granule}"), &problem);
        let c = Matrix::from_fn(m, n, |i, j| if (i + j) % 5 == 0 { -0.0 } else { i as f32 - j as f32 });
        if let Ok(problem) = problem.with_addend(c.view()) {
            all_conform(&format!("{m}×{n}×{k} {granule} + C"), &problem);
        }
    }
}

/// Codes and scales at the edges: NaN, infinities, overflow of a part and not of the sum, scales of zero, negative ones.
#[test]
fn values_at_the_edges() {
    let (m, n, k) = (7, 35, 512);
    let extreme = |rows, seed, format: Format| {
        let mut random = Random(seed);
        let scales = [0.0, -1.0, 1e-38, 1e38, 3e-45, f32::INFINITY, f32::NAN, 1.5, -3e-45, 0.3];
        let grid = Matrix::from_fn(rows, 1, |_, _| scales[random.below(10) as usize]);
        let scales = Scales { granule: Granule::ROW, grid: ScaleGrid::F32(grid), tensor: 0.75 };
        ScaledMatrix::new(format, codes(format, rows, k, seed, |_| true), Some(scales)).unwrap()
    };
    let zeros = chosen(Format::E4M3, m, k, 3, &|v| v == 0.0);
    let c = Matrix::from_fn(m, n, |i, j| [0.0, -0.0, f32::MAX, f32::NAN, 1e-45][(i + j) % 5]);
    for model in models() {
        for (a, b) in [
            (extreme(m, 1, Format::E4M3), extreme(n, 2, Format::E4M3)),
            (extreme(m, 3, Format::E5M2), extreme(n, 4, Format::E5M2)),
            (zeros.clone(), extreme(n, 5, Format::E4M3)),
            (chosen(Format::E5M2, m, k, 6, &|_| true), chosen(Format::E5M2, n, k, 7, &|v| v.abs() > 1e4)),
        ] {
            for &order in Promotion::ALL {
                for interval in [None, Some(128)] {
                    for split in ["1", "2", "0,128,384"] {
                        let accumulation = Accumulation::new(model)
                            .with_promotion(order)
                            .with_split_k(split.parse().unwrap());
                        let accumulation = match interval {
                            None => accumulation,
                            Some(n) => accumulation.promote_every(n).unwrap(),
                        };
                        let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
                        let problem = problem.with_accumulation(accumulation).unwrap();
                        all_conform("edges", &problem);
                        if let Ok(problem) = problem.with_addend(c.view()) {
                            all_conform("edges + C", &problem);
                        }
                    }
                }
            }
        }
    }
}

/// Parts of models that apply block scales themselves, and of subnormal products that only fused multiply-adds keep.
#[test]
fn block_scales_and_bf16() {
    let (a, b) = (e8m0(Format::E4M3, 6, 330, 9), e8m0(Format::E5M2, 50, 330, 10));
    let mx = |text: &str| text.parse::<Accumulation>().unwrap();
    for text in [
        "blackwell-mx/none/split-k=3",
        "blackwell-mx/64/split-k=2",
        "blackwell-mx/none/scales-last",
        "f32/32/split-k=0,32,320",
    ] {
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(mx(text)).unwrap();
        all_conform("mx", &problem);
    }
    let (a, b) = (unscaled(Format::Bf16, 9, 260, 31), unscaled(Format::Bf16, 20, 260, 32));
    for text in ["f32/none/split-k=2", "f32/64/scales-last/split-k=0,64", "f32/none/scales-last"] {
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(mx(text)).unwrap();
        assert!(conforms("cpu", text, &problem) == 2 * available().len());
    }
}

/// A part that begins inside a granule of scales and goes beyond is the reference's: the others refuse it, and what chooses
/// among them gives the bits.
#[test]
fn parts_inside_a_granule() {
    let a = scaled(Format::E4M3, 5, 700, Granule::TILE_1X128, 1);
    let b = scaled(Format::E4M3, 20, 700, Granule::BLOCK_128X128, 2);
    let inside: Accumulation = "f32/64/split-k=0,192".parse().unwrap();
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(inside).unwrap();
    assert_eq!(conforms("blocked", "inside", &problem), 0);
    assert_eq!(conforms("cpu", "inside", &problem), 2 * available().len());
    // A last part that ends in it is its own granule.
    let ends: Accumulation = "f32/64/split-k=0,640".parse().unwrap();
    all_conform("ends", &problem.with_accumulation(ends).unwrap());
}

#[test]
fn grouped_products() {
    let k = 512;
    let a = scaled(Format::E4M3, 90, k, Granule::ROW, 41);
    let experts: Vec<_> = (0..3).map(|g| scaled(Format::E4M3, 70, k, Granule::TENSOR, 50 + g)).collect();
    let experts: Vec<_> = experts.iter().map(ScaledMatrix::view).collect();
    let groups: Vec<i32> = (0..90).map(|i| [2, 2, 0, -1, 1, 1, 1, 2, 2][i / 10]).collect();
    let c = Matrix::from_fn(90, 70, |i, j| i as f32 - j as f32);
    let stack: Vec<_> = (0..3).map(|g| scaled(Format::E4M3, 6, k, Granule::ROW, 60 + g)).collect();
    let stack: Vec<_> = stack.iter().map(ScaledMatrix::view).collect();
    let along: Vec<_> = [(640, 1), (0, 2), (200, 3)]
        .map(|(k, seed)| {
            (
                scaled(Format::E4M3, 6, k, Granule::ROW, seed),
                scaled(Format::E4M3, 9, k, Granule::ROW, seed + 9),
            )
        })
        .into();
    let (x, y): (Vec<_>, Vec<_>) = along.iter().map(|(x, y)| (x.view(), y.view())).unzip();
    for text in [
        "hopper/none/split-k=2",
        "hopper/128/scales-last",
        "f32/128/scales-last/split-k=3",
        "exact/128/split-k=2",
        "f32/none/partial-first/split-k=2",
    ] {
        let accumulation: Accumulation = text.parse().unwrap();
        let sets = 2 * available().len();
        let named = backend(accumulation.model());
        let contiguous = GroupedProblem::contiguous(a.view(), &groups, &experts).unwrap();
        let contiguous = contiguous.with_accumulation(accumulation).unwrap();
        assert_eq!(conforms(named, text, &contiguous), sets, "{text}");
        assert_eq!(conforms("cpu", text, &contiguous.with_addend(c.view()).unwrap()), sets, "{text}");
        let masked = GroupedProblem::masked(&stack, &[6, 0, 3], &experts).unwrap();
        assert_eq!(conforms(named, text, &masked.with_accumulation(accumulation).unwrap()), sets, "{text}");
        let k_grouped = GroupedProblem::k_grouped(&x, &y).unwrap();
        assert_eq!(
            conforms(named, text, &k_grouped.with_accumulation(accumulation).unwrap()),
            sets,
            "{text}"
        );
    }
}

/// With scales that are powers of two and sums that f32 holds, orders and parts do not matter.
#[test]
fn exact_sums_do_not_depend_on_order_or_parts() {
    let ones = |rows| chosen(Format::E4M3, rows, 768, rows as u64, &|v| v.abs() == 1.0);
    let with = |x: ScaledMatrix, scale: f32| {
        let scales = Scales {
            granule: Granule::TENSOR,
            grid: ScaleGrid::F32(Matrix::filled(1, 1, scale)),
            tensor: 1.0,
        };
        ScaledMatrix::new(x.format(), x.codes().clone(), Some(scales)).unwrap()
    };
    let (a, b) = (with(ones(6), 0.25), with(ones(40), 8.0));
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    let want = bits(&problem.run().unwrap());
    for core in [Model::F32, Model::TensorCore(TensorCore::HOPPER)] {
        for &order in Promotion::ALL {
            for split in ["1", "2", "5", "0,128,640"] {
                for interval in [None, Some(128)] {
                    let accumulation = Accumulation::new(core).with_promotion(order);
                    let accumulation = accumulation.with_split_k(split.parse().unwrap());
                    let accumulation = match interval {
                        None => accumulation,
                        Some(n) => accumulation.promote_every(n).unwrap(),
                    };
                    let d = problem.with_accumulation(accumulation).unwrap().run().unwrap();
                    assert_eq!(bits(&d), want, "{accumulation}");
                }
            }
        }
    }
}
