//! Codes with scales, as a caller gives them: arrays, or what `quantize` returned.

use finegrain::formats::{Format, packed};
use finegrain::matrix::MatRef;
use finegrain::scaled::{CodesRef, Granule, ScaleGridRef, ScaledRef, ScalesRef};
use pyo3::prelude::*;

use crate::array::Array;
use crate::dtypes::{Dtype, Framework};
use crate::errors::{OrRaise, refuse};
use crate::quantized::Quantized;

/// What a caller says of an operand.
pub(crate) struct Given<'a, 'py> {
    /// Of the codes, in messages.
    pub(crate) name: &'static str,
    /// Of the scales, in messages.
    pub(crate) scales_name: &'static str,
    /// What the argument that names the granule is called.
    pub(crate) granule_name: &'static str,
    /// What the argument that names the format is called.
    pub(crate) format_name: &'static str,
    /// What the argument that names the scales' format is called.
    pub(crate) scale_format_name: &'static str,
    pub(crate) codes: &'a Bound<'py, PyAny>,
    pub(crate) scales: Option<&'a Bound<'py, PyAny>>,
    pub(crate) granule: Option<&'a str>,
    pub(crate) format: Option<&'a str>,
    pub(crate) scale_format: Option<&'a str>,
    pub(crate) tensor_scale: Option<f32>,
    pub(crate) copy: bool,
}

/// Codes with what belongs to them, held while a call works.
pub(crate) struct Operand<'py> {
    codes: Array<'py>,
    /// Codes that lay two in a byte.
    unpacked: Option<Vec<u8>>,
    shape: (usize, usize),
    format: Format,
    scales: Option<Scales<'py>>,
}

struct Scales<'py> {
    array: Array<'py>,
    format: Format,
    granule: Granule,
    tensor: f32,
}

impl<'py> Operand<'py> {
    pub(crate) fn read(given: &Given<'_, 'py>) -> PyResult<Self> {
        if let Ok(quantized) = given.codes.cast::<Quantized>() {
            return Operand::of_quantized(given, quantized.get());
        }
        let codes = Array::read(given.codes, given.name, given.copy)?;
        let named = given.format.map(|f| f.parse::<Format>().or_raise()).transpose()?;
        let (format_name, name) = (given.format_name, given.name);
        let format = match (codes.dtype(), named) {
            (Dtype::Of(format), None) => format,
            (Dtype::Packed, None) => Format::E2M1,
            (Dtype::Byte | Dtype::Word, Some(format)) => format,
            (Dtype::Of(of), Some(format)) if of == format => format,
            (Dtype::Packed, Some(Format::E2M1)) => Format::E2M1,
            (Dtype::Byte | Dtype::Word, None) => {
                return Err(refuse(format!(
                    "{name} is plain integers: name the format of its codes, such as {format_name}=\"e4m3\""
                )));
            }
            (Dtype::Of(of), Some(format)) => {
                return Err(refuse(format!("{name} holds {of}, but {format_name} is {format}")));
            }
            (Dtype::Packed, Some(format)) => {
                return Err(refuse(format!("{name} holds e2m1, but {format_name} is {format}")));
            }
            (Dtype::Int32 | Dtype::Int64, _) => {
                return Err(refuse(format!(
                    "{name} holds wide integers, expected codes of one or two bytes"
                )));
            }
        };
        let operand = Operand::of_codes(codes, format)?;
        let granule = given.granule.map(|g| g.parse::<Granule>().or_raise()).transpose()?;
        let Some(scales) = given.scales else {
            let beside =
                [(granule.is_some(), given.granule_name), (given.tensor_scale.is_some(), "its tensor scale")];
            return match beside.iter().find(|(there, _)| *there) {
                Some((_, what)) => {
                    Err(refuse(format!("{name} has no {}, but {what} is given", given.scales_name)))
                }
                None => Ok(operand),
            };
        };
        let array = Array::read(scales, given.scales_name, given.copy)?;
        let named = given.scale_format.map(|f| f.parse::<Format>().or_raise()).transpose()?;
        let scale_format = scale_format(&array, named, given.scale_format_name)?;
        let (rows, cols) = operand.shape;
        let granule = match granule.or_else(|| Granule::infer(&[rows, cols], array.shape())) {
            Some(granule) => granule,
            None => {
                return Err(refuse(format!(
                    "{} has shape {:?} and {name} {rows}×{cols}: none of the field's granules fits, name it with {}",
                    given.scales_name,
                    array.shape(),
                    given.granule_name
                )));
            }
        };
        let tensor = given.tensor_scale.unwrap_or(1.0);
        Ok(Operand { scales: Some(Scales { array, format: scale_format, granule, tensor }), ..operand })
    }

