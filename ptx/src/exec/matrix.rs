//! ldmatrix and mma.sync: fragments as the PTX manual lays them out, arithmetic as finegrain's models have it.
//!
//! With g = lane / 4 and t = lane mod 4, and rows of A and B as bytes (4 codes of 8 bits or 2 of 16 a register):
//!
//! ```text
//! A (16 rows)   a0: row g,     bytes 4t…4t+3      a1: row g + 8, the same bytes
//!               a2: row g,     bytes 16 + 4t…     a3: row g + 8
//! B (8 columns) b0: column g,  bytes 4t…4t+3      b1: bytes 16 + 4t…
//! C, D (16×8)   c0, c1: row g, columns 2t, 2t+1   c2, c3: row g + 8
//! ```

use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem, Model};
use finegrain::matrix::MatRef;
use finegrain::scaled::{CodesRef, ScaledRef};

use super::block::{Block, Step};
use super::step::unset_register;
use super::warp::Lanes;
use crate::fault::FaultKind;
use crate::ptx::{MmaShape, Op, Ty};

const M: usize = 16;
const N: usize = 8;

impl Block<'_, '_> {
    pub(super) fn matrix(&mut self, w: usize, op: &Op, pc: usize, active: u32) -> Step<()> {
        if active != u32::MAX {
            return Err((FaultKind::PartialWarp { active }, active.trailing_zeros().min(31) as u8));
        }
        match op {
            Op::LoadMatrix { dst, transposed, address } => {
                let rows = self.matrix_rows(w, *address, dst.len(), pc)?;
                for (dst, matrix) in dst.iter().zip(rows.chunks(8)) {
                    let element = |row: usize, column: usize| {
                        let (row, column) = if *transposed { (column, row) } else { (row, column) };
                        u64::from(u16::from_le_bytes([matrix[row][2 * column], matrix[row][2 * column + 1]]))
                    };
                    let values: Lanes = std::array::from_fn(|lane| {
                        let (g, t) = (lane / 4, lane % 4);
                        element(g, 2 * t) | element(g, 2 * t + 1) << 16
                    });
                    self.warps[w].write(*dst, &values, 0, active);
                }
            }
            Op::Mma { shape, d, a, b, c } => {
                let warp = &self.warps[w];
                let fetch = |sources: &[_], what| {
                    let found: Vec<(Lanes, u32)> = sources.iter().map(|s| warp.read(*s)).collect();
                    match found.iter().map(|f| f.1).find(|u| *u != 0) {
                        Some(unset) => Err(unset_register(what, unset)),
                        None => Ok(found.into_iter().map(|f| f.0).collect::<Vec<_>>()),
                    }
                };
                let (a, b, c) =
                    (fetch(a, "the mma's A")?, fetch(b, "the mma's B")?, fetch(c, "the mma's C")?);
                let result = self.multiply(*shape, &a, &b, &c).map_err(|kind| (kind, 0))?;
                for (dst, values) in d.iter().zip(&result) {
                    self.warps[w].write(*dst, values, 0, active);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn multiply(
        &self,
        shape: MmaShape,
        a: &[Lanes],
        b: &[Lanes],
        c: &[Lanes],
    ) -> Result<[Lanes; 4], FaultKind> {
        let row_bytes = shape.row_bytes;
        let (mut rows, mut columns, mut sums) = ([0u8; M * 32], [0u8; N * 32], [0f32; M * N]);
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for (i, register) in a.iter().enumerate() {
                let at = (g + 8 * (i % 2)) * row_bytes + 16 * (i / 2) + 4 * t;
                rows[at..at + 4].copy_from_slice(&(register[lane] as u32).to_le_bytes());
            }
            for (i, register) in b.iter().enumerate() {
                let at = g * row_bytes + 16 * i + 4 * t;
                columns[at..at + 4].copy_from_slice(&(register[lane] as u32).to_le_bytes());
            }
            for (i, register) in c.iter().enumerate() {
                sums[(g + 8 * (i / 2)) * N + 2 * t + i % 2] = f32::from_bits(register[lane] as u32);
            }
        }
        let options = self.machine.options;
        let eight = matches!(shape.a, Ty::E4m3 | Ty::E5m2);
        let model = if eight { self.machine.fp8_model } else { options.half_model };
        let d = product(model, shape, N, &rows[..M * row_bytes], &columns[..N * row_bytes], &sums)
            .map_err(|e| FaultKind::Unsupported(e.to_string()))?;
        let element = |i: usize, lane: usize| d[(lane / 4 + 8 * (i / 2)) * N + 2 * (lane % 4) + i % 2];
        Ok(std::array::from_fn(|i| std::array::from_fn(|lane| u64::from(element(i, lane).to_bits()))))
    }
}

fn format(ty: Ty) -> Format {
    match ty {
        Ty::E4m3 => Format::E4M3,
        Ty::E5m2 => Format::E5M2,
        Ty::F16 => Format::F16,
        _ => Format::Bf16,
    }
}

/// D = A·Bᵀ + C as one chain of the model, of 16 rows and `n` columns.
pub(super) fn product(
    model: Model,
    shape: MmaShape,
    n: usize,
    a: &[u8],
    b: &[u8],
    c: &[f32],
) -> finegrain::Result<Vec<f32>> {
    let words = |bytes: &[u8]| -> Vec<u16> {
        bytes.as_chunks().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect()
    };
    let (wide_a, wide_b);
    let (codes_a, codes_b) = if matches!(shape.a, Ty::E4m3 | Ty::E5m2) {
        let k = shape.row_bytes;
        (CodesRef::Bytes(MatRef::new(a, M, k)?), CodesRef::Bytes(MatRef::new(b, n, k)?))
    } else {
        let k = shape.row_bytes / 2;
        (wide_a, wide_b) = (words(a), words(b));
        (CodesRef::Words(MatRef::new(&wide_a, M, k)?), CodesRef::Words(MatRef::new(&wide_b, n, k)?))
    };
    let a = ScaledRef::new(format(shape.a), codes_a, None)?;
    let b = ScaledRef::new(format(shape.b), codes_b, None)?;
    let problem = GemmProblem::nt(a, b)?
        .with_accumulation(Accumulation::new(model).without_promotion())?
        .with_addend(MatRef::new(c, M, n)?)?;
    Ok(problem.run()?.as_slice().to_vec())
}
