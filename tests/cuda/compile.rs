//! Gate A: every kernel compiles for every architecture it targets, and its machine code is what the table promises.
//! Needs NVRTC and nvdisasm (scripts/nvrtc.sh), no GPU.

use std::path::Path;

use crate::support::compiler::compiler;
use crate::support::kept;
use crate::support::promises::broken;
use finegrain::cuda::disasm::disassemble;
use finegrain::cuda::kernels::{KERNELS, SOURCES};
use finegrain::cuda::{Compiler, Target};

/// The version that scripts/nvrtc.sh installs: only its PTX can be compared with what is committed.
const PINNED: (i32, i32) = (13, 5);

#[test]
fn machine_code_is_what_the_table_promises() {
    let Some(compiler) = compiler() else { return };
    let mut wrong = Vec::new();
    for source in SOURCES {
        for &arch in source.archs {
            let compiled = compiler.compile(source, arch, Target::Cubin).unwrap();
            let kernels: Vec<_> = KERNELS.iter().filter(|k| std::ptr::eq(k.source, *source)).collect();
            let code = disassemble(&compiled.image).unwrap();
            for name in code.keys().filter(|n| kernels.iter().all(|k| k.name != n.as_str())) {
                wrong.push(format!("{} has a kernel {name} that is not in the table", source.file));
            }
            for kernel in kernels {
                let (broken, line) = broken(kernel, &compiled, &code, arch);
                println!("{line}");
                wrong.extend(broken);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Needs no NVRTC: whoever changes a kernel writes its PTX anew.
#[test]
fn committed_ptx_is_of_the_sources_at_hand() {
    for source in SOURCES {
        for &arch in source.ptx {
            let text = kept::read(source, arch);
            assert_eq!(
                text.lines().next().unwrap_or_default(),
                format!("// source {}", source.ptx_hash(arch)),
                "{} is not of the present source: cargo run --features cuda --example emit_ptx",
                source.ptx_file(arch)
            );
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/ptx");
    let known: Vec<_> = SOURCES.iter().flat_map(|s| s.ptx.iter().map(|&a| s.ptx_file(a))).collect();
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "kernels/ptx/{name} belongs to no source");
    }
}

/// A line of PTX without the number of its kernel in the module, which labels carry: `$L__BB3_17`.
fn unnumbered(line: &str) -> String {
    let mut parts = line.split("$L__BB");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "$L__BB" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[test]
fn committed_ptx_is_what_the_compiler_gives() {
    let Some(compiler) = compiler() else { return };
    if compiler.version() != PINNED {
        println!("skipped: NVRTC {:?} is not the pinned {PINNED:?}", compiler.version());
        return;
    }
    for source in SOURCES {
        for &arch in source.ptx {
            let compiled = compiler.compile(source, arch, Target::Ptx).unwrap();
            let fresh = std::str::from_utf8(&compiled.image).unwrap();
            let file = source.ptx_file(arch);
            let text = kept::read(source, arch);
            let (_, body) = text.split_once('\n').unwrap();
            assert!(body == kept::kept(fresh), "{file} differs from what NVRTC gives");
            // The kernels that are told from others, too.
            for kernel in KERNELS.iter().filter(|k| std::ptr::eq(k.source, *source)) {
                let told = kept::alone(body, kernel.name);
                let entry = format!(".visible .entry {}(", kernel.name);
                let (_, told) = told.split_once(&entry).unwrap();
                let (_, given) = fresh.split_once(&entry).unwrap();
                let given = given.split(".visible .entry ").next().unwrap();
                let same = kept::lines(told).map(unnumbered).eq(kept::lines(given).map(unnumbered));
                assert!(same, "{file}: {} is not what NVRTC gives", kernel.name);
            }
        }
    }
}

#[test]
fn errors_name_the_file_and_carry_the_log() {
    use finegrain::cuda::Arch;
    use finegrain::cuda::kernels::Source;
    let Some(compiler) = compiler() else { return };
    let broken =
        Source { file: "broken.cu", text: "__global__ void k() { nonsense; }", archs: &[], ptx: &[] };
    let message = compiler.compile(&broken, Arch::Sm90a, Target::Ptx).unwrap_err().to_string();
    assert!(message.contains("broken.cu for sm_90a") && message.contains("nonsense"), "{message}");
}

#[test]
fn what_is_on_disk_is_not_compiled_again() {
    use finegrain::cuda::Arch;
    if compiler().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let compile = || {
        let compiler = Compiler::with_cache(folder.path()).unwrap();
        compiler.compile(SOURCES[0], Arch::Sm89, Target::Ptx).unwrap()
    };
    let first = compile();
    let image = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "image"))
        .unwrap();
    assert_eq!(compile(), first);
    std::fs::write(&image, "// replaced").unwrap();
    assert_eq!(compile().image, b"// replaced", "the file decides");
}
