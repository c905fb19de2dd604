//! Quantisers and dequantisers under criterion, past the cache, into memory that is there already. Every answer is
//! checked before it is timed.

mod sample;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use finegrain::Engine;
use finegrain::matrix::Matrix;
use finegrain::quant::{Element, Quantized, Quantizer, Recipe, Role};
use half::bf16;
use sample::sample;

const ROWS: usize = 4096;
const COLS: usize = 4096;

fn one<T: Element>(c: &mut Criterion, ty: &str, x: &Matrix<T>, name: &str, role: Role) {
    let recipe = name.parse::<Recipe>().unwrap();
    let quantizer = Quantizer::new(recipe);
    let Quantized { matrix, stats } = quantizer.quantize(x.view(), role).unwrap();
    let known = Engine::reference().quantize(x.view(), &recipe, role).unwrap();
    assert!((&matrix, stats) == (&known.matrix, known.stats), "{name} {role:?}: not the reference's bits");
    let mut out = matrix;
    let mut group = c.benchmark_group("quantize");
    group.sample_size(20).throughput(Throughput::Bytes(((size_of::<T>() + 1) * ROWS * COLS) as u64));
    group.bench_function(BenchmarkId::new(format!("{name} from {ty}"), format!("{role:?}")), |b| {
        b.iter(|| quantizer.quantize_into(black_box(x.view()), role, &mut out).unwrap());
    });
}

fn quantize(c: &mut Criterion) {
    let x = sample(ROWS, COLS, 2);
    let narrow = x.map(|&v| bf16::from_f32(v));
    for role in [Role::Activation, Role::Weight, Role::Transposed] {
        one(c, "f32", &x, "deepseek-v3", role);
        one(c, "bf16", &narrow, "deepseek-v3", role);
    }
    for name in ["te", "deepgemm-ue8m0", "mxfp8", "nvfp4", "e5m6"] {
        one(c, "f32", &x, name, Role::Activation);
    }
}

fn dequantize(c: &mut Criterion) {
    let x = sample(ROWS, COLS, 3);
    let engine = Engine::cpu();
    for (granule, role) in [("1x128", Role::Activation), ("128x128", Role::Weight)] {
        let q = Quantizer::new(Recipe::DEEPSEEK_V3).quantize(x.view(), role).unwrap().matrix;
        let mut wide = Matrix::filled(ROWS, COLS, 0f32);
        let mut narrow = Matrix::filled(ROWS, COLS, bf16::ZERO);
        engine.dequantize_into(q.view(), wide.view_mut()).unwrap();
        engine.dequantize_into(q.view(), narrow.view_mut()).unwrap();
        assert!(wide == q.view().dequantize_reference(), "{granule}: not the reference's f32");
        assert!(narrow == q.view().dequantize_reference(), "{granule}: not the reference's bf16");
        let mut group = c.benchmark_group("dequantize");
        group.sample_size(20).throughput(Throughput::Bytes((3 * ROWS * COLS) as u64));
        group.bench_function(BenchmarkId::new(granule, "bf16"), |b| {
            b.iter(|| engine.dequantize_into(black_box(q.view()), narrow.view_mut()).unwrap());
        });
        group.throughput(Throughput::Bytes((5 * ROWS * COLS) as u64));
        group.bench_function(BenchmarkId::new(granule, "f32"), |b| {
            b.iter(|| engine.dequantize_into(black_box(q.view()), wide.view_mut()).unwrap());
        });
    }
}

criterion_group!(suite, quantize, dequantize);
criterion_main!(suite);
