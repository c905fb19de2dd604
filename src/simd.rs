//! Instruction sets, and what the kernels of [`finegrain_cpu`] must know of a number format.
//!
//! Lanes never interact in arithmetic: each is the scalar loop, which is why no instruction set changes a bit of a
//! result. Which one an operation runs on is found by trial when its class is first met ([`OpClass`]); `FINEGRAIN_ISA` forces
//! one by name for all, and one that the CPU lacks is an error, never a silent fallback.
//!
//! ```
//! use finegrain::simd::Isa;
//! assert!(Isa::Scalar.is_available());
//! println!("the widest here is {}", Isa::active()?);
//! # Ok::<(), finegrain::Error>(())
//! ```
#![forbid(unsafe_code)]

mod choice;

use std::time::Instant;

pub use choice::OpClass;
pub(crate) use choice::{Cpu, Path, Trial, isa_for};
pub use finegrain_cpu::simd::Isa;
pub(crate) use finegrain_cpu::simd::*;
use finegrain_cpu::tensor_core::Fields;
use rayon::prelude::*;

use crate::error::Error;
use crate::formats::{self, Format, FormatSpec, Overflow, Rounding, Unpacked};

impl From<IsaError> for Error {
    fn from(e: IsaError) -> Error {
        match &e {
            IsaError::Unknown(name) => {
                Error::unknown("instruction set", name, Isa::ALL.iter().map(|isa| isa.name()))
            }
            IsaError::Absent(_) | IsaError::Forced(_) => Error::Unsupported(e.to_string()),
        }
    }
}

/// Fraction bits of an f32.
const F32_FRACTION_BITS: u32 = 23;

/// The fields of a signed format.
const fn code_spec(spec: &FormatSpec) -> CodeSpec {
    CodeSpec {
        exponent_bits: spec.exponent_bits,
        mantissa_bits: spec.mantissa_bits,
        bias: spec.bias,
        specials: match spec.specials {
            formats::Specials::None => Specials::None,
            formats::Specials::Fnuz => Specials::Fnuz,
            _ => Specials::Above(spec.max_code() as u32),
        },
    }
}

/// The decoder of a format for GEMMs; `None` for formats that it does not know: those whose NaN is the code of −0, and
/// those of more than 8 bits but BF16.
pub(crate) fn decoder(format: Format) -> Option<Decoder> {
    if format == Format::Bf16 {
        return Some(Decoder::BF16);
    }
    let table = format.table().filter(|_| format.spec().signed())?;
    Decoder::bytes(code_spec(format.spec()), table)
}

/// The fields of a format as the emulation of tensor cores takes its codes apart, of its fraction `mantissa_bits`; `None`
/// where it does not.
pub(crate) fn fields(format: Format, mantissa_bits: u32) -> Option<Fields> {
    let spec = format.spec();
    spec.signed().then(|| Fields::new(code_spec(spec), mantissa_bits)).flatten()
}

/// The BF16 numbers of a format of at most 8 bits.
pub(crate) fn bf16_table(format: Format) -> Option<Bf16Table> {
    format.table().map(Bf16Table::new)
}

/// The decoder of a format to f32; `None` for unsigned formats and those of more than 16 bits.
pub(crate) fn widener(format: Format) -> Option<Widener> {
    let spec = format.spec();
    (spec.signed() && spec.bits() <= 16).then(|| Widener::new(code_spec(spec)))
}

