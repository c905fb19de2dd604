//! Casts under criterion, from f32 and bf16, past the cache. Every answer is checked before it is timed.

mod sample;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use finegrain::Engine;
use finegrain::formats::{Format, Overflow, Rounding, TensorRounding};
use finegrain::quant::{Caster, Element};
use half::bf16;
use sample::sample;

const ROWS: usize = 4096;
const COLS: usize = 4096;

fn one<T: Element>(c: &mut Criterion, name: &str, x: &[T], format: Format, rounding: Rounding) {
    let rounding_of = TensorRounding::Fixed(rounding);
    let caster = Caster::new(format, rounding_of, Overflow::Saturate);
    let (mut codes, mut known) = (vec![0u8; x.len()], vec![0u8; x.len()]);
    let stats = caster.bytes(x, &mut codes).unwrap();
    assert_eq!(stats, Engine::reference().cast_bytes(&caster, x, &mut known).unwrap());
    assert!(codes == known, "{name} to {format}: not the reference's codes");
    let mut group = c.benchmark_group("cast");
    group.sample_size(20).throughput(Throughput::Bytes(((size_of::<T>() + 1) * x.len()) as u64));
    group.bench_function(BenchmarkId::new(format!("{name} to {format}"), format!("{rounding:?}")), |b| {
        b.iter(|| caster.bytes(black_box(x), &mut codes).unwrap());
    });
}

fn casts(c: &mut Criterion) {
    let x = sample(ROWS, COLS, 1);
    let narrow = x.map(|&v| bf16::from_f32(v));
    for format in [Format::E4M3, Format::E5M2, Format::E2M1] {
        one(c, "f32", x.as_slice(), format, Rounding::NearestEven);
        one(c, "bf16", narrow.as_slice(), format, Rounding::NearestEven);
    }
    one(c, "f32", x.as_slice(), Format::E4M3, Rounding::TowardZero);
}

criterion_group!(suite, casts);
criterion_main!(suite);
