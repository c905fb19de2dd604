//! Casting tensors element by element, without scales.

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::tensor::Tensor;
use crate::element::CodesMut;
use crate::error::{Error, Result};
use crate::formats::e5m6::{self, E5m6Rounding};
use crate::formats::{Cast, Events, Format, Overflow, Rounding, TensorRounding, Unpacked, packed};
use crate::parallel::Watch;
pub use crate::quant::CastStats;
use crate::quant::{Caster, Element};

/// Elements that one task casts before it reports: some hundred microseconds of work.
const CHUNK: usize = 1 << 14;

/// How the elements of a tensor are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CastRounding {
    /// As [`Format::cast`] rounds; random bits of element i follow from seed, name of the tensor and i.
    Tensor(TensorRounding),
    /// [`E5m6Rounding::TileKernels`]; to E5M6 only, and saturating.
    TileKernels,
}

/// What a cast does. Legal once constructed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CastOptions {
    format: Format,
    rounding: CastRounding,
    overflow: Overflow,
    packed: bool,
}

impl CastOptions {
    /// One code an element, in the dtype of [`CastOptions::dtype`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for TileKernels' rounding to anything but E5M6, or without saturation.
    pub fn new(format: Format, rounding: CastRounding, overflow: Overflow) -> Result<Self> {
        if rounding == CastRounding::TileKernels {
            if format != Format::E5M6 {
                return Err(Error::Unsupported(format!(
                    "the tilekernels rounding is one of e5m6, not of {format}"
                )));
            }
            if overflow != Overflow::Saturate {
                return Err(Error::Unsupported("the tilekernels rounding saturates".into()));
            }
        }
        Ok(CastOptions { format, rounding, overflow, packed: false })
    }

    /// Several codes a word along the last dimension: 4-bit formats two a byte, low half first; E5M6 eight in three U32.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other formats.
    pub fn packed(mut self) -> Result<Self> {
        if self.format != Format::E5M6 && self.format.spec().bits() != 4 {
            let (format, bits) = (self.format, self.format.spec().bits());
            return Err(Error::Unsupported(format!(
                "packing is for 4-bit formats and e5m6; {format} has {bits} bits"
            )));
        }
        self.packed = true;
        Ok(self)
    }

    /// The format of the result.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The dtype of the result: [`Tensor::code_dtype`], but U32 for packed E5M6.
    pub fn dtype(&self) -> Dtype {
        match (self.packed, self.format) {
            (true, Format::E5M6) => Dtype::U32,
            _ => Tensor::code_dtype(self.format),
        }
    }

    /// The shape of the result for a tensor of this shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if packing needs a last dimension of another size.
    pub fn shape(&self, shape: &[usize]) -> Result<Vec<usize>> {
        let mut shape = shape.to_vec();
        if !self.packed {
            return Ok(shape);
        }
        let (codes, words) = if self.format == Format::E5M6 { (8, 3) } else { (2, 1) };
        match shape.last_mut() {
            Some(last) if last.is_multiple_of(codes) => *last = *last / codes * words,
            last => {
                let found = last.map_or("there is none".to_owned(), |n| format!("it is {n}"));
                return Err(Error::Shape(format!(
                    "packing {} needs a last dimension that is a multiple of {codes}, {found}",
                    self.format
                )));
            }
        }
        Ok(shape)
    }

    /// The cast in registers, where there is one.
    fn caster(&self, dtype: Dtype) -> Option<Caster> {
        let CastRounding::Tensor(rounding) = self.rounding else { return None };
        let caster = Caster::new(self.format, rounding, self.overflow);
        (dtype != Dtype::F64 && caster.in_registers()).then_some(caster)
    }

    fn cast(&self, value: Unpacked, rounding: CastRounding, index: u64) -> Cast {
        match rounding {
            CastRounding::Tensor(rounding) => self.format.cast(value, rounding.at(index), self.overflow),
            CastRounding::TileKernels => tile_kernels(value),
        }
    }

    /// The value of a code.
    fn value(&self, code: u64) -> f64 {
        match self.format.spec().bits() {
            ..=16 => f64::from(self.format.decode_f32(code as u16)),
            _ => self.format.spec().decode(code).to_f64(),
        }
    }
}

/// TileKernels' code; its events are those of the correct rounding, but for what it flushes.
fn tile_kernels(value: Unpacked) -> Cast {
    let spec = Format::E5M6.spec();
    let code = u64::from(e5m6::cast(value.to_f32(), E5m6Rounding::TileKernels));
    let correct = spec.round(value, Rounding::NearestEven, Overflow::Saturate).events;
    let flushed = matches!((value, spec.decode(code)), (Unpacked::Finite { .. }, Unpacked::Zero { .. }));
    let kept = [Events::OVERFLOW, Events::INFINITE, Events::NAN, Events::INEXACT];
    let events = kept.into_iter().filter(|&e| correct.contains(e)).fold(Events::NONE, |all, e| all | e);
    Cast { code, events: if flushed { events | Events::FLUSHED } else { events } }
}

