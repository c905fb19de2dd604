//! The structure, read from the sources: imports go one way, `unsafe` stays where it belongs, files stay small.

use std::path::{Path, PathBuf};

/// Modules by level. A module may use those of lower levels, not its neighbours.
const LEVELS: &[&[&str]] = &[
    &["error"],
    &["formats", "matrix", "parallel", "plan"],
    &["element"],
    &["simd"],
    &["scaled"],
    &["quant", "gemm"],
    &["cuda"],
    &["engine"],
    &["linear"],
    &["accuracy"],
    &["train", "checkpoint"],
    &["vectors"],
    &["cli"],
];

/// The only modules that may contain `unsafe`.
const UNSAFE_MODULES: &[&str] = &["cuda"];

const MAX_LINES: usize = 600;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The top-level module a source file belongs to, and its level; `None` for lib.rs and the binary.
fn module_of(path: &Path) -> Option<(String, usize)> {
    let first = path.strip_prefix(src()).unwrap().components().next()?.as_os_str().to_str()?.to_owned();
    if first == "lib.rs" || first == "bin" {
        return None;
    }
    let name = first.trim_end_matches(".rs").to_owned();
    let level = LEVELS.iter().position(|l| l.contains(&name.as_str()));
    Some((name.clone(), level.unwrap_or_else(|| panic!("module {name} has no level"))))
}

/// A line without its comment, and empty from the test module on.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let before_tests = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..before_tests].lines().enumerate().map(|(i, l)| (i + 1, l.split("//").next().unwrap_or("")))
}

#[test]
fn imports_go_one_way() {
    let mut checked = 0;
    for path in sources(&src()) {
        let Some((name, level)) = module_of(&path) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in code_lines(&text) {
            for import in line.split("crate::").skip(1) {
                let target: String =
                    import.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if target == name || target.is_empty() {
                    continue;
                }
                // What the root re-exports is for those who use the public API only.
                if target.starts_with(char::is_uppercase) {
                    assert_eq!(name, "cli", "{}:{number}: crate::{target}", path.display());
                    continue;
                }
                let Some(other) = LEVELS.iter().position(|l| l.contains(&target.as_str())) else {
                    panic!("{}:{number}: crate::{target} is not a module with a level", path.display());
                };
                assert!(
                    other < level,
                    "{}:{number}: {name} (level {level}) uses {target} (level {other})",
                    path.display()
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "only {checked} imports were found: the test does not read the sources");
}

#[test]
fn unsafe_stays_in_simd_and_cuda() {
    for path in sources(&src()) {
        let module = module_of(&path);
        if module.as_ref().is_some_and(|(name, _)| UNSAFE_MODULES.contains(&name.as_str())) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in code_lines(&text) {
            let word = line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
            assert!(!word, "{}:{number}: unsafe outside src/simd and src/cuda", path.display());
        }
        let is_module_root = path.file_name().is_some_and(|n| n == "mod.rs");
        if let (Some((name, _)), true) = (&module, is_module_root) {
            assert!(text.contains("#![forbid(unsafe_code)]"), "{name} does not forbid unsafe code");
        }
    }
}

#[test]
fn files_stay_small() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in ["src", "cpu/src", "tests", "benches", "examples", "ptx/src", "ptx/tests"]
        .iter()
        .map(|d| root.join(d))
        .filter(|d| d.is_dir())
    {
        for file in sources(&path) {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            assert!(
                lines <= MAX_LINES,
                "{} has {lines} lines, more than {MAX_LINES}: split it",
                file.display()
            );
        }
    }
}
