//! Bugs planted in the sources of the kernels: the text of one file changed in one place, compiled anew.
#![allow(dead_code, unreachable_pub)]

use std::sync::atomic::{AtomicUsize, Ordering};

use finegrain::cuda::disasm::disassemble;
use finegrain::cuda::kernels::{HEADERS, Kernel, Source};
use finegrain::cuda::{Arch, Compiler, Target};
use ptx_emulator::Module;
use rayon::prelude::*;

use super::promises::broken;

/// A bug: `before`, which `file` of `kernels/` has once, becomes `after`; it shows in `kernel` on `problem`.
pub struct Mutant {
    pub name: &'static str,
    pub kernel: &'static str,
    pub problem: &'static str,
    pub file: &'static str,
    pub before: &'static str,
    pub after: &'static str,
}

pub const fn bug(
    name: &'static str,
    (kernel, problem): (&'static str, &'static str),
    file: &'static str,
    before: &'static str,
    after: &'static str,
) -> Mutant {
    Mutant { name, kernel, problem, file, before, after }
}

/// A source with its headers in place, and of the kernels that macros define only the one asked for: compiling the others
/// takes time.
fn flattened(kernel: &Kernel, mutant: Option<&Mutant>) -> String {
    let source = kernel.source;
    let mut planted = mutant.is_none();
    let mut text = String::new();
    for (file, original) in
        source.headers().iter().map(|h| (h.file, h.text)).chain([(source.file, source.text)])
    {
        let changed = mutant.filter(|m| m.file == file).map(|m| {
            let places = original.matches(m.before).count();
            assert_eq!(places, 1, "{}: {file} has its place {places} times", m.name);
            planted = true;
            original.replace(m.before, m.after)
        });
        for line in changed.as_deref().unwrap_or(original).lines() {
            let defined = line.strip_prefix("GEMM_DENSE(").or_else(|| line.strip_prefix("GEMM_GROUPED("));
            let foreign = defined.and_then(|l| l.split(',').next()).is_some_and(|name| {
                let grouped = line.starts_with("GEMM_GROUPED");
                !kernel.name.starts_with(name) || grouped == (kernel.name == name)
            });
            if !line.starts_with("#include \"") && !line.starts_with("#pragma once") && !foreign {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    let mutant = mutant.map_or("", |m| m.name);
    assert!(planted, "{mutant}: its file is none of {} or its headers {:?}", source.file, HEADERS);
    text
}

/// A source of its own, which lives as long as the process.
fn source(kernel: &Kernel, text: String) -> Source {
    Source { file: kernel.source.file, text: text.leak(), archs: &[], ptx: &[] }
}

/// Plants each bug and answers those that nobody noticed: neither the compiler, nor `run` in the interpreter, nor the
/// comparison with what it gives for the kernel as it is, nor the table of what machine code must look like. `run` is
/// given the mutant and the module to run its kernel of.
pub fn survivors<T: PartialEq + Send>(
    compiler: &Compiler,
    mutants: &[Mutant],
    run: impl Fn(&Mutant, &Module) -> Result<T, String> + Sync,
) -> Vec<String> {
    let noticed: [AtomicUsize; 4] = Default::default();
    let survives = |mutant: &Mutant| {
        let &Mutant { name, kernel, problem, .. } = mutant;
        let kernel = Kernel::by_name(kernel).unwrap_or_else(|| panic!("{name}: no kernel {kernel}"));
        let arch = kernel.source.ptx[0];
        let ptx = |text: String| compiler.compile(&source(kernel, text), arch, Target::Ptx);
        let parse = |image: &[u8]| Module::parse(std::str::from_utf8(image).unwrap());
        // What is right: checked against the library by `run` itself, or by other tests.
        let sound = ptx(flattened(kernel, None)).unwrap();
        let want = run(mutant, &parse(&sound.image).unwrap())
            .unwrap_or_else(|e| panic!("{} fails on {problem} without {name}: {e}", kernel.name));

        let text = flattened(kernel, Some(mutant));
        let say = |gate: usize, how: &str| {
            noticed[gate].fetch_add(1, Ordering::Relaxed);
            let how = how.lines().next().unwrap_or_default();
            println!("{} on {problem}, {name}: {how}", kernel.name);
            None
        };
        let planted = match ptx(text.clone()) {
            Ok(planted) => planted,
            Err(refusal) => return say(0, &format!("not compiled: {refusal}")),
        };
        assert!(planted.image != sound.image, "{name} changes nothing that the compiler sees");
        // What the interpreter does not know is not caught.
        let module = parse(&planted.image).unwrap_or_else(|e| panic!("{name}: {e}"));
        match run(mutant, &module) {
            Err(fault) => return say(1, &fault),
            Ok(got) if got != want => return say(2, "other bits"),
            Ok(_) => {}
        }
        let broken = machine_code(compiler, kernel, text, arch);
        match broken.first() {
            Some(broken) => say(3, broken),
            None => Some(format!("{} on {problem}: {name}", kernel.name)),
        }
    };
    let survivors: Vec<String> = mutants.par_iter().filter_map(survives).collect();
    let [refused, faults, bits, machine] = noticed.map(AtomicUsize::into_inner);
    println!(
        "{} bugs planted: {refused} not compiled, {faults} faults, {bits} times other bits, {machine} times other machine \
         code, {} not noticed",
        mutants.len(),
        survivors.len()
    );
    survivors
}

fn machine_code(compiler: &Compiler, kernel: &Kernel, text: String, arch: Arch) -> Vec<String> {
    let compiled = compiler.compile(&source(kernel, text), arch, Target::Cubin).unwrap();
    broken(kernel, &compiled, &disassemble(&compiled.image).unwrap(), arch).0
}