/// The codes of a tensor of F32, F16 or BF16, in little-endian bytes.
fn in_registers(
    caster: &Caster,
    tensor: &Tensor,
    codes: &mut [u8],
    width: usize,
    done: &(dyn Fn(u64) + Sync),
) -> Result<CastStats> {
    fn cast<T: Element + Pod>(
        caster: &Caster,
        data: &[u8],
        codes: &mut [u8],
        width: usize,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<CastStats> {
        let x = elements::<T>(data);
        let watch = Watch { progress: Some(done), ..Watch::NONE };
        if width == 1 {
            return caster.cast(T::typed(&x), CodesMut::Bytes(codes), &watch);
        }
        let mut words = vec![0u16; x.len()];
        let stats = caster.cast(T::typed(&x), CodesMut::Words(&mut words), &watch)?;
        codes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(out, word)| *out = word.to_le_bytes());
        Ok(stats)
    }
    match tensor.dtype() {
        Dtype::F32 => cast::<f32>(caster, tensor.data(), codes, width, done),
        Dtype::F16 => cast::<f16>(caster, tensor.data(), codes, width, done),
        _ => cast::<bf16>(caster, tensor.data(), codes, width, done),
    }
}

/// The value of an element of a float dtype.
fn float_value(dtype: Dtype, bits: u64) -> f64 {
    match dtype {
        Dtype::F64 => f64::from_bits(bits),
        Dtype::F32 => f64::from(f32::from_bits(bits as u32)),
        Dtype::F16 => f64::from(Format::F16.decode_f32(bits as u16)),
        _ => f64::from(Format::Bf16.decode_f32(bits as u16)),
    }
}

