//! Comparing a backend with the reference on every instruction set.

use finegrain::engine::Product;
use finegrain::formats::Format;
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, ScaledMatrix};

use crate::common::operands::{Random, value};
use crate::common::runner::{self, on_cpu};

/// Compares the backend of this name on every instruction set, on one thread and on three, with the reference; returns how
/// many combinations ran.
pub(crate) fn conforms<'p>(backend: &'static str, what: &str, product: impl Into<Product<'p>>) -> usize {
    runner::gemm(&on_cpu(backend), what, product)
}

/// Random codes among those that `keep` accepts, however few.
pub(crate) fn chosen(
    format: Format,
    rows: usize,
    cols: usize,
    seed: u64,
    keep: &dyn Fn(f32) -> bool,
) -> ScaledMatrix {
    let all = 0..=format.spec().code_mask() as u32;
    let accepted: Vec<u32> = all.filter(|&code| keep(value(format, code))).collect();
    let mut random = Random(seed);
    let codes = Matrix::from_fn(rows, cols, |_, _| accepted[random.below(accepted.len() as u64) as usize]);
    ScaledMatrix::new(format, Codes::new(format, &codes), None).unwrap()
}
