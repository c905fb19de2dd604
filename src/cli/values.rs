//! Values of arguments: words into the library's types.

use crate::formats::{Overflow, Rounding};
use crate::quant::Role;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use regex::Regex;

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

impl ValueEnum for Overflow {
    fn value_variants<'a>() -> &'a [Self] {
        Overflow::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Overflow::Saturate => "Overflow and infinity become the largest finite value",
            Overflow::NonSaturating => "They become infinity, or NaN where the format has none",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

impl ValueEnum for Role {
    fn value_variants<'a>() -> &'a [Self] {
        Role::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Role::Weight => "In the recipe's weight granule, 128x128 for most",
            Role::Activation => "Along the last dimension, 1x128 for most",
            Role::Transposed => "Along the first dimension; stored as the transposed matrix",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// The word for an argument's value, as it is typed.
pub(crate) fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}
