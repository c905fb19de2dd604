//! The one place that rounds.
//!
//! A value is cut at the format's step; what is cut off is one of four [`Loss`]es; the rounding decides from loss, sign
//! and the last kept bit; then the result is checked against the format's range. Integers only: no host floating point.

use super::spec::{FormatSpec, Specials};
use super::unpacked::Unpacked;
use crate::error::{Error, Result};
use crate::name::by_name;

/// How one value is rounded. Random bits come as an argument, so a rounding is a pure function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest value, ties to the one with an even last bit.
    NearestEven,
    /// To the neighbour of smaller magnitude.
    TowardZero,
    /// Toward +∞.
    Up,
    /// Toward −∞.
    Down,
    /// To the nearest value, ties to the one of larger magnitude.
    NearestAway,
    /// Away from zero iff frac + random / 2^bits ≥ 1, where frac in [0, 1) is the exact discarded part in steps.
    Stochastic {
        /// Random integer below 2^bits.
        random: u32,
        /// Number of random bits, 1 … 32.
        bits: u32,
    },
    /// The same with frac first rounded (nearest even) to `bits` bits, as hardware with a narrow adder does.
    StochasticCoarse {
        /// Random integer below 2^bits.
        random: u32,
        /// Number of random bits, 1 … 32.
        bits: u32,
    },
}

impl std::fmt::Display for Rounding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Rounding::NearestEven => f.pad("nearest-even"),
            Rounding::TowardZero => f.pad("toward-zero"),
            Rounding::Up => f.pad("up"),
            Rounding::Down => f.pad("down"),
            Rounding::NearestAway => f.pad("nearest-away"),
            Rounding::Stochastic { random, bits } => f.pad(&format!("stochastic:{random}/{bits}")),
            Rounding::StochasticCoarse { random, bits } => {
                f.pad(&format!("stochastic-coarse:{random}/{bits}"))
            }
        }
    }
}

impl std::str::FromStr for Rounding {
    type Err = Error;

    /// Reads what is displayed; a stochastic rounding has its random integer and the number of bits, `stochastic:5/8`.
    fn from_str(text: &str) -> Result<Self> {
        const FIXED: [Rounding; 5] = [
            Rounding::NearestEven,
            Rounding::TowardZero,
            Rounding::Up,
            Rounding::Down,
            Rounding::NearestAway,
        ];
        if let Some(rounding) = FIXED.into_iter().find(|r| r.to_string() == text) {
            return Ok(rounding);
        }
        let (word, draw) = text.split_once(':').unwrap_or((text, ""));
        let draw = || {
            let (random, bits) = draw.split_once('/')?;
            let (random, bits): (u32, u32) = (random.parse().ok()?, bits.parse().ok()?);
            ((1..=32).contains(&bits) && u64::from(random) < 1 << bits).then_some((random, bits))
        };
        let wrong = || {
            Error::Invalid(format!("rounding '{text}': expected {word}:R/B with R below 2^B, B from 1 to 32"))
        };
        match word {
            "stochastic" => {
                draw().map(|(random, bits)| Rounding::Stochastic { random, bits }).ok_or_else(wrong)
            }
            "stochastic-coarse" => {
                draw().map(|(random, bits)| Rounding::StochasticCoarse { random, bits }).ok_or_else(wrong)
            }
            _ => {
                let fixed = FIXED.map(|r| r.to_string());
                let known = fixed.iter().map(String::as_str).chain(["stochastic", "stochastic-coarse"]);
                Err(Error::unknown("rounding", text, known))
            }
        }
    }
}

/// What becomes of values beyond the largest finite one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// Finite overflow and infinity become ± the largest finite value (CUDA's SATFINITE).
    Saturate,
    /// They become infinity, or NaN where the format has none (ml_dtypes' and PyTorch's casts); formats with neither
    /// saturate.
    NonSaturating,
}

impl Overflow {
    /// Both.
    pub const ALL: &[Overflow] = &[Overflow::Saturate, Overflow::NonSaturating];

    /// The name, as the command line takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Overflow::Saturate => "saturate",
            Overflow::NonSaturating => "nonsaturating",
        }
    }
}

by_name!(Overflow, "overflow rule");

/// What happened while rounding. A set; `|` unites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events(u8);

