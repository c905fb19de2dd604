//! Gate A: what the table says of a kernel, held to its machine code.

use std::collections::BTreeMap;

use finegrain::cuda::disasm::Histogram;
use finegrain::cuda::kernels::Kernel;
use finegrain::cuda::roofline::blocks_a_multiprocessor;
use finegrain::cuda::{Arch, Compiled};

/// What a cubin, disassembled to `code`, has otherwise than the table says of a kernel; and a line about it.
pub fn broken(
    kernel: &Kernel,
    compiled: &Compiled,
    code: &BTreeMap<String, Histogram>,
    arch: Arch,
) -> (Vec<String>, String) {
    let at = format!("{} for {arch}", kernel.name);
    let Some(histogram) = code.get(kernel.name) else {
        return (vec![format!("{at}: not in the cubin")], at);
    };
    let resources = compiled.resources(kernel.name).expect("the log speaks of each kernel");
    let blocks = blocks_a_multiprocessor(kernel, resources, arch);
    let mut wrong = Vec::new();
    let local = histogram.count("LDL") + histogram.count("STL");
    if (local, resources.stack, resources.spilled) != (0, 0, 0) {
        wrong.push(format!("{at}: {local} accesses to local memory, {resources:?}"));
    }
    if blocks < kernel.blocks {
        wrong.push(format!(
            "{at}: {blocks} blocks a multiprocessor with {} registers, {} planned with at most {}",
            resources.registers,
            kernel.blocks,
            kernel.max_registers()
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
        let seen: Vec<_> = histogram.iter().map(|(name, _)| name).filter(|n| n.starts_with(opcode)).collect();
        wrong.push(format!("{at}: no {pattern} among {seen:?}"));
    }
    let line = format!(
        "{at}: {} instructions, {} of {} registers, {} + {} bytes shared, {blocks} blocks",
        histogram.total(),
        resources.registers,
        kernel.max_registers(),
        resources.shared,
        kernel.dynamic_shared
    );
    (wrong, line)
}
