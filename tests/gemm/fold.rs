//! Folded scales: the product of the operands that they make in BF16, and what cannot be folded.

use crate::common::isas::available;
use crate::common::operands::{codes, e8m0, nvfp4, scaled, unscaled};
use crate::conforming::{chosen, conforms};
use finegrain::Engine;
use finegrain::accuracy::{OutputFormat, bound};
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, Fold, GemmProblem, GroupedProblem};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Granule, ScaleGrid, ScaledMatrix, Scales};
use half::bf16;

const REFERENCE: Engine<'static> = Engine::reference();

/// The values without the tensor's scale, which are BF16 numbers.
fn dequantized(x: &ScaledMatrix) -> ScaledMatrix {
    let (rows, cols) = x.shape();
    let mut codes = vec![0.0; cols];
    let mut values = Matrix::filled(rows, cols, bf16::ZERO);
    for i in 0..rows {
        x.view().decode_row(i, &mut codes);
        for (j, &code) in codes.iter().enumerate() {
            let exact = f64::from(code) * f64::from(x.view().scale_at(i, j));
            values.row_mut(i)[j] = bf16::from_f64(exact);
            assert!(values[(i, j)].to_f64() == exact || exact.is_nan());
        }
    }
    ScaledMatrix::from_bf16(values.view())
}

fn bits(x: &Matrix<f32>) -> Vec<u32> {
    x.as_slice().iter().map(|x| x.to_bits()).collect()
}

const ARITHMETICS: [&str; 7] = [
    "f32/128",
    "f32/none",
    "f32/64/partial-first/split-k=2",
    "f32/none/scales-last",
    "exact/128",
    "hopper-f16/none",
    "hopper-f16/128/split-k=0,128",
];

/// Every narrow format under E8M0 scales, by the same, by BF16 and by plain FP8, equal to the plain product of what they stand
/// for, on every instruction set.
#[test]
fn the_product_is_that_of_the_values() {
    let (m, n, k) = (6, 40, 330);
    let c = Matrix::from_fn(m, n, |i, j| i as f32 - j as f32);
    let b = e8m0(Format::E2M1, n, k, 10);
    let mut compared = 0;
    for a in [
        e8m0(Format::E4M3, m, k, 9),
        e8m0(Format::E5M2, m, k, 8),
        e8m0(Format::E3M2, m, k, 7),
        e8m0(Format::E2M3, m, k, 6),
        unscaled(Format::Bf16, m, k, 5),
        unscaled(Format::E4M3, m, k, 4),
    ] {
        for text in ARITHMETICS {
            let plain: Accumulation = text.parse().unwrap();
            let (x, y) = (dequantized(&a), dequantized(&b));
            let want = GemmProblem::nt(x.view(), y.view()).unwrap().with_accumulation(plain).unwrap();
            let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
            let problem = problem.with_accumulation(plain.with_fold(Fold::Scales)).unwrap();
            for (problem, want) in [
                (problem, want),
                (problem.with_addend(c.view()).unwrap(), want.with_addend(c.view()).unwrap()),
            ] {
                let what = format!("{} {}", a.format(), problem.accumulation());
                assert!(what.ends_with("/fold-scales"), "{what}");
                let got = REFERENCE.gemm(&problem).unwrap();
                assert_eq!(bits(&got), bits(&REFERENCE.gemm(&want).unwrap()), "{what}");
                assert_eq!(conforms("cpu", &what, &problem), 2 * available().len(), "{what}");
                compared += m * n;
            }
        }
        let fast = problem_of(&a, &b, "f32/128/fold-scales");
        let sets = available().iter().filter(|isa| isa.name() != "scalar").count();
        assert!(conforms("blocked", "blocked", &fast) >= 2 * sets);
    }
    println!("folded scales: {compared} values compared");
}

fn problem_of<'a>(a: &'a ScaledMatrix, b: &'a ScaledMatrix, accumulation: &str) -> GemmProblem<'a> {
    GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation.parse().unwrap()).unwrap()
}

/// NVFP4's block scales fold, the tensor's come at the end.
#[test]
fn scales_of_the_tensor_come_at_the_end() {
    let (a, b) = (nvfp4(5, 256, 1, 0.3), nvfp4(7, 256, 2, 1.7));
    for text in ["f32/128", "f32/none", "f32/none/split-k=2"] {
        let folded = problem_of(&a, &b, &format!("{text}/fold-scales"));
        let (x, y) = (dequantized(&a), dequantized(&b));
        let plain = REFERENCE.gemm(&problem_of(&x, &y, text)).unwrap();
        let want = Matrix::from_fn(5, 7, |i, j| (plain[(i, j)] + 0.0) * (0.3f32 * 1.7));
        assert_eq!(bits(&REFERENCE.gemm(&folded).unwrap()), bits(&want), "{text}");
        assert_eq!(conforms("cpu", text, &folded), 2 * available().len());
        let check = bound(&folded, OutputFormat::F32).check(folded.run().unwrap().view()).unwrap();
        assert_eq!((check.violations, check.unbounded), (0, 0), "{text}: {check:?}");
    }
}

