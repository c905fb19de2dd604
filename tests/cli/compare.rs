//! `finegrain compare` and `finegrain recipe`.

use finegrain::quant::Recipe;

use crate::{Folder, f32s, fails, finegrain, json, stdout};

fn layer(folder: &Folder) -> String {
    let wave =
        |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin() * (1.0 + (i % 7) as f32)).collect::<Vec<_>>();
    folder.write(
        "layers",
        &[
            ("l0.x", f32s(&[8, 128], &wave(1024, 0.37))),
            ("l0.w", f32s(&[16, 128], &wave(2048, 0.11))),
            ("l0.dy", f32s(&[8, 16], &wave(128, 0.71))),
            ("l1.x", f32s(&[4, 128], &wave(512, 0.23))),
            ("l1.w", f32s(&[8, 128], &wave(1024, 0.19))),
        ],
    )
}

#[test]
fn a_layer_is_ranked_best_first() {
    let folder = Folder::new();
    let file = layer(&folder);
    let args = ["compare", &file, "--x", "l0.x", "--w", "l0.w", "--dy", "l0.dy"];
    let report = json(&args);
    let rows = report["layers"][0]["rows"].as_array().unwrap();
    assert_eq!((&rows[0]["scheme"], &rows[0]["accumulation"]), (&"bf16".into(), &"f32/128".into()));
    assert!(rows.iter().any(|r| r["scheme"] == "te-current" && r["accumulation"] == "hopper/none"));
    let error = |r: &serde_json::Value| {
        r["outcome"]["measured"][0][1]["total"]["relative_frobenius"].as_f64().unwrap()
    };
    assert!(error(&rows[0]) * 4.0 < error(&rows[1]), "BF16 has four more bits than E4M3");
    assert_eq!(rows[0]["outcome"]["measured"].as_array().unwrap().len(), 3, "Y, dX and dW");

    let table = stdout(&finegrain(args));
    assert!(table.is_ascii() && table.starts_with("l0: x 8x128, w 16x128\n"), "{table}");
    assert_eq!(table.lines().nth(1).unwrap().split("  ").filter(|c| !c.is_empty()).count(), 12);
}

#[test]
fn what_is_asked_for_and_does_not_exist_says_why() {
    let folder = Folder::new();
    let file = layer(&folder);
    let args = ["compare", &file, "--x", "l1.x", "--w", "l1.w"];
    let more =
        ["--recipe", "mxfp8", "--recipe", "bf16", "--accumulate", "hopper/none", "--accumulate", "exact"];
    let table = stdout(&finegrain(args.iter().chain(&more)));
    assert!(table.contains("change every 32 elements of K"), "{table}");
    assert!(table.contains("hopper multiplies e4m3, e5m2; A is bf16"), "{table}");
}

#[test]
fn several_layers_are_summarized_and_plotted() {
    let folder = Folder::new();
    let file = layer(&folder);
    let plot = folder.text("plot.svg");
    let args =
        ["compare", &file, "--layer", ".", "--recipe", "te", "--recipe", "bf16", "--accumulate", "f32"];
    let report = json(&[&args[..], &["--plot", &plot]].concat());
    assert_eq!(report["layers"].as_array().unwrap().len(), 2);
    assert_eq!(report["summary"].as_array().unwrap().len(), 2);
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.contains("<svg") && svg.contains("te  f32/128") && svg.contains("2 layers"));
    assert_eq!(folder.list(), ["layers", "plot.svg"]);
}

#[test]
fn wrong_requests_name_file_tensor_and_numbers() {
    let folder = Folder::new();
    let file = layer(&folder);
    let compare = |args: &[&str], words: &[&str]| fails(["compare", &file].iter().chain(args), words);
    compare(&["--x", "l0.x", "--w", "nothing"], &["layers", "'nothing'", "l0.w"]);
    compare(&["--x", "l0.x", "--w", "l0.dy"], &["8×128", "8×16"]);
    compare(&["--x", "l0.x", "--w", "l0.w", "--dy", "l0.x"], &["8×128", "8×16"]);
    compare(&["--layer", "l9"], &["l9", "layers"]);
    compare(&["--x", "l1.x", "--w", "l1.w", "--plot", &folder.text("plot.png")], &[".svg"]);
    assert_eq!(folder.list(), ["layers"]);
    for args in [&["--recipe", "nonsense"][..], &["--accumulate", "volta9"], &["--accumulate", "f32/x"], &[]]
    {
        let output = finegrain(["compare", &file].iter().chain(args));
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains("error") && output.stdout.is_empty(), "{stderr}");
    }
}

