//! A file written anew, tensor by tensor: what `cast`, `quantize` and `dequantize` have in common.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::Dtype;

use super::room::require_memory;
use super::source::Checkpoint;
use super::tensor::Tensor;
use super::write::TensorWriter;
use crate::error::Result;
use crate::parallel::Watch;

/// Name, dtype and shape of a tensor before it is there.
pub type Announced = (String, Dtype, Vec<usize>);

/// What becomes of one tensor.
pub enum Fate<'a, S> {
    /// It is written as it is.
    Kept,
    /// It goes into others.
    Used,
    /// It becomes others.
    Made(Made<'a, S>),
}

/// What makes the tensors, in the order announced; its watch is told bytes of the tensor that are done.
pub type Maker<'a, S> = Box<dyn Fn(&Watch<'_>) -> Result<(Vec<Tensor>, S)> + 'a>;

/// Tensors that one becomes.
pub struct Made<'a, S> {
    /// What they are.
    pub tensors: Vec<Announced>,
    /// Bytes of memory that it takes to make them; `None` for more than can be counted.
    pub memory: Option<u64>,
    /// What makes them, and what is to be said of it.
    pub make: Maker<'a, S>,
}

/// Writes a file anew: the tensors of `source` in their order, each as its fate says. Everything is planned and checked
/// before the first tensor is made. Gives what is to be said of each, and the output, which has its name when it is
/// [finished](TensorWriter::finish). `on` is told each name; `watch` is told bytes of the input.
///
/// # Errors
/// [`crate::Error::File`] if reading or writing fails or two tensors would have one name;
/// [`crate::Error::Unsupported`] if there is no room; [`crate::Error::Cancelled`]; what the makers say.
pub fn rewrite<S>(
    source: &Checkpoint,
    output: &Path,
    plan: &[Fate<'_, S>],
    on: &dyn Fn(&str),
    watch: &Watch<'_>,
) -> Result<(Vec<Option<S>>, TensorWriter)> {
    let mut announced = Vec::new();
    for (name, fate) in source.names().iter().zip(plan) {
        match fate {
            Fate::Kept => {
                let info = source.info(name)?;
                announced.push((name.clone(), info.dtype, info.shape));
            }
            Fate::Used => {}
            Fate::Made(made) => {
                require_memory("it", made.memory).map_err(|e| source.blame(name, e))?;
                announced.extend(made.tensors.iter().cloned());
            }
        }
    }
    let mut out = TensorWriter::create(output, announced, source.metadata())?;
    let mut said = Vec::new();
    for (name, fate) in source.names().iter().zip(plan) {
        watch.check()?;
        on(name);
        let done = AtomicU64::new(0);
        said.push(match fate {
            Fate::Kept => {
                out.put(name, &source.read(name)?)?;
                None
            }
            Fate::Used => None,
            Fate::Made(made) => {
                let report = |bytes| {
                    done.fetch_add(bytes, Ordering::Relaxed);
                    watch.report(bytes);
                };
                let inner = Watch { progress: Some(&report), ..*watch };
                let (tensors, what) = (made.make)(&inner)?;
                for ((name, ..), tensor) in made.tensors.iter().zip(&tensors) {
                    out.put(name, tensor)?;
                }
                Some(what)
            }
        });
        let bytes = source.info(name)?.bytes() as u64;
        watch.report(bytes.saturating_sub(done.into_inner()));
    }
    Ok((said, out))
}
