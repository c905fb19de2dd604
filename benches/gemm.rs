//! GEMM, GEMV, grouped GEMM and emulated tensor cores under criterion. Every answer is checked before it is timed.
//! `cargo bench` runs all suites; `cargo bench --bench gemm -- grouped` those of one kind.

mod sample;

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use finegrain::Engine;
use finegrain::gemm::{Accumulation, GemmProblem, GroupedProblem};
use finegrain::quant::{Quantizer, Recipe};
use sample::sample;

/// One product on the backend that runs it by default, after all of D was compared with the reference.
fn product(group: &mut BenchmarkGroup<'_, WallTime>, (m, n, k): (usize, usize, usize)) {
    let quantizer = Quantizer::new(Recipe::DEEPSEEK_V3);
    let a = quantizer.activation(sample(m, k, 3).view()).unwrap();
    let b = quantizer.weight(sample(n, k, 4).view()).unwrap();
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    assert_eq!(problem.run().unwrap(), Engine::reference().gemm(&problem).unwrap());
    group.throughput(Throughput::Elements((2 * m * n * k) as u64));
    group.bench_function(BenchmarkId::from_parameter(format!("{m}x{n}x{k}")), |bench| {
        bench.iter(|| black_box(problem).run().unwrap());
    });
}

fn gemm(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    group.sample_size(10);
    for m in [128, 512] {
        product(&mut group, (m, 1024, 1024));
    }
}

/// Few rows: decoding tokens.
fn gemv(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemv");
    for m in [1, 4, 16] {
        product(&mut group, (m, 2048, 2048));
    }
}

/// The models that no fast backend computes.
fn reference(c: &mut Criterion) {
    const SIZE: (usize, usize, usize) = (16, 256, 1024);
    let (m, n, k) = SIZE;
    let quantizer = Quantizer::new(Recipe::DEEPSEEK_V3);
    let a = quantizer.activation(sample(m, k, 3).view()).unwrap();
    let b = quantizer.weight(sample(n, k, 4).view()).unwrap();
    let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
    let exact = problem.with_accumulation(Accumulation::EXACT).unwrap();
    // Sums in f32 differ from exact ones by rounding alone.
    let (d, sums) = (exact.run().unwrap(), problem.run().unwrap());
    let largest = d.as_slice().iter().fold(0f32, |l, v| l.max(v.abs()));
    let off = d.as_slice().iter().zip(sums.as_slice()).fold(0f32, |o, (x, y)| o.max((x - y).abs()));
    assert!(off <= 1e-5 * largest, "{off} of {largest}");
    let mut group = c.benchmark_group("reference");
    group.sample_size(10).throughput(Throughput::Elements((2 * m * n * k) as u64));
    group.bench_function("exact", |bench| bench.iter(|| black_box(exact).run().unwrap()));
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
        let quantizer = Quantizer::new(recipe.parse::<Recipe>().unwrap());
        let a = quantizer.activation(sample(m, k, 8).view()).unwrap().matrix;
        let b = quantizer.weight(sample(n, k, 9).view()).unwrap().matrix;
        let problem = GemmProblem::nt(a.view(), b.view()).unwrap();
        let problem = problem.with_arithmetic(&model.parse().unwrap()).unwrap();
        let emulated = Engine::by_name("emulated").unwrap();
        assert_eq!(emulated.gemm(&problem).unwrap(), Engine::reference().gemm(&problem).unwrap());
        group.bench_function(BenchmarkId::new(model, format!("{m}x{n}x{k}")), |bench| {
            bench.iter(|| emulated.gemm(black_box(&problem)).unwrap());
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

criterion_group!(products, gemm, gemv, grouped, emulate, reference);
criterion_main!(products);
