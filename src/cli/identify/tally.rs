//! Recipes over several matrices.

use super::blocks::Explained;
use crate::accuracy::identify::RecipeIdentification;
use crate::quant::Role;

/// How many of the nearest are listed where none is exact.
const NEAREST: usize = 5;

/// What each recipe gives and does not give of some matrices.
#[derive(Default)]
pub(super) struct Tally {
    matrices: usize,
    rows: Vec<Row>,
}

/// One recipe, in one role or in whichever fits each tensor.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) recipe: String,
    /// Those that group alike; none where it is whichever fits.
    pub(super) roles: Vec<Role>,
    pub(super) codes_differ: u64,
    pub(super) scales_differ: u64,
    /// Codes compared.
    pub(super) of: u64,
    /// Scales compared.
    pub(super) scales_of: u64,
    /// Matrices that it was tried on.
    matrices: usize,
    pub(super) explained: Explained,
}

impl Tally {
    /// Adds what was found of a matrix: the one with this number of a stack.
    pub(super) fn add(&mut self, found: &RecipeIdentification, number: Option<usize>) {
        let rows = found.matches.iter().map(|m| Row {
            recipe: m.recipe.to_string(),
            roles: m.roles.clone(),
            codes_differ: m.differences.codes,
            scales_differ: m.differences.scales,
            of: m.elements,
            scales_of: m.granules,
            matrices: 1,
            explained: m.diff.as_ref().map_or_else(Explained::default, |diff| Explained::of(diff, number)),
        });
        self.merge(rows.collect(), 1);
    }

    /// Adds a tensor, each recipe in the role in which it is nearest.
    pub(super) fn add_tensor(&mut self, tensor: &Tally) {
        let mut nearest: Vec<Row> = Vec::new();
        for row in tensor.ordered() {
            if nearest.iter().all(|known| known.recipe != row.recipe) {
                nearest.push(Row { roles: Vec::new(), ..row.clone() });
            }
        }
        self.merge(nearest, tensor.matrices);
    }

    fn merge(&mut self, rows: Vec<Row>, matrices: usize) {
        self.matrices += matrices;
        for row in rows {
            match self.rows.iter_mut().find(|known| known.recipe == row.recipe && known.roles == row.roles) {
                Some(known) => {
                    known.codes_differ += row.codes_differ;
                    known.scales_differ += row.scales_differ;
                    known.of += row.of;
                    known.scales_of += row.scales_of;
                    known.matrices += row.matrices;
                    known.explained.add(row.explained);
                }
                None => self.rows.push(row),
            }
        }
    }

    /// Those that were tried on most matrices first, of these the nearest; equals in the order in which they came.
    fn ordered(&self) -> Vec<&Row> {
        let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
        let distance = |row: &Row| share(row.codes_differ, row.of) + share(row.scales_differ, row.scales_of);
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| b.matrices.cmp(&a.matrices).then(distance(a).total_cmp(&distance(b))));
        rows
    }

    /// The recipes that give every code and scale of every matrix.
    pub(super) fn exact(&self) -> Vec<&Row> {
        let is_exact =
            |row: &&Row| row.matrices == self.matrices && row.codes_differ == 0 && row.scales_differ == 0;
        self.ordered().into_iter().filter(is_exact).collect()
    }

    /// The exact ones; where there are none, the nearest.
    pub(super) fn best(&self) -> Vec<&Row> {
        let exact = self.exact();
        if exact.is_empty() { self.ordered().into_iter().take(NEAREST).collect() } else { exact }
    }
}
