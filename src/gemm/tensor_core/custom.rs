//! Tensor cores that were never built: their roundings and result formats, and how they are written.

use std::fmt::Write;

use super::{Addend, TensorCore};
use crate::error::{Error, Result};
use crate::formats::Format;

/// What a tensor core's sum is rounded to after every step: 8 exponent bits, those of f32, and some fraction bits; or f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepResult {
    mantissa_bits: u32,
    emin: i32,
    emax: i32,
}

impl StepResult {
    /// 8 exponent and 13 fraction bits ("FP22"): the FP8 tensor cores of Ada and Hopper.
    pub const E8M13: StepResult = StepResult::of(Format::E8M13);
    /// IEEE binary32.
    pub const F32: StepResult = StepResult::of(Format::F32);
    /// IEEE binary16: the accumulator is one too.
    pub const F16: StepResult = StepResult::of(Format::F16);

    const fn of(format: Format) -> StepResult {
        let spec = format.spec();
        StepResult { mantissa_bits: spec.mantissa_bits, emin: spec.emin(), emax: spec.emax() }
    }

    /// 8 exponent bits and this many fraction bits.
    ///
    /// # Errors
    /// [`Error::Invalid`] for more fraction bits than f32 has.
    pub fn e8(mantissa_bits: u32) -> Result<Self> {
        let most = StepResult::F32.mantissa_bits;
        if mantissa_bits > most {
            return Err(Error::Invalid(format!(
                "a result of {mantissa_bits} fraction bits: expected at most {most}"
            )));
        }
        Ok(StepResult { mantissa_bits, ..StepResult::F32 })
    }

    /// Fraction bits.
    #[inline]
    pub const fn mantissa_bits(self) -> u32 {
        self.mantissa_bits
    }

    /// Exponent of the smallest normal number.
    #[inline]
    pub const fn emin(self) -> i32 {
        self.emin
    }

    /// Exponent of the largest finite number.
    #[inline]
    pub const fn emax(self) -> i32 {
        self.emax
    }

    /// The format of the accumulator, and of sums with a late one.
    #[inline]
    pub const fn accumulator(self) -> Format {
        match self {
            StepResult::F16 => Format::F16,
            _ => Format::F32,
        }
    }
}

impl std::fmt::Display for StepResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            StepResult::F32 => f.pad("f32"),
            StepResult::F16 => f.pad("f16"),
            StepResult { mantissa_bits, .. } => f.pad(&format!("e8m{mantissa_bits}")),
        }
    }
}

impl std::str::FromStr for StepResult {
    type Err = Error;

    /// Reads `f32`, `f16` or `e8mN`.
    fn from_str(text: &str) -> Result<Self> {
        let bits = match text {
            "f32" => Some(StepResult::F32.mantissa_bits),
            "f16" => return Ok(StepResult::F16),
            _ => text.strip_prefix("e8m").and_then(|n| n.parse().ok()),
        };
        bits.ok_or_else(|| Error::Invalid(format!("result format '{text}': expected f32, f16 or e8mN")))
            .and_then(StepResult::e8)
    }
}

/// How a tensor core rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StepRounding {
    /// Toward zero: bits are dropped.
    #[default]
    TowardZero,
    /// To the nearest, ties to the even one.
    NearestEven,
}

impl StepRounding {
    const fn word(self) -> &'static str {
        match self {
            StepRounding::TowardZero => "zero",
            StepRounding::NearestEven => "nearest",
        }
    }

    fn of(word: &str) -> Result<Self> {
        let all = [StepRounding::TowardZero, StepRounding::NearestEven];
        let found = all.into_iter().find(|r| r.word() == word);
        found.ok_or_else(|| Error::unknown("rounding", word, all.map(StepRounding::word)))
    }
}

const PARAMETERS: [&str; 6] = ["l", "f", "result", "terms", "round", "addend"];

impl TensorCore {
    /// This one with the changes that `l=16,f=10,result=e8m10,terms=nearest,round=nearest,addend=late` names; any of
    /// them, in any order.
    pub(super) fn changed(self, changes: &str) -> Result<Self> {
        self.check_parameters()?;
        let (mut step, mut fraction_bits, mut result) = (self.step(), self.fraction_bits(), self.result());
        let (mut terms, mut rounding, mut addend) = (None, None, None);
        for change in changes.split(',') {
            let (key, value) = change.split_once('=').unwrap_or((change, ""));
            let number = || {
                let wrong = |_| Error::Invalid(format!("{key}={value} in '{changes}': expected a number"));
                value.parse::<u32>().map_err(wrong)
            };
            match key {
                "l" => step = number()? as usize,
                "f" => fraction_bits = number()?,
                "result" => result = value.parse()?,
                "terms" => terms = Some(StepRounding::of(value)?),
                "round" => rounding = Some(StepRounding::of(value)?),
                "addend" => addend = Some(addend_of(value)?),
                _ => return Err(Error::unknown("tensor core parameter", key, PARAMETERS)),
            }
        }
        let core = self.customized(step, fraction_bits, result)?;
        let core = terms.map_or(core, |terms| core.with_term_rounding(terms));
        let core = rounding.map_or(core, |rounding| core.with_result_rounding(rounding));
        Ok(addend.map_or(core, |addend| core.with_addend(addend)))
    }
}

