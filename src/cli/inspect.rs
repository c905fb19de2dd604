//! `finegrain inspect`: what is in a file, and what is wrong with it.

use std::path::PathBuf;

use crate::checkpoint::{self, Checkpoint, Inspection, Severity};
use serde::Serialize;

use crate::cli::output::{Table, measured, message, percent, print, print_json, printable, shape, title};
use crate::cli::progress::Progress;
use crate::cli::{Failure, Outcome};

const EXAMPLE: &str = "\
Exit 3 if there is a finding of severity error, else 0: warnings and notes do not change it. Of a folder all \
safetensors files are read; scales belong to codes in any of them.

Example:
  finegrain inspect model.safetensors";

/// Show what is in a tensor file or a checkpoint, and what is wrong with it
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// safetensors file, or folder with such files
    path: PathBuf,
}

#[derive(Serialize)]
struct Report<'a> {
    path: String,
    metadata: Option<&'a std::collections::BTreeMap<String, String>>,
    #[serde(flatten)]
    inspection: &'a Inspection,
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    let file = Checkpoint::open(&args.path)?;
    let progress = Progress::bytes(file.bytes());
    let inspection = checkpoint::inspect(&file, &|bytes| progress.advance(bytes))?;
    drop(progress);
    let path = args.path.display().to_string();
    if json {
        print_json(&Report { path, metadata: file.metadata(), inspection: &inspection })?;
    } else {
        print(&text(&path, &inspection))?;
    }
    if inspection.findings.iter().any(|f| f.severity == Severity::Error) {
        return Err(Failure::Findings);
    }
    Ok(())
}

fn text(path: &str, all: &Inspection) -> String {
    let titles = ["<tensor", "<dtype", "<shape", "bytes", "amax", "zeros", "NaN", "inf", "<scales"];
    let mut table = Table::new(&titles);
    for t in &all.tensors {
        let scales = match (&t.scales, &t.scales_of) {
            (Some(s), _) => format!("{} {}", s.dtype, s.granule.as_deref().unwrap_or("of unknown granule")),
            (None, Some(codes)) => format!("of '{codes}'"),
            (None, None) => String::new(),
        };
        table.row([
            t.name.clone(),
            t.dtype.clone(),
            shape(&t.shape),
            t.bytes.to_string(),
            t.amax.map_or("-".to_owned(), measured),
            percent(t.zeros, t.elements as u64),
            t.nan.to_string(),
            t.infinite.to_string(),
            scales,
        ]);
    }
    let findings: String = all
        .findings
        .iter()
        .map(|f| {
            let severity = format!("{:?}", f.severity).to_lowercase();
            format!("{severity}: {}: {}\n", title(&f.tensor), message(&f.message))
        })
        .collect();
    let (tensors, path) = (all.tensors.len(), printable(path));
    let summary =
        format!("{path}: {tensors} tensors, {} bytes, {} findings\n", all.bytes, all.findings.len());
    format!("{}\n{findings}{summary}", table.render())
}
