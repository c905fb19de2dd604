//! From floats to codes and scales.

use finegrain::formats::Format;
use finegrain::quant::{Element, QuantStats};
use finegrain::scaled::{CodesSliceMut, ScaleSliceMut, ScaledMut};
use finegrain::{Engine, Granule, Recipe, Role};
use half::{bf16, f16};
use pyo3::intern;
use pyo3::prelude::*;

use crate::array::Array;
use crate::dtypes::{Dtype, Framework};
use crate::errors::{OrRaise, refuse};
use crate::operand::{Given, Operand};
use crate::quantized::Quantized;
use crate::work;

/// Where a result goes, and what kind of result that is.
struct Room<'py> {
    codes: Array<'py>,
    scales: Array<'py>,
    shape: (usize, usize),
    granule: Granule,
    recipe: Recipe,
}

impl<'py> Room<'py> {
    /// Freshly allocated, or the memory that the caller gives.
    fn new(
        py: Python<'py>,
        framework: Framework,
        recipe: Recipe,
        shape: (usize, usize),
        granule: Granule,
        into: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let (grid_rows, grid_cols) = granule.grid(shape.0, shape.1);
        let (codes_shape, grid) = ([shape.0, shape.1], [grid_rows, grid_cols]);
        let scale_format = recipe.scale_format().stored();
        let (codes, scales) = match into {
            None => (
                Array::empty(py, framework, Dtype::Of(recipe.element), &codes_shape, "codes")?,
                Array::empty(py, framework, Dtype::Of(scale_format), &grid, "scales")?,
            ),
            Some(into) => {
                let (codes, scales) = match into.cast::<Quantized>() {
                    Ok(earlier) => {
                        let earlier = earlier.get();
                        (earlier.codes.bind(py).clone(), earlier.scales.bind(py).clone())
                    }
                    Err(_) => into.extract().map_err(|_| {
                        refuse("into is to be (codes, scales), or an earlier result of the same shape and recipe")
                    })?,
                };
                let codes = Array::read(&codes, "into's codes", false)?;
                let scales = Array::read(&scales, "into's scales", false)?;
                expect(&codes, recipe.element, &codes_shape)?;
                expect(&scales, scale_format, &grid)?;
                codes.apart_from(&scales)?;
                (codes, scales)
            }
        };
        Ok(Room { codes, scales, shape, granule, recipe })
    }

    fn view(&mut self) -> PyResult<ScaledMut<'_>> {
        let codes = match self.codes.dtype().bytes() {
            1 => CodesSliceMut::Bytes(self.codes.slice_mut()?),
            _ => CodesSliceMut::Words(self.codes.slice_mut()?),
        };
        let scales = match self.recipe.scale_format().stored() {
            Format::E8M0 => ScaleSliceMut::E8M0(self.scales.slice_mut()?),
            Format::E4M3 => ScaleSliceMut::E4M3(self.scales.slice_mut()?),
            _ => ScaleSliceMut::F32(self.scales.slice_mut()?),
        };
        ScaledMut::new(self.recipe.element, codes, self.shape, scales, self.granule).or_raise()
    }

    fn filled(self, stats: QuantStats, tensor_scale: f32) -> Quantized {
        Quantized {
            codes: self.codes.into_object().unbind(),
            scales: self.scales.into_object().unbind(),
            tensor_scale,
            format: self.recipe.element,
            scale_format: self.recipe.scale_format().stored(),
            granule: self.granule,
            recipe: self.recipe,
            stats,
        }
    }
}

/// Whether memory that was given holds values of a format in a shape.
pub(crate) fn expect(array: &Array<'_>, format: Format, shape: &[usize]) -> PyResult<()> {
    if array.shape() != shape {
        let (name, found) = (array.name(), array.shape());
        return Err(refuse(format!("{name} has shape {found:?}, the result has {shape:?}")));
    }
    if array.dtype() != Dtype::Of(format) && array.dtype() != Dtype::plain(format) {
        return Err(refuse(format!(
            "{} is of another dtype than the result, which is {format}",
            array.name()
        )));
    }
    Ok(())
}

/// Reads floats, F64 rounded to F32 first.
pub(crate) fn floats<'py>(x: &Bound<'py, PyAny>, copy: bool) -> PyResult<Array<'py>> {
    let py = x.py();
    let array = Array::read(x, "x", copy)?;
    match array.dtype() {
        Dtype::Of(Format::F32 | Format::F16 | Format::Bf16) => Ok(array),
        Dtype::Of(Format::F64) => {
            let owner = array.into_object();
            let narrow = match owner.hasattr(intern!(py, "astype"))? {
                true => owner.call_method1(intern!(py, "astype"), ("float32",))?,
                false => owner.call_method0(intern!(py, "float"))?,
            };
            Array::read(&narrow, "x", copy)
        }
        Dtype::Of(format) => {
            Err(refuse(format!("x holds {format}, expected float32, float64, float16 or bfloat16")))
        }
        Dtype::Byte | Dtype::Word | Dtype::Int32 | Dtype::Int64 | Dtype::Packed => {
            Err(refuse("x holds integers or codes, expected float32, float64, float16 or bfloat16"))
        }
    }
}

