//! Instructions from registers to registers.

use super::super::inst::{Conversion, Logic, Op, PredSrc, RoundMode, Src};
use super::super::types::{Ty, window};
use super::super::{float, integer};
use super::{Opcode, Operand, RegRef, Result, Statement, Symbols};

/// `Ok(None)` if the instruction is of another family.
pub(super) fn decode(s: &Statement, opcode: &Opcode<'_>, symbols: &Symbols) -> Result<Option<Op>> {
    let types = opcode.types();
    let others = opcode.others();
    if others.contains(&"approx") {
        return Ok(Some(Op::Irreproducible));
    }
    let Some(&ty) = types.first() else { return Ok(None) };
    let named = |parts: &[&str]| parts.join(".");
    let full = named(&[&[opcode.base], &others[..]].concat());
    Ok(Some(match opcode.base {
        "mov" => move_op(s, ty, symbols)?,
        "and" | "or" | "xor" | "not" if ty == Ty::Pred => pred_logic(s, opcode.base)?,
        "setp" | "set" => compare(s, opcode, &types, symbols)?,
        "selp" => Op::Select {
            dst: s.dst(0)?,
            a: s.src(1, ty, symbols)?,
            b: s.src(2, ty, symbols)?,
            pred: s.pred(3)?,
        },
        "slct" => return s.error("not supported"),
        "cvt" => conversion(s, &others, &types, symbols)?,
        "cvta" => address_conversion(s, &others, symbols)?,
        "lop3" => {
            let Src::Imm(table) = s.src(4, Ty::U(32), symbols)? else {
                return s.error("the table is no constant");
            };
            let (dst, a) = (s.dst(0)?, s.src(1, ty, symbols)?);
            Op::Lop3 { table: table as u8, dst, a, b: s.src(2, ty, symbols)?, c: s.src(3, ty, symbols)? }
        }
        "bfi" => {
            let (dst, a, b) = (s.dst(0)?, s.src(1, ty, symbols)?, s.src(2, ty, symbols)?);
            let number = |i| s.src(i, Ty::U(32), symbols);
            Op::BitInsert { wide: ty.bits() == 64, dst, a, b, c: number(3)?, d: number(4)? }
        }
        "abs" | "neg" | "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" | "sqrt" | "rcp" => {
            let Some(f) = integer::unary(&full, ty).or_else(|| float::unary(&full, ty)) else {
                return s.error("unknown variant");
            };
            Op::Unary { f, dst: s.dst(0)?, a: s.src(1, ty, symbols)? }
        }
        "add" | "sub" | "mul" | "mul24" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" | "shl"
        | "shr" => {
            let Some(f) = integer::binary(&full, ty).or_else(|| float::binary(&full, ty)) else {
                return s.error("unknown variant");
            };
            let second = if matches!(opcode.base, "shl" | "shr") { Ty::U(32) } else { ty };
            Op::Binary { f, dst: s.dst(0)?, a: s.src(1, ty, symbols)?, b: s.src(2, second, symbols)? }
        }
        "mad" | "fma" | "bfe" | "prmt" | "shf" | "sad" | "dp4a" => {
            // mad on floats is fma; dp4a's operands have types of their own.
            let name = match opcode.base {
                "mad" if matches!(ty, Ty::F32 | Ty::F64) => full.replace("mad", "fma"),
                "dp4a" if types.get(1) == Some(&ty) => {
                    format!("dp4a.{}32", if ty.is_signed() { 's' } else { 'u' })
                }
                _ => full,
            };
            let Some(f) = integer::ternary(&name, ty).or_else(|| float::ternary(&name, ty)) else {
                return s.error("unknown variant");
            };
            let wide = others.contains(&"wide");
            let third = match opcode.base {
                "mad" if wide && ty.bits() == 32 => Ty::U(64),
                "bfe" | "prmt" | "shf" => Ty::U(32),
                _ => ty,
            };
            let second = if opcode.base == "bfe" { Ty::U(32) } else { ty };
            let (dst, a) = (s.dst(0)?, s.src(1, ty, symbols)?);
            Op::Ternary { f, dst, a, b: s.src(2, second, symbols)?, c: s.src(3, third, symbols)? }
        }
        _ => return Ok(None),
    }))
}

fn move_op(s: &Statement, ty: Ty, symbols: &Symbols) -> Result<Op> {
    if ty == Ty::Pred {
        let Some(dst) = s.pred_dst(s.operand(0)?)? else { return s.error("a move into nothing") };
        return Ok(Op::PredMove { dst, a: s.pred(1)? });
    }
    match (s.operand(0)?, s.operand(1)?) {
        (Operand::Vector(parts), _) => {
            let part_bits = ty.bits() / parts.len() as u32;
            let parts = s.registers(0)?.into_iter().map(|r| r.map(|(reg, _)| reg)).collect();
            Ok(Op::Unpack { parts, part_bits, a: s.src(1, ty, symbols)? })
        }
        (_, Operand::Vector(parts)) => {
            let part_bits = ty.bits() / parts.len() as u32;
            let parts = s.sources(1, ty, symbols)?;
            Ok(Op::Pack { dst: s.dst(0)?, parts, part_bits })
        }
        _ => Ok(Op::Unary { f: |x| x, dst: s.dst(0)?, a: s.src(1, ty, symbols)? }),
    }
}

