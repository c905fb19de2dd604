//! Outputs: what they replace, what they keep of it, and what an interrupted run leaves.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use super::*;

fn mode(path: &std::path::Path) -> u32 {
    path.metadata().unwrap().mode() & 0o777
}

#[test]
fn an_output_keeps_its_permissions_and_a_link_its_place() {
    let dir = Folder::new();
    let input = dir.write("in", &[("a", f32s(&[2], &[1.0, 2.0]))]);
    let cast = |out: &str| stdout(&finegrain(["cast", &input, &dir.text(out), "--to", "bf16"]));
    for bits in [0o600, 0o640, 0o664, 0o444, 0o755] {
        std::fs::write(dir.path("out"), "old").unwrap();
        std::fs::set_permissions(dir.path("out"), PermissionsExt::from_mode(bits)).unwrap();
        cast("out");
        assert_eq!(mode(&dir.path("out")), bits, "{bits:o}");
        std::fs::remove_file(dir.path("out")).unwrap();
    }
    std::fs::create_dir(dir.path("sub")).unwrap();
    std::fs::write(dir.path("sub/real"), "old").unwrap();
    symlink("sub/real", dir.path("link")).unwrap();
    symlink("link", dir.path("second")).unwrap();
    symlink("sub/new", dir.path("dangling")).unwrap();
    for (link, target) in [("link", "sub/real"), ("second", "sub/real"), ("dangling", "sub/new")] {
        cast(link);
        assert!(dir.path(link).is_symlink(), "{link}");
        assert!(finegrain::checkpoint::TensorFile::open(dir.path(target)).is_ok(), "{link}");
    }
    symlink("ring", dir.path("ring")).unwrap();
    fails(["cast", &input, &dir.text("ring"), "--to", "bf16"], &["ring", "links"]);
    // Another name of the same file keeps what it held.
    std::fs::hard_link(&input, dir.path("hard")).unwrap();
    let before = std::fs::read(&input).unwrap();
    cast("hard");
    assert_eq!(std::fs::read(&input).unwrap(), before);
    assert_eq!(std::fs::read_dir(dir.path("sub")).unwrap().count(), 2);
}

#[test]
fn a_run_that_is_told_to_end_leaves_nothing() {
    const ROWS: usize = 2048;
    let dir = Folder::new();
    let big = Tensor::new(Dtype::F32, vec![ROWS, 4096], vec![0x3F; ROWS * 4096 * 4]).unwrap();
    let input = dir.write("in", &[("a", big.clone()), ("b", big.clone()), ("c", big)]);
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let out = dir.text("out");
        let mut child = Command::new(env!("CARGO_BIN_EXE_finegrain"))
            .args(["cast", &input, &out, "--to", "e4m3", "--round", "stochastic"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !dir.list().iter().any(|name| name.starts_with(".finegrain-")) {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it began to write");
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty());
        assert_eq!(dir.list(), ["in"], "after {signal}");
    }
}
