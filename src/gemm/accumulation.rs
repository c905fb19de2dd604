//! The arithmetic of a GEMM as data: which adder sums the products, how often partial sums are promoted, and in which
//! order the scales enter.

use std::num::NonZeroUsize;
use std::str::FromStr;

use super::fold::Fold;
pub(super) use super::promotion::Promotion;
use super::split::SplitK;
use super::tensor_core::{BlockScales, TensorCore};
use crate::error::{Error, Result};

/// How the products of one promotion interval become a partial sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Model {
    /// partial = fma(a, b, partial) in f32, to nearest even, k ascending.
    F32,
    /// The exact sum, rounded once to f32, to nearest even.
    Exact,
    /// A tensor core's truncated fused dot product.
    TensorCore(TensorCore),
}

impl Model {
    /// Whether the model applies block scales itself.
    pub const fn takes_block_scales(self) -> bool {
        match self {
            Model::F32 | Model::Exact => false,
            Model::TensorCore(core) => !matches!(core.scales(), BlockScales::None),
        }
    }

    /// The name; that of a custom tensor core is its base's, and all of it is displayed.
    pub const fn name(&self) -> &str {
        match self {
            Model::F32 => "f32",
            Model::Exact => "exact",
            Model::TensorCore(core) => core.name(),
        }
    }

    /// Elements of K that one instruction sums: 1 but for tensor cores.
    pub const fn step(self) -> usize {
        match self {
            Model::F32 | Model::Exact => 1,
            Model::TensorCore(core) => core.step(),
        }
    }
}

impl FromStr for Model {
    type Err = Error;

    /// Reads `f32`, `exact`, or a tensor core as it is displayed.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Model::F32),
            "exact" => Ok(Model::Exact),
            _ if name.contains(':') => name.parse().map(Model::TensorCore),
            _ => TensorCore::named(name).map(Model::TensorCore).ok_or_else(|| {
                let cores = TensorCore::ALL.iter().map(TensorCore::name);
                Error::unknown("accumulation model", name, ["f32", "exact"].into_iter().chain(cores))
            }),
        }
    }
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Model::TensorCore(core) => core.fmt(f),
            _ => f.pad(self.name()),
        }
    }
}

/// The arithmetic of a GEMM: model, promotion interval, promotion order, split-K, folded scales. Two GEMMs of the same operands in the
/// same arithmetic have the same bits.
///
/// ```
/// use finegrain::gemm::{Accumulation, Fold, Promotion, SplitK};
/// let deepseek = Accumulation::HOPPER.promoted::<128>();
/// assert_eq!(deepseek.to_string(), "hopper/128");
/// assert_eq!(deepseek, "hopper/128".parse()?);
/// assert_eq!(Accumulation::HOPPER.to_string(), "hopper/none");
/// assert_eq!(Accumulation::F32.with_promotion(Promotion::PartialFirst).to_string(), "f32/128/partial-first");
/// assert_eq!(deepseek.with_split_k(SplitK::equal(2)?).to_string(), "hopper/128/split-k=2");
/// assert_eq!(Accumulation::F32.with_fold(Fold::Scales).to_string(), "f32/128/fold-scales");
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Accumulation {
    model: Model,
    interval: Option<NonZeroUsize>,
    promotion: Promotion,
    split: SplitK,
    fold: Fold,
}

/// DeepSeek-V3's N_C (report 3.3.2): 4 WGMMA instructions of K = 32.
pub(crate) const DEEPSEEK_INTERVAL: NonZeroUsize = NonZeroUsize::new(128).unwrap();

