//! What a device must give, whichever it is: everything that the launcher computes, compared with the library bit for
//! bit. The same checks run on the interpreter and, where there is one, on a GPU.

use finegrain::Engine;
use finegrain::cuda::{Cuda, Driver, Float};
use finegrain::formats::Format::{self, E4M3, E5M2};
use finegrain::gemm::{Accumulation, GemmBackend, GemmProblem, GroupedProblem, Model, Output, Promotion};
use finegrain::matrix::{MatRef, Matrix};
use finegrain::parallel::Watch;
use finegrain::quant::{Quantized, Quantizer, Recipe, Role, swiglu};
use finegrain::scaled::layout::to_e8m0;
use finegrain::scaled::{Granule, ScaleGrid, ScaledMatrix, ScaledRef, Scales};
use half::bf16;

use crate::common::operands::{sample, scaled, unscaled};
use crate::common::runner::{self, Candidate, hostile};

const TILE: Granule = Granule::TILE_1X128;
const BLOCK: Granule = Granule::BLOCK_128X128;

fn narrow(x: &Matrix<f32>) -> Matrix<bf16> {
    x.map(|&v| bf16::from_f32(v))
}

/// The same matrix with its scales as bytes.
fn with_bytes(x: ScaledMatrix) -> ScaledMatrix {
    let (format, codes, scales) = x.into_parts();
    let scales = scales
        .map(|s| Scales { grid: ScaleGrid::E8M0(to_e8m0(s.grid.view().to_f32().view()).unwrap()), ..s });
    ScaledMatrix::new(format, codes, scales).unwrap()
}

const RECIPES: [&str; 4] = ["deepseek-v3", "deepseek-v3-ue8m0", "te", "deepgemm"];
const ROLES: [Role; 3] = [Role::Activation, Role::Weight, Role::Transposed];

fn quantized<T: Float, D: Driver>(gpu: &Cuda<D>, x: MatRef<'_, T>) -> usize {
    let mut compared = 0;
    for name in RECIPES {
        let recipe: &Recipe = &name.parse().unwrap();
        for role in ROLES {
            let want = Quantizer::new(*recipe).quantize(x, role).unwrap();
            let got = gpu.quantize(x, recipe, role).unwrap();
            assert_eq!(got, want, "{} {name} {role:?} of {:?}", T::NAME, x.shape());
            compared += x.rows() * x.cols();
            if name.ends_with("ue8m0") {
                let got = gpu.quantize_ue8m0(x, recipe, role).unwrap();
                let want = Quantized { matrix: with_bytes(want.matrix), stats: want.stats };
                assert_eq!(got, want, "{} {name} {role:?} of {:?}, packed", T::NAME, x.shape());
                compared += x.rows() * x.cols();
            }
        }
    }
    compared
}

/// Quantisers, dequantisers, SwiGLU and requantise-transpose; gives the number of elements compared.
pub fn casts<D: Driver>(gpu: &Cuda<D>, shapes: &[(usize, usize)]) -> usize {
    let mut compared = 0;
    for (seed, &(rows, cols)) in shapes.iter().enumerate() {
        let x = sample(rows, cols, 2 * seed as u64 + 1);
        compared += quantized(gpu, x.view()) + quantized(gpu, narrow(&x).view());

        let up = sample(rows, cols, 2 * seed as u64 + 77).map(|v| v * 0.01);
        let recipe = &Recipe::DEEPSEEK_V3;
        let quantizer = Quantizer::new(*recipe);
        let want = |y: Matrix<f32>| quantizer.activation(y.view()).unwrap();
        let got = gpu.swiglu_quantize(x.view(), up.view(), recipe).unwrap();
        assert_eq!(got, want(swiglu(x.view(), up.view()).unwrap()), "SwiGLU of {rows}×{cols}");
        let (gate, up) = (narrow(&x), narrow(&up));
        let got = gpu.swiglu_quantize(gate.view(), up.view(), recipe).unwrap();
        assert_eq!(got, want(swiglu(gate.view(), up.view()).unwrap()), "SwiGLU of {rows}×{cols} in bf16");

        let tiles = quantizer.activation(x.view()).unwrap().matrix;
        let want = quantizer.requantize_transposed(tiles.view()).unwrap();
        assert_eq!(
            gpu.requantize_transposed(tiles.view(), recipe).unwrap(),
            want,
            "transpose of {rows}×{cols}"
        );

        let exact: Recipe = "deepseek-v3-ue8m0".parse().unwrap();
        let blocks = with_bytes(Quantizer::new(exact).weight(x.view()).unwrap().matrix);
        for x in [&tiles, &blocks] {
            let values = x.dequantize().unwrap();
            assert_eq!(gpu.dequantize_bf16(x.view()).unwrap(), narrow(&values), "values of {rows}×{cols}");
            assert_eq!(gpu.dequantize(x.view()).unwrap(), values, "values of {rows}×{cols}");
        }
        compared += 7 * rows * cols;
    }
    compared
}