#[test]
fn grouped_products() {
    let a = e8m0(Format::E4M3, 9, 96, 1);
    let experts: Vec<_> = (0..3).map(|g| e8m0(Format::E2M1, 20, 96, 2 + g)).collect();
    let experts: Vec<_> = experts.iter().map(ScaledMatrix::view).collect();
    let groups = [2, 2, -1, 0, 0, 0, 1, -1, 2];
    let problem = GroupedProblem::contiguous(a.view(), &groups, &experts).unwrap();
    let problem = problem.with_accumulation("f32/none/fold-scales".parse().unwrap()).unwrap();
    assert_eq!(conforms("cpu", "grouped", &problem), 2 * available().len());
}

/// What an element times its scale makes of the range and the bits of BF16 decides, element by element.
#[test]
fn what_does_not_fit_is_refused() {
    let fold: Accumulation = "f32/128/fold-scales".parse().unwrap();
    let other = unscaled(Format::E4M3, 3, 64, 1);
    let with = |format: Format, keep: &dyn Fn(f32) -> bool, scale: f32| {
        let x = chosen(format, 4, 64, 2, keep);
        let scales = Scales {
            granule: Granule::TENSOR,
            grid: ScaleGrid::F32(Matrix::filled(1, 1, scale)),
            tensor: 1.0,
        };
        ScaledMatrix::new(format, x.codes().clone(), Some(scales)).unwrap()
    };
    let outcome = |a: &ScaledMatrix| {
        let problem = GemmProblem::nt(a.view(), other.view()).unwrap();
        problem.with_accumulation(fold).map(drop).map_err(|e| e.to_string())
    };
    let any: &dyn Fn(f32) -> bool = &|v| v.is_finite();
    let tiny = 2f32.powi(-127);
    for (format, keep, scale, legal) in [
        (Format::E4M3, any, 0.3, false),
        (Format::E4M3, any, 1.5, true),
        // 15 is the widest significand: times 17 it takes eight bits, times 33 nine.
        (Format::E4M3, any, 1.0 + 2f32.powi(-4), true),
        (Format::E4M3, any, 1.0 + 2f32.powi(-5), false),
        (Format::E2M1, any, 1.0 + 2f32.powi(-5), true),
        // Zeros under any scale; the smallest scale under what stays normal, and under what does not.
        (Format::E4M3, &|v| v == 0.0, 0.3, true),
        (Format::E4M3, &|v| v == 0.0, tiny, true),
        (Format::E4M3, &|v| v.abs() == 1.0, tiny, true),
        (Format::E4M3, &|v| v.abs() == 2f32.powi(-9), tiny, false),
        (Format::E4M3, &|v| v.abs() == 1.0, 2f32.powi(127), true),
        (Format::E4M3, &|v| v.abs() == 2.0, 2f32.powi(127), false),
        (Format::E4M3, any, f32::NAN, true),
        (Format::E5M2, &|_| true, 0.25, true),
        (Format::F16, &|v| v == 1.0 + 2f32.powi(-10), 1.0, false),
        (Format::F16, &|v| v == 1.5, 1.0, true),
    ] {
        let found = outcome(&with(format, keep, scale));
        assert_eq!(found.is_ok(), legal, "{format} by {scale}: {found:?}");
        if let Err(message) = found {
            assert!(message.contains("scales of A") && message.contains(&scale.to_string()), "{message}");
        }
    }
    // The models multiply the folded operands, not the codes.
    let a = e8m0(Format::E4M3, 4, 64, 1);
    let refused = GemmProblem::nt(a.view(), other.view()).unwrap();
    let refused =
        refused.with_accumulation("hopper/128/fold-scales".parse().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("A is bf16"), "{refused}");
    // A scale of NaN makes its elements NaN.
    let mut scales = scaled(Format::E4M3, 2, 64, Granule::MX_1X32, 1).scales().unwrap().clone();
    scales.grid = ScaleGrid::E8M0(Matrix::from_vec(2, 2, vec![127, 255, 120, 127]).unwrap());
    let a =
        ScaledMatrix::new(Format::E4M3, codes(Format::E4M3, 2, 64, 3, f32::is_finite), Some(scales)).unwrap();
    let d = problem_of(&a, &other, "f32/none/fold-scales").run().unwrap();
    assert!(d.row(0).iter().all(|v| v.is_nan()) && d.row(1).iter().all(|v| v.is_finite()));
}
