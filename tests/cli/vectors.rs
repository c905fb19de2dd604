//! `finegrain vectors`: the same bytes each time, nothing to find in them, and every planted error found.

use finegrain::checkpoint::{Tensor, TensorFile, write_tensors};

use crate::{Folder, finegrain, json, stdout};

#[test]
fn vectors_are_the_same_each_time_and_check() {
    let folder = Folder::new();
    let (one, two) = (folder.text("one"), folder.text("two"));
    stdout(&finegrain(["vectors", "generate", &one]));
    stdout(&finegrain(["vectors", "generate", &two]));
    let mut total = 0;
    for name in ["index", "casts", "recipes", "layouts", "accumulations"] {
        let name = format!("{name}.{}", if name == "index" { "json" } else { "safetensors" });
        let bytes = std::fs::read(folder.path("one").join(&name)).unwrap();
        assert!(bytes == std::fs::read(folder.path("two").join(&name)).unwrap(), "{name} changes");
        total += bytes.len();
    }
    println!("{total} bytes");
    assert!(total < 50 << 20, "{total} bytes");
    let report = json(&["vectors", "check", &one]);
    assert_eq!(report["differences"], serde_json::json!([]));
    assert!(report["elements"].as_u64().unwrap() > 1_000_000);
}

#[test]
fn a_changed_element_is_found_and_named() {
    let folder = Folder::new();
    let dir = folder.text("dir");
    stdout(&finegrain(["vectors", "generate", &dir, "--only", "layouts"]));
    let path = folder.path("dir").join("layouts.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let mut tensors: Vec<(String, Tensor)> =
        file.names().iter().map(|n| (n.clone(), file.read(n).unwrap())).collect();
    let (_, tensor) = tensors.iter_mut().find(|(n, _)| n == "e8m0.5x9.RowMajor").unwrap();
    let mut data = tensor.data().to_vec();
    let before = data[17];
    data[17] ^= 1;
    *tensor = Tensor::new(tensor.dtype(), tensor.shape().to_vec(), data).unwrap();
    write_tensors(&path, &tensors).unwrap();
    let output = finegrain(["vectors", "check", &dir, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = &report["differences"];
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(
        (&found[0]["file"], &found[0]["tensor"]),
        (&"layouts.safetensors".into(), &"e8m0.5x9.RowMajor".into())
    );
    assert_eq!((&found[0]["index"], &found[0]["elements"]), (&serde_json::json!([17]), &1.into()));
    assert!(found[0]["expected"].as_str().unwrap().starts_with(&format!("0x{before:02X}")));
    assert!(found[0]["found"].as_str().unwrap().starts_with(&format!("0x{:02X}", before ^ 1)));
}
