//! What a checkpoint holds, and what is wrong with it. One tensor is in memory at a time, with its scales.

use std::collections::HashMap;

use safetensors::Dtype;
use serde::Serialize;

use super::header::TensorInfo;
use super::pairs::{Part, is_called_scale, stems_within_layer};
use super::scaled::{ReadAs, ScaledTensor};
use super::source::Checkpoint;
use super::survey::{Places, Survey};
use super::tensor::Tensor;
use crate::error::Result;
use crate::formats::e8m0;
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
    /// A word for programs: `scale-grid`, `scale-dtype`, `scale-format`, `scale-without-codes`, `scale-unknown`,
    /// `scales-twice`, `missing-scale`, `codes-without-scale`, `scales-of-floats`, `zero-scale`, `negative-scale`,
    /// `nonfinite-scale`, `nonfinite-code`, `nonfinite-value`, `foreign`, `all-zero`, `not-requantised`,
    /// `duplicate-tensor`, `missing-tensor`.
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
    /// The codes that it is scales of, or belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scales_of: Option<String>,
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

/// Reads a whole checkpoint. `done` is told after each tensor how many more bytes are finished.
///
/// # Errors
/// [`crate::Error::File`] if a file cannot be read. What is merely wrong with its tensors is a finding.
pub fn inspect(checkpoint: &Checkpoint, done: &dyn Fn(u64)) -> Result<Inspection> {
    let mut all = Inspection { bytes: 0, tensors: Vec::new(), findings: Vec::new() };
    let strays = strays(checkpoint);
    for name in checkpoint.names() {
        let (report, findings) = inspect_tensor(checkpoint, name, &strays)?;
        done(report.bytes as u64);
        all.bytes += report.bytes as u64;
        all.tensors.push(report);
        all.findings.extend(findings);
    }
    let mut whole = |severity, kind, names: &[String], message: &str| {
        let finding =
            |tensor: &String| Finding { severity, kind, tensor: tensor.clone(), message: message.to_owned() };
        all.findings.extend(names.iter().map(finding));
    };
    whole(Severity::Error, "duplicate-tensor", checkpoint.duplicates(), "is in two files");
    if checkpoint.path().is_dir() {
        let message = "is in the index and in no file";
        whole(Severity::Error, "missing-tensor", checkpoint.missing(), message);
    }
    Ok(all)
}

/// Of codes, the tensors beside them that are called like scales and that no rule takes for theirs.
fn strays(checkpoint: &Checkpoint) -> HashMap<&str, Vec<&str>> {
    let pairs = checkpoint.pairs();
    let mut layers: HashMap<&str, &str> = HashMap::new();
    for name in checkpoint.names().iter().filter(|name| pairs.is_codes(name)) {
        layers.insert(name, name);
        if let Some(layer) = name.strip_suffix(".weight") {
            layers.insert(layer, name);
        }
    }
    let mut strays: HashMap<&str, Vec<&str>> = HashMap::new();
    let is_free = |name: &&String| pairs.owner(name).is_none() && !pairs.is_codes(name);
    for name in checkpoint.names().iter().filter(is_free).filter(|name| is_called_scale(name)) {
        if let Some(codes) = stems_within_layer(name).find_map(|stem| layers.get(stem)) {
            strays.entry(codes).or_default().push(name);
        }
    }
    strays
}

fn inspect_tensor(
    checkpoint: &Checkpoint,
    name: &str,
    strays: &HashMap<&str, Vec<&str>>,
) -> Result<(TensorReport, Vec<Finding>)> {
    let tensor = checkpoint.read(name)?;
    let survey = Survey::of(&tensor);
    let mut findings = Findings { checkpoint, tensor: name, list: Vec::new() };
    let owner = checkpoint.pairs().owner(name);
    let scales = match owner {
        Some((codes, part)) => {
            findings.of_scales(&tensor, &survey, codes, part)?;
            None
        }
        None => findings.of_codes_or_values(&tensor, &survey)?,
    };
    for stray in strays.get(name).into_iter().flatten() {
        findings.stray(Severity::Note, stray);
    }
    let (elements, info) = (tensor.elements(), checkpoint.info(name)?);
    if elements > 0 && survey.zeros == elements as u64 && owner.is_none() {
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
        scales_of: owner.map(|(codes, _)| codes.to_owned()),
    };
    Ok((report, findings.list))
}

