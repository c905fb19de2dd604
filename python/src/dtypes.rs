//! The types of elements, and what each framework calls them.

use std::sync::{Mutex, PoisonError};

use finegrain::formats::Format;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::errors::refuse;

/// What an element of an array is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    /// A number or code of a format, one in its own byte, word or double word.
    Of(Format),
    /// Codes of any format of at most 8 bits, or scales of one byte.
    Byte,
    /// Codes of any format of 9 to 16 bits.
    Word,
    /// Integers.
    Int32,
    /// Integers.
    Int64,
    /// Two E2M1 codes a byte, the low half first.
    Packed,
}

impl Dtype {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Dtype::Of(format) => format.spec().bits().div_ceil(u8::BITS) as usize,
            Dtype::Byte | Dtype::Packed => 1,
            Dtype::Word => 2,
            Dtype::Int32 => 4,
            Dtype::Int64 => 8,
        }
    }

    /// The type that codes of a format have where a framework has none for the format.
    pub(crate) fn plain(format: Format) -> Dtype {
        match format.spec().bits() {
            ..=8 => Dtype::Byte,
            9..=16 => Dtype::Word,
            _ => Dtype::Of(format),
        }
    }
}

/// (type, its name in numpy and ml_dtypes, in PyTorch); an empty name where there is none.
const NAMES: &[(Dtype, &str, &str)] = &[
    (Dtype::Of(Format::F32), "float32", "float32"),
    (Dtype::Of(Format::F16), "float16", "float16"),
    (Dtype::Of(Format::F64), "float64", "float64"),
    (Dtype::Byte, "uint8", "uint8"),
    (Dtype::Word, "uint16", "uint16"),
    (Dtype::Int32, "int32", "int32"),
    (Dtype::Int64, "int64", "int64"),
    (Dtype::Of(Format::Bf16), "bfloat16", "bfloat16"),
    (Dtype::Of(Format::E4M3), "float8_e4m3fn", "float8_e4m3fn"),
    (Dtype::Of(Format::E5M2), "float8_e5m2", "float8_e5m2"),
    (Dtype::Of(Format::E4M3Fnuz), "float8_e4m3fnuz", "float8_e4m3fnuz"),
    (Dtype::Of(Format::E5M2Fnuz), "float8_e5m2fnuz", "float8_e5m2fnuz"),
    (Dtype::Of(Format::E8M0), "float8_e8m0fnu", "float8_e8m0fnu"),
    (Dtype::Of(Format::E3M2), "float6_e3m2fn", ""),
    (Dtype::Of(Format::E2M3), "float6_e2m3fn", ""),
    (Dtype::Of(Format::E2M1), "float4_e2m1fn", ""),
    (Dtype::Packed, "", "float4_e2m1fn_x2"),
];

/// From here on numpy's names are those of ml_dtypes.
const BUILT_IN: usize = 7;

/// Whose an array is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framework {
    /// numpy, with ml_dtypes where that is installed; also for what comes by DLPack.
    Numpy,
    /// PyTorch.
    Torch,
}

/// A framework's types and functions, looked up once.
pub(crate) struct Known {
    /// The class of its arrays.
    pub(crate) class: Py<PyAny>,
    /// Its function that allocates.
    pub(crate) empty: Py<PyAny>,
    /// Its types: objects that live as long as the process.
    dtypes: Mutex<Vec<(Py<PyAny>, Dtype)>>,
}

