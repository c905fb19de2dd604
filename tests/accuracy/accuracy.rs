//! What recipes and accumulations cost, on built-in and on real tensors: the statements of the sources, as tests.

use crate::common::golden;
use approx::assert_relative_eq;
use finegrain::accuracy::{Budget, Comparison, ExactPass, Outcome, OutputFormat, Stage, sample};
use finegrain::checkpoint::TensorFile;
use finegrain::engine::Engine;
use finegrain::gemm::{Accumulation, Arithmetic};
use finegrain::linear::{Linear, Pass, Scheme};
use finegrain::matrix::Matrix;
use finegrain::quant::{QuantStats, Quantizer, Recipe, Role};

fn scheme(name: &str) -> Scheme {
    name.parse().unwrap()
}

/// DeepSeek-V3's report and the numerics of Hopper: with one-signed data a raw chain drifts by about −7.5 % at K = 4096,
/// promotion every 128 repairs it; f32 does not drift.
#[test]
fn raw_hopper_chains_drift_on_one_signed_data_and_promotion_repairs_it() {
    let layer = sample::one_signed_linear().unwrap();
    let exact = ExactPass::new(&layer, Pass::Fprop).unwrap();
    let quantized = exact.quantized(&scheme("te-current")).unwrap();
    let run = |accumulation: Accumulation| {
        let result = quantized.multiply(&accumulation.into(), &Engine::cpu()).unwrap();
        assert_eq!(result.accumulation(), accumulation);
        result.report().accumulation
    };
    let raw = run(Accumulation::HOPPER);
    assert!((-0.08..-0.07).contains(&raw.bias), "{}", raw.bias);
    let promoted = run(Accumulation::HOPPER.promote_every(128).unwrap());
    assert!(promoted.bias.abs() < 1e-3, "{}", promoted.bias);
    let f32 = run(Accumulation::F32);
    assert!(f32.relative_frobenius < 1e-6 && f32.bias.abs() < 1e-6);
    let exact_model = run(Accumulation::EXACT);
    assert!(exact_model.relative_frobenius <= f32.relative_frobenius);
}

/// Zero-mean data hardly drifts: truncation errors of both signs cancel.
#[test]
fn raw_hopper_chains_hardly_drift_on_zero_mean_data() {
    let layer = sample::transformer_linear().unwrap();
    let exact = ExactPass::new(&layer, Pass::Fprop).unwrap();
    let quantized = exact.quantized(&scheme("te-current")).unwrap();
    let result = quantized.multiply(&Accumulation::HOPPER.into(), &Engine::cpu()).unwrap();
    let report = result.report();
    assert!(report.accumulation.bias.abs() < 2e-3, "{}", report.accumulation.bias);
    assert!(report.accumulation.relative_frobenius < 0.1 * report.total.relative_frobenius);
}

#[test]
fn comparisons_are_ranked_and_say_what_does_not_exist() {
    let layer = sample::transformer_linear().unwrap();
    let schemes = [scheme("te-current"), scheme("deepseek-v3"), scheme("bf16"), scheme("mxfp8-rceil")];
    let arithmetics: Vec<Arithmetic> = ["f32", "hopper/none"].iter().map(|a| a.parse().unwrap()).collect();
    let mut calls = 0;
    let finished = |_, all| {
        calls += 1;
        assert_eq!(all, 4 * 2 * 3);
    };
    let comparison = Comparison { schemes: &schemes, arithmetics: &arithmetics, ..Comparison::default() };
    let rows = comparison.run(&layer, &Engine::cpu(), finished).unwrap().rows;
    assert_eq!((rows.len(), calls), (8, 24));
    assert_eq!(rows[0].scheme, Scheme::Bf16);
    assert!(rows.windows(2).all(|w| w[0].score() <= w[1].score()));
    let row = |scheme: &str, accumulation: &str| {
        let accumulation = accumulation.parse().unwrap();
        rows.iter().find(|r| r.scheme.to_string() == scheme && r.accumulation == accumulation).unwrap()
    };
    assert_eq!(row("mxfp8-e4m3-rceil", "f32/32").passes().len(), 3, "the interval follows the scales");
    assert!(row("deepseek-v3", "hopper/none").passes().is_empty(), "scales change inside the chain");
    // The reason is that of the first pass, K = 768.
    let refused = &row("deepseek-v3", "hopper/none").outcome;
    assert!(matches!(refused, Outcome::Unsupported(reason) if reason.contains("K = 768")), "{refused:?}");
    assert!(row("bf16", "hopper/none").passes().is_empty(), "Hopper's FP8 model takes no BF16");
    assert!(
        row("deepseek-v3", "f32/128").score() < row("te-current", "f32/128").score(),
        "outliers and tiny gradients"
    );
    // Fprop of deepseek-v3 against the plain route: quantise, dequantise, multiply.
    let report = row("deepseek-v3", "f32/128").pass(Pass::Fprop).unwrap().report;
    assert_relative_eq!(
        report.total.relative_frobenius,
        report.quantization.relative_frobenius,
        max_relative = 1e-3
    );
}