impl std::str::FromStr for TensorCore {
    type Err = Error;

    /// Looks a tensor core up by name, such as `hopper`, or makes a custom one from a base and what differs from it, such
    /// as `hopper:f=10,terms=nearest`. [`Error::Unknown`] with the list of names or of parameters; [`Error::Invalid`] for
    /// values outside their range.
    fn from_str(text: &str) -> Result<Self> {
        let (base, changes) = text.split_once(':').map_or((text, None), |(base, c)| (base, Some(c)));
        let base = TensorCore::named(base).ok_or_else(|| {
            Error::unknown("tensor core", base, TensorCore::ALL.iter().map(TensorCore::name))
        })?;
        changes.map_or(Ok(base), |changes| base.changed(changes))
    }
}

fn addend_of(word: &str) -> Result<Addend> {
    match word {
        "early" => Ok(Addend::Early),
        "late" => Ok(Addend::Late),
        _ => Err(Error::unknown("addend", word, ["early", "late"])),
    }
}

impl std::fmt::Display for TensorCore {
    /// The name, and what differs from the tensor core of that name, as it is read.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut changes = String::new();
        let mut change = |differs: bool, key: &str, value: &dyn std::fmt::Display| {
            if differs {
                let separator = if changes.is_empty() { ':' } else { ',' };
                write!(changes, "{separator}{key}={value}").expect("a string takes all");
            }
        };
        if let Some(base) = TensorCore::named(self.name()) {
            change(self.step() != base.step(), "l", &self.step());
            change(self.fraction_bits() != base.fraction_bits(), "f", &self.fraction_bits());
            change(self.result() != base.result(), "result", &self.result());
            change(self.term_rounding() != base.term_rounding(), "terms", &self.term_rounding().word());
            // What the result alone makes of it.
            let base = base.customized(self.step(), self.fraction_bits(), self.result()).unwrap_or(base);
            change(self.result_rounding() != base.result_rounding(), "round", &self.result_rounding().word());
            let late = self.addend() == Addend::Late;
            change(self.addend() != base.addend(), "addend", if late { &"late" } else { &"early" });
        }
        f.pad(&format!("{}{changes}", self.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Accumulation, Arithmetic, Model};
    use crate::name::Name;

    #[test]
    fn what_is_displayed_is_read_again() {
        for base in TensorCore::ALL {
            assert_eq!(base.to_string(), base.name());
            if base.check_parameters().is_err() {
                let message = format!("{base}:l=8").parse::<TensorCore>().unwrap_err().to_string();
                assert!(message.contains("no parameters"), "{message}");
                continue;
            }
            let halves = base.customized(base.step(), base.fraction_bits(), StepResult::F16).is_ok();
            let halves = halves.then_some(["result=f16", "result=f16,round=zero,l=32"]);
            let changes = ["l=16,f=7", "terms=nearest,round=nearest", "result=e8m10", "addend=early"];
            for changes in changes.into_iter().chain(halves.into_iter().flatten()) {
                let core = format!("{base}:{changes}").parse::<TensorCore>().unwrap();
                assert_eq!(core.to_string().parse::<TensorCore>().unwrap(), core, "{base}:{changes}");
                assert!(core.operands().iter().all(|format| base.operands().contains(format)));
            }
        }
        let same: TensorCore = "hopper:l=32,f=13,result=e8m13,terms=zero,round=zero".parse().unwrap();
        assert_eq!((same, same.to_string().as_str()), (TensorCore::HOPPER, "hopper"));
        let arithmetic: Arithmetic = "hopper:f=10/128".parse().unwrap();
        assert_eq!(arithmetic.to_string(), "hopper:f=10/128");
        let core = TensorCore::HOPPER.customized(32, 10, StepResult::E8M13).unwrap();
        let expected = Accumulation::new(Model::TensorCore(core)).promote_every(128).unwrap();
        assert_eq!(arithmetic, Arithmetic::Fixed(expected));
        // One that no list has shows its name alone.
        let mine = Name::new("mine").unwrap();
        let core = core.customized(8, 9, StepResult::F32).unwrap().with_name(mine);
        assert_eq!(core.to_string(), "mine");
    }

    #[test]
    fn wrong_parameters_are_named() {
        for (name, words) in [
            ("hopper:", &["''", "l, f, result"][..]),
            ("hopper:g=3", &["'g'", "l, f, result, terms, round, addend"]),
            ("hopper:f=x", &["f=x", "number"]),
            ("hopper:f=39", &["39", "38"]),
            ("hopper:l=0", &["0 products", "1024"]),
            ("hopper:result=e8m24", &["24", "23"]),
            ("hopper:result=e5m2", &["'e5m2'", "e8mN"]),
            ("hopper:terms=up", &["'up'", "zero, nearest"]),
            ("hopper:addend=never", &["'never'", "early, late"]),
            ("kepler:f=3", &["'kepler'", "hopper"]),
            ("blackwell-fp4:l=24", &["24", "16"]),
        ] {
            let message = name.parse::<Model>().unwrap_err().to_string();
            assert!(words.iter().all(|w| message.contains(w)), "{name}: {message}");
        }
    }
}
