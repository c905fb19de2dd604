//! Casts of elements without scales.

use finegrain_cpu::Stores;
use finegrain_cpu::cast::cast;
use serde::Serialize;

use super::fast::PAST_CACHE;
use super::trial;
use crate::element::{CodesMut, Element, Elements};
use crate::error::{Error, Result};
use crate::formats::{Events, Format, Overflow, TensorRounding, Unpacked};
use crate::parallel::{self, Watch};
use crate::simd::{Encoder, Isa, OpClass, Path, isa_for};

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
    /// Finite elements that became infinite or NaN: beyond the range where the overflow mode says so, and what E8M0 has no
    /// code for (zero, negative numbers).
    pub lost: u64,
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
            let (value, result) = (value(), result());
            let error = (result - value).abs();
            self.lost += u64::from(value.is_finite() && !result.is_finite());
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
            lost: self.lost + other.lost,
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

    /// The same by who is to do the work.
    pub(crate) fn on_path(self, path: Path) -> Self {
        match path {
            Path::Reference => Caster { reference: true, ..self },
            Path::Registers(isa) => Caster { isa, ..self },
        }
    }

    /// Whether a vector register rounds several elements at once, as it does for most formats unless the rounding is
    /// stochastic.
    pub fn in_registers(&self) -> bool {
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
        self.cast(T::typed(x), CodesMut::Bytes(codes), &Watch::NONE)
    }

    /// Casts to a format of 9 to 16 bits, a code a word.
    ///
    /// # Errors
    /// As [`Caster::bytes`].
    pub fn words<T: Element>(&self, x: &[T], codes: &mut [u16]) -> Result<CastStats> {
        self.cast(T::typed(x), CodesMut::Words(codes), &Watch::NONE)
    }

    /// Either; `watch` is told of elements. Not generic, so that it is compiled once and not by every caller.
    ///
    /// # Errors
    /// As [`Caster::bytes`]; [`Error::Cancelled`].
    pub(crate) fn cast(&self, x: Elements<'_>, codes: CodesMut<'_>, watch: &Watch<'_>) -> Result<CastStats> {
        if x.len() != codes.len() {
            return Err(Error::Shape(format!("{} codes are to hold {} elements", codes.len(), x.len())));
        }
        let bits = self.format.spec().bits() as usize;
        if bits.div_ceil(8).max(1) != codes.code_bytes() {
            return Err(Error::Invalid(format!(
                "{} has {bits} bits, its codes are to be stored in {}",
                self.format,
                8 * codes.code_bytes()
            )));
        }
        let registers = match (self.encoder(), self.isa) {
            (None, _) => None,
            (Some(encoder), Some(isa)) => Some((encoder, isa)),
            (Some(encoder), None) => Some((encoder, isa_for(OpClass::Cast, &trial::cast)?)),
        };
        let past_cache = x.len() * (x.kind().bytes() + codes.code_bytes()) > PAST_CACHE;
        let mut stats = vec![CastStats::default(); x.len().div_ceil(TASK)];
        let parts = codes.into_chunks(TASK).into_iter().zip(&mut stats).collect();
        parallel::for_each_part(watch, parts, &|i, (codes, stats)| {
            let first = i * TASK;
            let x = x.slice(first..first + codes.len());
            *stats = match &registers {
                Some((encoder, isa)) => self.in_one_go(encoder, &mut Stores::new(*isa, past_cache), x, codes),
                None => self.singly(x, codes, first as u64),
            };
            watch.report(stats.elements);
        })?;
        Ok(stats.into_iter().fold(CastStats::default(), CastStats::join))
    }

    /// Casts in registers.
    fn in_one_go(
        &self,
        encoder: &Encoder,
        stores: &mut Stores,
        x: Elements<'_>,
        mut codes: CodesMut<'_>,
    ) -> CastStats {
        let mut stats = CastStats::default();
        let counts = cast(stores, encoder, x, codes.slice(0..x.len()), &mut |elements, codes| {
            stats = stats.join(self.singly(x.slice(elements), codes, 0));
        });
        stats.elements = x.len() as u64;
        stats.overflowed += counts.overflowed;
        stats.flushed += counts.flushed;
        stats.inexact += counts.inexact;
        stats.max_abs_error = stats.max_abs_error.max(counts.max_abs_error);
        if self.overflow == Overflow::NonSaturating && stats.overflowed > 0 {
            stats.lost = self.lost(x, codes);
        }
        stats
    }

    /// Finite elements with a code that is not. Registers count what lies beyond the range; what becomes of it depends on
    /// its sign and the rounding.
    fn lost(&self, x: Elements<'_>, mut codes: CodesMut<'_>) -> u64 {
        let width = codes.code_bytes();
        let code = |bytes: &[u8]| match *bytes {
            [byte] => u16::from(byte),
            [a, b] => u16::from_ne_bytes([a, b]),
            _ => unreachable!("codes are bytes or words"),
        };
        let is_lost =
            |(x, bytes): &(f32, &[u8])| x.is_finite() && !self.format.decode_f32(code(bytes)).is_finite();
        x.iter().zip(codes.bytes().chunks_exact(width)).filter(is_lost).count() as u64
    }

    /// The definition, of elements from index `first` on.
    fn singly(&self, x: Elements<'_>, mut codes: CodesMut<'_>, first: u64) -> CastStats {
        let mut stats = CastStats::default();
        for (i, v) in x.iter().enumerate() {
            codes.set(i, self.one(v, first + i as u64, &mut stats));
        }
        stats
    }

    /// The code of element `index`.
    fn one(&self, v: f32, index: u64, stats: &mut CastStats) -> u64 {
        let cast = self.format.cast(Unpacked::from_f32(v), self.rounding.at(index), self.overflow);
        stats.add(cast.events, || f64::from(v), || f64::from(self.format.decode_f32(cast.code as u16)));
        cast.code
    }
}
