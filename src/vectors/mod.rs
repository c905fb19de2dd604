//! Conformance vectors: inputs and the bits that this library computes from them, as files that any language reads.
//!
//! [`generate`] fills a folder with safetensors files and an `index.json` that describes every tensor: whether it is an
//! input or an output, the operation, its parameters and the tensors it is computed from. [`check`] computes all of it
//! anew and lists what differs. To check another implementation, replace the output tensors by its own.
//!
//! | file | operations |
//! |---|---|
//! | `casts` | every BF16 and F16 pattern, every value of the formats of at most 8 bits, a stride of F32 patterns, midpoints with both neighbours, to every narrow format |
//! | `recipes` | every recipe in three roles, on ragged matrices with tiles of zeros, subnormals, infinities and NaN |
//! | `layouts` | scale grids in every layout, packed UE8M0, FP4 and E5M6 |
//! | `accumulations` | every accumulation model and some custom ones, promotion orders and intervals, parts of K, addends, f32 and bf16, dense and grouped |
//!
//! The inputs come from a counter-based generator in integers: the same bytes on every machine and each time.
//!
//! ```
//! use finegrain::vectors::{NanRule, check, generate};
//! let dir = tempfile::tempdir()?;
//! generate(dir.path(), &["layouts"])?;
//! assert!(check(dir.path(), NanRule::Bits)?.differences.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod accumulations;
mod casts;
mod compare;
mod layouts;
mod recipes;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Dtype, Tensor, TensorWriter, write_atomically};
use crate::error::{Error, Result};
use crate::formats::{Format, counter_hash};
use crate::matrix::Matrix;

pub use compare::{Check, Difference, NanRule, check};

/// The file that describes the others.
pub const INDEX: &str = "index.json";
const KIND: &str = "finegrain-vectors";
/// Changes when a tensor changes its name or meaning.
const VERSION: u32 = 2;

/// Every file, by name without its ending.
pub const FILES: [&str; 4] = ["casts", "recipes", "layouts", "accumulations"];

/// Whether a tensor is given or computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorKind {
    /// Given.
    Input,
    /// Computed from the tensors in [`TensorEntry::inputs`].
    Output,
}

/// What the index says of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Its name in the file.
    pub name: String,
    /// Input or output.
    pub kind: TensorKind,
    /// Element type, as safetensors names it.
    pub dtype: String,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// The number format of the elements, where they are numbers or codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The operation that gives it; empty for inputs.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub operation: String,
    /// The operation's operands, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub inputs: Vec<String>,
    /// The operation's parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub parameters: BTreeMap<String, String>,
}

/// What the index says of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in the folder.
    pub file: String,
    /// What it holds.
    pub description: String,
    /// Its tensors.
    pub tensors: Vec<TensorEntry>,
}

/// `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Index {
    kind: String,
    version: u32,
    /// The files.
    pub files: Vec<FileEntry>,
}

/// The vectors of one file, in memory.
pub(crate) struct Vectors {
    entry: FileEntry,
    tensors: Vec<Tensor>,
}

impl Vectors {
    fn new(name: &str, description: &str) -> Self {
        let (file, description) = (file_name(name), description.to_owned());
        Vectors { entry: FileEntry { file, description, tensors: Vec::new() }, tensors: Vec::new() }
    }

    fn input(&mut self, name: impl Into<String>, format: Option<Format>, tensor: Tensor) {
        self.put(TensorKind::Input, name.into(), format, tensor, "", &[], &[]);
    }

    fn output(
        &mut self,
        name: impl Into<String>,
        format: Option<Format>,
        tensor: Tensor,
        (operation, inputs, parameters): (&str, &[&str], &[(&str, &str)]),
    ) {
        self.put(TensorKind::Output, name.into(), format, tensor, operation, inputs, parameters);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of an entry, named by the two callers above")]
    fn put(
        &mut self,
        kind: TensorKind,
        name: String,
        format: Option<Format>,
        tensor: Tensor,
        operation: &str,
        inputs: &[&str],
        parameters: &[(&str, &str)],
    ) {
        let format = format.or_else(|| Tensor::format(tensor.dtype())).map(|f| f.name().to_owned());
        self.entry.tensors.push(TensorEntry {
            name,
            kind,
            dtype: tensor.dtype().to_string(),
            shape: tensor.shape().to_vec(),
            format,
            operation: operation.to_owned(),
            inputs: inputs.iter().map(|&i| i.to_owned()).collect(),
            parameters: parameters.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
        });
        self.tensors.push(tensor);
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let named = || self.entry.tensors.iter().zip(&self.tensors);
        let plan = named().map(|(e, t)| (e.name.clone(), t.dtype(), t.shape().to_vec())).collect();
        let metadata = [
            ("kind", KIND.to_owned()),
            ("version", VERSION.to_string()),
            ("description", self.entry.description.clone()),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut out = TensorWriter::create(&folder.join(&self.entry.file), plan, Some(&metadata))?;
        named().try_for_each(|(entry, tensor)| out.put(&entry.name, tensor))?;
        out.finish()
    }
}

fn file_name(name: &str) -> String {
    format!("{name}.safetensors")
}

fn vectors(name: &str) -> Result<Vectors> {
    match name {
        "casts" => casts::vectors(),
        "recipes" => recipes::vectors(),
        "layouts" => layouts::vectors(),
        "accumulations" => accumulations::vectors(),
        _ => Err(Error::unknown("vector file", name, FILES)),
    }
}

/// Writes the files of these names ([`FILES`] has all) and their index into a folder, which is created if need be. The
/// index comes last: a folder with one is whole.
///
/// # Errors
/// [`Error::Unknown`] for another name; [`Error::File`] if the folder cannot be written.
pub fn generate(folder: &Path, names: &[&str]) -> Result<Index> {
    std::fs::create_dir_all(folder).map_err(|e| Error::file(folder, e))?;
    let mut files = Vec::new();
    for name in names {
        let vectors = vectors(name)?;
        vectors.write(folder)?;
        files.push(vectors.entry);
    }
    let index = Index { kind: KIND.to_owned(), version: VERSION, files };
    let path = folder.join(INDEX);
    let json = serde_json::to_vec_pretty(&index).map_err(|e| Error::file(&path, e))?;
    write_atomically(&path, |out| out.write_all(&json))?;
    Ok(index)
}

/// Little-endian elements as a tensor.
fn tensor<T, const N: usize>(
    dtype: Dtype,
    shape: &[usize],
    values: &[T],
    bytes: impl Fn(&T) -> [u8; N],
) -> Result<Tensor> {
    Tensor::new(dtype, shape.to_vec(), values.iter().flat_map(bytes).collect())
}

/// Pseudorandom bits of element (i, j) of the matrix that `seed` names.
fn random(seed: u64, i: usize, j: usize) -> u64 {
    counter_hash(seed, ((i as u64) << 32) | j as u64)
}

/// A matrix of pseudorandom elements.
fn random_matrix<T>(rows: usize, cols: usize, seed: u64, element: impl Fn(u64) -> T) -> Matrix<T> {
    Matrix::from_fn(rows, cols, |i, j| element(random(seed, i, j)))
}