impl Events {
    /// Nothing to report.
    pub const NONE: Events = Events(0);
    /// The result differs from the input.
    pub const INEXACT: Events = Events(1);
    /// A finite input passed the largest finite value.
    pub const OVERFLOW: Events = Events(2);
    /// A non-zero finite input became zero.
    pub const FLUSHED: Events = Events(4);
    /// The input was infinite.
    pub const INFINITE: Events = Events(8);
    /// The input was NaN.
    pub const NAN: Events = Events(16);

    /// Whether all of `other` happened.
    #[inline]
    pub const fn contains(self, other: Events) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Events {
    type Output = Events;
    #[inline]
    fn bitor(self, other: Events) -> Events {
        Events(self.0 | other.0)
    }
}

/// A rounded value and what happened on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounded {
    /// A value of the target format.
    pub value: Unpacked,
    /// What happened.
    pub events: Events,
}

/// The part that a truncation cut off, against one step of the kept part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    ExactlyZero,
    /// Less than half a step.
    LessThanHalf,
    /// Half a step.
    ExactlyHalf,
    /// More than half a step, less than one.
    MoreThanHalf,
}

impl Loss {
    /// The loss of `significand >> shift`.
    #[inline]
    pub fn of_shift(significand: u64, shift: u32) -> Loss {
        if shift == 0 || significand == 0 {
            return Loss::ExactlyZero;
        }
        if shift > 64 {
            return Loss::LessThanHalf;
        }
        let discarded = if shift == 64 { significand } else { significand & ((1 << shift) - 1) };
        match (discarded, discarded.cmp(&(1 << (shift - 1)))) {
            (0, _) => Loss::ExactlyZero,
            (_, std::cmp::Ordering::Less) => Loss::LessThanHalf,
            (_, std::cmp::Ordering::Equal) => Loss::ExactlyHalf,
            (_, std::cmp::Ordering::Greater) => Loss::MoreThanHalf,
        }
    }
}

/// frac + random / 2^bits ≥ 1 for frac = discarded / 2^shift; with `coarse`, frac is rounded to `bits` bits first.
fn stochastic_away(discarded: u64, shift: u32, random: u32, bits: u32, coarse: bool) -> bool {
    assert!(
        (1..=32).contains(&bits) && u64::from(random) >> bits == 0,
        "random {random} does not fit {bits} bits"
    );
    let random = u128::from(random);
    if shift > 64 + bits {
        return false; // frac < 2^-bits / 2, and random ≤ 2^bits − 1
    }
    // frac in units of 2^-(shift + bits): at most 64 + 32 bits.
    let frac = u128::from(discarded) << bits;
    if coarse {
        let kept = frac >> shift;
        let rest = frac - (kept << shift);
        let half = if shift == 0 { 0 } else { 1u128 << (shift - 1) };
        let up = shift > 0 && (rest > half || (rest == half && kept & 1 == 1));
        return kept + u128::from(up) + random >= 1 << bits;
    }
    // (2^bits − random) ≥ 1, so the right side is at least 2^shift; it fits: shift ≤ 96, factor ≤ 2^32.
    match ((1u128 << bits) - random).checked_shl(shift) {
        Some(needed) if shift <= 95 => frac >= needed,
        _ => false,
    }
}

impl FormatSpec {
    /// Rounds a value to the nearest member(s) of the format as `rounding` says; `overflow` decides beyond the range.
    ///
    /// The range is checked after rounding with unbounded exponent: E4M3 keeps 464 (→ 448) and overflows above it.
    /// Directed roundings overflow only on their own side; elsewhere they give ± the largest finite value. A format
    /// without NaN gives zero with the sign of the NaN; the event says so.
    ///
    /// ```
    /// use finegrain::formats::{Events, Format, Overflow, Rounding, Unpacked};
    /// let e4m3 = Format::E4M3.spec();
    /// let r = e4m3.round(Unpacked::from_f32(1000.0), Rounding::NearestEven, Overflow::Saturate);
    /// assert_eq!(r.value.to_f32(), 448.0);
    /// assert!(r.events.contains(Events::OVERFLOW));
    /// ```
    #[inline]
    pub fn round(&self, value: Unpacked, rounding: Rounding, overflow: Overflow) -> Rounded {
        match value {
            Unpacked::Zero { negative } if self.has_subnormals() => {
                Rounded { value: Unpacked::canonical_zero(negative, self), events: Events::NONE }
            }
            // E8M0 has no zero.
            Unpacked::Zero { .. } => {
                Rounded { value: Unpacked::Nan { negative: false }, events: Events::INEXACT }
            }
            Unpacked::Nan { negative } if self.has_nan() => Rounded {
                value: Unpacked::Nan { negative: negative && self.has_negative_zero() },
                events: Events::NAN,
            },
            Unpacked::Nan { negative } => Rounded {
                value: Unpacked::canonical_zero(negative, self),
                events: Events::NAN | Events::INEXACT,
            },
            Unpacked::Infinite { negative } => {
                let value = self.beyond_range(negative, overflow);
                let same = matches!(value, Unpacked::Infinite { .. });
                let events = if same { Events::INFINITE } else { Events::INFINITE | Events::INEXACT };
                Rounded { value, events }
            }
            Unpacked::Finite { negative: true, .. } if !self.signed() => {
                Rounded { value: Unpacked::Nan { negative: false }, events: Events::INEXACT }
            }
            Unpacked::Finite { negative, significand, exponent } => {
                self.round_finite(negative, significand, exponent, rounding, overflow)
            }
        }
    }

