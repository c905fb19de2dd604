//! Split-K: where a library cuts K into parts and adds their results.

use std::num::NonZeroUsize;
use std::ops::Range;

use crate::error::{Error, Result};

/// The parts of K that are products of their own, whose f32 results are added in ascending order (contract, clause 9).
///
/// Parts hold whole units: promotion intervals, or without promotion steps of the model's instruction.
///
/// ```
/// use finegrain::gemm::SplitK;
/// let halves: SplitK = "2".parse()?;
/// assert_eq!(halves.ranges(7168, 128)?, [0..3584, 3584..7168]);
/// assert_eq!(halves, SplitK::equal(2)?);
/// assert_eq!("0,128,512".parse::<SplitK>()?.ranges(600, 128)?, [0..128, 128..512, 512..600]);
/// assert_eq!("0,128,512".parse::<SplitK>()?.to_string(), "0,128,512");
/// // Seven intervals in three parts: three, three, and the one that is left.
/// assert_eq!(SplitK::equal(3)?.ranges(896, 128)?, [0..384, 384..768, 768..896]);
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SplitK {
    /// Not split.
    #[default]
    Whole,
    /// Into so many parts, at least 2: each of ⌈units / parts⌉ units, the last of what is left. Where that leaves
    /// nothing for the last ones there are fewer.
    Equal(NonZeroUsize),
    /// At given elements of K.
    At(Cuts),
}

/// Where the parts of K begin, 0 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cuts {
    /// Ascending up to `len`, zeros beyond.
    starts: [u32; Cuts::MAX],
    len: u8,
}

impl Cuts {
    /// The most parts that may be listed.
    pub const MAX: usize = 32;

    /// Parts that begin at these elements of K.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they do not start with 0, do not ascend, are more than [`Cuts::MAX`] or beyond 2³² − 1.
    pub fn new(starts: &[usize]) -> Result<Self> {
        let list = || starts.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        if starts.first() != Some(&0) {
            return Err(Error::Invalid(format!("split-K at '{}': a list of cuts starts with 0", list())));
        }
        if let Some(pair) = starts.windows(2).find(|pair| pair[0] >= pair[1]) {
            let (before, after) = (pair[0], pair[1]);
            return Err(Error::Invalid(format!("split-K at {after} after {before}: cuts ascend")));
        }
        if starts.len() > Cuts::MAX {
            return Err(Error::Invalid(format!(
                "split-K at {} cuts: at most {} may be listed",
                starts.len(),
                Cuts::MAX
            )));
        }
        let mut cuts = Cuts { starts: [0; Cuts::MAX], len: starts.len() as u8 };
        for (cut, &start) in cuts.starts.iter_mut().zip(starts) {
            *cut = u32::try_from(start)
                .map_err(|_| Error::Invalid(format!("split-K at {start}: expected at most {}", u32::MAX)))?;
        }
        Ok(cuts)
    }

    /// The first elements of the parts.
    pub fn starts(&self) -> impl ExactSizeIterator<Item = usize> {
        self.starts[..usize::from(self.len)].iter().map(|&start| start as usize)
    }
}

impl SplitK {
    /// So many parts; one is [`SplitK::Whole`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for none.
    pub fn equal(parts: usize) -> Result<Self> {
        match NonZeroUsize::new(parts) {
            None => Err(Error::Invalid(
                "split-K into 0 parts: expected a number of parts, or cuts that start with 0 such as 0,3584"
                    .to_owned(),
            )),
            Some(NonZeroUsize::MIN) => Ok(SplitK::Whole),
            Some(parts) => Ok(SplitK::Equal(parts)),
        }
    }

    /// Parts that begin at these elements of K; only 0 is [`SplitK::Whole`].
    ///
    /// # Errors
    /// As [`Cuts::new`].
    pub fn at(starts: &[usize]) -> Result<Self> {
        let cuts = Cuts::new(starts)?;
        Ok(if starts.len() == 1 { SplitK::Whole } else { SplitK::At(cuts) })
    }

    /// Whether K is one part by name.
    pub fn is_whole(self) -> bool {
        self == SplitK::Whole
    }