/// The tensor core's arithmetic that a device has, if any.
fn fast<D: Driver>(gpu: &Cuda<D>) -> Option<Accumulation> {
    let model = gpu.models().into_iter().find(|m| matches!(m, Model::TensorCore(_)))?;
    Some(Accumulation::new(model).promote_every(128).unwrap())
}

/// Every arithmetic of a device for problems of FP8 in granules of 128.
fn arithmetics<D: Driver>(gpu: &Cuda<D>) -> Vec<Accumulation> {
    let every = Accumulation::F32.promote_every(128).unwrap();
    [Some(every), fast(gpu)].into_iter().flatten().collect()
}

/// In f32 where there is an addend, else in bf16.
fn same<D: Driver>(gpu: &Cuda<D>, what: &str, problem: &GemmProblem<'_>) -> usize {
    gpu.supports(problem).unwrap();
    if problem.addend().is_some() {
        let bits = |m: Matrix<f32>| m.map(|v| v.to_bits());
        assert_eq!(bits(gpu.gemm(problem).unwrap()), bits(problem.run().unwrap()), "{what}");
    } else {
        let bits = |m: Matrix<bf16>| m.map(|v| v.to_bits());
        let mut d = Matrix::filled(problem.m(), problem.n(), bf16::ONE);
        gpu.run(problem, Output::Bf16(d.view_mut()), &Watch::NONE).unwrap();
        assert_eq!(bits(d), bits(problem.run_bf16().unwrap()), "{what} in bf16");
    }
    problem.m() * problem.n()
}

/// Dense products in every arithmetic of the device; gives the number of values compared.
pub fn products<D: Driver>(gpu: &Cuda<D>, shapes: &[(usize, usize, usize)]) -> usize {
    let mut compared = 0;
    for (seed, &(m, n, k)) in shapes.iter().enumerate() {
        let seed = 20 * seed as u64;
        let pairs = [(E4M3, TILE, E4M3, BLOCK), (E4M3, TILE, E5M2, TILE), (E5M2, BLOCK, E4M3, TILE)];
        for (i, (fa, ga, fb, gb)) in pairs.into_iter().enumerate() {
            let (a, b) =
                (scaled(fa, m, k, ga, seed + i as u64 + 1), scaled(fb, n, k, gb, seed + i as u64 + 10));
            let c = Matrix::from_fn(m, n, |i, j| i as f32 - 3.0 * j as f32);
            for accumulation in arithmetics(gpu) {
                let order = Promotion::SCALING_PARTIALS[i];
                let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
                let problem = problem.with_accumulation(accumulation.with_promotion(order)).unwrap();
                compared += same(gpu, "dense", &problem);
                compared += same(gpu, "addend", &problem.with_addend(c.view()).unwrap());
            }
        }
    }
    // Scales of the tensor and of rows, larger granules, rows from the middle of a block, none at all.
    let (m, n, k) = (35, 45, 272);
    let of = |granule, rows, seed| scaled(E4M3, rows, k, granule, seed);
    let (a, b) = (of(BLOCK, m + 40, 1), of(Granule::ROW, n, 2));
    let (tensor, wide) = (of(Granule::TENSOR, m, 3), of(Granule::new(3, 256).unwrap(), n, 4));
    let bare = [unscaled(E4M3, m, k, 5), unscaled(E5M2, n, k, 6)];
    for accumulation in arithmetics(gpu) {
        for (what, a, b) in [
            ("from row 40", a.view().row_range(40, 40 + m), b.view()),
            ("tensor and 3×256", tensor.view(), wide.view()),
            ("no scales", bare[0].view(), bare[1].view()),
        ] {
            let problem = GemmProblem::nt(a, b).unwrap().with_accumulation(accumulation).unwrap();
            compared += same(gpu, what, &problem);
        }
    }
    // The plain kernel has intervals of one's own, and the chain itself.
    let (a, b) = (of(TILE, m, 7), of(BLOCK, n, 8));
    for interval in [1, 32, 64] {
        let accumulation = Accumulation::F32.promote_every(interval).unwrap();
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(accumulation).unwrap();
        compared += same(gpu, "interval", &problem);
    }
    let c = Matrix::filled(m, n, -1.5f32);
    let chain = GemmProblem::nt(bare[0].view(), bare[1].view()).unwrap();
    let chain = chain.with_accumulation(Accumulation::F32.without_promotion()).unwrap();
    compared + same(gpu, "chain", &chain) + same(gpu, "chain", &chain.with_addend(c.view()).unwrap())
}

