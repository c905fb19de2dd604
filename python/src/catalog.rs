//! The names, and what they stand for.

use finegrain::Recipe;
use finegrain::formats::Format;
use finegrain::gemm::{LibraryCall, TensorCore};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The recipes by name, with where the arithmetic of each comes from.
///
/// recipes() -> dict[str, str]
///
/// >>> import finegrain as fg
/// >>> "deepseek-v3" in fg.recipes() and "nvfp4-te-1x16" in fg.recipes()
/// True
#[pyfunction]
pub(crate) fn recipes(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let names = PyDict::new(py);
    for recipe in Recipe::ALL {
        names.set_item(recipe.name.as_str(), recipe.source)?;
    }
    Ok(names)
}

/// The number formats by name, with their facts: bits, exponent_bits, mantissa_bits, bias, max, min_normal.
///
/// formats() -> dict[str, dict[str, int | float]]
///
/// >>> import finegrain as fg
/// >>> fg.formats()["e4m3"]["max"], fg.formats()["e5m2"]["mantissa_bits"]
/// (448.0, 2)
#[pyfunction]
pub(crate) fn formats(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let names = PyDict::new(py);
    for format in Format::ALL {
        let spec = format.spec();
        let facts = PyDict::new(py);
        facts.set_item("bits", spec.bits())?;
        facts.set_item("exponent_bits", spec.exponent_bits)?;
        facts.set_item("mantissa_bits", spec.mantissa_bits)?;
        facts.set_item("bias", spec.bias)?;
        facts.set_item("max", spec.max_finite())?;
        facts.set_item("min_normal", spec.min_normal())?;
        names.set_item(format.name(), facts)?;
    }
    Ok(names)
}

/// What `accumulate=` takes: models of accumulation and calls of libraries, with what they are.
///
/// models() -> dict[str, str]
///
/// >>> import finegrain as fg
/// >>> fg.models()["f32"]
/// 'fused multiply-adds in f32, to nearest even, k ascending'
/// >>> "hopper" in fg.models() and "deepgemm" in fg.models()
/// True
#[pyfunction]
pub(crate) fn models(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let names = PyDict::new(py);
    names.set_item("f32", "fused multiply-adds in f32, to nearest even, k ascending")?;
    names.set_item("exact", "the exact sum, rounded once to f32")?;
    for core in TensorCore::ALL {
        let operands: Vec<&str> = core.operands().iter().map(|f| f.name()).collect();
        let what = format!("a tensor core on {}, {} products a step", operands.join(", "), core.step());
        names.set_item(core.name(), what)?;
    }
    for call in LibraryCall::ALL {
        names.set_item(call.name(), format!("{}; {}", call.call(), call.arithmetic()))?;
    }
    Ok(names)
}
