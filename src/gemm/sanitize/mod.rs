//! A sanitiser for grouped GEMMs: does padding leak into results, and does the layout keep its rules?
//!
//! Grouped kernels read whole tiles, so they read rows and scales that belong to no group and must keep them out of every
//! valid row. [`sanitize`] runs a kernel on operands whose padding is zero and again with every [`Poison`] in it, and
//! lists the valid rows of D that change: NaN spreads through any arithmetic, a huge value through any but a
//! multiplication by zero. Poisoned are
//!
//! - the codes of rows of A that belong to no group, and of the whole B of groups that no row belongs to;
//! - scales of granules that hold no valid row;
//! - what [`GroupedOperands::padding_scale`] tells a kernel to put into the padding of a scale
//!   [layout](crate::scaled::layout).
//!
//! [`GroupedOperands::violations`] lists what kernels ask of a layout beyond that: see [`Rule`].
//!
//! ```
//! use finegrain::formats::Format;
//! use finegrain::Engine;
//! use finegrain::gemm::sanitize::{GroupedOperands, Groups, sanitize};
//! use finegrain::matrix::Matrix;
//! use finegrain::scaled::{Codes, ScaledMatrix};
//! let ones = |rows| ScaledMatrix::new(Format::E4M3, Codes::Bytes(Matrix::filled(rows, 64, 0x38)), None);
//! let operands =
//!     GroupedOperands::new(vec![ones(4)?], vec![ones(2)?, ones(2)?], Groups::Contiguous(vec![0, -1, 1, -1]))?;
//! let engine = Engine::cpu();
//! let kernel = |operands: &GroupedOperands| engine.gemm(&operands.problem()?);
//! assert!(sanitize(&operands, &kernel)?.is_empty());
//!
//! // A kernel that reads one row too far.
//! let leaky = |operands: &GroupedOperands| {
//!     let a = operands.a()[0].dequantize()?;
//!     Ok(Matrix::from_fn(4, 2, |i, _| a.row(i).iter().sum::<f32>() + 0.0 * a.row((i + 1) % 4)[0]))
//! };
//! assert_eq!(sanitize(&operands, &leaky)?[0].first, (0, 0));
//! # Ok::<(), finegrain::Error>(())
//! ```

#![forbid(unsafe_code)]

mod layout;

use serde::Serialize;

pub use layout::{LayoutRules, Rule, Violation};

use super::grouped::GroupedProblem;
use crate::error::{Error, Result};
use crate::formats::{Format, FormatSpec};
use crate::matrix::Matrix;
use crate::scaled::{Codes, Granule, ScaleGrid, ScaledMatrix, ScaledRef, Scales};

/// Which rows, or which part of K, belong to which group. The forms of [`GroupedProblem`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    /// The group of each row of the one A; −1 is padding.
    Contiguous(Vec<i32>),
    /// Rows valid in A of each group.
    Masked(Vec<usize>),
    /// A and B of each group have their own K; nothing is padding.
    K,
}

/// The operands of a grouped GEMM, owned, so that their padding can be replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupedOperands {
    a: Vec<ScaledMatrix>,
    b: Vec<ScaledMatrix>,
    groups: Groups,
    padding: Option<Poison>,
}

/// What is put where nothing may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Poison {
    /// NaN codes, or the largest where the format has no NaN, with NaN scales.
    Nan,
    /// The largest code with the largest finite scale.
    Huge,
    /// Infinite codes, or the most negative where the format has no infinity, with infinite or the largest scales.
    Infinite,
}

impl Poison {
    /// Every poison.
    pub const ALL: [Poison; 3] = [Poison::Nan, Poison::Huge, Poison::Infinite];

    fn code(self, format: Format) -> u16 {
        use crate::formats::Unpacked;
        let spec: &FormatSpec = format.spec();
        let code = match self {
            Poison::Nan => spec.nan_code(),
            Poison::Huge => None,
            Poison::Infinite if spec.has_infinity() => spec.encode(Unpacked::Infinite { negative: true }),
            Poison::Infinite => Some(spec.max_code() | spec.sign_mask()),
        };
        code.unwrap_or(spec.max_code()) as u16
    }

    fn scale(self) -> f32 {
        match self {
            Poison::Nan => f32::NAN,
            Poison::Huge => f32::MAX,
            Poison::Infinite => f32::INFINITY,
        }
    }

