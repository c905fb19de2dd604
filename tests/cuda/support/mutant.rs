//! Bugs planted in the sources of the kernels: the text of one file changed in one place, compiled anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use finegrain::cuda::disasm::disassemble;
use finegrain::cuda::kernels::{HEADERS, Kernel, Source};
use finegrain::cuda::{Compiled, Compiler, Target};
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

/// The PTX of a kernel's source, as it is or changed.
fn ptx(compiler: &Compiler, kernel: &Kernel, text: String) -> finegrain::Result<Arc<Compiled>> {
    compiler.compile(&source(kernel, text), kernel.source.ptx[0], Target::Ptx)
}

fn module(compiled: &Compiled) -> Module {
    // What the interpreter does not know is not caught.
    Module::parse(std::str::from_utf8(&compiled.image).unwrap()).unwrap_or_else(|e| panic!("{e}"))
}

/// Plants each bug and answers those that nobody noticed: neither the compiler, nor `run`, which is given the mutant and
/// the module to run its kernel of, nor the table of what machine code must look like. The kernels as they are must pass.
pub fn survivors(
    compiler: &Compiler,
    mutants: &[Mutant],
    run: impl Fn(&Mutant, &Module) -> Result<(), String> + Sync,
) -> Vec<String> {
    let kernel_of =
        |m: &Mutant| Kernel::by_name(m.kernel).unwrap_or_else(|| panic!("no kernel {}", m.kernel));
    let mut first: BTreeMap<(&str, &str), &Mutant> = BTreeMap::new();
    mutants.iter().for_each(|m| _ = first.entry((m.kernel, m.problem)).or_insert(m));
    let sound = first.into_par_iter().map(|(key, mutant)| {
        let kernel = kernel_of(mutant);
        let compiled = ptx(compiler, kernel, flattened(kernel, None)).unwrap();
        run(mutant, &module(&compiled)).unwrap_or_else(|e| panic!("{} fails on {}: {e}", key.0, key.1));
        (key, compiled)
    });
    let sound: BTreeMap<_, _> = sound.collect();

    let noticed: [AtomicUsize; 3] = Default::default();
    let survives = |mutant: &Mutant| {
        let &Mutant { name, problem, .. } = mutant;
        let kernel = kernel_of(mutant);
        let say = |by: usize, how: &str| {
            noticed[by].fetch_add(1, Ordering::Relaxed);
            println!("{} on {problem}, {name}: {}", kernel.name, how.lines().next().unwrap_or_default());
            None
        };
        let text = flattened(kernel, Some(mutant));
        let planted = match ptx(compiler, kernel, text.clone()) {
            Ok(planted) => planted,
            Err(refusal) => return say(0, &format!("not compiled: {refusal}")),
        };
        let same = planted.image == sound[&(mutant.kernel, problem)].image;
        assert!(!same, "{name} changes nothing that the compiler sees");
        if let Err(how) = run(mutant, &module(&planted)) {
            return say(1, &how);
        }
        match machine_code(compiler, kernel, text).first() {
            Some(broken) => say(2, broken),
            None => Some(format!("{} on {problem}: {name}", kernel.name)),
        }
    };
    let survivors: Vec<String> = mutants.par_iter().filter_map(survives).collect();
    let [refused, run, machine] = noticed.map(AtomicUsize::into_inner);
    println!(
        "{} bugs planted: {refused} not compiled, {run} noticed when run, {machine} in the machine code, {} not noticed",
        mutants.len(),
        survivors.len()
    );
    survivors
}

/// What the machine code has otherwise than planned.
fn machine_code(compiler: &Compiler, kernel: &Kernel, text: String) -> Vec<String> {
    let arch = kernel.source.ptx[0];
    let compiled = compiler.compile(&source(kernel, text), arch, Target::Cubin).unwrap();
    broken(kernel, &compiled, &disassemble(&compiled.image).unwrap(), arch).0
}
