//! Machine code as counts of instructions: what can be said of a kernel without running it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::error::{Error, Result};

/// How often each instruction occurs in a kernel: opcode with modifiers, as `LDG.E.128.CONSTANT`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(BTreeMap<String, usize>);

impl Histogram {
    /// Instructions that match a pattern: the opcode, then modifiers that must be among the instruction's.
    ///
    /// ```
    /// use finegrain::cuda::disasm::parse;
    /// let kernels = parse(".text.k:\n /*0000*/ @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;\n");
    /// assert_eq!(kernels["k"].count("LDG.128"), 1);
    /// assert_eq!(kernels["k"].count("LDG.64"), 0);
    /// ```
    pub fn count(&self, pattern: &str) -> usize {
        let mut parts = pattern.split('.');
        let opcode = parts.next();
        let modifiers: Vec<_> = parts.collect();
        let matches = |name: &str| {
            let mut parts = name.split('.');
            let same = parts.next() == opcode;
            let present: Vec<_> = parts.collect();
            same && modifiers.iter().all(|m| present.contains(m))
        };
        self.0.iter().filter(|(name, _)| matches(name)).map(|(_, n)| n).sum()
    }

    /// Instructions in all.
    pub fn total(&self) -> usize {
        self.0.values().sum()
    }

    /// Opcodes with their counts, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(name, n)| (name.as_str(), *n))
    }
}

/// nvdisasm: `$FINEGRAIN_NVDISASM`, else that of the search path.
fn nvdisasm() -> PathBuf {
    std::env::var_os("FINEGRAIN_NVDISASM").map_or_else(|| PathBuf::from("nvdisasm"), PathBuf::from)
}

/// The instructions of every kernel of a cubin.
///
/// # Errors
/// [`Error::Unsupported`] if nvdisasm cannot be run or refuses the cubin.
pub fn disassemble(cubin: &[u8]) -> Result<BTreeMap<String, Histogram>> {
    let program = nvdisasm();
    let refuse = |why: &dyn std::fmt::Display| Error::Unsupported(format!("{}: {why}", program.display()));
    let mut file = tempfile::NamedTempFile::new().map_err(|e| refuse(&e))?;
    file.write_all(cubin).map_err(|e| refuse(&e))?;
    let output = Command::new(&program).arg("-c").arg(file.path()).output().map_err(|e| refuse(&e))?;
    if !output.status.success() {
        return Err(refuse(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads nvdisasm's output: a kernel starts at `.text.NAME:`, an instruction is `/*0010*/ @P0 OPCODE operands ;`.
pub fn parse(text: &str) -> BTreeMap<String, Histogram> {
    let mut kernels = BTreeMap::<String, Histogram>::new();
    let mut current = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix(".text.").and_then(|l| l.strip_suffix(':')) {
            current = Some(kernels.entry(name.to_owned()).or_default());
            continue;
        }
        let Some(kernel) = &mut current else { continue };
        let Some((_, instruction)) = line.strip_prefix("/*").and_then(|l| l.split_once("*/")) else {
            continue;
        };
        let instruction = instruction.trim_start().trim_start_matches('{').trim_start();
        let mut words = instruction.split_whitespace().skip_while(|w| w.starts_with('@'));
        if let Some(opcode) = words.next().map(|w| w.trim_end_matches(';')).filter(|w| !w.is_empty()) {
            *kernel.0.entry(opcode.to_owned()).or_default() += 1;
        }
    }
    kernels
}
