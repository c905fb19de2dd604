//! What the machine can do at best, measured: the yardstick of benchmarks.

use std::hint::black_box;

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
    /// Floating-point operations (a multiply-add is two) of `rounds` rounds of a loop of nothing but the instruction of
    /// the GEMM's inner loop, which it runs.
    pub fn run_steps(self, rounds: usize) -> u64 {
        self.run(Steps { rounds }) * 2
    }

    /// Bytes of `data` that a loop of nothing but loads reads, which it runs.
    pub fn run_loads(self, data: &[u8]) -> u64 {
        self.run(Loads { data: black_box(data) })
    }
}
