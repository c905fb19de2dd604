//! Operands for GEMM tests: random codes, random scales, given values.
#![allow(dead_code, unreachable_pub)]

use finegrain::formats::{Format, Unpacked};
use finegrain::matrix::Matrix;
use finegrain::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, Scales};

/// Pseudorandom numbers of the test's own.
pub struct Random(pub u64);

impl Random {
    /// The next number, of 53 bits.
    pub fn next(&mut self) -> u64 {
        // xorshift64* (Marsaglia; Vigna 2016)
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The value of a code.
pub fn value(format: Format, code: u32) -> f32 {
    format.spec().decode(u64::from(code)).to_f32()
}

/// Random codes that `keep` accepts.
pub fn codes(format: Format, rows: usize, cols: usize, seed: u64, keep: impl Fn(f32) -> bool) -> Codes {
    let mut random = Random(seed | 1);
    let code = |_, _| loop {
        let code = (random.next() & format.spec().code_mask()) as u32;
        if keep(value(format, code)) {
            return code;
        }
    };
    Codes::new(format, &Matrix::from_fn(rows, cols, code))
}

/// Random finite codes without scales.
pub fn unscaled(format: Format, rows: usize, cols: usize, seed: u64) -> ScaledMatrix {
    ScaledMatrix::new(format, codes(format, rows, cols, seed, f32::is_finite), None).unwrap()
}

/// Random codes and random scales in [2^-4, 2^4).
pub fn scaled(format: Format, rows: usize, cols: usize, granule: Granule, seed: u64) -> ScaledMatrix {
    let mut random = Random(seed ^ 0x5CA1E);
    let (grid_rows, grid_cols) = granule.grid(rows, cols);
    let scale = |_, _| f32::from_bits((123 << 23) + random.below(8 << 23) as u32);
    let grid = ScaleGrid::F32(Matrix::from_fn(grid_rows, grid_cols, scale));
    let scales = Scales { granule, grid, tensor: 1.0 };
    ScaledMatrix::new(format, codes(format, rows, cols, seed, f32::is_finite), Some(scales)).unwrap()
}

/// Random finite codes with E8M0 scales in [2^-7, 2^7], 1×32.
pub fn e8m0(format: Format, rows: usize, cols: usize, seed: u64) -> ScaledMatrix {
    let mut random = Random(seed ^ 0xE8);
    let (grid_rows, grid_cols) = Granule::MX_1X32.grid(rows, cols);
    let grid = ScaleGrid::E8M0(Matrix::from_fn(grid_rows, grid_cols, |_, _| 120 + random.below(15) as u8));
    let scales = Scales { granule: Granule::MX_1X32, grid, tensor: 1.0 };
    ScaledMatrix::new(format, codes(format, rows, cols, seed, f32::is_finite), Some(scales)).unwrap()
}

/// Random E2M1 codes with E4M3 scales in 1×16 and a scale of the tensor.
pub fn nvfp4(rows: usize, cols: usize, seed: u64, tensor: f32) -> ScaledMatrix {
    let mut random = Random(seed ^ 0xF4);
    let (grid_rows, grid_cols) = Granule::NVFP4_1X16.grid(rows, cols);
    let grid = ScaleGrid::E4M3(Matrix::from_fn(grid_rows, grid_cols, |_, _| random.below(0x7F) as u8));
    let scales = Scales { granule: Granule::NVFP4_1X16, grid, tensor };
    ScaledMatrix::new(Format::E2M1, codes(Format::E2M1, rows, cols, seed, |_| true), Some(scales)).unwrap()
}

/// Codes of values that the format has.
pub fn of_values(format: Format, rows: usize, cols: usize, values: &[f32]) -> ScaledMatrix {
    let code = |&x: &f32| format.spec().encode(Unpacked::from_f32(x)).unwrap() as u32;
    let codes = Matrix::from_vec(rows, cols, values.iter().map(code).collect()).unwrap();
    ScaledMatrix::new(format, Codes::new(format, &codes), None).unwrap()
}

/// Values of both signs over many binades, some tiles of them zero.
pub fn sample(rows: usize, cols: usize, seed: u64) -> Matrix<f32> {
    let mut random = Random(seed | 1);
    Matrix::from_fn(rows, cols, |i, j| {
        let value = (random.below(1 << 20) as f32 - 524_288.0) * (random.below(24) as f32 - 30.0).exp2();
        if (i + j / 128).is_multiple_of(11) { 0.0 } else { value }
    })
}
