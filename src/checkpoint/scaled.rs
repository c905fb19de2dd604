//! Codes with their scales, read from a checkpoint: the one place where the two become numbers.

use safetensors::Dtype;

use super::grid::{self, Placed, ScaleStorage, Stack, sizes};
use super::pairs::{Pairs, Part};
use super::source::Checkpoint;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::formats::{Format, packed};
use crate::matrix::{MatMut, Matrix};
use crate::scaled::{Codes, CodesRef, Granule, ScaleGrid, ScaleGridRef, ScaledRef, ScalesRef};

/// What a file does not say of its codes and scales.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadAs {
    /// Format of codes that are integers.
    pub format: Option<Format>,
    /// Two 4-bit codes a byte along the last dimension, the low half first.
    pub packed: bool,
    /// Format of scales that are integers: E8M0 or E4M3.
    pub scale_format: Option<Format>,
    /// Elements that share a scale.
    pub granule: Option<Granule>,
    /// How the scales are stored.
    pub storage: ScaleStorage,
    /// What the options end in that say all this, for messages: `-a` where they are called `--granule-a`.
    pub suffix: &'static str,
}

/// A tensor of codes with its scales: a stack of matrices [.., rows, cols]; a vector is one row.
#[derive(Clone, Debug)]
pub struct ScaledTensor {
    name: String,
    format: Format,
    /// Of the values, two of which may have lain in one byte.
    shape: Vec<usize>,
    /// All matrices below one another.
    codes: Codes,
    stack: Stack,
    scales: Option<StackedScales>,
}

/// The scales of all matrices.
#[derive(Clone, Debug)]
struct StackedScales {
    name: String,
    /// As stored.
    shape: Vec<usize>,
    given: Option<Granule>,
    /// How they lie on the codes. What a plain matrix does not fit may fit groups along K.
    placed: std::result::Result<Placed, String>,
    /// The grids of all matrices below one another; as stored where they fit no matrix.
    grid: ScaleGrid,
    /// One for all matrices, or one each.
    tensor: Vec<f32>,
    /// What the products are divided by, likewise.
    divisor: Option<Vec<f32>>,
}

impl ScaledTensor {
    /// Reads codes and what belongs to them.
    ///
    /// # Errors
    /// [`Error::File`] that names codes and scales: if a format is neither that of the dtype nor given, if the codes have
    /// two tensors of block scales, zero points, or scales of scales, or if a size does not fit. Scales that fit no granule
    /// are an error when they are used, since groups along K have grids of their own.
    pub fn read(file: &Checkpoint, name: &str, read_as: &ReadAs) -> Result<Self> {
        Self::of_codes(file, name, file.read(name)?, read_as)
    }

    /// The same of codes that have been read.
    pub(super) fn of_codes(file: &Checkpoint, name: &str, codes: Tensor, read_as: &ReadAs) -> Result<Self> {
        let mut parts = Parts { block: None, tensor: None, divisor: None };
        for partner in file.pairs().partners(name) {
            let place = match partner.part {
                Part::Block => &mut parts.block,
                Part::Tensor => &mut parts.tensor,
                Part::Divisor => &mut parts.divisor,
                Part::Activation => continue,
                Part::Foreign => {
                    let message = format!("has '{}' beside it, which no rule here reads", partner.name);
                    return Err(file.blame(name, message));
                }
            };
            if let Some(first) = place.replace(&partner.name) {
                let message = format!("has scales twice, '{first}' and '{}': which are meant?", partner.name);
                return Err(file.blame(name, message));
            }
        }
        Self::of(file, name, codes, parts, read_as)
    }

    /// Reads an operand: as [`ScaledTensor::read`], but what is no codes by its name or dtype may have scales too, of the
    /// name given.
    ///
    /// # Errors
    /// As [`ScaledTensor::read`].
    pub fn read_operand(file: &Checkpoint, name: &str, scales: &str, read_as: &ReadAs) -> Result<Self> {
        if file.pairs().is_codes(name) || !file.contains(scales) {
            return Self::read(file, name, read_as);
        }
        let parts = Parts { block: Some(scales), tensor: None, divisor: None };
        Self::of(file, name, file.read(name)?, parts, read_as)
    }

