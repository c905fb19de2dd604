//! Casts of elements without scales.

use bytemuck::Pod;
use rayon::prelude::*;
use serde::Serialize;

use super::element::{Element, Typed};
use super::fast::{CastTask, CodeWord, PAST_CACHE};
use crate::error::{Error, Result};
use crate::formats::{Events, Format, Overflow, TensorRounding, Unpacked};
use crate::simd::{Encoder, Isa, Lane};

/// Elements of a task: some ten microseconds, so that progress can be told.
const TASK: usize = 1 << 16;

/// What happened in one tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CastStats {
    /// Elements of the tensor.
    pub elements: u64,
    /// Finite elements beyond the format's largest finite value: saturated, or infinite or NaN where the overflow mode says
    /// so.
    pub overflowed: u64,
    /// Non-zero elements that became zero.
    pub flushed: u64,
    /// Infinite elements.
    pub infinite: u64,
    /// NaN elements.
    pub nan: u64,
    /// Elements that changed, those above included where the format cannot hold them.
    pub inexact: u64,
    /// The largest |result − element| over finite elements with a finite result.
    pub max_abs_error: f64,
}

impl CastStats {
    /// `value` and `result` are asked for only where they differ.
    pub(crate) fn add(&mut self, events: Events, value: impl FnOnce() -> f64, result: impl FnOnce() -> f64) {
        let count = |n: &mut u64, event| *n += u64::from(events.contains(event));
        self.elements += 1;
        count(&mut self.overflowed, Events::OVERFLOW);
        count(&mut self.flushed, Events::FLUSHED);
        count(&mut self.infinite, Events::INFINITE);
        count(&mut self.nan, Events::NAN);
        count(&mut self.inexact, Events::INEXACT);
        if events.contains(Events::INEXACT) {
            let error = (result() - value()).abs();
            if error.is_finite() {
                self.max_abs_error = self.max_abs_error.max(error);
            }
        }
    }

    pub(crate) fn join(self, other: Self) -> Self {
        CastStats {
            elements: self.elements + other.elements,
            overflowed: self.overflowed + other.overflowed,
            flushed: self.flushed + other.flushed,
            infinite: self.infinite + other.infinite,
            nan: self.nan + other.nan,
            inexact: self.inexact + other.inexact,
            max_abs_error: self.max_abs_error.max(other.max_abs_error),
        }
    }
}

/// Casts elements to the codes of a format of at most 16 bits, each rounded once, as [`Format::cast`] does.
///
/// Deterministic roundings of signed formats with fewer exponent bits than f32 run in registers; stochastic rounding,
/// E8M0 and bf16 one element after the other.
///
/// ```
/// use finegrain::formats::{Format, Overflow, Rounding, TensorRounding};
/// use finegrain::quant::Caster;
/// let nearest = TensorRounding::Fixed(Rounding::NearestEven);
/// let caster = Caster::new(Format::E4M3, nearest, Overflow::Saturate);
/// let mut codes = [0u8; 3];
/// let stats = caster.bytes(&[1.0f32, -0.3, 1e9], &mut codes)?;
/// assert_eq!(codes, [0x38, 0xAA, 0x7E]);
/// assert_eq!((stats.overflowed, stats.inexact), (1, 2));
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Caster {
    format: Format,
    rounding: TensorRounding,
    overflow: Overflow,
    isa: Option<Isa>,
    reference: bool,
}

impl Caster {
    /// A cast on the active instruction set.
    pub const fn new(format: Format, rounding: TensorRounding, overflow: Overflow) -> Self {
        Caster { format, rounding, overflow, isa: None, reference: false }
    }

    /// The definition: [`Format::cast`] of one element after the other.
    pub const fn reference(format: Format, rounding: TensorRounding, overflow: Overflow) -> Self {
        Caster { format, rounding, overflow, isa: None, reference: true }
    }

    /// The same on an instruction set.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the CPU lacks it.
    pub fn on(self, isa: Isa) -> Result<Self> {
        Ok(Caster { isa: Some(isa.checked()?), ..self })
    }

    /// Whether registers do the work.
    pub(crate) fn in_registers(&self) -> bool {
        self.encoder().is_some()
    }

    fn encoder(&self) -> Option<Encoder> {
        match self.rounding {
            TensorRounding::Fixed(rounding) if !self.reference => {
                crate::simd::encoder(self.format, rounding, self.overflow)
            }
            _ => None,
        }
    }