impl Accumulation {
    /// f32, promoted every 128: the everyday model, and the default.
    pub const F32: Accumulation =
        Accumulation { interval: Some(DEEPSEEK_INTERVAL), ..Accumulation::new(Model::F32) };
    /// Exact sums, promoted every 128.
    pub const EXACT: Accumulation =
        Accumulation { interval: Some(DEEPSEEK_INTERVAL), ..Accumulation::new(Model::Exact) };
    /// [`TensorCore::ADA`], one chain over K.
    pub const ADA: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::ADA));
    /// [`TensorCore::HOPPER`], one chain over K.
    pub const HOPPER: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::HOPPER));
    /// [`TensorCore::HOPPER_F16`], one chain over K.
    pub const HOPPER_F16: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::HOPPER_F16));
    /// [`TensorCore::BLACKWELL`], one chain over K.
    pub const BLACKWELL: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::BLACKWELL));
    /// [`TensorCore::BLACKWELL_MMA`], one chain over K.
    pub const BLACKWELL_MMA: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::BLACKWELL_MMA));
    /// [`TensorCore::BLACKWELL_MX`], one chain over K.
    pub const BLACKWELL_MX: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::BLACKWELL_MX));
    /// [`TensorCore::BLACKWELL_FP4`], one chain over K.
    pub const BLACKWELL_FP4: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::BLACKWELL_FP4));
    /// [`TensorCore::VOLTA`], one chain over K.
    pub const VOLTA: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::VOLTA));
    /// [`TensorCore::TURING`], one chain over K.
    pub const TURING: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::TURING));
    /// [`TensorCore::AMPERE`], one chain over K.
    pub const AMPERE: Accumulation = Accumulation::new(Model::TensorCore(TensorCore::AMPERE));

    /// A model without promotion.
    pub const fn new(model: Model) -> Self {
        Accumulation {
            model,
            interval: None,
            promotion: Promotion::ScalesFirst,
            split: SplitK::Whole,
            fold: Fold::Nothing,
        }
    }

    /// The same with partial sums promoted every `N` elements of K; 0 does not compile.
    pub const fn promoted<const N: usize>(self) -> Self {
        self.with_interval(Some(const { NonZeroUsize::new(N).expect("promotion intervals start at 1") }))
    }

    /// The same with partial sums promoted every `n` elements of K, for an `n` of run time.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `n` is 0; [`Accumulation::without_promotion`] is the way to say "never".
    pub fn promote_every(self, n: usize) -> Result<Self> {
        let interval = NonZeroUsize::new(n).ok_or_else(|| {
            Error::Invalid("a promotion interval of 0 elements: intervals start at 1".to_owned())
        })?;
        Ok(self.with_interval(Some(interval)))
    }

    /// The same with another interval: `None` for one chain over K.
    #[inline]
    pub const fn with_interval(self, interval: Option<NonZeroUsize>) -> Self {
        Accumulation { interval, ..self }
    }

    /// The same without promotion: one chain over K.
    #[inline]
    pub const fn without_promotion(self) -> Self {
        self.with_interval(None)
    }

    /// The same with another promotion order.
    #[inline]
    pub const fn with_promotion(self, promotion: Promotion) -> Self {
        Accumulation { promotion, ..self }
    }

    /// The same with K cut into parts.
    pub const fn with_split_k(self, split: SplitK) -> Self {
        Accumulation { split, ..self }
    }

    /// The same with scales folded into the operands, or not.
    pub const fn with_fold(self, fold: Fold) -> Self {
        Accumulation { fold, ..self }
    }

    /// How an interval is summed.
    #[inline]
    pub const fn model(self) -> Model {
        self.model
    }

    /// Elements of K between promotions; `None` for one chain over K.
    #[inline]
    pub const fn interval(self) -> Option<NonZeroUsize> {
        self.interval
    }

    /// The order at promotion.
    #[inline]
    pub const fn promotion(self) -> Promotion {
        self.promotion
    }

    /// The parts of K.
    #[inline]
    pub const fn split_k(self) -> SplitK {
        self.split
    }

    /// Whether scales are folded into the operands.
    #[inline]
    pub const fn fold(self) -> Fold {
        self.fold
    }

    /// What a part of K has whole ones of: promotion intervals, or without promotion steps of the instruction.
    pub const fn split_unit(self) -> usize {
        match self.interval {
            Some(interval) => interval.get(),
            None => self.model.step(),
        }
    }

    /// Whether something follows the sum of an element's chains that a product without parts and with its scales at
    /// promotion does not have: the addition of parts, or scales after the last interval (contract, clause 9).
    #[inline]
    pub fn ends_in_sum(self) -> bool {
        !self.split.is_whole() || self.promotion == Promotion::ScalesLast
    }
}

impl From<Model> for Accumulation {
    fn from(model: Model) -> Self {
        Accumulation::new(model)
    }
}

impl FromStr for Accumulation {
    type Err = Error;

