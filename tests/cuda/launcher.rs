//! Gate C: the launcher, over a driver that is the PTX interpreter: argument order and types, grids, shared memory, error
//! paths, and the bits that come back.

use crate::common::operands::{nvfp4, sample, scaled, unscaled};
use crate::support::stand_in::StandIn;
use crate::support::{device_bench, device_checks};
use finegrain::Engine;
use finegrain::cuda::kernels::{Config, Kernel};
use finegrain::cuda::roofline::DeviceSpec;
use finegrain::cuda::{Arch, Cuda, Driver, GemmDesc};
use finegrain::error::Error;
use finegrain::formats::Format::{Bf16, E4M3, E5M2};
use finegrain::gemm::{Accumulation, GemmBackend, GemmProblem, GroupedProblem, Model, TensorCore};
use finegrain::matrix::Matrix;
use finegrain::quant::{Quantizer, Recipe, Role};
use finegrain::scaled::{Granule, ScaleGrid, ScaledMatrix, Scales};

const TILE: Granule = Granule::TILE_1X128;
const BLOCK: Granule = Granule::BLOCK_128X128;

fn gpu(arch: Arch) -> Cuda<StandIn> {
    Cuda::new(StandIn::new(arch))
}

fn ada() -> Accumulation {
    Accumulation::ADA.promote_every(128).unwrap()
}

#[test]
fn casts_are_the_references() {
    let compared = device_checks::casts(&gpu(Arch::Sm89), &[(150, 200), (3, 640), (1, 1)]);
    println!("{compared} elements compared");
}

#[test]
fn products_are_the_references() {
    let all = [(130, 70, 300), (1, 3, 128), (64, 128, 77)];
    for (arch, shapes) in [(Arch::Sm89, &all[..]), (Arch::Sm90a, &all[..1])] {
        let compared = device_checks::products(&gpu(arch), shapes);
        println!("{arch}: {compared} values compared");
    }
}

#[test]
fn grouped_products_are_the_references() {
    for arch in [Arch::Sm89, Arch::Sm90a] {
        let compared = device_checks::groups(&gpu(arch), 37, 257);
        println!("{arch}: {compared} values compared");
    }
}

/// Statistics and values at the edges.
#[test]
fn operations_are_the_references() {
    let ran = device_checks::operations(&gpu(Arch::Sm89), &[(130, 130), (3, 300), (1, 1)]);
    println!("{ran} comparisons");
}

#[test]
fn residents_are_operands() {
    for arch in [Arch::Sm89, Arch::Sm90a] {
        println!("{arch}: {} comparisons", device_checks::residents(&gpu(arch)));
    }
}

/// What lies on the device goes there once, and nothing of it comes back.
#[test]
fn residents_are_not_moved_again() {
    let (m, n, k) = (16, 128, 512);
    let gpu = gpu(Arch::Sm89);
    let engine = Engine::cuda(gpu.clone());
    let w = engine.upload(scaled(E4M3, n, k, BLOCK, 2).view()).unwrap();
    assert!(gpu.driver().moved().0 >= n * k);
    let x = sample(m, k, 3);
    for _ in 0..2 {
        let (x, _) = engine.quantize_resident(x.view(), &Recipe::DEEPSEEK_V3, Role::Activation).unwrap();
        let problem = GemmProblem::nt(x.view(), w.view()).unwrap().with_accumulation(ada()).unwrap();
        engine.gemm(&problem).unwrap();
        // The input, then D; scales, counters and the list of no groups besides.
        let (there, back) = gpu.driver().moved();
        assert!(there < 4 * m * k + 1000 && back < 4 * m * n + 1000, "{there} bytes there, {back} back");
    }
    // Elsewhere the codes are fetched, once.
    let (a, b) = (x.map(|v| v * 2.0), w.clone());
    let a = Quantizer::new(Recipe::DEEPSEEK_V3).activation(a.view()).unwrap();
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    let known = problem.run().unwrap();
    assert_eq!(gpu.driver().moved(), (0, n * k));
    assert_eq!(problem.run().unwrap(), known);
    assert_eq!(gpu.driver().moved(), (0, 0));
}

