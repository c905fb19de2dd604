//! The structure, read from the sources: imports go one way, `unsafe` stays where it belongs, files stay small.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules of the root package by level. A module may use those of lower levels, not its neighbours.
const LEVELS: &[&[&str]] = &[
    &["error"],
    &["name", "parallel", "plan"],
    &["formats", "matrix"],
    &["element"],
    &["simd"],
    &["scaled"],
    &["quant", "gemm"],
    &["cuda"],
    &["engine"],
    &["linear"],
    &["accuracy"],
    &["checkpoint"],
    &["vectors"],
    &["cli"],
];

/// The only folders and files that may contain `unsafe`.
const UNSAFE: &[&str] = &["src/cuda/", "cpu/src/simd/", "python/src/array.rs"];

/// What the root package and its kernels are made of, and what tries them.
const FOLDERS: &[&str] = &[
    "src",
    "cpu/src",
    "ptx/src",
    "python/src",
    "python/benches",
    "python/python",
    "python/tests",
    "tests",
    "ptx/tests",
    "benches",
    "examples",
    "fuzz/fuzz_targets",
    "kernels/common",
    "scripts",
];

const MAX_LINES: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder that end in one of these.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extensions));
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The name that a file has from the root of the repository on.
fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/")
}

/// The top-level module of a package's source file; `None` for lib.rs and binaries.
fn module_of(path: &Path, sources: &Path) -> Option<String> {
    let first = path.strip_prefix(sources).unwrap().components().next()?.as_os_str().to_str()?;
    (first != "lib.rs" && first != "bin").then(|| first.trim_end_matches(".rs").to_owned())
}

/// A line without its comment, and nothing from the test module on.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let before_tests = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..before_tests].lines().enumerate().map(|(i, l)| (i + 1, l.split("//").next().unwrap_or("")))
}

/// Whether a line of code has this word.
fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

/// Where a module of a package says that it uses another: (place, module, used).
fn imports(sources: &Path) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for path in files(sources, &["rs"]) {
        let Some(module) = module_of(&path, sources) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in code_lines(&text) {
            for import in line.split("crate::").skip(1) {
                let at = format!("{}:{number}", name(&path));
                let group = import.strip_prefix('{').unwrap_or_default();
                let named = group.split(',').all(|item| !item.trim().starts_with(|c: char| c.is_lowercase()));
                assert!(named, "{at}: one module an import, for this test to read");
                let used: String = import.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                // What begins with a capital is re-exported at the root, and lives below all.
                if used != module && used.starts_with(|c: char| c.is_lowercase()) {
                    found.push((at, module.clone(), used));
                }
            }
        }
    }
    found
}

#[test]
fn imports_go_one_way() {
    let sources = root().join("src");
    let level = |module: &str| LEVELS.iter().position(|l| l.contains(&module));
    for path in files(&sources, &["rs"]) {
        if let Some(module) = module_of(&path, &sources) {
            assert!(level(&module).is_some(), "module {module} has no level");
        }
    }
    for module in LEVELS.iter().flat_map(|l| *l) {
        let there = sources.join(module).is_dir() || sources.join(format!("{module}.rs")).is_file();
        assert!(there, "module {module} has a level, but no source");
    }
    let imports = imports(&sources);
    for (at, module, used) in &imports {
        let Some(other) = level(used) else {
            panic!("{at}: crate::{used} is not a module with a level");
        };
        let own = level(module).unwrap();
        assert!(other < own, "{at}: {module} (level {own}) uses {used} (level {other})");
    }
    assert!(imports.len() > 100, "only {} imports were found: the sources are not read", imports.len());
}

/// Modules of the members use each other one way, whichever that is; and of the kernels' the instruction sets are the
/// lowest.
#[test]
fn members_have_no_cycles() {
    for member in ["cpu", "ptx"] {
        let sources = root().join(member).join("src");
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (at, module, used) in imports(&sources) {
            assert!(member != "cpu" || module != "simd", "{at}: simd uses {used}, and is to be the lowest");
            uses.entry(module).or_default().insert(used);
        }
        assert!(!uses.is_empty(), "{member}: the sources are not read");
        // What uses nothing that is left is left out, until nothing is.
        while let Some(lowest) = uses.keys().find(|m| uses[*m].iter().all(|u| !uses.contains_key(u))).cloned()
        {
            uses.remove(&lowest);
        }
        assert!(uses.is_empty(), "{member}: a cycle among {uses:?}");
    }
}

/// The kernels are a leaf: they know nothing of the package that uses them, so that no change there compiles them again.
#[test]
fn kernels_are_a_leaf() {
    let manifest = std::fs::read_to_string(root().join("cpu/Cargo.toml")).unwrap();
    let dependencies: Vec<&str> = manifest
        .lines()
        .skip_while(|l| *l != "[dependencies]")
        .skip(1)
        .take_while(|l| !l.starts_with('['))
        .filter_map(|l| l.split(['=', '.']).next())
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .collect();
    assert_eq!(dependencies, ["bytemuck", "half"]);
    for path in files(&root().join("cpu/src"), &["rs"]) {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in code_lines(&text) {
            assert!(!has_word(line, "finegrain"), "{}:{number}: the root package", name(&path));
        }
    }
}

#[test]
fn unsafe_stays_where_it_belongs() {
    for folder in ["src", "cpu/src", "ptx/src", "python/src"] {
        let sources = root().join(folder);
        for path in files(&sources, &["rs"]) {
            let file = name(&path);
            if UNSAFE.iter().any(|allowed| file.starts_with(allowed)) {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for (number, line) in code_lines(&text) {
                assert!(!has_word(line, "unsafe"), "{file}:{number}: unsafe outside {UNSAFE:?}");
            }
            let top = path.parent() == Some(&*sources) && module_of(&path, &sources).is_some();
            if folder == "src" && (top || path.file_name().is_some_and(|n| n == "mod.rs")) {
                assert!(text.contains("#![forbid(unsafe_code)]"), "{file} does not forbid unsafe code");
            }
        }
    }
    let interpreter = std::fs::read_to_string(root().join("ptx/src/lib.rs")).unwrap();
    assert!(interpreter.contains("#![forbid(unsafe_code)]"), "the interpreter does not forbid unsafe code");
}

#[test]
fn files_stay_small() {
    let mut read = 0;
    for folder in FOLDERS {
        for file in files(&root().join(folder), &["rs", "cuh", "py", "pyi", "sh"]) {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= MAX_LINES, "{} has {lines} lines, more than {MAX_LINES}: split it", name(&file));
            read += 1;
        }
    }
    assert!(read > 200, "only {read} files were read");
}
