//! `finegrain bench quantize|dequantize|cast`: work by element, against a copy of as many bytes.

use std::time::Instant;

use crate::element::Output;
use crate::engine::Engine;
use crate::formats::{Format, Overflow, Rounding, TensorRounding};
use crate::matrix::Matrix;
use crate::quant::{CastStats, Caster, Element, Recipe, Role};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::cli::Failure;
use crate::cli::bench::{bytes, sample};

/// What is measured.
pub(crate) struct Elements {
    pub(crate) op: ElementOp,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) recipe: Recipe,
    pub(crate) role: Role,
    /// What is quantised or cast.
    pub(crate) from: Format,
    /// What it is dequantised or cast to.
    pub(crate) to: Format,
    /// Where.
    pub(crate) engine: Engine<'static>,
    /// Least time to measure, in seconds.
    pub(crate) least: f64,
}

/// The operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementOp {
    Quantize,
    Dequantize,
    Cast,
}

/// Times of the work and of copies of as many bytes, which alternate so that both see the same machine; both sorted.
pub(crate) struct Timed {
    pub(crate) times: Vec<f64>,
    pub(crate) copies: Vec<f64>,
    /// Bytes read and written.
    pub(crate) bytes: usize,
}

impl Elements {
    /// Checks the answer, then measures.
    pub(crate) fn run(&self) -> Result<Timed, Failure> {
        let x = sample(self.rows, self.cols, 1);
        match (self.op, self.from, self.to) {
            (ElementOp::Dequantize, _, Format::F32) => self.dequantize::<f32>(&x),
            (ElementOp::Dequantize, _, Format::Bf16) => self.dequantize::<bf16>(&x),
            (ElementOp::Dequantize, _, other) => {
                Err(Failure::Usage(format!("--to {other}: expected bf16 or f32")))
            }
            (_, Format::F32, _) => self.from(&x),
            (_, Format::Bf16, _) => self.from(&x.map(|&v| bf16::from_f32(v))),
            (_, Format::F16, _) => self.from(&x.map(|&v| f16::from_f32(v))),
            (_, other, _) => Err(Failure::Usage(format!("--from {other}: expected f32, bf16 or f16"))),
        }
    }

    fn from<T: Element>(&self, x: &Matrix<T>) -> Result<Timed, Failure> {
        let bits = self.to.spec().bits();
        match self.op {
            ElementOp::Quantize => self.quantize(x),
            _ if bits > 16 => Err(Failure::Usage(format!("--to {}: expected at most 16 bits", self.to))),
            _ if bits > 8 => self.cast(x.as_slice(), Engine::cast_words),
            _ => self.cast(x.as_slice(), Engine::cast_bytes),
        }
    }

    fn quantize<T: Element>(&self, x: &Matrix<T>) -> Result<Timed, Failure> {
        let first = self.engine.quantize(x.view(), &self.recipe, self.role)?;
        let known = Engine::reference().quantize(x.view(), &self.recipe, self.role)?;
        same("codes, scales and counts", first == known)?;
        let mut out = first.matrix;
        let bytes = size_of::<T>() * self.rows * self.cols + bytes(&out.view());
        self.alternate(bytes, || {
            self.engine.quantize_into(x.view(), &self.recipe, self.role, &mut out)?;
            Ok(())
        })
    }

    fn dequantize<T: Output + PartialEq>(&self, x: &Matrix<f32>) -> Result<Timed, Failure> {
        let q = self.engine.quantize(x.view(), &self.recipe, self.role)?.matrix;
        let (rows, cols) = q.shape();
        let mut out = Matrix::filled(rows, cols, T::from_f32(0.0));
        self.engine.dequantize_into(q.view(), out.view_mut())?;
        same("values", out == q.view().dequantize_reference())?;
        let bytes = size_of::<T>() * rows * cols + bytes(&q.view());
        self.alternate(bytes, || Ok(self.engine.dequantize_into(q.view(), out.view_mut())?))
    }

    fn cast<T: Element, C: Copy + Default + PartialEq>(
        &self,
        x: &[T],
        cast: fn(&Engine<'static>, &Caster, &[T], &mut [C]) -> crate::Result<CastStats>,
    ) -> Result<Timed, Failure> {
        let nearest = TensorRounding::Fixed(Rounding::NearestEven);
        let caster = Caster::new(self.to, nearest, Overflow::Saturate);
        let (mut codes, mut expected) = (vec![C::default(); x.len()], vec![C::default(); x.len()]);
        let stats = cast(&self.engine, &caster, x, &mut codes)?;
        let known = cast(&Engine::reference(), &caster, x, &mut expected)?;
        same("codes and counts", stats == known && codes == expected)?;
        self.alternate((size_of::<T>() + size_of::<C>()) * x.len(), || {
            cast(&self.engine, &caster, x, &mut codes)?;
            Ok(())
        })
    }

    /// Runs the work, and copies that read and write as many bytes in all, in turn; a first run of both does not count.
    fn alternate(
        &self,
        bytes: usize,
        mut work: impl FnMut() -> Result<(), Failure>,
    ) -> Result<Timed, Failure> {
        let from = vec![1u8; bytes.div_ceil(2)];
        let mut to = vec![0u8; from.len()];
        let (mut times, mut copies) = (Vec::new(), Vec::new());
        copy(&from, &mut to);
        work()?;
        let begin = Instant::now();
        while times.len() < 3 || begin.elapsed().as_secs_f64() < self.least {
            let start = Instant::now();
            copy(&from, &mut to);
            copies.push(start.elapsed().as_secs_f64());
            let start = Instant::now();
            work()?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        copies.sort_by(f64::total_cmp);
        Ok(Timed { times, copies, bytes })
    }
}

/// A copy by all threads, each of a part: what the C library makes of it.
fn copy(from: &[u8], to: &mut [u8]) {
    let part = from.len().div_ceil(rayon::current_num_threads());
    from.par_chunks(part).zip(to.par_chunks_mut(part)).for_each(|(from, to)| to.copy_from_slice(from));
}

fn same(what: &str, equal: bool) -> Result<(), Failure> {
    if equal {
        return Ok(());
    }
    Err(Failure::Failed(format!("{what} differ from the reference: nothing was timed")))
}
