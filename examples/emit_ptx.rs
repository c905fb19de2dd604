//! Writes what is kept of the PTX of every kernel source into kernels/ptx, with the hash of what it was made from in the
//! first line. Needs NVRTC, of the version that scripts/nvrtc.sh installs: `cargo run --features cuda --example emit_ptx`.

#[path = "../tests/cuda/support/kept.rs"]
#[allow(dead_code, unreachable_pub)]
mod kept;

use finegrain::cuda::kernels::SOURCES;
use finegrain::cuda::{Compiler, Target};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let compiler = Compiler::new()?;
    for source in SOURCES {
        for &arch in source.ptx {
            let compiled = compiler.compile(source, arch, Target::Ptx)?;
            let body = kept::kept(std::str::from_utf8(&compiled.image)?);
            let path = kept::path(source, arch);
            std::fs::write(&path, format!("// source {}\n{body}", source.ptx_hash(arch)))?;
            println!("{}", path.display());
        }
    }
    Ok(())
}
