//! Built-in data: what real tensors do to FP8, without a file.
//!
//! Drawn from a counter-based generator with additions and multiplications only, so that every machine makes the same
//! bits.

use crate::error::Result;
use crate::formats::counter_hash;
use crate::linear::Linear;
use crate::matrix::Matrix;

/// Uniform in [0, 1), a multiple of 2^−32.
fn uniform(seed: u64, index: u64) -> f64 {
    (counter_hash(seed, index) >> 32) as f64 / (1u64 << 32) as f64
}

/// Sum of 12 uniforms less 6: mean 0, variance 1, bell-shaped (Irwin–Hall), |x| ≤ 6.
fn bell(seed: u64, index: u64) -> f64 {
    (0..12).map(|i| uniform(seed, 12 * index + i)).sum::<f64>() - 6.0
}

/// 2^(−range · u) for u uniform, by halvings and one linear step: a magnitude spread over `range` binades.
fn spread(seed: u64, index: u64, range: i32) -> f64 {
    let u = uniform(seed, index) * f64::from(range);
    2f64.powi(-(u as i32)) * (1.0 - 0.5 * u.fract())
}

/// A Linear as in a trained transformer: activations with a few channels 30 times the others and tokens of different
/// loudness, bell-shaped weights, gradients tiny and spread over 12 binades from token to token.
///
/// # Errors
/// None; the shapes agree.
pub fn transformer_linear() -> Result<Linear> {
    const TOKENS: usize = 128;
    const IN: usize = 768;
    const OUT: usize = 256;
    const OUTLIERS: [usize; 5] = [17, 205, 390, 555, 701];
    let x = Matrix::from_fn(TOKENS, IN, |t, c| {
        let channel = if OUTLIERS.contains(&c) { 30.0 } else { spread(2, c as u64, 3) };
        (bell(1, (t * IN + c) as u64) * channel * spread(3, t as u64, 2)) as f32
    });
    let w = Matrix::from_fn(OUT, IN, |o, c| (bell(4, (o * IN + c) as u64) * 0.03) as f32);
    let dy = Matrix::from_fn(TOKENS, OUT, |t, o| {
        (bell(5, (t * OUT + o) as u64) * 1e-3 * spread(6, t as u64, 12) * spread(7, (t * OUT + o) as u64, 4))
            as f32
    });
    Linear::new(x, w, Some(dy))
}

/// Products of one sign, K = 4096: uniform [0, 1) on both sides, where truncating accumulators drift.
///
/// # Errors
/// None; the shapes agree.
pub fn one_signed_linear() -> Result<Linear> {
    const K: usize = 4096;
    let x = Matrix::from_fn(16, K, |t, c| uniform(8, (t * K + c) as u64) as f32);
    let w = Matrix::from_fn(64, K, |o, c| uniform(9, (o * K + c) as u64) as f32);
    Linear::new(x, w, None)
}
