//! The command line from outside: the built binary, its files, exit codes and messages.

mod bench;
mod cast;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod files;
mod gemm;
mod identify;
mod identify_quantized;
mod inspect;
mod page;
mod quantize;
mod sanitize;
mod strange;
mod vectors;
#[cfg(unix)]
mod writing;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use finegrain::checkpoint::{Dtype, Tensor, write_tensors};
use finegrain::formats::Format;
use serde_json::Value;

fn finegrain(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_finegrain")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.lines().all(|line| line.starts_with("warning: ")), "progress is for terminals: {said}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&finegrain(args.iter().chain(&["--json"])))).unwrap()
}

/// Exit 1, nothing on stdout, and one line on stderr that begins with "error: " and holds all the words.
fn fails(args: impl IntoIterator<Item = impl AsRef<OsStr>>, words: &[&str]) {
    let output = finegrain(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty());
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "'{word}' is not in: {stderr}");
    }
}

/// A folder for one test's files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, tensors: &[(&str, Tensor)]) -> String {
        let tensors: Vec<_> = tensors.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
        write_tensors(&self.path(name), &tensors).unwrap();
        self.text(name)
    }

    /// The names of what lies in the folder, sorted.
    fn list(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn tensor<T, const N: usize>(
    dtype: Dtype,
    shape: &[usize],
    values: &[T],
    bytes: fn(&T) -> [u8; N],
) -> Tensor {
    Tensor::new(dtype, shape.to_vec(), values.iter().flat_map(bytes).collect()).unwrap()
}

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    tensor(Dtype::F32, shape, values, |x| x.to_le_bytes())
}

fn words(dtype: Dtype, shape: &[usize], values: &[u16]) -> Tensor {
    tensor(dtype, shape, values, |x| x.to_le_bytes())
}

fn bytes(dtype: Dtype, shape: &[usize], values: &[u8]) -> Tensor {
    Tensor::new(dtype, shape.to_vec(), values.to_vec()).unwrap()
}

#[test]
fn formats_lists_all_and_the_codes_of_one() {
    let table = stdout(&finegrain(["formats"]));
    assert_eq!(table.lines().count(), 1 + Format::ALL.len());
    assert!(table.is_ascii());
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..7], ["e4m3", "8", "7", "8", "448", "0.015625", "0.001953125"]);

    let all = json(&["formats"]);
    assert_eq!(all.as_array().unwrap().len(), Format::ALL.len());
    let one = json(&["formats", "e5m2"]);
    let codes = one["codes"].as_array().unwrap();
    assert_eq!(codes.len(), 256);
    assert_eq!((codes[0x7B]["value"].as_f64(), codes[0xFC]["value"].as_str()), (Some(57344.0), Some("-inf")));
    assert_eq!(codes[0x3C]["bits"], "0.01111.00");
    assert!(stdout(&finegrain(["formats", "e2m1"])).contains("0F  1.11.1     -6"));
    assert!(json(&["formats", "bf16"]).get("codes").is_none());
}

#[test]
fn every_help_ends_with_an_example() {
    for sub in [
        "formats",
        "recipe",
        "cast",
        "quantize",
        "dequantize",
        "gemm",
        "compare",
        "inspect",
        "sanitize",
        "vectors",
        "completions",
        "man",
    ] {
        let help = stdout(&finegrain([sub, "--help"]));
        let last = help.trim_end().lines().last().unwrap();
        assert!(last.starts_with(&format!("  finegrain {sub}")), "{sub}: {last}");
        assert!(help.contains("--json"), "{sub}");
    }
}

/// Completions and manual pages come from the definitions of the help: a subcommand that is there is in them.
#[test]
fn completions_and_manual_pages_know_every_subcommand() {
    let help = stdout(&finegrain(["--help"]));
    let subcommands: Vec<&str> = help
        .lines()
        .skip_while(|l| *l != "Commands:")
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        .filter_map(|l| l.strip_prefix("  ").filter(|l| !l.starts_with(' '))?.split_whitespace().next())
        .collect();
    assert!(subcommands.len() > 12 && subcommands.contains(&"completions"), "{subcommands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&finegrain(["completions", shell]));
        assert!(subcommands.iter().all(|s| script.contains(s)) && script.contains("accumulate"), "{shell}");
        assert_eq!(json(&["completions", shell])["script"], script);
    }
    let dir = Folder::new();
    let pages = json(&["man", &dir.text("man1")])["pages"].as_array().unwrap().len();
    assert_eq!(std::fs::read_dir(dir.path("man1")).unwrap().count(), pages);
    for subcommand in subcommands.iter().filter(|s| **s != "help") {
        let page =
            std::fs::read_to_string(dir.path("man1").join(format!("finegrain-{subcommand}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains("json"), "{subcommand}");
    }
    let page = std::fs::read_to_string(dir.path("man1/finegrain-vectors-check.1")).unwrap();
    assert!(page.contains("any\\-nan"), "{page}");
}

#[test]
fn usage_errors_exit_2() {
    let cases: [&[&str]; 8] = [
        &[],
        &["nonsense"],
        &["formats", "e9m9"],
        &["cast", "in", "out"],
        &["cast", "in", "out", "--to", "e4m3", "--round", "sideways"],
        &["cast", "in", "out", "--to", "e4m3", "--packed"],
        &["cast", "in", "out", "--to", "e4m3", "--seed", "1"],
        &["cast", "in", "out", "--to", "e4m3", "--round", "tilekernels"],
    ];
    for args in cases {
        let output = finegrain(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}