    fn of(file: &Checkpoint, name: &str, codes: Tensor, parts: Parts<'_>, read_as: &ReadAs) -> Result<Self> {
        let blame = |e: Error| match parts.block {
            Some(scales) => file.blame(name, format!("{e} (its scales are '{scales}')")),
            None => file.blame(name, e),
        };
        let optional = |name: Option<&str>| name.map(|name| file.read(name)).transpose();
        let scales = optional(parts.block)?;
        let tensor_scales = parts.tensor.map(|n| factors(file, n)).transpose()?;
        let divisors = parts.divisor.map(|n| factors(file, n)).transpose()?;
        if scales.is_none() && (tensor_scales.is_some() || divisors.is_some()) {
            let which = parts.tensor.or(parts.divisor).unwrap_or_default();
            return Err(file.blame(name, format!("has '{which}' and no block scales")));
        }
        let named = scales.as_ref().zip(parts.block);
        let mut scaled = Self::join(name, codes, named, read_as).map_err(blame)?;
        if let Some((values, name)) = tensor_scales.zip(parts.tensor) {
            scaled = scaled.with_tensor_scales(values).map_err(|e| file.blame(name, e))?;
        }
        if let Some((values, name)) = divisors.zip(parts.divisor) {
            scaled.check_one_each(values.len()).map_err(|e| file.blame(name, e))?;
            scaled.scales.iter_mut().for_each(|scales| scales.divisor = Some(values.clone()));
        }
        Ok(scaled)
    }

    /// With scales of the second level: one for all matrices, or one each.
    ///
    /// # Errors
    /// [`Error::Shape`] for any other number.
    pub(super) fn with_tensor_scales(mut self, values: Vec<f32>) -> Result<Self> {
        self.check_one_each(values.len())?;
        if let Some(scales) = &mut self.scales {
            scales.tensor = values;
        }
        Ok(self)
    }

    fn check_one_each(&self, count: usize) -> Result<()> {
        match self.stack.matrices {
            n if count == n && n > 0 || count == 1 => Ok(()),
            n => Err(Error::Shape(format!(
                "{count} values of the second level, expected one, or one for each of {n} matrices"
            ))),
        }
    }

    /// Joins codes and block scales, given by name.
    ///
    /// # Errors
    /// As [`ScaledTensor::read`], without a file to blame.
    pub(super) fn join(
        name: &str,
        codes: Tensor,
        scales: Option<(&Tensor, &str)>,
        read_as: &ReadAs,
    ) -> Result<Self> {
        let format = element_format(codes.dtype(), read_as, scales.is_some())?;
        let (shape, codes) = unpacked(name, codes, format, read_as, scales.is_some())?;
        let stack = Stack::of(&shape);
        let scales =
            scales.map(|(scales, name)| StackedScales::of(name, scales, &shape, read_as)).transpose()?;
        Ok(ScaledTensor { name: name.to_owned(), format, shape, codes, stack, scales })
    }

    /// The shape of the values.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The format of the codes.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether there are scales.
    pub fn has_scales(&self) -> bool {
        self.scales.is_some()
    }

    /// The granule of the scales, if there are any and a plain matrix fits them.
    pub fn granule(&self) -> Option<Granule> {
        Some(self.scales.as_ref()?.placed.as_ref().ok()?.granule)
    }

    /// Scales that are NaN: codes FF of E8M0, codes 7F of E4M3, NaN of floats.
    pub fn nan_scales(&self) -> u64 {
        let nan = |scales: &StackedScales| {
            scales.grid.view().to_f32().as_slice().iter().filter(|s| s.is_nan()).count() as u64
        };
        self.scales.as_ref().map_or(0, nan)
    }

    /// Of every scale, in the order of the grids, the largest finite magnitude among its codes; `None` where the scales do
    /// not fit. Magnitudes order like their codes without the sign; scaled codes have at most 16 bits.
    pub(super) fn peaks(&self) -> Option<Vec<u16>> {
        let placed = self.scales.as_ref()?.placed.as_ref().ok()?;
        let (spec, (rows, cols)) = (self.format.spec(), (self.stack.rows, self.stack.cols));
        let magnitude = (spec.code_mask() & !spec.sign_mask()) as u16;
        let largest = spec.max_code() as u16;
        let each = placed.grid.0 * placed.grid.1;
        let mut peaks = vec![0u16; each * if placed.shared { 1 } else { self.stack.matrices }];
        if rows == 0 || cols == 0 {
            return Some(peaks);
        }
        let codes = self.codes.view();
        for n in 0..self.stack.matrices {
            let peaks = &mut peaks[if placed.shared { 0 } else { n * each }..];
            for i in 0..rows {
                let peaks = &mut peaks[i / placed.granule.rows() * placed.grid.1..];
                for j in 0..cols {
                    let code = codes.at(n * rows + i, j) as u16 & magnitude;
                    let peak = &mut peaks[j / placed.granule.cols()];
                    if code <= largest {
                        *peak = code.max(*peak);
                    }
                }
            }
        }
        Some(peaks)
    }