fn views(x: &[ScaledMatrix]) -> Vec<ScaledRef<'_>> {
    x.iter().map(ScaledMatrix::view).collect()
}

/// As [`same`].
fn same_grouped<D: Driver>(gpu: &Cuda<D>, what: &str, problem: &GroupedProblem<'_>) -> usize {
    gpu.supports_grouped(problem).unwrap();
    let (rows, cols) = problem.output_shape();
    if problem.addend().is_some() {
        let bits = |m: Matrix<f32>| m.map(|v| v.to_bits());
        assert_eq!(bits(gpu.grouped_gemm(problem).unwrap()), bits(problem.run().unwrap()), "{what}");
    } else {
        let bits = |m: Matrix<bf16>| m.map(|v| v.to_bits());
        let mut d = Matrix::filled(rows, cols, bf16::ONE);
        gpu.run_grouped(problem, Output::Bf16(d.view_mut()), &Watch::NONE).unwrap();
        assert_eq!(bits(d), bits(problem.run_bf16().unwrap()), "{what} in bf16");
    }
    rows * cols
}

/// Grouped products of all forms in every arithmetic of the device; gives the number of values compared.
pub fn groups<D: Driver>(gpu: &Cuda<D>, n: usize, k: usize) -> usize {
    let mut compared = 0;
    let several = |format: Format, rows: usize, ks: &[usize], granule, seed: u64| -> Vec<ScaledMatrix> {
        ks.iter().enumerate().map(|(i, &k)| scaled(format, rows, k, granule, seed + i as u64)).collect()
    };
    for accumulation in arithmetics(gpu) {
        // What a form does is not the order's business: the plain kernel shows it once.
        let orders = if accumulation.model() == Model::F32 {
            &Promotion::SCALING_PARTIALS[..1]
        } else {
            Promotion::SCALING_PARTIALS
        };
        for (i, &order) in orders.iter().enumerate() {
            let granule = if i == 1 { TILE } else { BLOCK };
            let accumulation = accumulation.with_promotion(order);
            // Groups that end inside a tile, one without rows, a tile of padding alone, a last one that is cut.
            let owner = |row: usize| match row {
                0..100 => 2,
                128..131 => 0,
                384..400 => 3,
                _ => -1,
            };
            let owners: Vec<i32> = (0..410).map(owner).collect();
            let (a, b) = (several(E4M3, 410, &[k], TILE, 3), several(E4M3, n, &[k; 4], granule, 50));
            let contiguous = GroupedProblem::contiguous(a[0].view(), &owners, &views(&b)).unwrap();
            let (a, b) = (several(E4M3, 140, &[k; 4], TILE, 7), several(E4M3, n, &[k; 4], granule, 60));
            let masked = GroupedProblem::masked(&views(&a), &[3, 0, 140, 128], &views(&b)).unwrap();
            let sizes = [130, 0, 5, k];
            let (a, b) = (several(E4M3, 131, &sizes, TILE, 9), several(E4M3, n, &sizes, granule, 70));
            let k_grouped = GroupedProblem::k_grouped(&views(&a), &views(&b)).unwrap();
            for (what, problem) in [("contiguous", contiguous), ("masked", masked), ("k-grouped", k_grouped)]
            {
                let problem = problem.with_accumulation(accumulation).unwrap();
                compared += same_grouped(gpu, what, &problem);
                let (rows, cols) = problem.output_shape();
                let c = Matrix::from_fn(rows, cols, |i, j| (i * j) as f32 + 1.0);
                compared += same_grouped(gpu, what, &problem.clone().with_addend(c.view()).unwrap());
            }
        }
    }
    // Groups in any order are the plain kernel's.
    let owners: Vec<i32> = (0..37).map(|i| i % 3 - 1).collect();
    let (a, b) = (several(E5M2, 37, &[k], TILE, 3), several(E4M3, n, &[k; 2], BLOCK, 50));
    compared
        + same_grouped(
            gpu,
            "any order",
            &GroupedProblem::contiguous(a[0].view(), &owners, &views(&b)).unwrap(),
        )
}

