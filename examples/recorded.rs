//! A product that an H200 returned, from the committed cut of the recordings, as `finegrain identify` takes one.
//!
//! ```sh
//! cargo run --release --example recorded -- d.scaled_mm.tile_tile.e4m3.e4m3.256x256x7168.f32 h200.safetensors
//! cargo run --release -- identify h200.safetensors
//! ```

use std::path::Path;

use finegrain::checkpoint::{Dtype, Tensor, TensorFile, write_tensors};
use finegrain::{Error, Result};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, out] = args.as_slice() else {
        return Err(Error::Invalid("expected the name of a recorded result, and a file to write".to_owned()));
    };
    let file =
        TensorFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/silicon_products.safetensors"))?;
    // d.CALLER.FORM[.FORMAT.FORMAT].SHAPE[.fast].TYPE of operands FORM.FORMAT.FORMAT.SHAPE.
    let words: Vec<&str> = name.split('.').collect();
    let formats =
        if words.get(1) == Some(&"scaled_mm") { words[3..5].join(".") } else { "e4m3.e4m3".to_owned() };
    let shape = words.iter().find(|word| word.split('x').count() == 3).copied().unwrap_or_default();
    let operand = |part: &str| file.read(&format!("{}.{formats}.{shape}.{part}", words[2]));
    let typed =
        |tensor: Tensor, dtype: Dtype| Tensor::new(dtype, tensor.shape().to_vec(), tensor.into_data());
    let code = |format: &str| if format == "e5m2" { Dtype::F8_E5M2 } else { Dtype::F8_E4M3 };
    let (of_a, of_b) = formats.split_once('.').unwrap_or_default();
    let of_d = if name.ends_with("bf16") { Dtype::BF16 } else { Dtype::F32 };
    let tensors = [
        ("a".to_owned(), typed(operand("a")?, code(of_a))?),
        ("b".to_owned(), typed(operand("b")?, code(of_b))?),
        ("a_scale_inv".to_owned(), operand("sa")?),
        ("b_scale_inv".to_owned(), operand("sb")?),
        ("d".to_owned(), typed(file.read(name)?, of_d)?),
    ];
    write_tensors(Path::new(out), &tensors)
}
