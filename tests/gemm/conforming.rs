//! Comparing a backend with the reference on every instruction set.

use std::num::NonZeroUsize;

use finegrain::formats::Format;
use finegrain::gemm::{Execution, GemmBackend, GemmProblem, Output, Reference};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, ScaledMatrix};
use finegrain::simd::Isa;

use crate::common::isas::available;
use crate::common::operands::Random;

/// D of a backend in both output formats, as bits.
pub(crate) fn bits(
    backend: &dyn GemmBackend,
    problem: &GemmProblem<'_>,
    threads: usize,
) -> (Vec<u32>, Vec<u16>) {
    let execution = Execution { threads: NonZeroUsize::new(threads), ..Execution::default() };
    let (m, n) = problem.output_shape();
    // Whatever was there before must not show.
    let mut wide = Matrix::filled(m, n, f32::NAN);
    let mut narrow = Matrix::filled(m, n, half::bf16::NAN);
    execution.install(|| backend.run(problem, Output::F32(wide.view_mut()), &execution.watch())).unwrap();
    execution.install(|| backend.run(problem, Output::Bf16(narrow.view_mut()), &execution.watch())).unwrap();
    let wide = wide.as_slice().iter().map(|x| x.to_bits()).collect();
    (wide, narrow.as_slice().iter().map(|x| x.to_bits()).collect())
}

/// Compares the backend that `on` makes for every instruction set, on one thread and on three, with the reference;
/// returns how many combinations ran.
pub(crate) fn conforms<B: GemmBackend>(
    on: fn(Isa) -> finegrain::Result<B>,
    what: &str,
    problem: &GemmProblem<'_>,
) -> usize {
    let expected = bits(&Reference, problem, 2);
    let mut ran = 0;
    for isa in available() {
        let backend = on(isa).unwrap();
        if backend.supports(problem).is_err() {
            continue;
        }
        for threads in [1, 3] {
            let got = bits(&backend, problem, threads);
            let n = problem.n().max(1);
            if let Some(at) = got.0.iter().zip(&expected.0).position(|(a, b)| a != b) {
                panic!(
                    "{what} on {isa}, {threads} threads: D[{}, {}] is {:08x}, the reference says {:08x}",
                    at / n,
                    at % n,
                    got.0[at],
                    expected.0[at]
                );
            }
            assert_eq!(got.1, expected.1, "{what} on {isa}, {threads} threads, bf16");
            ran += 1;
        }
    }
    ran
}

/// Random codes among those that `keep` accepts, however few.
pub(crate) fn chosen(
    format: Format,
    rows: usize,
    cols: usize,
    seed: u64,
    keep: &dyn Fn(f32) -> bool,
) -> ScaledMatrix {
    let all = 0..=format.spec().code_mask() as u16;
    let accepted: Vec<u16> = all.filter(|&code| keep(format.decode_f32(code))).collect();
    let mut random = Random(seed);
    let codes = Matrix::from_fn(rows, cols, |_, _| accepted[random.below(accepted.len() as u64) as usize]);
    let wide = format.spec().bits() > 8;
    let codes = if wide { Codes::Words(codes) } else { Codes::Bytes(codes.map(|&c| c as u8)) };
    ScaledMatrix::new(format, codes, None).unwrap()
}