/// Quantise a matrix by a recipe: value = code × scale, one scale for each granule of elements.
///
/// quantize(x, recipe, *, role, threads=None, into=None, copy=False) -> Quantized
///
/// x [M, N]: float32, bfloat16 or float16 (float64 is rounded to float32 first), numpy, PyTorch on the CPU or DLPack; its
/// last dimension contiguous, or copy=True. `recipe` is a name of `recipes()`. `role` says what the matrix is to its GEMM:
/// "activation" groups along the last dimension (1×128 for most), "weight" in the recipe's weight granule (128×128 for most),
/// "transposed" along the first; then codes [N, M] are those of the transposed matrix. `into=(codes, scales)`, or an earlier
/// result, is memory that is overwritten and returned.
///
/// Codes come as float8_e4m3fn or what the recipe's format is called in the caller's framework, as uint8 (one a byte; uint16
/// for E5M6) where it has no such dtype; scales as float32, float8_e8m0fnu or float8_e4m3fn. With "deepseek-v3"
/// s = fl(max(amax, 10⁻⁴) / 448) and code = e4m3(fl(x / s)); `finegrain recipe NAME` shows the arithmetic and the source of
/// each.
///
/// >>> import numpy as np, finegrain as fg
/// >>> x = np.linspace(-3, 3, 512, dtype=np.float32).reshape(2, 256)
/// >>> q = fg.quantize(x, "deepseek-v3", role="activation")
/// >>> q.codes.shape, q.scales.shape
/// ((2, 256), (2, 2))
/// >>> bool(abs(q.dequantize() - x).max() < 0.13)
/// True
#[pyfunction]
#[pyo3(signature = (x, recipe, *, role, threads=None, into=None, copy=false))]
pub(crate) fn quantize<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    recipe: &str,
    role: &str,
    threads: Option<usize>,
    into: Option<&Bound<'py, PyAny>>,
    copy: bool,
) -> PyResult<Quantized> {
    let recipe: Recipe = recipe.parse().or_raise()?;
    let role: Role = role.parse().or_raise()?;
    let engine = work::engine(threads)?;
    let x = floats(x, copy)?;
    let (shape, granule) = recipe.result_of(role, x.matrix_shape()?);
    let mut room = Room::new(py, x.framework(), recipe, shape, granule, into)?;
    x.apart_from(&room.codes)?;
    x.apart_from(&room.scales)?;
    let (stats, tensor_scale) = match x.dtype() {
        Dtype::Of(Format::F16) => quantize_into::<f16>(py, &engine, &x, &recipe, role, &mut room),
        Dtype::Of(Format::Bf16) => quantize_into::<bf16>(py, &engine, &x, &recipe, role, &mut room),
        _ => quantize_into::<f32>(py, &engine, &x, &recipe, role, &mut room),
    }?;
    Ok(room.filled(stats, tensor_scale))
}

fn quantize_into<T: Element>(
    py: Python<'_>,
    engine: &Engine<'_>,
    x: &Array<'_>,
    recipe: &Recipe,
    role: Role,
    room: &mut Room<'_>,
) -> PyResult<(QuantStats, f32)> {
    let (amount, x, out) = (x.len() as u64, x.rows_of::<T>()?, room.view()?);
    work::run(py, engine, amount, |engine| engine.quantize_to(x, recipe, role, out))
}

/// The transpose of a quantised matrix, grouped anew by the same recipe: what DeepSeek-V3's backward pass does with a cached
/// activation, 1×128 along channels to 128×1 along tokens (report 3.3.3).
///
/// requantize_transposed(q, *, threads=None) -> Quantized
///
/// q [M, N] is what `quantize` returned; the result is [N, M] with its granules along M. It dequantises in float32,
/// regroups and quantises. With power-of-two scales on both sides ("deepseek-v3-ue8m0") values that do not underflow stay
/// what they are.
///
/// >>> import numpy as np, finegrain as fg
/// >>> q = fg.quantize(np.ones((256, 128), np.float32), "deepseek-v3", role="activation")
/// >>> t = fg.requantize_transposed(q)
/// >>> t.codes.shape, t.scales.shape
/// ((128, 256), (128, 2))
#[pyfunction]
#[pyo3(signature = (q, *, threads=None))]
pub(crate) fn requantize_transposed<'py>(
    py: Python<'py>,
    q: &Bound<'py, Quantized>,
    threads: Option<usize>,
) -> PyResult<Quantized> {
    let given = Given {
        name: "q",
        scales_name: "q.scales",
        granule_name: "granule",
        format_name: "format",
        scale_format_name: "scale_format",
        codes: q.as_any(),
        scales: None,
        granule: None,
        format: None,
        scale_format: None,
        tensor_scale: None,
        copy: false,
    };
    let quantized = q.get();
    let engine = work::engine(threads)?;
    let operand = Operand::of_quantized(&given, quantized)?;
    let (rows, cols) = operand.shape();
    let recipe = quantized.recipe;
    let mut room = Room::new(py, operand.framework(), recipe, (cols, rows), recipe.activation, None)?;
    let x = operand.view()?;
    let out = room.view()?;
    let (stats, tensor_scale) = work::run(py, &engine, (rows * cols) as u64, |engine| {
        let result = engine.requantize_transposed(x, &recipe)?;
        out.copy_from(result.view())?;
        Ok((result.stats, result.view().tensor_scale()))
    })?;
    Ok(room.filled(stats, tensor_scale))
}
