//! Small matrices that stand for all, to find the instruction set that is fastest at quantising and casting.

use super::Role;
use super::cast::Caster;
use super::on_cpu::OnCpu;
use super::recipe::Recipe;
use super::source::Source;
use crate::element::panel;
use crate::formats::{Format, Overflow, Rounding, TensorRounding};
use crate::matrix::Matrix;
use crate::parallel::Watch;
use crate::simd::{Cpu, Path, Trial};

/// Rows and columns: whole granules of every kind, 256 KiB of f32.
const SIZE: (usize, usize) = (128, 512);

fn sample() -> Matrix<f32> {
    let value = |i: usize, j: usize| ((31 * i + 17 * j) % 1009) as f32 - 504.0;
    Matrix::from_fn(SIZE.0, SIZE.1, value)
}

/// Quantisation in a role.
pub(crate) fn quantize(role: Role) -> Trial {
    let (x, mut out) = (sample(), None);
    Box::new(move |isa| {
        let cpu = Cpu { path: Path::Registers(Some(isa)), watch: Watch::NONE };
        let on = OnCpu { recipe: &Recipe::DEEPSEEK_V3, cpu };
        let done = match &mut out {
            None => {
                on.quantize(&Source::matrix(x.view(), role)).map(|quantized| out = Some(quantized.matrix))
            }
            Some(out) => on.quantize_into(panel(x.view()), role, out).map(drop),
        };
        done.expect("a set that the CPU has quantises to E4M3");
    })
}

/// A cast to E4M3.
pub(crate) fn cast() -> Trial {
    let (x, mut codes) = (sample(), vec![0u8; SIZE.0 * SIZE.1]);
    let nearest = TensorRounding::Fixed(Rounding::NearestEven);
    Box::new(move |isa| {
        let caster = Caster::new(Format::E4M3, nearest, Overflow::Saturate);
        let done = caster.on_path(Path::Registers(Some(isa))).bytes(x.as_slice(), &mut codes);
        done.expect("a set that the CPU has casts to E4M3");
    })
}
