//! What is said of tensors that a subcommand leaves alone, or reads in a way that is not plain.

use crate::checkpoint::{Checkpoint, Dtype, Part};
use crate::error::{Error, Result};

/// Why a tensor is copied, where it is codes or belongs to codes.
pub(crate) fn copied(file: &Checkpoint, name: &str, dtype: Dtype) -> Option<String> {
    if let Some((codes, part)) = file.pairs().owner(name) {
        let what = match part {
            Part::Activation => "scale of activations, beside",
            Part::Foreign => "belongs to",
            Part::Block | Part::Tensor | Part::Divisor => "scales of",
        };
        return Some(format!("{what} '{codes}'"));
    }
    if file.pairs().is_codes(name) {
        return Some(match file.pairs().partners(name) {
            [] => format!("codes ({dtype})"),
            [first, ..] => format!("codes of '{}'", first.name),
        });
    }
    None
}

/// How a tensor of other than two dimensions is taken.
pub(crate) fn rank(shape: &[usize]) -> Option<String> {
    match shape {
        [lead @ .., rows, cols] if !lead.is_empty() => {
            let matrices: usize = lead.iter().product();
            Some(format!("{matrices} matrices of {rows}x{cols}, each on its own"))
        }
        [_] => Some("a vector is one row".to_owned()),
        _ => None,
    }
}

/// Subcommands that write one file read one.
pub(crate) fn refuse_folder(file: &Checkpoint, subcommand: &str) -> Result<()> {
    if file.path().is_dir() {
        return Err(Error::file(file.path(), format!("is a folder; {subcommand} reads single files")));
    }
    Ok(())
}
