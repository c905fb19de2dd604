//! How operands are represented.

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::quant::Recipe;

/// How operands are represented: by a recipe, or as they were before there were recipes.
///
/// ```
/// use finegrain::linear::Scheme;
/// assert_eq!("bf16".parse::<Scheme>()?, Scheme::Bf16);
/// assert_eq!("deepseek-v3".parse::<Scheme>()?.to_string(), "deepseek-v3");
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scheme {
    /// Rounded to BF16, no scales: the baseline.
    Bf16,
    /// Quantised by a recipe.
    Recipe(Recipe),
}

impl std::str::FromStr for Scheme {
    type Err = Error;

    /// Reads `bf16` or a recipe as it is displayed.
    fn from_str(name: &str) -> Result<Self> {
        if name == "bf16" { Ok(Scheme::Bf16) } else { name.parse().map(Scheme::Recipe) }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scheme::Bf16 => f.pad("bf16"),
            Scheme::Recipe(recipe) => recipe.fmt(f),
        }
    }
}

impl Serialize for Scheme {
    /// As displayed.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
