//! Arrays of numpy, PyTorch and DLPack as the library's views: the one file with `unsafe`.
//!
//! Nothing is copied: a view is made of the address, the shape and the strides that the framework tells. While a call works
//! on an array without the interpreter's lock no other thread may write it, as with every library that computes outside
//! the lock; what is written, `into=` or freshly allocated, must not overlap what is read, which is checked.

use std::ffi::{c_char, c_int, c_void};
use std::ops::Range;

use bytemuck::Pod;
use finegrain::formats::Format;
use finegrain::matrix::{MatMut, MatRef};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyTuple};

use crate::dtypes::{Dtype, Framework, Known};
use crate::errors::{OrRaise, refuse};

/// An array that somebody else owns, kept alive.
pub(crate) struct Array<'py> {
    /// What keeps the memory: the array itself, or a DLPack capsule.
    owner: Bound<'py, PyAny>,
    /// What it is called in messages.
    name: &'static str,
    framework: Framework,
    dtype: Dtype,
    address: usize,
    shape: Vec<usize>,
    /// Elements between the starts of two rows of the last dimension; all dimensions before it are gapless among
    /// themselves.
    stride: usize,
    writable: bool,
}

/// An array as numpy's C structure has it, whose layout is fixed by the array interface, version 3.
#[repr(C)]
struct ArrayInterface {
    two: c_int,
    nd: c_int,
    typekind: c_char,
    itemsize: c_int,
    flags: c_int,
    shape: *const isize,
    strides: *const isize,
    data: *mut c_void,
    descr: *mut c_void,
}

/// Among its flags: it may be written.
const WRITABLE: c_int = 0x400;