    /// Reads `MODEL/N` or `MODEL/none`, with another promotion order than scales first `MODEL/N/ORDER`, and with parts
    /// of K `/split-k=PARTS` or `/split-k=0,CUT,…` after that, and at the end `/fold-scales`.
    fn from_str(text: &str) -> Result<Self> {
        let (named, fold) = match text.strip_suffix(FOLD_WORD) {
            Some(rest) => (rest, Fold::Scales),
            None => (text, Fold::Nothing),
        };
        let mut parts = named.splitn(3, '/');
        let (model, interval, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let accumulation = Accumulation::new(model.parse()?);
        let accumulation = match interval {
            None => {
                return Err(Error::Invalid(format!(
                    "accumulation '{text}': expected {text}/N, promoted every N elements, or {text}/none"
                )));
            }
            Some("none") => accumulation,
            Some(n) => accumulation.promote_every(n.parse().map_err(|_| {
                Error::Invalid(format!("promotion interval '{n}' in '{text}': expected a number or none"))
            })?)?,
        };
        let (order, split) = match rest.map(|rest| (rest, rest.split_once(SPLIT_WORD))) {
            None => (None, None),
            Some((_, Some(("", split)))) => (None, Some(split)),
            Some((_, Some((order, split)))) if order.ends_with('/') => (order.strip_suffix('/'), Some(split)),
            Some((order, _)) => (Some(order), None),
        };
        Ok(accumulation
            .with_promotion(order.map_or(Ok(Promotion::ScalesFirst), str::parse)?)
            .with_split_k(split.map_or(Ok(SplitK::Whole), str::parse)?)
            .with_fold(fold))
    }
}

/// What stands at the end where scales are folded.
const FOLD_WORD: &str = "/fold-scales";

/// What stands before the parts of K.
pub(super) const SPLIT_WORD: &str = "split-k=";

impl std::fmt::Display for Accumulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let interval = self.interval.map_or("none".to_owned(), |n| n.to_string());
        let order = match self.promotion {
            Promotion::ScalesFirst => String::new(),
            other => format!("/{other}"),
        };
        let split = match self.split {
            SplitK::Whole => String::new(),
            parts => format!("/{SPLIT_WORD}{parts}"),
        };
        let fold = match self.fold {
            Fold::Nothing => "",
            Fold::Scales => FOLD_WORD,
        };
        f.pad(&format!("{}/{interval}{order}{split}{fold}", self.model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_list_the_known_ones() {
        for message in [
            "pascal".parse::<TensorCore>().unwrap_err().to_string(),
            "pascal".parse::<Model>().unwrap_err().to_string(),
        ] {
            assert!(message.contains("'pascal'") && message.contains("hopper-mma, blackwell,"), "{message}");
        }
        let message = "last".parse::<Promotion>().unwrap_err().to_string();
        assert_eq!(
            message,
            "unknown promotion 'last'; known: scales-first, partial-first, scales-last, unfused"
        );
        for &p in Promotion::ALL {
            assert_eq!(p.name().parse::<Promotion>().unwrap(), p);
        }
    }

    #[test]
    fn what_is_displayed_is_read_again() {
        let custom: TensorCore = "hopper:f=10".parse().unwrap();
        for model in [Model::F32, Model::Exact, Model::TensorCore(TensorCore::ADA), Model::TensorCore(custom)]
        {
            assert_eq!(model.to_string().parse::<Model>().unwrap(), model);
            for accumulation in [Accumulation::new(model), Accumulation::new(model).promoted::<64>()] {
                for &promotion in Promotion::ALL {
                    for split in [SplitK::Whole, SplitK::equal(3).unwrap(), SplitK::at(&[0, 64]).unwrap()] {
                        for fold in [Fold::Nothing, Fold::Scales] {
                            let accumulation = accumulation.with_promotion(promotion).with_split_k(split);
                            let accumulation = accumulation.with_fold(fold);
                            assert_eq!(
                                accumulation.to_string().parse::<Accumulation>().unwrap(),
                                accumulation
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn impossible_arithmetic_is_refused() {
        assert!(Accumulation::F32.promote_every(0).is_err());
        for (text, words) in [
            ("f32", "f32/none"),
            ("f32/0", "0 elements"),
            ("f32/x", "'x'"),
            ("f32/128/last", "partial-first"),
            ("f32/128/unfused/x", "'unfused/x'"),
            ("f32/128/split-k=0", "0 parts"),
            ("f32/128/unfusedsplit-k=2", "'unfusedsplit-k=2'"),
            ("f32/128/unfused/split-k=x", "'x'"),
        ] {
            let message = text.parse::<Accumulation>().unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
