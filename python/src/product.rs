//! A product as a caller gives it: operands and the arithmetic by its words.

use finegrain::formats::Format;
use finegrain::gemm::{
    Accumulation, Arithmetic, Beside, Fold, GemmProblem, LibraryCall, Model, SplitK, StepResult, TensorCore,
};
use finegrain::matrix::{MatRef, Matrix};
use half::f16;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::Array;
use crate::dtypes::{Dtype, Framework};
use crate::errors::{OrRaise, refuse};
use crate::operand::{Given, Operand};

/// The arguments that say what is multiplied.
pub(crate) struct Operands<'a, 'py> {
    pub(crate) a: &'a Bound<'py, PyAny>,
    pub(crate) b: &'a Bound<'py, PyAny>,
    pub(crate) a_scale: Option<&'a Bound<'py, PyAny>>,
    pub(crate) b_scale: Option<&'a Bound<'py, PyAny>>,
    pub(crate) c: Option<&'a Bound<'py, PyAny>>,
    pub(crate) granule_a: Option<&'a str>,
    pub(crate) granule_b: Option<&'a str>,
    pub(crate) format_a: Option<&'a str>,
    pub(crate) format_b: Option<&'a str>,
    pub(crate) scale_format_a: Option<&'a str>,
    pub(crate) scale_format_b: Option<&'a str>,
    pub(crate) a_tensor_scale: Option<f32>,
    pub(crate) b_tensor_scale: Option<f32>,
    pub(crate) copy: bool,
}

/// The arguments that name the arithmetic.
pub(crate) struct Words<'a, 'py> {
    pub(crate) accumulate: &'a str,
    pub(crate) promote: Promote,
    pub(crate) promotion: Option<&'a str>,
    pub(crate) split_k: Option<&'a Bound<'py, PyAny>>,
    pub(crate) fold_scales: bool,
}

/// Operands, held while a call works.
pub(crate) struct Held<'py> {
    pub(crate) a: Operand<'py>,
    pub(crate) b: Operand<'py>,
    pub(crate) c: Option<Array<'py>>,
}

/// What `accumulate` names.
enum SummedBy {
    Model(Model),
    Call(&'static LibraryCall),
    /// All in one, such as hopper/128/partial-first.
    Whole(Arithmetic),
}

/// An arithmetic, but for what the operands decide.
pub(crate) struct Asked {
    arithmetic: Arithmetic,
    /// `None` where the arithmetic is whole.
    beside: Option<Beside>,
}

impl<'py> Held<'py> {
    pub(crate) fn read(given: &Operands<'_, 'py>) -> PyResult<Self> {
        let a = Operand::read(&Given {
            name: "a",
            scales_name: "a_scale",
            granule_name: "granule_a",
            format_name: "format_a",
            scale_format_name: "scale_format_a",
            codes: given.a,
            scales: given.a_scale,
            granule: given.granule_a,
            format: given.format_a,
            scale_format: given.scale_format_a,
            tensor_scale: given.a_tensor_scale,
            copy: given.copy,
        })?;
        let b = Operand::read(&Given {
            name: "b",
            scales_name: "b_scale",
            granule_name: "granule_b",
            format_name: "format_b",
            scale_format_name: "scale_format_b",
            codes: given.b,
            scales: given.b_scale,
            granule: given.granule_b,
            format: given.format_b,
            scale_format: given.scale_format_b,
            tensor_scale: given.b_tensor_scale,
            copy: given.copy,
        })?;
        let c = given.c.map(|c| Array::read(c, "c", given.copy)).transpose()?;
        Ok(Held { a, b, c })
    }

    /// Whose arrays results are.
    pub(crate) fn framework(&self) -> Framework {
        self.a.framework()
    }

    /// # Errors
    /// If `out`, which is written, shares memory with an operand.
    pub(crate) fn apart_from(&self, out: &Array<'_>) -> PyResult<()> {
        self.a.apart_from(out)?;
        self.b.apart_from(out)?;
        self.c.as_ref().map_or(Ok(()), |c| c.apart_from(out))
    }

