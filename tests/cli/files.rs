//! Hostile inputs, odd paths, outputs that cannot be written.

use std::path::Path;

use finegrain::checkpoint::TensorFile;

use super::*;

#[test]
fn metadata_travels_and_outputs_repeat() {
    let dir = Folder::new();
    let meta: String = (0..20).map(|i| format!(r#""k{i}":"{i}","#)).collect();
    let header = format!(
        r#"{{"__metadata__":{{{meta}"format":"pt"}},"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#
    );
    std::fs::write(dir.path("in"), file_of(header.as_bytes(), &[0; 4])).unwrap();
    let cast = |out: &str| {
        stdout(&finegrain(["cast", &dir.text("in"), &dir.text(out), "--to", "bf16"]));
        std::fs::read(dir.path(out)).unwrap()
    };
    assert_eq!(cast("one"), cast("two"));
    assert_eq!(TensorFile::open(dir.path("one")).unwrap().metadata().unwrap()["format"], "pt");
}

/// The raw bytes of a file with this header and data.
fn file_of(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

#[test]
fn hostile_files_fail_in_one_line_and_leave_nothing() {
    let entry = |dtype: &str, shape: &str, from: usize, to: usize| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |body: String| format!(r#"{{"a":{body}}}"#);
    let st = |header: String, data: usize| file_of(header.as_bytes(), &vec![0; data]);
    let many = |n: usize, shape: &str| {
        let entries: Vec<String> =
            (0..n).map(|i| format!(r#""t{i}":{}"#, entry("U8", shape, 0, 1))).collect();
        format!("{{{}}}", entries.join(","))
    };
    let both = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", vec![], &["0 bytes", "at least 8"]),
        ("short", vec![1, 2], &["2 bytes"]),
        ("header past end", [&(1u64 << 20).to_le_bytes()[..], b"{}"].concat(), &["1048576", "ends 2 after"]),
        ("header over limit", [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(), &["1099511627776"]),
        ("header length u64::MAX", [&u64::MAX.to_le_bytes()[..], b"{}"].concat(), &["18446744073709551615"]),
        ("not json", file_of(b"{nope", b""), &["header: key must be a string"]),
        ("not utf-8", file_of(b"{\"\xff\xfe\":1}", b""), &["header"]),
        ("no object", file_of(b"[]", b""), &["expected an object of tensors"]),
        ("nested", file_of(format!(r#"{{"a":{}"#, "[".repeat(500_000)).as_bytes(), b""), &["header"]),
        (
            "nested in an unknown field",
            file_of(format!(r#"{{"a":{{"x":{}"#, "{\"y\":".repeat(500_000)).as_bytes(), b""),
            &["tensor 'a'", "EOF"],
        ),
        ("offsets past end", st(one(entry("F8_E4M3", "[4,128]", 0, 512)), 100), &["100 bytes", "512"]),
        ("bytes after the end", st(one(entry("U8", "[4]", 0, 4)), 5), &["5 bytes", "describes 4"]),
        ("negative shape", st(one(entry("F32", "[-1,4]", 0, 16)), 16), &["tensor 'a'", "-1"]),
        ("fractional shape", st(one(entry("F32", "[1.5]", 0, 16)), 16), &["tensor 'a'", "1.5"]),
        (
            "overflowing shape",
            st(one(entry("F32", "[4611686018427387904,4611686018427387904]", 0, 16)), 16),
            &["tensor 'a'", "4611686018427387904"],
        ),
        (
            "overflow before a zero",
            st(one(entry("F32", "[4611686018427387904,8,0]", 0, 0)), 0),
            &["tensor 'a'"],
        ),
        (
            "overlap",
            st(both(entry("U8", "[16]", 0, 16), entry("U8", "[16]", 8, 24)), 24),
            &["tensor 'b'", "byte 8", "16"],
        ),
        ("gap", st(both(entry("U8", "[16]", 0, 16), entry("U8", "[8]", 17, 25)), 25), &["tensor 'b'", "17"]),
        ("backward", st(one(entry("U8", "[0]", 8, 0)), 8), &["tensor 'a'"]),
        ("unknown dtype", st(one(entry("Q3", "[16]", 0, 16)), 16), &["tensor 'a'", "Q3"]),
        (
            "twice",
            st(both(entry("U8", "[0]", 0, 0), entry("U8", "[0]", 0, 0)).replace("\"b\"", "\"a\""), 0),
            &["tensor 'a'", "twice"],
        ),
        ("many entries", st(many(200_000, "[1099511627776]"), 1), &["error"]),
        ("a million entries", st(many(1_000_000, "[1]"), 1), &["error"]),
        ("new line in a name", st(r#"{"a\nerror: b":1}"#.to_owned(), 0), &["a\\nerror: b"]),
    ];
    for (what, raw, words) in cases {
        let dir = Folder::new();
        std::fs::write(dir.path("in"), raw).unwrap();
        let words = [words, &["in: "]].concat();
        eprintln!("{what}");
        fails(["cast", &dir.text("in"), &dir.text("out"), "--to", "e4m3"], &words);
        fails(["inspect", &dir.text("in")], &words);
        assert_eq!(dir.list(), ["in"], "{what}");
    }
}

#[test]
fn odd_but_legal_files_are_read() {
    let dir = Folder::new();
    let payloads = [0x7FF0_0000_0000_0001u64, 0xFFF8_0000_0000_0000, 0x7FFF_FFFF_FFFF_FFFF];
    let tensors = [
        ("nan", tensor(Dtype::F64, &[3], &payloads, |v| v.to_le_bytes())),
        ("empty", f32s(&[0, 7], &[])),
        ("tall", f32s(&[1 << 61, 0], &[])),
        ("scalar", f32s(&[], &[2.0])),
        ("", f32s(&[1], &[1.0])),
    ];
    let input = dir.write("in", &tensors);
    let report = json(&["cast", &input, &dir.text("out"), "--to", "e4m3"]);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 5);
    let out = TensorFile::open(dir.path("out")).unwrap();
    assert_eq!(out.read("nan").unwrap().data(), [0x7F, 0xFF, 0x7F]);
    assert_eq!(out.read("scalar").unwrap().shape(), [0usize; 0]);
    assert_eq!(out.read("tall").unwrap().shape(), [1 << 61, 0]);
    assert_eq!(json(&["inspect", &input])["findings"].as_array().unwrap().len(), 1);
    std::fs::write(dir.path("none"), file_of(b"{}", b"")).unwrap();
    stdout(&finegrain(["cast", &dir.text("none"), &dir.text("out"), "--to", "e4m3"]));
    assert_eq!(json(&["inspect", &dir.text("out")])["tensors"], Value::Array(vec![]));
}

#[test]
fn outputs_that_cannot_be_written_leave_everything_as_it_was() {
    let dir = Folder::new();
    let input = dir.write("in", &[("a", f32s(&[2], &[1.0, 2.0]))]);
    let before = std::fs::read(&input).unwrap();
    let cast = |out: &Path, words: &[&str]| {
        fails([OsStr::new("cast"), input.as_ref(), out.as_ref(), "--to".as_ref(), "e4m3".as_ref()], words);
        assert_eq!(std::fs::read(&input).unwrap(), before);
    };
    cast(Path::new(&input), &["output equals input"]);
    cast(&dir.path("../").join(dir.0.path().file_name().unwrap()).join("in"), &["output equals input"]);
    cast(&dir.path("no/such/out"), &["out: there is no folder"]);
    cast(dir.0.path(), &["is a folder"]);
    cast(Path::new("/dev/null"), &["/dev/null: is there and not a regular file"]);
    fails(["cast", &dir.text("missing"), &dir.text("out"), "--to", "e4m3"], &["missing: No such file"]);
    fails(["cast", dir.0.path().to_str().unwrap(), &dir.text("out"), "--to", "e4m3"], &["is a folder"]);
    fails(["inspect", dir.0.path().to_str().unwrap()], &["is a folder without safetensors files"]);
    assert_eq!(dir.list(), ["in"]);

    let relative = Command::new(env!("CARGO_BIN_EXE_finegrain"))
        .current_dir(dir.0.path())
        .args(["cast", "in", "./in", "--to", "e4m3"])
        .output()
        .unwrap();
    assert_eq!(relative.status.code(), Some(1));
    // A bare name has no folder of its own: the working directory it is.
    let bare = Command::new(env!("CARGO_BIN_EXE_finegrain"))
        .current_dir(dir.0.path())
        .args(["cast", "in", "bare", "--to", "e4m3"])
        .output()
        .unwrap();
    assert_eq!((bare.status.code(), dir.list()), (Some(0), vec!["bare".to_owned(), "in".to_owned()]));
}

#[cfg(unix)]
#[test]
fn links_and_permissions() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = Folder::new();
    let input = dir.write("in", &[("a", f32s(&[2], &[1.0, 2.0]))]);
    symlink(&input, dir.path("link")).unwrap();
    fails(["cast", &input, &dir.text("link"), "--to", "e4m3"], &["link: output equals input"]);
    fails(["cast", &dir.text("link"), &input, "--to", "e4m3"], &["output equals input"]);

    let locked = dir.path("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o555)).unwrap();
    // The administrator may write anywhere; there is nothing to see then.
    if std::fs::write(locked.join("probe"), "").is_err() {
        let out = locked.join("out");
        fails(["cast", &input, out.to_str().unwrap(), "--to", "e4m3"], &["out: cannot be created"]);
        assert_eq!(std::fs::read_dir(&locked).unwrap().count(), 0);
    }
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o755)).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_not_utf8_work() {
    use std::os::unix::ffi::OsStrExt;
    let dir = Folder::new();
    let name = |bytes: &[u8]| dir.0.path().join(OsStr::from_bytes(bytes));
    let (input, output) = (name(b"in\xff"), name(b"out\xfe\n"));
    std::fs::rename(dir.write("in", &[("a", f32s(&[2], &[1.0, 2.0]))]), &input).unwrap();
    let cast = |to: &Path| {
        finegrain([OsStr::new("cast"), input.as_ref(), to.as_ref(), "--to".as_ref(), "e4m3".as_ref()])
    };
    stdout(&cast(&output));
    stdout(&finegrain([OsStr::new("inspect"), output.as_ref()]));
    let failed = cast(&name(b"no\xff\n/out"));
    let stderr = String::from_utf8(failed.stderr).unwrap();
    assert_eq!((failed.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_finegrain"))
        .args(["formats", "e4m3", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    assert_eq!(output.status.code(), Some(0));
}
