//! The search: few elements sift many arithmetics, many elements few.

use super::candidates;
use super::computed::Computed;
use super::hints;
use super::places::Places;
use super::tiles::{Parts, Tile};
use super::{Differences, EXACT, Element, Extent, Identification, Match, NEAREST};
use crate::engine::{Engine, Product};
use crate::error::{Error, Result};
use crate::gemm::{Accumulation, Arithmetic, GemmProblem, Model};
use crate::parallel;

/// Elements of the samples that sift all arithmetics, one after the other.
const SMALL: &[usize] = &[4, 64, CLOSELY];
/// Elements of those that sift what is left.
const LARGE: &[usize] = &[1 << 13, SPREAD];
/// Elements on which distances are measured where nothing is exact, and of how many arithmetics.
const CLOSELY: usize = 1 << 10;
const CLOSER: usize = 32;
/// Elements that stand for all of D.
const SPREAD: usize = 1 << 16;
/// Multiply-adds up to which all of D is compared unless asked for.
const WORK: u64 = 100_000_000_000;
/// How much longer the reference takes for one.
const REFERENCE: u64 = 500;

pub(super) struct Search<'s, 'p> {
    product: Product<'p>,
    pub(super) parts: Parts<'p>,
    pub(super) d: Computed<'s>,
    extent: Extent,
    engine: &'s Engine<'s>,
}

/// What a sieve leaves: the exact ones, else the nearest, nearest first.
#[derive(Default)]
struct Sifted {
    exact: Vec<Match>,
    nearest: Vec<Match>,
}

impl<'s, 'p> Search<'s, 'p> {
    pub(super) fn new(
        product: Product<'p>,
        d: Computed<'s>,
        extent: Extent,
        engine: &'s Engine<'s>,
    ) -> Result<Self> {
        let ((rows, cols), (m, n)) = (d.shape(), product.output_shape());
        if (rows, cols) != (m, n) {
            return Err(Error::Shape(format!("d is {rows}×{cols}, the product {m}×{n}")));
        }
        let search = Search { product, parts: Parts::of(product), d, extent, engine };
        if search.parts.elements() == 0 {
            return Err(Error::Invalid(format!(
                "d is {rows}×{cols}, and no group computes an element of it"
            )));
        }
        let is_number = |i: usize| (0..cols).any(|j| !d.at(i, j).value.is_nan());
        if !search.parts.rows().flatten().any(is_number) {
            return Err(Error::Invalid(format!(
                "all {} elements of d are NaN: any arithmetic may have given that",
                search.parts.elements()
            )));
        }
        Ok(search)
    }

    pub(super) fn run(&self) -> Result<Identification> {
        let whole = candidates::whole(&self.parts, &self.d);
        if whole.is_empty() {
            return Err(self.refusal());
        }
        let mut tried = whole.len();
        let mut found = self.sift(&whole)?;
        if found.exact.is_empty() {
            let split = candidates::split(&self.parts, &whole);
            tried += split.len();
            let Sifted { exact, nearest } = self.sift(&split)?;
            found.exact = exact;
            found.nearest.extend(nearest);
        }
        let Sifted { mut exact, mut nearest } = found;
        let padding = self.padding();
        if !exact.is_empty() {
            let count = exact.len();
            exact.truncate(EXACT);
            let undecided = (count > 1).then(|| hints::undecided(&self.parts, &self.d, count, tried));
            let (differences, hints) = (None, Vec::new());
            return Ok(Identification {
                matches: exact,
                tried,
                exact: count,
                undecided,
                differences,
                hints,
                padding,
            });
        }
        nearest.sort_by(|x, y| x.lost_bits.total_cmp(&y.lost_bits));
        let mut matches: Vec<Match> = nearest.into_iter().take(NEAREST).collect();
        let mut differences = None;
        if let Some(first) = matches.first_mut() {
            let (closest, where_it_differs) = self.differences(first.accumulation)?;
            *first = closest;
            differences = Some(where_it_differs);
        }
        let hints = hints::of(self, &matches, differences.as_ref())?;
        Ok(Identification { matches, tried, exact: 0, undecided: None, differences, hints, padding })
    }

    /// Why nothing takes the operands: what the simplest model says.
    fn refusal(&self) -> Error {
        let why = |p: &GemmProblem<'_>| p.with_arithmetic(&Arithmetic::Fitting(Model::F32)).err();
        self.parts
            .problems()
            .find_map(why)
            .unwrap_or_else(|| Error::Unsupported("no arithmetic takes these operands".to_owned()))
    }

