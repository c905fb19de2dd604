//! What the rows of an operand hold that kernels do not: infinities, NaN, and too many exponents. Such rows are left to
//! the [`Reference`].

use std::ops::Range;

use finegrain_cpu::tensor_core::{BELOW, LEVELS};

use super::super::backend::{GemmBackend, Output};
use super::super::problem::GemmProblem;
use super::super::reference::Reference;
use super::super::tensor_core::TensorCore;
use crate::error::Result;
use crate::formats::{Format, FormatSpec, Specials};
use crate::matrix::{MatMut, MatRef, Matrix};
use crate::parallel::{self, Watch};
use crate::scaled::{CodesRef, Granule, ScaleGridRef, ScaledRef};

/// How far an element may lie below the largest exponent of its row, in formats of more than a byte: two of them leave a
/// byte that is not 0.
const MOST_BELOW: i32 = (BELOW as i32 - 1) / 2;

/// What was found in an operand.
pub(super) struct Rows {
    /// Runs of rows that kernels do not compute.
    pub(super) left: Vec<Range<usize>>,
    /// The largest exponent of each row, as the field of an f32; nothing for codes of a byte.
    pub(super) tops: Vec<u32>,
    /// The least and the largest exponent of the rows that kernels compute; none for codes of a byte without scales of the
    /// model's own.
    range: Option<(i32, i32)>,
}

impl Rows {
    /// Looks at all codes, and at scales of 8 bits.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub(super) fn of(x: &ScaledRef<'_>, watch: &Watch<'_>) -> Result<Rows> {
        /// Rows that one thread looks at.
        const ROWS: usize = 64;
        let rows = x.shape().0;
        let codes = x.codes();
        let row = |i: usize| match codes {
            CodesRef::Bytes(m) => of_bytes(x, m, i),
            CodesRef::Words(m) => exponents(x.format(), m.row(i).iter().map(|&c| u32::from(c))),
            CodesRef::Dwords(m) => exponents(x.format(), m.row(i).iter().copied()),
        };
        let of_part = |i: usize| -> Vec<Row> { Granule::span(rows, ROWS, i).map(row).collect() };
        let found = parallel::map(watch, rows.div_ceil(ROWS), &of_part)?.concat();
        let (mut left, mut start) = (Vec::new(), 0);
        for run in found.chunk_by(|a, b| a.left == b.left) {
            if run[0].left {
                left.push(start..start + run.len());
            }
            start += run.len();
        }
        let computed = || found.iter().filter(|row| !row.left);
        let range = computed().map(|row| row.least).min().zip(computed().map(|row| row.top).max());
        let ranged = !matches!(codes, CodesRef::Bytes(_)) || x.scales().is_some_and(|s| is_e8m0(s.grid));
        let tops = match codes {
            CodesRef::Bytes(_) => Vec::new(),
            CodesRef::Words(_) | CodesRef::Dwords(_) => {
                found.iter().map(|row| (row.top + F32.bias) as u32).collect()
            }
        };
        Ok(Rows { left, tops, range: range.filter(|_| ranged) })
    }

    /// One exponent for each operand that none of its elements lies above, so that kernels need none for each row: where
    /// the exponents of all products are such that a byte holds them. Rows are measured from it.
    pub(super) fn level([a, b]: &mut [Rows; 2]) -> Option<[i32; 2]> {
        let ((least_a, top_a), (least_b, top_b)) = (a.range?, b.range?);
        let levels = [top_a, LEVELS - top_a];
        // Bytes of A are how far it lies below its level, those of B give the rest; one is the least that a product leaves.
        let fits = top_b <= levels[1]
            && least_a + least_b + F32.bias > 0
            && levels[0] - least_a <= BELOW as i32
            && levels[1] - least_b < BELOW as i32;
        for (rows, level) in [a, b].into_iter().zip(levels).filter(|_| fits) {
            rows.tops.fill((level + F32.bias) as u32);
        }
        fits.then_some(levels)
    }
}

const F32: &FormatSpec = Format::F32.spec();

/// A row of an operand.
#[derive(Clone, Copy)]
struct Row {
    /// Whether kernels do not compute it.
    left: bool,
    /// Its least and its largest exponent, or what lies below and above.
    least: i32,
    top: i32,
}