#[test]
fn recipes_are_listed() {
    let list = json(&["recipe", "list"]);
    assert_eq!(list.as_array().unwrap().len(), Recipe::ALL.len());
    assert_eq!(list[0]["name"], "deepseek-v3");
    let calls = |name: &str| {
        list.as_array().unwrap().iter().find(|r| r["name"] == name).unwrap()["multiplied_by"].clone()
    };
    let blocks = ["cublaslt-block", "deepgemm", "triton-deepseek", "te-blockwise"];
    assert_eq!(calls("deepseek-v3"), serde_json::json!(blocks));
    assert_eq!(calls("te-current"), serde_json::json!(["cublaslt-fast", "cublaslt"]));
    assert_eq!(calls("mxfp8-e4m3-floor"), serde_json::json!([]));
    assert_eq!(stdout(&finegrain(["recipe", "list"])).lines().count(), 1 + Recipe::ALL.len());
}

#[test]
fn recipes_are_compared_on_a_file() {
    let folder = Folder::new();
    let file = layer(&folder);
    let report = json(&["recipe", "diff", "deepseek-v3", "te", &file, "--tensor", "w$", "--as", "weight"]);
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 2);
    assert_eq!((&tensors[0]["elements"], &tensors[0]["granules"]), (&2048.into(), &1.into()));
    assert_eq!(tensors[0]["scales"].as_u64(), None, "differences lie under total");
    assert_eq!(tensors[0]["total"]["scales"], 1);
    let causes: Vec<&str> =
        tensors[0]["causes"].as_array().unwrap().iter().map(|c| c["cause"].as_str().unwrap()).collect();
    assert_eq!(causes, ["amax-floor", "nan-amax", "arithmetic", "power-of-two"]);
    assert!(stdout(&finegrain(["recipe", "diff", "deepgemm", "vllm", &file])).contains("l0.x"));
    fails(["recipe", "diff", "te", "mxfp8", &file], &["layers", "1x128", "1x32"]);
    fails(["recipe", "diff", "te", "vllm", &file, "--tensor", "nothing"], &["layers", "nothing"]);
}

