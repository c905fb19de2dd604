//! Where quantised matrices differ and by which rule, as it is printed.

use serde::Serialize;

use crate::cli::output::{Table, measured};
use crate::quant::{Cause, GranuleDiff, QuantizedDiff};

/// How many of the blocks that matter most are kept of each tensor, and how many a table shows.
const WORST: usize = 8;

/// What each rule explains, and the blocks that matter most: of one matrix, or of several.
#[derive(Clone, Debug, Default)]
pub(super) struct Explained {
    causes: Vec<(Cause, Counts)>,
    worst: Vec<Block>,
}

/// What a rule explains.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Counts {
    codes: u64,
    scales: u64,
    blocks: u64,
}

/// A block that differs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Block {
    /// Its first row and column; before them, of a stack, the number of the matrix.
    at: Vec<usize>,
    shape: (usize, usize),
    cause: &'static str,
    codes: u64,
    scales: (f64, f64),
    squared: f64,
}

impl Explained {
    /// What differs in a matrix: the one with this number of a stack.
    pub(super) fn of(diff: &QuantizedDiff, number: Option<usize>) -> Self {
        let mut explained = Explained::default();
        for found in &diff.causes {
            let blocks = diff.differing.iter().filter(|block| block.cause == found.cause).count() as u64;
            let counts = Counts { codes: found.differences.codes, scales: found.differences.scales, blocks };
            explained.causes.push((found.cause, counts));
        }
        let mut worst: Vec<&GranuleDiff> = diff.differing.iter().collect();
        worst.sort_by(|a, b| b.squared.total_cmp(&a.squared));
        explained.worst = worst.into_iter().take(WORST).map(|block| Block::of(block, number)).collect();
        explained
    }

    /// This and another.
    pub(super) fn add(&mut self, other: Explained) {
        for (cause, more) in other.causes {
            let index = self.causes.iter().position(|(known, _)| *known == cause).unwrap_or_else(|| {
                self.causes.push((cause, Counts::default()));
                self.causes.len() - 1
            });
            let counts = &mut self.causes[index].1;
            counts.codes += more.codes;
            counts.scales += more.scales;
            counts.blocks += more.blocks;
        }
        self.causes.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.blocks));
        self.worst.extend(other.worst);
        self.worst.sort_by(|a, b| b.squared.total_cmp(&a.squared));
        self.worst.truncate(WORST);
    }

    /// `{"power-of-two": {"codes", "scales", "blocks"}, …}`.
    pub(super) fn causes(&self) -> serde_json::Value {
        let each = self.causes.iter().map(|(cause, counts)| (cause.name(), counts));
        serde_json::json!(each.collect::<std::collections::BTreeMap<_, _>>())
    }

    pub(super) fn worst(&self) -> &[Block] {
        &self.worst
    }

    /// The rules in words, with codes and scales of each.
    pub(super) fn words(&self) -> String {
        let why = |(cause, counts): &(Cause, Counts)| {
            format!("{} ({}, {})", cause.describe(), counts.codes, counts.scales)
        };
        self.causes.iter().map(why).collect::<Vec<_>>().join("; ")
    }
}

impl Block {
    fn of(block: &GranuleDiff, number: Option<usize>) -> Self {
        let at = [block.at.0, block.at.1];
        Block {
            at: number.into_iter().chain(at).collect(),
            shape: block.shape,
            cause: block.cause.name(),
            codes: block.codes,
            scales: block.scales,
            squared: block.squared,
        }
    }
}

/// The blocks that matter most of all tensors.
pub(super) fn table<'a>(tensors: impl Iterator<Item = (&'a str, &'a [Block])>) -> String {
    let mut all: Vec<(&str, &Block)> =
        tensors.flat_map(|(name, blocks)| blocks.iter().map(move |block| (name, block))).collect();
    if all.is_empty() {
        return String::new();
    }
    all.sort_by(|(_, a), (_, b)| b.squared.total_cmp(&a.squared));
    let mut table =
        Table::new(&["<tensor", "<at", "<block", "<cause", "codes", "scale", "other", "sum of squares"]);
    for (name, block) in all.into_iter().take(WORST) {
        let at: Vec<String> = block.at.iter().map(usize::to_string).collect();
        table.row([
            name.to_owned(),
            at.join(", "),
            format!("{}x{}", block.shape.0, block.shape.1),
            block.cause.to_owned(),
            block.codes.to_string(),
            measured(block.scales.0),
            measured(block.scales.1),
            measured(block.squared),
        ]);
    }
    format!("\nblocks that differ most:\n{}", table.render())
}