    /// Whether all finite values of the codes lie on a grid of 512 steps from zero to the largest of them: as those of
    /// integers with a power of two for a scale do, and a few hundred real numbers do not.
    pub(super) fn is_on_coarse_grid(&self) -> bool {
        let spec = self.format.spec();
        let step = f64::from(spec.emax() - 8).exp2();
        let mut there = vec![false; 1 << spec.bits().min(u16::BITS)];
        match &self.codes {
            Codes::Bytes(m) => m.as_slice().iter().for_each(|&c| there[usize::from(c)] = true),
            Codes::Words(m) => m.as_slice().iter().for_each(|&c| there[usize::from(c)] = true),
            Codes::Dwords(_) => return false,
        }
        let value = |code: usize| f64::from(self.format.decode_f32(code as u16));
        let values = (0..there.len()).filter(|&code| there[code]).map(value);
        values.filter(|v| v.is_finite()).all(|v| (v / step).fract() == 0.0)
    }

    /// The scales of the granules, decoded, in the order of [`ScaledTensor::peaks`].
    pub(super) fn block_scales(&self) -> Vec<f32> {
        self.scales.as_ref().map_or(Vec::new(), |s| s.grid.view().to_f32().into_vec())
    }

    /// Why the scales do not fit, where they do not.
    pub(super) fn misfit(&self) -> Option<&str> {
        self.scales.as_ref()?.placed.as_ref().err().map(String::as_str)
    }

