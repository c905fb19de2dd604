//! Products on this CPU: which of its backends computes a problem.

use super::accumulation::Model;
use super::backend::{GemmBackend, GemmPlan, group_by_group};
use super::blocked::Blocked;
use super::emulated::Emulated;
use super::fold;
use super::grouped::GroupedProblem;
use super::problem::GemmProblem;
use super::reference::Reference;
use crate::error::{Error, Result};
use crate::simd::Isa;

/// The backends of a CPU as one: each problem, and each group of one, is computed by the fastest that does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnCpu {
    isa: Option<Isa>,
    blocked: Blocked,
    emulated: Emulated,
    only: Option<Only>,
}

/// The one backend that may compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Only {
    /// [`Blocked`].
    Blocked,
    /// [`Emulated`].
    Emulated,
    /// [`Reference`].
    Reference,
}

impl OnCpu {
    /// All backends, on the instruction sets of choice.
    pub(crate) const AUTO: OnCpu =
        OnCpu { isa: None, blocked: Blocked::AUTO, emulated: Emulated::AUTO, only: None };

    /// The same on an instruction set.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the CPU lacks it.
    pub(crate) fn on(self, isa: Isa) -> Result<Self> {
        let (blocked, emulated) = (Blocked::on(isa)?, Emulated::on(isa)?);
        Ok(OnCpu { isa: Some(isa), blocked, emulated, ..self })
    }

    /// The same with one of the backends.
    pub(crate) const fn only(self, only: Only) -> Self {
        OnCpu { only: Some(only), ..self }
    }

    /// The backends that may compute, the fastest first.
    fn backends(&self) -> impl Iterator<Item = &dyn GemmBackend> {
        let all: [(Only, &dyn GemmBackend); 3] =
            [(Only::Blocked, &self.blocked), (Only::Emulated, &self.emulated), (Only::Reference, &Reference)];
        let only = self.only;
        all.into_iter().filter(move |(name, _)| only.is_none_or(|only| only == *name)).map(|(_, b)| b)
    }
}

impl GemmBackend for OnCpu {
    fn name(&self) -> &'static str {
        match self.only {
            None => "cpu",
            Some(_) => self.backends().next().map_or("cpu", GemmBackend::name),
        }
    }

    fn models(&self) -> Vec<Model> {
        let mut models: Vec<Model> = Vec::new();
        for model in self.backends().flat_map(GemmBackend::models) {
            if !models.contains(&model) {
                models.push(model);
            }
        }
        models
    }

    /// # Errors
    /// The refusal of the last backend that was asked: the one there is, where one was named. [`Error::Unsupported`] or
    /// [`Error::Unknown`] if `FINEGRAIN_ISA` names an instruction set that the CPU lacks: the reference is no silent way
    /// round. What a device says that does not give an operand.
    fn plan<'p>(&'p self, problem: &'p GemmProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        if self.isa.is_none() && self.only != Some(Only::Reference) {
            Isa::active()?;
        }
        // What lies on a device is needed here.
        problem.a().fetch()?;
        problem.b().fetch()?;
        if problem.folds() {
            return fold::plan(self, problem);
        }
        let mut refusal = Error::Unsupported("no backend".to_owned());
        for backend in self.backends() {
            match backend.plan(problem) {
                Ok(plan) => return Ok(plan),
                Err(why) => refusal = why,
            }
        }
        Err(refusal)
    }

    fn plan_grouped<'p>(&'p self, problem: &'p GroupedProblem<'p>) -> Result<Box<dyn GemmPlan + 'p>> {
        match (self.only, self.backends().next()) {
            (Some(_), Some(backend)) => backend.plan_grouped(problem),
            _ => group_by_group(problem, |part| self.plan(part)),
        }
    }
}
