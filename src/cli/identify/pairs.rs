//! Tensors of one name in two files.

use std::collections::HashMap;

use regex::Regex;

use crate::checkpoint::{Checkpoint, Pairs};
use crate::error::Error;

/// How many names a message lists.
const NAMED: usize = 4;

/// The tensors of codes in a file.
pub(super) struct CodesOf<'f> {
    file: &'f Checkpoint,
    /// The name of the values, and of the codes.
    pub(super) names: Vec<(&'f str, &'f str)>,
}

/// A tensor in both files.
pub(super) struct Both<'f> {
    /// The name of the values.
    pub(super) name: &'f str,
    /// The codes in the first.
    pub(super) codes: &'f str,
    /// What it is called in the second.
    pub(super) other: &'f str,
}

impl<'f> CodesOf<'f> {
    /// Those whose name matches.
    ///
    /// # Errors
    /// [`Error::File`] if there are none.
    pub(super) fn of(file: &'f Checkpoint, regex: Option<&Regex>) -> crate::Result<Self> {
        let names = file.names().iter().filter(|name| file.pairs().is_codes(name));
        let names = names.map(|name| (Pairs::name_of_values(name), name.as_str()));
        let names: Vec<_> = names.filter(|(name, _)| regex.is_none_or(|r| r.is_match(name))).collect();
        if names.is_empty() {
            let which = regex.map_or(String::new(), |r| format!(" whose name matches '{r}'"));
            let message = format!(
                "no quantised tensor{which}: codes are F8 or F4, or integers with scales beside them under a name such as \
                 T_scale_inv"
            );
            return Err(Error::file(file.path(), message));
        }
        Ok(CodesOf { file, names })
    }

    /// The tensors that `other` has too, and the names of those that it has not.
    ///
    /// # Errors
    /// [`Error::File`] if it has none of them.
    pub(super) fn with(
        &self,
        other: &Checkpoint,
        names: &HashMap<&'f str, &'f str>,
    ) -> crate::Result<(Vec<Both<'f>>, Vec<&'f str>)> {
        let (mut both, mut alone) = (Vec::new(), Vec::new());
        for &(name, codes) in &self.names {
            match names.get(name) {
                Some(other) => both.push(Both { name, codes, other }),
                None => alone.push(name),
            }
        }
        if both.is_empty() {
            let theirs: Vec<&str> = other.names().iter().map(String::as_str).collect();
            let message = format!(
                "no tensor in common: {} has codes of {}, this has {}",
                self.file.path().display(),
                listed(&alone),
                listed(&theirs)
            );
            return Err(Error::file(other.path(), message));
        }
        Ok((both, alone))
    }
}

/// Some names, and how many more there are.
pub(super) fn listed(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| format!("'{name}'")).collect();
    match names.len() {
        0 => "nothing".to_owned(),
        all if all > NAMED => format!("{} and {} more", shown.join(", "), all - NAMED),
        _ => shown.join(", "),
    }
}
