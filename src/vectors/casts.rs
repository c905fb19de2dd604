//! Casts to the narrow formats, and the values of their codes.

use super::{Vectors, tensor};
use crate::checkpoint::{CastOptions, CastRounding, Dtype, Tensor, cast_tensor};
use crate::error::Result;
use crate::formats::{Format, Overflow, Rounding, TensorRounding};

/// Prime, so that all low bits occur; 2^32 / 131071 leaves 32769 patterns.
const F32_STRIDE: usize = 131_071;
const SEED: u64 = 7;

const ROUNDINGS: [(&str, CastRounding); 6] = {
    const fn fixed(rounding: Rounding) -> CastRounding {
        CastRounding::Tensor(TensorRounding::Fixed(rounding))
    }
    [
        ("nearest-even", fixed(Rounding::NearestEven)),
        ("toward-zero", fixed(Rounding::TowardZero)),
        ("up", fixed(Rounding::Up)),
        ("down", fixed(Rounding::Down)),
        ("nearest-away", fixed(Rounding::NearestAway)),
        ("tilekernels", CastRounding::TileKernels),
    ]
};

const OVERFLOWS: [(&str, Overflow); 2] =
    [("saturate", Overflow::Saturate), ("nonsaturating", Overflow::NonSaturating)];

/// The formats that are cast to: all of at most 12 bits.
fn narrow() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|f| f.spec().bits() <= 12)
}

pub(super) fn vectors() -> Result<Vectors> {
    let mut out = Vectors::new("casts", "casts to the narrow formats, and the values of their codes");
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for dtype in [Dtype::BF16, Dtype::F16] {
        let name = dtype.to_string().to_lowercase();
        out.input(name, None, tensor(dtype, &[all.len()], &all, |x| x.to_le_bytes())?);
    }
    let stride: Vec<u32> = (0..=u32::MAX).step_by(F32_STRIDE).collect();
    out.input("f32", None, tensor(Dtype::F32, &[stride.len()], &stride, |x| x.to_le_bytes())?);
    for format in narrow() {
        let codes: Vec<u16> = (0..=format.spec().code_mask() as u16).collect();
        let values: Vec<f32> = codes.iter().map(|&c| format.decode_f32(c)).collect();
        let name = format!("{format}.codes");
        out.input(&name, Some(format), code_tensor(format, &codes)?);
        let decoded = tensor(Dtype::F32, &[values.len()], &values, |x| x.to_le_bytes())?;
        out.output(format!("{format}.values"), None, decoded, ("decode", &[&name], &[]));

        let midpoints = midpoints(values);
        let of_midpoints = format!("{format}.midpoints");
        let midpoints = tensor(Dtype::F32, &[midpoints.len()], &midpoints, |x| x.to_le_bytes())?;
        out.input(&of_midpoints, None, midpoints);
        for input in ["bf16", "f16", "f32", &of_midpoints] {
            casts(&mut out, format, input)?;
        }
    }
    // Every code of every format of at most 8 bits, cast on.
    for format in narrow() {
        for from in narrow().filter(|f| f.spec().bits() <= 8) {
            casts(&mut out, format, &format!("{from}.values"))?;
        }
    }
    Ok(out)
}

/// The input in every rounding and overflow mode that the format has.
fn casts(out: &mut Vectors, format: Format, input: &str) -> Result<()> {
    let at = out.entry.tensors.iter().position(|t| t.name == input).expect("operands come first");
    let x = out.tensors[at].clone();
    let own = input.split('.').next() == Some(format.name());
    let prefix = if own { input.to_owned() } else { format!("{format}.{input}") };
    let stochastic = CastRounding::Tensor(TensorRounding::Stochastic { seed: SEED });
    for (rounding_name, rounding) in ROUNDINGS.into_iter().chain([("stochastic", stochastic)]) {
        for (overflow_name, overflow) in OVERFLOWS {
            // Combinations that a format does not have are refused.
            let Ok(options) = CastOptions::new(format, rounding, overflow) else { continue };
            let (codes, _) = cast_tensor(&x, input, &options, &|_| ())?;
            let seed = SEED.to_string();
            let mut parameters = vec![("format", format.name()), ("rounding", rounding_name)];
            parameters.push(("overflow", overflow_name));
            if rounding_name == "stochastic" {
                parameters.extend([("seed", seed.as_str()), ("tensor", input)]);
            }
            let name = format!("{prefix}.{rounding_name}.{overflow_name}");
            out.output(name, Some(format), codes, ("cast", &[input], &parameters));
        }
    }
    Ok(())
}

/// Halfway between neighbouring values, with the f32 below and above.
fn midpoints(mut values: Vec<f32>) -> Vec<f32> {
    values.retain(|v| v.is_finite());
    values.sort_by(f32::total_cmp);
    let middle = |pair: &[f32]| ((f64::from(pair[0]) + f64::from(pair[1])) / 2.0) as f32;
    values.windows(2).map(middle).flat_map(|m| [m.next_down(), m, m.next_up()]).collect()
}

fn code_tensor(format: Format, codes: &[u16]) -> Result<Tensor> {
    let dtype = Tensor::code_dtype(format);
    match dtype.bitsize() {
        8 => tensor(dtype, &[codes.len()], codes, |&c| [c as u8]),
        _ => tensor(dtype, &[codes.len()], codes, |c| c.to_le_bytes()),
    }
}