/// The findings about one tensor.
struct Findings<'a> {
    checkpoint: &'a Checkpoint,
    tensor: &'a str,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, severity: Severity, kind: &'static str, message: String) {
        self.list.push(Finding { severity, kind, tensor: self.tensor.to_owned(), message });
    }

    fn of_scales(&mut self, scales: &Tensor, survey: &Survey, codes: &str, part: Part) -> Result<()> {
        if part == Part::Foreign {
            let message = format!("belongs to '{codes}' in a way that no rule reads");
            self.add(Severity::Note, "foreign", message);
            return Ok(());
        }
        let (elements, dtype) = (scales.elements(), scales.dtype());
        if Tensor::format(dtype).is_none() {
            if matches!(dtype, Dtype::U8 | Dtype::I8) {
                let message =
                    format!("scales of '{codes}' are {dtype}: of which format (E8M0, E4M3) is not said");
                self.add(Severity::Note, "scale-format", message);
            } else {
                let message = format!("scales are {dtype}, expected F32, BF16, F16, F64, F8_E8M0 or F8_E4M3");
                self.add(Severity::Error, "scale-dtype", message);
            }
            return Ok(());
        }
        // A zero that nothing but zeros stands under changes no value.
        let under_codes = match (survey.zero.first, part) {
            (None, _) => Some(Places::default()),
            (_, Part::Activation) => None,
            (_, Part::Block) => self.zeros_under_codes(codes),
            _ if self.is_zero(codes)? => Some(Places::default()),
            _ => Some(survey.zero),
        };
        // Where the codes cannot be read it may be so.
        let (zeros, zero_severity) =
            under_codes.map_or((survey.zero, Severity::Warning), |zeros| (zeros, Severity::Error));
        let severity = if part == Part::Activation { Severity::Warning } else { Severity::Error };
        let mut count = |severity, kind, what: &str, places: Places| {
            if let Some(first) = places.first {
                let message =
                    format!("{} of {elements} scales are {what}, the first at index {first}", places.count);
                self.add(severity, kind, message);
            }
        };
        count(zero_severity, "zero-scale", "zero", zeros);
        // UE4M3 has no sign: NVFP4 ignores the bit.
        if dtype != Dtype::F8_E4M3 {
            count(severity, "negative-scale", "negative", survey.negative);
        }
        count(severity, "nonfinite-scale", "NaN", survey.nan);
        count(severity, "nonfinite-scale", "infinite", survey.infinite);
        Ok(())
    }

    fn stray(&mut self, severity: Severity, name: &str) {
        let message =
            format!("'{name}' beside it looks like scales, but no rule takes it for those of these codes");
        self.add(severity, "scale-unknown", message);
    }

    /// The zeros among block scales whose codes are not all zero; `None` where that cannot be told.
    fn zeros_under_codes(&self, codes: &str) -> Option<Places> {
        let codes = read_codes(self.checkpoint, codes)?;
        let mut zeros = Places::default();
        for (i, (scale, peak)) in codes.block_scales().into_iter().zip(codes.peaks()?).enumerate() {
            zeros.add(scale == 0.0 && peak > 0, i as u64);
        }
        Some(zeros)
    }

    /// Whether all codes are zero.
    fn is_zero(&self, codes: &str) -> Result<bool> {
        if !self.checkpoint.contains(codes) {
            return Ok(false);
        }
        Ok(read_codes(self.checkpoint, codes)
            .and_then(|c| c.peaks())
            .is_some_and(|p| p.iter().all(|&p| p == 0)))
    }

    fn of_codes_or_values(&mut self, tensor: &Tensor, survey: &Survey) -> Result<Option<ScaleReport>> {
        let (dtype, pairs) = (tensor.dtype(), self.checkpoint.pairs());
        let is_code = dtype.bitsize() == 8 && Tensor::format(dtype).is_some();
        let (kind, noun) = if is_code { ("nonfinite-code", "codes") } else { ("nonfinite-value", "values") };
        for (what, places) in [("NaN", survey.nan), ("infinite", survey.infinite)] {
            if let Some(first) = places.first {
                let (count, all) = (places.count, tensor.elements());
                let message = format!("{count} of {all} {noun} are {what}, the first at index {first}");
                self.add(Severity::Warning, kind, message);
            }
        }
        if !pairs.is_codes(self.tensor) {
            self.of_values(dtype);
            return Ok(None);
        }
        let scales: Vec<&str> = pairs
            .partners(self.tensor)
            .iter()
            .filter(|p| p.part == Part::Block)
            .map(|p| p.name.as_str())
            .collect();
        let Some(&scale_name) = scales.first() else {
            let message = format!(
                "{dtype} without scales: there is no tensor '{}{SCALE_SUFFIX}' in this checkpoint, nor scales by another name",
                self.tensor
            );
            self.add(Severity::Note, "codes-without-scale", message);
            for partner in pairs.partners(self.tensor).iter().filter(|p| p.part == Part::Foreign) {
                self.stray(Severity::Warning, &partner.name);
            }
            return Ok(None);
        };
        if let [first, second, ..] = scales[..] {
            let message = format!("has scales twice, '{first}' and '{second}'");
            self.add(Severity::Error, "scales-twice", message);
        }
        if !self.checkpoint.contains(scale_name) {
            let message = format!("its scales '{scale_name}' are in a file that is not there");
            self.add(Severity::Warning, "missing-scale", message);
            return Ok(None);
        }
        let info = self.checkpoint.info(scale_name)?;
        let granule = self.granule(tensor, &info, is_code)?;
        let granule = granule.map(|g| g.to_string());
        Ok(Some(ScaleReport {
            name: scale_name.to_owned(),
            dtype: info.dtype.to_string(),
            shape: info.shape,
            granule,
        }))
    }

    /// The granule of codes, and what their scales say of them.
    fn granule(&mut self, tensor: &Tensor, scales: &TensorInfo, is_code: bool) -> Result<Option<Granule>> {
        if !is_code {
            // Integers: a code each, or two, or blocks of them in a dimension of their own.
            return Ok(shapes_of_integers(tensor)
                .iter()
                .find_map(|shape| Granule::infer(shape, &scales.shape)));
        }
        let codes = ScaledTensor::of_codes(self.checkpoint, self.tensor, tensor.clone(), &ReadAs::default());
        let Ok(codes) = codes else {
            return Ok(Granule::infer(tensor.shape(), &scales.shape));
        };
        if let Some(message) = codes.misfit() {
            // What an option would read is no fault of the file.
            let severity = if message.contains("--") { Severity::Warning } else { Severity::Error };
            self.add(severity, "scale-grid", message.to_owned());
        }
        if codes.granule().is_some_and(|g| g != Granule::TENSOR) {
            self.of_payload(&codes);
        }
        Ok(codes.granule())
    }

    /// The findings about a tensor that is neither codes nor scales.
    fn of_values(&mut self, dtype: Dtype) {
        let scale_name = format!("{}{SCALE_SUFFIX}", self.tensor);
        if Tensor::is_float(dtype) && self.checkpoint.contains(&scale_name) {
            let message =
                format!("{dtype} with scales '{scale_name}': values that are scaled already, or codes lost");
            self.add(Severity::Warning, "scales-of-floats", message);
        }
        let codes = [SCALE_SUFFIX, TENSOR_SCALE_SUFFIX].iter().find_map(|s| self.tensor.strip_suffix(s));
        if let Some(codes) = codes.filter(|codes| !self.checkpoint.contains(codes)) {
            let message = format!("called like scales: there is no tensor '{codes}' in this checkpoint");
            self.add(Severity::Warning, "scale-without-codes", message);
        }
    }

    /// The silent bug: scales rounded up to powers of two, codes left as they were for the old scales.
    fn of_payload(&mut self, codes: &ScaledTensor) {
        let scales = codes.block_scales();
        if !scales.iter().all(|&s| e8m0::exact_log2(s).is_some()) {
            return;
        }
        let spec = codes.format().spec();
        let largest = spec.max_code() as u16;
        let peaks: Vec<u16> = codes.peaks().unwrap_or_default().into_iter().filter(|&p| p > 0).collect();
        let full = peaks.iter().filter(|&&p| p == largest).count();
        // Maxima of 7·2^k give the largest code with true powers of two; but then the values lie on a coarse grid.
        if peaks.len() >= SUSPECT_GRANULES
            && full as f64 >= SUSPECT_SHARE * peaks.len() as f64
            && !codes.is_on_coarse_grid()
        {
            let granule = codes.granule().map_or(String::new(), |g| g.to_string());
            let message = format!(
                "scales rounded to powers of two without requantising the payload: all {} scales are powers of two, \
                 yet {full} of {} {granule} granules have a code of magnitude {}",
                scales.len(),
                peaks.len(),
                spec.max_finite()
            );
            self.add(Severity::Error, "not-requantised", message);
        }
    }
}

/// Codes with their scales, where nothing has to be said to read them.
fn read_codes(checkpoint: &Checkpoint, name: &str) -> Option<ScaledTensor> {
    ScaledTensor::read(checkpoint, name, &ReadAs::default()).ok()
}

/// The shapes that the values of integers may have.
fn shapes_of_integers(tensor: &Tensor) -> Vec<Vec<usize>> {
    let shape = tensor.shape().to_vec();
    let doubled = |mut shape: Vec<usize>| {
        if let Some(last) = shape.last_mut() {
            *last = last.saturating_mul(2);
        }
        shape
    };
    let blocks = match *tensor.shape() {
        [ref lead @ .., groups, bytes] if !lead.is_empty() => {
            vec![doubled([lead, &[groups.saturating_mul(bytes)]].concat())]
        }
        _ => vec![],
    };
    [vec![shape.clone(), doubled(shape)], blocks].concat()
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
        let all = inspect(&Checkpoint::open(&path).unwrap(), &|_| ()).unwrap();
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
