//! Quantised tensors as files hold them: tensor T as codes under its own name, `T_scale_inv` beside it, and
//! `T_scale_tensor` for two-level formats. Tensors of more than two dimensions are stacks of matrices.

use safetensors::Dtype;

use super::inspect::{SCALE_SUFFIX, TENSOR_SCALE_SUFFIX};
use super::scaled::{ReadAs, ScaledTensor};
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::formats::Format;
use crate::matrix::MatRef;
use crate::quant::{QuantStats, Quantizer, Recipe, Role, ScaleFormat};
use crate::scaled::{Codes, Granule, ScaleGrid};

/// Dtypes and shapes of a quantised tensor, known before it is quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedLayout {
    /// Elements that share one scale, in the matrix as stored.
    pub granule: Granule,
    /// Codes.
    pub codes: (Dtype, Vec<usize>),
    /// Scales: one dimension of size 1 for a granule that is the whole matrix, else as many dimensions as the codes.
    pub scales: (Dtype, Vec<usize>),
    /// Scales of the second level, one for each matrix, where the recipe has them.
    pub tensor_scales: Option<(Dtype, Vec<usize>)>,
}

impl QuantizedLayout {
    /// The layout of a tensor of this shape.
    ///
    /// # Errors
    /// [`Error::Shape`] for fewer than two dimensions.
    pub fn of(shape: &[usize], recipe: &Recipe, role: Role) -> Result<Self> {
        let [lead @ .., rows, cols] = shape else {
            return Err(Error::Shape(format!("shape {shape:?}: quantising needs at least two dimensions")));
        };
        let (rows, cols, granule) = match role {
            Role::Activation => (*rows, *cols, recipe.activation),
            Role::Weight => (*rows, *cols, recipe.weight),
            Role::Transposed => (*cols, *rows, recipe.activation),
        };
        let (grid_rows, grid_cols) = granule.grid(rows, cols);
        let grid = match (lead, granule) {
            ([], Granule::TENSOR) => vec![1],
            _ => [lead, &[grid_rows, grid_cols]].concat(),
        };
        let scales = match recipe.scale_format() {
            ScaleFormat::F32 | ScaleFormat::PowerOfTwoF32 => Dtype::F32,
            ScaleFormat::E8M0 => Dtype::F8_E8M0,
            ScaleFormat::E4M3 => Dtype::F8_E4M3,
        };
        let lead_or_one = if lead.is_empty() { vec![1] } else { lead.to_vec() };
        Ok(QuantizedLayout {
            granule,
            codes: (Tensor::code_dtype(recipe.element), [lead, &[rows, cols]].concat()),
            scales: (scales, grid),
            tensor_scales: recipe.needs_tensor_amax().then_some((Dtype::F32, lead_or_one)),
        })
    }

    /// Name, dtype and shape of the tensors that tensor `name` becomes.
    pub fn tensors(&self, name: &str) -> Vec<(String, Dtype, Vec<usize>)> {
        let parts = [("", Some(&self.codes)), (SCALE_SUFFIX, Some(&self.scales))];
        let parts = parts.into_iter().chain([(TENSOR_SCALE_SUFFIX, self.tensor_scales.as_ref())]);
        let named = |(suffix, part): (&str, Option<&(Dtype, Vec<usize>)>)| {
            part.map(|(dtype, shape)| (format!("{name}{suffix}"), *dtype, shape.clone()))
        };
        parts.filter_map(named).collect()
    }
}

/// Quantises a float tensor, each matrix of it on its own: the tensors of [`QuantizedLayout::tensors`], in that order.
/// F64 is rounded to f32 first, which is what recipes compute in.
///
/// ```
/// use finegrain::checkpoint::{quantize_tensor, Tensor};
/// use finegrain::matrix::Matrix;
/// use finegrain::quant::{Recipe, Role};
/// let w = Tensor::from_f32(&Matrix::filled(200, 300, 0.5f32));
/// let (tensors, stats) = quantize_tensor(&w, "w", &Recipe::DEEPSEEK_V3, Role::Weight)?;
/// assert_eq!((tensors[1].0.as_str(), tensors[1].1.shape()), ("w_scale_inv", [2, 3].as_slice()));
/// assert_eq!(stats.granules, 6);
/// # Ok::<(), finegrain::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`] for integers; [`Error::Shape`] for fewer than two dimensions or no elements.
pub fn quantize_tensor(
    tensor: &Tensor,
    name: &str,
    recipe: &Recipe,
    role: Role,
) -> Result<(Vec<(String, Tensor)>, QuantStats)> {
    let layout = QuantizedLayout::of(tensor.shape(), recipe, role)?;
    if tensor.elements() == 0 {
        return Err(Error::Shape(format!("shape {:?}: there is nothing to quantise", tensor.shape())));
    }
    let [.., rows, cols] = *tensor.shape() else { unreachable!("the layout has two dimensions") };
    let x = tensor.to_f32()?;
    let quantizer = Quantizer::new(*recipe);
    let (mut codes, mut scales, mut tensor_scales) = (Vec::new(), Vec::new(), Vec::new());
    let mut stats = QuantStats::default();
    for matrix in x.chunks_exact(rows * cols) {
        let quantized = quantizer.quantize(MatRef::new(matrix, rows, cols)?, role)?;
        stats = stats + quantized.stats;
        let (_, matrix, parts) = quantized.matrix.into_parts();
        match matrix {
            Codes::Bytes(m) => codes.extend_from_slice(m.as_slice()),
            Codes::Words(m) => codes.extend(m.as_slice().iter().flat_map(|c| c.to_le_bytes())),
            Codes::Dwords(m) => codes.extend(m.as_slice().iter().flat_map(|c| c.to_le_bytes())),
        }
        let parts = parts.expect("quantisers give scales");
        match parts.grid {
            ScaleGrid::F32(m) => scales.extend(m.as_slice().iter().flat_map(|s| s.to_le_bytes())),
            ScaleGrid::E8M0(m) | ScaleGrid::E4M3(m) => scales.extend_from_slice(m.as_slice()),
        }
        tensor_scales.extend(parts.tensor.to_le_bytes());
    }
    let data = [codes, scales, tensor_scales];
    let tensors = layout.tensors(name).into_iter().zip(data);
    let tensors = tensors.map(|((name, dtype, shape), data)| Ok((name, Tensor::new(dtype, shape, data)?)));
    Ok((tensors.collect::<Result<_>>()?, stats))
}

