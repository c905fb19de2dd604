//! `finegrain vectors`: the same bytes each time, nothing to find in them, and every planted error found.

use finegrain::checkpoint::{Tensor, TensorFile, write_tensors};
use finegrain::formats::Format;
use finegrain::gemm::TensorCore;
use finegrain::quant::Recipe;

use crate::{Folder, fails, finegrain, json, stdout};

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

/// Rewrites a file of vectors with one tensor changed.
fn change(folder: &Folder, file: &str, name: &str, f: impl FnOnce(Tensor) -> Tensor) {
    let path = folder.path("dir").join(file);
    let old = TensorFile::open(&path).unwrap();
    let tensors = old.names().iter().map(|n| (n.clone(), old.read(n).unwrap()));
    let (mut changed, mut f) = (Vec::new(), Some(f));
    for (n, tensor) in tensors {
        let tensor = if n == name { f.take().unwrap()(tensor) } else { tensor };
        changed.push((n, tensor));
    }
    assert!(f.is_none(), "{name} is not in {file}");
    write_tensors(&path, &changed).unwrap();
}

/// The same tensor with the lowest bit of an element flipped.
fn flipped(tensor: Tensor, element: usize) -> Tensor {
    let mut data = tensor.data().to_vec();
    data[element * tensor.dtype().bitsize() / 8] ^= 1;
    Tensor::new(tensor.dtype(), tensor.shape().to_vec(), data).unwrap()
}

