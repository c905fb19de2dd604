//! Matrices that were put where an engine works.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::lie::Elsewhere;
use super::{CodesRef, ScaledMatrix, ScaledRef, Scales};
use crate::error::Result;
use crate::formats::Format;
use crate::simd::Isa;

/// A matrix of codes that lies where an engine works, with its scales: what
/// [`Engine::upload`](crate::Engine::upload) gives, and what an engine has quantised and kept. Its [view](Resident::view) is
/// an operand like any other; the engine that it lies at neither uploads nor packs it again, and elsewhere its codes are
/// fetched once. Cloning shares the memory, which is given back with the last of the clones.
#[derive(Clone)]
pub struct Resident {
    codes: Arc<dyn Elsewhere>,
    format: Format,
    shape: (usize, usize),
    scales: Option<Arc<Scales>>,
}

impl Resident {
    /// Codes of this format and shape, with the scales that belong to them.
    pub(crate) fn new(
        format: Format,
        shape: (usize, usize),
        codes: Arc<dyn Elsewhere>,
        scales: Option<Scales>,
    ) -> Self {
        Resident { codes, format, shape, scales: scales.map(Arc::new) }
    }

    /// A view of the whole, wherever it lies.
    pub fn view(&self) -> ScaledRef<'_> {
        let scales = self.scales.as_ref().map(|s| s.view());
        ScaledRef::elsewhere(self.format, &*self.codes, self.shape, scales)
    }

    /// Element format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// (rows, columns).
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// A copy in the host's memory.
    ///
    /// # Errors
    /// What keeps a device from giving it.
    pub fn download(&self) -> Result<ScaledMatrix> {
        self.codes.fetch()?;
        Ok(self.view().to_matrix())
    }
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Resident { format, shape, .. } = self;
        f.debug_struct("Resident").field("format", format).field("shape", shape).finish_non_exhaustive()
    }
}

/// A matrix that an engine of the host's keeps, and the forms in which its kernels have wanted it.
pub(crate) struct Kept {
    matrix: ScaledMatrix,
    forms: Mutex<Vec<(Form, Arc<dyn Any + Send + Sync>)>>,
}

/// What tells the forms of a matrix apart: an instruction set, and how it is cut.
pub(crate) type Form = (Isa, usize);

impl Kept {
    /// A matrix that lies where it is used.
    pub(crate) fn resident(matrix: ScaledMatrix) -> Resident {
        let (format, shape, scales) = (matrix.format(), matrix.shape(), matrix.scales().cloned());
        Resident::new(format, shape, Arc::new(Kept { matrix, forms: Mutex::default() }), scales)
    }

    /// A form of it, made when first asked for.
    ///
    /// # Errors
    /// Those of `make`.
    pub(crate) fn form<T: Any + Send + Sync>(
        &self,
        form: Form,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        let forms = || self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        let find = || {
            let known = forms().iter().find(|(known, _)| *known == form).map(|(_, made)| Arc::clone(made));
            known.and_then(|made| made.downcast::<T>().ok())
        };
        if let Some(made) = find() {
            return Ok(made);
        }
        // Not locked: what makes it may run other products of the same matrix meanwhile.
        let made = Arc::new(make()?);
        forms().push((form, Arc::clone(&made) as Arc<dyn Any + Send + Sync>));
        Ok(made)
    }
}

impl Elsewhere for Kept {
    fn fetch(&self) -> Result<CodesRef<'_>> {
        Ok(self.matrix.codes.view())
    }

    fn handle(&self) -> &dyn Any {
        self
    }
}
