//! Two quantised files: what differs, by which rule, and what it does to a product.

use std::collections::HashMap;
use std::path::Path;

use super::Args;
use super::blocks::{self, Explained};
use super::pairs::{Both, CodesOf, listed};
use crate::accuracy::product_error;
use crate::checkpoint::{Checkpoint, ReadAs, ScaledTensor};
use crate::cli::output::{Table, measured, percent, print, print_json, shape};
use crate::cli::progress::Progress;
use crate::cli::reading::read_values;
use crate::cli::{Failure, Outcome, interrupt};
use crate::engine::Engine;
use crate::matrix::Matrix;
use crate::quant::{Differences, diff_quantized};

/// What was found of a tensor.
struct Found {
    name: String,
    shape: Vec<usize>,
    /// How each of the two is quantised.
    codes: [String; 2],
    differences: Differences,
    of: u64,
    scales_of: u64,
    explained: Explained,
    /// The error of Y, of a stack that of the matrix where it is largest, and how many rows of X were multiplied at least.
    y: Option<(f64, usize)>,
}

pub(super) fn run(args: &Args, other: &Path, json: bool) -> Outcome {
    let read_as = args.reading.read_as()?;
    let (file, other) = (Checkpoint::open(&args.r#in)?, Checkpoint::open(other)?);
    let codes = CodesOf::of(&file, args.tensor.as_ref())?;
    let theirs = CodesOf::of(&other, args.tensor.as_ref())?;
    let names: HashMap<&str, &str> = theirs.names.iter().copied().collect();
    let (both, alone) = codes.with(&other, &names)?;
    let x = args.x.as_deref().map(Activation::read).transpose()?;

    let bytes = |b: &Both<'_>| file.info(b.codes).map_or(0, |info| info.bytes() as u64);
    let progress = Progress::bytes(both.iter().map(bytes).sum());
    let unheard = |_| ();
    let engine = interrupt::watched(args.engine()?, &unheard);
    let mut tensors = Vec::new();
    for both in both {
        progress.on(both.name);
        tensors.push(tensor(args, &read_as, (&file, &other), &both, x.as_ref(), &engine)?);
        progress.advance(bytes(&both));
    }
    drop(progress);
    if let Some(x) = x.filter(|_| tensors.iter().all(|t| t.y.is_none())) {
        let first = &tensors[0];
        let message = format!(
            "{} columns, and no tensor that was compared has as many ('{}' is {})",
            x.matrix.cols(),
            first.name,
            shape(&first.shape)
        );
        return Err(x.file.blame(&x.name, message).into());
    }

    if json {
        print_json(&serde_json::json!({
            "op": "identify",
            "input": file.path().display().to_string(),
            "against": other.path().display().to_string(),
            "tensors": tensors.iter().map(as_json).collect::<Vec<_>>(),
            "not_compared": alone,
        }))?;
    } else {
        print(&text(&tensors, &alone))?;
    }
    if tensors.iter().any(Found::differs) { Err(Failure::Findings) } else { Ok(()) }
}

/// X of Y = X·Wᵀ.
struct Activation {
    file: Checkpoint,
    name: String,
    matrix: Matrix<f32>,
}

impl Activation {
    /// FILE:NAME, where both may have colons: the longest FILE that is there.
    fn read(text: &str) -> Result<Self, Failure> {
        let cuts = text.rmatch_indices(':').map(|(at, _)| (&text[..at], &text[at + 1..]));
        let mut cuts = cuts.filter(|(path, name)| !path.is_empty() && !name.is_empty()).peekable();
        let Some(&last) = cuts.peek() else {
            return Err(Failure::Usage(format!("--x {text}: expected FILE:NAME")));
        };
        let (path, name) = cuts.find(|(path, _)| Path::new(path).exists()).unwrap_or(last);
        let file = Checkpoint::open(path)?;
        let matrix = read_values(&file, name, &ReadAs::default())?;
        Ok(Activation { file, name: name.to_owned(), matrix })
    }
}

impl Found {
    fn differs(&self) -> bool {
        self.differences != Differences::default()
    }
}

fn tensor(
    args: &Args,
    read_as: &ReadAs,
    (file, other): (&Checkpoint, &Checkpoint),
    both: &Both<'_>,
    x: Option<&Activation>,
    engine: &Engine<'_>,
) -> crate::Result<Found> {
    let read = |file: &Checkpoint, name: &str| -> crate::Result<ScaledTensor> {
        let scaled = ScaledTensor::read(file, name, read_as)?;
        if !scaled.has_scales() {
            return Err(file.blame(name, "codes without scales"));
        }
        Ok(scaled)
    };
    let (ours, theirs) = (read(file, both.codes)?, read(other, both.other)?);
    if ours.shape() != theirs.shape() {
        return Err(other.blame(
            both.other,
            format!(
                "shape {}, in {} it is {}",
                shape(theirs.shape()),
                file.path().display(),
                shape(ours.shape())
            ),
        ));
    }
    // These errors name the tensor.
    let ours_each = ours.to_compare().map_err(|e| crate::Error::file(file.path(), e))?;
    let theirs_each = theirs.to_compare().map_err(|e| crate::Error::file(other.path(), e))?;
    let mut found = Found {
        name: both.name.to_owned(),
        shape: ours.shape().to_vec(),
        codes: [ours.describe(None), theirs.describe(None)],
        differences: Differences::default(),
        of: 0,
        scales_of: 0,
        explained: Explained::default(),
        y: None,
    };
    for (n, (&a, &b)) in ours_each.iter().zip(&theirs_each).enumerate() {
        let diff = engine.install(|| diff_quantized(a, b)).map_err(|e| file.blame(both.codes, e))?;
        found.differences = [found.differences, diff.total].into_iter().sum();
        found.of += diff.elements;
        found.scales_of += diff.granules;
        found.explained.add(Explained::of(&diff, (ours.shape().len() > 2).then_some(n)));
        if let Some(x) = x.filter(|x| x.matrix.cols() == a.shape().1) {
            // Where nothing differs, neither does Y.
            let (error, rows) = if diff.total == Differences::default() {
                (0.0, x.matrix.rows())
            } else {
                let error = product_error(x.matrix.view(), a, b, args.extent(), engine)?;
                (error.relative, error.rows)
            };
            found.y =
                Some(found.y.map_or((error, rows), |(worst, least)| (worst.max(error), least.min(rows))));
        }
    }
    Ok(found)
}

fn as_json(t: &Found) -> serde_json::Value {
    serde_json::json!({
        "name": t.name,
        "shape": t.shape,
        "codes": t.codes[0],
        "other_codes": t.codes[1],
        "codes_differ": t.differences.codes,
        "scales_differ": t.differences.scales,
        "of": t.of,
        "scales_of": t.scales_of,
        "causes": t.explained.causes(),
        "worst_blocks": t.explained.worst(),
        "y_error": t.y.map(|(error, _)| error),
        "x_rows": t.y.map(|(_, rows)| rows),
    })
}

fn text(tensors: &[Found], alone: &[&str]) -> String {
    let differ = tensors.iter().filter(|t| t.differs()).count();
    let mut text = match differ {
        0 => format!("no code and no scale differs ({} tensors)\n\n", tensors.len()),
        _ => format!("{differ} of {} tensors differ\n\n", tensors.len()),
    };
    let titles = ["<tensor", "<codes", "codes differ", "%", "scales differ", "%", "Y error"];
    let mut table = Table::new(&[&titles[..], &["<of which (codes, scales)"]].concat());
    for t in tensors {
        let codes = if t.codes[0] == t.codes[1] { t.codes[0].clone() } else { t.codes.join(" against ") };
        table.row([
            t.name.clone(),
            codes,
            t.differences.codes.to_string(),
            percent(t.differences.codes, t.of),
            t.differences.scales.to_string(),
            percent(t.differences.scales, t.scales_of),
            t.y.map_or_else(|| "-".to_owned(), |(error, _)| measured(error)),
            t.explained.words(),
        ]);
    }
    text += &table.render();
    text += &blocks::table(tensors.iter().map(|t| (t.name.as_str(), t.explained.worst())));
    if !alone.is_empty() {
        text += &format!("\nnot in the other: {}\n", listed(alone));
    }
    text
}