/// The values of codes with their scales, in f32: fl(code · scale), then times the tensor scale where there is one. The
/// granule is inferred from the shapes ([`Granule::infer`]) unless given. Files are read by
/// [`ScaledTensor`](super::ScaledTensor).
///
/// # Errors
/// [`Error::Shape`] if the scales' shape does not fit the codes'; [`Error::Unsupported`] for scales of an integer dtype, and
/// if `FINEGRAIN_ISA` names an instruction set that the CPU lacks; [`Error::Invalid`] if the codes are not codes of `format`.
pub fn dequantize_tensor(
    codes: &Tensor,
    format: Format,
    scales: &Tensor,
    tensor_scales: Option<&Tensor>,
    granule: Option<Granule>,
) -> Result<(Vec<f32>, Granule)> {
    let read_as = ReadAs { format: Some(format), granule, ..ReadAs::default() };
    let mut scaled = ScaledTensor::join("codes", codes.clone(), Some((scales, "scales")), &read_as)?;
    if let Some(tensor_scales) = tensor_scales {
        scaled = scaled.with_tensor_scales(tensor_scales.to_f32()?)?;
    }
    let values = scaled.dequantize()?;
    let granule = scaled.granule().ok_or_else(|| Error::Shape("scales without a granule".to_owned()))?;
    Ok((values, granule))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        let data = (0..n).flat_map(|i| ((i * 7919 % 1009) as f32 / 100.0 - 5.0).to_le_bytes()).collect();
        Tensor::new(Dtype::F32, shape.to_vec(), data).unwrap()
    }

    /// Every recipe and role, two and three dimensions: what is written is read, and lies near the input.
    #[test]
    fn every_recipe_comes_back() {
        for recipe in Recipe::ALL {
            for role in [Role::Activation, Role::Weight, Role::Transposed] {
                for shape in [vec![140, 300], vec![3, 65, 130]] {
                    let x = samples(&shape);
                    let what = format!("{} {role:?} {shape:?}", recipe.name);
                    let (tensors, stats) = quantize_tensor(&x, "t", recipe, role).unwrap();
                    assert_eq!(stats.elements as usize, x.elements(), "{what}");
                    let tensor_scales = tensors.get(2).map(|(_, t)| t);
                    let (codes, scales) = (&tensors[0].1, &tensors[1].1);
                    let given = QuantizedLayout::of(&shape, recipe, role).unwrap().granule;
                    let dequantize =
                        |g| dequantize_tensor(codes, recipe.element, scales, tensor_scales, g).unwrap();
                    let (y, _) = dequantize(Some(given));
                    let (inferred, _) = dequantize(None);
                    assert_eq!(y, inferred, "{what}");
                    let mut x = x.to_f32().unwrap();
                    if role == Role::Transposed {
                        let [.., rows, cols] = shape[..] else { unreachable!() };
                        let transpose =
                            |m: &[f32]| MatRef::new(m, rows, cols).unwrap().transposed().into_vec();
                        x = x.chunks_exact(rows * cols).flat_map(transpose).collect();
                    }
                    let square = |v: f32| f64::from(v).powi(2);
                    let error: f64 = x.iter().zip(&y).map(|(a, b)| square(a - b)).sum();
                    let relative = (error / x.iter().map(|&a| square(a)).sum::<f64>()).sqrt();
                    let bound = if recipe.element.spec().bits() == 4 { 0.2 } else { 0.08 };
                    assert!(relative < bound, "{what}: {relative}");
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_told_with_both_numbers() {
        let codes = Tensor::new(Dtype::F8_E4M3, vec![256, 256], vec![0x38; 65536]).unwrap();
        let scales = samples(&[3, 5]);
        let fail = |g| dequantize_tensor(&codes, Format::E4M3, &scales, None, g).unwrap_err().to_string();
        let message = fail(None);
        assert!(message.contains("scale grid [3, 5] on codes [256, 256]"), "{message}");
        let message = fail(Some(Granule::BLOCK_128X128));
        assert!(message.contains("3×5, expected 2×2 for 256×256"), "{message}");
        assert!(quantize_tensor(&samples(&[4]), "t", &Recipe::TE, Role::Weight).is_err());
    }
}
