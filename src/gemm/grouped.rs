//! Grouped GEMMs: the three forms of mixture-of-experts layers, each a list of dense problems in one output.

use std::ops::Range;

use half::{bf16, f16};

use super::accumulation::{Accumulation, Model};
use super::arithmetic::Arithmetic;
use super::backend::{GemmBackend, Output};
use super::cpu::OnCpu;
use super::problem::GemmProblem;
use crate::error::{Error, Result};
use crate::matrix::{MatRef, Matrix};
use crate::parallel::Watch;
use crate::scaled::ScaledRef;

/// The row of a contiguous grouped problem that belongs to no group (DeepGEMM's alignment padding).
const PADDING: i32 = -1;

/// Several dense problems of one arithmetic that write disjoint rows of one output; rows that no problem writes are
/// +0. Every row has the bits of its dense problem, by construction.
///
/// | form | A | B | D |
/// |---|---|---|---|
/// | m-grouped contiguous (Fprop, Dgrad) | \[M, K\], a group for every row | \[N, K\] per group | \[M, N\] |
/// | m-grouped masked (decoding) | \[Mmax, K\] per group, its first rows valid | \[N, K\] per group | \[G·Mmax, N\] |
/// | k-grouped (Wgrad) | \[M, Kg\] per group | \[N, Kg\] per group | \[G·M, N\] |
///
/// Source: DeepGEMM's conventions.
///
/// ```
/// use finegrain::formats::Format;
/// use finegrain::gemm::{GemmProblem, GroupedProblem};
/// use finegrain::matrix::MatRef;
/// use finegrain::scaled::{CodesRef, ScaledRef};
/// let matrix = |codes, rows| {
///     ScaledRef::new(Format::E4M3, CodesRef::Bytes(MatRef::new(codes, rows, 32)?), None)
/// };
/// let (ones, twos) = ([0x38u8; 4 * 32], [0x40u8; 2 * 32]); // codes of 1 and 2
/// let experts = [matrix(&twos, 2)?, matrix(&ones[..64], 2)?];
/// let d = GroupedProblem::contiguous(matrix(&ones, 4)?, &[0, 0, -1, 1], &experts)?.run()?;
/// assert_eq!(d.as_slice(), [64.0, 64.0, 64.0, 64.0, 0.0, 0.0, 32.0, 32.0]);
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GroupedProblem<'a> {
    form: Box<GroupedForm<'a>>,
    parts: Vec<GroupedPart<'a>>,
    output: (usize, usize),
    accumulation: Accumulation,
    addend: Option<MatRef<'a, f32>>,
}

/// The operands as they were given: what a device takes in one launch.
#[derive(Clone, Debug)]
pub enum GroupedForm<'a> {
    /// m-grouped contiguous.
    Contiguous {
        /// All rows.
        a: ScaledRef<'a>,
        /// The group of each row, −1 for padding.
        groups: Vec<i32>,
        /// One per group.
        b: Vec<ScaledRef<'a>>,
    },
    /// m-grouped masked.
    Masked {
        /// One per group, all of one height.
        a: Vec<ScaledRef<'a>>,
        /// How many rows of each count.
        valid: Vec<usize>,
        /// One per group.
        b: Vec<ScaledRef<'a>>,
    },
    /// k-grouped.
    KGrouped {
        /// One per group.
        a: Vec<ScaledRef<'a>>,
        /// One per group.
        b: Vec<ScaledRef<'a>>,
    },
}

impl GroupedForm<'_> {
    /// The accumulation that fits the operands of all groups, K that of the longest.
    fn fit(&self, arithmetic: &Arithmetic) -> Result<Accumulation> {
        let (a, b) = match self {
            GroupedForm::Contiguous { a, b, .. } => (std::slice::from_ref(a), b),
            GroupedForm::Masked { a, b, .. } | GroupedForm::KGrouped { a, b } => (a.as_slice(), b),
        };
        let longest = a.iter().map(|x| x.shape().1).max().unwrap_or(0);
        arithmetic.fit(a, b, longest)
    }
}

/// One dense problem of a grouped one, and the rows of the output that it writes.
#[derive(Clone, Debug)]
pub struct GroupedPart<'a> {
    problem: GemmProblem<'a>,
    rows: Range<usize>,
}

impl<'a> GroupedPart<'a> {
    /// The dense problem.
    pub fn problem(&self) -> &GemmProblem<'a> {
        &self.problem
    }

    /// The rows of D that it writes.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }
}

