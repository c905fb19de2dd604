//! What a launch did, counted.

use std::collections::BTreeMap;

/// What one memory instruction did, over all warps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryLine {
    /// As written.
    pub opcode: String,
    /// Executions by warps.
    pub requests: u64,
    /// Shared memory: wavefronts beyond those that the same access takes without bank conflicts.
    pub extra_wavefronts: u64,
    /// Global memory: sectors of 32 bytes touched.
    pub sectors: u64,
    /// Global memory: accesses of threads.
    pub accesses: u64,
    /// Global memory: those of 16 bytes.
    pub wide_accesses: u64,
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions executed by warps.
    pub instructions: u64,
    /// The same by opcode, as written.
    pub by_opcode: BTreeMap<String, u64>,
    /// Memory instructions by PTX line.
    pub memory: BTreeMap<u32, MemoryLine>,
}

impl Report {
    /// Bank conflicts: wavefronts beyond those needed.
    pub fn extra_wavefronts(&self) -> u64 {
        self.memory.values().map(|m| m.extra_wavefronts).sum()
    }

    /// Sectors of 32 bytes touched in global memory.
    pub fn sectors(&self) -> u64 {
        self.memory.values().map(|m| m.sectors).sum()
    }

    /// The share of the threads' global accesses that are 16 bytes wide; 1 if there are none.
    pub fn wide_share(&self) -> f64 {
        let accesses: u64 = self.memory.values().map(|m| m.accesses).sum();
        let wide: u64 = self.memory.values().map(|m| m.wide_accesses).sum();
        if accesses == 0 { 1.0 } else { wide as f64 / accesses as f64 }
    }

    /// Executions of opcodes that start with `prefix`, such as `mma.sync`.
    pub fn count(&self, prefix: &str) -> u64 {
        self.by_opcode.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum()
    }
}

/// Wavefronts beyond the least, for accesses of `bytes` at `addresses` of shared memory, one for each active lane.
///
/// A wavefront moves one 4-byte word from each of 32 banks. Accesses of 8 bytes go in two halves of the warp, those
/// of 16 in four quarters; lanes that read the same word share it.
pub(crate) fn extra_wavefronts(addresses: &[Option<u64>], bytes: usize) -> u64 {
    let lanes = 32 * 4 / bytes.max(4);
    let phase = |lanes: &[Option<u64>]| {
        let mut words: Vec<u64> =
            lanes.iter().flatten().flat_map(|&a| a / 4..(a + bytes as u64).div_ceil(4)).collect();
        words.sort_unstable();
        words.dedup();
        let mut banks = [0u64; 32];
        words.iter().for_each(|w| banks[(w % 32) as usize] += 1);
        banks.into_iter().max().unwrap_or(0).saturating_sub(1)
    };
    addresses.chunks(lanes).map(phase).sum()
}

/// Sectors of 32 bytes that the accesses touch.
pub(crate) fn sectors(addresses: &[Option<u64>], bytes: usize) -> u64 {
    let mut sectors: Vec<u64> =
        addresses.iter().flatten().flat_map(|&a| a / 32..(a + bytes as u64).div_ceil(32)).collect();
    sectors.sort_unstable();
    sectors.dedup();
    sectors.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strided(stride: u64) -> Vec<Option<u64>> {
        (0..32).map(|lane| Some(lane * stride)).collect()
    }

    #[test]
    fn bank_conflicts_are_counted() {
        assert_eq!(extra_wavefronts(&strided(4), 4), 0);
        assert_eq!(extra_wavefronts(&strided(8), 4), 1);
        assert_eq!(extra_wavefronts(&strided(128), 4), 31);
        assert_eq!(extra_wavefronts(&strided(0), 4), 0);
        assert_eq!(extra_wavefronts(&strided(16), 16), 0);
        assert_eq!(extra_wavefronts(&strided(128), 16), 4 * 7);
        assert_eq!(extra_wavefronts(&strided(1), 1), 0);
    }

    #[test]
    fn sectors_are_counted() {
        assert_eq!(sectors(&strided(4), 4), 4);
        assert_eq!(sectors(&strided(32), 4), 32);
        assert_eq!(sectors(&strided(16), 16), 16);
    }
}
