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

impl Scheme {
    /// `bf16` or the recipe's name.
    pub const fn name(&self) -> &str {
        match self {
            Scheme::Bf16 => "bf16",
            Scheme::Recipe(recipe) => recipe.name,
        }
    }
}

impl std::str::FromStr for Scheme {
    type Err = Error;

    /// Reads `bf16` or a recipe's name.
    fn from_str(name: &str) -> Result<Self> {
        if name == "bf16" { Ok(Scheme::Bf16) } else { Recipe::by_name(name).map(|r| Scheme::Recipe(*r)) }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Scheme {
    /// As its name.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
