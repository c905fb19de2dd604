//! What the library refuses, as Python's exception.

use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

create_exception!(
    finegrain,
    Error,
    PyValueError,
    "What finegrain refuses, in one sentence with the argument and both numbers. A ValueError."
);

/// One sentence as the exception.
pub(crate) fn refuse(sentence: impl std::fmt::Display) -> PyErr {
    Error::new_err(sentence.to_string())
}

/// The library's results as Python's.
pub(crate) trait OrRaise<T> {
    /// The value, or the library's sentence as an exception.
    fn or_raise(self) -> PyResult<T>;
}

impl<T> OrRaise<T> for finegrain::Result<T> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(refuse)
    }
}
