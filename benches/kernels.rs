//! GEMM and grouped GEMM under criterion. Every answer is checked before it is timed. `cargo bench` runs all suites;
//! `cargo bench -- grouped` those of one kind.

mod sample;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use finegrain::gemm::{Accumulation, GemmProblem, GroupedProblem};
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

criterion_group!(kernels, gemm, grouped);
criterion_main!(kernels);
