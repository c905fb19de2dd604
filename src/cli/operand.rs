//! An operand of a GEMM as a file holds it: codes, scales, and how many matrices are stacked.

use crate::checkpoint::{Dtype, Tensor, TensorFile};
use crate::formats::Format;
use crate::matrix::Matrix;
use crate::scaled::{Codes, CodesRef, Granule, ScaleGrid, ScaleGridRef, ScaledRef, ScalesRef};
use crate::{Error, Result};

// A comment for clap would replace the text of the subcommand: what the shapes and dtypes of a and b do not say.
#[derive(clap::Args)]
pub(crate) struct OperandArgs {
    /// Granule of a's scales, such as 1x128
    #[arg(long, value_name = "RxC")]
    granule_a: Option<Granule>,

    /// Granule of b's scales, such as 128x128
    #[arg(long, value_name = "RxC")]
    granule_b: Option<Granule>,

    /// Format of a's codes, where its dtype is U8 or U16
    #[arg(long, value_name = "FORMAT")]
    format_a: Option<Format>,

    /// Format of b's codes, where its dtype is U8 or U16
    #[arg(long, value_name = "FORMAT")]
    format_b: Option<Format>,
}

impl OperandArgs {
    /// Reads a and b.
    pub(crate) fn read(&self, file: &TensorFile) -> Result<(Operand, Operand)> {
        let a = Operand::read(file, "a", self.format_a, self.granule_a)?;
        let b = Operand::read(file, "b", self.format_b, self.granule_b)?;
        Ok((a, b))
    }
}

/// Codes [.., rows, cols] and their scales; the leading dimensions are groups.
pub(crate) struct Operand {
    name: &'static str,
    format: Format,
    codes: Codes,
    groups: usize,
    rows: usize,
    scales: Option<OperandScales>,
}

struct OperandScales {
    granule: Granule,
    /// The grids of all groups below one another.
    grid: ScaleGrid,
    /// One for all groups, or one each.
    tensor: Vec<f32>,
}

impl Operand {
    /// Reads tensor `name`, `name_scale_inv` and `name_scale_tensor`.
    fn read(
        file: &TensorFile,
        name: &'static str,
        format: Option<Format>,
        granule: Option<Granule>,
    ) -> Result<Self> {
        let tensor = file.read(name)?;
        let blame = |e: Error| file.blame(name, e);
        let [lead @ .., rows, _] = tensor.shape() else {
            return Err(file.blame(name, format!("shape {:?}, expected a matrix", tensor.shape())));
        };
        let (groups, rows) = (lead.iter().product(), *rows);
        let format = element_format(&tensor, format).map_err(blame)?;
        let codes = match tensor.dtype().bitsize() {
            8 => Codes::Bytes(tensor.byte_matrix().map_err(blame)?.to_matrix()),
            _ => Codes::Words(tensor.word_matrix().map_err(blame)?),
        };
        let scales = read_scales(file, name, &tensor, groups, granule)?;
        Ok(Operand { name, format, codes, groups, rows, scales })
    }

    /// The one matrix.
    pub(crate) fn whole(&self) -> Result<ScaledRef<'_>> {
        match self.groups()?.as_slice() {
            [one] => Ok(*one),
            groups => Err(Error::Shape(format!(
                "tensor '{}' is {} matrices, expected one",
                self.name,
                groups.len()
            ))),
        }
    }

    /// The stacked matrices.
    pub(crate) fn groups(&self) -> Result<Vec<ScaledRef<'_>>> {
        let all = self.scales.as_ref().map_or(0, |s| s.grid.view().shape().0);
        let each = all / self.groups.max(1);
        if each * self.groups != all {
            let message = format!("tensor '{}_scale_inv': {all} rows for {} groups", self.name, self.groups);
            return Err(Error::Shape(message));
        }
        let group = |g: usize| {
            let (first, last) = (g * self.rows, (g + 1) * self.rows);
            let codes = match self.codes.view() {
                CodesRef::Bytes(m) => CodesRef::Bytes(m.row_range(first, last)),
                CodesRef::Words(m) => CodesRef::Words(m.row_range(first, last)),
            };
            let (first, last) = (g * each, (g + 1) * each);
            let scales = self.scales.as_ref().map(|s| ScalesRef {
                granule: s.granule,
                grid: match s.grid.view() {
                    ScaleGridRef::F32(m) => ScaleGridRef::F32(m.row_range(first, last)),
                    ScaleGridRef::E8M0(m) => ScaleGridRef::E8M0(m.row_range(first, last)),
                    ScaleGridRef::E4M3(m) => ScaleGridRef::E4M3(m.row_range(first, last)),
                },
                tensor: s.tensor[g % s.tensor.len()],
            });
            ScaledRef::new(self.format, codes, scales).map_err(|e| self.blame(e))
        };
        (0..self.groups).map(group).collect()
    }

    /// The matrix cut along K.
    pub(crate) fn k_groups(&self, sizes: &[usize]) -> Result<Vec<ScaledRef<'_>>> {
        if self.groups != 1 {
            return Err(Error::Shape(format!(
                "tensor '{}' is {} matrices, expected one",
                self.name, self.groups
            )));
        }
        let view = |s: &OperandScales| (s.granule, s.tensor[0]);
        let scales = self.scales.as_ref().map(|s| {
            let (granule, tensor) = view(s);
            ScalesRef { granule, grid: s.grid.view(), tensor }
        });
        ScaledRef::k_groups(self.format, self.codes.view(), scales, sizes).map_err(|e| self.blame(e))
    }

    fn blame(&self, e: Error) -> Error {
        Error::Shape(format!("tensor '{}': {e}", self.name))
    }

    /// Format and scales in a few words.
    pub(crate) fn describe(&self) -> String {
        match &self.scales {
            None => self.format.to_string(),
            Some(s) => format!("{} with {} scales in {}", self.format, s.grid.view().format(), s.granule),
        }
    }
}

