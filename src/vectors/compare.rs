//! Comparing a folder of vectors with what this library computes.

use std::path::Path;

use serde::Serialize;

use super::{INDEX, Index, KIND, TensorEntry, TensorKind, VERSION, Vectors, vectors};
use crate::checkpoint::{Tensor, TensorFile};
use crate::error::{Error, Result};
use crate::formats::{Format, Unpacked};

/// What counts as the same NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NanRule {
    /// Equal bits, as this library promises.
    Bits,
    /// Any NaN of the tensor's format for another.
    Class,
}

/// One tensor that is not as computed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// File in the folder.
    pub file: String,
    /// Tensor in the file.
    pub tensor: String,
    /// Input or output.
    pub kind: TensorKind,
    /// Elements that differ.
    pub elements: u64,
    /// Index of the first of them.
    pub index: Vec<usize>,
    /// What this library computes there: bits, and the value where the bits are a number.
    pub expected: String,
    /// What the file has.
    pub found: String,
}

/// What [`check`] saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Check {
    /// Tensors compared.
    pub tensors: u64,
    /// Elements compared.
    pub elements: u64,
    /// Every tensor with a difference, in the order of the index.
    pub differences: Vec<Difference>,
}

/// Computes the vectors of a folder anew and compares every tensor, inputs too.
///
/// # Errors
/// [`Error::File`] if the index cannot be read or is of another version, if a file or a tensor is missing, or if a tensor
/// has another dtype or shape.
pub fn check(folder: &Path, nan: NanRule) -> Result<Check> {
    let path = folder.join(INDEX);
    let text = std::fs::read(&path).map_err(|e| Error::file(&path, e))?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))?;
    if (index.kind.as_str(), index.version) != (KIND, VERSION) {
        let message =
            format!("is {} version {}, expected {KIND} version {VERSION}", index.kind, index.version);
        return Err(Error::file(&path, message));
    }
    let mut check = Check::default();
    for file in &index.files {
        let name = file.file.strip_suffix(".safetensors").unwrap_or(&file.file);
        let expected = vectors(name).map_err(|e| Error::file(&path, e))?;
        compare(&TensorFile::open(folder.join(&expected.entry.file))?, &expected, nan, &mut check)?;
    }
    Ok(check)
}

fn compare(file: &TensorFile, expected: &Vectors, nan: NanRule, check: &mut Check) -> Result<()> {
    for (entry, want) in expected.entry.tensors.iter().zip(&expected.tensors) {
        let found = file.read(&entry.name)?;
        if (found.dtype(), found.shape()) != (want.dtype(), want.shape()) {
            let (found, want) = ((found.dtype(), found.shape()), (want.dtype(), want.shape()));
            let message = format!("is {} {:?}, expected {} {:?}", found.0, found.1, want.0, want.1);
            return Err(file.blame(&entry.name, message));
        }
        check.tensors += 1;
        check.elements += want.elements() as u64;
        if found.data() != want.data() {
            let difference = difference(&expected.entry.file, entry, want, &found, nan)?;
            check.differences.extend(difference);
        }
    }
    Ok(())
}

fn difference(
    file: &str,
    entry: &TensorEntry,
    want: &Tensor,
    found: &Tensor,
    nan: NanRule,
) -> Result<Option<Difference>> {
    let format = entry.format.as_deref().map(str::parse::<Format>).transpose()?;
    let is_nan = |bits: u64| format.is_some_and(|f| matches!(f.spec().decode(bits), Unpacked::Nan { .. }));
    let same = |w: u64, f: u64| w == f || nan == NanRule::Class && is_nan(w) && is_nan(f);
    let (want_bits, found_bits) = (want.to_bits()?, found.to_bits()?);
    let differing = || (0..want_bits.len()).filter(|&i| !same(want_bits[i], found_bits[i]));
    let Some(first) = differing().next() else { return Ok(None) };
    let digits = want.dtype().bitsize().div_ceil(4);
    let show = |bits: u64| match format {
        Some(f) if bits <= f.spec().code_mask() => {
            format!("0x{bits:0digits$X} ({:e})", f.spec().decode(bits).to_f64())
        }
        _ => format!("0x{bits:0digits$X}"),
    };
    let mut index = Vec::new();
    want.shape().iter().rev().fold(first, |rest, &size| {
        index.insert(0, rest % size);
        rest / size
    });
    Ok(Some(Difference {
        file: file.to_owned(),
        tensor: entry.name.clone(),
        kind: entry.kind,
        elements: differing().count() as u64,
        index,
        expected: show(want_bits[first]),
        found: show(found_bits[first]),
    }))
}