    /// Casts to a format of at most 8 bits, a code a byte. Element i draws the random bits of index i.
    ///
    /// # Errors
    /// [`Error::Shape`] if the slices differ in length; [`Error::Invalid`] for wider formats; [`Error::Unsupported`] if
    /// `FINEGRAIN_ISA` names an instruction set that the CPU lacks.
    pub fn bytes<T: Element>(&self, x: &[T], codes: &mut [u8]) -> Result<CastStats> {
        self.cast_bytes(T::typed(x), codes, &|_| ())
    }

    /// Casts to a format of 9 to 16 bits, a code a word.
    ///
    /// # Errors
    /// As [`Caster::bytes`].
    pub fn words<T: Element>(&self, x: &[T], codes: &mut [u16]) -> Result<CastStats> {
        self.cast_words(T::typed(x), codes, &|_| ())
    }

    /// As [`Caster::bytes`]; `done` is told how many more elements are finished, from any thread. Not generic, so that it
    /// is compiled once and not by every caller.
    pub(crate) fn cast_bytes(
        &self,
        x: Typed<'_>,
        codes: &mut [u8],
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<CastStats> {
        self.cast(x, codes, done)
    }

    /// The same for [`Caster::words`].
    pub(crate) fn cast_words(
        &self,
        x: Typed<'_>,
        codes: &mut [u16],
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<CastStats> {
        self.cast(x, codes, done)
    }

    fn cast<C: CodeWord>(
        &self,
        x: Typed<'_>,
        codes: &mut [C],
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<CastStats> {
        if x.len() != codes.len() {
            return Err(Error::Shape(format!("{} codes are to hold {} elements", codes.len(), x.len())));
        }
        let bits = self.format.spec().bits() as usize;
        if bits.div_ceil(8).max(1) != size_of::<C>() {
            return Err(Error::Invalid(format!(
                "{} has {bits} bits, its codes are to be stored in {}",
                self.format,
                8 * size_of::<C>()
            )));
        }
        let isa = match (self.encoder(), self.isa) {
            (None, _) => None,
            (Some(encoder), Some(isa)) => Some((encoder, isa)),
            (Some(encoder), None) => Some((encoder, Isa::active()?)),
        };
        Ok(match x {
            Typed::F32(x) => self.tasks(x, codes, isa, done),
            Typed::Bf16(x) => self.tasks(x, codes, isa, done),
            Typed::F16(x) => self.tasks(x, codes, isa, done),
        })
    }

    fn tasks<T: Lane, C: CodeWord>(
        &self,
        x: &[T],
        codes: &mut [C],
        isa: Option<(Encoder, Isa)>,
        done: &(dyn Fn(u64) + Sync),
    ) -> CastStats {
        let past_cache = x.len() * (size_of::<T>() + size_of::<C>()) > PAST_CACHE;
        let tasks = x.par_chunks(TASK).zip(codes.par_chunks_mut(TASK)).enumerate();
        let task = |(i, (x, codes)): (usize, (&[T], &mut [C]))| {
            let stats = match &isa {
                Some((encoder, isa)) => isa.run(CastTask { caster: self, encoder, x, codes, past_cache }),
                None => self.singly(x, codes, (i * TASK) as u64),
            };
            done(stats.elements);
            stats
        };
        tasks.map(task).reduce(CastStats::default, CastStats::join)
    }

    fn singly<T: Lane, C: CodeWord>(&self, x: &[T], codes: &mut [C], first: u64) -> CastStats {
        let mut stats = CastStats::default();
        for ((&v, code), index) in x.iter().zip(codes).zip(first..) {
            *code = C::of(self.one(v.to_f32(), index, &mut stats));
        }
        stats
    }

    /// The code of element `index`.
    pub(super) fn one(&self, v: f32, index: u64, stats: &mut CastStats) -> u64 {
        let cast = self.format.cast(Unpacked::from_f32(v), self.rounding.at(index), self.overflow);
        stats.add(cast.events, || f64::from(v), || f64::from(self.format.decode_f32(cast.code as u16)));
        cast.code
    }
}

/// The elements of little-endian bytes, in place where they lie aligned.
pub(crate) fn elements<T: Pod>(bytes: &[u8]) -> std::borrow::Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(elements) if cfg!(target_endian = "little") => elements.into(),
        _ => bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect::<Vec<T>>().into(),
    }
}