    /// The parts of `k` elements, in units of `unit`; one that is empty if there are none.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a cut lies beyond K or inside a unit.
    ///
    /// # Panics
    /// If `unit` is 0.
    pub fn ranges(self, k: usize, unit: usize) -> Result<Vec<Range<usize>>> {
        let starts: Vec<usize> = match self {
            SplitK::Whole => vec![0],
            SplitK::Equal(parts) => {
                let length = k.div_ceil(unit).div_ceil(parts.get()).max(1).saturating_mul(unit);
                (0..k.max(1)).step_by(length).collect()
            }
            SplitK::At(cuts) => cuts.starts().collect(),
        };
        for &start in &starts[1..] {
            if start >= k {
                return Err(Error::Unsupported(format!("split-K at {start}: K is {k}")));
            }
            if !start.is_multiple_of(unit) {
                return Err(Error::Unsupported(format!(
                    "split-K at {start}: parts begin at multiples of {unit}, the promotion interval or, without \
                     promotion, the step of the instruction"
                )));
            }
        }
        let ends = starts[1..].iter().copied().chain([k]);
        Ok(starts.iter().zip(ends).map(|(&start, end)| start..end).collect())
    }
}

impl std::str::FromStr for SplitK {
    type Err = Error;

    /// Reads a number of parts, or cuts with commas between them.
    fn from_str(text: &str) -> Result<Self> {
        let number = |part: &str| {
            part.trim().parse::<usize>().map_err(|_| {
                Error::Invalid(format!(
                    "split-K '{text}': expected a number of parts, or cuts that start with 0 such as 0,3584"
                ))
            })
        };
        if text.contains(',') {
            return SplitK::at(&text.split(',').map(number).collect::<Result<Vec<_>>>()?);
        }
        SplitK::equal(number(text)?)
    }
}

impl std::fmt::Display for SplitK {
    /// As it is read.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            SplitK::Whole => "1".to_owned(),
            SplitK::Equal(parts) => parts.to_string(),
            SplitK::At(cuts) => cuts.starts().map(|start| start.to_string()).collect::<Vec<_>>().join(","),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_whole_units_and_all_of_k() {
        for k in [0, 1, 127, 128, 129, 640, 1000] {
            for unit in [1, 32, 128] {
                for parts in 1..9 {
                    let ranges = SplitK::equal(parts).unwrap().ranges(k, unit).unwrap();
                    assert!(!ranges.is_empty() && ranges.len() <= parts, "{k} in {parts}: {ranges:?}");
                    assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, k));
                    let length = k.div_ceil(unit).div_ceil(parts) * unit;
                    for pair in ranges.windows(2) {
                        assert_eq!((pair[0].end, pair[0].len()), (pair[1].start, length));
                        assert!(!pair[1].is_empty(), "{k} in {parts}: {ranges:?}");
                    }
                }
            }
        }
        assert_eq!(SplitK::equal(4).unwrap().ranges(640, 128).unwrap(), [0..256, 256..512, 512..640]);
    }

    #[test]
    fn what_is_displayed_is_read_again() {
        for text in ["1", "2", "17", "0,128", "0,3584,7040"] {
            assert_eq!(text.parse::<SplitK>().unwrap().to_string(), text);
        }
        assert_eq!("0,1".parse::<SplitK>().unwrap(), SplitK::at(&[0, 1]).unwrap());
        assert_eq!(SplitK::at(&[0]).unwrap(), SplitK::Whole);
    }

    #[test]
    fn impossible_cuts_are_refused() {
        for (text, words) in [
            ("0", "0 parts"),
            ("", "''"),
            ("two", "'two'"),
            ("-1", "'-1'"),
            ("0,", "'0,'"),
            ("1,2", "starts with 0"),
            ("0,256,256", "256 after 256"),
            ("0,256,128", "128 after 256"),
            ("0,4294967296", "4294967295"),
        ] {
            let message = text.parse::<SplitK>().unwrap_err().to_string();
            assert!(message.contains(words), "{text}: {message}");
        }
        let many: Vec<usize> = (0..=Cuts::MAX).collect();
        assert!(SplitK::at(&many).unwrap_err().to_string().contains("33 cuts: at most 32"));
        assert!(SplitK::at(&many[..Cuts::MAX]).is_ok());
        let cuts = SplitK::at(&[0, 128, 256]).unwrap();
        assert!(cuts.ranges(256, 128).unwrap_err().to_string().contains("at 256: K is 256"));
        assert!(
            cuts.ranges(512, 256)
                .unwrap_err()
                .to_string()
                .contains("at 128: parts begin at multiples of 256")
        );
    }
}