    fn round_finite(
        &self,
        negative: bool,
        significand: u64,
        exponent: i32,
        rounding: Rounding,
        overflow: Overflow,
    ) -> Rounded {
        let e = exponent + 63 - significand.leading_zeros() as i32;
        let quantum = e.max(self.emin()) - self.mantissa_bits as i32;
        let (kept, loss_up, inexact) = if quantum <= exponent {
            (significand, false, false)
        } else {
            let shift = (quantum - exponent) as u32;
            let kept = if shift < 64 { significand >> shift } else { 0 };
            let loss = Loss::of_shift(significand, shift);
            let up = match rounding {
                Rounding::NearestEven => {
                    loss == Loss::MoreThanHalf || (loss == Loss::ExactlyHalf && self.tie_goes_up(kept))
                }
                Rounding::NearestAway => matches!(loss, Loss::MoreThanHalf | Loss::ExactlyHalf),
                Rounding::TowardZero => false,
                Rounding::Up => loss != Loss::ExactlyZero && !negative,
                Rounding::Down => loss != Loss::ExactlyZero && negative,
                Rounding::Stochastic { random, bits } | Rounding::StochasticCoarse { random, bits } => {
                    let discarded = if shift < 64 { significand - (kept << shift) } else { significand };
                    let coarse = matches!(rounding, Rounding::StochasticCoarse { .. });
                    loss != Loss::ExactlyZero && stochastic_away(discarded, shift, random, bits, coarse)
                }
            };
            (kept, up, loss != Loss::ExactlyZero)
        };
        let (significand, exponent) =
            if quantum <= exponent { (kept, exponent) } else { (kept + u64::from(loss_up), quantum) };
        let events = if inexact { Events::INEXACT } else { Events::NONE };
        if significand == 0 {
            // E8M0 has no zero to flush to.
            return if self.has_subnormals() {
                let value = Unpacked::canonical_zero(negative, self);
                Rounded { value, events: events | Events::FLUSHED }
            } else {
                Rounded { value: self.smallest(), events }
            };
        }
        if self.passes_max(significand, exponent) {
            let away = match rounding {
                Rounding::TowardZero => false,
                Rounding::Up => !negative,
                Rounding::Down => negative,
                _ => true,
            };
            let how = if away { overflow } else { Overflow::Saturate };
            let value = self.beyond_range(negative, how);
            return Rounded { value, events: Events::INEXACT | Events::OVERFLOW };
        }
        Rounded { value: Unpacked::Finite { negative, significand, exponent }, events }
    }

    /// Ties of a format without fraction bits have no even neighbour: E8M0 rounds them up (ml_dtypes, PyTorch).
    #[inline]
    fn tie_goes_up(&self, kept: u64) -> bool {
        kept & 1 == 1 || matches!(self.specials, Specials::Scale)
    }

    #[inline]
    fn smallest(&self) -> Unpacked {
        Unpacked::power_of_two(self.quantum_floor())
    }

    /// significand · 2^exponent > the largest finite value.
    fn passes_max(&self, significand: u64, exponent: i32) -> bool {
        let (max, _) = self.max_parts();
        let e = exponent + 63 - significand.leading_zeros() as i32;
        let aligned = |s: u64| s << s.leading_zeros();
        e > self.emax() || (e == self.emax() && aligned(significand) > aligned(max))
    }

