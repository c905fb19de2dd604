//! Operands in device memory, as the fast kernels like them: rows of codes at multiples of 16 bytes, scales MN-major where
//! each row has its own. What was put there once is not put there again.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use super::Cuda;
use crate::cuda::driver::Driver;
use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::scaled::layout::ScaleLayout;
use crate::scaled::{Codes, CodesRef, Elsewhere, Resident, ScaledRef};

/// Bytes of one access.
const ACCESS: usize = 16;
/// Rows of a block; the other granule that kernels take has one row.
pub(super) const BLOCK_ROWS: usize = 128;

/// A matrix, or one group of several that lie below each other.
pub(super) struct Codes2d<M> {
    pub(super) memory: Arc<M>,
    /// Bytes before the first.
    pub(super) offset: usize,
    /// Bytes from row to row.
    pub(super) ld: usize,
}

/// Its scales: f32, for granules of so many rows and columns.
pub(super) struct Scales2d<M> {
    pub(super) memory: Arc<M>,
    /// Scales before the first.
    pub(super) offset: usize,
    pub(super) granule_rows: usize,
    /// Elements of K that share a scale; `None` for all.
    pub(super) granule_k: Option<usize>,
    /// Scales from those of some rows to those of the next.
    pub(super) row: usize,
    /// Scales from those of some columns to those of the next.
    pub(super) interval: usize,
}

impl<M> Clone for Codes2d<M> {
    fn clone(&self) -> Self {
        Codes2d { memory: Arc::clone(&self.memory), ..*self }
    }
}

impl<M> Clone for Scales2d<M> {
    fn clone(&self) -> Self {
        Scales2d { memory: Arc::clone(&self.memory), ..*self }
    }
}

/// Bytes from row to row of a matrix of codes.
pub(super) fn pitch(cols: usize) -> usize {
    cols.next_multiple_of(ACCESS)
}

/// How a grid of scales lies, for granules of so many rows: the layout, and the strides of rows and columns.
pub(super) fn grid_layout(
    granule_rows: usize,
    (down, across): (usize, usize),
) -> (ScaleLayout, usize, usize) {
    if granule_rows == 1 {
        (ScaleLayout::MnMajorTma, 1, ScaleLayout::MnMajorTma.stored_len(down, 1))
    } else {
        (ScaleLayout::Cublas2d, ScaleLayout::Cublas2d.stored_len(1, across), 1)
    }
}

/// A matrix that lies on a device.
pub(super) struct OnDevice<D: Driver> {
    driver: Arc<D>,
    shape: (usize, usize),
    pub(super) codes: Codes2d<D::Memory>,
    pub(super) scales: Option<Scales2d<D::Memory>>,
    /// The codes, once the host has asked for them.
    fetched: OnceLock<Codes>,
}

impl<D: Driver> OnDevice<D> {
    /// Codes of a byte each.
    pub(super) fn new(
        driver: &Arc<D>,
        shape: (usize, usize),
        codes: Codes2d<D::Memory>,
        scales: Option<Scales2d<D::Memory>>,
    ) -> Self {
        OnDevice { driver: Arc::clone(driver), shape, codes, scales, fetched: OnceLock::new() }
    }
}

impl<D: Driver> Elsewhere for OnDevice<D> {
    fn fetch(&self) -> Result<CodesRef<'_>> {
        if let Some(codes) = self.fetched.get() {
            return Ok(codes.view());
        }
        let ((rows, cols), Codes2d { memory, offset, ld }) = (self.shape, &self.codes);
        let mut codes = Vec::with_capacity(rows * cols);
        if rows * cols != 0 {
            let bytes = self.driver.download_part(memory, *offset..offset + rows * ld)?;
            bytes.chunks_exact(*ld).for_each(|row| codes.extend(&row[..cols]));
        }
        let codes = Codes::Bytes(Matrix::from_vec(rows, cols, codes)?);
        Ok(self.fetched.get_or_init(|| codes).view())
    }

    fn handle(&self) -> &dyn Any {
        self
    }
}

