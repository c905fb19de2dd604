//! What a tensor file holds, and what is wrong with it. One tensor is in memory at a time, with its scales.

use rayon::prelude::*;
use safetensors::Dtype;
use serde::Serialize;

use super::file::TensorFile;
use super::tensor::Tensor;
use crate::error::Result;
use crate::formats::{Format, e8m0};
use crate::scaled::Granule;

/// The scales of tensor T are the tensor T with this after its name (DeepSeek-V3's checkpoints).
pub const SCALE_SUFFIX: &str = "_scale_inv";
/// The one scale of a two-level format (NVFP4), likewise.
pub const TENSOR_SCALE_SUFFIX: &str = "_scale_tensor";

/// Share of the granules with a code of the largest magnitude from which power-of-two scales are suspect. A true
/// power-of-two recipe spreads the maxima over (max/2, max]: some 5 % of its granules reach the largest code.
const SUSPECT_SHARE: f64 = 0.9;
/// Granules needed for that judgement; one alone reaches the largest code by chance.
const SUSPECT_GRANULES: usize = 2;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// May be meant.
    Note,
    /// Values are probably not what they should be.
    Warning,
    /// The tensor cannot be read as what it claims to be.
    Error,
}

/// One thing that is wrong, or looks wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A word for programs: `scale-grid`, `scale-dtype`, `scale-without-codes`, `codes-without-scale`,
    /// `scales-of-floats`, `zero-scale`, `negative-scale`, `nonfinite-scale`, `nonfinite-code`, `nonfinite-value`,
    /// `all-zero`, `not-requantised`.
    pub kind: &'static str,
    /// The tensor to blame.
    pub tensor: String,
    /// A sentence with the numbers.
    pub message: String,
}

/// The scales found beside a tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScaleReport {
    /// Name of the tensor of scales.
    pub name: String,
    /// Its dtype.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The granule that the two shapes say, as [`Granule`] prints it.
    pub granule: Option<String>,
}

/// What one tensor holds. Values are decoded codes for F8 tensors, scales not applied.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// Name.
    pub name: String,
    /// dtype.
    pub dtype: String,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// Number of elements.
    pub elements: usize,
    /// Bytes of data.
    pub bytes: usize,
    /// The largest finite magnitude; none for integers.
    pub amax: Option<f64>,
    /// Elements equal to zero.
    pub zeros: u64,
    /// NaN elements.
    pub nan: u64,
    /// Infinite elements.
    pub infinite: u64,
    /// The scales beside it.
    pub scales: Option<ScaleReport>,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The tensors, in the order of their data.
    pub tensors: Vec<TensorReport>,
    /// What is wrong, in the same order.
    pub findings: Vec<Finding>,
}

/// Reads a whole file. `done` is told after each tensor how many more bytes are finished.
///
/// # Errors
/// [`crate::Error::File`] if the file cannot be read. What is merely wrong with its tensors is a finding.
pub fn inspect(file: &TensorFile, done: &dyn Fn(u64)) -> Result<Inspection> {
    let mut all = Inspection { bytes: 0, tensors: Vec::new(), findings: Vec::new() };
    for name in file.names() {
        let (report, findings) = inspect_tensor(file, name)?;
        done(report.bytes as u64);
        all.bytes += report.bytes as u64;
        all.tensors.push(report);
        all.findings.extend(findings);
    }
    Ok(all)
}

fn inspect_tensor(file: &TensorFile, name: &str) -> Result<(TensorReport, Vec<Finding>)> {
    let tensor = file.read(name)?;
    let survey = Survey::of(&tensor);
    let mut findings = Findings { tensor: name, list: Vec::new() };
    let codes_name = [SCALE_SUFFIX, TENSOR_SCALE_SUFFIX].iter().find_map(|s| name.strip_suffix(s));
    let scales = match codes_name {
        Some(codes_name) => {
            findings.of_scales(file, &tensor, &survey, codes_name);
            None
        }
        None => findings.of_codes_or_values(file, &tensor, &survey)?,
    };
    let (elements, info) = (tensor.elements(), file.info(name)?);
    if elements > 0 && survey.zeros == elements as u64 && codes_name.is_none() {
        findings.add(Severity::Note, "all-zero", format!("all {elements} elements are zero"));
    }
    let report = TensorReport {
        name: name.to_owned(),
        dtype: info.dtype.to_string(),
        shape: info.shape,
        elements,
        bytes: tensor.data().len(),
        amax: Tensor::format(info.dtype).map(|_| survey.amax),
        zeros: survey.zeros,
        nan: survey.nan.count,
        infinite: survey.infinite.count,
        scales,
    };
    Ok((report, findings.list))
}