/// The format of the codes: that of the dtype, or the one given for U8 and U16.
fn element_format(tensor: &Tensor, given: Option<Format>) -> Result<Format> {
    let dtype = tensor.dtype();
    let own = match dtype {
        Dtype::F32 | Dtype::F64 | Dtype::F8_E8M0 => None,
        _ => Tensor::format(dtype),
    };
    match (dtype, own, given) {
        (_, Some(own), None) => Ok(own),
        (_, Some(own), Some(given)) if own == given => Ok(own),
        (_, Some(own), Some(given)) => Err(Error::Invalid(format!("dtype {dtype} holds {own}, not {given}"))),
        (Dtype::U8 | Dtype::U16, None, Some(given)) => Ok(given),
        (Dtype::U8 | Dtype::U16, None, None) => {
            Err(Error::Invalid(format!("dtype {dtype} says no format: --format-a and --format-b do")))
        }
        _ => {
            let message =
                format!("dtype {dtype} is no operand: expected F8_*, BF16, F16, or codes as U8 or U16");
            Err(Error::Unsupported(message))
        }
    }
}

fn read_scales(
    file: &TensorFile,
    name: &str,
    codes: &Tensor,
    groups: usize,
    granule: Option<Granule>,
) -> Result<Option<OperandScales>> {
    let key = format!("{name}_scale_inv");
    if !file.contains(&key) {
        return match granule {
            None => Ok(None),
            Some(granule) => {
                Err(file.blame(&key, format!("not in the file, but --granule-{name} is {granule}")))
            }
        };
    }
    let scale = file.read(&key)?;
    let unknown = || {
        let (found, expected) = (scale.shape(), codes.shape());
        file.blame(
            &key,
            format!("shape {found:?} fits no granule of {name} {expected:?}; --granule-{name} names one"),
        )
    };
    let granule = granule.or_else(|| infer(codes.shape(), &scale)).ok_or_else(unknown)?;
    let grid = read_grid(&scale).map_err(|e| file.blame(&key, e))?;
    Ok(Some(OperandScales { granule, grid, tensor: read_tensor_scale(file, name, groups)? }))
}

/// The granule that the shapes say, that of the scale's format first.
fn infer(codes: &[usize], scale: &Tensor) -> Option<Granule> {
    let [lead @ .., rows, cols] = codes else { return None };
    let fits = |g: &Granule| {
        let (r, c) = g.grid(*rows, *cols);
        [lead, &[r, c]].concat() == scale.shape()
    };
    let preferred = match scale.dtype() {
        Dtype::F8_E8M0 => Some(Granule::MX_1X32),
        Dtype::F8_E4M3 => Some(Granule::NVFP4_1X16),
        _ => None,
    };
    preferred.filter(fits).or_else(|| Granule::infer(codes, scale.shape()))
}

fn read_grid(scale: &Tensor) -> Result<ScaleGrid> {
    // A list holds one scale for each group, or for each row.
    let (rows, cols) = match scale.shape() {
        [n] => (*n, 1),
        _ => scale.matrix_shape(),
    };
    match scale.dtype() {
        Dtype::F8_E8M0 => Ok(ScaleGrid::E8M0(Matrix::from_vec(rows, cols, scale.data().to_vec())?)),
        Dtype::F8_E4M3 => Ok(ScaleGrid::E4M3(Matrix::from_vec(rows, cols, scale.data().to_vec())?)),
        Dtype::F32 => Ok(ScaleGrid::F32(Matrix::from_vec(rows, cols, scale.to_f32()?)?)),
        other => Err(Error::Unsupported(format!("dtype {other}, expected F32, F8_E8M0 or F8_E4M3"))),
    }
}

fn read_tensor_scale(file: &TensorFile, name: &str, groups: usize) -> Result<Vec<f32>> {
    let key = format!("{name}_scale_tensor");
    if !file.contains(&key) {
        return Ok(vec![1.0]);
    }
    let tensor = file.read(&key)?;
    if tensor.dtype() == Dtype::F32 && (tensor.elements() == 1 || tensor.elements() == groups && groups > 0) {
        return tensor.to_f32();
    }
    let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
    Err(file.blame(&key, format!("{found}, expected one F32, or one for each of {groups} groups")))
}