/// The benchmark of a device compares, times and names every kind of kernel; here on a device that is too slow to time.
#[test]
fn the_benchmark_runs() {
    let sizes = device_bench::Sizes {
        runs: 1,
        matrix: (40, 256),
        products: vec![(5, 130, 256), (130, 64, 128)],
        groups: (128, 64, 128),
    };
    let device = DeviceSpec::by_name("NVIDIA L40S");
    let lines = device_bench::run(StandIn::new(Arch::Sm89), device, &sizes).unwrap();
    for (start, end) in [
        ("quantize_1x128_bf16 40×256: ", " % of the published peak"),
        ("requantize_transpose_e4m3 40×256: ", " % of the published peak"),
        ("sm89_e4m3_e4m3_gemm_promoted 5×130×256: ", " % of the published peak"),
        ("sm89_e4m3_e4m3_gemm_promoted_k_grouped 4 groups of 128×64×128: ", " % of the published peak"),
    ] {
        assert!(lines.iter().any(|l| l.starts_with(start) && l.ends_with(end)), "{start}{end}: {lines:#?}");
    }
    assert_eq!(lines.len(), 9 + 2 + 3);
}

/// One launch a problem, of the kernel and the size that the description says beforehand.
#[test]
fn a_launch_is_what_was_planned() {
    let gpu = gpu(Arch::Sm89);
    let (a, b) = (scaled(E4M3, 300, 256, TILE, 1), scaled(E4M3, 140, 256, BLOCK, 2));
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(ada()).unwrap();
    gpu.gemm(&problem).unwrap();
    let desc = GemmDesc::dense(&problem).unwrap();
    let kernel = desc.kernel(Arch::Sm89).unwrap();
    let config = Config { grid: [3, 2, 1], block: [256, 1, 1], dynamic_shared: 101_376 };
    assert_eq!(gpu.driver().last(), Some(("sm89_e4m3_e4m3_gemm_promoted", config)));
    assert_eq!((kernel.name, kernel.config(desc.sizes())), ("sm89_e4m3_e4m3_gemm_promoted", Some(config)));
    assert_eq!(desc.to_string(), "dense 300×140×256 of e4m3 × e4m3 in ada/128");
    assert_eq!(config.to_string(), "<<<(3, 2, 1), (256, 1, 1), 101376 B>>>");

    let (a, b) = (vec![a.view(); 3], vec![b.view(); 3]);
    let problem = GroupedProblem::masked(&a, &[1, 0, 300], &b).unwrap().with_accumulation(ada()).unwrap();
    let before = gpu.driver().launches();
    gpu.grouped_gemm(&problem).unwrap();
    assert_eq!(gpu.driver().launches(), before + 1);
    let config = Config { grid: [3, 2, 3], ..config };
    assert_eq!(gpu.driver().last(), Some(("sm89_e4m3_e4m3_gemm_promoted_masked", config)));
    let desc = GemmDesc::grouped(&problem).unwrap();
    assert_eq!(desc.to_string(), "masked 300×140×256 in 3 groups of e4m3 × e4m3 in ada/128");
}

/// Nothing to compute is nothing to launch.
#[test]
fn empty_matrices_are_not_launched() {
    let gpu = gpu(Arch::Sm89);
    let ue8m0: &Recipe = &"deepseek-v3-ue8m0".parse().unwrap();
    for shape in [(0, 128), (5, 0)] {
        let x = Matrix::filled(shape.0, shape.1, 0.0f32);
        for role in [Role::Activation, Role::Weight, Role::Transposed] {
            let want = Quantizer::new(Recipe::TE).quantize(x.view(), role).unwrap();
            assert_eq!(gpu.quantize(x.view(), &Recipe::TE, role).unwrap(), want);
            let packed = gpu.quantize_ue8m0(x.view(), ue8m0, role).unwrap();
            assert!(matches!(packed.matrix.scales().unwrap().grid, ScaleGrid::E8M0(_)));
        }
        let tiles = Quantizer::new(Recipe::TE).activation(x.view()).unwrap();
        assert_eq!(gpu.dequantize(tiles.view()).unwrap(), x);
        assert_eq!(gpu.swiglu_quantize(x.view(), x.view(), &Recipe::TE).unwrap(), tiles);
        let transposed = gpu.requantize_transposed(tiles.view(), &Recipe::TE).unwrap();
        assert_eq!(transposed.matrix.shape(), (shape.1, shape.0));
    }
    let (a, b) = (scaled(E4M3, 0, 256, TILE, 1), scaled(E4M3, 10, 256, BLOCK, 2));
    assert_eq!(gpu.gemm(&GemmProblem::nt(a.view(), b.view()).unwrap()).unwrap().shape(), (0, 10));
    assert_eq!(gpu.driver().last(), None);
    // K = 0 is a problem: D is the addend.
    let (a, b) = (scaled(E4M3, 3, 0, TILE, 1), scaled(E4M3, 4, 0, BLOCK, 2));
    let c = Matrix::from_fn(3, 4, |i, j| (i + j) as f32);
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_addend(c.view()).unwrap();
    assert_eq!(gpu.gemm(&problem).unwrap(), c);
}