#[test]
fn budgets_name_tiles_and_map_them() {
    let folder = Folder::new();
    let wave =
        |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i % 7) as f32)).collect::<Vec<_>>();
    let file = folder.write(
        "layers",
        &[("a.x", f32s(&[130, 256], &wave(130 * 256))), ("a.w", f32s(&[260, 256], &wave(260 * 256)))],
    );
    let args = ["compare", &file, "--x", "a.x", "--w", "a.w", "--recipe", "te", "--accumulate", "hopper/128"];
    let report = json(&args);
    let budget = &report["layers"][0]["budgets"][0]["budget"];
    let number = |v: &serde_json::Value| v.as_f64().unwrap();
    let tiles = budget["tiles"].as_array().unwrap();
    assert_eq!(tiles.len(), 2 * 3);
    // Over tiles to each stage's share, over stages to each tile's.
    for (s, stage) in budget["stages"].as_array().unwrap().iter().enumerate() {
        let sum: f64 = tiles.iter().map(|t| number(&t["stages"][s])).sum();
        assert!((sum - number(&stage["share"])).abs() < 1e-9, "{stage}");
    }
    for tile in tiles {
        let sum: f64 = tile["stages"].as_array().unwrap().iter().map(number).sum();
        assert!((sum - number(&tile["share"])).abs() < 1e-9, "{tile}");
    }
    let names: Vec<&str> =
        budget["operands"].as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["x", "w"]);
    let text = stdout(&finegrain(args.iter().chain(&["--map"])));
    for words in ["worst tiles", "Y[0-127, 128-255]", "Y by tile, %", "x by tile, %", "w by tile, %"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn tolerances_and_bounds_are_printed() {
    let args = ["compare", "--recipe", "deepseek-v3", "--accumulate", "hopper/128", "--tolerance"];
    let report = json(&args);
    let line = &report["layers"][0]["tolerances"][0];
    assert_eq!((&line["result"], &line["shape"]), (&"Y".into(), &serde_json::json!([128, 256, 768])));
    for layer in report["layers"].as_array().unwrap() {
        for line in layer["tolerances"].as_array().unwrap() {
            assert_eq!((&line["bound"]["violations"], &line["bound"]["unbounded"]), (&0.into(), &0.into()));
            let worst = line["bound"]["worst"].as_f64().unwrap();
            assert!(0.05 < worst && worst <= 1.0, "{line}");
        }
    }
    // The transformer's Y is as independent as the tolerance asks for; one sign is not.
    assert!(line["quantised_used"].as_f64().unwrap() < 1.0);
    assert!(report["layers"][1]["tolerances"][0]["quantised_used"].as_f64().unwrap() > 1.0);
    assert!(stdout(&finegrain(args)).contains("tolerance    accumulation"));
}

#[test]
fn accumulators_are_swept() {
    let folder = Folder::new();
    let file = layer(&folder);
    let plot = folder.text("sweep.svg");
    let args = ["compare", &file, "--x", "l0.x", "--w", "l0.w", "--recipe", "te-current"];
    let more = ["--accumulate", "hopper:l=16/64", "--sweep", "--plot", &plot];
    let report = json(&[&args[..], &more].concat());
    let sweep = &report["layers"][0]["sweep"];
    assert_eq!((&sweep["core"], &sweep["interval"]), (&"hopper:l=16".into(), &64.into()));
    let errors = |key: &str, s: usize| -> Vec<f64> {
        let points = sweep[key][s]["points"].as_array().unwrap();
        points.iter().map(|p| p["error"].as_f64().unwrap()).collect()
    };
    let bits = errors("fraction_bits", 1);
    assert!(bits.len() >= 12 && bits[0] > 100.0 * bits.last().unwrap(), "{bits:?}");
    let names: Vec<&str> =
        sweep["fraction_bits"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["hopper:l=16", "result in f32", "rounded to nearest"]);
    // 16, 32, 64 and all 128.
    assert_eq!((errors("intervals", 0).len(), errors("intervals", 1).len()), (4, 4));
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(
        svg.contains("<polyline") && svg.contains("promoted every 64") && svg.contains("rounded to nearest")
    );
    let text = stdout(&finegrain(args.iter().chain(&more)));
    assert!(text.contains("sweep of F: te-current, hopper:l=16, promoted every 64"), "{text}");
}

#[test]
fn a_tensor_core_that_was_never_built_is_an_accumulation() {
    let folder = Folder::new();
    let file = layer(&folder);
    let core = "hopper:f=10,result=e8m10,terms=nearest,round=nearest,addend=late";
    let args = ["compare", &file, "--x", "l1.x", "--w", "l1.w", "--recipe", "te-current"];
    let report =
        json(&[&args[..], &["--accumulate", &format!("{core}/64"), "--accumulate", "hopper/64"]].concat());
    let rows = report["layers"][0]["rows"].as_array().unwrap();
    assert!(rows.iter().any(|r| r["accumulation"] == format!("{core}/64")), "{rows:?}");
    let accumulated = |row: &serde_json::Value| {
        row["outcome"]["measured"][0][1]["accumulation"]["relative_frobenius"].as_f64().unwrap()
    };
    assert!(accumulated(&rows[1]) != accumulated(&rows[0]));
    let output = finegrain(["compare", "--accumulate", "hopper:q=3"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("unknown tensor core parameter 'q'; known: l, f, result"), "{stderr}");
}