/// The stages of a budget add up, and each is where its cause is.
#[test]
fn budgets_add_up_and_blame_the_cause() {
    let budget = |layer: &Linear, pass, name: &str, arithmetic: &str, output| {
        let exact = ExactPass::new(layer, pass).unwrap();
        let quantized = exact.quantized(&scheme(name)).unwrap();
        let arithmetic = arithmetic.parse().unwrap();
        let result = quantized.multiply(&arithmetic, &Engine::cpu()).unwrap();
        let budget = quantized.stages().unwrap().budget(&result, output);
        if output == OutputFormat::F32 {
            assert_relative_eq!(budget.total, result.report().total.relative_frobenius, max_relative = 1e-9);
        }
        assert_relative_eq!(budget.stages.iter().map(|s| s.share).sum::<f64>(), 1.0, max_relative = 1e-9);
        budget
    };
    let share = |b: &Budget, stages: &[Stage]| stages.iter().map(|&s| b.share(s).unwrap_or(0.0)).sum::<f64>();
    let (codes, scales) = ([Stage::QuantizeA, Stage::QuantizeB], [Stage::RoundScalesA, Stage::RoundScalesB]);
    let transformer = sample::transformer_linear().unwrap();
    for pass in Pass::ALL {
        let plain = budget(&transformer, pass, "deepseek-v3", "f32", OutputFormat::F32);
        assert_eq!(plain.stages.len(), 3);
        assert!(share(&plain, &codes) > 0.999, "{plain:?}");
        // Powers of two leave up to one bit of the range unused: a part of the error, not all of it.
        let power_of_two = budget(&transformer, pass, "te", "f32", OutputFormat::Bf16);
        assert_eq!(power_of_two.stages.len(), 6);
        assert!((0.0..0.6).contains(&share(&power_of_two, &scales)), "{power_of_two:?}");
        assert!(power_of_two.share(Stage::RoundOutput).unwrap() > 0.0);
    }
    // Scales rounded down clip: they cost more than those rounded up.
    let scale_share = |name| {
        let b = budget(&transformer, Pass::Fprop, name, "f32", OutputFormat::F32);
        share(&b, &scales) * b.total * b.total
    };
    assert!(scale_share("mxfp8") > 2.0 * scale_share("mxfp8-rceil"));
    // One-signed data in a raw Hopper chain: the sums are to blame, nothing else.
    let one_signed = sample::one_signed_linear().unwrap();
    let raw = budget(&one_signed, Pass::Fprop, "te-current", "hopper/none", OutputFormat::F32);
    assert!(share(&raw, &[Stage::Accumulate]) > 0.99, "{raw:?}");
    assert_eq!(raw.tiles.len(), 1);
}

