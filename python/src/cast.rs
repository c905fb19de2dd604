//! Element by element, without scales.

use bytemuck::Pod;
use finegrain::Engine;
use finegrain::checkpoint::{CastOptions, CastRounding, Dtype as Stored, Tensor, cast_tensor};
use finegrain::formats::{Format, Overflow, Rounding, TensorRounding};
use finegrain::quant::{Caster, Element};
use half::{bf16, f16};
use pyo3::prelude::*;

use crate::array::Array;
use crate::dtypes::Dtype;
use crate::errors::{OrRaise, refuse};
use crate::quantize::expect;
use crate::work;

/// The roundings by name, but the two that are no rounding of a single value.
const ROUNDINGS: &[(&str, Rounding)] = &[
    ("nearest-even", Rounding::NearestEven),
    ("toward-zero", Rounding::TowardZero),
    ("up", Rounding::Up),
    ("down", Rounding::Down),
    ("nearest-away", Rounding::NearestAway),
];

fn rounding(name: &str, seed: Option<u64>) -> PyResult<CastRounding> {
    if seed.is_some() && name != "stochastic" {
        return Err(refuse(format!("seed is for round=\"stochastic\", not for \"{name}\"")));
    }
    match name {
        "stochastic" => Ok(CastRounding::Tensor(TensorRounding::Stochastic { seed: seed.unwrap_or(0) })),
        "tilekernels" => Ok(CastRounding::TileKernels),
        _ => match ROUNDINGS.iter().find(|(known, _)| *known == name) {
            Some((_, rounding)) => Ok(CastRounding::Tensor(TensorRounding::Fixed(*rounding))),
            None => {
                let known = ROUNDINGS.iter().map(|(known, _)| *known).chain(["stochastic", "tilekernels"]);
                Err(finegrain::Error::unknown("rounding", name, known)).or_raise()
            }
        },
    }
}

/// Cast every element to a format, each rounded once, without scales.
///
/// cast(x, format, *, round="nearest-even", overflow="saturate", seed=None, threads=None, into=None, copy=False) -> array
///
/// x: float32, bfloat16, float16 or float64 of any shape, contiguous, or copy=True. `round` is nearest-even, toward-zero, up,
/// down, nearest-away, stochastic (32 random bits for element i from SplitMix64 at position i of the sequence that starts at
/// `seed`, 0 by default) or tilekernels (DeepSeek's rule for e5m6). `overflow` is saturate (overflow and infinity become
/// the largest finite value) or nonsaturating (infinity, or NaN where the format has none). The codes have x's shape and the
/// dtype of the format in x's framework, uint8 or uint16 where it has none.
///
/// >>> import numpy as np, finegrain as fg
/// >>> fg.cast(np.array([1, -0.3, 1e9], np.float32), "e4m3").view(np.uint8).tolist()
/// [56, 170, 126]
#[pyfunction]
#[pyo3(signature = (x, format, *, round="nearest-even", overflow="saturate", seed=None, threads=None, into=None,
    copy=false))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn cast<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    format: &str,
    round: &str,
    overflow: &str,
    seed: Option<u64>,
    threads: Option<usize>,
    into: Option<&Bound<'py, PyAny>>,
    copy: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let format: Format = format.parse().or_raise()?;
    let overflow: Overflow = overflow.parse().or_raise()?;
    let options = CastOptions::new(format, rounding(round, seed)?, overflow).or_raise()?;
    if format.spec().bits() > 16 {
        return Err(refuse(format!("format {format}: expected one of at most 16 bits")));
    }
    let engine = work::engine(threads)?;
    let x = Array::read(x, "x", copy)?.gapless(copy)?;
    let mut out = match into {
        None => Array::empty(py, x.framework(), Dtype::Of(format), x.shape(), "codes")?,
        Some(into) => {
            let into = Array::read(into, "into", false)?;
            expect(&into, format, x.shape())?;
            x.apart_from(&into)?;
            into
        }
    };
    let caster = match rounding(round, seed)? {
        CastRounding::Tensor(rounding) => Some(Caster::new(format, rounding, overflow)),
        CastRounding::TileKernels => None,
    };
    match (x.dtype(), caster) {
        (Dtype::Of(Format::F32), Some(caster)) => write::<f32>(py, &engine, &caster, &x, &mut out),
        (Dtype::Of(Format::F16), Some(caster)) => write::<f16>(py, &engine, &caster, &x, &mut out),
        (Dtype::Of(Format::Bf16), Some(caster)) => write::<bf16>(py, &engine, &caster, &x, &mut out),
        (Dtype::Of(Format::F64), Some(_)) if round == "stochastic" => Err(refuse(
            "x is float64, and stochastic rounding is defined on float32 and narrower: convert it first",
        )),
        (Dtype::Of(Format::F64), _) => singly::<f64>(py, &engine, Stored::F64, &options, &x, &mut out),
        (Dtype::Of(Format::F32), None) => singly::<f32>(py, &engine, Stored::F32, &options, &x, &mut out),
        (Dtype::Of(Format::F16), None) => singly::<f16>(py, &engine, Stored::F16, &options, &x, &mut out),
        (Dtype::Of(Format::Bf16), None) => singly::<bf16>(py, &engine, Stored::BF16, &options, &x, &mut out),
        (Dtype::Of(of), _) => {
            Err(refuse(format!("x holds {of}, expected float32, float64, float16 or bfloat16")))
        }
        (Dtype::Byte | Dtype::Word | Dtype::Int32 | Dtype::Int64 | Dtype::Packed, _) => {
            Err(refuse("x holds integers or codes, expected float32, float64, float16 or bfloat16"))
        }
    }?;
    Ok(out.into_object())
}

fn write<T: Element>(
    py: Python<'_>,
    engine: &Engine<'_>,
    caster: &Caster,
    x: &Array<'_>,
    out: &mut Array<'_>,
) -> PyResult<()> {
    let (amount, x) = (x.len() as u64, x.slice::<T>()?);
    match out.dtype().bytes() {
        1 => {
            let out = out.slice_mut()?;
            work::run(py, engine, amount, |engine| engine.cast_bytes(caster, x, out))?;
        }
        _ => {
            let out = out.slice_mut()?;
            work::run(py, engine, amount, |engine| engine.cast_words(caster, x, out))?;
        }
    }
    Ok(())
}

/// What no kernel casts, by the definition.
fn singly<T: Pod + Sync>(
    py: Python<'_>,
    engine: &Engine<'_>,
    dtype: Stored,
    options: &CastOptions,
    x: &Array<'_>,
    out: &mut Array<'_>,
) -> PyResult<()> {
    let (amount, shape, x) = (x.len() as u64, x.shape().to_vec(), x.slice::<T>()?);
    let cast = |engine: &Engine<'_>| {
        let tensor = Tensor::new(dtype, shape, bytemuck::cast_slice(x).to_vec())?;
        engine.install(|| cast_tensor(&tensor, "x", options, &|_| ()))
    };
    let (codes, _) = work::run(py, engine, amount, cast)?;
    match out.dtype().bytes() {
        1 => out.slice_mut::<u8>()?.copy_from_slice(codes.data()),
        _ => bytemuck::cast_slice_mut(out.slice_mut::<u16>()?).copy_from_slice(codes.data()),
    }
    Ok(())
}
