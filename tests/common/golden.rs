//! What the integration tests share: golden values, and counting what was compared.
#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;

use finegrain::checkpoint::{Tensor, TensorFile};

/// The folder of shared golden values and data: `FINEGRAIN_SHARED`, or `../shared` beside the checkout.
pub fn shared() -> Option<PathBuf> {
    let path = match std::env::var_os("FINEGRAIN_SHARED") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"),
    };
    path.join("oracles").is_dir().then_some(path)
}

/// A file of golden values: the full one if the shared folder is there, otherwise the cut committed in tests/data.
/// `FINEGRAIN_REQUIRE_SHARED=1` makes the absence of the full one a failure.
pub fn oracle(name: &str) -> TensorFile {
    let cut = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.safetensors"));
    let path = match shared() {
        Some(shared) => shared.join("oracles").join(format!("{name}.safetensors")),
        None if std::env::var_os("FINEGRAIN_REQUIRE_SHARED").is_some_and(|v| v == "1") => {
            panic!("FINEGRAIN_REQUIRE_SHARED=1, but ../shared/oracles is not there")
        }
        None => {
            eprintln!("{name}: ../shared/oracles not found, comparing with the committed cut only");
            cut
        }
    };
    TensorFile::open(path).unwrap()
}

/// The committed cut of a file of golden values.
pub fn oracle_cut(name: &str) -> TensorFile {
    TensorFile::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.safetensors")))
        .unwrap()
}

/// A file of recordings of real silicon: the full one if the shared folder has it, otherwise the cut committed in
/// tests/data. `FINEGRAIN_REQUIRE_SHARED=1` makes the absence of the full one a failure.
pub fn recording(name: &str) -> TensorFile {
    let full = shared().map(|shared| shared.join("silicon").join(format!("{name}.safetensors")));
    match full.filter(|path| path.is_file()) {
        Some(path) => TensorFile::open(path).unwrap(),
        None if std::env::var_os("FINEGRAIN_REQUIRE_SHARED").is_some_and(|v| v == "1") => {
            panic!("FINEGRAIN_REQUIRE_SHARED=1, but ../shared/silicon is not there")
        }
        None => {
            eprintln!("{name}: ../shared/silicon not found, comparing with the committed cut only");
            recording_cut(name)
        }
    }
}

/// The committed cut of a file of recordings.
pub fn recording_cut(name: &str) -> TensorFile {
    oracle_cut(&format!("silicon_{name}"))
}

/// Elements of a tensor as bit patterns.
pub fn bits(file: &TensorFile, name: &str) -> Vec<u64> {
    file.read(name).unwrap().to_bits().unwrap()
}

/// Compares bit patterns and counts.
#[derive(Default)]
pub struct Score {
    compared: usize,
    differing: usize,
    reports: Vec<String>,
}

impl Score {
    /// Compares two slices; values that `same` calls equal count as equal (NaN as a class), those `skip` names are
    /// left out.
    pub fn eq(
        &mut self,
        what: &str,
        got: &[u64],
        want: &[u64],
        same: impl Fn(u64, u64) -> bool,
        skip: impl Fn(usize) -> bool,
    ) {
        assert_eq!(got.len(), want.len(), "{what}: number of values");
        let mut wrong = 0;
        let mut first = None;
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            if skip(i) {
                continue;
            }
            self.compared += 1;
            if g != w && !same(g, w) {
                wrong += 1;
                first.get_or_insert((i, g, w));
            }
        }
        if let Some((i, g, w)) = first {
            self.differing += wrong;
            self.reports.push(format!("{what}: {wrong} differ, first at {i}: {g:#x}, expected {w:#x}"));
        }
    }

    /// Prints the number of values compared, and fails if any differs or none was compared.
    pub fn finish(self, title: &str) {
        println!("{title}: {} values compared, {} differ", self.compared, self.differing);
        assert!(self.reports.is_empty(), "{title}:\n{}", self.reports.join("\n"));
        assert!(self.compared > 0, "{title}: nothing was compared");
    }
}

/// f32 NaN as a class.
pub fn nan_f32(a: u64, b: u64) -> bool {
    let nan = |u: u64| u & 0x7FFF_FFFF > 0x7F80_0000;
    nan(a) && nan(b)
}

/// E4M3 NaN as a class.
pub fn nan_e4m3(a: u64, b: u64) -> bool {
    a & 0x7F == 0x7F && b & 0x7F == 0x7F
}

/// E5M2 NaN as a class.
pub fn nan_e5m2(a: u64, b: u64) -> bool {
    a & 0x7F > 0x7C && b & 0x7F > 0x7C
}

/// Nothing is the same but equal bits.
pub fn exact(_: u64, _: u64) -> bool {
    false
}

/// Nothing is left out.
pub fn all(_: usize) -> bool {
    false
}

/// A matrix-shaped tensor of golden values.
pub fn tensor(file: &TensorFile, name: &str) -> Tensor {
    file.read(name).unwrap()
}
