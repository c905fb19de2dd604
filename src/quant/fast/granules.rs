//! What granules decide, from their largest magnitudes.

use finegrain_cpu::quantize::{
    Arithmetic, FactorForm, MAX_LANES, MultiplierQuotient, PowerOfTwo as Rounded, ScaleQuotient, ScaleRule,
    ScalesOut, ordinary_scales,
};

use super::Plan;
use crate::element::Panel;
use crate::quant::derive::{Payload, StoredScale};
use crate::quant::recipe::{MultiplierForm, PayloadForm, PowerOfTwo, Recipe, ScaleForm, Scaling};
use crate::quant::stats::QuantStats;
use crate::scaled::Granule;
use crate::simd::DIVISORS;

/// What is known of granules before their elements are cast: one entry each.
#[derive(Default)]
pub(super) struct Decisions {
    /// What elements are divided or multiplied by.
    pub(super) factors: Vec<f32>,
    /// fl(1 / factor).
    pub(super) inverses: Vec<f32>,
    care: Vec<Care>,
    /// The scales, as f32 or bytes.
    scales: Vec<f32>,
    bytes: Vec<u8>,
}

/// What is to be looked after when the elements of a granule are cast.
#[derive(Clone, Copy, Default)]
pub(super) struct Care {
    divides: bool,
    /// Whether registers may not do it: some element or the factor is infinite or NaN, so that payloads may be NaN.
    pub(super) rough: bool,
    /// Whether it takes the general loop: some payload lies beyond the largest code, or the factor is a divisor near the
    /// ends of f32.
    pub(super) general: bool,
}

impl Care {
    fn or(self, other: Care) -> Care {
        Care {
            divides: self.divides | other.divides,
            rough: self.rough | other.rough,
            general: self.general | other.general,
        }
    }
}

impl Decisions {
    /// Makes room for some granules.
    fn resize(&mut self, len: usize) {
        if self.factors.len() != len {
            self.factors.resize(len, 1.0);
            self.inverses.resize(len, 1.0);
            self.care.resize(len, Care::default());
            self.scales.resize(len, 0.0);
            self.bytes.resize(len, 0);
        }
    }

    /// What is to be looked after in any of some granules.
    pub(super) fn any(&self, granules: std::ops::Range<usize>) -> Care {
        self.care[granules].iter().fold(Care::default(), |all, &one| all.or(one))
    }

    /// How elements of a granule become payloads.
    pub(super) fn payload(&self, granule: usize) -> Payload {
        let factor = self.factors[granule];
        if self.care[granule].divides { Payload::Divide(factor) } else { Payload::Multiply(factor) }
    }
}

/// A row of granules of `width` columns, and the bits of their largest magnitudes.
#[derive(Clone, Copy)]
pub(super) struct GranuleRow<'a> {
    pub(super) x: &'a Panel<'a>,
    pub(super) width: usize,
    pub(super) peaks: &'a [u32],
}

impl GranuleRow<'_> {
    /// Decides over its granules, entries of `decided` from `first` on, the last: in registers where amax is ordinary. Gives
    /// what is to be looked after in any of them.
    pub(super) fn decide(
        &self,
        plan: &Plan<'_>,
        decided: &mut Decisions,
        first: usize,
        stats: &mut QuantStats,
    ) -> Care {
        let (count, care) = (self.peaks.len(), Care { divides: plan.rule.divides, ..Care::default() });
        decided.resize(first + count);
        let (mut at, mut all) = (0, care);
        while at < count {
            let mut end = count;
            if let Some(rule) = &plan.scale_rule {
                let rest = first + at..first + count;
                let mut out = ScalesOut {
                    scales: &mut decided.scales[rest.clone()],
                    factors: &mut decided.factors[rest.clone()],
                    inverses: &mut decided.inverses[rest],
                };
                let ordinary = ordinary_scales(plan.isa, rule, &self.peaks[at..], &mut out);
                decided.care[first + at..first + at + ordinary].fill(care);
                stats.granules += ordinary as u64;
                at += ordinary;
                end = (at + MAX_LANES).min(count);
            }
            for granule in at..end {
                let care = self.decide_one(plan, granule, decided, first + granule, stats);
                all = all.or(care);
            }
            at = end;
        }
        all
    }

    /// Decides by the definition over granule `index`, entry `to`.
    fn decide_one(
        &self,
        plan: &Plan<'_>,
        index: usize,
        decided: &mut Decisions,
        to: usize,
        stats: &mut QuantStats,
    ) -> Care {
        let (recipe, peak) = (plan.recipe, self.peaks[index]);
        let finite = peak <= self.x.data.kind().largest();
        // A maximum of bits cannot tell what NaN does to amax.
        let amax = if finite {
            f32::from_bits(peak)
        } else {
            let columns = Granule::span(self.x.cols, self.width, index);
            amax_of(recipe, self.x.part(0..self.x.rows, columns))
        };
        stats.granules += 1;
        stats.zero_granules += u64::from(peak == 0);
        stats.floored_granules += u64::from(amax > 0.0 && amax < recipe.amax.floor);
        stats.nonfinite_granules += u64::from(!finite);

        let scale = recipe.granule_scale(amax, plan.tensor);
        let (factor, divides) = match scale.payload {
            Payload::Divide(s) => (s, true),
            Payload::Multiply(m) => (m, false),
        };
        // Payloads grow with magnitudes, so the largest tells for all.
        let clips = scale.payload.of(amax).abs().to_bits() > plan.rule.encoder.limit();
        let general = clips || divides && !(DIVISORS[0]..=DIVISORS[1]).contains(&factor);
        let quotients = !divides || factor != 0.0;
        let plain = finite && divides == plan.rule.divides && quotients && factor.is_finite();
        (decided.factors[to], decided.inverses[to]) = (factor, 1.0 / factor);
        match scale.stored {
            StoredScale::F32(scale) => decided.scales[to] = scale,
            StoredScale::Byte(scale) => decided.bytes[to] = scale,
        }
        decided.care[to] = Care { divides, rough: !plain, general };
        decided.care[to]
    }
}