    /// The one matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is a stack of several, or if the scales do not fit; [`Error::Unsupported`] for scales that
    /// divide.
    pub fn whole(&self) -> Result<ScaledRef<'_>> {
        match self.stack.matrices {
            1 => self.groups().map(|all| all[0]),
            n => Err(Error::Shape(format!("tensor '{}' is {n} matrices, expected one", self.name))),
        }
    }

    /// The stacked matrices.
    ///
    /// # Errors
    /// [`Error::Shape`] if the scales do not fit, or for more matrices than have elements; [`Error::Unsupported`] as
    /// [`ScaledTensor::whole`].
    pub fn groups(&self) -> Result<Vec<ScaledRef<'_>>> {
        self.each(&|scales, n| scales.multiplier(n))
    }

    /// The stacked matrices to be compared with others: a divisor d of the second level counts as a tensor scale of fl(1/d),
    /// which is what quantisers that store one have.
    ///
    /// # Errors
    /// As [`ScaledTensor::groups`], but for divisors.
    pub fn to_compare(&self) -> Result<Vec<ScaledRef<'_>>> {
        self.each(&|scales, n| {
            Ok(scales.divisor(n).map_or(scales.tensor(n), |d| scales.tensor(n) * d.recip()))
        })
    }

    fn each(&self, tensor: &dyn Fn(&StackedScales, usize) -> Result<f32>) -> Result<Vec<ScaledRef<'_>>> {
        /// Matrices without elements take no bytes in a file, but they do in a list.
        const MAX_EMPTY: usize = 1 << 16;
        let (matrices, rows) = (self.stack.matrices, self.stack.rows);
        if self.codes.view().shape().0 * self.stack.cols == 0 && matrices > MAX_EMPTY {
            let message = format!("tensor '{}' is {matrices} matrices without elements", self.name);
            return Err(Error::Shape(format!("{message}, at most {MAX_EMPTY} are read")));
        }
        let matrix = |n: usize| {
            let tensor = self.scales.as_ref().map_or(Ok(1.0), |s| tensor(s, n));
            tensor.and_then(|t| self.scaled(n, n * rows..(n + 1) * rows, t)).map_err(|e| self.blame(e))
        };
        (0..matrices).map(matrix).collect()
    }

    /// The matrix cut along K, where each group has granules of its own.
    ///
    /// # Errors
    /// As [`ScaledTensor::whole`]; [`Error::Unsupported`] for scales that are not row-major.
    pub fn k_groups(&self, sizes: &[usize]) -> Result<Vec<ScaledRef<'_>>> {
        if self.stack.matrices != 1 {
            let n = self.stack.matrices;
            return Err(Error::Shape(format!("tensor '{}' is {n} matrices, expected one", self.name)));
        }
        let scales = self.scales.as_ref().map(|scales| -> Result<ScalesRef<'_>> {
            let granule = match scales.given {
                Some(granule) => granule,
                None => {
                    let infer = Granule::infer_k_groups(self.stack.rows, sizes, scales.grid.view().shape());
                    infer.ok_or_else(|| scales.no_k_granule(&self.shape, sizes))?
                }
            };
            if scales.placed.as_ref().is_ok_and(|placed| placed.from.is_some()) {
                let message =
                    format!("'{}': groups along K are read from row-major scales only", scales.name);
                return Err(Error::Unsupported(message));
            }
            Ok(ScalesRef { granule, grid: scales.grid.view(), tensor: scales.multiplier(0)? })
        });
        let scales = scales.transpose().map_err(|e| self.blame(e))?;
        ScaledRef::k_groups(self.format, self.codes.view(), scales, sizes).map_err(|e| self.blame(e))
    }

    /// All values: fl(code · scale), then times the tensor scale where there is one, or divided by the divisor, all in f32.
    /// Codes without scales are their values.
    ///
    /// # Errors
    /// [`Error::Shape`] if the scales do not fit; [`Error::Unsupported`] if `FINEGRAIN_ISA` names an instruction set that
    /// the CPU lacks; [`Error::Invalid`] if the codes are not codes of the format.
    pub fn dequantize(&self) -> Result<Vec<f32>> {
        let (rows, cols) = (self.stack.rows, self.stack.cols);
        let Some(scales) = &self.scales else {
            ScaledRef::new(self.format, self.codes.view(), None)?;
            let value = |code: u16| self.format.decode_f32(code);
            return Ok(match &self.codes {
                Codes::Bytes(m) => m.as_slice().iter().map(|&c| value(u16::from(c))).collect(),
                Codes::Words(m) => m.as_slice().iter().map(|&c| value(c)).collect(),
                Codes::Dwords(m) => m.as_slice().iter().map(|&c| f32::from_bits(c)).collect(),
            });
        };
        let elements: usize = self.shape.iter().product();
        scales.placed()?;
        let mut out = vec![0.0f32; elements];
        if elements == 0 {
            return Ok(out);
        }
        for (n, out) in out.chunks_exact_mut(rows * cols).enumerate() {
            let matrix = self.scaled(n, n * rows..(n + 1) * rows, scales.tensor(n))?;
            matrix.dequantize_into(MatMut::new(out, rows, cols)?)?;
            if let Some(divisor) = scales.divisor(n) {
                out.iter_mut().for_each(|value| *value /= divisor);
            }
        }
        Ok(out)
    }

    /// Format and scales in a few words.
    pub fn describe(&self, granule: Option<Granule>) -> String {
        match (&self.scales, granule.or(self.granule())) {
            (None, _) => self.format.to_string(),
            (Some(s), None) => format!("{} with {} scales", self.format, s.grid.view().format()),
            (Some(s), Some(granule)) => {
                format!("{} with {} scales in {granule}", self.format, s.grid.view().format())
            }
        }
    }

    fn scaled(&self, n: usize, rows: std::ops::Range<usize>, tensor: f32) -> Result<ScaledRef<'_>> {
        let codes = match self.codes.view() {
            CodesRef::Bytes(m) => CodesRef::Bytes(m.row_range(rows.start, rows.end)),
            CodesRef::Words(m) => CodesRef::Words(m.row_range(rows.start, rows.end)),
            CodesRef::Dwords(m) => CodesRef::Dwords(m.row_range(rows.start, rows.end)),
        };
        let Some(scales) = &self.scales else { return ScaledRef::new(self.format, codes, None) };
        let placed = scales.placed()?;
        let n = if placed.shared { 0 } else { n };
        let (first, last) = (n * placed.grid.0, (n + 1) * placed.grid.0);
        let grid = match scales.grid.view() {
            ScaleGridRef::F32(m) => ScaleGridRef::F32(m.row_range(first, last)),
            ScaleGridRef::E8M0(m) => ScaleGridRef::E8M0(m.row_range(first, last)),
            ScaleGridRef::E4M3(m) => ScaleGridRef::E4M3(m.row_range(first, last)),
        };
        ScaledRef::new(self.format, codes, Some(ScalesRef { granule: placed.granule, grid, tensor }))
    }

    fn blame(&self, e: Error) -> Error {
        Error::Shape(format!("tensor '{}': {e}", self.name))
    }
}