impl Framework {
    /// What is known of it. PyTorch is looked at only once somebody else has imported it.
    pub(crate) fn known(self, py: Python<'_>) -> PyResult<Option<&'static Known>> {
        static NUMPY: PyOnceLock<Known> = PyOnceLock::new();
        static TORCH: PyOnceLock<Known> = PyOnceLock::new();
        match self {
            Framework::Numpy => NUMPY.get_or_try_init(py, || numpy(py)).map(Some),
            Framework::Torch => match TORCH.get(py) {
                Some(known) => Ok(Some(known)),
                None => {
                    let modules = py.import(intern!(py, "sys"))?.getattr(intern!(py, "modules"))?;
                    let loaded = modules.call_method1(intern!(py, "get"), (intern!(py, "torch"),))?;
                    // While PyTorch is importing itself there are no tensors yet.
                    if loaded.is_none() || !loaded.hasattr(intern!(py, "Tensor"))? {
                        return Ok(None);
                    }
                    TORCH.get_or_try_init(py, || torch(&loaded)).map(Some)
                }
            },
        }
    }

    /// The same, where arrays of it are at hand.
    pub(crate) fn at_hand(self, py: Python<'_>) -> PyResult<&'static Known> {
        self.known(py)?.ok_or_else(|| refuse("torch is not imported"))
    }
}

fn numpy(py: Python<'_>) -> PyResult<Known> {
    let numpy = py.import(intern!(py, "numpy"))?;
    let dtype = numpy.getattr(intern!(py, "dtype"))?;
    let mut dtypes = Vec::new();
    for (kind, name, _) in &NAMES[..BUILT_IN] {
        dtypes.push((dtype.call1((*name,))?.unbind(), *kind));
    }
    if let Ok(ml_dtypes) = py.import(intern!(py, "ml_dtypes")) {
        for (kind, name, _) in &NAMES[BUILT_IN..] {
            // Older versions have fewer.
            if let Ok(scalar) = ml_dtypes.getattr(*name) {
                dtypes.push((dtype.call1((scalar,))?.unbind(), *kind));
            }
        }
    }
    Ok(Known {
        class: numpy.getattr(intern!(py, "ndarray"))?.unbind(),
        empty: numpy.getattr(intern!(py, "empty"))?.unbind(),
        dtypes: Mutex::new(dtypes),
    })
}

fn torch(torch: &Bound<'_, PyAny>) -> PyResult<Known> {
    let found = NAMES.iter().filter_map(|(kind, _, name)| Some((torch.getattr(*name).ok()?.unbind(), *kind)));
    Ok(Known {
        class: torch.getattr("Tensor")?.unbind(),
        empty: torch.getattr("empty")?.unbind(),
        dtypes: Mutex::new(found.collect()),
    })
}

impl Known {
    /// What a framework's type object stands for; `None` for what is not read here.
    pub(crate) fn dtype(&self, object: &Bound<'_, PyAny>) -> PyResult<Option<Dtype>> {
        let dtypes = self.dtypes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, kind)) = dtypes.iter().find(|(known, _)| known.is(object)) {
            return Ok(Some(*kind));
        }
        // An equal one, such as a type that was unpickled; equality tells byte orders apart.
        for (known, kind) in dtypes.iter() {
            if object.eq(known.bind(object.py()))? {
                return Ok(Some(*kind));
            }
        }
        Ok(None)
    }

    /// The framework's object for a type; `None` where it has none.
    pub(crate) fn object<'py>(&self, py: Python<'py>, kind: Dtype) -> Option<Bound<'py, PyAny>> {
        let dtypes = self.dtypes.lock().unwrap_or_else(PoisonError::into_inner);
        dtypes.iter().find(|(_, known)| *known == kind).map(|(object, _)| object.bind(py).clone())
    }
}

/// The type that a user names for a result: a word, or a framework's type object.
pub(crate) fn named(dtype: &Bound<'_, PyAny>, expected: &[(&str, Format)]) -> PyResult<Format> {
    let text = dtype.str()?.to_string();
    let name = text.trim_start_matches("torch.").to_owned();
    if let Some((_, format)) = expected.iter().find(|(known, _)| *known == name) {
        return Ok(*format);
    }
    // numpy's classes, such as numpy.float32.
    if let Ok(name) = dtype.getattr(intern!(dtype.py(), "__name__")).and_then(|n| n.extract::<String>())
        && let Some((_, format)) = expected.iter().find(|(known, _)| *known == name)
    {
        return Ok(*format);
    }
    let known: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    Err(refuse(format!("dtype '{text}', expected one of {}", known.join(", "))))
}
