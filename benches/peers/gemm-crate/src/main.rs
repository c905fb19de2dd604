//! `gemm-crate M N K THREADS A B D`: D = A·Bᵀ in f32, each file the raw little-endian values in row-major order; A is M×K, B is N×K.
//! Prints the seconds of one product: the median of at least three that take a second together.

use std::time::{Duration, Instant};

fn read(path: &str, len: usize) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(bytes.len(), 4 * len, "{path}: {} bytes, expected {}", bytes.len(), 4 * len);
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [m, n, k, threads] = [0, 1, 2, 3].map(|i| args[i].parse::<usize>().expect("M N K THREADS are numbers"));
    let (a, b) = (read(&args[4], m * k), read(&args[5], n * k));
    let mut d = vec![0f32; m * n];
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    let mut product = || {
        let start = Instant::now();
        // SAFETY: the strides are those of row-major A (M×K), Bᵀ (K×N) and D (M×N), whose lengths were checked above.
        unsafe {
            gemm::gemm(
                m, n, k, d.as_mut_ptr(), 1, n as isize, false, a.as_ptr(), 1, k as isize, b.as_ptr(), k as isize, 1,
                0.0, 1.0, false, false, false, parallelism,
            );
        }
        start.elapsed()
    };
    product();
    let mut times = Vec::new();
    while times.len() < 3 || times.iter().sum::<Duration>() < Duration::from_secs(1) {
        times.push(product());
    }
    times.sort();
    let bytes: Vec<u8> = d.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(&args[6], bytes).unwrap_or_else(|e| panic!("{}: {e}", args[6]));
    println!("{}", times[times.len() / 2].as_secs_f64());
}
