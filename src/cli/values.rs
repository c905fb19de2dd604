//! Values of arguments: words into the library's types.

use crate::formats::{Format, Overflow, Rounding};
use crate::quant::Recipe;
use crate::quant::Role;
use crate::scaled::Granule;
use clap::ValueEnum;
use regex::Regex;

/// A format by name.
pub(crate) fn format(name: &str) -> crate::Result<Format> {
    Format::by_name(name)
}

/// A recipe by name.
pub(crate) fn recipe(name: &str) -> crate::Result<&'static Recipe> {
    Recipe::by_name(name)
}

/// A granule as RxC, `tensor` or `row`.
pub(crate) fn granule(text: &str) -> crate::Result<Granule> {
    text.parse()
}

/// A regular expression. Its error is a drawing of several lines; the last says what is wrong.
pub(crate) fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|e| e.to_string().lines().last().unwrap_or_default().to_owned())
}

/// The roundings of a cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Round {
    /// To the nearest value, ties to even
    NearestEven,
    /// To the neighbour of smaller magnitude
    TowardZero,
    /// Toward plus infinity
    Up,
    /// Toward minus infinity
    Down,
    /// To the nearest value, ties away from zero
    NearestAway,
    /// Up or down by chance, with 32 random bits an element that follow from --seed
    Stochastic,
    /// The rule of DeepSeek's TileKernels, for e5m6 only
    Tilekernels,
}

impl Round {
    /// The rounding, if it is one that needs nothing but the value.
    pub(crate) fn fixed(self) -> Option<Rounding> {
        Some(match self {
            Round::NearestEven => Rounding::NearestEven,
            Round::TowardZero => Rounding::TowardZero,
            Round::Up => Rounding::Up,
            Round::Down => Rounding::Down,
            Round::NearestAway => Rounding::NearestAway,
            Round::Stochastic | Round::Tilekernels => return None,
        })
    }
}

/// What becomes of values beyond the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverflowMode {
    /// Overflow and infinity become the largest finite value
    Saturate,
    /// They become infinity, or NaN where the format has none
    Nonsaturating,
}

impl From<OverflowMode> for Overflow {
    fn from(mode: OverflowMode) -> Overflow {
        match mode {
            OverflowMode::Saturate => Overflow::Saturate,
            OverflowMode::Nonsaturating => Overflow::NonSaturating,
        }
    }
}

/// The word for an argument's value, as it is typed.
pub(crate) fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}

/// How tensors are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleWord {
    /// In the recipe's weight granule, 128x128 for most
    Weight,
    /// Along the last dimension, 1x128 for most
    Activation,
    /// Along the first dimension; stored as the transposed matrix
    Transposed,
}

impl From<RoleWord> for Role {
    fn from(word: RoleWord) -> Role {
        match word {
            RoleWord::Weight => Role::Weight,
            RoleWord::Activation => Role::Activation,
            RoleWord::Transposed => Role::Transposed,
        }
    }
}
