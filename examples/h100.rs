//! Which bits does an H100 give? The FP8 tensor core of Hopper, step by step and in a GEMM, without the GPU.
//!
//! ```sh
//! cargo run --release --example h100
//! ```

use finegrain::accuracy::{OutputFormat, bound};
use finegrain::formats::Format;
use finegrain::gemm::{Accumulation, GemmProblem};
use finegrain::matrix::Matrix;
use finegrain::quant::{Quantizer, Recipe};
use finegrain::scaled::{Codes, ScaledMatrix};

fn main() -> finegrain::Result<()> {
    // One step: 256·256 and 31 products of 4·1.875. Aligned to 2^16, Hopper keeps 13 bits: units of 8. f32 keeps all.
    let row = |first: u8, rest: u8| {
        let codes = Matrix::from_fn(1, 32, |_, k| if k == 0 { first } else { rest });
        ScaledMatrix::new(Format::E4M3, Codes::Bytes(codes), None)
    };
    let (a, b) = (row(0x78, 0x48)?, row(0x78, 0x3F)?); // codes of 256, 4 and 1.875
    for accumulation in [Accumulation::EXACT, Accumulation::HOPPER, Accumulation::BLACKWELL] {
        let d = GemmProblem::nt(a.view(), b.view())?.with_accumulation(accumulation)?.run()?;
        println!("one step of 32, {accumulation:14} {:>9} {:08X}", d.row(0)[0], d.row(0)[0].to_bits());
    }

    // A GEMM as DeepSeek-V3 runs it: 1×128 tiles by 128×128 blocks, promoted to FP32 every 128 elements of K.
    let x = Matrix::from_fn(4, 7168, |t, c| ((t * 71 + c * 13) % 97) as f32 * 0.1 - 4.0);
    let w = Matrix::from_fn(256, 7168, |o, c| ((o * 29 + c * 7) % 89) as f32 * 0.01 - 0.3);
    let quantizer = Quantizer::new(Recipe::DEEPSEEK_V3);
    let (x, w) = (quantizer.activation(x.view())?, quantizer.weight(w.view())?);
    for accumulation in [Accumulation::F32, Accumulation::HOPPER.promoted::<128>()] {
        let problem = GemmProblem::nt(x.view(), w.view())?.with_accumulation(accumulation)?;
        let d = problem.run()?;
        let bound = bound(&problem, OutputFormat::F32);
        let bits: Vec<String> = d.row(0)[..4].iter().map(|v| format!("{:08X}", v.to_bits())).collect();
        let (error, most) = ((f64::from(d.row(0)[0]) - bound.exact.row(0)[0]).abs(), bound.bound.row(0)[0]);
        println!(
            "D[0, 0..4], {accumulation:10} {}  error of the first {error:.1e}, at most {most:.1e}",
            bits.join(" ")
        );
    }
    Ok(())
}