/// A tensor as DLPack's C structure has it, whose layout is fixed by that standard.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: [c_int; 2],
    ndim: c_int,
    dtype: DlDtype,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DlDtype {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// The CPU among DLPack's devices.
const DL_CPU: c_int = 1;

/// What a framework tells of an array.
struct Told {
    address: usize,
    shape: Vec<usize>,
    /// In elements; `None` for gapless.
    strides: Option<Vec<isize>>,
    writable: bool,
}

impl<'py> Array<'py> {
    /// Reads an array called `name`. With `copy` one whose last dimension is not contiguous is copied, once.
    pub(crate) fn read(object: &Bound<'py, PyAny>, name: &'static str, copy: bool) -> PyResult<Self> {
        let py = object.py();
        let numpy = Framework::Numpy.at_hand(py)?;
        let of_numpy = object.is_instance(numpy.class.bind(py))?;
        let torch = if of_numpy { None } else { Framework::Torch.known(py)? };
        let of_torch = match torch {
            Some(torch) => object.is_instance(torch.class.bind(py))?,
            None => false,
        };
        let (owner, framework, dtype, told) = match torch {
            _ if of_numpy => {
                let dtype = dtype_of(object, name, numpy)?;
                (object.clone(), Framework::Numpy, dtype, from_numpy(object, dtype, name)?)
            }
            Some(torch) if of_torch => {
                let told = from_torch(object, name)?;
                (object.clone(), Framework::Torch, dtype_of(object, name, torch)?, told)
            }
            _ => {
                let (capsule, dtype, told) = from_dlpack(object, name)?;
                (capsule, Framework::Numpy, dtype, told)
            }
        };
        let Told { address, shape, strides, writable } = told;
        let Some(stride) = row_stride(&shape, strides.as_deref()) else {
            if copy {
                return Array::read(&dense(object, framework)?, name, false);
            }
            return Err(refuse(format!(
                "{name} has shape {shape:?} and strides {:?}, and its last dimension is to be contiguous, with rows \
                 that do not overlap: pass {name}.contiguous() (in numpy ascontiguousarray), or copy=True",
                strides.unwrap_or_default()
            )));
        };
        let elements: usize = shape.iter().product();
        if elements > 0 && address == 0 {
            return Err(refuse(format!("{name} of shape {shape:?} has no memory")));
        }
        if !address.is_multiple_of(dtype.bytes()) {
            return Err(refuse(format!(
                "{name} lies at address {address:#x}, expected a multiple of {} bytes",
                dtype.bytes()
            )));
        }
        Ok(Array { owner, name, framework, dtype, address, shape, stride, writable })
    }

    /// The same without gaps between rows; with `copy` copied where there are any.
    pub(crate) fn gapless(self, copy: bool) -> PyResult<Self> {
        if self.is_gapless() || !copy {
            return Ok(self);
        }
        Array::read(&self.dense()?, self.name, false)
    }

    /// A dense copy.
    fn dense(&self) -> PyResult<Bound<'py, PyAny>> {
        dense(&self.owner, self.framework)
    }

    /// A new array of a framework, its elements not set; of the plain type where the framework has none for `dtype`.
    pub(crate) fn empty(
        py: Python<'py>,
        framework: Framework,
        dtype: Dtype,
        shape: &[usize],
        name: &'static str,
    ) -> PyResult<Self> {
        let known = framework.at_hand(py)?;
        let plain = match dtype {
            Dtype::Of(format) => Dtype::plain(format),
            Dtype::Byte | Dtype::Word | Dtype::Int32 | Dtype::Int64 | Dtype::Packed => dtype,
        };
        let object = known.object(py, dtype).or_else(|| known.object(py, plain));
        let object = object.ok_or_else(|| refuse(format!("{name}: no dtype for {dtype:?}")))?;
        let sizes = PyTuple::new(py, shape)?;
        let array = match framework {
            Framework::Numpy => known.empty.bind(py).call1((sizes, object))?,
            Framework::Torch => {
                let keywords = pyo3::types::PyDict::new(py);
                keywords.set_item(intern!(py, "dtype"), object)?;
                known.empty.bind(py).call((sizes,), Some(&keywords))?
            }
        };
        Array::read(&array, name, false)
    }

    /// The array, given back.
    pub(crate) fn into_object(self) -> Bound<'py, PyAny> {
        self.owner
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Whose it is.
    pub(crate) fn framework(&self) -> Framework {
        self.framework
    }

    /// What its elements are.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// All sizes.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no gap between rows.
    pub(crate) fn is_gapless(&self) -> bool {
        self.rows() <= 1 || self.stride == self.cols()
    }

    /// The size of the last dimension.
    fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// All rows of the last dimension.
    fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// (rows, columns).
    ///
    /// # Errors
    /// If it is no matrix.
    pub(crate) fn matrix_shape(&self) -> PyResult<(usize, usize)> {
        match self.shape[..] {
            [rows, cols] => Ok((rows, cols)),
            _ => Err(refuse(format!("{} has shape {:?}, expected a matrix", self.name, self.shape))),
        }
    }

    /// Elements from the first to the last, gaps included.
    fn span(&self) -> usize {
        if self.len() == 0 { 0 } else { (self.rows() - 1) * self.stride + self.cols() }
    }

    /// The bytes that it spans.
    fn bytes(&self) -> Range<usize> {
        self.address..self.address + self.span() * self.dtype.bytes()
    }

    /// # Errors
    /// If `other`, which is written, shares memory with it.
    pub(crate) fn apart_from(&self, other: &Array<'_>) -> PyResult<()> {
        let (mine, theirs) = (self.bytes(), other.bytes());
        if mine.is_empty() || theirs.is_empty() || mine.end <= theirs.start || theirs.end <= mine.start {
            return Ok(());
        }
        Err(refuse(format!("{} shares memory with {}, which is written", self.name, other.name)))
    }

    /// The rows, as elements of `T`.
    ///
    /// # Panics
    /// If its elements have another size.
    pub(crate) fn rows_of<T: Pod>(&self) -> PyResult<MatRef<'_, T>> {
        MatRef::with_stride(self.elements(), self.rows(), self.cols(), self.stride).or_raise()
    }

    /// All elements, gaps between rows included.
    fn elements<T: Pod>(&self) -> &[T] {
        assert_eq!(size_of::<T>(), self.dtype.bytes());
        if self.span() == 0 {
            return &[];
        }
        // SAFETY: the framework that owns the memory tells its address, shape and strides, from which `span` follows;
        // `owner` keeps it allocated as long as this view lives, and the address is a multiple of the elements' size.
        // Every pattern is a `T`.
        unsafe { std::slice::from_raw_parts(self.address as *const T, self.span()) }
    }

    /// All elements of an array without gaps.
    ///
    /// # Errors
    /// If there are gaps.
    pub(crate) fn slice<T: Pod>(&self) -> PyResult<&[T]> {
        if self.is_gapless() {
            return Ok(self.elements());
        }
        Err(refuse(format!(
            "{} has gaps between its rows, and is to be contiguous as a whole: pass {}.contiguous() (in numpy \
             ascontiguousarray)",
            self.name, self.name
        )))
    }

    /// The rows, to be written.
    ///
    /// # Errors
    /// If it is read-only.
    pub(crate) fn rows_mut<T: Pod>(&mut self) -> PyResult<MatMut<'_, T>> {
        let (rows, cols, stride) = (self.rows(), self.cols(), self.stride);
        let all = self.elements_mut()?;
        if all.is_empty() {
            return MatMut::new(all, rows, cols).or_raise();
        }
        MatMut::with_stride(all, rows, cols, stride).or_raise()
    }

    /// All elements of an array without gaps, to be written.
    ///
    /// # Errors
    /// If it is read-only or has gaps.
    pub(crate) fn slice_mut<T: Pod>(&mut self) -> PyResult<&mut [T]> {
        if !self.is_gapless() {
            return Err(refuse(format!("{} has gaps between its rows, and is to be without", self.name)));
        }
        self.elements_mut()
    }

    fn elements_mut<T: Pod>(&mut self) -> PyResult<&mut [T]> {
        assert_eq!(size_of::<T>(), self.dtype.bytes());
        if !self.writable {
            return Err(refuse(format!("{} is read-only", self.name)));
        }
        if self.span() == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as in `elements`; the framework says that the memory may be written, rows do not overlap, and the one
        // who calls has checked with `apart_from` that nothing else of this call is a view of it.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address as *mut T, self.span()) })
    }
}

