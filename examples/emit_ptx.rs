//! Writes the PTX of every kernel source into a folder, with the hash of what it was made from in the first line:
//! `cargo run --features cuda --example emit_ptx kernels/ptx`.

use finegrain::cuda::kernels::SOURCES;
use finegrain::cuda::{Compiler, Target};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::path::PathBuf::from(std::env::args().nth(1).ok_or("usage: emit_ptx DIR")?);
    std::fs::create_dir_all(&folder)?;
    let compiler = Compiler::new()?;
    for source in SOURCES {
        for &arch in source.ptx {
            let compiled = compiler.compile(source, arch, Target::Ptx)?;
            let path = folder.join(source.ptx_file(arch));
            let mut text = format!("// source {}\n", source.ptx_hash(arch)).into_bytes();
            text.extend(&compiled.image);
            std::fs::write(&path, text)?;
            println!("{}", path.display());
        }
    }
    Ok(())
}