/// Casts every element of a float tensor (F64, F32, F16, BF16), each rounded once. `name` enters stochastic rounding
/// ([`TensorRounding::for_tensor`]); `done` is told now and then how many more elements are finished, from any thread.
///
/// ```
/// use finegrain::checkpoint::{cast_tensor, CastOptions, CastRounding, Dtype, Tensor};
/// use finegrain::formats::{Format, Overflow, Rounding, TensorRounding};
/// let x = Tensor::new(Dtype::F64, vec![2], [1.0f64, 1e9].iter().flat_map(|v| v.to_le_bytes()).collect())?;
/// let nearest = CastRounding::Tensor(TensorRounding::Fixed(Rounding::NearestEven));
/// let options = CastOptions::new(Format::E4M3, nearest, Overflow::Saturate)?;
/// let (codes, stats) = cast_tensor(&x, "x", &options, &|_| ())?;
/// assert_eq!((codes.dtype(), codes.data()), (Dtype::F8_E4M3, [0x38, 0x7E].as_slice()));
/// assert_eq!(stats.overflowed, 1);
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`] for other dtypes, and for TileKernels' rounding of F64, which it is not defined on;
/// [`Error::Shape`] as [`CastOptions::shape`].
pub fn cast_tensor(
    tensor: &Tensor,
    name: &str,
    options: &CastOptions,
    done: &(dyn Fn(u64) + Sync),
) -> Result<(Tensor, CastStats)> {
    let dtype = tensor.dtype();
    let source = match Tensor::format(dtype) {
        Some(format) if Tensor::is_float(dtype) => format.spec(),
        _ => return Err(Error::Unsupported(format!("dtype {dtype}, expected F64, F32, F16 or BF16"))),
    };
    if options.rounding == CastRounding::TileKernels && dtype == Dtype::F64 {
        return Err(Error::Unsupported(
            "the tilekernels rounding is defined on f32, the tensor is F64".into(),
        ));
    }
    let shape = options.shape(tensor.shape())?;
    let rounding = match options.rounding {
        CastRounding::Tensor(rounding) => CastRounding::Tensor(rounding.for_tensor(name)),
        other => other,
    };
    let width_in = dtype.bitsize() / 8;
    // One code in whole bytes; packing comes after.
    let width_out = match options.format.spec().bits() {
        0..=8 => 1,
        9..=16 => 2,
        17..=32 => 4,
        _ => 8,
    };
    let mut codes = vec![0u8; tensor.elements() * width_out];
    let stats = match options.caster(dtype) {
        Some(caster) => in_registers(&caster, tensor, &mut codes, width_out, done)?,
        None => {
            let chunks_in = tensor.data().par_chunks(CHUNK * width_in);
            let chunks = codes.par_chunks_mut(CHUNK * width_out).zip(chunks_in).enumerate();
            let cast_chunk = |(chunk, (out, input)): (usize, (&mut [u8], &[u8]))| {
                let mut stats = CastStats::default();
                let elements = out.chunks_exact_mut(width_out).zip(input.chunks_exact(width_in));
                for (i, (out, bytes)) in elements.enumerate() {
                    let mut bits = [0; 8];
                    bits[..width_in].copy_from_slice(bytes);
                    let bits = u64::from_le_bytes(bits);
                    let cast = options.cast(source.decode(bits), rounding, (chunk * CHUNK + i) as u64);
                    stats.add(cast.events, || float_value(dtype, bits), || options.value(cast.code));
                    out.copy_from_slice(&cast.code.to_le_bytes()[..width_out]);
                }
                done(stats.elements);
                stats
            };
            chunks.map(cast_chunk).reduce(CastStats::default, CastStats::join)
        }
    };
    let data = match (options.packed, options.format) {
        (false, _) => codes,
        (true, Format::E5M6) => {
            let words: Vec<u16> = codes.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b)).collect();
            e5m6::pack(&words)?.into_iter().flat_map(u32::to_le_bytes).collect()
        }
        (true, _) => packed::pack4(&codes),
    };
    Ok((Tensor::new(options.dtype(), shape, data)?, stats))
}

/// The elements of little-endian bytes, in place where they lie aligned.
fn elements<T: Pod>(bytes: &[u8]) -> std::borrow::Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(elements) if cfg!(target_endian = "little") => elements.into(),
        _ => bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect::<Vec<T>>().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAREST: CastRounding = CastRounding::Tensor(TensorRounding::Fixed(Rounding::NearestEven));

    fn f64s(values: &[f64]) -> Tensor {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(Dtype::F64, vec![values.len()], data).unwrap()
    }

    /// 1 + 2^-4 + 2^-40 lies above a midpoint of E4M3; by way of f32 it would fall on it and go down.
    #[test]
    fn f64_is_rounded_once() {
        let options = CastOptions::new(Format::E4M3, NEAREST, Overflow::Saturate).unwrap();
        let (codes, _) = cast_tensor(&f64s(&[1.0625 + 2f64.powi(-40)]), "x", &options, &|_| ()).unwrap();
        assert_eq!(codes.data(), [0x39]);
    }

    #[test]
    fn events_are_counted() {
        let x = f64s(&[1.0, 1.01, -1e9, 1e-9, f64::NAN, f64::NEG_INFINITY, 0.0]);
        let options = CastOptions::new(Format::E4M3, NEAREST, Overflow::Saturate).unwrap();
        let (_, s) = cast_tensor(&x, "x", &options, &|_| ()).unwrap();
        assert_eq!((s.elements, s.overflowed, s.flushed, s.infinite, s.nan, s.inexact), (7, 1, 1, 1, 1, 4));
        assert_eq!(s.max_abs_error, 1e9 - 448.0);
    }

    #[test]
    fn tensors_of_two_names_do_not_share_random_bits() {
        let x = f64s(&[1.0625; 4096]);
        let stochastic = CastRounding::Tensor(TensorRounding::Stochastic { seed: 3 });
        let options = CastOptions::new(Format::E4M3, stochastic, Overflow::Saturate).unwrap();
        let cast = |name| cast_tensor(&x, name, &options, &|_| ()).unwrap().0.into_data();
        assert_eq!(cast("a"), cast("a"));
        let differ = cast("a").iter().zip(cast("b")).filter(|(a, b)| **a != *b).count();
        assert!((1800..2300).contains(&differ), "half of the 4096 coin tosses differ, not {differ}");
    }

    #[test]
    fn shapes_and_dtypes_of_every_format() {
        let dtype = |format| CastOptions::new(format, NEAREST, Overflow::Saturate).unwrap().dtype();
        assert_eq!(
            [dtype(Format::E5M2), dtype(Format::E2M1), dtype(Format::E5M6), dtype(Format::E8M13)],
            [Dtype::F8_E5M2, Dtype::U8, Dtype::U16, Dtype::U32]
        );
        let packed = |format| CastOptions::new(format, NEAREST, Overflow::Saturate).unwrap().packed();
        assert_eq!(packed(Format::E2M1).unwrap().shape(&[3, 8]).unwrap(), [3, 4]);
        let e5m6 = packed(Format::E5M6).unwrap();
        assert_eq!((e5m6.dtype(), e5m6.shape(&[3, 16]).unwrap()), (Dtype::U32, vec![3, 6]));
        assert!(e5m6.shape(&[3, 12]).unwrap_err().to_string().ends_with("multiple of 8, it is 12"));
        assert!(e5m6.shape(&[]).unwrap_err().to_string().ends_with("there is none"));
        assert!(packed(Format::E4M3).unwrap_err().to_string().contains("e4m3 has 8 bits"));
        assert!(CastOptions::new(Format::E4M3, CastRounding::TileKernels, Overflow::Saturate).is_err());
    }
}
