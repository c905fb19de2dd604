//! Two quantised matrices without their source: which codes and scales differ, and which rule explains it.
//!
//! Codes and scales tell what made them. A granule whose scale was computed from its own amax uses the format up to its
//! end: the largest code is the format's last or, where scales are powers of two, at least half of that. A granule under an
//! amax floor does not. Scales that are all powers of two come from a rule that makes them so. What is left over, such as
//! scales a last bit apart, is arithmetic; and scales further apart than any rule puts them are of other data.

use std::collections::HashMap;
use std::ops::Range;

use serde::Serialize;

use super::count::{Nan, same, same_codes, scale};
use super::diff::{Cause, CauseDifferences, Differences};
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::parallel::{Watch, map};
use crate::scaled::{CodesRef, Granule, ScaleGridRef, ScaledRef};

/// Scales closer than this are of one amax: a reciprocal that is rounded on the way costs two last bits of an f32 or so.
const SAME_AMAX: f64 = 1.0 + 1.0 / (1 << 20) as f64;
/// The same of scales in E4M3, which are a sixteenth apart or an eighth.
const SAME_AMAX_E4M3: f64 = 1.2;
/// A share of codes beside each other above which rounding differs, and not what was rounded: sources that compute one
/// payload in another way differ in a thousandth.
const ROUNDED_OTHERWISE: f64 = 0.01;

/// A granule of the first matrix in which something differs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GranuleDiff {
    /// Its first row and column.
    pub at: (usize, usize),
    /// Its rows and columns.
    pub shape: (usize, usize),
    /// The rule that explains it.
    pub cause: Cause,
    /// Codes that differ.
    pub codes: u64,
    /// Both scales, tensor scales applied; where the second matrix has several, the one of the first element.
    pub scales: (f64, f64),
    /// Σ (x − y)² of the values: how much it matters. NaN where a value is not finite.
    pub squared: f64,
}

/// What differs between two quantised matrices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedDiff {
    /// Elements compared.
    pub elements: u64,
    /// Granules of the first matrix.
    pub granules: u64,
    /// What differs. Of matrices in two formats codes are values.
    pub total: Differences,
    /// What each rule explains, that which explains most granules first.
    pub causes: Vec<CauseDifferences>,
    /// The granules that differ, row by row.
    pub differing: Vec<GranuleDiff>,
}

/// Compares two quantised matrices, and infers from their codes and scales alone which rule makes them differ, granule by
/// granule. NaN codes and scales are equal to each other, and so are all codes under scales that are both NaN.
///
/// ```
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{Cause, Quantizer, diff_quantized};
/// let x = Matrix::from_fn(8, 256, |i, j| ((i * 37 + j * 11) % 101) as f32 * 0.1 - 5.0);
/// let [v3, te] = ["deepseek-v3", "te"].map(|name| Quantizer::new(name.parse().unwrap()).activation(x.view()).unwrap());
/// let diff = diff_quantized(v3.view(), te.view())?;
/// assert_eq!(diff.causes[0].cause, Cause::PowerOfTwo);
/// assert_eq!((diff.total.scales, diff.granules), (16, 16));
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes differ; [`Error::Unsupported`] for elements of more than 16 bits.
pub fn diff_quantized(a: ScaledRef<'_>, b: ScaledRef<'_>) -> Result<QuantizedDiff> {
    diff_watched(a, b, &Watch::NONE)
}

