//! What is kept of the kernels' PTX in kernels/ptx, for the tests that need no NVRTC: no comments, no empty lines, and of
//! GEMMs that differ in their formats the one of E4M3 by E4M3. The others are its text with other names and other
//! formats of the one instruction that knows them; where NVRTC is at hand, a test holds both to what it gives.

use std::path::{Path, PathBuf};

use finegrain::cuda::Arch;
use finegrain::cuda::kernels::Source;

/// Formats of A and B of the GEMM that is kept.
const KEPT: [&str; 2] = ["e4m3", "e4m3"];

/// Those of the GEMMs that are told from it.
const TOLD: [[&str; 2]; 3] = [["e4m3", "e5m2"], ["e5m2", "e4m3"], ["e5m2", "e5m2"]];

const ENTRY: &str = ".visible .entry ";

/// The part of a name, or of an instruction, that says the formats.
fn part(separator: &str, [a, b]: [&str; 2]) -> String {
    format!("{separator}{a}{separator}{b}")
}

/// The file with the PTX of a source.
pub fn path(source: &Source, arch: Arch) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/ptx").join(source.ptx_file(arch))
}

/// The PTX that is kept of a source.
pub fn read(source: &Source, arch: Arch) -> String {
    let path = path(source, arch);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What a text says: its lines without comments and empty ones.
pub fn lines(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
}

/// What is kept of a compiled module.
pub fn kept(ptx: &str) -> String {
    let mut text = String::new();
    let mut told = false;
    for line in lines(ptx) {
        if let Some(name) = line.strip_prefix(ENTRY) {
            told = TOLD.iter().any(|&formats| name.contains(&part("_", formats)));
        }
        if !told {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The text of one kernel of what is kept, with all that stands before the first: parsing the others takes time.
pub fn alone(kept: &str, kernel: &str) -> String {
    let told = TOLD.iter().find(|&&formats| kernel.contains(&part("_", formats)));
    if let Some(&formats) = told {
        let base = kernel.replace(&part("_", formats), &part("_", KEPT));
        let text = alone(kept, &base).replace(&base, kernel);
        return text.replace(&part(".", KEPT), &part(".", formats));
    }
    let entries: Vec<usize> = kept.match_indices(&format!("\n{ENTRY}")).map(|(at, _)| at + 1).collect();
    let start = format!("{ENTRY}{kernel}(");
    let index = entries.iter().position(|&at| kept[at..].starts_with(&start));
    let index = index.unwrap_or_else(|| panic!("no kernel {kernel}"));
    let end = entries.get(index + 1).copied().unwrap_or(kept.len());
    format!("{}{}", &kept[..entries[0]], &kept[entries[index]..end])
}
