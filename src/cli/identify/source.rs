//! The recipes that gave codes and scales.

use std::collections::HashMap;
use std::path::Path;

use super::Args;
use super::blocks;
use super::pairs::{Both, CodesOf, listed};
use super::tally::{Row, Tally};
use crate::accuracy::identify::identify_recipe;
use crate::checkpoint::{Checkpoint, ReadAs, ScaledTensor, Tensor};
use crate::cli::output::{Table, percent, print, print_json, shape};
use crate::cli::progress::Progress;
use crate::cli::{Failure, Outcome, interrupt};
use crate::engine::Engine;
use crate::quant::{Recipe, rules_apart};

/// How many lines a table has for a tensor, and how many recipes a line.
const SHOWN: usize = 3;

/// What was found of a tensor.
struct Found {
    name: String,
    shape: Vec<usize>,
    codes: String,
    tally: Tally,
}

pub(super) fn run(args: &Args, source: &Path, json: bool) -> Outcome {
    let read_as = args.reading.read_as()?;
    let (file, source) = (Checkpoint::open(&args.r#in)?, Checkpoint::open(source)?);
    let codes = CodesOf::of(&file, args.tensor.as_ref())?;
    let names = codes.names.iter().map(|&(name, _)| name).filter(|name| source.contains(name));
    let names: HashMap<&str, &str> = names.map(|name| (name, name)).collect();
    let (both, alone) = codes.with(&source, &names)?;

    let bytes = |b: &Both<'_>| file.info(b.codes).map_or(0, |info| info.bytes() as u64);
    let progress = Progress::bytes(both.iter().map(bytes).sum());
    // The bar counts tensors by their bytes: how often each is quantised, nobody knows before.
    let unheard = |_| ();
    let engine = interrupt::watched(args.engine()?, &unheard);
    let mut all = Tally::default();
    let mut tensors = Vec::new();
    for both in both {
        progress.on(both.name);
        let found = tensor(args, &read_as, (&file, &source), &both, &engine)?;
        all.add_tensor(&found.tally);
        tensors.push(found);
        progress.advance(bytes(&both));
    }
    drop(progress);

    if json {
        print_json(&serde_json::json!({
            "op": "identify",
            "input": file.path().display().to_string(),
            "source": source.path().display().to_string(),
            "matches": all.best().into_iter().map(|row| as_json(row, false)).collect::<Vec<_>>(),
            "exact": all.exact().len(),
            "undecided": undecided(&all),
            "tensors": tensors.iter().map(|t| serde_json::json!({
                "name": t.name,
                "shape": t.shape,
                "codes": t.codes,
                "exact": t.tally.exact().len(),
                "matches": t.tally.best().into_iter().map(|row| as_json(row, true)).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "not_compared": alone,
        }))?;
    } else {
        print(&text(&all, &tensors, &alone))?;
    }
    if all.exact().is_empty() { Err(Failure::Findings) } else { Ok(()) }
}

/// Compares the matrices of a tensor with what each recipe makes of the source.
fn tensor(
    args: &Args,
    read_as: &ReadAs,
    (file, source): (&Checkpoint, &Checkpoint),
    both: &Both<'_>,
    engine: &Engine<'_>,
) -> crate::Result<Found> {
    let info = source.info(both.other)?;
    if !Tensor::is_float(info.dtype) {
        let message = format!("dtype {}, expected the floats that codes are made of", info.dtype);
        return Err(source.blame(both.other, message));
    }
    let scaled = ScaledTensor::read(file, both.codes, read_as)?;
    let blame = |e| file.blame(both.codes, e);
    if !scaled.has_scales() {
        return Err(blame(crate::Error::Invalid("codes without scales: no recipe gives those".to_owned())));
    }
    let (rows, cols) = stack(&info.shape);
    let lead = |shape: &[usize]| shape[..shape.len().saturating_sub(2)].to_vec();
    let found = stack(scaled.shape());
    if lead(&info.shape) != lead(scaled.shape()) || found != (rows, cols) && found != (cols, rows) {
        return Err(blame(crate::Error::Shape(format!(
            "shape {}, in {} it is {}",
            shape(scaled.shape()),
            source.path().display(),
            shape(&info.shape)
        ))));
    }
    let x = source.read(both.other)?.to_matrix().map_err(|e| source.blame(both.other, e))?;
    // This error names the tensor.
    let matrices = scaled.to_compare().map_err(|e| crate::Error::file(file.path(), e))?;
    let mut tally = Tally::default();
    for (n, matrix) in matrices.iter().enumerate() {
        let x = x.view().row_range(n * rows, (n + 1) * rows);
        let number = (info.shape.len() > 2).then_some(n);
        tally.add(&identify_recipe(x, *matrix, args.extent(), engine).map_err(blame)?, number);
    }
    let codes = scaled.describe(None);
    Ok(Found { name: both.name.to_owned(), shape: scaled.shape().to_vec(), codes, tally })
}

/// Rows and columns of the matrices of a shape; a vector is one row.
fn stack(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [cols] => (1, *cols),
        [.., rows, cols] => (*rows, *cols),
    }
}

fn as_json(row: &Row, of_tensor: bool) -> serde_json::Value {
    let mut json = serde_json::json!({
        "recipe": row.recipe,
        "codes_differ": row.codes_differ,
        "scales_differ": row.scales_differ,
        "of": row.of,
        "scales_of": row.scales_of,
        "causes": row.explained.causes(),
    });
    if of_tensor {
        json["roles"] = row.roles.iter().map(|role| role.name()).collect::<Vec<_>>().into();
        json["worst_blocks"] = serde_json::json!(row.explained.worst());
    }
    json
}

/// Where several recipes are exact: the rules in which they differ, which other data would show.
fn undecided(all: &Tally) -> Option<String> {
    let exact = all.exact();
    let recipes: Vec<Recipe> = exact.iter().filter_map(|row| row.recipe.parse().ok()).collect();
    let (first, others) = recipes.split_first()?;
    let mut rules: Vec<&str> = Vec::new();
    for rule in others.iter().flat_map(|other| rules_apart(first, other)) {
        if !rules.contains(&rule.describe()) {
            rules.push(rule.describe());
        }
    }
    let others = "they differ on other data only, by";
    (!rules.is_empty()).then(|| format!("{others}: {}", rules.join("; ")))
}

/// What a recipe is to a tensor: roles that group alike.
fn roles(row: &Row) -> String {
    row.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join("/")
}

/// The first recipes, and how many more there are.
fn some(recipes: &[&str]) -> String {
    match recipes.len().saturating_sub(SHOWN) {
        0 => recipes.join(", "),
        more => format!("{} and {more} more", recipes[..SHOWN].join(", ")),
    }
}

fn text(all: &Tally, tensors: &[Found], alone: &[&str]) -> String {
    let names = |rows: &[&Row]| rows.iter().map(|row| row.recipe.as_str()).collect::<Vec<_>>().join(", ");
    let of =
        if tensors.len() == 1 { "the tensor".to_owned() } else { format!("all {} tensors", tensors.len()) };
    let exact = all.exact();
    let mut text = match exact.len() {
        0 => format!("no recipe gives every code and scale of {of}; the nearest: {}\n\n", names(&all.best())),
        1 => format!("every code and scale of {of} is that of {}\n\n", names(&exact)),
        n => format!("every code and scale of {of} is that of {n} recipes: {}\n\n", names(&exact)),
    };
    let titles = ["<tensor", "<codes", "<as", "<recipe", "codes differ", "%", "scales differ", "%"];
    let mut table = Table::new(&[&titles[..], &["<of which (codes, scales)"]].concat());
    for found in tensors {
        // What gives the same numbers in the same roles is one line.
        let mut lines: Vec<(Vec<&str>, &Row)> = Vec::new();
        let numbers = |row: &Row| (row.roles.clone(), row.codes_differ, row.scales_differ);
        for row in found.tally.best() {
            match lines.iter_mut().find(|(_, first)| numbers(first) == numbers(row)) {
                Some((recipes, _)) => recipes.push(&row.recipe),
                None => lines.push((vec![&row.recipe], row)),
            }
        }
        for (recipes, row) in lines.into_iter().take(SHOWN) {
            table.row([
                found.name.clone(),
                found.codes.clone(),
                roles(row),
                some(&recipes),
                row.codes_differ.to_string(),
                percent(row.codes_differ, row.of),
                row.scales_differ.to_string(),
                percent(row.scales_differ, row.scales_of),
                row.explained.words(),
            ]);
        }
    }
    text += &table.render();
    if let Some(undecided) = undecided(all) {
        text += &format!("\n{undecided}\n");
    }
    let nearest: Vec<(&str, &Row)> = tensors
        .iter()
        .filter(|t| t.tally.exact().is_empty())
        .filter_map(|t| Some((t.name.as_str(), *t.tally.best().first()?)))
        .collect();
    text += &blocks::table(nearest.iter().map(|(name, row)| (*name, row.explained.worst())));
    if !alone.is_empty() {
        text += &format!("\nnot in the source: {}\n", listed(alone));
    }
    text
}