/// [`diff_quantized`], watched.
pub(crate) fn diff_watched(a: ScaledRef<'_>, b: ScaledRef<'_>, watch: &Watch<'_>) -> Result<QuantizedDiff> {
    let ((m, n), (r, c)) = (a.shape(), b.shape());
    if (m, n) != (r, c) {
        return Err(Error::Shape(format!("the first matrix is {m}×{n}, the second {r}×{c}")));
    }
    for x in [a, b] {
        if x.format().spec().bits() > u16::BITS {
            return Err(Error::Unsupported(format!(
                "elements in {} are no codes of a quantiser",
                x.format()
            )));
        }
        x.fetch()?;
    }
    let granule = granule(&a);
    let (rows, cols) = granule.grid(m, n);
    let whole = if a.format() != b.format() {
        Some(Cause::Format)
    } else {
        (!granule.cuts_as(self::granule(&b), m, n)).then_some(Cause::Granule)
    };
    let sides = [Side::new(a), Side::new(b)];
    let of_rows = |i: usize| -> Vec<Found> {
        let rows = Granule::span(m, granule.rows(), i);
        if whole.is_none() && is_same(&sides, rows.clone(), granule) {
            return Vec::new();
        }
        (0..cols)
            .filter_map(|j| Found::of(&sides, rows.clone(), Granule::span(n, granule.cols(), j)))
            .collect()
    };
    let found = map(watch, if m * n == 0 { 0 } else { rows }, &of_rows)?.concat();
    let votes = Votes::of(&sides, &found, m as u64 * n as u64);
    let differing: Vec<GranuleDiff> = found
        .iter()
        .map(|found| found.explained(whole.unwrap_or_else(|| votes.cause(&sides, found))))
        .collect();
    let mut total = Differences::default();
    let mut causes: Vec<(u64, CauseDifferences)> = Vec::new();
    for (found, granule) in found.iter().zip(&differing) {
        let index = causes.iter().position(|(_, known)| known.cause == granule.cause).unwrap_or_else(|| {
            causes.push((0, CauseDifferences { cause: granule.cause, differences: Differences::default() }));
            causes.len() - 1
        });
        let (granules, of_cause) = &mut causes[index];
        *granules += 1;
        for sum in [&mut of_cause.differences, &mut total] {
            sum.codes += granule.codes;
            sum.scales += u64::from(found.scale_differs);
        }
    }
    causes.sort_by_key(|&(granules, _)| std::cmp::Reverse(granules));
    Ok(QuantizedDiff {
        elements: m as u64 * n as u64,
        granules: rows as u64 * cols as u64,
        total,
        causes: causes.into_iter().map(|(_, of_cause)| of_cause).collect(),
        differing,
    })
}

/// Whether a row of granules has the same codes and scales, so that no element need be looked at.
fn is_same(sides: &[Side<'_>; 2], mut rows: Range<usize>, granule: Granule) -> bool {
    let (first, (_, cols)) = (rows.start, sides[0].x.shape());
    let at = |j: usize| Granule::span(cols, granule.cols(), j).start;
    let same_scale = |j: usize| same(scale(&sides[0].x, first, at(j)), scale(&sides[1].x, first, at(j)));
    (0..granule.grid(rows.len(), cols).1).all(same_scale)
        && rows.all(|i| same_codes(sides[0].codes, sides[1].codes, i))
}

/// The granule of the scales; one for all without.
fn granule(x: &ScaledRef<'_>) -> Granule {
    x.scales().map_or(Granule::TENSOR, |s| s.granule)
}

/// A matrix and what is true of all of it.
struct Side<'a> {
    x: ScaledRef<'a>,
    codes: CodesRef<'a>,
    nan: Nan,
    /// What each code stands for.
    values: Vec<f64>,
    /// Whether all scales that are finite and not zero are powers of two.
    powers_of_two: bool,
}

impl<'a> Side<'a> {
    fn new(x: ScaledRef<'a>) -> Self {
        let codes = 0..=x.format().spec().code_mask();
        let values = codes.map(|code| x.format().spec().decode(code).to_f64()).collect();
        let is_power = |s: f32| !s.is_finite() || s == 0.0 || s.to_bits() & 0x007F_FFFF == 0;
        let powers_of_two = x.scales().is_none_or(|s| match s.grid {
            ScaleGridRef::E8M0(_) => true,
            ScaleGridRef::F32(grid) => grid.iter_rows().flatten().all(|&s| is_power(s)),
            ScaleGridRef::E4M3(_) => false,
        });
        Side { x, codes: x.codes(), nan: Nan::of(x.format()), values, powers_of_two }
    }

