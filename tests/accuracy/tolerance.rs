//! Recommended tolerances: right kernels pass, wrong ones do not.

use finegrain::accuracy::{OutputFormat, Tolerance, exact_product, product_rms, tolerance};
use finegrain::gemm::{Accumulation, Arithmetic, GemmProblem};
use finegrain::linear::{Linear, Operands, Pass, Scheme};
use finegrain::matrix::Matrix;
use finegrain::scaled::{ScaleGrid, ScaledMatrix, Scales};

use crate::common::operands::Random;

/// Independent elements of mean 0.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The sum of twelve uniform numbers, which is all but normal.
    Bell,
    Uniform,
    Signs,
    /// Bell-shaped, with every 40th column 30 times and every 7th row 10 times the others.
    Outliers,
}

fn draw(rows: usize, cols: usize, kind: Kind, seed: u64) -> Matrix<f32> {
    let mut random = Random(seed | 1);
    let mut uniform = move || random.below(1 << 24) as f32 / (1 << 24) as f32;
    let bell = |uniform: &mut dyn FnMut() -> f32| (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    Matrix::from_fn(rows, cols, |i, j| match kind {
        Kind::Outliers => {
            let column = if j % 40 == 3 { 30.0 } else { 1.0 };
            bell(&mut uniform) * column * if i % 7 == 2 { 10.0 } else { 1.0 }
        }
        Kind::Bell => (0..12).map(|_| uniform()).sum::<f32>() - 6.0,
        Kind::Uniform => 2.0 * uniform() - 1.0,
        Kind::Signs => {
            if uniform() < 0.5 {
                -0.7
            } else {
                0.7
            }
        }
    })
}

fn wide(m: &Matrix<f32>) -> Matrix<f64> {
    m.map(|&v| f64::from(v))
}

/// What one test uses of its tolerances, against the quantised operands and against the originals.
fn used(
    shape: (usize, usize, usize),
    scheme: &str,
    arithmetic: &str,
    output: OutputFormat,
    kind: Kind,
    seed: u64,
) -> [f64; 2] {
    let scheme: Scheme = scheme.parse().unwrap();
    let (m, n, k) = shape;
    let (x, w) = (draw(m, k, kind, seed), draw(n, k, kind, seed + 1000));
    let layer = Linear::new(x.clone(), w.clone(), None).unwrap();
    let Operands { a, b, .. } = layer.operands(Pass::Fprop, &scheme).unwrap();
    let arithmetic: Arithmetic = arithmetic.parse().unwrap();
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_arithmetic(&arithmetic).unwrap();
    let d = match output {
        OutputFormat::F32 => problem.run().unwrap(),
        OutputFormat::Bf16 => problem.run_bf16().unwrap().map(|v| v.to_f32()),
        OutputFormat::F16 => problem.run_f16().unwrap().map(|v| v.to_f32()),
    };
    let tolerances = tolerance(shape, &scheme, Pass::Fprop, problem.accumulation(), output);
    let check = |t: Tolerance, a: Matrix<f64>, b: Matrix<f64>| {
        t.scaled(product_rms(a.view(), b.view()))
            .used(d.as_slice(), exact_product(a.view(), b.view()).as_slice())
    };
    [
        check(tolerances.quantized, a.view().to_f64(), b.view().to_f64()),
        check(tolerances.original, wide(&x), wide(&w)),
    ]
}

/// Every kind of recipe and model, on four distributions: all pass, and the tolerances are no more than an order of
/// magnitude or two above what occurs.
#[test]
fn right_kernels_pass() {
    let cases = [
        ("deepseek-v3", "f32/128"),
        ("deepseek-v3", "hopper/128"),
        ("deepseek-v3", "ada/128"),
        ("deepseek-v3", "exact/128"),
        ("deepseek-v3", "blackwell-mma/128"),
        ("deepseek-v3", "hopper:f=10,terms=nearest,round=nearest,result=e8m10/128"),
        ("te", "hopper/128"),
        ("te-current", "hopper/none"),
        ("te-current", "cublaslt"),
        ("te-current", "f32/none/split-k=4"),
        ("deepseek-v3", "hopper/128/partial-first/split-k=2"),
        ("te-current-hybrid", "f32/none"),
        ("te-current", "blackwell/none"),
        ("te-current", "hopper:l=1,f=8/64"),
        ("torchao-rowwise", "ada/none"),
        ("mxfp8-e4m3-floor", "blackwell-mx/none"),
        ("mxfp8-e4m3-rceil", "f32/32"),
        ("mxfp6-e2m3-floor", "blackwell-mx/none"),
        ("mxfp4-e2m1-floor", "blackwell-fp4/none"),
        ("nvfp4-te-1x16", "blackwell-fp4/none"),
        ("bf16", "f32/128"),
    ];
    for (scheme, arithmetic) in cases {
        let mut worst = [0.0f64; 2];
        for shape in [(64, 96, 1024), (40, 33, 128), (16, 16, 4096), (48, 48, 32), (64, 64, 2)] {
            for kind in [Kind::Bell, Kind::Uniform, Kind::Signs, Kind::Outliers] {
                for output in [OutputFormat::F32, OutputFormat::Bf16] {
                    let used = used(shape, scheme, arithmetic, output, kind, 7 + shape.2 as u64);
                    let what = format!("{scheme}, {arithmetic}, {shape:?}, {kind:?}, {output:?}");
                    assert!(used.iter().all(|u| *u <= 1.0), "{what}: {used:?}");
                    if output == OutputFormat::F32 {
                        worst = [0, 1].map(|i| worst[i].max(used[i]));
                    }
                }
            }
        }
        println!("{scheme:18} {arithmetic:20} used {:.3} (quantised), {:.3} (original)", worst[0], worst[1]);
        // The products of 4- and 6-bit codes nearly always fit Blackwell's aligner whole.
        let narrow = scheme.starts_with("mxfp4") || scheme.starts_with("mxfp6");
        assert!(narrow || worst[0] > 0.02, "{scheme}, {arithmetic}: {worst:?}");
        assert!(worst[1] > 0.1, "{scheme}, {arithmetic}: {worst:?}");
    }
}

/// What kernels get wrong lies far outside, even beside the errors of the roughest tensor core.
#[test]
fn wrong_kernels_do_not() {
    let shape = (64, 64, 1024);
    let scheme: Scheme = "deepseek-v3".parse().unwrap();
    let layer = Linear::new(draw(64, 1024, Kind::Bell, 1), draw(64, 1024, Kind::Bell, 2), None).unwrap();
    let Operands { a, b, .. } = layer.operands(Pass::Fprop, &scheme).unwrap();
    let (wa, wb) = (a.view().to_f64(), b.view().to_f64());
    let reference = exact_product(wa.view(), wb.view());
    let scale = product_rms(wa.view(), wb.view());
    let run = |a: &ScaledMatrix, accumulation| {
        GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap().run().unwrap()
    };
    let hopper = Accumulation::HOPPER.promote_every(128).unwrap();
    let used = |accumulation, d: &Matrix<f32>| {
        let t = tolerance(shape, &scheme, Pass::Fprop, accumulation, OutputFormat::F32).quantized;
        t.scaled(scale).used(d.as_slice(), reference.as_slice())
    };
    assert!(used(hopper, &run(&a, hopper)) <= 1.0);
    assert!(used(Accumulation::F32, &run(&a, hopper)) > 1.0, "Hopper is not f32");

    let rescaled = |change: &dyn Fn(&mut Matrix<f32>)| {
        let (format, codes, scales) = a.clone().into_parts();
        let Some(Scales { granule, grid: ScaleGrid::F32(mut grid), tensor }) = scales else { unreachable!() };
        change(&mut grid);
        ScaledMatrix::new(format, codes, Some(Scales { granule, grid: ScaleGrid::F32(grid), tensor }))
            .unwrap()
    };
    // The scale of the tile before; the scale of the token above; the last tile forgotten.
    let shifted = rescaled(&|s| (0..64).for_each(|i| s.row_mut(i).rotate_left(1)));
    let neighbor = rescaled(&|s| s.as_mut_slice().rotate_left(8));
    let forgotten = rescaled(&|s| (0..64).for_each(|i| s.row_mut(i)[7] = 0.0));
    for (what, wrong) in [("shifted", shifted), ("neighbour", neighbor), ("forgotten", forgotten)] {
        let share = used(hopper, &run(&wrong, hopper));
        println!("{what}: {share:.1} times the tolerance");
        assert!(share > 2.0, "{what}: {share}");
    }
    let mut nan = run(&a, hopper);
    nan.row_mut(3)[3] = f32::NAN;
    assert_eq!(used(hopper, &nan), f64::INFINITY);
}
