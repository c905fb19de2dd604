//! Two recipes on one matrix: which codes and scales differ, and why.
//!
//! The way from recipe A to recipe B is walked in steps that change one fact of the recipe each. What a step changes in
//! codes and scales is that fact's doing, so the causes are found by running them, not guessed. Steps act one after the
//! other: a code that two steps change, there and back, counts for both and is equal in the end.

use serde::Serialize;

use super::count::differences;
use super::recipe::{MxRule, Recipe, ScaleFormat, Scaling};
use super::{Quantizer, Role};
use crate::error::{Error, Result};
use crate::matrix::MatRef;
use crate::parallel::Watch;
use crate::quant::Element;

/// A rule in which two ways to quantise differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The format of the codes.
    Format,
    /// Which elements share a scale.
    Granule,
    /// The least amax, and with it the scale of zeros.
    AmaxFloor,
    /// What NaN does to amax.
    NanAmax,
    /// Whether scales are powers of two.
    PowerOfTwo,
    /// Whether powers of two lie below amax over the largest element or above.
    FloorOrCeiling,
    /// How scale and payload are computed: division, multiplication by a rounded reciprocal, in which order.
    Arithmetic,
    /// Rounding, overflow and signed zero of the cast.
    Cast,
    /// None: what was quantised differs.
    Data,
}

impl Cause {
    /// The rule in a word, as JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            Cause::Format => "format",
            Cause::Granule => "granule",
            Cause::AmaxFloor => "amax-floor",
            Cause::NanAmax => "nan-amax",
            Cause::PowerOfTwo => "power-of-two",
            Cause::FloorOrCeiling => "floor-or-ceiling",
            Cause::Arithmetic => "arithmetic",
            Cause::Cast => "cast",
            Cause::Data => "data",
        }
    }

    /// The rule in a few words.
    pub const fn describe(self) -> &'static str {
        match self {
            Cause::Format => "format of the codes",
            Cause::Granule => "granule",
            Cause::AmaxFloor => "amax floor",
            Cause::NanAmax => "NaN in amax",
            Cause::PowerOfTwo => "power-of-two scales or not",
            Cause::FloorOrCeiling => "power of two below or above",
            Cause::Arithmetic => "division or reciprocal, of scale or payload",
            Cause::Cast => "rounding, overflow or zero in the cast",
            Cause::Data => "other data",
        }
    }
}

impl Serialize for Cause {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How many codes and scales differ. NaN codes and scales are equal to each other, and so are all codes under scales that
/// are both NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Codes that differ.
    pub codes: u64,
    /// Scales that differ.
    pub scales: u64,
}

impl std::iter::Sum for Differences {
    fn sum<I: Iterator<Item = Differences>>(all: I) -> Differences {
        all.fold(Differences::default(), |a, b| Differences {
            codes: a.codes + b.codes,
            scales: a.scales + b.scales,
        })
    }
}

/// What one step changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CauseDifferences {
    /// The fact that changed.
    pub cause: Cause,
    /// What it did.
    #[serde(flatten)]
    pub differences: Differences,
}

/// The comparison of two recipes on a matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecipeDiff {
    /// Elements compared.
    pub elements: u64,
    /// Scales compared.
    pub granules: u64,
    /// What differs between the two.
    pub total: Differences,
    /// The facts in which the recipes differ, in the order of the steps, and what each did.
    pub causes: Vec<CauseDifferences>,
}

/// Compares two recipes on `x`.
///
/// ```
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{diff_recipes, Cause, Role};
/// let x = Matrix::from_fn(8, 256, |i, j| ((i * 37 + j * 11) % 101) as f32 * 1e-7);
/// let diff = diff_recipes(x.view(), &"deepseek-v3".parse()?, &"vllm".parse()?, Role::Activation)?;
/// assert_eq!(diff.causes[0].cause, Cause::AmaxFloor);
/// assert_eq!(diff.total.scales, 16); // every tile lies under 1e-4
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`] if the recipes differ in element format, granule or kind of scale: then nothing lies side by
/// side.
pub fn diff_recipes<T: Element>(x: MatRef<'_, T>, a: &Recipe, b: &Recipe, role: Role) -> Result<RecipeDiff> {
    let layout = |r: &Recipe| {
        let granule = if role == Role::Weight { r.weight } else { r.activation };
        format!("{} codes in {granule} with {:?} scales", r.element, stored(r))
    };
    if layout(a) != layout(b) {
        return Err(Error::Unsupported(format!(
            "{} gives {}, {} gives {}: they do not lie side by side",
            a.name,
            layout(a),
            b.name,
            layout(b)
        )));
    }
    let quantize = |recipe: &Recipe| Quantizer::new(*recipe).quantize(x, role);
    let first = quantize(a)?;
    let mut before = first.clone();
    let mut causes = Vec::new();
    for (cause, recipe) in steps(a, b) {
        let after = quantize(&recipe)?;
        let differences = differences(before.view(), after.view(), &Watch::NONE)?;
        causes.push(CauseDifferences { cause, differences });
        before = after;
    }
    let total = differences(first.view(), before.view(), &Watch::NONE)?;
    Ok(RecipeDiff { elements: first.stats.elements, granules: first.stats.granules, total, causes })
}

/// The rules in which two recipes differ, whatever the data: what may tell them apart on others.
///
/// ```
/// use finegrain::quant::{Cause, rules_apart};
/// let (te, v3) = ("te".parse()?, "deepseek-v3-ue8m0".parse()?);
/// assert_eq!(rules_apart(&te, &v3), [Cause::AmaxFloor, Cause::NanAmax, Cause::Arithmetic]);
/// # Ok::<(), finegrain::Error>(())
/// ```
pub fn rules_apart(a: &Recipe, b: &Recipe) -> Vec<Cause> {
    steps(a, b).into_iter().map(|(cause, _)| cause).collect()
}

