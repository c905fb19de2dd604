//! Which recipes gave codes and scales.

use super::Extent;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::MatRef;
use crate::quant::{Differences, Element, QuantizedDiff, Recipe, Role, diff_watched, differences};
use crate::scaled::{Granule, ScaledRef};

/// Of how many of the nearest the causes are found where none is exact.
const EXPLAINED: usize = 5;
/// Rows of granules that are compared first are so many bands of at least so many elements, spread over the matrix.
const BANDS: usize = 8;
const BAND: usize = 1 << 15;

/// A recipe, and what of given codes and scales it does not give.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeMatch {
    /// The recipe as it is listed, or with the element format and the granule that the codes have.
    pub recipe: Recipe,
    /// The roles in which it groups the source as the codes are grouped.
    pub roles: Vec<Role>,
    /// Codes and scales that differ.
    pub differences: Differences,
    /// Codes that were compared.
    pub elements: u64,
    /// Scales that were compared.
    pub granules: u64,
    /// From the recipe's own codes and scales to those given, for the nearest where none is exact.
    pub diff: Option<QuantizedDiff>,
}

impl RecipeMatch {
    /// Whether every code and scale that was compared is the recipe's.
    pub fn is_exact(&self) -> bool {
        self.differences == Differences::default()
    }

    /// The share of codes that differ plus the share of scales, by which the nearest are ordered.
    pub fn distance(&self) -> f64 {
        let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
        share(self.differences.codes, self.elements) + share(self.differences.scales, self.granules)
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeIdentification {
    /// Every recipe that was tried: the exact ones in the order of [`Recipe::ALL`], then the others, nearest first.
    pub matches: Vec<RecipeMatch>,
    /// How many are exact.
    pub exact: usize,
}

impl RecipeIdentification {
    /// The exact ones; where there are none the nearest, whose causes are known.
    pub fn best(&self) -> &[RecipeMatch] {
        let explained = || self.matches.iter().take_while(|m| m.diff.is_some()).count();
        &self.matches[..if self.exact > 0 { self.exact } else { explained() }]
    }
}

/// Which recipes give the codes and scales of `given` from `x`, in any role: all of [`Recipe::ALL`] with codes of this format
/// in this granule; where none of them is exact also the arithmetic of the others, in this format and granule.
///
/// Scales are compared as numbers, tensor scale applied: powers of two in E8M0 and in f32 are the same. NaN codes and scales
/// are equal to each other. With [`Extent::Sampled`] a recipe that differs on some bands of rows is compared on those alone,
/// unless it is one of the nearest; an exact one is exact on all.
///
/// ```
/// use finegrain::Engine;
/// use finegrain::accuracy::identify::{Extent, identify_recipe};
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{Quantizer, Role};
/// let w = Matrix::from_fn(256, 384, |i, j| ((i * 37 + j * 11) % 101) as f32 * 0.1 - 5.0);
/// let q = Quantizer::new("deepgemm-ue8m0".parse()?).weight(w.view())?; // or what another program wrote
/// let found = identify_recipe(w.view(), q.view(), Extent::Sampled, &Engine::cpu())?;
/// assert!(found.best().iter().any(|m| m.recipe.name == "deepgemm-ue8m0" && m.roles == [Role::Weight]));
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if `x` has neither the shape of the codes nor that of their transpose, or no elements;
/// [`Error::Invalid`] for codes without scales; [`Error::Unsupported`] for a format that no recipe gives;
/// [`Error::Cancelled`].
pub fn identify_recipe<T: Element>(
    x: MatRef<'_, T>,
    given: ScaledRef<'_>,
    extent: Extent,
    engine: &Engine<'_>,
) -> Result<RecipeIdentification> {
    let ((m, n), (rows, cols)) = (x.shape(), given.shape());
    let turned: Vec<bool> = [(m, n), (n, m)].iter().map(|shape| *shape == (rows, cols)).collect();
    if !turned.contains(&true) {
        return Err(Error::Shape(format!("the source is {m}×{n}, the codes {rows}×{cols}")));
    }
    if rows == 0 || cols == 0 {
        return Err(Error::Shape(format!("{rows}×{cols} codes: any recipe gives them")));
    }
    let Some(scales) = given.scales() else {
        return Err(Error::Invalid(format!("{rows}×{cols} codes in {} without scales", given.format())));
    };
    given.fetch()?;
    let search = Search { x, given, granule: scales.granule, extent, engine };
    let turned: Vec<bool> = [false, true].into_iter().filter(|&t| turned[usize::from(t)]).collect();
    let candidates = search.listed(&turned);
    let mut tried = search.tried(candidates)?;
    if !tried.iter().any(RecipeMatch::is_exact) {
        let known: Vec<(Recipe, bool)> = tried.iter().map(|m| (m.recipe, m.is_turned())).collect();
        tried.extend(search.tried(search.others(&turned, &known))?);
    }
    if tried.is_empty() {
        return Err(Error::Unsupported(format!("no recipe gives codes in {}", given.format())));
    }
    search.ordered(tried)
}

struct Search<'s, T> {
    x: MatRef<'s, T>,
    given: ScaledRef<'s>,
    granule: Granule,
    extent: Extent,
    engine: &'s Engine<'s>,
}

/// Whether two recipes compute the same from the same granule.
fn is_same_arithmetic(a: &Recipe, b: &Recipe) -> bool {
    (a.element, a.amax, a.scaling, a.cast) == (b.element, b.amax, b.scaling, b.cast)
}

impl RecipeMatch {
    fn new(recipe: Recipe, roles: Vec<Role>) -> Self {
        let differences = Differences::default();
        RecipeMatch { recipe, roles, differences, elements: 0, granules: 0, diff: None }
    }