/// The findings about one tensor.
struct Findings<'a> {
    tensor: &'a str,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, severity: Severity, kind: &'static str, message: String) {
        self.list.push(Finding { severity, kind, tensor: self.tensor.to_owned(), message });
    }

    fn of_scales(&mut self, file: &TensorFile, scales: &Tensor, survey: &Survey, codes_name: &str) {
        let elements = scales.elements();
        if !file.contains(codes_name) {
            let message = format!("scales without codes: there is no tensor '{codes_name}' in this file");
            self.add(Severity::Error, "scale-without-codes", message);
        }
        let dtype = scales.dtype();
        if Tensor::format(dtype).is_none() && dtype != Dtype::U8 {
            let message = format!("scales are {dtype}, expected F32, BF16, F16, F64, F8_E8M0 or F8_E4M3");
            self.add(Severity::Error, "scale-dtype", message);
            return;
        }
        let mut count = |kind, what: &str, places: Places| {
            if let Some(first) = places.first {
                let message =
                    format!("{} of {elements} scales are {what}, the first at index {first}", places.count);
                self.add(Severity::Error, kind, message);
            }
        };
        if Tensor::format(dtype).is_some() {
            count("zero-scale", "zero", survey.zero);
            // UE4M3 has no sign: NVFP4 ignores the bit.
            if dtype != Dtype::F8_E4M3 {
                count("negative-scale", "negative", survey.negative);
            }
            count("nonfinite-scale", "NaN", survey.nan);
            count("nonfinite-scale", "infinite", survey.infinite);
        }
    }

    fn of_codes_or_values(
        &mut self,
        file: &TensorFile,
        tensor: &Tensor,
        survey: &Survey,
    ) -> Result<Option<ScaleReport>> {
        let dtype = tensor.dtype();
        let is_code = dtype.bitsize() == 8 && Tensor::format(dtype).is_some();
        let (kind, noun) = if is_code { ("nonfinite-code", "codes") } else { ("nonfinite-value", "values") };
        for (what, places) in [("NaN", survey.nan), ("infinite", survey.infinite)] {
            if let Some(first) = places.first {
                let (count, all) = (places.count, tensor.elements());
                let message = format!("{count} of {all} {noun} are {what}, the first at index {first}");
                self.add(Severity::Warning, kind, message);
            }
        }
        let scale_name = format!("{}{SCALE_SUFFIX}", self.tensor);
        if !file.contains(&scale_name) {
            if is_code && dtype != Dtype::F8_E8M0 {
                let message =
                    format!("{dtype} without scales: there is no tensor '{scale_name}' in this file");
                self.add(Severity::Note, "codes-without-scale", message);
            }
            return Ok(None);
        }
        let info = file.info(&scale_name)?;
        let granule = Granule::infer(tensor.shape(), &info.shape);
        if Tensor::is_float(dtype) {
            let message =
                format!("{dtype} with scales '{scale_name}': values that are scaled already, or codes lost");
            self.add(Severity::Warning, "scales-of-floats", message);
        }
        match granule {
            None => {
                let message = format!(
                    "scale grid {:?} of '{scale_name}' fits no granule of the codes' shape {:?}",
                    info.shape,
                    tensor.shape()
                );
                self.add(Severity::Error, "scale-grid", message);
            }
            Some(granule) if is_code && granule != Granule::TENSOR => {
                self.of_payload(tensor, &file.read(&scale_name)?, granule);
            }
            Some(_) => {}
        }
        let granule = granule.map(|g| g.to_string());
        Ok(Some(ScaleReport { name: scale_name, dtype: info.dtype.to_string(), shape: info.shape, granule }))
    }

    /// The silent bug: scales rounded up to powers of two, codes left as they were for the old scales.
    fn of_payload(&mut self, codes: &Tensor, scales: &Tensor, granule: Granule) {
        let Some(format) = Tensor::format(codes.dtype()) else { return };
        let Ok(values) = scales.to_f32() else { return };
        if !values.iter().all(|&s| e8m0::exact_log2(s).is_some()) {
            return;
        }
        let largest = format.spec().max_code() as u8;
        let peaks: Vec<u8> = granule_peaks(codes, format, granule).into_iter().filter(|&p| p > 0).collect();
        let full = peaks.iter().filter(|&&p| p == largest).count();
        if peaks.len() >= SUSPECT_GRANULES && full as f64 >= SUSPECT_SHARE * peaks.len() as f64 {
            let message = format!(
                "scales rounded to powers of two without requantising the payload: all {} scales are powers of two, \
                 yet {full} of {} {granule} granules have a code of magnitude {}",
                values.len(),
                peaks.len(),
                format.spec().max_finite()
            );
            self.add(Severity::Error, "not-requantised", message);
        }
    }
}