    fn beyond_range(&self, negative: bool, overflow: Overflow) -> Unpacked {
        let (significand, exponent) = self.max_parts();
        match overflow {
            Overflow::NonSaturating if self.has_infinity() => Unpacked::Infinite { negative },
            Overflow::NonSaturating if self.has_nan() => {
                Unpacked::Nan { negative: negative && self.has_negative_zero() }
            }
            _ if negative && !self.signed() => Unpacked::Nan { negative: false },
            _ => Unpacked::Finite { negative, significand, exponent },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::Format;
    use super::*;

    #[test]
    fn words_are_read_as_displayed() {
        use Rounding::*;
        let (random, bits) = (u32::MAX, 32);
        for rounding in [
            NearestEven,
            TowardZero,
            Up,
            Down,
            NearestAway,
            Stochastic { random, bits },
            Stochastic { random: 0, bits: 1 },
            StochasticCoarse { random: 5, bits: 3 },
        ] {
            assert_eq!(rounding.to_string().parse::<Rounding>().unwrap(), rounding);
        }
        for wrong in
            ["nearest", "stochastic", "stochastic:8/3", "stochastic:0/33", "stochastic:0/0", "up:1/2"]
        {
            let message = wrong.parse::<Rounding>().unwrap_err().to_string();
            assert!(message.contains(wrong), "{message}");
        }
        for &overflow in Overflow::ALL {
            assert_eq!(overflow.name().parse::<Overflow>().unwrap(), overflow);
        }
    }

    #[test]
    fn losses_are_told_apart() {
        assert_eq!(Loss::of_shift(0b1000, 3), Loss::ExactlyZero);
        assert_eq!(Loss::of_shift(0b1011, 3), Loss::LessThanHalf);
        assert_eq!(Loss::of_shift(0b1100, 3), Loss::ExactlyHalf);
        assert_eq!(Loss::of_shift(0b1101, 3), Loss::MoreThanHalf);
        assert_eq!(Loss::of_shift(1 << 63, 64), Loss::ExactlyHalf);
        assert_eq!(Loss::of_shift(u64::MAX, 64), Loss::MoreThanHalf);
        assert_eq!(Loss::of_shift(u64::MAX, 65), Loss::LessThanHalf);
    }

    /// frac = 1/4: of the 256 random values exactly the topmost 64 round away.
    #[test]
    fn stochastic_rounding_has_the_right_odds() {
        let spec = Format::E4M3.spec();
        let x = Unpacked::from_f32(1.0 + 0.125 / 4.0);
        let away = (0..256)
            .filter(|&random| {
                let r = spec.round(x, Rounding::Stochastic { random, bits: 8 }, Overflow::Saturate);
                r.value.to_f32() == 1.125
            })
            .count();
        assert_eq!(away, 64);
    }

    #[test]
    fn stochastic_rounding_of_the_tiniest_values_stays_in_range() {
        let spec = Format::E4M3.spec();
        for exponent in [-10, -40, -74, -75, -104, -105, -106, -149] {
            for random in [0, 1, u32::MAX - 1, u32::MAX] {
                for x in [Unpacked::power_of_two(exponent), Unpacked::from_f64(1.9 * 2f64.powi(exponent))] {
                    let r = spec.round(x, Rounding::Stochastic { random, bits: 32 }, Overflow::Saturate);
                    assert!(matches!(r.value, Unpacked::Zero { .. }) || r.value.to_f64() == 2f64.powi(-9));
                    if exponent < -45 {
                        assert!(matches!(r.value, Unpacked::Zero { .. }), "2^{exponent} with {random}");
                    }
                }
            }
        }
    }

    #[test]
    fn directed_roundings_overflow_on_their_own_side_only() {
        let spec = Format::E5M2.spec();
        let round = |x: f32, r| spec.round(Unpacked::from_f32(x), r, Overflow::NonSaturating).value;
        let max = Unpacked::from_f32(57344.0).to_f32();
        assert_eq!(round(1e9, Rounding::TowardZero).to_f32(), max);
        assert_eq!(round(1e9, Rounding::Down).to_f32(), max);
        assert_eq!(round(1e9, Rounding::Up), Unpacked::Infinite { negative: false });
        assert_eq!(round(-1e9, Rounding::Up).to_f32(), -max);
        assert_eq!(round(-1e9, Rounding::NearestAway), Unpacked::Infinite { negative: true });
    }
}