fn pred_logic(s: &Statement, base: &str) -> Result<Op> {
    let Some(dst) = s.pred_dst(s.operand(0)?)? else { return s.error("a result into nothing") };
    let logic = match base {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => {
            let a = match s.pred(1)? {
                PredSrc::Reg { pred, negated } => PredSrc::Reg { pred, negated: !negated },
                PredSrc::Const(x) => PredSrc::Const(!x),
            };
            return Ok(Op::PredMove { dst, a });
        }
    };
    Ok(Op::PredLogic { logic, dst, a: s.pred(1)?, b: s.pred(2)? })
}

fn compare(s: &Statement, opcode: &Opcode<'_>, types: &[Ty], symbols: &Symbols) -> Result<Op> {
    let Some(&ty) = types.last() else { return s.error("without a type") };
    let relation = opcode.modifiers[0];
    let Some(f) = integer::relation(relation, ty).or_else(|| float::relation(relation, ty)) else {
        return s.error("unknown variant");
    };
    let (a, b) = (s.src(1, ty, symbols)?, s.src(2, ty, symbols)?);
    if opcode.base == "set" {
        let yes = if types[0] == Ty::F32 { u64::from(1f32.to_bits()) } else { 0xFFFF_FFFF };
        return Ok(Op::Set { f, yes, dst: s.dst(0)?, a, b });
    }
    let logic = match opcode.modifiers[1] {
        "and" => Some(Logic::And),
        "or" => Some(Logic::Or),
        "xor" => Some(Logic::Xor),
        _ => None,
    };
    let combine = logic.map(|logic| s.pred(3).map(|p| (logic, p))).transpose()?;
    let (dst, complement) = match s.operand(0)? {
        Operand::Pair(p, q) => (s.pred_dst(p)?, s.pred_dst(q)?),
        one => (s.pred_dst(one)?, None),
    };
    Ok(Op::Compare { f, dst, complement, a, b, combine })
}

fn conversion(s: &Statement, others: &[&str], types: &[Ty], symbols: &Symbols) -> Result<Op> {
    let &[to, from] = types else { return s.error("expected two types") };
    let mut c = Conversion { to, from, round: RoundMode::None, saturate: false, relu: false, ftz: false };
    for modifier in others {
        match *modifier {
            "rn" => c.round = RoundMode::NearestEven,
            "rz" => c.round = RoundMode::Zero,
            "rm" => c.round = RoundMode::Down,
            "rp" => c.round = RoundMode::Up,
            "rni" => c.round = RoundMode::IntNearest,
            "rzi" => c.round = RoundMode::IntZero,
            "rmi" => c.round = RoundMode::IntDown,
            "rpi" => c.round = RoundMode::IntUp,
            "sat" => c.saturate = true,
            "satfinite" if matches!(to, Ty::E4m3x2 | Ty::E5m2x2) => c.saturate = true,
            "relu" => c.relu = true,
            "ftz" => c.ftz = true,
            other => return s.error(format!("unknown modifier .{other}")),
        }
    }
    let a = s.src(1, from, symbols)?;
    let b = if s.operands.len() > 2 { Some(s.src(2, from, symbols)?) } else { None };
    // A conversion that exists exists for every value: try one.
    if float::convert(c, 0, b.map(|_| 0)).is_none() {
        return s.error("unknown conversion");
    }
    let (dst, register) = s.dst_of(s.operand(0)?)?;
    Ok(Op::Convert { conversion: c, dst, dst_bits: register.bits(), a, b })
}

/// cvta: generic addresses are those of the space plus its window.
fn address_conversion(s: &Statement, others: &[&str], symbols: &Symbols) -> Result<Op> {
    let (dst, a) = (s.dst(0)?, s.src(1, Ty::U(64), symbols)?);
    let to_space = others.contains(&"to");
    let space = others.iter().find(|o| **o != "to").copied().unwrap_or("");
    let base = match space {
        "global" | "const" => 0,
        "shared" | "shared::cta" => window::SHARED,
        "local" => window::LOCAL,
        "param" | "param::entry" => window::PARAM,
        other => return s.error(format!("unknown space .{other}")),
    };
    let b = Src::Imm(if to_space { base.wrapping_neg() } else { base });
    let narrow = matches!(s.operand(0)?, Operand::Reg(RegRef::Value(_, ty)) if ty.bits() == 32);
    let f: integer::Binary =
        if narrow { |x, y| x.wrapping_add(y) & 0xFFFF_FFFF } else { |x, y| x.wrapping_add(y) };
    Ok(Op::Binary { f, dst, a, b })
}
