//! What the machine can do at best, measured: the yardstick of benchmarks.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::{Isa, Simd, Work};

/// Sums that are under way at once: enough to hide the latency of a step everywhere, few enough for 16 registers.
const SUMS: usize = 12;

/// A loop of nothing but steps of the GEMM, in registers; gives the multiply-adds done.
struct Steps {
    rounds: usize,
}

impl Work for Steps {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        let (a, b) = (s.splat(black_box(1.0)), s.splat(black_box(1e-9)));
        let mut sums = [s.splat(black_box(1.0)); SUMS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = s.step(a, b, *sum);
            }
        }
        let mut out = [0.0; 16];
        for sum in sums {
            s.store(sum, &mut out);
            black_box(&out);
        }
        (self.rounds * SUMS * S::LANES * S::PAIR) as u64
    }
}

/// A loop of nothing but loads; gives the bytes read.
struct Loads<'a> {
    data: &'a [u8],
}

impl Work for Loads<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        let (line, mut sums) = (4 * S::LANES, [s.splat_u32(0); 4]);
        for part in self.data.chunks_exact(4 * line) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.or(*sum, s.load_bytes(&part[i * line..]));
            }
        }
        let mut out = [0; 16];
        for sum in sums {
            s.store_u32(sum, &mut out);
            black_box(&out);
        }
        (self.data.len() / (4 * line) * 4 * line) as u64
    }
}

impl Isa {
    /// The most floating-point operations a second (a multiply-add is two) that the threads of the current pool reach
    /// with the instruction of the GEMM's inner loop: the best of several runs of about 10 ms.
    pub fn peak_flops(self) -> f64 {
        let threads = rayon::current_num_threads();
        let thread = |_| self.run(Steps { rounds: 1 << 21 }) * 2;
        best_rate(|| (0..threads).into_par_iter().with_max_len(1).map(thread).sum())
    }

    /// The most bytes a second that the threads of the current pool read from memory: the best of several passes over
    /// 64 MiB a thread.
    pub fn read_bandwidth(self) -> f64 {
        let buffers: Vec<Vec<u8>> =
            (0..rayon::current_num_threads()).map(|i| vec![i as u8 | 1; 1 << 26]).collect();
        best_rate(|| buffers.par_iter().map(|data| self.run(Loads { data: black_box(data) })).sum())
    }
}

/// Units of work a second, the best of several runs.
fn best_rate(work: impl Fn() -> u64) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        work() as f64 / start.elapsed().as_secs_f64()
    };
    (0..8).map(rate).fold(0.0, f64::max)
}