/// A dense copy of an array.
fn dense<'py>(object: &Bound<'py, PyAny>, framework: Framework) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    match framework {
        Framework::Torch => object.call_method0(intern!(py, "contiguous")),
        Framework::Numpy => py.import(intern!(py, "numpy"))?.call_method1("ascontiguousarray", (object,)),
    }
}

/// The elements between rows; `None` if the last dimension is not contiguous, rows overlap, or dimensions before the last
/// have gaps of their own.
fn row_stride(shape: &[usize], strides: Option<&[isize]>) -> Option<usize> {
    let cols = shape.last().copied().unwrap_or(1);
    let Some(strides) = strides else { return Some(cols) };
    if shape.contains(&0) {
        return Some(cols);
    }
    let (last, before) = strides.split_last().map_or((1, &[][..]), |(last, before)| (*last, before));
    if cols > 1 && last != 1 {
        return None;
    }
    // The innermost dimension of more than one element sets the stride, those outside it follow without gaps.
    let (mut stride, mut next) = (cols, None);
    for (&size, &step) in shape[..before.len()].iter().zip(before).rev() {
        if size == 1 {
            continue;
        }
        let step = usize::try_from(step).ok()?;
        match next {
            None if step < cols => return None,
            None => stride = step,
            Some(expected) if step != expected => return None,
            Some(_) => {}
        }
        next = Some(step.checked_mul(size)?);
    }
    Some(stride)
}

fn dtype_of(object: &Bound<'_, PyAny>, name: &'static str, known: &Known) -> PyResult<Dtype> {
    let dtype = object.getattr(intern!(object.py(), "dtype"))?;
    known.dtype(&dtype)?.ok_or_else(|| {
        refuse(format!(
            "{name} has dtype {dtype}, expected float32, float64, float16, bfloat16, an 8-, 6- or 4-bit float, or uint8 \
             codes in the machine's byte order"
        ))
    })
}

/// Reads numpy's description in C, which costs a twentieth of its description in Python.
fn from_numpy(object: &Bound<'_, PyAny>, dtype: Dtype, name: &'static str) -> PyResult<Told> {
    let description = object.getattr(intern!(object.py(), "__array_struct__"))?;
    let capsule =
        description.cast::<PyCapsule>().map_err(|_| refuse(format!("{name}: no array interface")))?;
    let pointer = capsule.pointer_checked(None)?;
    // SAFETY: a capsule under `__array_struct__` holds a PyArrayInterface, and keeps it until it is freed.
    let array: &ArrayInterface = unsafe { pointer.cast().as_ref() };
    let ndim = usize::try_from(array.nd).unwrap_or(0);
    let sizes = |at: *const isize| {
        if at.is_null() || ndim == 0 {
            return Vec::new();
        }
        // SAFETY: there are `nd` sizes and as many strides.
        unsafe { std::slice::from_raw_parts(at, ndim) }.to_vec()
    };
    let shape: Vec<usize> = sizes(array.shape).iter().map(|&n| n as usize).collect();
    let (mut strides, width) = (sizes(array.strides), dtype.bytes() as isize);
    if strides.iter().zip(&shape).any(|(step, &size)| size > 1 && step % width != 0) {
        return Err(refuse(format!("{name} has strides that are no multiple of its elements")));
    }
    strides.iter_mut().for_each(|step| *step /= width);
    let writable = array.flags & WRITABLE != 0;
    Ok(Told { address: array.data as usize, shape, strides: Some(strides), writable })
}

