//! What the suites measure on.

use finegrain::matrix::Matrix;

/// Values of both signs over several binades, the same on every machine.
pub(crate) fn sample(rows: usize, cols: usize, seed: usize) -> Matrix<f32> {
    Matrix::from_fn(rows, cols, |i, j| {
        let n = (i * 7919 + j * 104_729 + seed * 15_485_863) % 2_000_003;
        (n as f32 / 1_000_001.5 - 1.0) * [0.25, 1.0, 3.0, 16.0][(i + j) % 4]
    })
}
