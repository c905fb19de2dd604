//! LogFMT-n: DeepSeek's logarithmic format for communication ("Insights into DeepSeek-V3", arXiv 2505.09343, 3.2).
//!
//! A tile of 128 elements is coded on a logarithmic grid of its own: with max and min the largest and smallest log|x|
//! of its non-zero elements (min no less than max − ln 2^32) and step = (max − min) / (2^(n−1) − 2), a code is a sign
//! and c of n − 1 bits: c = 0 is zero, otherwise the value is sign · exp(min + step · (c − 1)). All ones is max, 1 is
//! min. Rounding picks the nearer of two neighbours in **linear** space.

use crate::error::{Error, Result};

/// The largest dynamic range a tile keeps: ln 2^32, as E5 formats do.
const MAX_RANGE: f64 = 32.0 * std::f64::consts::LN_2;

/// Elements that share one grid.
pub const TILE: usize = 128;

/// One tile in LogFMT-n. Codes are sign · 2^(n−1) + c.
#[derive(Clone, Debug, PartialEq)]
pub struct LogTile {
    bits: u32,
    min: f32,
    step: f32,
    codes: Vec<u16>,
    nonfinite: usize,
}

impl LogTile {
    /// Codes up to [`TILE`] elements with n bits each. Infinity and NaN become zero and are counted.
    ///
    /// ```
    /// use finegrain::formats::logfmt::LogTile;
    /// let x: Vec<f32> = (1..=128).map(|i| i as f32 * 0.1).collect();
    /// let tile = LogTile::encode(&x, 8)?;
    /// let error = |y: f32, x: f32| (y - x).abs() / x;
    /// assert!(tile.decode().iter().zip(&x).all(|(&y, &x)| error(y, x) < 0.02));
    /// # Ok::<(), finegrain::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] unless 3 ≤ n ≤ 16; [`Error::Shape`] for more than 128 elements.
    pub fn encode(x: &[f32], bits: u32) -> Result<Self> {
        if !(3..=16).contains(&bits) {
            return Err(Error::Invalid(format!("LogFMT-{bits}: the width must be 3 to 16 bits")));
        }
        if x.len() > TILE {
            return Err(Error::Shape(format!("a LogFMT tile of {} elements, at most {TILE}", x.len())));
        }
        let logs = || x.iter().filter(|v| v.is_finite() && **v != 0.0).map(|v| f64::from(v.abs()).ln());
        let max = logs().fold(f64::NEG_INFINITY, f64::max);
        let min = logs().fold(f64::INFINITY, f64::min).max(max - MAX_RANGE);
        let intervals = f64::from((1u32 << (bits - 1)) - 2);
        // The grid travels as two f32, so the codes are chosen on the grid that the reader will see.
        let (min, step) =
            if max.is_finite() { (min as f32, ((max - min) / intervals) as f32) } else { (0.0, 0.0) };
        let nonfinite = x.iter().filter(|v| !v.is_finite()).count();
        let mut tile = LogTile { bits, min, step, codes: Vec::with_capacity(x.len()), nonfinite };
        tile.codes = x.iter().map(|&v| tile.code_of(v)).collect();
        Ok(tile)
    }

    /// Rebuilds a tile from what travels: width, grid and codes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a width outside 3 … 16, a grid that is not finite or a code wider than `bits`;
    /// [`Error::Shape`] for more than 128 codes.
    pub fn from_parts(bits: u32, min: f32, step: f32, codes: Vec<u16>) -> Result<Self> {
        if !(3..=16).contains(&bits) {
            return Err(Error::Invalid(format!("LogFMT-{bits}: the width must be 3 to 16 bits")));
        }
        if codes.len() > TILE {
            return Err(Error::Shape(format!("a LogFMT tile of {} elements, at most {TILE}", codes.len())));
        }
        if !min.is_finite() || !step.is_finite() || step < 0.0 {
            return Err(Error::Invalid(format!("LogFMT grid with min {min} and step {step}")));
        }
        if let Some(code) = codes.iter().find(|&&c| u32::from(c) >> bits != 0) {
            return Err(Error::Invalid(format!("LogFMT-{bits} code {code:#x} is wider than {bits} bits")));
        }
        Ok(LogTile { bits, min, step, codes, nonfinite: 0 })
    }

    /// The nearest of zero and the grid's values, in linear space; a tie goes to the larger magnitude.
    fn code_of(&self, x: f32) -> u16 {
        let sign = u16::from(x.is_sign_negative()) << (self.bits - 1);
        let magnitude = f64::from(x.abs());
        if !x.is_finite() || magnitude == 0.0 {
            return sign;
        }
        let top = (1u16 << (self.bits - 1)) - 1;
        let guess = if self.step > 0.0 {
            ((magnitude.ln() - f64::from(self.min)) / f64::from(self.step)).floor() + 1.0
        } else {
            1.0
        };
        // `lower` is the largest code whose value does not pass |x|, or 0; the guess is off by one at most.
        let mut lower = guess.clamp(0.0, f64::from(top)) as u16;
        while lower > 0 && self.magnitude(lower) > magnitude {
            lower -= 1;
        }
        while lower < top && self.magnitude(lower + 1) <= magnitude {
            lower += 1;
        }
        let up = lower < top && magnitude - self.magnitude(lower) >= self.magnitude(lower + 1) - magnitude;
        sign | (lower + u16::from(up))
    }

