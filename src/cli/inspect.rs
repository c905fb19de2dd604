//! `finegrain inspect`: what is in a file, and what is wrong with it.

use std::path::PathBuf;

use crate::checkpoint::{self, Inspection, TensorFile};
use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::output::{Table, measured, percent, print, print_json, printable, shape};
use crate::cli::progress::Progress;

const EXAMPLE: &str = "\
Findings are printed and do not change the exit code: a file that can be read is inspected, exit 0.

Example:
  finegrain inspect model.safetensors";

/// Show what is in a tensor file, and what is wrong with it
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// safetensors file to read
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
    if args.path.is_dir() {
        let message = "is a folder; inspect reads single files";
        return Err(crate::Error::file(&args.path, message).into());
    }
    let file = TensorFile::open(&args.path)?;
    let mut bytes = 0;
    for name in file.names() {
        bytes += file.info(name)?.bytes() as u64;
    }
    let progress = Progress::bytes(bytes);
    let inspection = checkpoint::inspect(&file, &|bytes| progress.advance(bytes))?;
    drop(progress);
    let path = args.path.display().to_string();
    if json {
        return print_json(&Report { path, metadata: file.metadata(), inspection: &inspection });
    }
    print(&text(&path, &inspection))
}

fn text(path: &str, all: &Inspection) -> String {
    let titles = ["<tensor", "<dtype", "<shape", "bytes", "amax", "zeros", "NaN", "inf", "<scales"];
    let mut table = Table::new(&titles);
    for t in &all.tensors {
        let scales = t.scales.as_ref().map_or(String::new(), |s| {
            format!("{} {}", s.dtype, s.granule.as_deref().unwrap_or("of unknown granule"))
        });
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
            format!("{severity}: {}: {}\n", printable(&f.tensor), printable(&f.message))
        })
        .collect();
    let (tensors, path) = (all.tensors.len(), printable(path));
    let summary =
        format!("{path}: {tensors} tensors, {} bytes, {} findings\n", all.bytes, all.findings.len());
    format!("{}\n{findings}{summary}", table.render())
}