    /// What was quantised here, which says all of itself.
    pub(crate) fn of_quantized(given: &Given<'_, 'py>, quantized: &Quantized) -> PyResult<Self> {
        let beside = [
            (given.scales.is_some(), given.scales_name),
            (given.granule.is_some(), given.granule_name),
            (given.format.is_some(), given.format_name),
            (given.scale_format.is_some(), given.scale_format_name),
            (given.tensor_scale.is_some(), "a tensor scale"),
        ];
        if let Some((_, what)) = beside.iter().find(|(there, _)| *there) {
            let name = given.name;
            return Err(refuse(format!(
                "{name} is what quantize gave, with its scales: {what} is not for it"
            )));
        }
        let py = given.codes.py();
        let codes = Array::read(quantized.codes.bind(py), given.name, false)?;
        let array = Array::read(quantized.scales.bind(py), given.scales_name, false)?;
        let scales = Scales {
            array,
            format: quantized.scale_format,
            granule: quantized.granule,
            tensor: quantized.tensor_scale,
        };
        let operand = Operand::of_codes(codes, quantized.format)?;
        Ok(Operand { scales: Some(scales), ..operand })
    }

    fn of_codes(codes: Array<'py>, format: Format) -> PyResult<Self> {
        let (rows, cols) = codes.matrix_shape()?;
        let packed = codes.dtype() == Dtype::Packed;
        let (unpacked, cols) = match packed {
            true => (Some(codes.rows_of::<u8>()?.iter_rows().flat_map(packed::unpack4).collect()), 2 * cols),
            false => (None, cols),
        };
        Ok(Operand { codes, unpacked, shape: (rows, cols), format, scales: None })
    }

    /// Whose arrays they are.
    pub(crate) fn framework(&self) -> Framework {
        self.codes.framework()
    }

    /// (rows, columns) of the values.
    pub(crate) fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The format of the codes.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// # Errors
    /// If `other`, which is written, shares memory with it.
    pub(crate) fn apart_from(&self, other: &Array<'_>) -> PyResult<()> {
        self.codes.apart_from(other)?;
        self.scales.as_ref().map_or(Ok(()), |s| s.array.apart_from(other))
    }

    /// The library's view of it.
    pub(crate) fn view(&self) -> PyResult<ScaledRef<'_>> {
        let (rows, cols) = self.shape;
        let codes = match (&self.unpacked, self.codes.dtype().bytes()) {
            (Some(codes), _) => CodesRef::Bytes(MatRef::new(codes, rows, cols).or_raise()?),
            (None, 1) => CodesRef::Bytes(self.codes.rows_of()?),
            (None, 2) => CodesRef::Words(self.codes.rows_of()?),
            (None, 4) => CodesRef::Dwords(self.codes.rows_of()?),
            (None, _) => {
                let name = self.codes.name();
                return Err(refuse(format!("{name} holds {}, which is no format of codes", self.format)));
            }
        };
        let scales = self.scales.as_ref().map(|s| s.view(self.shape)).transpose()?;
        ScaledRef::new(self.format, codes, scales).map_err(|e| refuse(format!("{}: {e}", self.codes.name())))
    }
}

impl Scales<'_> {
    fn view(&self, (rows, cols): (usize, usize)) -> PyResult<ScalesRef<'_>> {
        let grid = match self.format {
            Format::F32 => ScaleGridRef::F32(self.grid(rows, cols)?),
            Format::E8M0 => ScaleGridRef::E8M0(self.grid(rows, cols)?),
            _ => ScaleGridRef::E4M3(self.grid(rows, cols)?),
        };
        Ok(ScalesRef { granule: self.granule, grid, tensor: self.tensor })
    }

    fn grid<T: bytemuck::Pod>(&self, rows: usize, cols: usize) -> PyResult<MatRef<'_, T>> {
        if self.array.shape().len() == 2 {
            return self.array.rows_of();
        }
        // One scale, or one a row, without a second dimension.
        let (grid_rows, grid_cols) = self.granule.grid(rows, cols);
        let all = self.array.slice()?;
        MatRef::new(all, grid_rows, grid_cols).map_err(|_| {
            refuse(format!(
                "{} has shape {:?}, expected {grid_rows}×{grid_cols} for {rows}×{cols} in {}",
                self.array.name(),
                self.array.shape(),
                self.granule
            ))
        })
    }
}

/// What scales are stored as.
fn scale_format(scales: &Array<'_>, named: Option<Format>, argument: &str) -> PyResult<Format> {
    let name = scales.name();
    match (scales.dtype(), named) {
        (Dtype::Of(format @ (Format::F32 | Format::E8M0 | Format::E4M3)), None) => Ok(format),
        (Dtype::Of(of @ (Format::F32 | Format::E8M0 | Format::E4M3)), Some(format)) if of == format => Ok(of),
        (Dtype::Byte, Some(format @ (Format::E8M0 | Format::E4M3))) => Ok(format),
        (Dtype::Byte, None) => Err(refuse(format!(
            "{name} is plain bytes: name the format of the scales, {argument}=\"e8m0\" or \"e4m3\""
        ))),
        (dtype, named) => {
            let found = match dtype {
                Dtype::Of(format) => format.to_string(),
                Dtype::Byte | Dtype::Packed => "bytes".to_owned(),
                Dtype::Word | Dtype::Int32 | Dtype::Int64 => "integers".to_owned(),
            };
            let as_named = named.map_or(String::new(), |f| format!(", to be read as {f}"));
            Err(refuse(format!("{name} holds {found}{as_named}; expected scales in f32, e8m0 or e4m3")))
        }
    }
}