#[test]
fn a_backend_says_which_models_it_has() {
    let models = |arch| gpu(arch).models();
    let (ada, hopper) = (Model::TensorCore(TensorCore::ADA), Model::TensorCore(TensorCore::HOPPER));
    assert_eq!(models(Arch::Sm89), [Model::F32, ada]);
    assert_eq!(models(Arch::Sm90a), [Model::F32, hopper]);
    assert_eq!(models(Arch::Sm100a), [Model::F32]);
    assert_eq!(models(Arch::Sm120a), [Model::F32]);
    // What is listed is supported, and nothing else is.
    let a = scaled(E4M3, 4, 256, TILE, 1);
    for &arch in Arch::ALL {
        for model in [Model::F32, Model::Exact, ada, hopper, Model::TensorCore(TensorCore::BLACKWELL)] {
            let accumulation = Accumulation::new(model).promote_every(128).unwrap();
            let dense = GemmProblem::nt(a.view(), a.view()).unwrap().with_accumulation(accumulation).unwrap();
            let grouped = GroupedProblem::k_grouped(&[a.view()], &[a.view()]).unwrap();
            let grouped = grouped.with_accumulation(accumulation).unwrap();
            let listed = models(arch).contains(&model);
            assert_eq!(gpu(arch).supports(&dense).is_ok(), listed, "{model} on {arch}");
            assert_eq!(gpu(arch).supports_grouped(&grouped).is_ok(), listed, "{model} on {arch}");
        }
    }
}

