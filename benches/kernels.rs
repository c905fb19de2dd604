//! GEMM, emulated tensor cores and grouped GEMM under criterion. Every answer is checked before it is timed. `cargo bench` runs all suites;
//! `cargo bench -- grouped` those of one kind.

mod sample;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use finegrain::gemm::{Accumulation, Execution, GemmProblem, GroupedProblem};
use finegrain::quant::{Quantizer, Recipe};
use sample::sample;

fn gemm(c: &mut Criterion) {
    const K: usize = 1024;
    const N: usize = 256;
    let quantizer = Quantizer::new(Recipe::DEEPSEEK_V3);
    let b = quantizer.weight(sample(N, K, 4).view()).unwrap();
    let mut group = c.benchmark_group("gemm");
    group.sample_size(10);
    for m in [1, 16, 128] {
        let a = quantizer.activation(sample(m, K, 3).view()).unwrap();
        group.throughput(Throughput::Elements((2 * m * N * K) as u64));
        for name in ["f32", "exact", "hopper"] {
            let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
            let exact = problem.with_accumulation(Accumulation::EXACT).unwrap().run().unwrap();
            let problem = problem.with_arithmetic(&name.parse().unwrap()).unwrap();
            let d = problem.run().unwrap();
            let largest = exact.as_slice().iter().fold(0f32, |l, v| l.max(v.abs()));
            let off = d.as_slice().iter().zip(exact.as_slice()).fold(0f32, |o, (x, y)| o.max((x - y).abs()));
            assert!(off <= 5e-3 * largest, "{name}: {off} of {largest}");
            group.bench_function(BenchmarkId::new(name, format!("{m}x{N}x{K}")), |bench| {
                bench.iter(|| black_box(problem).run().unwrap());
            });
        }
    }
}

/// Tensor cores on this CPU's fastest instruction set, after all of D was compared with the reference.
fn emulate(c: &mut Criterion) {
    const SIZE: (usize, usize, usize) = (64, 256, 1024);
    let (m, n, k) = SIZE;
    let mut group = c.benchmark_group("emulate");
    group.sample_size(10).throughput(Throughput::Elements((2 * m * n * k) as u64));
    for (model, recipe) in [
        ("ada", "deepseek-v3"),
        ("hopper", "deepseek-v3"),
        ("blackwell", "deepseek-v3"),
        ("blackwell-mma", "deepseek-v3"),
        ("blackwell-mx", "mxfp8"),
        ("blackwell-fp4", "nvfp4"),
    ] {
        let quantizer = Quantizer::new(*Recipe::by_name(recipe).unwrap());
        let a = quantizer.activation(sample(m, k, 8).view()).unwrap().matrix;
        let b = quantizer.weight(sample(n, k, 9).view()).unwrap().matrix;
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
        let problem = problem.with_arithmetic(&model.parse().unwrap()).unwrap();
        let on = |backend| Execution { backend: Some(backend), ..Execution::default() };
        let emulated = on("emulated");
        assert_eq!(problem.run_with(&emulated).unwrap(), problem.run_with(&on("reference")).unwrap());
        group.bench_function(BenchmarkId::new(model, format!("{m}x{n}x{k}")), |bench| {
            bench.iter(|| black_box(problem).run_with(&emulated).unwrap());
        });
    }
}

fn grouped(c: &mut Criterion) {
    const K: usize = 512;
    let quantizer = Quantizer::new(Recipe::DEEPSEEK_V3);
    let a = quantizer.activation(sample(128, K, 5).view()).unwrap();
    let experts: Vec<_> = (0..4).map(|g| quantizer.weight(sample(128, K, 6 + g).view()).unwrap()).collect();
    let views: Vec<_> = experts.iter().map(|e| e.view()).collect();
    let rows: Vec<i32> = (0..128).map(|i| [0, 0, 1, 3][i / 32]).collect();
    let problem = GroupedProblem::contiguous(a.view(), &rows, &views).unwrap();
    let dense = GemmProblem::nt(a.view().row_range(64, 96), views[1]).unwrap().run().unwrap();
    assert_eq!(problem.run().unwrap().row(70), dense.row(6));
    let mut group = c.benchmark_group("grouped");
    group.sample_size(10).throughput(Throughput::Elements((2 * 128 * 128 * K) as u64));
    group.bench_function("contiguous/4x32x128x512", |b| b.iter(|| black_box(&problem).run().unwrap()));
}

criterion_group!(kernels, gemm, emulate, grouped);
criterion_main!(kernels);