/// How scales are stored; power-of-two scales in f32 lie beside f32.
fn stored(recipe: &Recipe) -> &'static str {
    match recipe.scaling {
        Scaling::Mx(_) => "E8M0",
        Scaling::Nvfp4(_) => "E4M3",
        Scaling::Scale { .. } | Scaling::Multiplier { .. } => "f32",
    }
}

/// The recipes on the way from `a` to `b`: each differs from the one before in the fact named; the last is `b`.
fn steps(a: &Recipe, b: &Recipe) -> Vec<(Cause, Recipe)> {
    let mut steps: Vec<(Cause, Recipe)> = Vec::new();
    let mut now = *a;
    let mut step = |now: &mut Recipe, cause, next: Recipe| {
        if (next.amax, next.scaling, next.cast) != (now.amax, now.scaling, now.cast) {
            *now = next;
            steps.push((cause, next));
        }
    };
    let mut amax = now.amax;
    amax.floor = b.amax.floor;
    let next = Recipe { amax, ..now };
    step(&mut now, Cause::AmaxFloor, next);
    let next = Recipe { amax: b.amax, ..now };
    step(&mut now, Cause::NanAmax, next);
    // Scales of full precision first where one of the two has them: what is computed otherwise is compared in those.
    if is_plain(b)
        && let Some(exact) = now.with_exact_scales()
    {
        step(&mut now, Cause::PowerOfTwo, exact);
    }
    let next = Recipe { scaling: in_direction_of(now.scaling, b.scaling), ..now };
    step(&mut now, Cause::FloorOrCeiling, next);
    let exact = if is_plain(&now) { b.with_exact_scales() } else { None };
    let next = Recipe { scaling: exact.unwrap_or(*b).scaling, ..now };
    step(&mut now, Cause::Arithmetic, next);
    let next = Recipe { scaling: b.scaling, ..now };
    step(&mut now, Cause::PowerOfTwo, next);
    let next = Recipe { cast: b.cast, ..now };
    step(&mut now, Cause::Cast, next);
    steps
}

/// Whether scales are f32 of full precision.
fn is_plain(recipe: &Recipe) -> bool {
    recipe.scale_format() == ScaleFormat::F32
}

