//! What the elements of a tensor are like: one pass over all of them.

use rayon::prelude::*;
use safetensors::Dtype;

use super::tensor::Tensor;

/// How many elements have a property, and the first of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Places {
    pub(super) count: u64,
    pub(super) first: Option<u64>,
}

impl Places {
    pub(super) fn add(&mut self, holds: bool, index: u64) {
        if holds {
            self.count += 1;
            self.first.get_or_insert(index);
        }
    }

    fn join(self, later: Places) -> Places {
        Places { count: self.count + later.count, first: self.first.or(later.first) }
    }
}

/// Counts over all elements of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Survey {
    pub(super) amax: f64,
    pub(super) zeros: u64,
    pub(super) zero: Places,
    pub(super) negative: Places,
    pub(super) nan: Places,
    pub(super) infinite: Places,
}

impl Survey {
    pub(super) fn of(tensor: &Tensor) -> Survey {
        match (tensor.dtype(), Tensor::format(tensor.dtype())) {
            (Dtype::F64, _) => Self::over(tensor.data(), f64::from_le_bytes),
            (Dtype::F32, _) => Self::over(tensor.data(), |b| f64::from(f32::from_le_bytes(b))),
            (Dtype::BF16 | Dtype::F16, Some(format)) => {
                Self::over(tensor.data(), |b| f64::from(format.decode_f32(u16::from_le_bytes(b))))
            }
            (_, Some(format)) => Self::over(tensor.data(), |[b]| f64::from(format.decode_f32(u16::from(b)))),
            // Integers: only zeros are counted.
            (dtype, None) => match dtype.bitsize() / 8 {
                0 => Survey::default(),
                width => {
                    let zeros = tensor.data().par_chunks_exact(width).filter(|e| e.iter().all(|&b| b == 0));
                    Survey { zeros: zeros.count() as u64, ..Survey::default() }
                }
            },
        }
    }

    fn over<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f64 + Sync) -> Survey {
        const CHUNK: usize = 1 << 16;
        let part = |(chunk, elements): (usize, &[[u8; N]])| {
            let mut survey = Survey::default();
            for (i, &bytes) in elements.iter().enumerate() {
                survey.add(value(bytes), (chunk * CHUNK + i) as u64);
            }
            survey
        };
        // The order of `join` is kept by rayon, so "first" is the first.
        data.as_chunks().0.par_chunks(CHUNK).enumerate().map(part).reduce(Survey::default, Survey::join)
    }

    fn add(&mut self, x: f64, index: u64) {
        if x.is_finite() {
            self.amax = self.amax.max(x.abs());
        }
        self.zeros += u64::from(x == 0.0);
        self.zero.add(x == 0.0, index);
        self.negative.add(x < 0.0, index);
        self.nan.add(x.is_nan(), index);
        self.infinite.add(x.is_infinite(), index);
    }

    fn join(self, later: Survey) -> Survey {
        Survey {
            amax: self.amax.max(later.amax),
            zeros: self.zeros + later.zeros,
            zero: self.zero.join(later.zero),
            negative: self.negative.join(later.negative),
            nan: self.nan.join(later.nan),
            infinite: self.infinite.join(later.infinite),
        }
    }
}
