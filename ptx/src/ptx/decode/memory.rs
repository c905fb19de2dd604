//! Loads, stores, atomics, asynchronous copies.

use super::super::inst::{Op, PredSrc, Src};
use super::super::types::{Space, Ty};
use super::super::{float, integer};
use super::{Opcode, Operand, Result, Statement, Symbols};

/// `Ok(None)` if the instruction is of another family.
pub(super) fn decode(s: &Statement, opcode: &Opcode<'_>, symbols: &Symbols) -> Result<Option<Op>> {
    let space = opcode.modifiers.iter().find_map(|m| Space::by_name(m)).unwrap_or(Space::Generic);
    let types = opcode.types();
    Ok(Some(match opcode.base {
        "ld" | "ldu" | "st" => access(s, opcode, space, symbols)?,
        "atom" | "red" => {
            let Some(&ty) = types.last() else { return s.error("without a type") };
            let known = |m: &&&str| integer::atomic(m, Ty::U(32)).is_some();
            let Some(name) = opcode.modifiers.iter().find(known) else { return s.error("unknown operation") };
            let Some(f) = integer::atomic(name, ty).or_else(|| float::atomic(name, ty)) else {
                return s.error("unknown variant");
            };
            let first = usize::from(opcode.base == "atom");
            let dst = match s.operand(0)? {
                Operand::Sink => None,
                _ if first == 1 => Some(s.dst(0)?),
                _ => None,
            };
            let b = s.src(first + 1, ty, symbols)?;
            let c = if *name == "cas" { s.src(first + 2, ty, symbols)? } else { Src::Imm(0) };
            Op::Atomic { space, ty, f, dst, address: s.address(first, symbols)?, b, c }
        }
        "cp" => async_copy(s, opcode, symbols)?,
        "ldmatrix" => {
            if !opcode.has("m8n8") || !opcode.has("b16") {
                return s.error("only .m8n8 and .b16 are supported");
            }
            let dst: Option<Vec<_>> = s.registers(0)?.into_iter().map(|r| r.map(|(reg, _)| reg)).collect();
            let Some(dst) = dst else { return s.error("a matrix into nothing") };
            let count = if opcode.has("x4") { 4 } else { 1 + usize::from(opcode.has("x2")) };
            if dst.len() != count {
                return s.error(format!("{} registers for {count} matrices", dst.len()));
            }
            Op::LoadMatrix { dst, transposed: opcode.has("trans"), address: s.address(1, symbols)? }
        }
        _ => return Ok(None),
    }))
}

fn access(s: &Statement, opcode: &Opcode<'_>, space: Space, symbols: &Symbols) -> Result<Op> {
    const CACHE_HINTS: &[&str] = &[
        "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "weak", "cta", "gpu", "sys", "cluster", "v2", "v4",
        "v8",
    ];
    const STRONG: &[&str] = &["relaxed", "volatile", "acquire", "release"];
    for modifier in opcode.others() {
        let known = CACHE_HINTS.contains(&modifier)
            || STRONG.contains(&modifier)
            || Space::by_name(modifier).is_some()
            || modifier.starts_with("L1::")
            || modifier.starts_with("L2::");
        if !known {
            return s.error(format!("unknown modifier .{modifier}"));
        }
    }
    let Some(&ty) = opcode.types().last() else { return s.error("without a type") };
    let strong = STRONG.iter().any(|m| opcode.has(m));
    if opcode.base == "st" {
        return Ok(Op::Store {
            space,
            ty,
            src: s.sources(1, ty, symbols)?,
            address: s.address(0, symbols)?,
            strong,
        });
    }
    let registers = s.registers(0)?;
    let dst_bits = registers.iter().flatten().map(|r| r.1.bits()).max().unwrap_or(ty.bits());
    let dst = registers.into_iter().map(|r| r.map(|(reg, _)| reg)).collect();
    Ok(Op::Load { space, ty, dst, dst_bits, address: s.address(1, symbols)?, strong })
}

fn async_copy(s: &Statement, opcode: &Opcode<'_>, symbols: &Symbols) -> Result<Op> {
    if opcode.modifiers.first() != Some(&"async") || opcode.has("bulk") || opcode.has("mbarrier") {
        return s.error("only cp.async without .bulk and .mbarrier is supported");
    }
    if opcode.has("commit_group") {
        return Ok(Op::CommitGroup);
    }
    if opcode.has("wait_all") {
        return Ok(Op::WaitGroup(None));
    }
    if opcode.has("wait_group") {
        let Src::Imm(n) = s.src(0, Ty::U(32), symbols)? else { return s.error("the number is no constant") };
        return Ok(Op::WaitGroup(Some(n as u32)));
    }
    let Src::Imm(bytes) = s.src(2, Ty::U(32), symbols)? else { return s.error("the size is no constant") };
    if !matches!((bytes, opcode.has("cg")), (16, _) | (4 | 8, false)) {
        return s.error(format!("copies of {bytes} bytes do not exist"));
    }
    let (mut copied, mut ignore) = (Src::Imm(bytes), PredSrc::Const(false));
    if let Some(fourth) = s.operands.get(3) {
        match fourth {
            Operand::Reg(super::RegRef::Pred(_)) | Operand::NotPred(_) => ignore = s.pred(3)?,
            _ => copied = s.src(3, Ty::U(32), symbols)?,
        }
    }
    Ok(Op::AsyncCopy {
        to: s.address(0, symbols)?,
        from: s.address(1, symbols)?,
        bytes: bytes as u32,
        copied,
        ignore,
    })
}
