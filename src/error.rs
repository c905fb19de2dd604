//! The one error type of the library.
#![forbid(unsafe_code)]

use std::path::PathBuf;

/// What every fallible function of the library returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request could not be carried out.
///
/// Only callers' mistakes and the outside world are errors. What the data itself does (saturation, flushes to zero,
/// NaN) is counted and travels with the result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two sizes that must agree do not; the message holds both.
    #[error("{0}")]
    Shape(String),

    /// A name that is not in its list; the message holds the list.
    #[error("unknown {kind} '{name}'; known: {known}")]
    Unknown {
        /// What was looked up: "recipe", "format", "accumulation model" …
        kind: &'static str,
        /// The name as given.
        name: String,
        /// Every name that would have been accepted, separated by commas.
        known: String,
    },

    /// Legal on its own, but not in this combination; the message says which rule of the contract forbids it.
    #[error("{0}")]
    Unsupported(String),

    /// An argument outside its range.
    #[error("{0}")]
    Invalid(String),

    /// The work was asked to stop before it was done.
    #[error("cancelled")]
    Cancelled,

    /// Something is wrong with a file or with one tensor of it.
    #[error("{}{}: {message}", path.display(), tensor.as_ref().map(|t| format!(": tensor '{t}'")).unwrap_or_default())]
    File {
        /// The file.
        path: PathBuf,
        /// The tensor, where one is to blame.
        tensor: Option<String>,
        /// What is wrong.
        message: String,
    },
}

impl Error {
    /// An [`Error::File`] that blames the whole file.
    pub fn file(path: impl Into<PathBuf>, message: impl ToString) -> Self {
        Error::File { path: path.into(), tensor: None, message: message.to_string() }
    }

    /// An [`Error::File`] that blames one tensor.
    pub fn tensor(path: impl Into<PathBuf>, tensor: impl Into<String>, message: impl ToString) -> Self {
        Error::File { path: path.into(), tensor: Some(tensor.into()), message: message.to_string() }
    }

    /// An [`Error::Unknown`] from the list of names that exist.
    pub fn unknown<'a>(kind: &'static str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        Error::Unknown { kind, name: name.to_owned(), known }
    }
}
