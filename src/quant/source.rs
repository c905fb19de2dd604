//! What is quantised.

use super::swiglu;
use super::{Element, Role};
use crate::element::{Panel, panel};
use crate::error::Result;
use crate::matrix::MatRef;
use crate::scaled::ScaledRef;

/// What is quantised, wherever that happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// A matrix, in a role.
    Matrix(Panel<'a>, Role),
    /// silu(gate) · up, of two matrices of one shape and type, as activation.
    Swiglu(Panel<'a>, Panel<'a>),
    /// The transpose of a matrix that is quantised already.
    Scaled(ScaledRef<'a>),
}

impl<'a> Source<'a> {
    /// A matrix, in a role.
    pub(crate) fn matrix<T: Element>(x: MatRef<'a, T>, role: Role) -> Self {
        Source::Matrix(panel(x), role)
    }

    /// silu(gate) · up.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the shapes differ.
    pub(crate) fn swiglu<T: Element>(gate: MatRef<'a, T>, up: MatRef<'a, T>) -> Result<Self> {
        swiglu::check_shapes(gate.shape(), up.shape())?;
        Ok(Source::Swiglu(panel(gate), panel(up)))
    }

    /// (rows, columns) of what is read.
    pub(crate) fn shape(&self) -> (usize, usize) {
        match self {
            Source::Matrix(x, _) | Source::Swiglu(x, _) => (x.rows, x.cols),
            Source::Scaled(x) => x.shape(),
        }
    }

    /// How the result is grouped.
    pub(crate) fn role(&self) -> Role {
        match self {
            Source::Matrix(_, role) => *role,
            Source::Swiglu(..) => Role::Activation,
            Source::Scaled(_) => Role::Transposed,
        }
    }
}

impl std::fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rows, cols) = self.shape();
        match self {
            Source::Matrix(_, role) => write!(f, "{rows}×{cols} as {}", role.name()),
            Source::Swiglu(..) => write!(f, "SwiGLU of {rows}×{cols}"),
            Source::Scaled(x) => write!(f, "the transpose of {rows}×{cols} {}", x.format()),
        }
    }
}
