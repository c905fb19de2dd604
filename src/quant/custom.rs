//! Recipes that no list has: what makes a recipe legal, and how custom ones are written.

use std::fmt::Write;

use super::recipe::{ElementCast, PayloadForm, PowerOfTwo, Recipe, Scaling};
use crate::error::{Error, Result};
use crate::formats::{Format, Specials};

const PARAMETERS: [&str; 5] = ["element", "gradient", "activation", "weight", "floor"];

impl Recipe {
    /// This recipe, if it is one that can be carried out: a recipe of parts put together at run time.
    ///
    /// ```
    /// use finegrain::name::Name;
    /// use finegrain::quant::Recipe;
    /// use finegrain::scaled::Granule;
    /// for side in [32, 64] {
    ///     let name = Name::new(&format!("mine-{side}"))?;
    ///     let recipe = Recipe { name, weight: Granule::square(side), ..Recipe::DEEPSEEK_V3 }.checked()?;
    ///     assert_eq!(recipe.to_string(), format!("mine-{side}"));
    /// }
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for codes that are no narrow format or not that of the cast, NVFP4 of other codes than E2M1,
    /// a payload by the exponent of a scale that is no power of two, and a floor that is negative or not finite.
    pub fn checked(self) -> Result<Self> {
        let wrong = |why: String| Err(Error::Invalid(format!("recipe {}: {why}", self.name)));
        for element in [self.element, self.gradient] {
            let spec = element.spec();
            if spec.bits() > 12 || spec.specials == Specials::Scale {
                return wrong(format!("codes of {element}, expected a signed format of at most 12 bits"));
            }
            if matches!(self.cast, ElementCast::E5m6(_)) && element != Format::E5M6 {
                return wrong(format!("codes of {element} cast by a rule for e5m6"));
            }
            if matches!(self.scaling, Scaling::Nvfp4(_)) && element != Format::E2M1 {
                return wrong(format!("codes of {element}, and NVFP4's scales are made for e2m1"));
            }
        }
        if let Scaling::Scale {
            power_of_two: PowerOfTwo::No, payload: PayloadForm::NegatedExponent, ..
        } = self.scaling
        {
            return wrong("payloads by the scale's exponent need scales that are powers of two".to_owned());
        }
        let floor = self.amax.floor;
        if !floor.is_finite() || floor < 0.0 {
            return wrong(format!("amax is raised to {floor}, expected a finite number from 0"));
        }
        Ok(self)
    }

    /// This one with the changes that `element=e5m2,gradient=e5m2,activation=1x64,weight=64x64,floor=1e-6` names; any of
    /// them, in any order.
    fn changed(mut self, changes: &str) -> Result<Self> {
        for change in changes.split(',') {
            let (key, value) = change.split_once('=').unwrap_or((change, ""));
            match key {
                "element" => self.element = value.parse()?,
                "gradient" => self.gradient = value.parse()?,
                "activation" => self.activation = value.parse()?,
                "weight" => self.weight = value.parse()?,
                "floor" => {
                    let wrong =
                        |_| Error::Invalid(format!("floor={value} in '{changes}': expected a number"));
                    self.amax.floor = value.parse().map_err(wrong)?;
                }
                _ => return Err(Error::unknown("recipe parameter", key, PARAMETERS)),
            }
        }
        self.checked()
    }
}

impl std::str::FromStr for Recipe {
    type Err = Error;

    /// Looks a recipe up by its name or a short one, such as `mxfp8`, or makes a custom one from a base and what differs
    /// from it, such as `te:weight=64x64`. [`Error::Unknown`] with the list of names or of parameters; [`Error::Invalid`]
    /// as [`Recipe::checked`].
    fn from_str(text: &str) -> Result<Self> {
        let (base, changes) = text.split_once(':').map_or((text, None), |(base, c)| (base, Some(c)));
        let base = Recipe::named(base)
            .ok_or_else(|| Error::unknown("recipe", base, Recipe::ALL.iter().map(|r| r.name.as_str())))?;
        changes.map_or(Ok(*base), |changes| base.changed(changes))
    }
}

impl std::fmt::Display for Recipe {
    /// The name, and what differs from the recipe of that name, as it is read.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut changes = String::new();
        let mut change = |differs: bool, key: &str, value: &dyn std::fmt::Display| {
            if differs {
                let separator = if changes.is_empty() { ':' } else { ',' };
                write!(changes, "{separator}{key}={value}").expect("a string takes all");
            }
        };
        if let Some(base) = Recipe::named(&self.name) {
            change(self.element != base.element, "element", &self.element);
            change(self.gradient != base.gradient, "gradient", &self.gradient);
            change(self.activation != base.activation, "activation", &self.activation);
            change(self.weight != base.weight, "weight", &self.weight);
            change(self.amax.floor != base.amax.floor, "floor", &self.amax.floor);
        }
        f.pad(&format!("{}{changes}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::scaled::Granule;

    #[test]
    fn every_listed_recipe_is_legal_and_read_as_displayed() {
        for recipe in Recipe::ALL {
            assert_eq!(recipe.checked().unwrap(), *recipe);
            assert_eq!(recipe.to_string(), recipe.name.as_str());
            for changes in ["weight=64x64", "activation=1x16,floor=1e-30", "activation=row,weight=tensor"] {
                let custom: Recipe = format!("{recipe}:{changes}").parse().unwrap();
                assert_eq!(custom.to_string().parse::<Recipe>().unwrap(), custom, "{recipe}:{changes}");
            }
        }
        let short: Recipe = "mxfp8:element=e5m2,gradient=e5m2".parse().unwrap();
        assert_eq!(short.to_string(), "mxfp8-e4m3-floor:element=e5m2,gradient=e5m2");
        let mine = Name::new("mine").unwrap();
        assert_eq!(Recipe { name: mine, weight: Granule::ROW, ..Recipe::TE }.to_string(), "mine");
    }

    #[test]
    fn wrong_changes_are_named() {
        for (text, words) in [
            ("te:", &["''", "element, gradient"][..]),
            ("te:tile=3", &["'tile'", "activation, weight, floor"]),
            ("te:element=f32", &["recipe te", "f32", "12 bits"]),
            ("te:element=e8m0", &["e8m0", "signed"]),
            ("te:element=e9m9", &["'e9m9'"]),
            ("te:weight=0x3", &["0"]),
            ("te:floor=x", &["floor=x", "number"]),
            ("te:floor=-1", &["-1", "from 0"]),
            ("te:floor=NaN", &["NaN", "finite"]),
            ("nvfp4:element=e4m3", &["e4m3", "e2m1"]),
            ("e5m6:gradient=e4m3", &["e4m3", "e5m6"]),
            ("nope:weight=1x1", &["'nope'", "deepseek-v3"]),
        ] {
            let message = text.parse::<Recipe>().unwrap_err().to_string();
            assert!(words.iter().all(|w| message.contains(w)), "{text}: {message}");
        }
        let scaling = Recipe::named("deepep-ll-ue8m0").unwrap().scaling;
        let Scaling::Scale { form, payload, zero, .. } = scaling else { unreachable!() };
        let scaling = Scaling::Scale { form, power_of_two: PowerOfTwo::No, payload, zero };
        assert!(
            Recipe { scaling, ..Recipe::TE }.checked().unwrap_err().to_string().contains("powers of two")
        );
    }
}