fn is_e8m0(grid: ScaleGridRef<'_>) -> bool {
    matches!(grid, ScaleGridRef::E8M0(_))
}

/// Whether all elements of a row are finite, by their codes and by scales of 8 bits, and what exponents they may have.
fn of_bytes(x: &ScaledRef<'_>, codes: MatRef<'_, u8>, row: usize) -> Row {
    let spec = x.format().spec();
    let (magnitude, last) = ((spec.code_mask() & !spec.sign_mask()) as u8, spec.max_code() as u8);
    let has_specials = !matches!(spec.specials, Specials::None);
    // NaN is the last code of both scale formats. Scales in f32 are applied at promotion, where NaN may be.
    let (scales, nan) = match x.scales().map(|s| s.grid) {
        Some(ScaleGridRef::E8M0(grid)) => (Some(grid), 0xFF),
        Some(ScaleGridRef::E4M3(grid)) => (Some(grid), 0x7F),
        Some(ScaleGridRef::F32(_)) | None => (None, 0),
    };
    let granule = x.scales().map_or(1, |s| s.granule.rows());
    let scales = scales.map_or(&[][..], |grid| grid.row((row + x.row_offset()) / granule));
    let scaled_by_nan = scales.iter().any(|&scale| scale & nan == nan);
    // All of them, without a way out: registers of codes at a time.
    let largest = || codes.row(row).iter().fold(0, |largest, &code| (code & magnitude).max(largest));
    let range = scales.iter().min().zip(scales.iter().max());
    let (least, top) = range.map_or((0, 0), |(&least, &top)| (i32::from(least), i32::from(top)));
    let e8m0 = Format::E8M0.spec();
    Row {
        left: scaled_by_nan || has_specials && largest() > last,
        least: least - e8m0.bias + spec.emin(),
        top: top - e8m0.bias + spec.emax(),
    }
}

/// Whether all elements of a row are finite and of exponents near enough to the largest.
fn exponents(format: Format, codes: impl Iterator<Item = u32>) -> Row {
    let spec = format.spec();
    let dropped = spec.mantissa_bits - TensorCore::mantissa_bits(format);
    let read = ((spec.code_mask() & !spec.sign_mask()) as u32) >> dropped << dropped;
    // Zeros, one less than which is the largest number, have no exponent.
    let (mut largest, mut smallest) = (0, u32::MAX);
    for code in codes {
        let magnitude = code & read;
        largest = largest.max(magnitude);
        smallest = smallest.min(magnitude.wrapping_sub(1));
    }
    let exponent = |magnitude: u32| (magnitude >> spec.mantissa_bits).max(1) as i32 - spec.bias;
    let top = exponent(largest);
    let least = if largest == 0 { top } else { exponent(smallest.wrapping_add(1)) };
    let finite = largest <= spec.max_code() as u32;
    Row { left: !finite || top - least > MOST_BELOW, least, top }
}

/// Computes by the [`Reference`] the rows and columns of D whose operands kernels leave.
pub(super) fn recompute<T: Copy + Default>(
    problem: &GemmProblem<'_>,
    [a, b]: &[Rows; 2],
    mut d: MatMut<'_, T>,
    output: for<'a> fn(MatMut<'a, T>) -> Output<'a>,
) -> Result<()> {
    let (m, n) = d.shape();
    let rows = a.left.iter().map(|rows| (rows.clone(), 0..n));
    let cols = b.left.iter().map(|cols| (0..m, cols.clone()));
    for (rows, cols) in rows.chain(cols) {
        let a = problem.a().row_range(rows.start, rows.end);
        let b = problem.b().row_range(cols.start, cols.end);
        let part = GemmProblem::nt(a, b)?.with_accumulation(problem.accumulation())?;
        let part = match problem.addend() {
            Some(c) => part.with_addend(c.row_range(rows.start, rows.end).col_range(cols.start, cols.end))?,
            None => part,
        };
        let mut block = Matrix::filled(rows.len(), cols.len(), T::default());
        Reference.run(&part, output(block.view_mut()), &Watch::NONE)?;
        for (i, row) in rows.enumerate() {
            d.row_mut(row)[cols.clone()].copy_from_slice(block.row(i));
        }
    }
    Ok(())
}