    /// Whether it groups along the first dimension: no granule is in this role and in another.
    fn is_turned(&self) -> bool {
        self.roles == [Role::Transposed]
    }
}

impl<T: Element> Search<'_, T> {
    /// The recipes of the list that group the source as the codes are grouped.
    fn listed(&self, turned: &[bool]) -> Vec<RecipeMatch> {
        let format = self.given.format();
        let mut found = Vec::new();
        for recipe in Recipe::ALL {
            let forms = [*recipe, recipe.for_gradients()];
            let Some(form) = forms.into_iter().find(|form| form.element == format) else { continue };
            for &turned in turned {
                let roles = Role::ALL.iter().copied().filter(|&role| self.groups(&form, role, turned));
                let roles: Vec<Role> = roles.collect();
                if !roles.is_empty() {
                    found.push(RecipeMatch::new(form, roles));
                }
            }
        }
        found
    }

    /// Whether a recipe in a role groups as the codes are grouped.
    fn groups(&self, recipe: &Recipe, role: Role, turned: bool) -> bool {
        let granule = if role == Role::Weight { recipe.weight } else { recipe.activation };
        let (rows, cols) = self.given.shape();
        turned == (role == Role::Transposed) && granule.cuts_as(self.granule, rows, cols)
    }

    /// Arithmetic that no recipe in `known` has, in the format and granule of the codes.
    fn others(&self, turned: &[bool], known: &[(Recipe, bool)]) -> Vec<RecipeMatch> {
        let format: Format = self.given.format();
        let mut found: Vec<RecipeMatch> = Vec::new();
        for recipe in Recipe::ALL {
            let Ok(form) = (Recipe { element: format, ..*recipe }).checked() else { continue };
            for &turned in turned {
                let same =
                    |other: &Recipe, other_turned| other_turned == turned && is_same_arithmetic(other, &form);
                let is_known = known.iter().any(|(other, turned)| same(other, *turned))
                    || found.iter().any(|m| same(&m.recipe, m.is_turned()));
                if is_known {
                    continue;
                }
                let (recipe, role) = match (turned, self.granule.rows()) {
                    (true, _) => (Recipe { activation: self.granule, ..form }, Role::Transposed),
                    (false, 1) => (Recipe { activation: self.granule, ..form }, Role::Activation),
                    (false, _) => (Recipe { weight: self.granule, ..form }, Role::Weight),
                };
                found.push(RecipeMatch::new(recipe, vec![role]));
            }
        }
        found
    }

