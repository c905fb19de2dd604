use finegrain::{matrix::Matrix, quant::*};
use half::bf16;
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (m, k) = (8192usize, 8192usize);
    let x = Matrix::from_vec(
        m,
        k,
        (0..m * k)
            .map(|i| ((i as u64).wrapping_mul(0x9E3779B97F4A7C15) >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            .collect(),
    )
    .unwrap();
    let q = Quantizer::new(*Recipe::by_name(&a[1]).unwrap());
    let role = match &a[2][..] {
        "a" => Role::Activation,
        "w" => Role::Weight,
        _ => Role::Transposed,
    };
    let mut out = q.quantize(x.view(), role).unwrap().matrix;
    let (mut c, mut d) = (vec![1u8; 168 << 20], vec![0u8; 168 << 20]);
    let mut o = Matrix::filled(m, k, bf16::ZERO);
    use rayon::prelude::*;
    for _ in 0..6 {
        let t = Instant::now();
        for _ in 0..4 {
            c.par_chunks(84 << 20).zip(d.par_chunks_mut(84 << 20)).for_each(|(a, b)| b.copy_from_slice(a));
            std::mem::swap(&mut c, &mut d);
        }
        let copy = (336 << 20) as f64 * 4.0 / t.elapsed().as_secs_f64() / 1e9;
        let t = Instant::now();
        for _ in 0..6 {
            if a.len() > 3 {
                out.view().dequantize_into(o.view_mut(), finegrain::simd::Isa::active().unwrap()).unwrap();
            } else {
                q.quantize_into(x.view(), role, &mut out).unwrap();
            }
        }
        let b = if a.len() > 3 { 3.0 } else { 5.0 };
        let g = b * 6.0 * (m * k) as f64 / t.elapsed().as_secs_f64() / 1e9;
        println!("copy {copy:.1} work {g:.1} = {:.0} %", 100.0 * g / copy);
    }
}