/// The names of what belongs to codes.
struct Parts<'a> {
    block: Option<&'a str>,
    tensor: Option<&'a str>,
    divisor: Option<&'a str>,
}

impl StackedScales {
    fn of(name: &str, scales: &Tensor, codes: &[usize], read_as: &ReadAs) -> Result<Self> {
        let dtype = match (scales.dtype(), read_as.scale_format) {
            (Dtype::U8 | Dtype::I8, Some(format)) => scale_dtype(format)?,
            (Dtype::U8 | Dtype::I8, None) => {
                return Err(Error::Invalid(format!(
                    "scales '{name}' are {}: --scale-format{} e8m0 or e4m3 must say of which format",
                    scales.dtype(),
                    read_as.suffix
                )));
            }
            (own, _) => own,
        };
        let granule = read_as.granule;
        let placed = grid::place(codes, scales.shape(), dtype, read_as);
        let (placed, data) = match placed {
            Ok(placed) => {
                let data = grid::arranged(scales, &placed);
                (Ok(placed), data)
            }
            Err(e) => (Err(format!("scales '{name}': {e}")), scales.data().to_vec()),
        };
        let (rows, cols) = match (&placed, scales.shape()) {
            (Ok(placed), _) => {
                let matrices = if placed.shared { 1 } else { Stack::of(codes).matrices };
                (matrices * placed.grid.0, placed.grid.1)
            }
            (Err(_), [n]) => (*n, 1),
            (Err(_), _) => scales.matrix_shape(),
        };
        let grid = match dtype {
            Dtype::F8_E8M0 => ScaleGrid::E8M0(Matrix::from_vec(rows, cols, data)?),
            Dtype::F8_E4M3 => ScaleGrid::E4M3(Matrix::from_vec(rows, cols, data)?),
            _ => {
                let count = data.len() / (dtype.bitsize() / 8).max(1);
                let values = exact_f32(name, &Tensor::new(dtype, vec![count], data)?)?;
                ScaleGrid::F32(Matrix::from_vec(rows, cols, values)?)
            }
        };
        let shape = scales.shape().to_vec();
        Ok(StackedScales {
            name: name.to_owned(),
            shape,
            given: granule,
            placed,
            grid,
            tensor: vec![1.0],
            divisor: None,
        })
    }

    fn placed(&self) -> Result<&Placed> {
        self.placed.as_ref().map_err(|message| Error::Shape(message.clone()))
    }

    /// The tensor scale of a matrix.
    fn tensor(&self, n: usize) -> f32 {
        self.tensor[n % self.tensor.len()]
    }

    fn divisor(&self, n: usize) -> Option<f32> {
        self.divisor.as_ref().map(|all| all[n % all.len()])
    }

    /// The tensor scale of a matrix, where it has no divisor or one whose inverse is exact.
    fn multiplier(&self, n: usize) -> Result<f32> {
        let Some(divisor) = self.divisor(n) else { return Ok(self.tensor(n)) };
        let inverse = divisor.recip();
        let exact = divisor.is_normal() && inverse.is_normal() && divisor.to_bits().trailing_zeros() >= 23;
        if !exact {
            let message = format!(
                "'{}' is divided by {divisor}, and no product here divides: dequantize it",
                self.name
            );
            return Err(Error::Unsupported(message));
        }
        Ok(self.tensor(n) * inverse)
    }

    fn no_k_granule(&self, codes: &[usize], groups: &[usize]) -> Error {
        let tiles: usize = groups.iter().map(|k| k.div_ceil(128)).sum();
        let (stored, codes) = (sizes(&self.shape), sizes(codes));
        Error::Shape(format!(
            "scale grid {stored} of '{}' on codes {codes} in {} groups along K is that of no granule in use, each group \
             with granules of its own (1x128 gives {tiles} columns); a granule can be given",
            self.name,
            groups.len()
        ))
    }
}