    /// The nearest that a byte of this format has.
    fn scale_byte(self, format: Format) -> u8 {
        let spec = format.spec();
        let code = match self {
            Poison::Nan => spec.nan_code().unwrap_or(spec.max_code()),
            Poison::Huge | Poison::Infinite => spec.max_code(),
        };
        code as u8
    }
}

/// A kernel under test: D of the operands, its rows as [`GroupedProblem`] stacks them. Any closure is one.
pub trait GroupedKernel {
    /// Computes D; what it writes into padding rows does not matter.
    ///
    /// # Errors
    /// The kernel's own.
    fn run(&self, operands: &GroupedOperands) -> Result<Matrix<f32>>;
}

impl<F: Fn(&GroupedOperands) -> Result<Matrix<f32>>> GroupedKernel for F {
    fn run(&self, operands: &GroupedOperands) -> Result<Matrix<f32>> {
        self(operands)
    }
}

/// Padding that reached valid rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Leak {
    /// What was in the padding.
    pub poison: Poison,
    /// Valid rows of D that changed.
    pub rows: usize,
    /// Row and column of the first element that changed.
    pub first: (usize, usize),
    /// What is there with padding of zeros.
    pub clean: f32,
    /// What is there with poisoned padding.
    pub poisoned: f32,
}

/// Runs a kernel on clean and on poisoned padding; no leak means that no valid row changed by a bit under any poison.
///
/// # Errors
/// Those of the kernel; [`Error::Shape`] if its D has not the shape of the problem's.
pub fn sanitize(operands: &GroupedOperands, kernel: &dyn GroupedKernel) -> Result<Vec<Leak>> {
    let run = |padding| {
        let padded = operands.with_padding(padding);
        let d = kernel.run(&padded)?;
        padded.check_output(&d)?;
        Ok::<_, Error>(d)
    };
    let clean = run(None)?;
    let leak = |poison| Ok(operands.leak(poison, &clean, &run(Some(poison))?));
    Poison::ALL.into_iter().map(leak).filter_map(Result::transpose).collect()
}

impl GroupedOperands {
    /// Joins operands: one A for [`Groups::Contiguous`], one for each group otherwise, and one B for each group.
    ///
    /// # Errors
    /// [`Error::Shape`] if their number, or the number of indices or counts, is another. Wrong indices are no error here
    /// but [violations](GroupedOperands::violations).
    pub fn new(a: Vec<ScaledMatrix>, b: Vec<ScaledMatrix>, groups: Groups) -> Result<Self> {
        let (matrices, indices) = match &groups {
            Groups::Contiguous(rows) => (1, a.first().map(|a| (rows.len(), a.shape().0))),
            Groups::Masked(valid) => (b.len(), Some((valid.len(), b.len()))),
            Groups::K => (b.len(), None),
        };
        if a.len() != matrices || b.is_empty() {
            return Err(Error::Shape(format!(
                "{} matrices A and {} of B, expected {matrices} of A and a B for each group",
                a.len(),
                b.len()
            )));
        }
        if let Some((found, expected)) = indices.filter(|(found, expected)| found != expected) {
            return Err(Error::Shape(format!("{found} indices or counts, expected {expected}")));
        }
        Ok(GroupedOperands { a, b, groups, padding: None })
    }

    /// A, or the A of each group.
    pub fn a(&self) -> &[ScaledMatrix] {
        &self.a
    }

    /// B of each group.
    pub fn b(&self) -> &[ScaledMatrix] {
        &self.b
    }

    /// Which rows belong to which group.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// What a kernel that stores scales in a padded [layout](crate::scaled::layout) is to fill its padding with: 0, or
    /// the poison.
    pub fn padding_scale(&self) -> f32 {
        self.padding.map_or(0.0, Poison::scale)
    }