/// `scaling` with powers of two on the side on which `other` has them, where both are of OCP MX; all other powers of two
/// lie above.
fn in_direction_of(scaling: Scaling, other: Scaling) -> Scaling {
    let (Scaling::Mx(rule), Scaling::Mx(other)) = (scaling, other) else { return scaling };
    let above = |rule| match rule {
        MxRule::Floor | MxRule::FloorTorchao => false,
        MxRule::Rceil | MxRule::RceilTe => true,
    };
    if above(rule) == above(other) {
        return scaling;
    }
    // The other's own rule, but for what its source computes otherwise than the first one's.
    Scaling::Mx(match rule {
        MxRule::Floor | MxRule::FloorTorchao => MxRule::Rceil,
        MxRule::Rceil => MxRule::FloorTorchao,
        MxRule::RceilTe => MxRule::Floor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::counter_hash;
    use crate::matrix::Matrix;

    fn sample() -> Matrix<f32> {
        Matrix::from_fn(64, 512, |i, j| {
            let h = counter_hash(3, (i * 512 + j) as u64);
            let magnitude = f32::from_bits(((h >> 40) as u32 & 0x007F_FFFF) | 0x3F80_0000)
                * 2f32.powi(i as i32 % 20 - 10);
            if h & 1 == 0 { magnitude } else { -magnitude }
        })
    }

    fn diff(a: &str, b: &str) -> RecipeDiff {
        let (a, b) = (a.parse::<Recipe>().unwrap(), b.parse::<Recipe>().unwrap());
        diff_recipes(sample().view(), &a, &b, Role::Activation).unwrap()
    }

    #[test]
    fn a_recipe_is_equal_to_itself() {
        let d = diff("te", "te");
        assert_eq!(
            (d.total, d.causes.len(), d.elements, d.granules),
            (Differences::default(), 0, 32_768, 256)
        );
    }

    /// Reciprocal instead of division: few codes differ, scales by a last bit; the sources' own finding.
    #[test]
    fn a_reciprocal_moves_a_few_codes() {
        let d = diff("deepgemm", "deepgemm-cuda");
        assert_eq!(d.causes.iter().map(|c| c.cause).collect::<Vec<_>>(), [Cause::Arithmetic]);
        assert_eq!(d.causes[0].differences, d.total);
        assert!(d.total.scales > 10 && d.total.codes < d.elements / 200, "{d:?}");
    }

    #[test]
    fn causes_are_told_apart() {
        let d = diff("vllm", "tilekernels-pow2");
        let causes: Vec<Cause> = d.causes.iter().map(|c| c.cause).collect();
        assert_eq!(causes, [Cause::AmaxFloor, Cause::Arithmetic, Cause::PowerOfTwo]);
        assert_eq!(d.causes[0].differences, Differences::default(), "no tile lies under the floor");
        assert!(d.causes[2].differences.scales > 200, "{d:?}");
        let nan = diff("te", "te-kernel");
        assert_eq!(nan.total, Differences::default(), "they differ on infinities and NaN only");
    }

    /// All scales of TransformerEngine are powers of two: that is what differs, whichever comes first, and the arithmetic
    /// moves a last bit.
    #[test]
    fn powers_of_two_are_no_arithmetic() {
        for (a, b) in [("te", "deepseek-v3"), ("deepseek-v3", "te")] {
            let d = diff(a, b);
            let of = |cause| d.causes.iter().find(|c| c.cause == cause).unwrap().differences;
            let (power, arithmetic) = (of(Cause::PowerOfTwo), of(Cause::Arithmetic));
            assert_eq!(power.scales, d.granules, "{a} {b}: {d:?}");
            assert!(
                power.codes > 4 * arithmetic.codes && arithmetic.codes < d.elements / 200,
                "{a} {b}: {d:?}"
            );
        }
    }

    /// The OCP rule and that of NVIDIA differ where amax lies between the largest element and the next power of two.
    #[test]
    fn floor_and_ceiling_are_no_arithmetic() {
        for (a, b, extra) in [
            ("mxfp8-e4m3-floor-torchao", "mxfp8-e4m3-rceil", 0),
            ("mxfp8-e4m3-rceil", "mxfp8-e4m3-floor", 1),
            ("mxfp8-e5m2-floor", "mxfp8-e5m2-rceil-te", 1),
            ("mxfp8-e4m3-rceil-te", "mxfp8-e4m3-floor", 0),
        ] {
            let d = diff(a, b);
            assert_eq!(d.causes.len(), 1 + extra, "{a} {b}: {d:?}");
            assert_eq!(
                (d.causes[0].cause, d.causes[0].differences),
                (Cause::FloorOrCeiling, d.total),
                "{a} {b}"
            );
            assert!(d.total.scales > d.granules / 20, "{a} {b}: {d:?}");
            for rest in &d.causes[1..] {
                assert_eq!(
                    (rest.cause, rest.differences),
                    (Cause::Arithmetic, Differences::default()),
                    "{a} {b}"
                );
            }
        }
        assert_eq!(diff("mxfp8-e4m3-floor", "mxfp8-e4m3-floor-torchao").total, Differences::default());
    }

    #[test]
    fn every_step_ends_at_the_second_recipe() {
        for a in Recipe::ALL {
            for b in Recipe::ALL {
                if let Some((_, last)) = steps(a, b).last() {
                    assert_eq!(
                        (last.amax, last.scaling, last.cast),
                        (b.amax, b.scaling, b.cast),
                        "{} {}",
                        a.name,
                        b.name
                    );
                } else {
                    assert_eq!(
                        (a.amax, a.scaling, a.cast),
                        (b.amax, b.scaling, b.cast),
                        "{} {}",
                        a.name,
                        b.name
                    );
                }
            }
        }
    }

    #[test]
    fn what_does_not_lie_side_by_side_is_refused() {
        let (a, b) = ("te".parse::<Recipe>().unwrap(), "mxfp8".parse::<Recipe>().unwrap());
        let message = diff_recipes(sample().view(), &a, &b, Role::Activation).unwrap_err().to_string();
        assert!(message.contains("1x128") && message.contains("1x32"), "{message}");
    }
}
