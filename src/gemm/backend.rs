//! What a GEMM implementation is.

use std::fmt;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::accumulation::Model;
use super::grouped::{GroupedPart, GroupedProblem};
use super::problem::GemmProblem;
use crate::error::Result;
use crate::matrix::{MatMut, Matrix};
use crate::parallel::Watch;
use crate::simd::Isa;

/// An implementation of the [contract](super): the reference's bits, or a refusal.
///
/// It answers with a [plan](GemmPlan), which can be printed and run.
///
/// ```
/// use finegrain::gemm::{GemmBackend, GemmProblem, Output, Reference};
/// use finegrain::matrix::Matrix;
/// use finegrain::parallel::Watch;
/// use finegrain::quant::{Quantizer, Recipe};
/// let x = Quantizer::new(Recipe::DEEPSEEK_V3).activation(Matrix::filled(2, 128, 448.0f32).view())?;
/// let problem = GemmProblem::nt(x.view(), x.view())?;
/// let plan = Reference.plan(&problem)?;
/// assert_eq!(plan.to_string(), "reference: one element of D after the other");
/// let mut d = Matrix::filled(2, 2, 0.0);
/// plan.run(Output::F32(d.view_mut()), &Watch::NONE)?;
/// assert_eq!(d.as_slice(), [128.0 * 448.0 * 448.0; 4]);
/// # Ok::<(), finegrain::Error>(())
/// ```
pub trait GemmBackend: Send + Sync {
    /// The name, as the command line takes it.
    fn name(&self) -> &'static str;

    /// The accumulation models that it has, each for some problems at least.
    fn models(&self) -> Vec<Model>;

    /// How this backend computes the problem.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) with the reason why it does not.
    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>>;

    /// How this backend computes a grouped problem: group by group, unless it knows better.
    ///
    /// # Errors
    /// As [`GemmBackend::plan`].
    fn plan_grouped<'p>(&'p self, problem: &'p GroupedProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        group_by_group(problem, |part| self.plan(part))
    }

    /// Whether this backend computes the problem.
    ///
    /// # Errors
    /// As [`GemmBackend::plan`].
    fn supports(&self, problem: &GemmProblem<'_>) -> Result<()> {
        self.plan(problem).map(drop)
    }

    /// Whether this backend computes all groups of the problem.
    ///
    /// # Errors
    /// As [`GemmBackend::plan`].
    fn supports_grouped(&self, problem: &GroupedProblem<'_>) -> Result<()> {
        self.plan_grouped(problem).map(drop)
    }

    /// Computes D into `out`.
    ///
    /// # Errors
    /// As [`GemmBackend::plan`] and [`GemmPlan::run`].
    fn run(&self, problem: &GemmProblem<'_>, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        self.plan(problem)?.run(out, watch)
    }

    /// Computes D of a grouped problem into `out`.
    ///
    /// # Errors
    /// As [`GemmBackend::plan`] and [`GemmPlan::run`].
    fn run_grouped(&self, problem: &GroupedProblem<'_>, out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        self.plan_grouped(problem)?.run(out, watch)
    }
}

/// How one problem is computed. Displayed: the backend, its instruction set or device, and how the problem is cut.
pub trait GemmPlan: fmt::Display + Send + Sync {
    /// The name of the backend that made it; of one that computes the first group.
    fn backend(&self) -> &'static str;

    /// The CPU's instruction set that it was made for, if for one.
    fn isa(&self) -> Option<Isa> {
        None
    }

    /// Computes D into `out`, all of it; callers have checked that it is M × N. The work is spread over the threads of the
    /// current pool; `watch` is told the multiply-adds done, which add up to M·N·K.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled); what the outside world may refuse while computing, such as a
    /// device.
    fn run(&self, out: Output<'_>, watch: &Watch<'_>) -> Result<()>;
}

/// A plan of the groups' plans, which `plan` gives; +0 where no group is.
///
/// # Errors
/// Those of `plan`.
pub(crate) fn group_by_group<'p>(
    problem: &'p GroupedProblem<'p>,
    plan: impl Fn(&'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>>,
) -> Result<Box<dyn GemmPlan + 'p>> {
    let of = |part: &'p GroupedPart<'p>| Ok((part.rows(), plan(part.problem())?));
    Ok(Box::new(GroupByGroup(problem.parts().iter().map(of).collect::<Result<_>>()?)))
}

struct GroupByGroup<'p>(Vec<(Range<usize>, Box<dyn GemmPlan + 'p>)>);

impl GemmPlan for GroupByGroup<'_> {
    fn backend(&self) -> &'static str {
        self.0.first().map_or("none", |(_, plan)| plan.backend())
    }

    fn isa(&self) -> Option<Isa> {
        self.0.first().and_then(|(_, plan)| plan.isa())
    }

    fn run(&self, mut out: Output<'_>, watch: &Watch<'_>) -> Result<()> {
        out.clear();
        self.0.iter().try_for_each(|(rows, plan)| plan.run(out.row_range(rows.start, rows.end), watch))
    }
}

impl fmt::Display for GroupByGroup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} groups, one after the other", self.0.len())?;
        // Groups of one height, which is what most problems have, are described once.
        let mut described = String::new();
        for (rows, plan) in &self.0 {
            let plan = plan.to_string();
            if plan != described {
                write!(f, "\n  from row {}: {plan}", rows.start)?;
                described = plan;
            }
        }
        Ok(())
    }
}

/// Where D goes, and in which format.
#[derive(Debug)]
pub enum Output<'a> {
    /// As computed.
    F32(MatMut<'a, f32>),
    /// Rounded once, to nearest even.
    Bf16(MatMut<'a, bf16>),
    /// Rounded once to F16, to nearest even.
    F16(MatMut<'a, f16>),
}

impl Output<'_> {
    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Output::F32(m) => m.shape(),
            Output::Bf16(m) => m.shape(),
            Output::F16(m) => m.shape(),
        }
    }

    /// Rows `start..end`, borrowed for a shorter time.
    pub fn row_range(&mut self, start: usize, end: usize) -> Output<'_> {
        match self {
            Output::F32(m) => Output::F32(m.reborrow().row_range(start, end)),
            Output::Bf16(m) => Output::Bf16(m.reborrow().row_range(start, end)),
            Output::F16(m) => Output::F16(m.reborrow().row_range(start, end)),
        }
    }

    /// Sets every element to +0.
    pub fn clear(&mut self) {
        match self {
            Output::F32(m) => m.reborrow().into_rows().into_iter().for_each(|row| row.fill(0.0)),
            Output::Bf16(m) => m.reborrow().into_rows().into_iter().for_each(|row| row.fill(bf16::ZERO)),
            Output::F16(m) => m.reborrow().into_rows().into_iter().for_each(|row| row.fill(f16::ZERO)),
        }
    }
}

/// D as `run` computes it in f32, rounded to F16: for backends that do not store it themselves. A NaN keeps the upper bits
/// of its pattern.
///
/// # Errors
/// Those of `run`.
pub(crate) fn rounded_to_f16(
    mut d: MatMut<'_, f16>,
    run: impl FnOnce(Output<'_>) -> Result<()>,
) -> Result<()> {
    let (rows, cols) = d.shape();
    let mut wide = Matrix::filled(rows, cols, 0.0f32);
    run(Output::F32(wide.view_mut()))?;
    (0..rows).for_each(|i| d.row_mut(i).convert_from_f32_slice(wide.row(i)));
    Ok(())
}