/// Every refusal names what was asked and what there is, and comes before anything runs.
#[test]
fn what_no_kernel_computes_is_refused_with_the_reason() {
    let gpu = gpu(Arch::Sm89);
    let says = |e: Error, words: &[&str]| {
        let message = e.to_string();
        assert!(matches!(e, Error::Unsupported(_) | Error::Shape(_)), "{message}");
        assert!(words.iter().all(|w| message.contains(w)) && !message.contains('\n'), "{message}");
    };
    let a = scaled(E4M3, 4, 256, TILE, 1);
    let refused = |a: &ScaledMatrix, accumulation: Option<Accumulation>, words: &[&str]| {
        let problem = GemmProblem::nt(a.view(), a.view()).unwrap();
        let problem = accumulation.map_or(problem, |acc| problem.with_accumulation(acc).unwrap());
        says(gpu.supports(&problem).unwrap_err(), words);
        says(gpu.gemm(&problem).unwrap_err(), words);
    };
    refused(&a, Some(Accumulation::HOPPER.promote_every(128).unwrap()), &["hopper", "sm_89", "f32, ada"]);
    refused(&a, Some(Accumulation::ADA.promote_every(64).unwrap()), &["128", "ada/64"]);
    for text in ["f32/128/scales-last", "f32/128/split-k=2", "ada/128/scales-last"] {
        let rows = scaled(E4M3, 200, 300, Granule::ROW, 1);
        refused(&rows, Some(text.parse().unwrap()), &["K in one", text]);
    }
    refused(&unscaled(Bf16, 4, 64, 2), None, &["e4m3 and e5m2", "bf16"]);
    refused(&nvfp4(4, 64, 2, 1.0), None, &["e4m3 and e5m2", "e2m1"]);

    // Groups.
    let grouped = |problem: GroupedProblem<'_>, words: &[&str]| {
        let problem = problem.with_accumulation(ada()).unwrap();
        says(gpu.supports_grouped(&problem).unwrap_err(), words);
        says(gpu.grouped_gemm(&problem).unwrap_err(), words);
    };
    let (tall, wide) = (scaled(E4M3, 200, 256, TILE, 1), scaled(E5M2, 200, 256, TILE, 1));
    let contiguous = |owners: &dyn Fn(i32) -> i32| {
        let owners: Vec<i32> = (0..200).map(owners).collect();
        GroupedProblem::contiguous(tall.view(), &owners, &[a.view(), a.view()]).unwrap()
    };
    grouped(contiguous(&|i| i32::from(i >= 150)), &["one group", "row 128 is of group 0", "row 150 of 1"]);
    grouped(contiguous(&|i| if i == 5 { -1 } else { 0 }), &["padding last", "row 6 of 0"]);
    grouped(contiguous(&|i| if i == 0 { -1 } else { 1 }), &["row 0 is of group -1", "row 1 of 1"]);
    let k_grouped = |x, y| GroupedProblem::k_grouped(&[x, x], &[x, y]).unwrap();
    grouped(k_grouped(tall.view(), wide.view()), &["one format", "E4M3", "E5M2"]);
    grouped(k_grouped(wide.view(), wide.view()), &["e4m3 × e4m3 in groups", "e5m2 × e5m2"]);
    let (format, codes, scales) = tall.clone().into_parts();
    let second = ScaledMatrix::new(format, codes, scales.map(|s| Scales { tensor: 0.5, ..s })).unwrap();
    grouped(k_grouped(tall.view(), second.view()), &["one second scale", "1.0", "0.5"]);

    // Casts.
    let x = sample(4, 128, 1);
    let quantize = |name: &str| gpu.quantize(x.view(), &name.parse().unwrap(), Role::Activation);
    says(quantize("mxfp8").unwrap_err(), &["mxfp8"]);
    let odd = Recipe { activation: Granule::new(1, 64).unwrap(), ..Recipe::DEEPSEEK_V3 };
    says(
        gpu.quantize(x.view(), &odd, Role::Activation).unwrap_err(),
        &["1x64", "quantize_1x128_f32", "1x128"],
    );
    let role = Role::Weight;
    says(gpu.quantize_ue8m0(x.view(), &Recipe::DEEPSEEK_V3, role).unwrap_err(), &["deepseek-v3", "E8M0"]);
    let other = sample(4, 127, 1);
    says(gpu.swiglu_quantize(x.view(), other.view(), &odd).unwrap_err(), &["4x128", "4x127"]);
    for (x, word) in [
        (&unscaled(E4M3, 4, 64, 1), "without scales"),
        (&unscaled(E5M2, 4, 64, 1), "e5m2"),
        (&scaled(E4M3, 4, 64, Granule::ROW, 1), "row"),
        (&second, "second scale of 0.5"),
    ] {
        says(gpu.dequantize(x.view()).unwrap_err(), &["dequantise e4m3", word]);
        says(gpu.requantize_transposed(x.view(), &Recipe::TE).unwrap_err(), &["dequantise e4m3", word]);
    }
    let blocks = scaled(E4M3, 130, 64, BLOCK, 1);
    says(gpu.requantize_transposed(blocks.view(), &Recipe::TE).unwrap_err(), &["1x128", "128x128"]);
    says(gpu.dequantize(blocks.view().row_range(2, 130)).unwrap_err(), &["from row 2 of a block"]);
    assert_eq!(gpu.driver().last(), None, "nothing was launched");
}

/// What the driver refuses comes back as an error, wherever it happens.
#[test]
fn the_drivers_errors_come_back() {
    let (a, b) = (scaled(E4M3, 4, 256, TILE, 1), scaled(E4M3, 10, 256, BLOCK, 2));
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap().with_accumulation(ada()).unwrap();
    let x = sample(4, 256, 1);
    let mut failed = 0;
    // D, both codes, both scales, the list of groups; codes, scales and input of a quantiser.
    for bytes in (0..4000).step_by(100) {
        let gpu = Cuda::new(StandIn::with_memory(Arch::Sm89, bytes));
        for outcome in [
            gpu.gemm(&problem).map(drop),
            gpu.quantize(x.view(), &Recipe::TE, Role::Activation).map(drop),
            gpu.dequantize(a.view()).map(drop),
        ] {
            if let Err(e) = outcome {
                assert!(e.to_string().contains("out of memory"), "{e}");
                failed += 1;
            }
        }
    }
    assert!(failed > 60, "{failed} of 120 failed");
    // Without being allowed, a kernel has 48 KiB.
    let gpu = gpu(Arch::Sm89);
    let kernel = Kernel::by_name("sm89_e4m3_e4m3_gemm_promoted").unwrap();
    let config = Config { grid: [1, 1, 1], block: kernel.block, dynamic_shared: kernel.dynamic_shared };
    // SAFETY: the stand-in refuses what is wrong.
    let refused = unsafe { gpu.driver().launch(kernel, config, &[]) }.unwrap_err().to_string();
    assert!(refused.contains("101376") && refused.contains("49152"), "{refused}");
    let refused = gpu.driver().allow_shared(kernel, 100 * 1024).unwrap_err().to_string();
    assert!(refused.contains("102400"), "{refused}");
}