    /// The problem that they are.
    ///
    /// # Errors
    /// Those of the constructors of [`GroupedProblem`].
    pub fn problem(&self) -> Result<GroupedProblem<'_>> {
        let b = views(&self.b);
        match &self.groups {
            Groups::Contiguous(rows) => GroupedProblem::contiguous(self.a[0].view(), rows, &b),
            Groups::Masked(valid) => GroupedProblem::masked(&views(&self.a), valid, &b),
            Groups::K => GroupedProblem::k_grouped(&views(&self.a), &b),
        }
    }

    /// Whether row i of matrix g of A belongs to a group.
    fn is_valid(&self, g: usize, i: usize) -> bool {
        match &self.groups {
            Groups::Contiguous(rows) => usize::try_from(rows[i]).is_ok_and(|group| group < self.b.len()),
            Groups::Masked(valid) => i < valid[g],
            Groups::K => true,
        }
    }

    /// Whether any row belongs to group g.
    fn is_used(&self, g: usize) -> bool {
        match &self.groups {
            Groups::Contiguous(rows) => rows.iter().any(|&group| usize::try_from(group) == Ok(g)),
            Groups::Masked(valid) => valid[g] > 0,
            Groups::K => true,
        }
    }

    /// For each row of D, whether it belongs to a group.
    pub fn valid_rows(&self) -> Vec<bool> {
        self.a
            .iter()
            .enumerate()
            .flat_map(|(g, a)| (0..a.shape().0).map(move |i| self.is_valid(g, i)))
            .collect()
    }

    /// The same operands with this in the padding; zeros for `None`.
    pub fn with_padding(&self, padding: Option<Poison>) -> GroupedOperands {
        let a = self.a.iter().enumerate().map(|(g, a)| repadded(a, |i| self.is_valid(g, i), padding));
        let b = self.b.iter().enumerate().map(|(g, b)| repadded(b, |_| self.is_used(g), padding));
        GroupedOperands { a: a.collect(), b: b.collect(), groups: self.groups.clone(), padding }
    }

    fn check_output(&self, d: &Matrix<f32>) -> Result<()> {
        let expected = (self.valid_rows().len(), self.b[0].shape().0);
        if d.shape() == expected {
            return Ok(());
        }
        let ((rows, cols), (m, n)) = (d.shape(), expected);
        Err(Error::Shape(format!("the kernel's D is {rows}×{cols}, expected {m}×{n}")))
    }

    /// What differs between the valid rows of two D, the second computed with poisoned padding; `None` if they are equal
    /// bit for bit.
    ///
    /// # Panics
    /// If a D has not a row for each of [`GroupedOperands::valid_rows`].
    pub fn leak(&self, poison: Poison, clean: &Matrix<f32>, poisoned: &Matrix<f32>) -> Option<Leak> {
        let mut leak: Option<Leak> = None;
        for (i, _) in self.valid_rows().into_iter().enumerate().filter(|(_, valid)| *valid) {
            let (x, y) = (clean.row(i), poisoned.row(i));
            let Some(j) = (0..x.len()).find(|&j| x[j].to_bits() != y[j].to_bits()) else { continue };
            let first = Leak { poison, rows: 0, first: (i, j), clean: x[j], poisoned: y[j] };
            leak.get_or_insert(first).rows += 1;
        }
        leak
    }
}

fn views(all: &[ScaledMatrix]) -> Vec<ScaledRef<'_>> {
    all.iter().map(ScaledMatrix::view).collect()
}

/// A matrix with other codes in its padding rows and other scales in granules of nothing but padding.
fn repadded(m: &ScaledMatrix, valid: impl Fn(usize) -> bool, padding: Option<Poison>) -> ScaledMatrix {
    let (format, mut codes, scales) = m.clone().into_parts();
    let rows = m.shape().0;
    let code = padding.map_or(0, |p| p.code(format));
    for i in (0..rows).filter(|&i| !valid(i)) {
        match &mut codes {
            Codes::Bytes(m) => m.row_mut(i).fill(code as u8),
            Codes::Words(m) => m.row_mut(i).fill(code),
            Codes::Dwords(m) => m.row_mut(i).fill(u32::from(code)),
        }
    }
    let scales = scales.map(|Scales { granule, mut grid, tensor }| {
        let grid_rows = grid.view().shape().0;
        for r in (0..grid_rows).filter(|&r| !Granule::span(rows, granule.rows(), r).any(&valid)) {
            match &mut grid {
                ScaleGrid::F32(m) => m.row_mut(r).fill(padding.map_or(0.0, Poison::scale)),
                ScaleGrid::E8M0(m) => m.row_mut(r).fill(padding.map_or(0, |p| p.scale_byte(Format::E8M0))),
                ScaleGrid::E4M3(m) => m.row_mut(r).fill(padding.map_or(0, |p| p.scale_byte(Format::E4M3))),
            }
        }
        Scales { granule, grid, tensor }
    });
    ScaledMatrix::new(format, codes, scales).expect("shapes stay as they were")
}