    /// An arithmetic that gives the bits of a sample if each product is changed; `None` if there is none.
    pub(super) fn exact_if(
        &self,
        change: &dyn Fn(&GemmProblem<'p>) -> Option<GemmProblem<'p>>,
    ) -> Result<Option<Accumulation>> {
        let Some(parts) = self.parts.changed(change) else { return Ok(None) };
        let mut left = candidates::whole(&parts, &self.d);
        for elements in SMALL {
            let scores = self.scores(&parts, &left, &parts.sample(*elements))?;
            left = scores.iter().filter(|m| m.differ == 0).map(|m| m.accumulation).collect();
        }
        Ok(left.first().copied())
    }

    /// Sifts by larger and larger samples, and at last by all of D.
    fn sift(&self, candidates: &[Accumulation]) -> Result<Sifted> {
        let all = self.parts.elements();
        let mut exact: Vec<Match> = candidates.iter().copied().map(Match::none).collect();
        let (mut nearest, mut compared) = (Vec::new(), 0);
        for &elements in SMALL {
            if compared == all || exact.is_empty() {
                break;
            }
            let scores = self.scores(&self.parts, &arithmetics(&exact), &self.parts.sample(elements))?;
            (exact, nearest) = scores.into_iter().partition(|m| m.differ == 0);
            compared = elements.min(all);
        }
        if exact.is_empty() {
            nearest.sort_by(|x, y| x.lost_bits.total_cmp(&y.lost_bits));
            nearest.truncate(CLOSER);
            let closer = self.parts.sample(CLOSELY);
            return Ok(Sifted { exact, nearest: self.scores(&self.parts, &arithmetics(&nearest), &closer)? });
        }
        let mut work = 0;
        for &elements in LARGE {
            if compared < all {
                let tiles = self.parts.sample(elements);
                let look = |accumulation| Ok(self.scores(&self.parts, &[accumulation], &tiles)?[0]);
                compared = elements.min(all);
                self.look_closer(&mut exact, &mut nearest, (compared, true), &mut work, &look)?;
            }
        }
        if compared < all {
            let look = |accumulation| self.compare_all(accumulation);
            self.look_closer(&mut exact, &mut nearest, (all, false), &mut work, &look)?;
        }
        Ok(Sifted { exact, nearest })
    }

    /// Looks at those that are exact so far on more elements, the simplest first: a sample until one of them is exact on it
    /// too, and beyond that as many as there is work for. What is not looked at stays what it was.
    fn look_closer(
        &self,
        exact: &mut Vec<Match>,
        nearest: &mut Vec<Match>,
        (elements, is_sample): (usize, bool),
        work: &mut u64,
        look: &dyn Fn(Accumulation) -> Result<Match>,
    ) -> Result<()> {
        let share = elements as f64 / self.parts.elements() as f64;
        let multiply_adds = (self.product.multiply_adds() as f64 * share) as u64;
        let mut stays = Vec::new();
        for found in exact.drain(..) {
            let cost = multiply_adds.saturating_mul(self.cost(found.accumulation)?);
            let affordable = self.extent == Extent::All || work.saturating_add(cost) <= WORK;
            if !(affordable || is_sample && stays.is_empty()) {
                stays.push(found);
                continue;
            }
            *work = work.saturating_add(cost);
            let closer = look(found.accumulation)?;
            let kept = if closer.differ == 0 { &mut stays } else { &mut *nearest };
            kept.push(closer);
        }
        *exact = stays;
        Ok(())
    }

    /// Compares all of D.
    fn compare_all(&self, accumulation: Accumulation) -> Result<Match> {
        let d = match self.product {
            Product::Dense(p) => self.engine.gemm(&p.with_accumulation(accumulation)?)?,
            Product::Grouped(p) => self.engine.gemm(&p.clone().with_accumulation(accumulation)?)?,
        };
        let mut all = Match::none(accumulation);
        for row in self.parts.rows().flatten() {
            for (j, &x) in d.row(row).iter().enumerate() {
                all.add(self.d.at(row, j).distance(self.d.rounded(x), self.d.sign()));
            }
        }
        Ok(all)
    }

    /// What a multiply-add of an arithmetic costs, in those of fast kernels.
    fn cost(&self, accumulation: Accumulation) -> Result<u64> {
        let Some(problem) = self.parts.problems().next() else { return Ok(1) };
        let problem = problem.with_accumulation(accumulation)?;
        Ok(match self.engine.plan_gemm(&problem)?.backend() {
            "reference" => REFERENCE,
            _ => 1,
        })
    }

    /// How far each arithmetic is from D on some tiles.
    fn scores(&self, parts: &Parts<'_>, candidates: &[Accumulation], tiles: &[Tile]) -> Result<Vec<Match>> {
        let one = |i: usize| -> Result<Match> {
            let (accumulation, tile) = (candidates[i / tiles.len()], &tiles[i % tiles.len()]);
            let mut score = Match::none(accumulation);
            self.visit(parts, accumulation, tile, &mut |_, _, x: Compared| score.add(x.ulps))?;
            Ok(score)
        };
        let watch = self.engine.watch();
        let count = candidates.len() * tiles.len();
        let all = self.engine.install(|| parallel::map(&watch, count, &one))?;
        let all = all.into_iter().collect::<Result<Vec<Match>>>()?;
        Ok(all
            .chunks(tiles.len().max(1))
            .map(|tiles| tiles.iter().copied().reduce(Match::and).expect("tiles are chunks"))
            .collect())
    }

    /// Shows every element of a tile to `see`: its row and column in D, and how it compares.
    fn visit(
        &self,
        parts: &Parts<'_>,
        accumulation: Accumulation,
        tile: &Tile,
        see: &mut dyn FnMut(usize, usize, Compared),
    ) -> Result<()> {
        let computed = parts.multiply(tile, accumulation)?;
        for (i, row) in tile.rows.clone().enumerate() {
            let row = parts.row(tile.part, row);
            for (col, &x) in tile.cols.clone().zip(computed.row(i)) {
                let (given, expected) = (self.d.at(row, col), self.d.rounded(x));
                let ulps = given.distance(expected, self.d.sign());
                see(row, col, Compared { given: given.value, expected: expected.value, ulps });
            }
        }
        Ok(())
    }

    /// How far an arithmetic is from D, and where, on the largest sample.
    fn differences(&self, accumulation: Accumulation) -> Result<(Match, Differences)> {
        let mut found = Match::none(accumulation);
        let mut places = Places::default();
        for tile in self.parts.sample(SPREAD) {
            self.visit(
                &self.parts,
                accumulation,
                &tile,
                &mut |row, col, Compared { given, expected, ulps }| {
                    found.add(ulps);
                    places.add(Element { row, col, given, expected, ulps });
                },
            )?;
        }
        Ok((found, places.counted()))
    }

    /// Elements of rows without a group that are not +0.
    fn padding(&self) -> usize {
        let (rows, cols) = self.d.shape();
        let mut computed = vec![false; rows];
        self.parts.rows().flatten().for_each(|row| computed[row] = true);
        let zero = self.d.rounded(0.0);
        let is_set =
            |row: usize| (0..cols).filter(|&j| self.d.at(row, j).distance(zero, self.d.sign()) > 0).count();
        (0..rows).filter(|&row| !computed[row]).map(is_set).sum()
    }
}

fn arithmetics(matches: &[Match]) -> Vec<Accumulation> {
    matches.iter().map(|m| m.accumulation).collect()
}

/// How an element compares.
#[derive(Clone, Copy)]
struct Compared {
    given: f32,
    expected: f32,
    ulps: u32,
}

impl Match {
    /// Nothing compared.
    fn none(accumulation: Accumulation) -> Match {
        Match { accumulation, differ: 0, of: 0, max_ulps: 0, lost_bits: 0.0 }
    }

    fn add(&mut self, ulps: u32) {
        let lost = f64::from(ulps).ln_1p() / std::f64::consts::LN_2;
        self.lost_bits += (lost - self.lost_bits) / (self.of + 1) as f64;
        self.of += 1;
        self.differ += usize::from(ulps > 0);
        self.max_ulps = self.max_ulps.max(ulps);
    }

    /// The same arithmetic on more elements.
    fn and(self, other: Match) -> Match {
        let of = (self.of + other.of) as f64;
        Match {
            lost_bits: self.lost_bits * (self.of as f64 / of) + other.lost_bits * (other.of as f64 / of),
            accumulation: self.accumulation,
            differ: self.differ + other.differ,
            of: self.of + other.of,
            max_ulps: self.max_ulps.max(other.max_ulps),
        }
    }
}
