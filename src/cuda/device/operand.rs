//! GEMM operands in device memory, as the fast kernels like them: rows of codes at multiples of 16 bytes, scales
//! MN-major where each row has its own.

use super::Cuda;
use crate::cuda::driver::Driver;
use crate::error::Result;
use crate::matrix::Matrix;
use crate::scaled::layout::ScaleLayout;
use crate::scaled::{CodesRef, ScaledRef};

/// Bytes of one access.
const ACCESS: usize = 16;
/// Rows of a block; the other granule that kernels take has one row.
const BLOCK_ROWS: usize = 128;

/// An operand on the device; the fields are arguments of `kernels/common/gemm_problem.cuh`.
pub(super) struct Operand<M> {
    pub(super) codes: M,
    pub(super) scales: M,
    pub(super) ld: usize,
    pub(super) scale_row: usize,
    pub(super) scale_interval: usize,
    pub(super) granule_rows: usize,
    /// Bytes from a group's codes to the next group's.
    pub(super) group: usize,
    /// Scales from a group's to the next group's.
    pub(super) scale_group: usize,
}

/// How the groups of an operand lie.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Groups {
    /// One below the other.
    Stacked,
    /// Side by side along K.
    AlongK,
}

/// Matrices of one height side by side.
fn beside(parts: &[Matrix<f32>]) -> Matrix<f32> {
    let rows = parts.first().map_or(0, Matrix::rows);
    let cols = parts.iter().map(Matrix::cols).sum();
    let values = (0..rows).flat_map(|i| parts.iter().flat_map(move |p| p.row(i).iter().copied()));
    Matrix::from_vec(rows, cols, values.collect()).expect("parts of one height")
}

/// Rows that share a scale: those of a block where that holds for all groups, else one. The scales of larger granules
/// are written once for each block.
fn granule_rows(xs: &[ScaledRef<'_>]) -> usize {
    let by_blocks = |x: &ScaledRef<'_>| {
        let rows = x.scales().map_or(usize::MAX, |s| s.granule.rows());
        (rows == usize::MAX || rows.is_multiple_of(BLOCK_ROWS)) && x.row_offset().is_multiple_of(BLOCK_ROWS)
    };
    if xs.iter().all(by_blocks) { BLOCK_ROWS } else { 1 }
}

impl<D: Driver> Cuda<D> {
    /// Uploads the groups of an operand, all of one height and of 8-bit codes, with a scale for each `granule_k`
    /// elements of K, over which theirs are constant.
    pub(super) fn place(
        &self,
        xs: &[ScaledRef<'_>],
        groups: Groups,
        granule_k: usize,
    ) -> Result<Operand<D::Memory>> {
        let rows = xs.first().map_or(0, |x| x.shape().0);
        let depths = xs.iter().map(|x| x.shape().1);
        let k = if groups == Groups::AlongK { depths.sum::<usize>() } else { depths.max().unwrap_or(0) };
        let ld = k.next_multiple_of(ACCESS);

        let height = if groups == Groups::AlongK { rows } else { rows * xs.len() };
        let mut codes = vec![0u8; height * ld];
        let (mut row, mut col) = (0, 0);
        for x in xs {
            let CodesRef::Bytes(from) = x.codes() else { unreachable!("the formats were checked: 8 bits") };
            for (i, line) in from.iter_rows().enumerate() {
                codes[(row + i) * ld + col..][..line.len()].copy_from_slice(line);
            }
            match groups {
                Groups::Stacked => row += rows,
                Groups::AlongK => col += x.shape().1,
            }
        }

        let granule_rows = granule_rows(xs);
        let grid = |x: &ScaledRef<'_>| {
            let (down, across) = (rows.div_ceil(granule_rows), x.shape().1.div_ceil(granule_k));
            Matrix::from_fn(down, across, |i, t| x.scale_at(i * granule_rows, t * granule_k))
        };
        let mut grids: Vec<Matrix<f32>> = xs.iter().map(grid).collect();
        if groups == Groups::AlongK {
            grids = vec![beside(&grids)];
        }
        let (down, across) = grids.first().map_or((0, 0), Matrix::shape);
        let (layout, scale_row, scale_interval) = if granule_rows == 1 {
            (ScaleLayout::MnMajorTma, 1, ScaleLayout::MnMajorTma.stored_len(down, 1))
        } else {
            (ScaleLayout::Cublas2d, ScaleLayout::Cublas2d.stored_len(1, across), 1)
        };
        let scales: Vec<f32> = grids.iter().flat_map(|grid| layout.store(grid.view())).collect();
        Ok(Operand {
            codes: self.driver.upload(&codes)?,
            scales: self.driver.upload(bytemuck::cast_slice(&scales))?,
            ld,
            scale_row,
            scale_interval,
            granule_rows,
            group: rows * ld,
            scale_group: layout.stored_len(down, across),
        })
    }
}