/// The largest finite magnitude code of every granule; codes without sign order like their values.
fn granule_peaks(codes: &Tensor, format: Format, granule: Granule) -> Vec<u8> {
    let (rows, cols) = match codes.shape() {
        [] => (1, 1),
        [cols] => (1, *cols),
        [.., rows, cols] => (*rows, *cols),
    };
    if codes.data().is_empty() {
        return Vec::new();
    }
    let spec = format.spec();
    let (magnitude, largest) = ((spec.code_mask() & !spec.sign_mask()) as u8, spec.max_code() as u8);
    let (grid_rows, grid_cols) = granule.grid(rows, cols);
    let mut peaks = Vec::new();
    for matrix in codes.data().chunks_exact(rows * cols) {
        let first = peaks.len();
        peaks.resize(first + grid_rows * grid_cols, 0u8);
        for (i, row) in matrix.chunks_exact(cols).enumerate() {
            let row_peaks = &mut peaks[first + i / granule.rows() * grid_cols..][..grid_cols];
            for (peak, part) in row_peaks.iter_mut().zip(row.chunks(granule.cols())) {
                let codes = part.iter().map(|c| c & magnitude).filter(|&c| c <= largest);
                *peak = codes.max().unwrap_or(0).max(*peak);
            }
        }
    }
    peaks
}

/// How many elements have a property, and the first of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Places {
    count: u64,
    first: Option<u64>,
}

impl Places {
    fn add(&mut self, holds: bool, index: u64) {
        if holds {
            self.count += 1;
            self.first.get_or_insert(index);
        }
    }

    fn join(self, later: Places) -> Places {
        Places { count: self.count + later.count, first: self.first.or(later.first) }
    }
}

/// Counts over all elements of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Survey {
    amax: f64,
    zeros: u64,
    zero: Places,
    negative: Places,
    nan: Places,
    infinite: Places,
}

impl Survey {
    fn of(tensor: &Tensor) -> Survey {
        match (tensor.dtype(), Tensor::format(tensor.dtype())) {
            (Dtype::F64, _) => Self::over(tensor.data(), f64::from_le_bytes),
            (Dtype::F32, _) => Self::over(tensor.data(), |b| f64::from(f32::from_le_bytes(b))),
            (Dtype::BF16 | Dtype::F16, Some(format)) => {
                Self::over(tensor.data(), |b| f64::from(format.decode_f32(u16::from_le_bytes(b))))
            }
            (_, Some(format)) => Self::over(tensor.data(), |[b]| f64::from(format.decode_f32(u16::from(b)))),
            // Integers: only zeros are counted.
            (dtype, None) => match dtype.bitsize() / 8 {
                0 => Survey::default(),
                width => {
                    let zeros = tensor.data().par_chunks_exact(width).filter(|e| e.iter().all(|&b| b == 0));
                    Survey { zeros: zeros.count() as u64, ..Survey::default() }
                }
            },
        }
    }

