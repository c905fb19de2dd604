//! Gate A: every kernel compiles for every architecture it targets, and its machine code is what the table promises.
//! Needs NVRTC and nvdisasm (scripts/nvrtc.sh), no GPU.
#![cfg(feature = "cuda")]

use std::path::Path;
use std::sync::OnceLock;

use finegrain::cuda::disasm::disassemble;
use finegrain::cuda::kernels::{KERNELS, SOURCES};
use finegrain::cuda::{Compiler, Target, nvrtc_present};

/// The version that scripts/nvrtc.sh installs: only its PTX can be compared with what is committed.
const PINNED: (i32, i32) = (13, 5);

/// A compiler, or `None` where NVRTC is not found and need not be.
fn compiler() -> Option<&'static Compiler> {
    static COMPILER: OnceLock<Option<Compiler>> = OnceLock::new();
    let compiler = COMPILER.get_or_init(|| {
        if !nvrtc_present() {
            let required = std::env::var_os("FINEGRAIN_REQUIRE_NVRTC").is_some_and(|v| v == "1");
            assert!(!required, "NVRTC not found, and FINEGRAIN_REQUIRE_NVRTC is set");
            return None;
        }
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda");
        Some(Compiler::with_cache(cache).unwrap())
    });
    if compiler.is_none() {
        println!("skipped: NVRTC not found");
    }
    compiler.as_ref()
}

fn ptx_path(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/ptx").join(file)
}

#[test]
fn machine_code_is_what_the_table_promises() {
    let Some(compiler) = compiler() else { return };
    let mut wrong = Vec::new();
    for source in SOURCES {
        for &arch in source.archs {
            let compiled = compiler.compile(source, arch, Target::Cubin).unwrap();
            let code = disassemble(&compiled.image).unwrap();
            let kernels: Vec<_> = KERNELS.iter().filter(|k| std::ptr::eq(k.source, *source)).collect();
            let listed: Vec<_> = kernels.iter().map(|k| k.name).collect();
            for name in code.keys().filter(|n| !listed.contains(&n.as_str())) {
                wrong.push(format!("{} has a kernel {name} that is not in the table", source.file));
            }
            for kernel in kernels {
                let at = format!("{} for {arch}", kernel.name);
                let Some(histogram) = code.get(kernel.name) else {
                    wrong.push(format!("{at}: not in the cubin"));
                    continue;
                };
                let resources = compiled.resources(kernel.name).expect("the log speaks of each kernel");
                println!(
                    "{at}: {} instructions, {} of {} registers, {} + {} bytes shared",
                    histogram.total(),
                    resources.registers,
                    kernel.max_registers(),
                    resources.shared,
                    kernel.dynamic_shared
                );
                let local = histogram.count("LDL") + histogram.count("STL");
                if (local, resources.stack, resources.spilled) != (0, 0, 0) {
                    wrong.push(format!("{at}: {local} accesses to local memory, {resources:?}"));
                }
                if resources.registers > kernel.max_registers() {
                    wrong.push(format!(
                        "{at}: {} registers, {} planned for {} blocks of {} threads",
                        resources.registers,
                        kernel.max_registers(),
                        kernel.blocks,
                        kernel.threads()
                    ));
                }
                if resources.shared != kernel.static_shared {
                    wrong.push(format!(
                        "{at}: {} bytes of shared memory, {} in the table",
                        resources.shared, kernel.static_shared
                    ));
                }
                for pattern in kernel.expected.iter().filter(|p| histogram.count(p) == 0) {
                    let opcode = pattern.split('.').next().unwrap_or_default();
                    let seen: Vec<_> =
                        histogram.iter().map(|(name, _)| name).filter(|n| n.starts_with(opcode)).collect();
                    wrong.push(format!("{at}: no {pattern} among {seen:?}"));
                }
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
            let path = ptx_path(&source.ptx_file(arch));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let first = text.lines().next().unwrap_or_default();
            assert_eq!(
                first,
                format!("// source {}", source.ptx_hash(arch)),
                "{} is not of the present source: cargo run --features cuda --example emit_ptx kernels/ptx",
                path.display()
            );
        }
    }
    let known: Vec<_> = SOURCES.iter().flat_map(|s| s.ptx.iter().map(|&a| s.ptx_file(a))).collect();
    for entry in std::fs::read_dir(ptx_path("")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "kernels/ptx/{name} belongs to no source");
    }
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
            let text = std::fs::read(ptx_path(&source.ptx_file(arch))).unwrap();
            let body = text.iter().position(|&b| b == b'\n').map_or(&text[..], |i| &text[i + 1..]);
            assert!(body == compiled.image, "{} differs from what NVRTC gives", source.ptx_file(arch));
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