impl<'a> GroupedProblem<'a> {
    /// m-grouped contiguous: row i of A is multiplied with B of group `groups[i]`; −1 is padding. Groups may come in
    /// any order, and more than once.
    ///
    /// # Errors
    /// [`Error::Shape`] if `groups` has not one index for every row of A, there is no group, or the B differ in shape
    /// or from A in K; [`Error::Invalid`] if an index is neither −1 nor a group.
    pub fn contiguous(a: ScaledRef<'a>, groups: &[i32], b: &[ScaledRef<'a>]) -> Result<Self> {
        let (m, k) = a.shape();
        let n = common_rows("B", b, k)?;
        if groups.len() != m {
            return Err(Error::Shape(format!("{} group indices for the {m} rows of A", groups.len())));
        }
        let legal = |&g: &i32| g == PADDING || usize::try_from(g).is_ok_and(|g| g < b.len());
        if let Some(row) = groups.iter().position(|g| !legal(g)) {
            let (index, last) = (groups[row], b.len() - 1);
            return Err(Error::Invalid(format!(
                "row {row} belongs to group {index}, expected 0 to {last}, or {PADDING} for padding"
            )));
        }
        let mut parts = Vec::new();
        let mut start = 0;
        for run in groups.chunk_by(|x, y| x == y) {
            let rows = start..start + run.len();
            start = rows.end;
            if run[0] != PADDING {
                parts.push((a.row_range(rows.start, rows.end), b[run[0] as usize], rows));
            }
        }
        let form = GroupedForm::Contiguous { a, groups: groups.to_vec(), b: b.to_vec() };
        Self::join(form, parts, (m, n))
    }

    /// m-grouped masked: of A of group g, the first `valid[g]` rows are multiplied with B of group g; the others are
    /// not read, and +0 in D.
    ///
    /// # Errors
    /// [`Error::Shape`] if A, B and `valid` differ in the number of groups or there is none, the A or the B differ in
    /// shape, or they differ in K; [`Error::Invalid`] if a group has more valid rows than rows.
    pub fn masked(a: &[ScaledRef<'a>], valid: &[usize], b: &[ScaledRef<'a>]) -> Result<Self> {
        same_count("A", a.len(), "B", b.len())?;
        same_count("A", a.len(), "valid row counts", valid.len())?;
        let k = a.first().map_or(0, |x| x.shape().1);
        let (rows, n) = (common_rows("A", a, k)?, common_rows("B", b, k)?);
        if let Some(g) = valid.iter().position(|&v| v > rows) {
            return Err(Error::Invalid(format!("group {g} has {} valid rows of {rows}", valid[g])));
        }
        let part = |g: usize| (a[g].row_range(0, valid[g]), b[g], g * rows..g * rows + valid[g]);
        let parts = (0..a.len()).map(part).collect();
        let form = GroupedForm::Masked { a: a.to_vec(), valid: valid.to_vec(), b: b.to_vec() };
        Self::join(form, parts, (a.len() * rows, n))
    }

    /// k-grouped: A [M, Kg] and B [N, Kg] of each group; the output stacks the groups' [M, N]. [`ScaledRef::k_groups`]
    /// cuts operands that are concatenated along K.
    ///
    /// The default arithmetic is one for all groups: that of the longest.
    ///
    /// # Errors
    /// [`Error::Shape`] if A and B differ in the number of groups or there is none, if the A differ in M or the B in N,
    /// or if A and B of a group differ in K.
    pub fn k_grouped(a: &[ScaledRef<'a>], b: &[ScaledRef<'a>]) -> Result<Self> {
        same_count("A", a.len(), "B", b.len())?;
        let (m, n) = (common_rows_any_k("A", a)?, common_rows_any_k("B", b)?);
        let parts = (0..a.len()).map(|g| (a[g], b[g], g * m..(g + 1) * m)).collect();
        let form = GroupedForm::KGrouped { a: a.to_vec(), b: b.to_vec() };
        Self::join(form, parts, (a.len() * m, n))
    }

    fn join(
        form: GroupedForm<'a>,
        parts: Vec<(ScaledRef<'a>, ScaledRef<'a>, Range<usize>)>,
        output: (usize, usize),
    ) -> Result<Self> {
        let dense = |(a, b, rows)| Ok(GroupedPart { problem: GemmProblem::nt(a, b)?, rows });
        let parts = parts.into_iter().map(dense).collect::<Result<_>>()?;
        let accumulation = form.fit(&Arithmetic::Fitting(Model::F32))?;
        GroupedProblem { form: Box::new(form), parts, output, accumulation, addend: None }
            .with_accumulation(accumulation)
    }

    /// The same problem in another arithmetic.
    ///
    /// # Errors
    /// As [`GemmProblem::with_accumulation`], for any of the groups.
    pub fn with_accumulation(mut self, accumulation: Accumulation) -> Result<Self> {
        for part in &mut self.parts {
            part.problem = part.problem.with_accumulation(accumulation)?;
        }
        Ok(GroupedProblem { accumulation, ..self })
    }

    /// The same problem in another arithmetic, with an interval that fits all groups where it leaves that open.
    ///
    /// # Errors
    /// As [`GemmProblem::with_accumulation`].
    pub fn with_arithmetic(self, arithmetic: &Arithmetic) -> Result<Self> {
        let accumulation = self.fitted(arithmetic)?;
        self.with_accumulation(accumulation)
    }

    /// The accumulation that an arithmetic is for these operands, whether it is legal or not.
    ///
    /// # Errors
    /// As [`GemmProblem::fitted`].
    pub fn fitted(&self, arithmetic: &Arithmetic) -> Result<Accumulation> {
        self.form.fit(arithmetic)
    }

    /// The same problem with C, of the output's shape, added to the rows that belong to a group.
    ///
    /// # Errors
    /// [`Error::Shape`] if C has another shape; [`Error::Unsupported`] as [`GemmProblem::with_addend`].
    pub fn with_addend(mut self, c: MatRef<'a, f32>) -> Result<Self> {
        let (m, n) = self.output;
        if c.shape() != (m, n) {
            let (rows, cols) = c.shape();
            return Err(Error::Shape(format!("the addend is {rows}×{cols}, the output {m}×{n}")));
        }
        for part in &mut self.parts {
            part.problem = part.problem.with_addend(c.row_range(part.rows.start, part.rows.end))?;
        }
        Ok(GroupedProblem { addend: Some(c), ..self })
    }

    /// D in f32, on this CPU: the fastest backend that has these bits, the threads of the current pool. An
    /// [`Engine`](crate::Engine) runs it elsewhere, and watched.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if `FINEGRAIN_ISA` names an instruction set that the CPU lacks.
    pub fn run(&self) -> Result<Matrix<f32>> {
        let (rows, cols) = self.output_shape();
        let mut d = Matrix::filled(rows, cols, 0.0);
        OnCpu::AUTO.run_grouped(self, Output::F32(d.view_mut()), &Watch::NONE)?;
        Ok(d)
    }

    /// D rounded once to BF16, to nearest even.
    ///
    /// # Errors
    /// As [`GroupedProblem::run`].
    pub fn run_bf16(&self) -> Result<Matrix<bf16>> {
        let (rows, cols) = self.output_shape();
        let mut d = Matrix::filled(rows, cols, bf16::ZERO);
        OnCpu::AUTO.run_grouped(self, Output::Bf16(d.view_mut()), &Watch::NONE)?;
        Ok(d)
    }

    /// D rounded once to F16, to nearest even.
    ///
    /// # Errors
    /// As [`GroupedProblem::run`].
    pub fn run_f16(&self) -> Result<Matrix<f16>> {
        let (rows, cols) = self.output_shape();
        let mut d = Matrix::filled(rows, cols, f16::ZERO);
        OnCpu::AUTO.run_grouped(self, Output::F16(d.view_mut()), &Watch::NONE)?;
        Ok(d)
    }

    /// The operands as they were given.
    pub fn form(&self) -> &GroupedForm<'a> {
        &self.form
    }

    /// C, of the output's shape, if there is one.
    pub fn addend(&self) -> Option<MatRef<'a, f32>> {
        self.addend
    }

    /// The dense problems, in the order of their rows.
    pub fn parts(&self) -> &[GroupedPart<'a>] {
        &self.parts
    }

    /// (rows, columns) of D.
    pub fn output_shape(&self) -> (usize, usize) {
        self.output
    }

    /// The arithmetic of all groups.
    pub fn accumulation(&self) -> Accumulation {
        self.accumulation
    }
}

