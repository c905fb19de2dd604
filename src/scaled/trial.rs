//! Small matrices that stand for all, to find the instruction set that is fastest.

use half::bf16;

use super::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};
use crate::error::Result;
use crate::formats::Format;
use crate::matrix::Matrix;
use crate::parallel::Watch;
use crate::simd::{Cpu, Path, Trial};

/// Rows and columns of dequantised weights.
const SIZE: usize = 256;

/// Finite E4M3 codes of both signs, with ordinary scales.
pub(crate) fn operand(rows: usize, cols: usize, granule: Granule) -> Result<ScaledMatrix> {
    let code = |i: usize, j: usize| ((37 * i + 11 * j) % 0x78) as u8 | ((i ^ j) as u8 & 1) << 7;
    let (grid_rows, grid_cols) = granule.grid(rows, cols);
    let grid = ScaleGrid::F32(Matrix::filled(grid_rows, grid_cols, 1.5));
    let scales = Scales { granule, grid, tensor: 1.0 };
    ScaledMatrix::new(Format::E4M3, Codes::Bytes(Matrix::from_fn(rows, cols, code)), Some(scales))
}

/// Weights in 128×128 blocks to bf16.
pub(crate) fn dequantize() -> Trial {
    let weights = operand(SIZE, SIZE, Granule::BLOCK_128X128);
    let mut values = Matrix::filled(SIZE, SIZE, bf16::ZERO);
    Box::new(move |isa| {
        let cpu = Cpu { path: Path::Registers(Some(isa)), watch: Watch::NONE };
        let done = weights.as_ref().map(|w| w.view().dequantize_on(values.view_mut(), &cpu));
        assert!(matches!(done, Ok(Ok(()))), "legal weights on a set that the CPU has");
    })
}