#[test]
fn a_changed_element_of_any_operation_is_found_and_named() {
    for (file, tensor, element, index) in [
        ("casts", "e4m3.bf16.nearest-even.saturate", 300, vec![300]),
        ("recipes", "finite.deepseek-v3.activation", 301, vec![1, 1]),
        ("recipes", "finite.deepseek-v3.weight_scale_inv", 4, vec![1, 1]),
        ("layouts", "e8m0.5x9.RowMajor", 17, vec![17]),
        ("accumulations", "hopper.e4m3-e5m2.tiles.d.128.scales-first", 8, vec![1, 1]),
        ("accumulations", "grouped.f32.masked.d", 9, vec![1, 2]),
    ] {
        let folder = Folder::new();
        let dir = folder.text("dir");
        stdout(&finegrain(["vectors", "generate", &dir, "--only", file]));
        let file = format!("{file}.safetensors");
        change(&folder, &file, tensor, |t| flipped(t, element));
        let output = finegrain(["vectors", "check", &dir, "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = report["differences"].as_array().unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((&found[0]["file"], &found[0]["tensor"]), (&file.into(), &tensor.into()));
        assert_eq!((&found[0]["index"], &found[0]["elements"]), (&serde_json::json!(index), &1.into()));
        let bits = |what: &str| {
            let text = found[0][what].as_str().unwrap();
            u64::from_str_radix(text.split(' ').next().unwrap().trim_start_matches("0x"), 16).unwrap()
        };
        assert_eq!(bits("expected") ^ bits("found"), 1);
    }
}

#[test]
fn another_nan_counts_unless_any_will_do() {
    let folder = Folder::new();
    let dir = folder.text("dir");
    stdout(&finegrain(["vectors", "generate", &dir, "--only", "casts"]));
    // Code 7F of E4M3 is NaN, and so is FF.
    change(&folder, "casts.safetensors", "e4m3.codes", |codes| {
        assert_eq!(codes.data()[0x7F], 0x7F);
        let mut data = codes.data().to_vec();
        data[0x7F] = 0xFF;
        Tensor::new(codes.dtype(), codes.shape().to_vec(), data).unwrap()
    });
    fails_after_its_table(&["vectors", "check", &dir], "1 of");
    assert_eq!(json(&["vectors", "check", &dir, "--any-nan"])["differences"], serde_json::json!([]));
}

/// Exit 1 with a report on stdout, and the reason on stderr.
fn fails_after_its_table(args: &[&str], reason: &str) {
    let output = finegrain(args);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("e4m3.codes"));
    assert!(String::from_utf8_lossy(&output.stderr).contains(reason));
}

#[test]
fn a_tensor_of_another_shape_is_an_error() {
    let folder = Folder::new();
    let dir = folder.text("dir");
    stdout(&finegrain(["vectors", "generate", &dir, "--only", "layouts"]));
    change(&folder, "layouts.safetensors", "e2m1.packed", |t| {
        Tensor::new(t.dtype(), vec![2, t.elements() / 2], t.data().to_vec()).unwrap()
    });
    fails(["vectors", "check", &dir], &["layouts.safetensors", "e2m1.packed", "[2, 128]", "[256]"]);
    std::fs::remove_file(folder.path("dir").join("layouts.safetensors")).unwrap();
    fails(["vectors", "check", &dir], &["layouts.safetensors"]);
}

/// What the contract refuses is left out; nothing else may be.
#[test]
fn every_accumulation_is_there() {
    let folder = Folder::new();
    let index = json(&["vectors", "generate", &folder.text("dir"), "--only", "accumulations"]);
    let tensors = index["files"][0]["tensors"].as_array().unwrap();
    let named = |prefix: &str, part: &str| {
        let names = tensors.iter().map(|t| t["name"].as_str().unwrap());
        names.filter(|n| n.starts_with(prefix) && n.contains(part)).count()
    };
    for core in TensorCore::ALL {
        let model = format!("{}.", core.name());
        for order in ["scales-first", "partial-first", "unfused"] {
            assert!(named(&model, &format!(".d.128.{order}")) >= 3, "{model} {order}");
            assert!(named(&model, &format!(".d.64.{order}")) >= 3, "{model} {order}");
        }
        assert!(named(&model, ".d.none.") >= 2, "{model} without promotion");
        assert!(named(&model, ".d.128.scales-last") >= 3, "{model} with scales that come last");
        for parts in [".split-2", ".split-0-64-256"] {
            assert!(named(&model, parts) >= 9, "{model}: {parts}");
        }
        assert!(named(&model, ".c") >= 4, "{model} with an addend");
    }
    assert!(named("hopper:f=10,result=e8m10,terms=nearest,round=nearest.", ".d.128.scales-first") >= 3);
    assert!(named("ampere:l=16,", ".c") >= 4, "a late addend");
    assert!(named("hopper-mma:result=f16.", ".f16") >= 4, "results in f16");
    assert_eq!(named("grouped.", ".d"), 4 * 3);
}

/// Exhaustive where at most 16 bits go in, and every recipe sees the tiles that are hard.
#[test]
fn casts_are_exhaustive_and_recipes_meet_hard_tiles() {
    let folder = Folder::new();
    let index = json(&["vectors", "generate", &folder.text("dir"), "--only", "casts", "--only", "recipes"]);
    let tensors = |file: usize| index["files"][file]["tensors"].as_array().unwrap().clone();
    let shape = |name: &str| {
        let found = tensors(0).into_iter().find(|t| t["name"] == name);
        found.unwrap_or_else(|| panic!("{name}"))["shape"][0].as_u64().unwrap()
    };
    let narrow: Vec<_> = Format::ALL.iter().filter(|f| f.spec().bits() <= 12).collect();
    assert!(narrow.len() >= 9);
    for to in &narrow {
        for (from, bits) in [("bf16", 16), ("f16", 16)] {
            assert_eq!(shape(&format!("{to}.{from}.toward-zero.saturate")), 1 << bits, "{to} from {from}");
        }
        for from in narrow.iter().filter(|f| f.spec().bits() <= 8) {
            let name = if to == from { format!("{from}.values") } else { format!("{to}.{from}.values") };
            let all = 1 << from.spec().bits();
            assert_eq!(shape(&format!("{name}.nearest-even.saturate")), all, "{to} from {from}");
        }
    }
    let file = TensorFile::open(folder.path("dir").join("recipes.safetensors")).unwrap();
    let special = file.read("special").unwrap().to_f32().unwrap();
    let finite = file.read("finite").unwrap().to_f32().unwrap();
    let (rows, cols) = (140, 300);
    let tiles = |x: &[f32], hard: &dyn Fn(&f32) -> bool| {
        (0..rows).filter(|i| x[i * cols..i * cols + 128].iter().all(hard)).count()
    };
    assert!(tiles(&finite, &|v| *v == 0.0) > 4 && tiles(&finite, &|v| v.is_subnormal()) > 4);
    assert!(tiles(&special, &|v| v.is_nan()) > 4);
    assert!(special.contains(&f32::INFINITY) && special.contains(&f32::NEG_INFINITY));
    for recipe in Recipe::ALL {
        for role in ["activation", "weight", "transposed"] {
            for input in ["finite", "special"] {
                let name = format!("{input}.{}.{role}", recipe.name);
                assert!(tensors(1).iter().any(|t| t["name"] == name.as_str()), "{name}");
            }
        }
    }
}
