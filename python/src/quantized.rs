//! What `quantize` returns.

use finegrain::formats::Format;
use finegrain::quant::QuantStats;
use finegrain::{Granule, Recipe};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::dequantize;

/// Codes and scales, and all that is to be known of them. value = code × scale, times the tensor scale.
///
/// It unpacks into its arrays, and `gemm`, `identify` and `requantize_transposed` take it as a whole:
///
/// >>> import numpy as np, finegrain as fg
/// >>> q = fg.quantize(np.ones((4, 256), np.float32), "deepseek-v3", role="activation")
/// >>> codes, scales = q
/// >>> codes.shape, scales.shape, q.granule, q.format
/// ((4, 256), (4, 2), '1x128', 'e4m3')
/// >>> q.stats["saturated"], q.tensor_scale
/// (0, 1.0)
#[pyclass(frozen, module = "finegrain")]
pub(crate) struct Quantized {
    /// The codes, in the caller's framework.
    #[pyo3(get)]
    pub(crate) codes: Py<PyAny>,
    /// The scales, one a granule.
    #[pyo3(get)]
    pub(crate) scales: Py<PyAny>,
    /// The second-level scale of NVFP4; 1 elsewhere.
    #[pyo3(get)]
    pub(crate) tensor_scale: f32,
    pub(crate) format: Format,
    pub(crate) scale_format: Format,
    pub(crate) granule: Granule,
    pub(crate) recipe: Recipe,
    pub(crate) stats: QuantStats,
}

#[pymethods]
impl Quantized {
    /// The format of the codes: "e4m3", "e5m2", "e2m1" …
    #[getter]
    fn format(&self) -> &'static str {
        self.format.name()
    }

    /// The format of the scales: "f32", "e8m0" or "e4m3".
    #[getter]
    fn scale_format(&self) -> &'static str {
        self.scale_format.name()
    }

    /// The elements that share a scale: "1x128", "128x128", "row", "tensor" …
    #[getter]
    fn granule(&self) -> String {
        self.granule.to_string()
    }

    /// The recipe that it was quantised by.
    #[getter]
    fn recipe(&self) -> String {
        self.recipe.to_string()
    }

    /// Counts of what happened: elements, nan, infinite, saturated, flushed, lost, granules, zero_granules,
    /// floored_granules, nonfinite_granules.
    #[getter]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let QuantStats {
            elements,
            nan,
            infinite,
            saturated,
            flushed,
            lost,
            granules,
            zero_granules,
            floored_granules,
            nonfinite_granules,
        } = self.stats;
        let counts = PyDict::new(py);
        for (name, count) in [
            ("elements", elements),
            ("nan", nan),
            ("infinite", infinite),
            ("saturated", saturated),
            ("flushed", flushed),
            ("lost", lost),
            ("granules", granules),
            ("zero_granules", zero_granules),
            ("floored_granules", floored_granules),
            ("nonfinite_granules", nonfinite_granules),
        ] {
            counts.set_item(name, count)?;
        }
        Ok(counts)
    }

    /// The values: fl(code · scale) in float32, times the tensor scale; for dtype="bfloat16" rounded to nearest even after
    /// that. `into` is memory for the result, of that dtype.
    ///
    /// >>> import numpy as np, finegrain as fg
    /// >>> q = fg.quantize(np.full((1, 128), 448, np.float32), "deepseek-v3", role="activation")
    /// >>> float(q.dequantize()[0, 5])
    /// 448.0
    #[pyo3(signature = (dtype=None, threads=None, into=None),
        text_signature = "($self, dtype=\"float32\", threads=None, into=None)")]
    fn dequantize<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<&Bound<'py, PyAny>>,
        threads: Option<usize>,
        into: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        dequantize::dequantize(
            slf.py(),
            slf.as_any(),
            None,
            None,
            None,
            None,
            dtype,
            None,
            threads,
            into,
            false,
        )
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyTuple::new(py, [self.codes.bind(py), self.scales.bind(py)])?.try_iter()?.into_any())
    }

    fn __repr__(&self) -> String {
        let QuantStats { elements, granules, .. } = self.stats;
        format!(
            "Quantized({elements} elements by {} as {} in {}, {granules} {} scales)",
            self.recipe, self.format, self.granule, self.scale_format
        )
    }
}
