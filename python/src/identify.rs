//! Which named arithmetic, and which recipe, gave a result.

use finegrain::accuracy::identify as library;
use finegrain::accuracy::identify::{
    Computed, Difference, Differences, Element, Extent, Identification, Match as Found,
};
use finegrain::formats::Format;
use finegrain::matrix::Matrix;
use half::{bf16, f16};
use pyo3::exceptions::PyAssertionError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::Array;
use crate::dtypes::Dtype;
use crate::errors::refuse;
use crate::operand::{Given, Operand};
use crate::product::{Held, Operands, Promote, Words, options};
use crate::quantize::floats;
use crate::work;

/// An arithmetic, and how many elements of a result it does not give.
///
/// `options` are keyword arguments of `gemm` that name it. `differ` of `of` elements differ, by at most `max_ulps` units of
/// the last place.
#[pyclass(frozen, module = "finegrain")]
pub(crate) struct Match {
    found: Found,
}

#[pymethods]
impl Match {
    /// Keyword arguments of `gemm` that name the arithmetic.
    #[getter]
    fn options<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        options(py, self.found.accumulation)
    }

    /// The arithmetic in one word, such as "hopper/128/partial-first".
    #[getter]
    fn accumulation(&self) -> String {
        self.found.accumulation.to_string()
    }

    /// Elements whose bits differ.
    #[getter]
    fn differ(&self) -> usize {
        self.found.differ
    }

    /// Elements that were compared.
    #[getter]
    fn of(&self) -> usize {
        self.found.of
    }

    /// The largest distance, in units of the last place.
    #[getter]
    fn max_ulps(&self) -> u32 {
        self.found.max_ulps
    }

    fn __repr__(&self) -> String {
        let Found { accumulation, differ, of, .. } = self.found;
        format!("Match({accumulation}, {differ} of {of} differ)")
    }
}

/// A recipe, and how many codes and scales it does not give.
#[pyclass(frozen, module = "finegrain")]
pub(crate) struct RecipeMatch {
    found: library::RecipeMatch,
}

#[pymethods]
impl RecipeMatch {
    /// The recipe.
    #[getter]
    fn recipe(&self) -> String {
        self.found.recipe.to_string()
    }

    /// The roles in which it groups the source as the codes are grouped.
    #[getter]
    fn roles(&self) -> Vec<&'static str> {
        self.found.roles.iter().map(|role| role.name()).collect()
    }

    /// Codes and scales that differ.
    #[getter]
    fn differ(&self) -> u64 {
        self.found.differences.codes + self.found.differences.scales
    }

    /// Codes and scales that were compared.
    #[getter]
    fn of(&self) -> u64 {
        self.found.elements + self.found.granules
    }

    fn __repr__(&self) -> String {
        format!("RecipeMatch({}, {} of {} differ)", self.found.recipe, self.differ(), self.of())
    }
}

/// A result of any of the three formats.
fn computed<'a>(d: &'a Array<'_>) -> PyResult<Computed<'a>> {
    d.matrix_shape()?;
    match d.dtype() {
        Dtype::Of(Format::F32) => Ok(Computed::F32(d.rows_of()?)),
        Dtype::Of(Format::Bf16) => Ok(Computed::Bf16(d.rows_of::<bf16>()?)),
        Dtype::Of(Format::F16) => Ok(Computed::F16(d.rows_of::<f16>()?)),
        _ => Err(refuse("d is to be float32, bfloat16 or float16")),
    }
}

fn extent(all: bool) -> Extent {
    if all { Extent::All } else { Extent::Sampled }
}

/// Which named arithmetic gave d, bit for bit, from its operands: the exact ones, simplest first, else the nearest.
///
/// d [M, N]: float32, bfloat16 or float16, what a GPU, a library or a kernel computed. The other arguments are those of
/// `gemm`. Beyond 10¹¹ multiply-adds a sample is compared, unless all=True.
///
/// >>> import numpy as np, finegrain as fg
/// >>> rng = np.random.default_rng(0)
/// >>> a = fg.quantize(rng.standard_normal((8, 512), np.float32), "deepseek-v3", role="activation")
/// >>> b = fg.quantize(rng.standard_normal((16, 512), np.float32), "deepseek-v3", role="weight")
/// >>> d = fg.gemm(a, b, accumulate="hopper", promote=128)
/// >>> fg.identify(d, a, b)[0].options
/// {'accumulate': 'hopper', 'promote': 128}
#[pyfunction]
#[pyo3(signature = (d, a, b, a_scale=None, b_scale=None, c=None, granule_a=None, granule_b=None, format_a=None, format_b=None,
    a_tensor_scale=None, b_tensor_scale=None, threads=None, scale_format_a=None, scale_format_b=None, copy=false, all=false))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn identify<'py>(
    py: Python<'py>,
    d: &Bound<'py, PyAny>,
    a: &Bound<'py, PyAny>,
    b: &Bound<'py, PyAny>,
    a_scale: Option<&Bound<'py, PyAny>>,
    b_scale: Option<&Bound<'py, PyAny>>,
    c: Option<&Bound<'py, PyAny>>,
    granule_a: Option<&str>,
    granule_b: Option<&str>,
    format_a: Option<&str>,
    format_b: Option<&str>,
    a_tensor_scale: Option<f32>,
    b_tensor_scale: Option<f32>,
    threads: Option<usize>,
    scale_format_a: Option<&str>,
    scale_format_b: Option<&str>,
    copy: bool,
    all: bool,
) -> PyResult<Vec<Match>> {
    let engine = work::engine(threads)?;
    let held = Held::read(&Operands {
        a,
        b,
        a_scale,
        b_scale,
        c,
        granule_a,
        granule_b,
        format_a,
        format_b,
        scale_format_a,
        scale_format_b,
        a_tensor_scale,
        b_tensor_scale,
        copy,
    })?;
    let d = Array::read(d, "d", copy)?;
    let found = search(py, &engine, &held, &d, all)?;
    Ok(found.matches.into_iter().map(|found| Match { found }).collect())
}