    /// Compares all of them: what computes the same is computed once.
    fn tried(&self, mut candidates: Vec<RecipeMatch>) -> Result<Vec<RecipeMatch>> {
        for i in 0..candidates.len() {
            let (before, rest) = candidates.split_at_mut(i);
            let candidate = &mut rest[0];
            let same = |other: &&RecipeMatch| {
                is_same_arithmetic(&other.recipe, &candidate.recipe)
                    && other.is_turned() == candidate.is_turned()
            };
            if let Some(other) = before.iter().find(same) {
                (candidate.differences, candidate.elements, candidate.granules) =
                    (other.differences, other.elements, other.granules);
                continue;
            }
            let sample = self.sample(&candidate.recipe);
            for rows in sample.iter().cloned() {
                self.compare(candidate, rows)?;
            }
            if sample.is_empty() || candidate.is_exact() && candidate.elements < self.elements() {
                self.compare_all(candidate)?;
            }
        }
        Ok(candidates)
    }

    /// The exact ones first, then the nearest, and why these differ if none is exact.
    fn ordered(&self, tried: Vec<RecipeMatch>) -> Result<RecipeIdentification> {
        let (mut matches, mut others): (Vec<_>, Vec<_>) = tried.into_iter().partition(RecipeMatch::is_exact);
        let exact = matches.len();
        let by_distance = |a: &RecipeMatch, b: &RecipeMatch| a.distance().total_cmp(&b.distance());
        others.sort_by(by_distance);
        if exact == 0 {
            let mut nearest: Vec<RecipeMatch> = others.drain(..others.len().min(EXPLAINED)).collect();
            for found in &mut nearest {
                self.compare_all(found)?;
                found.diff = Some(self.diff(found)?);
            }
            nearest.sort_by(by_distance);
            matches = nearest;
        }
        matches.extend(others);
        Ok(RecipeIdentification { matches, exact })
    }

    fn elements(&self) -> u64 {
        let (rows, cols) = self.given.shape();
        rows as u64 * cols as u64
    }

    /// Bands of whole granules; none where all is to be compared at once.
    fn sample(&self, recipe: &Recipe) -> Vec<std::ops::Range<usize>> {
        let (rows, cols) = self.given.shape();
        let height = self.granule.rows();
        if self.extent == Extent::All || recipe.needs_tensor_amax() || height >= rows {
            return Vec::new();
        }
        let band = BAND.div_ceil(height * cols) * height;
        // A sample of half of it saves nothing.
        if 2 * BANDS * band > rows {
            return Vec::new();
        }
        let last = (rows - band) / height;
        (0..BANDS).map(|i| i * last / (BANDS - 1) * height).map(|start| start..start + band).collect()
    }

    /// Adds what differs in some rows of the codes.
    fn compare(&self, found: &mut RecipeMatch, rows: std::ops::Range<usize>) -> Result<()> {
        let given = self.given.row_range(rows.start, rows.end);
        let x = match found.is_turned() {
            true => self.x.col_range(rows.start, rows.end),
            false => self.x.row_range(rows.start, rows.end),
        };
        let quantized = self.quantized(found, x)?;
        let watch = self.engine.watch();
        let more = self.engine.install(|| differences(given, quantized.view(), &watch))?;
        found.differences = [found.differences, more].into_iter().sum();
        let (rows, cols) = given.shape();
        let (grid_rows, grid_cols) = self.granule.grid(rows, cols);
        found.elements += rows as u64 * cols as u64;
        found.granules += grid_rows as u64 * grid_cols as u64;
        Ok(())
    }

    fn compare_all(&self, found: &mut RecipeMatch) -> Result<()> {
        if found.elements < self.elements() {
            *found = RecipeMatch::new(found.recipe, std::mem::take(&mut found.roles));
            self.compare(found, 0..self.given.shape().0)?;
        }
        Ok(())
    }

    /// Why a recipe's codes and scales differ.
    fn diff(&self, found: &RecipeMatch) -> Result<QuantizedDiff> {
        let quantized = self.quantized(found, self.x)?;
        let watch = self.engine.watch();
        self.engine.install(|| diff_watched(quantized.view(), self.given, &watch))
    }

    /// The recipe's own codes and scales, in the granule of those given.
    fn quantized(&self, found: &RecipeMatch, x: MatRef<'_, T>) -> Result<crate::quant::Quantized> {
        let recipe = Recipe { activation: self.granule, ..found.recipe };
        let role = if found.is_turned() { Role::Transposed } else { Role::Activation };
        self.engine.quantize(x, &recipe, role)
    }
}
