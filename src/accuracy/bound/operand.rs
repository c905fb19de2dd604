//! Operands as the bound reads them: exact values, and the exponents that align the terms of a fused step.

use std::ops::Range;

use crate::formats::{Format, Unpacked};
use crate::gemm::{BlockScales, GemmProblem, Model, StepSum, TensorCore};
use crate::scaled::{ScaleGridRef, ScaledRef};

/// A term of a sum.
#[derive(Clone, Copy)]
pub(super) struct Term {
    /// Of the operands as they are stored.
    pub(super) value: f64,
    /// Of the operands as the model reads them.
    pub(super) read: f64,
    /// 2^exponent as the tensor core aligns it, 0 for zero.
    pub(super) exponent: f64,
}

/// A row of an operand in f64. Everything is finite if `finite` says so, and of no use otherwise.
pub(super) struct Row {
    /// Codes' values, times the scales where the model multiplies by powers of two.
    values: Vec<f64>,
    /// The same as the model reads them: TF32 of F32, zeros of subnormals; empty where they are the values.
    read: Vec<f64>,
    /// 2^exponent of each element as the tensor core aligns it, unnormalised; 0 for zero.
    exponents: Vec<f64>,
    /// [`BlockScales::Fp4`]: value and 2^exponent of the scale of each group.
    groups: Vec<(f64, f64)>,
    /// What promotion multiplies each interval with.
    pub(super) scales: Vec<f32>,
    pub(super) finite: bool,
}

impl Row {
    pub(super) fn new(problem: &GemmProblem<'_>, x: &ScaledRef<'_>, i: usize) -> Row {
        let (spec, k) = (x.format().spec(), x.shape().1);
        let (mut values, mut exponents) = (Vec::with_capacity(k), Vec::with_capacity(k));
        let mut finite = true;
        let (in_model, pairwise, as_tf32) = match problem.accumulation().model() {
            Model::F32 | Model::Exact => (BlockScales::None, false, false),
            Model::TensorCore(core) => {
                (core.scales(), core.sum() == StepSum::Pairwise, x.format() == Format::F32)
            }
        };
        let mut read = Vec::new();
        let dropped = spec.mantissa_bits - TensorCore::mantissa_bits(x.format());
        for j in 0..k {
            let code = x.codes().at(i, j);
            let (value, mut exponent) = number(x.format(), spec.decode(u64::from(code)));
            if as_tf32 {
                let tf32 = number(x.format(), spec.decode(u64::from(code >> dropped << dropped)));
                read.push(tf32.0);
                exponent = tf32.1;
            }
            if pairwise {
                read.push(if value.abs() < spec.min_normal() { 0.0 } else { value });
            }
            finite &= value.is_finite();
            values.push(value);
            exponents.push(exponent);
        }
        let mut groups = Vec::new();
        if let (BlockScales::Mx | BlockScales::Fp4, Some(scales)) = (in_model, x.scales()) {
            let cols = scales.granule.cols();
            for block in 0..k.div_ceil(cols) {
                let (format, code) = match scales.grid {
                    ScaleGridRef::E8M0(m) => (Format::E8M0, m.at(i, block)),
                    // UE4M3: the sign bit does not count.
                    ScaleGridRef::E4M3(m) => (Format::E4M3, m.at(i, block) & 0x7F),
                    ScaleGridRef::F32(_) => {
                        unreachable!("no tensor core takes f32 scales: GemmProblem refuses them")
                    }
                };
                let scale = number(format, format.spec().decode(u64::from(code)));
                finite &= scale.0.is_finite();
                let range = block * cols..k.min((block + 1) * cols);
                if in_model == BlockScales::Mx {
                    values[range.clone()].iter_mut().for_each(|v| *v *= scale.0);
                    exponents[range].iter_mut().for_each(|e| *e *= scale.1);
                } else {
                    groups.extend(vec![scale; range.len().div_ceil(TensorCore::FP4_GROUP)]);
                }
            }
        }
        let interval = problem.interval();
        let scale = |t: usize| if problem.scales_in_model() { 1.0 } else { x.scale_at(i, t * interval) };
        let scales: Vec<f32> = (0..k.div_ceil(interval)).map(scale).collect();
        finite &= scales.iter().all(|s| s.is_finite()) && x.tensor_scale().is_finite();
        Row { values, read, exponents, groups, scales, finite }
    }

    /// The terms that a chain over `range` sums: products, or with FP4 scales groups of them, `range` then starting with
    /// one.
    pub(super) fn terms<'a>(
        &'a self,
        other: &'a Row,
        range: Range<usize>,
    ) -> impl Iterator<Item = Term> + Clone + 'a {
        let grouped = !self.groups.is_empty();
        let length = if grouped { TensorCore::FP4_GROUP } else { 1 };
        range.clone().step_by(length).map(move |start| {
            if !grouped {
                return Term {
                    value: self.values[start] * other.values[start],
                    read: self.read(start) * other.read(start),
                    exponent: self.exponents[start] * other.exponents[start],
                };
            }
            let group = start / TensorCore::FP4_GROUP;
            let ((sa, ea), (sb, eb)) = (self.groups[group], other.groups[group]);
            let products = start..(start + length).min(range.end);
            let products = products.map(|k| self.values[k] * other.values[k]);
            let (sum, any) = products.fold((0.0, false), |(sum, any), p| (sum + p, any | (p != 0.0)));
            let value = sum * (sa * sb);
            Term { value, read: value, exponent: if any { ea * eb } else { 0.0 } }
        })
    }

    /// Element `k` as the model reads it.
    fn read(&self, k: usize) -> f64 {
        if self.read.is_empty() { self.values[k] } else { self.read[k] }
    }

    /// Elements of K in one term.
    pub(super) fn term_length(&self) -> usize {
        if self.groups.is_empty() { 1 } else { TensorCore::FP4_GROUP }
    }
}

/// Value and 2^exponent, the exponent being that of the significand's leading bit as the format has it: subnormals keep
/// that of the smallest normal number. Zero has 0.
fn number(format: Format, x: Unpacked) -> (f64, f64) {
    match x {
        Unpacked::Zero { .. } => (0.0, 0.0),
        Unpacked::Finite { exponent, .. } => {
            (x.to_f64(), 2f64.powi(exponent + format.spec().mantissa_bits as i32))
        }
        Unpacked::Infinite { .. } | Unpacked::Nan { .. } => (f64::NAN, 0.0),
    }
}
