//! Products.

use finegrain::formats::Format;
use finegrain::gemm::Output;
use pyo3::prelude::*;

use crate::array::Array;
use crate::dtypes::{self, Dtype};
use crate::product::{Held, Operands, Promote, Words};
use crate::quantize::expect;
use crate::work;

/// What d may be stored as.
const OUTPUTS: &[(&str, Format)] = &[
    ("float32", Format::F32),
    ("bfloat16", Format::Bf16),
    ("float16", Format::F16),
    ("f32", Format::F32),
    ("bf16", Format::Bf16),
    ("f16", Format::F16),
];

/// D = A · Bᵀ (+ C) of quantised matrices, in named arithmetic: the same bits on every machine and any number of threads.
///
/// a [M, K] and b [N, K], both K-contiguous: codes of numpy (ml_dtypes), PyTorch or DLPack, uint8 or uint16 with format_a=
/// and format_b=, bfloat16 or float16 (float32 where the model reads TF32), or what `quantize` returned. Scales a_scale and
/// b_scale as `dequantize` takes them; uint8 ones with scale_format_a= and scale_format_b=. c [M, N] float32 is added
/// (float16 where the model accumulates in it). d [M, N] is of dtype `out`: float32, bfloat16 or float16, rounded once; `into`
/// is memory for it.
///
/// accumulate names how products are summed: "f32" (fused multiply-adds, k ascending), "exact", a tensor core such as
/// "hopper", "blackwell-mx" or "cdna3", a library's call such as "deepgemm" or "cublaslt-block" (`models()` lists them), or
/// all in one word such as "hopper/128/partial-first". promote is the number of elements after which a partial sum is
/// promoted to float32, None for never; by default 128 or the finest scale along K. promotion is the order in which partial
/// sum, scales and accumulator meet: scales-first (the default), partial-first, scales-last, unfused. split_k cuts K in parts
/// whose results are added: a number, or the elements where they begin. fold_scales multiplies powers of two into the operands.
/// With scales-first, acc ← fma(fl(sa · sb), partial, acc): DeepSeek-V3 report, section 3.5.2, and the contract in finegrain::gemm.
///
/// >>> import numpy as np, finegrain as fg
/// >>> rng = np.random.default_rng(0)
/// >>> x = fg.quantize(rng.standard_normal((4, 512), np.float32), "deepseek-v3", role="activation")
/// >>> w = fg.quantize(rng.standard_normal((8, 512), np.float32), "deepseek-v3", role="weight")
/// >>> d = fg.gemm(x, w, accumulate="hopper", promote=128)
/// >>> d.shape, d.dtype.name
/// ((4, 8), 'float32')
/// >>> bool((d == fg.gemm(x, w, accumulate="hopper/128", threads=2)).all())
/// True
#[pyfunction]
#[pyo3(signature = (a, b, a_scale=None, b_scale=None, c=None, accumulate="f32", promote=Promote::default(), promotion=None,
    split_k=None, out=None, granule_a=None, granule_b=None, format_a=None, format_b=None, a_tensor_scale=None,
    b_tensor_scale=None, fold_scales=false, threads=None, into=None, scale_format_a=None, scale_format_b=None, copy=false),
    text_signature = "(a, b, a_scale=None, b_scale=None, c=None, accumulate=\"f32\", promote=\"default\", promotion=None, \
    split_k=1, out=\"float32\", granule_a=None, granule_b=None, format_a=None, format_b=None, a_tensor_scale=None, \
    b_tensor_scale=None, fold_scales=False, threads=None, into=None, scale_format_a=None, scale_format_b=None, copy=False)")]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn gemm<'py>(
    py: Python<'py>,
    a: &Bound<'py, PyAny>,
    b: &Bound<'py, PyAny>,
    a_scale: Option<&Bound<'py, PyAny>>,
    b_scale: Option<&Bound<'py, PyAny>>,
    c: Option<&Bound<'py, PyAny>>,
    accumulate: &str,
    promote: Promote,
    promotion: Option<&str>,
    split_k: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
    granule_a: Option<&str>,
    granule_b: Option<&str>,
    format_a: Option<&str>,
    format_b: Option<&str>,
    a_tensor_scale: Option<f32>,
    b_tensor_scale: Option<f32>,
    fold_scales: bool,
    threads: Option<usize>,
    into: Option<&Bound<'py, PyAny>>,
    scale_format_a: Option<&str>,
    scale_format_b: Option<&str>,
    copy: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let asked = Words { accumulate, promote, promotion, split_k, fold_scales }.asked()?;
    let format = out.map_or(Ok(Format::F32), |out| dtypes::named(out, OUTPUTS))?;
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
    let addend = held.addend(asked.model())?;
    let problem = held.problem(&asked, addend.as_ref())?;
    let (m, n) = problem.output_shape();
    let mut d = match into {
        None => Array::empty(py, held.framework(), Dtype::Of(format), &[m, n], "d")?,
        Some(into) => {
            let into = Array::read(into, "into", false)?;
            expect(&into, format, &[m, n])?;
            held.apart_from(&into)?;
            into
        }
    };
    let output = match format {
        Format::Bf16 => Output::Bf16(d.rows_mut()?),
        Format::F16 => Output::F16(d.rows_mut()?),
        _ => Output::F32(d.rows_mut()?),
    };
    let amount = (m as u64).saturating_mul(n as u64).saturating_mul(problem.k() as u64);
    work::run(py, &engine, amount, |engine| engine.gemm_into(&problem, output))?;
    Ok(d.into_object())
}