/// The encoder of a format; `None` for stochastic roundings and for formats that it does not know: those without sign, of
/// more than 16 bits or with the exponent range of f32.
pub(crate) fn encoder(format: Format, rounding: Rounding, overflow: Overflow) -> Option<Encoder> {
    let spec = format.spec();
    // Whether a number beyond the range is rounded away from zero, of positive and of negative numbers.
    let (fixed, away) = match rounding {
        Rounding::NearestEven => (FixedRounding::NearestEven, [true; 2]),
        Rounding::NearestAway => (FixedRounding::NearestAway, [true; 2]),
        Rounding::TowardZero => (FixedRounding::TowardZero, [false; 2]),
        Rounding::Up => (FixedRounding::Up, [true, false]),
        Rounding::Down => (FixedRounding::Down, [false, true]),
        Rounding::Stochastic { .. } | Rounding::StochasticCoarse { .. } => return None,
    };
    if !spec.signed() || spec.bits() > 16 || spec.exponent_bits >= 8 {
        return None;
    }
    let special = match overflow {
        Overflow::NonSaturating if spec.has_infinity() => spec.encode(Unpacked::Infinite { negative: false }),
        Overflow::NonSaturating => spec.nan_code(),
        Overflow::Saturate => None,
    };
    Some(Encoder {
        largest: (spec.max_finite() as f32).to_bits(),
        limits: away.map(|away| limit(spec, rounding, away)),
        to_special: away.map(|away| away && special.is_some()),
        special: special.unwrap_or(0) as u32,
        emin: ((spec.emin() + 127) as u32) << F32_FRACTION_BITS,
        shift: F32_FRACTION_BITS - spec.mantissa_bits,
        bits: spec.bits(),
        negative_zero: spec.has_negative_zero(),
        rounding: fixed,
    })
}

/// Bits of the largest magnitude that stays within the range. On the format's grid continued beyond its range the next
/// value is one step above the largest.
fn limit(spec: &FormatSpec, rounding: Rounding, away: bool) -> u32 {
    let largest = spec.max_finite() as f32;
    let step = Unpacked::power_of_two(spec.emax() - spec.mantissa_bits as i32).to_f32();
    let below = |x: f32| x.to_bits() - 1;
    match rounding {
        Rounding::NearestEven if spec.max_code() & 1 == 0 => (largest + step / 2.0).to_bits(),
        Rounding::NearestEven | Rounding::NearestAway => below(largest + step / 2.0),
        _ if away => largest.to_bits(),
        _ => below(largest + step),
    }
}

/// The most floating-point operations a second (a multiply-add is two) that the threads of the current pool reach with
/// the instruction of the GEMM's inner loop: the best of several runs of about 10 ms.
pub fn peak_flops(isa: Isa) -> f64 {
    let threads = rayon::current_num_threads();
    best_rate(|| (0..threads).into_par_iter().with_max_len(1).map(|_| isa.run_steps(1 << 21)).sum())
}

/// The most bytes a second that the threads of the current pool read from memory: the best of several passes over
/// 64 MiB a thread.
pub fn read_bandwidth(isa: Isa) -> f64 {
    let buffers: Vec<Vec<u8>> =
        (0..rayon::current_num_threads()).map(|i| vec![i as u8 | 1; 1 << 26]).collect();
    best_rate(|| buffers.par_iter().map(|data| isa.run_loads(data)).sum())
}

/// Units of work a second, the best of several runs.
fn best_rate(work: impl Fn() -> u64) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        work() as f64 / start.elapsed().as_secs_f64()
    };
    (0..8).map(rate).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limits of the specification: E4M3 keeps 464, E5M2 less than 61440.
    #[test]
    fn limits_are_those_of_the_formats() {
        let limit = |format| encoder(format, Rounding::NearestEven, Overflow::Saturate).unwrap().limit();
        assert_eq!(f32::from_bits(limit(Format::E4M3)), 464.0);
        assert_eq!(f32::from_bits(limit(Format::E5M2)), 61440f32.next_down());
        assert_eq!(f32::from_bits(limit(Format::E2M1)), 7f32.next_down());
    }

    #[test]
    fn what_is_unknown_is_said() {
        let new = |format, rounding| encoder(format, rounding, Overflow::Saturate).is_some();
        assert!(!new(Format::E8M0, Rounding::NearestEven));
        assert!(!new(Format::Bf16, Rounding::NearestEven));
        assert!(!new(Format::E4M3, Rounding::Stochastic { random: 0, bits: 32 }));
        assert!(new(Format::F16, Rounding::Down));
    }
}