fn same_count(one: &str, ones: usize, other: &str, others: usize) -> Result<()> {
    if ones == others {
        return Ok(());
    }
    Err(Error::Shape(format!("the number of groups differs: {ones} of {one}, {others} of {other}")))
}

/// The rows of every group's operand, whose columns may differ.
fn common_rows_any_k(name: &str, groups: &[ScaledRef<'_>]) -> Result<usize> {
    let Some(first) = groups.first() else {
        return Err(Error::Shape(format!("no group of {name}: a grouped problem has at least one")));
    };
    let rows = first.shape().0;
    match groups.iter().position(|x| x.shape().0 != rows) {
        None => Ok(rows),
        Some(g) => {
            let other = groups[g].shape().0;
            Err(Error::Shape(format!("{name} of group {g} has {other} rows, that of group 0 has {rows}")))
        }
    }
}

/// The rows of every group's operand, whose columns are `k`.
fn common_rows(name: &str, groups: &[ScaledRef<'_>], k: usize) -> Result<usize> {
    let rows = common_rows_any_k(name, groups)?;
    match groups.iter().position(|x| x.shape().1 != k) {
        None => Ok(rows),
        Some(g) => {
            let other = groups[g].shape().1;
            Err(Error::Shape(format!("{name} of group {g} is {rows}×{other}, expected K = {k}")))
        }
    }
}
