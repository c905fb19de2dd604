//! Where the codes of a view lie: in the host's memory, or where an engine works.

use std::any::Any;
use std::fmt;
use std::ops::Range;

use super::CodesRef;
use crate::error::Result;

/// Codes that were put where an engine works.
pub(crate) trait Elsewhere: Send + Sync {
    /// The same in the host's memory: fetched when first asked for, then kept.
    fn fetch(&self) -> Result<CodesRef<'_>>;

    /// What the engine that put them there knows them by.
    fn handle(&self) -> &dyn Any;
}

/// Where codes lie.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lie<'a> {
    /// In the host's memory.
    Here(CodesRef<'a>),
    /// Where an engine works.
    Elsewhere(Part<'a>),
}

/// Some rows and columns of codes that lie elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    whole: &'a dyn Elsewhere,
    whole_shape: (usize, usize),
    /// Of the first element.
    at: (usize, usize),
    shape: (usize, usize),
}

impl fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Part { at, shape, whole_shape, .. } = self;
        f.debug_struct("Part").field("at", at).field("shape", shape).field("of", whole_shape).finish()
    }
}

impl<'a> Lie<'a> {
    pub(super) fn elsewhere(whole: &'a dyn Elsewhere, shape: (usize, usize)) -> Self {
        Lie::Elsewhere(Part { whole, whole_shape: shape, at: (0, 0), shape })
    }

    pub(super) fn shape(&self) -> (usize, usize) {
        match self {
            Lie::Here(codes) => codes.shape(),
            Lie::Elsewhere(part) => part.shape,
        }
    }

    /// In the host's memory.
    pub(super) fn fetch(&self) -> Result<CodesRef<'a>> {
        match self {
            Lie::Here(codes) => Ok(*codes),
            Lie::Elsewhere(Part { whole, at: (row, col), shape: (rows, cols), .. }) => {
                Ok(whole.fetch()?.row_range(*row, row + rows).col_range(*col, col + cols))
            }
        }
    }

    /// What the engine knows the whole by; `None` for a part of it.
    pub(super) fn handle(&self) -> Option<&'a dyn Any> {
        match self {
            Lie::Elsewhere(part) if part.shape == part.whole_shape => Some(part.whole.handle()),
            _ => None,
        }
    }

    pub(super) fn range(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        match self {
            Lie::Here(codes) => {
                Lie::Here(codes.row_range(rows.start, rows.end).col_range(cols.start, cols.end))
            }
            Lie::Elsewhere(part) => {
                let (height, width) = part.shape;
                assert!(rows.start <= rows.end && rows.end <= height, "rows {rows:?} of {height}");
                assert!(cols.start <= cols.end && cols.end <= width, "columns {cols:?} of {width}");
                let at = (part.at.0 + rows.start, part.at.1 + cols.start);
                Lie::Elsewhere(Part { at, shape: (rows.len(), cols.len()), ..*part })
            }
        }
    }
}