    /// The product in the everyday arithmetic.
    pub(crate) fn plain<'h>(&'h self, c: Option<&'h Addend<'h>>) -> PyResult<GemmProblem<'h>> {
        let problem = GemmProblem::nt(self.a.view()?, self.b.view()?).or_raise()?;
        c.map_or(Ok(problem), |c| problem.with_addend(c.view()).or_raise())
    }

    /// c in f32, whichever model it is for.
    pub(crate) fn any_addend(&self) -> PyResult<Option<Addend<'_>>> {
        match &self.c {
            Some(c) if c.dtype() == Dtype::Of(Format::F16) => {
                c.matrix_shape()?;
                Ok(Some(Addend::Ours(c.rows_of::<f16>()?.map(|x| x.to_f32()))))
            }
            _ => self.addend(Model::F32),
        }
    }

    /// c in f32: the caller's memory where that holds it.
    pub(crate) fn addend(&self, model: Model) -> PyResult<Option<Addend<'_>>> {
        let Some(c) = &self.c else { return Ok(None) };
        c.matrix_shape()?;
        let halves = matches!(model, Model::TensorCore(core) if core.result() == StepResult::F16);
        match (c.dtype(), halves) {
            (Dtype::Of(Format::F32), false) => Ok(Some(Addend::Theirs(c.rows_of()?))),
            (Dtype::Of(Format::F16), true) => Ok(Some(Addend::Ours(c.rows_of::<f16>()?.map(|x| x.to_f32())))),
            (_, true) => Err(refuse(format!("c is to be float16: {model} accumulates in that"))),
            (_, false) => Err(refuse(format!("c is to be float32 for {model}"))),
        }
    }

    /// The product in an arithmetic, with c if there is one.
    pub(crate) fn problem<'h>(
        &'h self,
        asked: &Asked,
        c: Option<&'h Addend<'h>>,
    ) -> PyResult<GemmProblem<'h>> {
        let model = asked.arithmetic.model();
        for (name, operand) in [("a", &self.a), ("b", &self.b)] {
            refuse_f32(name, operand, model)?;
        }
        let plain = self.plain(None)?;
        let fitted = plain.fitted(&asked.arithmetic).or_raise()?;
        let accumulation = match asked.beside {
            Some(beside) => asked.arithmetic.completed(fitted, beside),
            None => fitted,
        };
        let problem = plain.with_accumulation(accumulation).or_raise()?;
        c.map_or(Ok(problem), |c| problem.with_addend(c.view()).or_raise())
    }
}

/// c in f32.
pub(crate) enum Addend<'a> {
    Theirs(MatRef<'a, f32>),
    Ours(Matrix<f32>),
}

impl Addend<'_> {
    pub(crate) fn view(&self) -> MatRef<'_, f32> {
        match self {
            Addend::Theirs(c) => *c,
            Addend::Ours(c) => c.view(),
        }
    }
}

/// F32 is for the models that read TF32 alone: elsewhere it is an operand that somebody forgot to quantise.
fn refuse_f32(name: &str, operand: &Operand<'_>, model: Model) -> PyResult<()> {
    let reads = |core: &TensorCore| core.operands().contains(&Format::F32);
    let fits = matches!(model, Model::TensorCore(core) if reads(&core));
    if fits || operand.format() != Format::F32 {
        return Ok(());
    }
    let known: Vec<&str> = TensorCore::ALL.iter().filter(|core| reads(core)).map(TensorCore::name).collect();
    Err(refuse(format!(
        "{name} is float32, which {} read as TF32, and {model} does not: quantise it, or pass bfloat16",
        known.join(" and ")
    )))
}

