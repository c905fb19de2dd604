//! Every recipe in every role, on ragged matrices with tiles that are hard.

use super::{Vectors, random};
use crate::checkpoint::{Tensor, quantize_tensor};
use crate::error::Result;
use crate::matrix::Matrix;
use crate::quant::{Recipe, Role};

const ROWS: usize = 140;
const COLS: usize = 300;
/// In the order in which the published files have them.
const ROLES: [Role; 3] = [Role::Activation, Role::Weight, Role::Transposed];

pub(super) fn vectors() -> Result<Vectors> {
    let mut out = Vectors::new("recipes", "matrices quantised by every recipe: codes, scales, tensor scales");
    let inputs =
        [("finite", Matrix::from_fn(ROWS, COLS, finite)), ("special", Matrix::from_fn(ROWS, COLS, special))];
    for (input, x) in inputs {
        let x = Tensor::from_f32(&x);
        for recipe in Recipe::ALL {
            for role in ROLES {
                let base = format!("{input}.{}.{role}", recipe.name);
                let parameters = [("recipe", recipe.name.as_str()), ("as", role.name())];
                for (name, tensor) in quantize_tensor(&x, &base, recipe, role)?.0 {
                    let format = (name == base).then_some(recipe.element);
                    out.output(name, format, tensor, ("quantize", &[input], &parameters));
                }
            }
        }
        out.input(input, None, x);
    }
    Ok(out)
}

/// Magnitudes over 16 binades; rows of zeros, subnormals, the largest values, powers of two and one outlier.
fn finite(i: usize, j: usize) -> f32 {
    let bits = random(11, i, j);
    let sign = ((bits >> 63) as u32) << 31;
    let with_exponent = |field: u32| f32::from_bits(sign | field << 23 | (bits as u32 & 0x7F_FFFF));
    match i % 16 {
        1 => f32::from_bits(sign),
        2 => f32::from_bits(sign | (bits as u32 & 0x7F_FFFF)),
        3 => with_exponent(254),
        4 => f32::from_bits(sign | (100 + (bits >> 40) as u32 % 50) << 23),
        5 if j % 128 != 77 => with_exponent(110),
        // An amax of exactly the largest element of a format, and its neighbours.
        6 if j % 32 == 5 => [448.0f32, 57344.0, 6.0, 448f32.next_up(), 448f32.next_down()][j / 32 % 5],
        _ => with_exponent(119 + (bits >> 40) as u32 % 16),
    }
}

/// The same with infinities, NaN, both, and whole tiles of NaN.
fn special(i: usize, j: usize) -> f32 {
    match (i % 8, j % 128) {
        (0, 9) => f32::INFINITY,
        (2, 31) => f32::NAN,
        (4, 3) => f32::NEG_INFINITY,
        (4, 100) => f32::from_bits(0xFFC0_0000),
        (6, _) if j < 128 => f32::NAN,
        _ => finite(i, j),
    }
}
