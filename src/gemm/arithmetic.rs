//! What a user asks for: an accumulation, a model whose promotion interval is chosen to fit the operands, or what a library
//! computes of them.

use super::accumulation::{Accumulation, Model, SPLIT_WORD};
use super::fold::Fold;
use super::library::LibraryCall;
use super::problem::fitting_interval;
use super::promotion::Promotion;
use super::split::SplitK;
use crate::error::{Error, Result};
use crate::scaled::ScaledRef;

/// What a user asks for: `hopper/128` is one accumulation, `hopper` a model whose interval follows from the operands,
/// `cublaslt-block` what that call of a library computes of them.
///
/// ```
/// use finegrain::gemm::{Accumulation, Arithmetic, Model};
/// assert_eq!("f32/128".parse::<Arithmetic>()?, Arithmetic::Fixed(Accumulation::F32));
/// assert_eq!("exact".parse::<Arithmetic>()?, Arithmetic::Fitting(Model::Exact));
/// assert_eq!("cublaslt-fast/split-k=2".parse::<Arithmetic>()?.to_string(), "cublaslt-fast/split-k=2");
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// The model with the interval that fits: 128, or the finest granule along K where that is finer; one chain over K
    /// for models that apply block scales themselves.
    Fitting(Model),
    /// Exactly this.
    Fixed(Accumulation),
    /// What a call of a library computes of these operands, K in parts.
    Library(&'static LibraryCall, SplitK),
}

/// What is said of an arithmetic beside its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// The promotion order, if one is named.
    pub promotion: Option<Promotion>,
    /// The parts of K.
    pub split_k: SplitK,
    /// Whether scales are folded into the operands.
    pub fold: Fold,
}

impl Arithmetic {
    /// What it becomes with more said beside it, `fitted` to the operands by
    /// [`GemmProblem::fitted`](super::GemmProblem::fitted). Where scales are folded none is left that changes along K: an
    /// interval that was to fit them is the usual one then.
    ///
    /// ```
    /// use finegrain::gemm::{Accumulation, Arithmetic, Beside, Fold, SplitK};
    /// let fitted: Accumulation = "f32/32".parse()?; // to MX scales
    /// let beside = Beside { split_k: SplitK::equal(2)?, fold: Fold::Scales, ..Beside::default() };
    /// let completed = Arithmetic::Fitting(fitted.model()).completed(fitted, beside);
    /// assert_eq!(completed.to_string(), "f32/128/split-k=2/fold-scales");
    /// assert_eq!(Arithmetic::Fixed(fitted).completed(fitted, beside).to_string(), "f32/32/split-k=2/fold-scales");
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    pub fn completed(&self, fitted: Accumulation, beside: Beside) -> Accumulation {
        let Beside { promotion, split_k, fold } = beside;
        let order = promotion.unwrap_or(fitted.promotion());
        let interval = match (self, fold) {
            (Arithmetic::Fitting(_), Fold::Scales) => Accumulation::F32.interval(),
            (Arithmetic::Fitting(_), Fold::Nothing)
            | (Arithmetic::Fixed(_) | Arithmetic::Library(..), Fold::Nothing | Fold::Scales) => {
                fitted.interval()
            }
        };
        fitted.with_interval(interval).with_promotion(order).with_split_k(split_k).with_fold(fold)
    }

    /// The model; that of a call is the one that it is built on.
    pub fn model(&self) -> Model {
        match self {
            Arithmetic::Fitting(model) => *model,
            Arithmetic::Fixed(accumulation) => accumulation.model(),
            Arithmetic::Library(call, _) => call.model(),
        }
    }

    /// The accumulation for operands A and B over K, each of one group or of several.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a call does not take such operands.
    pub(super) fn fit(&self, a: &[ScaledRef<'_>], b: &[ScaledRef<'_>], k: usize) -> Result<Accumulation> {
        Ok(match *self {
            Arithmetic::Fixed(accumulation) => accumulation,
            Arithmetic::Fitting(model) if model.takes_block_scales() => Accumulation::new(model),
            Arithmetic::Fitting(model) => {
                Accumulation::new(model).with_interval(Some(fitting_interval(&[a, b].concat(), k)))
            }
            Arithmetic::Library(call, split) => call.accumulation(a, b)?.with_split_k(split),
        })
    }
}

impl From<Accumulation> for Arithmetic {
    fn from(accumulation: Accumulation) -> Self {
        Arithmetic::Fixed(accumulation)
    }
}

impl From<Model> for Arithmetic {
    fn from(model: Model) -> Self {
        Arithmetic::Fitting(model)
    }
}

impl std::str::FromStr for Arithmetic {
    type Err = Error;

    /// Reads a model alone, an accumulation (`MODEL/N`, `MODEL/none` …), or the name of a library's call, with
    /// `/split-k=…` where it splits K.
    fn from_str(text: &str) -> Result<Self> {
        let (name, split) = match text.split_once('/') {
            None => (text, None),
            Some((name, rest)) => (name, rest.strip_prefix(SPLIT_WORD)),
        };
        if let Some(call) = LibraryCall::by_name(name)
            && (split.is_some() || name == text)
        {
            return Ok(Arithmetic::Library(call, split.map_or(Ok(SplitK::Whole), str::parse)?));
        }
        if text.contains('/') {
            text.parse().map(Arithmetic::Fixed)
        } else {
            text.parse().map(Arithmetic::Fitting)
        }
    }
}

impl std::fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Arithmetic::Fitting(model) => model.fmt(f),
            Arithmetic::Fixed(accumulation) => accumulation.fmt(f),
            Arithmetic::Library(call, SplitK::Whole) => call.fmt(f),
            Arithmetic::Library(call, split) => f.pad(&format!("{call}/{SPLIT_WORD}{split}")),
        }
    }
}