/// Every operation of a device by the runner that holds the CPU's: statistics too, values at the edges, refusals.
pub fn operations<D: Driver>(gpu: &Cuda<D>, shapes: &[(usize, usize)]) -> usize {
    let candidates = [Candidate::new("cuda", Engine::cuda(gpu.clone()))];
    let mut ran = 0;
    for (seed, &(rows, cols)) in shapes.iter().enumerate() {
        let (x, y) = (hostile(rows, cols, seed as u64), hostile(rows, cols, seed as u64 + 50));
        let (narrow_x, narrow_y) = (narrow(&x), narrow(&y));
        for recipe in Recipe::ALL {
            for role in ROLES {
                ran += runner::quantize(&candidates, "hostile", x.view(), recipe, role);
                ran += runner::quantize(&candidates, "hostile bf16", narrow_x.view(), recipe, role);
            }
            ran += runner::swiglu(&candidates, "hostile", x.view(), y.view(), recipe);
            ran += runner::swiglu(&candidates, "hostile bf16", narrow_x.view(), narrow_y.view(), recipe);
            let q = Engine::reference().quantize(x.view(), recipe, Role::Activation).unwrap();
            ran += runner::requantize(&candidates, "hostile", q.view(), recipe);
            ran += runner::dequantize(&candidates, "hostile", q.view());
        }
    }
    ran
}

/// Products of operands that were put on the device before, in every form; quantising, requantising and dequantising where
/// they lie. Gives the number of comparisons.
pub fn residents<D: Driver>(gpu: &Cuda<D>) -> usize {
    let engine = Engine::cuda(gpu.clone());
    let candidates = [Candidate::new("cuda", engine.clone())];
    let mut ran = 0;
    let (m, n, k) = (19, 23, 144);
    let of = |granule, rows, seed| scaled(E4M3, rows, k, granule, seed);
    let operands = [
        (of(TILE, m, 1), of(BLOCK, n, 2)),
        (of(Granule::TENSOR, m, 3), of(Granule::ROW, n, 4)),
        (of(Granule::new(3, 256).unwrap(), m, 5), unscaled(E4M3, n, k, 6)),
    ];
    for (a, b) in &operands {
        let (on_a, on_b) = (engine.upload(a.view()).unwrap(), engine.upload(b.view()).unwrap());
        assert_eq!((&on_a.download().unwrap(), &on_b.download().unwrap()), (a, b));
        let mut every = arithmetics(gpu);
        every.push(Accumulation::F32.promote_every(16).unwrap());
        for accumulation in every {
            for (x, y) in [(on_a.view(), b.view()), (a.view(), on_b.view()), (on_a.view(), on_b.view())] {
                let problem = GemmProblem::nt(x, y).unwrap().with_accumulation(accumulation).unwrap();
                ran += runner::gemm(&candidates, "resident", &problem);
            }
            // Rows of one are no operand that is known there.
            let part = GemmProblem::nt(on_a.view().row_range(3, 15), on_b.view()).unwrap();
            ran += runner::gemm(&candidates, "rows", &part.with_accumulation(accumulation).unwrap());
        }
    }
    // Quantised there, and kept.
    let (x, w) = (sample(m, k, 3), sample(n, k, 5));
    for recipe in ["deepseek-v3", "te", "deepseek-v3-ue8m0"].map(|name| name.parse::<Recipe>().unwrap()) {
        let quantizer = Quantizer::new(recipe);
        let keep = |x: &Matrix<f32>, role| {
            let (kept, stats) = engine.quantize_resident(x.view(), &recipe, role).unwrap();
            let want = quantizer.quantize(x.view(), role).unwrap();
            assert_eq!(stats, want.stats);
            (kept, want.matrix)
        };
        let ((x, want), (w, _)) = (keep(&x, Role::Activation), keep(&w, Role::Weight));
        for accumulation in arithmetics(gpu) {
            let problem = GemmProblem::nt(x.view(), w.view()).unwrap();
            ran += runner::gemm(&candidates, "kept", &problem.with_accumulation(accumulation).unwrap());
        }
        ran += runner::requantize(&candidates, "kept", x.view(), &recipe);
        ran += runner::dequantize(&candidates, "kept", x.view())
            + runner::dequantize(&candidates, "kept", w.view());
        assert_eq!(x.download().unwrap(), want);
    }
    // Experts together; in another order they go there again.
    let experts: Vec<ScaledMatrix> = (0..3).map(|g| of(BLOCK, n, 20 + g)).collect();
    let kept = engine.upload_group(&views(&experts)).unwrap();
    let there: Vec<ScaledRef<'_>> = kept.iter().map(|x| x.view()).collect();
    let turned: Vec<ScaledRef<'_>> = there.iter().rev().copied().collect();
    let owners: Vec<i32> = (0..m as i32).map(|i| i / 7).collect();
    let a = of(TILE, m, 7);
    for experts in [there, turned] {
        let problem = GroupedProblem::contiguous(a.view(), &owners, &experts).unwrap();
        ran += runner::gemm(&candidates, "experts", &problem);
    }
    ran
}