/// Each pass is the product its formula says, whatever the layout of its operands.
#[test]
fn passes_are_the_products_of_their_formulas() {
    let x = Matrix::from_fn(5, 7, |t, c| (t * 7 + c) as f32 - 10.0);
    let w = Matrix::from_fn(3, 7, |o, c| (o * 2 + c) as f32 * 0.5 - 2.0);
    let dy = Matrix::from_fn(5, 3, |t, o| (t + o) as f32 - 3.0);
    let layer = Linear::new(x.clone(), w.clone(), Some(dy.clone())).unwrap();
    let at = |m: &Matrix<f32>, i: usize, j: usize| f64::from(m.row(i)[j]);
    let exact = |pass| ExactPass::new(&layer, pass).unwrap().product().clone();
    let y = exact(Pass::Fprop);
    let dx = exact(Pass::Dgrad);
    let dw = exact(Pass::Wgrad);
    assert_eq!((y.shape(), dx.shape(), dw.shape()), ((5, 3), (5, 7), (3, 7)));
    for (t, o, c) in (0..5).flat_map(|t| (0..3).flat_map(move |o| (0..7).map(move |c| (t, o, c)))) {
        assert_eq!(y.row(t)[o], (0..7).map(|c| at(&x, t, c) * at(&w, o, c)).sum::<f64>());
        assert_eq!(dx.row(t)[c], (0..3).map(|o| at(&dy, t, o) * at(&w, o, c)).sum::<f64>());
        assert_eq!(dw.row(o)[c], (0..5).map(|t| at(&dy, t, o) * at(&x, t, c)).sum::<f64>());
    }
    // Small integers survive every recipe that has room for them; here all passes agree with exact under BF16.
    for pass in Pass::ALL {
        let exact = ExactPass::new(&layer, pass).unwrap();
        let quantized = exact.quantized(&Scheme::Bf16).unwrap();
        let result = quantized.multiply(&Accumulation::F32.into(), &Engine::cpu()).unwrap();
        assert_eq!(result.report().total.relative_frobenius, 0.0, "{pass:?}");
    }
    assert!(Linear::new(x.clone(), dy.clone(), None).unwrap_err().to_string().contains("5×7"));
    assert!(Linear::new(x, w, Some(Matrix::filled(5, 4, 0.0))).unwrap_err().to_string().contains("5×4"));
}

/// The table published beside the real tensors: underflow and error of four E4M3 quantisations, and tiles under the floor.
#[test]
fn real_tensors_lose_what_their_table_says() {
    let Some(shared) = golden::shared() else {
        eprintln!("skipped: ../shared/data not found");
        return;
    };
    let file = TensorFile::open(shared.join("data/minilm-layers.safetensors")).unwrap();
    // name, per tensor, 1x128, 128x128, 1x128 with the floor (underflow %, error %), tiles under the floor (%)
    let table = [
        ("layer0.q.dy", [(3.38, 2.63), (2.24, 2.47), (3.10, 2.60), (2.31, 2.48)], 32.0),
        ("layer0.k.dy", [(1.16, 2.64), (0.28, 2.49), (0.92, 2.62), (0.30, 2.49)], 12.6),
        ("layer0.output.x", [(0.46, 2.45), (0.15, 1.80), (0.27, 2.40), (0.15, 1.80)], 0.0),
        ("layer0.intermediate.dy", [(0.61, 2.65), (0.18, 2.27), (0.44, 2.59), (0.18, 2.27)], 0.2),
        ("layer5.k.dy", [(0.10, 2.59), (0.00, 2.44), (0.05, 2.61), (0.00, 2.44)], 36.3),
        ("layer0.output.w", [(0.03, 2.58), (0.00, 2.46), (0.00, 2.57), (0.00, 2.46)], 0.0),
    ];
    for (name, expected, under_floor) in table {
        let x = file.read(name).unwrap().to_matrix().unwrap();
        // code = RNE(x / s), s = amax / 448: compressed-tensors' arithmetic; deepseek-v3 adds the floor.
        let plain = "compressed-tensors".parse::<Recipe>().unwrap();
        let per_tensor = Recipe { activation: finegrain::scaled::Granule::TENSOR, ..plain };
        let cases = [
            (per_tensor, Role::Activation),
            (plain, Role::Activation),
            (plain, Role::Weight),
            (Recipe::DEEPSEEK_V3, Role::Activation),
        ];
        for ((recipe, role), (underflow, error)) in cases.into_iter().zip(expected) {
            let q = Quantizer::new(recipe).quantize(x.view(), role).unwrap();
            let stats: QuantStats = q.stats;
            let back = q.matrix.dequantize().unwrap();
            let square = |v: f32| f64::from(v) * f64::from(v);
            let lost: f64 = back.as_slice().iter().zip(x.as_slice()).map(|(b, a)| square(b - a)).sum();
            let all: f64 = x.as_slice().iter().map(|&v| square(v)).sum();
            let what = format!("{name}, {} {role:?}", recipe.name);
            assert!(
                (stats.percent_of_elements(stats.flushed) - underflow).abs() < 0.0051,
                "{what}: {stats:?}"
            );
            assert!(
                (100.0 * (lost / all).sqrt() - error).abs() < 0.0051,
                "{what}: {}",
                100.0 * (lost / all).sqrt()
            );
            if recipe == Recipe::DEEPSEEK_V3 {
                let share = stats.percent_of_granules(stats.floored_granules + stats.zero_granules);
                assert!((share - under_floor).abs() < 0.051, "{what}: {share}");
            }
        }
    }
}