/// An operand of a product as kernels take it; the fields are arguments of `kernels/common/gemm_problem.cuh`.
pub(super) struct Operand<M> {
    pub(super) codes: Codes2d<M>,
    pub(super) scales: Scales2d<M>,
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

/// The elements of K over which the scales of a matrix are constant; `None` for all.
fn granule_k(x: &ScaledRef<'_>) -> Option<usize> {
    x.scales().map(|s| s.granule.cols()).filter(|&cols| cols < x.shape().1)
}

impl<D: Driver> Cuda<D> {
    /// The matrix on this device, if it was put there.
    pub(super) fn resident<'a>(&self, x: &ScaledRef<'a>) -> Option<&'a OnDevice<D>> {
        let on = x.handle()?.downcast_ref::<OnDevice<D>>()?;
        Arc::ptr_eq(&on.driver, &self.driver).then_some(on)
    }

    /// Puts matrices of one shape, of 8-bit codes, below each other, for kernels to find them there.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what kernels do not read, and with the driver's word.
    pub(crate) fn keep(&self, xs: &[ScaledRef<'_>]) -> Result<Vec<Resident>> {
        let Some(first) = xs.first() else { return Ok(Vec::new()) };
        let kind = |x: &ScaledRef<'_>| (x.shape(), granule_k(x));
        for x in xs {
            let bits = x.format().spec().bits();
            if kind(x) != kind(first) || bits != 8 {
                return Err(Error::Unsupported(format!(
                    "the CUDA kernels keep matrices of 8-bit codes, those of a group of one shape and granule, not {} \
                     of {:?} beside {} of {:?}",
                    x.format(),
                    x.shape(),
                    first.format(),
                    first.shape()
                )));
            }
        }
        let constant = granule_k(first);
        let placed = self.place(xs, Groups::Stacked, constant.unwrap_or(first.shape().1.max(1)))?;
        let resident = |(g, x): (usize, &ScaledRef<'_>)| {
            let Operand { codes, scales, group, scale_group } = &placed;
            let codes = Codes2d { offset: codes.offset + g * group, ..codes.clone() };
            // One scale for all of K stands where that of any of its parts is looked for.
            let interval = if constant.is_some() { scales.interval } else { 0 };
            let offset = scales.offset + g * scale_group;
            let scales = Scales2d { offset, granule_k: constant, interval, ..scales.clone() };
            let on = OnDevice::new(&self.driver, x.shape(), codes, Some(scales));
            Resident::new(x.format(), x.shape(), Arc::new(on), x.own_scales())
        };
        Ok(xs.iter().enumerate().map(resident).collect())
    }

    /// The groups of an operand, all of one height and of 8-bit codes, with a scale for each `granule_k` elements of K, over
    /// which theirs are constant. What is on the device already stays where it is.
    pub(super) fn place(
        &self,
        xs: &[ScaledRef<'_>],
        groups: Groups,
        granule_k: usize,
    ) -> Result<Operand<D::Memory>> {
        let (codes, group) = match self.stacked(xs, groups) {
            Some(found) => found,
            None => self.upload_codes(xs, groups)?,
        };
        let (scales, scale_group) = match self.stacked_scales(xs, groups, granule_k) {
            Some(found) => found,
            None => self.upload_scales(xs, groups, granule_k)?,
        };
        Ok(Operand { codes, scales, group, scale_group })
    }

    /// The codes of groups that lie below each other on the device, as kernels need them: at one distance.
    fn stacked(&self, xs: &[ScaledRef<'_>], groups: Groups) -> Option<(Codes2d<D::Memory>, usize)> {
        if groups != Groups::Stacked {
            return None;
        }
        let all = xs.iter().map(|x| Some(&self.resident(x)?.codes)).collect::<Option<Vec<_>>>()?;
        let one = all.first()?;
        let distance = distance(all.iter().map(|c| c.offset))?;
        let together = all.iter().all(|c| Arc::ptr_eq(&c.memory, &one.memory) && c.ld == one.ld);
        together.then(|| ((*one).clone(), distance))
    }

    /// The same of their scales, where those are for as many elements of K.
    fn stacked_scales(
        &self,
        xs: &[ScaledRef<'_>],
        groups: Groups,
        granule_k: usize,
    ) -> Option<(Scales2d<D::Memory>, usize)> {
        if groups != Groups::Stacked {
            return None;
        }
        let all = xs.iter().map(|x| self.resident(x)?.scales.as_ref()).collect::<Option<Vec<_>>>()?;
        let one = all.first()?;
        let distance = distance(all.iter().map(|s| s.offset))?;
        let together = all.iter().all(|s| {
            Arc::ptr_eq(&s.memory, &one.memory)
                && (s.granule_rows, s.row, s.interval) == (one.granule_rows, one.row, one.interval)
                && s.granule_k.is_none_or(|k| k == granule_k)
        });
        together.then(|| ((*one).clone(), distance))
    }

    fn upload_codes(&self, xs: &[ScaledRef<'_>], groups: Groups) -> Result<(Codes2d<D::Memory>, usize)> {
        let rows = xs.first().map_or(0, |x| x.shape().0);
        let depths = xs.iter().map(|x| x.shape().1);
        let k = if groups == Groups::AlongK { depths.sum::<usize>() } else { depths.max().unwrap_or(0) };
        let ld = pitch(k);
        let height = if groups == Groups::AlongK { rows } else { rows * xs.len() };
        let mut codes = vec![0u8; height * ld];
        let (mut row, mut col) = (0, 0);
        for x in xs {
            x.fetch()?;
            let CodesRef::Bytes(from) = x.codes() else { unreachable!("the formats were checked: 8 bits") };
            for (i, line) in from.iter_rows().enumerate() {
                codes[(row + i) * ld + col..][..line.len()].copy_from_slice(line);
            }
            match groups {
                Groups::Stacked => row += rows,
                Groups::AlongK => col += x.shape().1,
            }
        }
        let memory = Arc::new(self.driver.upload(&codes)?);
        Ok((Codes2d { memory, offset: 0, ld }, rows * ld))
    }

    fn upload_scales(
        &self,
        xs: &[ScaledRef<'_>],
        groups: Groups,
        granule_k: usize,
    ) -> Result<(Scales2d<D::Memory>, usize)> {
        let rows = xs.first().map_or(0, |x| x.shape().0);
        let granule_rows = granule_rows(xs);
        let grid = |x: &ScaledRef<'_>| {
            let (down, across) = (rows.div_ceil(granule_rows), x.shape().1.div_ceil(granule_k));
            Matrix::from_fn(down, across, |i, t| x.scale_at(i * granule_rows, t * granule_k))
        };
        let mut grids: Vec<Matrix<f32>> = xs.iter().map(grid).collect();
        if groups == Groups::AlongK {
            grids = vec![beside(&grids)];
        }
        let shape = grids.first().map_or((0, 0), Matrix::shape);
        let (layout, row, interval) = grid_layout(granule_rows, shape);
        let scales: Vec<f32> = grids.iter().flat_map(|grid| layout.store(grid.view())).collect();
        let memory = Arc::new(self.driver.upload(bytemuck::cast_slice(&scales))?);
        let scales = Scales2d { memory, offset: 0, granule_rows, granule_k: Some(granule_k), row, interval };
        Ok((scales, layout.stored_len(shape.0, shape.1)))
    }
}

/// The one distance at which ascending offsets lie; 0 for a single one.
fn distance(offsets: impl Iterator<Item = usize>) -> Option<usize> {
    let offsets: Vec<usize> = offsets.collect();
    let steps: Option<Vec<usize>> = offsets.windows(2).map(|w| w[1].checked_sub(w[0])).collect();
    let steps = steps?;
    let first = steps.first().copied().unwrap_or(0);
    steps.iter().all(|&s| s == first).then_some(first)
}
