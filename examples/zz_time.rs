use finegrain::{formats::*, matrix::Matrix, quant::*, simd::Isa};
use half::bf16;
use rayon::prelude::*;
use std::time::Instant;
fn best(bytes: f64, mut f: impl FnMut()) -> f64 {
    f();
    let mut b = f64::MAX;
    let t0 = Instant::now();
    while t0.elapsed().as_secs_f64() < 0.5 {
        let t = Instant::now();
        f();
        b = b.min(t.elapsed().as_secs_f64());
    }
    bytes / b / 1e9
}
fn main() {
    let (m, k) = (8192usize, 8192usize);
    let n = (m * k) as f64;
    let x = Matrix::from_vec(
        m,
        k,
        (0..m * k)
            .into_par_iter()
            .map(|i| ((i as u64).wrapping_mul(0x9E3779B97F4A7C15) >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            .collect(),
    )
    .unwrap();
    let y = Matrix::from_vec(m, k, x.as_slice().par_iter().map(|&v| bf16::from_f32(v)).collect()).unwrap();
    let src = vec![1u8; 5 << 25];
    let mut dst = vec![0u8; 5 << 25];
    let h = src.len() / 2;
    let copy = best(2.0 * src.len() as f64, || {
        src.par_chunks(h).zip(dst.par_chunks_mut(h)).for_each(|(a, b)| b.copy_from_slice(a))
    });
    println!("copy {copy:.1} GB/s");
    for isa in [Isa::Avx512Bf16, Isa::Avx2] {
        for name in ["deepseek-v3", "te", "deepgemm-ue8m0", "mxfp8", "nvfp4", "e5m6"] {
            let q = Quantizer::new(*Recipe::by_name(name).unwrap()).on(isa).unwrap();
            for role in [Role::Activation, Role::Weight, Role::Transposed] {
                let mut out = q.quantize(x.view(), role).unwrap().matrix;
                let a = best(5.0 * n, || {
                    q.quantize_into(x.view(), role, &mut out).unwrap();
                });
                let b = best(3.0 * n, || {
                    q.quantize_into(y.view(), role, &mut out).unwrap();
                });
                println!(
                    "{isa} {name:14} {role:?}: f32 {a:.1} GB/s ({:.0} %)  bf16 {b:.1} ({:.0} %)",
                    100. * a / copy,
                    100. * b / copy
                );
            }
        }
        let w = Quantizer::new(Recipe::DEEPSEEK_V3).weight(x.view()).unwrap().matrix;
        let act = Quantizer::new(Recipe::DEEPSEEK_V3).activation(x.view()).unwrap().matrix;
        let mut o = Matrix::filled(m, k, bf16::ZERO);
        let mut f = Matrix::filled(m, k, 0f32);
        for (s, w) in [("128x128", &w), ("1x128", &act)] {
            let a = best(3.0 * n, || w.view().dequantize_into(o.view_mut(), isa).unwrap());
            let b = best(5.0 * n, || w.view().dequantize_into(f.view_mut(), isa).unwrap());
            println!(
                "{isa} dequantize {s} bf16 {a:.1} ({:.0} %) f32 {b:.1} ({:.0} %)",
                100. * a / copy,
                100. * b / copy
            );
        }
        let q = Quantizer::new(Recipe::DEEPSEEK_V3).on(isa).unwrap();
        let a = best(2.0 * n, || {
            q.requantize_transposed(act.view()).unwrap();
        });
        println!("{isa} requantize-transposed {a:.1} ({:.0} %)", 100. * a / copy);
    }
    let copy = best(2.0 * src.len() as f64, || {
        src.par_chunks(h).zip(dst.par_chunks_mut(h)).for_each(|(a, b)| b.copy_from_slice(a))
    });
    println!("copy {copy:.1} GB/s");
}