fn search(
    py: Python<'_>,
    engine: &finegrain::Engine<'_>,
    held: &Held<'_>,
    d: &Array<'_>,
    all: bool,
) -> PyResult<Identification> {
    let d = computed(d)?;
    let addend = held.any_addend()?;
    let problem = held.plain(addend.as_ref())?;
    // Long, whatever the size: many arithmetics are tried.
    work::run(py, engine, u64::MAX, |engine| library::identify(&problem, d, extent(all), engine))
}

/// Which recipe gave codes and scales from x, in any role: the exact ones, else the nearest.
///
/// identify_recipe(x, codes, scales=None, *, granule=None, format=None, tensor_scale=None, scale_format=None, threads=None,
/// copy=False, all=False) -> list[RecipeMatch]
///
/// x [M, N]: float32, bfloat16 or float16, the source. codes and scales as `dequantize` takes them, or what `quantize`
/// returned; the codes of x or of its transpose.
///
/// >>> import numpy as np, finegrain as fg
/// >>> x = np.random.default_rng(0).standard_normal((64, 256), np.float32)
/// >>> q = fg.quantize(x, "te", role="activation")
/// >>> "te" in [m.recipe for m in fg.identify_recipe(x, q.codes, q.scales)]
/// True
#[pyfunction]
#[pyo3(signature = (x, codes, scales=None, *, granule=None, format=None, tensor_scale=None, scale_format=None, threads=None,
    copy=false, all=false))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn identify_recipe<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    codes: &Bound<'py, PyAny>,
    scales: Option<&Bound<'py, PyAny>>,
    granule: Option<&str>,
    format: Option<&str>,
    tensor_scale: Option<f32>,
    scale_format: Option<&str>,
    threads: Option<usize>,
    copy: bool,
    all: bool,
) -> PyResult<Vec<RecipeMatch>> {
    let engine = work::engine(threads)?;
    let x = floats(x, copy)?;
    x.matrix_shape()?;
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
    let (given, extent) = (operand.view()?, extent(all));
    let found = match x.dtype() {
        Dtype::Of(Format::F16) => {
            let x = x.rows_of::<f16>()?;
            work::run(py, &engine, u64::MAX, |engine| library::identify_recipe(x, given, extent, engine))
        }
        Dtype::Of(Format::Bf16) => {
            let x = x.rows_of::<bf16>()?;
            work::run(py, &engine, u64::MAX, |engine| library::identify_recipe(x, given, extent, engine))
        }
        _ => {
            let x = x.rows_of::<f32>()?;
            work::run(py, &engine, u64::MAX, |engine| library::identify_recipe(x, given, extent, engine))
        }
    }?;
    Ok(found.best().iter().map(|found| RecipeMatch { found: found.clone() }).collect())
}