/// amax, NaN elements looked at.
#[cold]
pub(super) fn amax_of(recipe: &Recipe, x: Panel<'_>) -> f32 {
    recipe.amax((0..x.rows).flat_map(|i| {
        let row = x.row(i);
        (0..x.cols).map(move |j| row.at(j))
    }))
}

/// The rule by which kernels find scales; `None` where only the definition knows. `largest` is that of the elements,
/// `limit` that of payloads.
pub(super) fn scale_rule(recipe: &Recipe, largest: u32, limit: u32, divides: bool) -> Option<ScaleRule> {
    let arithmetic = match recipe.scaling {
        Scaling::Scale { form, power_of_two, payload, zero: _ } => Arithmetic::Scale {
            quotient: match form {
                ScaleForm::Quotient => ScaleQuotient::OverMax,
                ScaleForm::Reciprocal => ScaleQuotient::TimesReciprocal,
            },
            power_of_two: match power_of_two {
                PowerOfTwo::No => Rounded::No,
                PowerOfTwo::CeilLog2F32 => Rounded::UpFromLogarithm,
                PowerOfTwo::CeilField | PowerOfTwo::CeilFieldClamped | PowerOfTwo::CeilMask => Rounded::Up,
            },
            factor: match payload {
                PayloadForm::Quotient => FactorForm::Scale,
                PayloadForm::Inverse => FactorForm::Inverse,
                PayloadForm::MaxOverAmax => FactorForm::MaxOverAmax,
                PayloadForm::MaxTimesReciprocal => FactorForm::MaxTimesReciprocal,
                PayloadForm::NegatedExponent => FactorForm::NegatedExponent,
            },
        },
        Scaling::Multiplier { form, power_of_two, overflow: _, zero: _, infinite: _, nan: _ } => {
            Arithmetic::Multiplier {
                quotient: match form {
                    MultiplierForm::Quotient => MultiplierQuotient::MaxOverAmax,
                    MultiplierForm::Reciprocal => MultiplierQuotient::MaxTimesReciprocal,
                    MultiplierForm::Reciprocal64 => return None,
                },
                power_of_two,
            }
        }
        Scaling::Mx(_) | Scaling::Nvfp4(_) => return None,
    };
    Some(ScaleRule { max: recipe.max(), floor: recipe.amax.floor, largest, limit, divides, arithmetic })
}

/// A grid of scales that is being written.
pub(super) enum ScalesMut<'a> {
    F32(&'a mut [f32]),
    Bytes(&'a mut [u8]),
}

impl<'a> ScalesMut<'a> {
    /// Stores the scales of some granules, the first at `at` and then every `step`.
    pub(super) fn store(
        &mut self,
        at: usize,
        step: usize,
        decided: &Decisions,
        granules: std::ops::Range<usize>,
    ) {
        match self {
            ScalesMut::F32(grid) => place(grid, at, step, &decided.scales[granules]),
            ScalesMut::Bytes(grid) => place(grid, at, step, &decided.bytes[granules]),
        }
    }

    /// Cuts the grid into parts of `len` scales.
    pub(super) fn chunks(self, len: usize) -> Vec<ScalesMut<'a>> {
        match self {
            ScalesMut::F32(grid) => grid.chunks_mut(len).map(ScalesMut::F32).collect(),
            ScalesMut::Bytes(grid) => grid.chunks_mut(len).map(ScalesMut::Bytes).collect(),
        }
    }
}

fn place<T: Copy>(grid: &mut [T], at: usize, step: usize, scales: &[T]) {
    if step == 1 {
        grid[at..at + scales.len()].copy_from_slice(scales);
    } else {
        grid[at..].iter_mut().step_by(step).zip(scales).for_each(|(to, &scale)| *to = scale);
    }
}
