//! From codes and scales to floats.

use bytemuck::Pod;
use finegrain::Engine;
use finegrain::element::Output;
use finegrain::formats::Format;
use finegrain::scaled::ScaledRef;
use half::bf16;
use pyo3::prelude::*;

use crate::array::Array;
use crate::dtypes::{self, Dtype};
use crate::operand::{Given, Operand};
use crate::quantize::expect;
use crate::work;

/// What values may be written as.
const VALUES: &[(&str, Format)] =
    &[("float32", Format::F32), ("bfloat16", Format::Bf16), ("f32", Format::F32), ("bf16", Format::Bf16)];

/// Turn codes with scales into floats: fl(code · scale) in float32, times the tensor scale where there is one; for
/// dtype="bfloat16" rounded to nearest even after that.
///
/// dequantize(codes, scales=None, *, granule=None, format=None, tensor_scale=None, dtype="float32", scale_format=None,
/// threads=None, into=None, copy=False) -> array
///
/// codes [M, N]: an 8-, 6- or 4-bit float of numpy with ml_dtypes or of PyTorch (two codes a byte in float4_e2m1fn_x2, which
/// are unpacked into a copy), bfloat16, float16, or uint8 and uint16 with format="e4m3" …; or what `quantize` returned.
/// Scales whose shape says the granule ([] or [1] tensor, [M] or [M, 1] row, [M, ⌈N/128⌉] tile, [⌈M/128⌉, ⌈N/128⌉] block,
/// 1×32, 1×16), or granule="RxC"; float32, float8_e8m0fnu, float8_e4m3fn, or uint8 with scale_format="e8m0" or "e4m3".
///
/// >>> import numpy as np, finegrain as fg
/// >>> codes = np.full((1, 256), 0x38, np.uint8)  # 1.0 in E4M3
/// >>> values = fg.dequantize(codes, np.array([[0.5, 2]], np.float32), format="e4m3")
/// >>> values[0, [0, 255]].tolist()
/// [0.5, 2.0]
#[pyfunction]
#[pyo3(signature = (codes, scales=None, *, granule=None, format=None, tensor_scale=None, dtype=None, scale_format=None,
    threads=None, into=None, copy=false),
    text_signature = "(codes, scales=None, *, granule=None, format=None, tensor_scale=None, dtype=\"float32\", \
    scale_format=None, threads=None, into=None, copy=False)")]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn dequantize<'py>(
    py: Python<'py>,
    codes: &Bound<'py, PyAny>,
    scales: Option<&Bound<'py, PyAny>>,
    granule: Option<&str>,
    format: Option<&str>,
    tensor_scale: Option<f32>,
    dtype: Option<&Bound<'py, PyAny>>,
    scale_format: Option<&str>,
    threads: Option<usize>,
    into: Option<&Bound<'py, PyAny>>,
    copy: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let target = dtype.map_or(Ok(Format::F32), |dtype| dtypes::named(dtype, VALUES))?;
    let engine = work::engine(threads)?;
    let operand = Operand::read(&Given {
        name: "codes",
        scales_name: "scales",
        granule_name: "granule",
        format_name: "format",
        scale_format_name: "scale_format",
        codes,
        scales,
        granule,
        format,
        scale_format,
        tensor_scale,
        copy,
    })?;
    let (rows, cols) = operand.shape();
    let mut out = match into {
        None => Array::empty(py, operand.framework(), Dtype::Of(target), &[rows, cols], "values")?,
        Some(into) => {
            let into = Array::read(into, "into", false)?;
            expect(&into, target, &[rows, cols])?;
            operand.apart_from(&into)?;
            into
        }
    };
    let x = operand.view()?;
    match target {
        Format::Bf16 => write::<bf16>(py, &engine, x, &mut out)?,
        _ => write::<f32>(py, &engine, x, &mut out)?,
    }
    Ok(out.into_object())
}

fn write<T: Output + Pod>(
    py: Python<'_>,
    engine: &Engine<'_>,
    x: ScaledRef<'_>,
    out: &mut Array<'_>,
) -> PyResult<()> {
    let (amount, out) = (out.len() as u64, out.rows_mut::<T>()?);
    work::run(py, engine, amount, |engine| engine.dequantize_into(x, out))
}