/// Fail unless d has every bit of the product of its operands in a named arithmetic; NaN of any payload is NaN.
///
/// d [M, N]: float32, bfloat16 or float16. The other arguments are those of `gemm`, but out, which d's dtype says, and into.
/// The AssertionError says how many elements differ, where, the first ones with both bit patterns and their distance, and
/// what `identify` finds instead.
///
/// >>> import numpy as np, finegrain as fg
/// >>> from finegrain.testing import assert_same_bits
/// >>> x = fg.quantize(np.ones((4, 256), np.float32), "deepseek-v3", role="activation")
/// >>> assert_same_bits(fg.gemm(x, x), x, x, accumulate="hopper", promote=128)
/// >>> assert_same_bits(2 * fg.gemm(x, x), x, x)  # doctest: +ELLIPSIS
/// Traceback (most recent call last):
///     ...
/// AssertionError: 16 of 16 elements of d differ from f32/128, ...
#[pyfunction]
#[pyo3(signature = (d, a, b, a_scale=None, b_scale=None, c=None, accumulate="f32", promote=Promote::default(), promotion=None,
    split_k=None, granule_a=None, granule_b=None, format_a=None, format_b=None, a_tensor_scale=None, b_tensor_scale=None,
    fold_scales=false, threads=None, scale_format_a=None, scale_format_b=None, copy=false),
    text_signature = "(d, a, b, a_scale=None, b_scale=None, c=None, accumulate=\"f32\", promote=\"default\", promotion=None, \
    split_k=1, granule_a=None, granule_b=None, format_a=None, format_b=None, a_tensor_scale=None, b_tensor_scale=None, \
    fold_scales=False, threads=None, scale_format_a=None, scale_format_b=None, copy=False)")]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn assert_same_bits<'py>(
    py: Python<'py>,
    d: &Bound<'py, PyAny>,
    a: &Bound<'py, PyAny>,
    b: &Bound<'py, PyAny>,
    a_scale: Option<&Bound<'py, PyAny>>,
    b_scale: Option<&Bound<'py, PyAny>>,
    c: Option<&Bound<'py, PyAny>>,
    accumulate: &str,
    promote: Promote,
    promotion: Option<&str>,
    split_k: Option<&Bound<'py, PyAny>>,
    granule_a: Option<&str>,
    granule_b: Option<&str>,
    format_a: Option<&str>,
    format_b: Option<&str>,
    a_tensor_scale: Option<f32>,
    b_tensor_scale: Option<f32>,
    fold_scales: bool,
    threads: Option<usize>,
    scale_format_a: Option<&str>,
    scale_format_b: Option<&str>,
    copy: bool,
) -> PyResult<()> {
    let asked = Words { accumulate, promote, promotion, split_k, fold_scales }.asked()?;
    let engine = work::engine(threads)?;
    let held = Held::read(&Operands {
        a,
        b,
        a_scale,
        b_scale,
        c,
        granule_a,
        granule_b,
        format_a,
        format_b,
        scale_format_a,
        scale_format_b,
        a_tensor_scale,
        b_tensor_scale,
        copy,
    })?;
    let d = Array::read(d, "d", copy)?;
    let given = computed(&d)?;
    let addend = held.addend(asked.model())?;
    let problem = held.problem(&asked, addend.as_ref())?;
    let (m, n) = problem.output_shape();
    let amount = (m as u64).saturating_mul(n as u64).saturating_mul(problem.k() as u64);
    let found = work::run(py, &engine, amount, |engine| {
        let expected: Matrix<f32> = engine.gemm(&problem)?;
        library::difference(given, expected.view())
    })?;
    if found.differ == 0 {
        return Ok(());
    }
    let instead = match search(py, &engine, &held, &d, false) {
        Ok(instead) => instead_of(&instead),
        Err(e) => format!("identify: {}", e.value(py)),
    };
    let wanted = problem.accumulation().to_string();
    Err(PyAssertionError::new_err(format!("{}\n{instead}", describe(&found, &wanted, &given))))
}

/// How many elements differ, where, and the first of them.
fn describe(found: &Difference, wanted: &str, d: &Computed<'_>) -> String {
    let Difference { differ, of, max_ulps, places } = found;
    let Differences { rows, cols, tiles, first } = places;
    let mut text = format!(
        "{differ} of {of} elements of d differ from {wanted}, by at most {max_ulps} units of the last place, in {} of {} \
         rows, {} of {} columns, {} of {} tiles of 128x128; the first:",
        rows[0], rows[1], cols[0], cols[1], tiles[0], tiles[1]
    );
    let bits = |x: f32| match d {
        Computed::F32(_) => format!("{:08X}", x.to_bits()),
        Computed::Bf16(_) => format!("{:04X}", bf16::from_f32(x).to_bits()),
        Computed::F16(_) => format!("{:04X}", f16::from_f32(x).to_bits()),
    };
    for Element { row, col, given, expected, ulps } in first {
        text += &format!(
            "\n  d[{row}, {col}] = {given:e} ({}), expected {expected:e} ({}), {ulps} apart",
            bits(*given),
            bits(*expected)
        );
    }
    text
}

/// What `identify` finds.
fn instead_of(found: &Identification) -> String {
    let Some(best) = found.matches.first() else { return "no arithmetic takes these operands".to_owned() };
    let mut text = match found.is_exact() {
        true => format!("every bit of d is {}", best.accumulation),
        false => format!(
            "none of {} arithmetics gives every bit; the nearest is {}, with {} of {} elements apart",
            found.tried, best.accumulation, best.differ, best.of
        ),
    };
    found.hints.iter().for_each(|hint| text += &format!("\n{hint}"));
    text
}
