//! Casts as the conversion instructions of an H200 do them: all 2^32 patterns of f32, and all of F16 and BF16.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::golden::{self, Score, bits, exact, nan_e4m3, nan_e5m2, recording, recording_cut};
use finegrain::checkpoint::TensorFile;
use finegrain::formats::{Format, Overflow, Rounding, TensorRounding};
use finegrain::quant::Caster;
use half::{bf16, f16};

const FORMATS: [Format; 2] = [Format::E4M3, Format::E5M2];

/// Patterns of a block, which share their upper halves.
const BLOCK: usize = 1 << 16;

/// The NaN of the instructions, in both formats.
const NAN: u8 = 0x7F;

fn caster(format: Format, overflow: Overflow) -> Caster {
    Caster::new(format, TensorRounding::Fixed(Rounding::NearestEven), overflow)
}

/// Σ code · ((2·pattern + 1) · 2654435761) mod 2^64 over the patterns of a block, NaN as the instructions write it.
fn sum(caster: &Caster, block: usize, x: &mut [f32], codes: &mut [u8]) -> u64 {
    let first = (block * BLOCK) as u32;
    x.iter_mut().zip(first..).for_each(|(x, pattern)| *x = f32::from_bits(pattern));
    caster.bytes(x, codes).unwrap();
    if x[1].is_nan() {
        for (x, code) in x.iter().zip(codes.iter_mut()).filter(|(x, _)| x.is_nan()) {
            assert!(*code & 0x7F > 0x7C, "{x} is no NaN: {code:#x}");
            *code = NAN;
        }
    }
    // Σ code and Σ code · (pattern − first), rows of 256 at a time, whose sums fit 32 bits.
    let (mut plain, mut weighted) = (0u64, 0u64);
    for (row, codes) in codes.chunks_exact(256).enumerate() {
        let (mut of_row, mut in_row) = (0u32, 0u32);
        for (i, &code) in codes.iter().enumerate() {
            of_row += u32::from(code);
            in_row += i as u32 * u32::from(code);
        }
        plain += u64::from(of_row);
        weighted += u64::from(in_row) + 256 * row as u64 * u64::from(of_row);
    }
    let first = 2 * u64::from(first) + 1;
    first.wrapping_mul(plain).wrapping_add(2 * weighted).wrapping_mul(2_654_435_761)
}

/// The sums of `blocks`, on all cores.
fn sums(caster: &Caster, blocks: &[usize]) -> Vec<u64> {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut x, mut codes, mut found) = (vec![0.0; BLOCK], vec![0; BLOCK], Vec::new());
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&block) = blocks.get(at) else { return found };
            found.push((at, sum(caster, block, &mut x, &mut codes)));
        }
    };
    let mut found: Vec<(usize, u64)> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    found.sort_unstable();
    found.into_iter().map(|(_, sum)| sum).collect()
}

/// Compares the sums of every `stride`th block; a cut of the file has fewer of them itself.
fn every_pattern(file: &TensorFile, stride: usize, title: &str) {
    let mut score = Score::default();
    for format in FORMATS {
        for (word, overflow) in [("sat", Overflow::Saturate), ("nosat", Overflow::NonSaturating)] {
            let name = format!("f32.{format}.{word}.sums");
            let want = bits(file, &name);
            let of_file = BLOCK / want.len();
            let blocks: Vec<usize> = (0..want.len()).step_by(stride).collect();
            let want: Vec<u64> = blocks.iter().map(|&i| want[i]).collect();
            let blocks: Vec<usize> = blocks.iter().map(|i| i * of_file).collect();
            let got = sums(&caster(format, overflow), &blocks);
            score.eq(&name, &got, &want, exact, golden::all);
        }
    }
    score.finish(title);
}

/// 4·2^32 casts; without optimisation every 256th block of them.
#[test]
fn every_f32_is_cast_as_an_h200_does() {
    let stride = if cfg!(debug_assertions) { 256 } else { 1 };
    every_pattern(&recording("casts"), stride, "casts of f32, sums of 65536");
}

#[test]
fn f32_is_cast_as_in_the_committed_cut() {
    every_pattern(&recording_cut("casts"), 16, "casts of f32, committed cut, sums of 65536");
}

/// By the instructions with saturation, and by PyTorch without; E8M0 of PyTorch is that of magnitudes, and 2^-127 for zero,
/// which has no code here.
fn every_half(file: &TensorFile, title: &str) {
    let mut score = Score::default();
    let floats = |from: &str, pattern: u16| match from {
        "f16" => f16::from_bits(pattern).to_f32(),
        _ => bf16::from_bits(pattern).to_f32(),
    };
    let names: Vec<&String> = file.names().iter().filter(|name| name.ends_with(".table")).collect();
    for name in names {
        let words: Vec<&str> = name.split('.').collect();
        let torch = words[0] == "torch";
        let (from, to) = if torch { (words[1], words[2]) } else { (words[0], words[1]) };
        let format: Format = to.parse().unwrap();
        let overflow = if torch { Overflow::NonSaturating } else { Overflow::Saturate };
        // PyTorch's table begins at the pattern of the smallest i16.
        let first: u16 = if torch { 0x8000 } else { 0 };
        let x: Vec<f32> = (0..=u16::MAX).map(|i| floats(from, i.wrapping_add(first))).collect();
        let x: Vec<f32> = if to == "e8m0" { x.iter().map(|x| x.abs()).collect() } else { x };
        let mut codes = vec![0u8; x.len()];
        caster(format, overflow).bytes(&x, &mut codes).unwrap();
        let got: Vec<u64> = codes.iter().map(|&c| u64::from(c)).collect();
        let same = |g, w| match format {
            Format::E4M3 => nan_e4m3(g, w),
            Format::E5M2 => nan_e5m2(g, w),
            _ => false,
        };
        let zero = |i: usize| to == "e8m0" && x[i] == 0.0;
        let want = bits(file, name);
        assert!((0..x.len()).filter(|&i| zero(i)).all(|i| (got[i], want[i]) == (0xFF, 0)), "{name}");
        score.eq(name, &got, &want, same, zero);
    }
    score.finish(title);
}

#[test]
fn every_half_is_cast_as_an_h200_does() {
    every_half(&recording("casts"), "casts of f16 and bf16");
    every_half(&recording_cut("casts"), "casts of f16 and bf16, committed cut");
}