    fn over<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f64 + Sync) -> Survey {
        const CHUNK: usize = 1 << 16;
        let part = |(chunk, elements): (usize, &[[u8; N]])| {
            let mut survey = Survey::default();
            for (i, &bytes) in elements.iter().enumerate() {
                survey.add(value(bytes), (chunk * CHUNK + i) as u64);
            }
            survey
        };
        // The order of `join` is kept by rayon, so "first" is the first.
        data.as_chunks().0.par_chunks(CHUNK).enumerate().map(part).reduce(Survey::default, Survey::join)
    }

    fn add(&mut self, x: f64, index: u64) {
        if x.is_finite() {
            self.amax = self.amax.max(x.abs());
        }
        self.zeros += u64::from(x == 0.0);
        self.zero.add(x == 0.0, index);
        self.negative.add(x < 0.0, index);
        self.nan.add(x.is_nan(), index);
        self.infinite.add(x.is_infinite(), index);
    }

    fn join(self, later: Survey) -> Survey {
        Survey {
            amax: self.amax.max(later.amax),
            zeros: self.zeros + later.zeros,
            zero: self.zero.join(later.zero),
            negative: self.negative.join(later.negative),
            nan: self.nan.join(later.nan),
            infinite: self.infinite.join(later.infinite),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::write_tensors;

    fn findings(tensors: &[(&str, Tensor)]) -> Vec<(&'static str, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let tensors: Vec<_> = tensors.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
        write_tensors(&path, &tensors).unwrap();
        let all = inspect(&TensorFile::open(&path).unwrap(), &|_| ()).unwrap();
        all.findings.into_iter().map(|f| (f.kind, f.message)).collect()
    }

    fn codes(rows: usize, cols: usize, code: impl Fn(usize, usize) -> u8) -> Tensor {
        let data = (0..rows * cols).map(|i| code(i / cols, i % cols)).collect();
        Tensor::new(Dtype::F8_E4M3, vec![rows, cols], data).unwrap()
    }

    fn scales(rows: usize, cols: usize, values: &[f32]) -> Tensor {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(Dtype::F32, vec![rows, cols], data).unwrap()
    }

    #[test]
    fn rounded_scales_with_old_codes_are_found() {
        let full = codes(256, 256, |i, j| if i % 128 == 5 && j % 128 == 7 { 0xFE } else { 0x30 });
        let powers = scales(2, 2, &[0.5, 2.0, 0.25, 1.0]);
        let found = findings(&[("w", full.clone()), ("w_scale_inv", powers.clone())]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, "not-requantised");
        assert!(
            found[0].1.ends_with("4 of 4 128x128 granules have a code of magnitude 448"),
            "{}",
            found[0].1
        );

        // Maxima spread over (224, 448], or scales that are no powers of two: nothing is wrong.
        let spread = codes(256, 256, |i, j| 0x77 + (i / 128 * 2 + j / 128) as u8);
        assert_eq!(findings(&[("w", spread), ("w_scale_inv", powers)]), []);
        assert_eq!(findings(&[("w", full), ("w_scale_inv", scales(2, 2, &[0.5, 2.0, 0.3, 1.0]))]), []);
    }

    #[test]
    fn the_first_bad_element_is_named() {
        let mut values = vec![1.0f32; 200_000];
        (values[70_000], values[150_000]) = (f32::NAN, f32::NAN);
        let found = findings(&[("x", scales(1, 200_000, &values))]);
        let message = "2 of 200000 values are NaN, the first at index 70000".to_owned();
        assert_eq!(found, [("nonfinite-value", message)]);
    }

    #[test]
    fn matrices_of_no_elements_are_nothing_special() {
        let empty = Tensor::new(Dtype::F8_E4M3, vec![1 << 60, 0], vec![]).unwrap();
        let none = Tensor::new(Dtype::F32, vec![1 << 53, 0], vec![]).unwrap();
        assert_eq!(findings(&[("w", empty), ("w_scale_inv", none)]), []);
    }
}