fn from_torch(object: &Bound<'_, PyAny>, name: &'static str) -> PyResult<Told> {
    let py = object.py();
    if !object.getattr(intern!(py, "is_cpu"))?.is_truthy()? {
        let device = object.getattr(intern!(py, "device"))?;
        return Err(refuse(format!("{name} is on {device}, expected a CPU tensor: pass {name}.cpu()")));
    }
    let refused = |_| refuse(format!("{name} is a tensor without memory of its own, expected a dense one"));
    let address: usize =
        object.call_method0(intern!(py, "data_ptr")).and_then(|a| a.extract()).map_err(refused)?;
    let strides: Vec<isize> =
        object.call_method0(intern!(py, "stride")).and_then(|s| s.extract()).map_err(refused)?;
    if object.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
        return Err(refuse(format!("{name} is a negated view: pass {name}.resolve_neg()")));
    }
    let shape: Vec<usize> = object.getattr(intern!(py, "shape"))?.extract()?;
    Ok(Told { address, shape, strides: Some(strides), writable: true })
}

/// Borrows what a DLPack capsule holds; the capsule, which is not consumed, frees it.
fn from_dlpack<'py>(
    object: &Bound<'py, PyAny>,
    name: &'static str,
) -> PyResult<(Bound<'py, PyAny>, Dtype, Told)> {
    let py = object.py();
    if !object.hasattr(intern!(py, "__dlpack__"))? {
        let class = object.get_type();
        return Err(refuse(format!(
            "{name} is a {}, expected an array of numpy, a tensor of PyTorch, or what has __dlpack__",
            class.name()?
        )));
    }
    let (device, index): (c_int, c_int) = object.call_method0(intern!(py, "__dlpack_device__"))?.extract()?;
    if device != DL_CPU {
        return Err(refuse(format!(
            "{name} is on DLPack's device ({device}, {index}), expected the CPU (1, 0): pass {name}.cpu()"
        )));
    }
    let object = object.call_method0(intern!(py, "__dlpack__"))?;
    let capsule = object.cast::<PyCapsule>().map_err(|_| refuse(format!("{name}: no DLPack capsule")))?;
    let pointer = capsule.pointer_checked(Some(c"dltensor"))?;
    // SAFETY: a capsule of that name holds a DLManagedTensor, which begins with a DLTensor, and keeps it until it is freed.
    let tensor: &DlTensor = unsafe { pointer.cast().as_ref() };
    let ndim = usize::try_from(tensor.ndim).unwrap_or(0);
    let sizes = |at: *const i64| {
        if at.is_null() || ndim == 0 {
            return None;
        }
        // SAFETY: the standard gives `ndim` sizes, and as many strides where there are any.
        Some(unsafe { std::slice::from_raw_parts(at, ndim) }.to_vec())
    };
    let shape = sizes(tensor.shape).unwrap_or_default().iter().map(|&n| n as usize).collect();
    let strides = sizes(tensor.strides).map(|s| s.iter().map(|&n| n as isize).collect());
    let DlDtype { code, bits, lanes } = tensor.dtype;
    let dtype = match (code, bits, lanes) {
        (2, 32, 1) => Dtype::Of(Format::F32),
        (2, 64, 1) => Dtype::Of(Format::F64),
        (2, 16, 1) => Dtype::Of(Format::F16),
        (4, 16, 1) => Dtype::Of(Format::Bf16),
        (1, 8, 1) => Dtype::Byte,
        (1, 16, 1) => Dtype::Word,
        (0, 32, 1) => Dtype::Int32,
        (0, 64, 1) => Dtype::Int64,
        _ => {
            return Err(refuse(format!(
                "{name} has DLPack's dtype ({code}, {bits}, {lanes}), expected float32, float64, float16, bfloat16 or \
                 uint8 codes"
            )));
        }
    };
    let address = tensor.data as usize + tensor.byte_offset as usize;
    Ok((object, dtype, Told { address, shape, strides, writable: false }))
}