    /// Whether a granule with this largest magnitude of its codes has a scale of its own amax.
    fn is_full(&self, largest: f64) -> bool {
        let end = self.x.format().spec().max_finite();
        largest >= if self.powers_of_two { end / 2.0 } else { end }
    }
}

/// A granule in which something differs.
#[derive(Clone, Copy)]
struct Found {
    at: (usize, usize),
    shape: (usize, usize),
    /// Codes that differ; of them those beside each other, and those where one is not finite or both are zeros.
    codes: u64,
    beside: u64,
    at_the_edge: u64,
    scale_differs: bool,
    scales: [f64; 2],
    /// Largest finite magnitude of the codes.
    largest: [f64; 2],
    squared: f64,
}

impl Found {
    /// `None` if nothing differs.
    fn of(sides: &[Side<'_>; 2], rows: Range<usize>, cols: Range<usize>) -> Option<Found> {
        let one_format = sides[0].x.format() == sides[1].x.format();
        let at = (rows.start, cols.start);
        let scales = [0, 1].map(|s| scale(&sides[s].x, at.0, at.1));
        let mut found = Found {
            at,
            shape: (rows.len(), cols.len()),
            codes: 0,
            beside: 0,
            at_the_edge: 0,
            scale_differs: false,
            scales,
            largest: [0.0; 2],
            squared: 0.0,
        };
        let codes = [sides[0].codes, sides[1].codes];
        for i in rows {
            for j in cols.clone() {
                let code = [codes[0].at(i, j), codes[1].at(i, j)];
                let value = [0, 1].map(|s| sides[s].values[code[s] as usize]);
                let scale = [scales[0], scale(&sides[1].x, i, j)];
                found.scale_differs |= !same(scale[0], scale[1]);
                for (largest, value) in found.largest.iter_mut().zip(value).filter(|(_, v)| v.is_finite()) {
                    *largest = largest.max(value.abs());
                }
                let products = [value[0] * scale[0], value[1] * scale[1]];
                let equal = same(products[0], products[1]);
                let differ = match one_format {
                    true => !scale.iter().all(|s| s.is_nan()) && sides[0].nan.differ(code[0], code[1]),
                    false => !equal,
                };
                if !equal {
                    found.squared += (products[0] - products[1]).powi(2);
                }
                if differ {
                    found.codes += 1;
                    if one_format {
                        found.count(sides[0].x.format(), code, value);
                    }
                }
            }
        }
        (found.codes > 0 || found.scale_differs).then_some(found)
    }

    /// Counts a pair of codes that differ by what they are.
    fn count(&mut self, format: Format, code: [u32; 2], value: [f64; 2]) {
        let sign = format.spec().sign_mask() as u32;
        let magnitude = |code: u32| code & !sign;
        // Two zeros, or an overflow.
        if value[0] == value[1] || !value.iter().all(|v| v.is_finite()) {
            self.at_the_edge += 1;
        } else if magnitude(code[0]).abs_diff(magnitude(code[1])) <= 1 {
            self.beside += 1;
        }
    }

    fn explained(&self, cause: Cause) -> GranuleDiff {
        let [first, second] = self.scales;
        GranuleDiff {
            at: self.at,
            shape: self.shape,
            cause,
            codes: self.codes,
            scales: (first, second),
            squared: self.squared,
        }
    }
}

/// What all granules together say where one alone does not.
struct Votes {
    /// Powers of two differ where one lies below amax over the largest element, not only where amax is next to one.
    below_and_above: bool,
    /// Codes are rounded otherwise.
    rounding: bool,
    /// The scale of several granules that are under an amax floor: that of the floor.
    floor: Option<f64>,
}

impl Votes {
    fn of(sides: &[Side<'_>; 2], found: &[Found], elements: u64) -> Votes {
        let half = sides[0].x.format().spec().max_finite() / 2.0;
        let below_and_above = found.iter().any(|found| {
            let (small, large) = found.by_scale();
            let powers = [small, large].iter().all(|&side| sides[side].powers_of_two);
            powers && found.scale_differs && found.clips(sides) && found.largest[large] > half
        });
        let beside: u64 = found.iter().filter(|found| !found.scale_differs).map(|found| found.beside).sum();
        let rounding = beside as f64 > ROUNDED_OTHERWISE * elements as f64;
        Votes { below_and_above, rounding, floor: floor(sides, found) }
    }

    fn cause(&self, sides: &[Side<'_>; 2], found: &Found) -> Cause {
        if !found.scale_differs {
            return if found.at_the_edge == found.codes || self.rounding && found.is_rounding() {
                Cause::Cast
            } else if found.is_rounding() {
                Cause::Arithmetic
            } else {
                Cause::Data
            };
        }
        if found.scales.iter().any(|s| s.is_nan()) {
            return Cause::NanAmax;
        }
        let (small, large) = found.by_scale();
        let ratio = found.scales[large] / found.scales[small];
        let e4m3 = sides.iter().any(|side| side.x.scales().is_some_and(|s| s.grid.format() == Format::E4M3));
        let close = if e4m3 { SAME_AMAX_E4M3 } else { SAME_AMAX };
        if ratio <= close {
            return Cause::Arithmetic;
        }
        if found.is_floored(sides) || self.floor == Some(found.scales[large]) {
            return Cause::AmaxFloor;
        }
        match [small, large].map(|side| sides[side].powers_of_two) {
            _ if ratio > 2.0 * close => Cause::Data,
            // What lies below clips; one computed otherwise is next to a power of two.
            [true, true] if !found.clips(sides) => Cause::Data,
            [true, true] if self.below_and_above => Cause::FloorOrCeiling,
            [true, true] => Cause::Arithmetic,
            [false, false] => Cause::Data,
            [true, false] | [false, true] => Cause::PowerOfTwo,
        }
    }
}

/// The scale that most of the granules under an amax floor have, if more than one has it. Powers of two are not told from
/// those of an amax.
fn floor(sides: &[Side<'_>; 2], found: &[Found]) -> Option<f64> {
    let mut counts: HashMap<u64, usize> = HashMap::new();
    for found in found.iter().filter(|found| found.scale_differs && found.is_floored(sides)) {
        let (_, large) = found.by_scale();
        if !sides[large].powers_of_two {
            *counts.entry(found.scales[large].to_bits()).or_default() += 1;
        }
    }
    let most = counts.into_iter().max_by_key(|&(scale, count)| (count, scale));
    most.filter(|&(_, count)| count > 1).map(|(scale, _)| f64::from_bits(scale))
}

impl Found {
    /// Whether the larger scale is not that of the granule's own amax.
    fn is_floored(&self, sides: &[Side<'_>; 2]) -> bool {
        let (_, large) = self.by_scale();
        self.largest == [0.0; 2] || !sides[large].is_full(self.largest[large])
    }

    /// Which side has the smaller scale, and which the larger.
    fn by_scale(&self) -> (usize, usize) {
        if self.scales[0].abs() <= self.scales[1].abs() { (0, 1) } else { (1, 0) }
    }

    /// Whether the codes under the smaller scale reach the format's end.
    fn clips(&self, sides: &[Side<'_>; 2]) -> bool {
        let (small, _) = self.by_scale();
        self.largest[small] == sides[small].x.format().spec().max_finite()
    }

    /// Whether all codes that differ lie beside each other, overflow or are zeros.
    fn is_rounding(&self) -> bool {
        self.at_the_edge + self.beside == self.codes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::counter_hash;
    use crate::matrix::Matrix;
    use crate::quant::{Quantizer, Recipe, Role};
    use crate::scaled::{Codes, ScaledMatrix};

    /// Bell-shaped rows of many sizes; some tiles of zeros, some below every floor.
    fn sample(seed: u64) -> Matrix<f32> {
        Matrix::from_fn(64, 1024, |i, j| {
            let uniform =
                |k: u64| counter_hash(seed, ((i * 1024 + j) as u64) << 4 | k) as f64 / u64::MAX as f64 - 0.5;
            let bell = (0..6).map(uniform).sum::<f64>() as f32;
            match i % 16 {
                5 if j < 128 => 0.0,
                9 => bell * 1e-8,
                _ => bell * 2f32.powi(i as i32 % 11 - 5),
            }
        })
    }

    fn quantized(recipe: &str, role: Role, seed: u64) -> ScaledMatrix {
        let recipe: Recipe = recipe.parse().unwrap();
        Quantizer::new(recipe).quantize(sample(seed).view(), role).unwrap().matrix
    }

    fn causes(a: &ScaledMatrix, b: &ScaledMatrix) -> Vec<(Cause, u64, u64)> {
        let diff = diff_quantized(a.view(), b.view()).unwrap();
        let codes: u64 = diff.causes.iter().map(|c| c.differences.codes).sum();
        assert_eq!(codes, diff.total.codes);
        diff.causes.iter().map(|c| (c.cause, c.differences.codes, c.differences.scales)).collect()
    }

    fn between(a: &str, b: &str) -> Vec<(Cause, u64, u64)> {
        causes(&quantized(a, Role::Activation, 1), &quantized(b, Role::Activation, 1))
    }

    #[test]
    fn a_matrix_is_equal_to_itself() {
        for name in ["te", "mxfp8", "nvfp4", "e5m6"] {
            let diff = diff_quantized(
                quantized(name, Role::Weight, 1).view(),
                quantized(name, Role::Weight, 1).view(),
            );
            let diff = diff.unwrap();
            assert_eq!((diff.total, diff.differing.len()), (Differences::default(), 0), "{name}");
        }
    }

    /// The rule that differs explains nearly every granule, and nothing else but what also differs.
    #[test]
    fn the_rule_is_named_without_a_source() {
        let first = |a, b| between(a, b)[0].0;
        for (a, b) in
            [("te", "te-f32"), ("te-f32", "te"), ("deepseek-v3", "deepseek-v3-ue8m0"), ("te", "deepseek-v3")]
        {
            assert_eq!(first(a, b), Cause::PowerOfTwo, "{a} {b}: {:?}", between(a, b));
        }
        for (a, b) in [
            ("mxfp8-e4m3-floor", "mxfp8-e4m3-rceil"),
            ("mxfp8-e5m2-rceil-te", "mxfp8-e5m2-floor"),
            ("mxfp4-e2m1-floor", "mxfp4-e2m1-rceil"),
        ] {
            let found = between(a, b);
            assert_eq!((found[0].0, found.len()), (Cause::FloorOrCeiling, 1), "{a} {b}: {found:?}");
        }
        let arithmetic = between("deepgemm", "deepgemm-cuda");
        assert_eq!((arithmetic[0].0, arithmetic.len()), (Cause::Arithmetic, 1), "{arithmetic:?}");
        let floor = between("te-f32", "te-f32:floor=1e-4");
        assert_eq!((floor[0].0, floor[0].2), (Cause::AmaxFloor, 4 * 8 + 4), "{floor:?}");
        assert_eq!(floor.len(), 1, "{floor:?}");
        assert_eq!(first("deepseek-v3", "deepseek-v3:element=e5m2"), Cause::Format);
        assert_eq!(between("deepseek-v3", "deepseek-v3:activation=1x64").len(), 1);
        assert_eq!(first("deepseek-v3", "deepseek-v3:activation=1x64"), Cause::Granule);
    }

    /// A floor just above an amax leaves the largest code where it is; the scale is that of all floored granules.
    #[test]
    fn floors_just_above_an_amax_are_known_by_their_scale() {
        let x =
            Matrix::from_fn(300, 128, |i, j| if j == 0 { 1.0 + i as f32 * 1e-3 } else { j as f32 * 1e-3 });
        let [a, b] = ["te-f32", "te-f32:floor=1.2"].map(|recipe| {
            Quantizer::new(recipe.parse::<Recipe>().unwrap()).activation(x.view()).unwrap().matrix
        });
        let found = causes(&a, &b);
        assert_eq!((found.len(), found[0].0), (1, Cause::AmaxFloor), "{found:?}");
        assert!((195..=201).contains(&found[0].2), "{found:?}");
    }

    #[test]
    fn floors_are_told_from_powers_of_two() {
        let found = between("te", "deepseek-v3");
        let of = |cause| found.iter().find(|f| f.0 == cause).copied().unwrap();
        // Rows 9, 25, 41 and 57 lie under the floor, and tiles of rows 5, 21, 37 and 53 are zero.
        assert_eq!(of(Cause::AmaxFloor).2, 4 * 8 + 4, "{found:?}");
        assert_eq!(of(Cause::PowerOfTwo).2, 512 - 36, "{found:?}");
    }

    #[test]
    fn other_data_and_other_rounding() {
        let (a, b) = (quantized("te", Role::Activation, 1), quantized("te", Role::Activation, 2));
        assert_eq!(causes(&a, &b)[0].0, Cause::Data);
        // Codes moved by one, one in twenty: no payload is computed so.
        let moved = |every: u64| {
            let Codes::Bytes(codes) = a.codes() else { unreachable!() };
            let move_one = |i: usize, j: usize| {
                let code = codes[(i, j)];
                let hit = counter_hash(5, (i * 1024 + j) as u64).is_multiple_of(every);
                if hit && code & 0x7F > 8 && code & 0x7F < 0x70 { code + 1 } else { code }
            };
            let moved = Matrix::from_fn(64, 1024, move_one);
            ScaledMatrix::new(a.format(), Codes::Bytes(moved), a.scales().cloned()).unwrap()
        };
        assert_eq!(causes(&a, &moved(20))[0].0, Cause::Cast);
        assert_eq!(causes(&a, &moved(2000))[0].0, Cause::Arithmetic);
        let overflow = {
            let Codes::Bytes(codes) = a.codes() else { unreachable!() };
            let nan = codes.map(|&c| if c & 0x7F == 0x7E { c | 0x7F } else { c });
            ScaledMatrix::new(a.format(), Codes::Bytes(nan), a.scales().cloned()).unwrap()
        };
        let found = causes(&a, &overflow);
        assert!(found.len() == 1 && found[0].0 == Cause::Cast && found[0].2 == 0, "{found:?}");
    }

    #[test]
    fn what_differs_most_is_found() {
        let (a, mut scales) =
            (quantized("te", Role::Weight, 1), quantized("te", Role::Weight, 1).into_parts());
        if let Some(scales) = &mut scales.2
            && let crate::scaled::ScaleGrid::F32(grid) = &mut scales.grid
        {
            grid.row_mut(0)[3] *= 8.0;
        }
        let b = ScaledMatrix::new(scales.0, scales.1, scales.2).unwrap();
        let diff = diff_quantized(a.view(), b.view()).unwrap();
        assert_eq!((diff.total.codes, diff.total.scales, diff.granules), (0, 1, 8));
        let granule = diff.differing[0];
        assert_eq!((granule.at, granule.shape, granule.cause), ((0, 384), (64, 128), Cause::Data));
        assert!(granule.squared > 0.0);
        let narrow = quantized("te", Role::Transposed, 1);
        let message = diff_quantized(a.view(), narrow.view()).unwrap_err().to_string();
        assert!(message.contains("64×1024") && message.contains("1024×64"), "{message}");
    }
}