impl Words<'_, '_> {
    /// What they ask for.
    pub(crate) fn asked(&self) -> PyResult<Asked> {
        let promotion = self.promotion.map(|p| p.parse().or_raise()).transpose()?;
        let split = self.split_k.map_or(Ok(SplitK::Whole), split)?;
        let named = matches!(self.promote, Promote::Never | Promote::Every(_));
        let beside = [(named, "promote"), (promotion.is_some(), "promotion")];
        let (arithmetic, alone) = match summed_by(self.accumulate)? {
            SummedBy::Whole(arithmetic) => {
                let more = [(!split.is_whole(), "split_k"), (self.fold_scales, "fold_scales")];
                if let Some((_, what)) = beside.iter().chain(&more).find(|(there, _)| *there) {
                    let name = self.accumulate;
                    return Err(refuse(format!(
                        "accumulate=\"{name}\" says all: {what} cannot be used with it"
                    )));
                }
                return Ok(Asked { arithmetic, beside: None });
            }
            SummedBy::Call(call) => (Arithmetic::Library(call, split), Some(call)),
            SummedBy::Model(model) => match self.promote {
                Promote::Default => (Arithmetic::Fitting(model), None),
                Promote::Never => (Accumulation::new(model).into(), None),
                Promote::Every(n) => (Accumulation::new(model).promote_every(n).or_raise()?.into(), None),
            },
        };
        if let Some(call) = alone
            && let Some((_, what)) = beside.iter().find(|(there, _)| *there)
        {
            return Err(refuse(format!(
                "accumulate=\"{call}\" sets model, interval and order ({}): {what} cannot be used with it",
                call.arithmetic()
            )));
        }
        let fold = if self.fold_scales { Fold::Scales } else { Fold::Nothing };
        Ok(Asked { arithmetic, beside: Some(Beside { promotion, split_k: split, fold }) })
    }
}

impl Asked {
    /// The model.
    pub(crate) fn model(&self) -> Model {
        self.arithmetic.model()
    }
}

/// A promotion interval as it is given: a number, None, or "default".
#[derive(Clone, Copy, Default)]
pub(crate) enum Promote {
    #[default]
    Default,
    Never,
    Every(usize),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Promote {
    type Error = PyErr;

    fn extract(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if given.is_none() {
            return Ok(Promote::Never);
        }
        if let Ok(n) = given.extract::<usize>() {
            return Ok(Promote::Every(n));
        }
        match given.extract::<String>().as_deref() {
            Ok("default") => Ok(Promote::Default),
            Ok("none") => Ok(Promote::Never),
            _ => Err(refuse(format!("promote={}: expected a number, None or \"default\"", given.repr()?))),
        }
    }
}

fn split(given: &Bound<'_, PyAny>) -> PyResult<SplitK> {
    if let Ok(parts) = given.extract::<usize>() {
        return SplitK::equal(parts).or_raise();
    }
    if let Ok(cuts) = given.extract::<Vec<usize>>() {
        return SplitK::at(&cuts).or_raise();
    }
    match given.extract::<&str>() {
        Ok(text) => text.parse().or_raise(),
        Err(_) => {
            Err(refuse(format!("split_k={}: expected a number of parts or a list of cuts", given.repr()?)))
        }
    }
}

fn summed_by(text: &str) -> PyResult<SummedBy> {
    if text.contains('/') {
        return text.parse().map(SummedBy::Whole).or_raise();
    }
    match LibraryCall::by_name(text) {
        Some(call) => Ok(SummedBy::Call(call)),
        None => text.parse().map(SummedBy::Model).or_raise(),
    }
}

/// An accumulation as keyword arguments of `gemm`.
pub(crate) fn options<'py>(py: Python<'py>, accumulation: Accumulation) -> PyResult<Bound<'py, PyDict>> {
    let options = PyDict::new(py);
    options.set_item("accumulate", accumulation.model().to_string())?;
    options.set_item("promote", accumulation.interval().map(|n| n.get()))?;
    if accumulation.promotion() != finegrain::gemm::Promotion::default() {
        options.set_item("promotion", accumulation.promotion().name())?;
    }
    match accumulation.split_k().to_string() {
        _ if accumulation.split_k().is_whole() => {}
        parts => match parts.parse::<usize>() {
            Ok(parts) => options.set_item("split_k", parts)?,
            Err(_) => options.set_item("split_k", parts)?,
        },
    }
    if accumulation.fold() == Fold::Scales {
        options.set_item("fold_scales", true)?;
    }
    Ok(options)
}