/// The format of the codes: that of the dtype, or the one given for integers. Only what has no scales may be F32.
fn element_format(dtype: Dtype, read_as: &ReadAs, scaled: bool) -> Result<Format> {
    let (given, suffix) = (read_as.format, read_as.suffix);
    let own = match dtype {
        Dtype::F32 if scaled => None,
        Dtype::F64 | Dtype::F8_E8M0 => None,
        Dtype::F4 => Some(Format::E2M1),
        _ => Tensor::format(dtype),
    };
    let integers = matches!(dtype, Dtype::U8 | Dtype::I8 | Dtype::U16 | Dtype::I16);
    match (own, given) {
        (Some(own), None) => Ok(own),
        (Some(own), Some(given)) if own == given => Ok(own),
        (Some(own), Some(given)) => Err(Error::Invalid(format!("dtype {dtype} holds {own}, not {given}"))),
        (None, Some(given)) if integers => Ok(given),
        (None, None) if integers => Err(Error::Invalid(format!(
            "dtype {dtype} says no format: --format{suffix} must, and --packed{suffix} where two codes lie in a byte"
        ))),
        _ => Err(Error::Unsupported(format!(
            "dtype {dtype} is not read as codes: expected F8_*, F4, BF16, F16, or codes as U8 or U16"
        ))),
    }
}

fn scale_dtype(format: Format) -> Result<Dtype> {
    match format {
        Format::E8M0 => Ok(Dtype::F8_E8M0),
        Format::E4M3 => Ok(Dtype::F8_E4M3),
        other => Err(Error::Unsupported(format!("scales of format {other}, expected e8m0 or e4m3"))),
    }
}

/// Scales as f32, where none of them changes.
fn exact_f32(name: &str, scales: &Tensor) -> Result<Vec<f32>> {
    let dtype = scales.dtype();
    let values = scales.to_f32().map_err(|_| {
        Error::Unsupported(format!(
            "scales '{name}' are {dtype}, expected F32, BF16, F16, F8_E8M0 or F8_E4M3"
        ))
    })?;
    if dtype == Dtype::F64 {
        let wide = scales.data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b));
        if let Some((wide, _)) = wide.zip(&values).find(|(w, v)| !w.is_nan() && *w != f64::from(**v)) {
            return Err(Error::Unsupported(format!("scale {wide:e} of '{name}' is F64 and no f32")));
        }
    }
    Ok(values)
}

/// Factors of the second level.
fn factors(file: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let tensor = file.read(name)?;
    if !Tensor::is_float(tensor.dtype()) {
        return Err(file.blame(name, format!("dtype {}, expected F32", tensor.dtype())));
    }
    exact_f32(name, &tensor).map_err(|e| file.blame(name, e))
}

/// One code an element, and the shape of the elements. Blocks of bytes as a last dimension of their own (`X_blocks`) are
/// joined to rows.
fn unpacked(
    name: &str,
    codes: Tensor,
    format: Format,
    read_as: &ReadAs,
    scaled: bool,
) -> Result<(Vec<usize>, Codes)> {
    let (packed, suffix) = (read_as.packed, read_as.suffix);
    let mut shape = codes.shape().to_vec();
    let blocks = scaled && packed && Pairs::name_of_values(name) != name && name.ends_with("blocks");
    if blocks && shape.len() > 2 {
        let last = shape.pop().unwrap_or(1);
        let groups = shape.pop().unwrap_or(1);
        shape.push(groups * last);
    }
    let halves = codes.dtype() == Dtype::F4 || packed && format.spec().bits() == 4;
    if packed && !halves {
        let bits = format.spec().bits();
        return Err(Error::Invalid(format!("--packed{suffix} is for codes of 4 bits, {format} has {bits}")));
    }
    let flat = |shape: &[usize]| match shape.split_last() {
        None => (1, 1),
        Some((cols, lead)) => (lead.iter().product(), *cols),
    };
    if halves {
        if codes.dtype() != Dtype::F4 {
            let last =
                shape.last_mut().ok_or_else(|| Error::Shape("a scalar is no packed codes".to_owned()))?;
            *last = last.checked_mul(2).ok_or_else(|| Error::Shape("too many packed codes".to_owned()))?;
        }
        let (rows, cols) = flat(&shape);
        return Ok((shape, Codes::Bytes(Matrix::from_vec(rows, cols, packed::unpack4(codes.data()))?)));
    }
    let (rows, cols) = flat(&shape);
    let codes = match codes.dtype().bitsize() {
        16 => Codes::Words(codes.word_matrix()?),
        32 => Codes::Dwords(codes.dword_matrix()?),
        _ => Codes::Bytes(Matrix::from_vec(rows, cols, codes.into_data())?),
    };
    Ok((shape, codes))
}