    /// |value| of the low n − 1 bits of a code.
    fn magnitude(&self, c: u16) -> f64 {
        if c == 0 { 0.0 } else { (f64::from(self.min) + f64::from(self.step) * f64::from(c - 1)).exp() }
    }

    /// The values.
    pub fn decode(&self) -> Vec<f32> {
        let sign = 1u16 << (self.bits - 1);
        let value = |&c: &u16| {
            let magnitude = self.magnitude(c & (sign - 1)) as f32;
            if c & sign != 0 { -magnitude } else { magnitude }
        };
        self.codes.iter().map(value).collect()
    }

    /// Width of a code, n.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Natural logarithm of the smallest magnitude on the grid.
    pub fn min(&self) -> f32 {
        self.min
    }

    /// Distance of two neighbours on the grid, in natural logarithms.
    pub fn step(&self) -> f32 {
        self.step
    }

    /// The codes, one each element.
    pub fn codes(&self) -> &[u16] {
        &self.codes
    }

    /// Elements that were infinite or NaN and became zero.
    pub fn nonfinite(&self) -> usize {
        self.nonfinite
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{Format, Overflow, counter_hash};

    fn normal(n: usize, seed: u64) -> Vec<f32> {
        let uniform = |i: u64| (counter_hash(seed, i) >> 11) as f64 / (1u64 << 53) as f64;
        (0..n as u64)
            .map(|i| {
                let (u, v) = (uniform(2 * i).max(1e-300), uniform(2 * i + 1));
                ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
            })
            .collect()
    }

    fn relative_error(x: &[f32], y: &[f32]) -> f64 {
        let square = |v: f32| f64::from(v).powi(2);
        let error: f64 = x.iter().zip(y).map(|(a, b)| square(a - b)).sum();
        (error / x.iter().map(|&a| square(a)).sum::<f64>()).sqrt()
    }

    /// The source's claim: LogFMT-8 beats E4M3 and E5M2 on activations, LogFMT-10 comes close to BF16.
    #[test]
    fn eight_bits_beat_e4m3_and_ten_approach_bf16() {
        let mut errors = [0.0; 5];
        for seed in 0..20 {
            let x = normal(TILE, seed);
            let amax = x.iter().fold(0f32, |a, v| a.max(v.abs()));
            let fp8 = |format: Format| {
                let s = amax / format.spec().max_finite() as f32;
                x.iter()
                    .map(|v| format.decode_f32(format.cast_f32(v / s, Overflow::Saturate).code as u16) * s)
                    .collect::<Vec<_>>()
            };
            let bf16: Vec<f32> = x.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect();
            let log = |n| LogTile::encode(&x, n).unwrap().decode();
            for (e, y) in errors.iter_mut().zip([fp8(Format::E4M3), fp8(Format::E5M2), log(8), log(10), bf16])
            {
                *e += relative_error(&x, &y) / 20.0;
            }
        }
        let [e4m3, e5m2, log8, log10, bf16] = errors;
        assert!(log8 < e4m3 && log8 < e5m2, "LogFMT-8 {log8}, E4M3 {e4m3}, E5M2 {e5m2}");
        assert!(log10 < 4.0 * bf16, "LogFMT-10 {log10}, BF16 {bf16}");
    }

    #[test]
    fn the_rounding_threshold_is_the_linear_midpoint() {
        let tile = LogTile::encode(&[1.0, 100.0], 4).unwrap();
        for c in 1..7 {
            let (a, b) = (tile.magnitude(c), tile.magnitude(c + 1));
            let midpoint = (a + b) / 2.0;
            assert_eq!(tile.code_of((midpoint * (1.0 - 1e-6)) as f32), c);
            assert_eq!(tile.code_of((midpoint * (1.0 + 1e-6)) as f32), c + 1);
        }
    }

    #[test]
    fn ends_of_the_grid_zero_and_signs() {
        let x = [0.5f32, -8.0, 0.0, -0.0, f32::NAN, f32::INFINITY, 1e-30];
        let tile = LogTile::encode(&x, 8).unwrap();
        let y = tile.decode();
        assert_eq!(tile.codes()[1], 0xFF, "all ones is the largest magnitude");
        assert!((y[1] + 8.0).abs() < 1e-5);
        assert_eq!((y[2].to_bits(), y[3].to_bits()), (0, 0x8000_0000));
        assert_eq!((y[4], y[5], tile.nonfinite()), (0.0, 0.0, 2));
        assert_eq!(y[6], 0.0, "2^32 below the largest: nearer to zero than to the grid's least value");
        let zeros = LogTile::encode(&[0.0; 128], 8).unwrap();
        assert_eq!(zeros.decode(), [0.0; 128]);
        let one = LogTile::encode(&[3.0; 5], 8).unwrap();
        assert!(one.decode().iter().all(|v| (v - 3.0).abs() < 1e-6));
        let back = LogTile::from_parts(8, tile.min(), tile.step(), tile.codes().to_vec()).unwrap();
        assert_eq!(back.decode(), y);
        assert!(
            LogTile::encode(&[1.0], 2).is_err() && LogTile::from_parts(8, 0.0, f32::NAN, vec![]).is_err()
        );
        assert!(LogTile::from_parts(4, 0.0, 1.0, vec![16]).is_err());
    }
}
