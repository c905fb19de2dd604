//! Control, barriers, what warps do together.

use super::super::inst::{Answer, BarrierReduction, MmaShape, Op, PredSrc, ShuffleMode, Src, VoteMode};
use super::super::integer;
use super::super::types::Ty;
use super::{Opcode, Operand, Result, Statement, Symbols};

const WORD: Ty = Ty::U(32);

/// `Ok(None)` if the instruction is of another family.
pub(super) fn decode(s: &Statement, opcode: &Opcode<'_>, symbols: &Symbols) -> Result<Option<Op>> {
    Ok(Some(match opcode.base {
        "ret" | "exit" => Op::Exit,
        "trap" => Op::Trap,
        "fence" if opcode.has("proxy") => Op::ProxyFence,
        "membar" | "fence" | "nanosleep" | "prefetch" | "prefetchu" | "discard" => Op::Fence,
        "bar" if opcode.has("warp") => Op::SyncWarp { mask: s.src(0, WORD, symbols)? },
        "bar" | "barrier" => barrier(s, opcode, symbols)?,
        "shfl" => shuffle(s, opcode, symbols)?,
        "vote" => vote(s, opcode, symbols)?,
        "match" => {
            let ty = opcode.types().last().copied().unwrap_or(WORD);
            let (dst, pred) = match s.operand(0)? {
                Operand::Pair(d, p) => (s.dst_of(d)?.0, s.pred_dst(p)?),
                one => (s.dst_of(one)?.0, None),
            };
            Op::Match {
                all: opcode.has("all"),
                dst,
                pred,
                a: s.src(1, ty, symbols)?,
                mask: s.src(2, WORD, symbols)?,
            }
        }
        "redux" => {
            let ty = opcode.types().last().copied().unwrap_or(WORD);
            let Some(name) = opcode.others().into_iter().find(|m| *m != "sync") else {
                return s.error("no operation");
            };
            let Some(f) = integer::binary(name, ty) else { return s.error("unknown variant") };
            Op::Reduce { f, dst: s.dst(0)?, a: s.src(1, ty, symbols)?, mask: s.src(2, WORD, symbols)? }
        }
        "activemask" => Op::ActiveMask { dst: s.dst(0)? },
        "mma" => mma(s, opcode, symbols)?,
        "wgmma" => wgmma(s, opcode, symbols)?,
        _ => return Ok(None),
    }))
}

fn barrier(s: &Statement, opcode: &Opcode<'_>, symbols: &Symbols) -> Result<Op> {
    if opcode.has("cluster") {
        return s.error("clusters are not supported");
    }
    let reduction =
        [("popc", BarrierReduction::Popc), ("and", BarrierReduction::And), ("or", BarrierReduction::Or)]
            .into_iter()
            .find(|(name, _)| opcode.has("red") && opcode.has(name));
    // bar.red d, id {, threads}, pred
    let first = usize::from(reduction.is_some());
    let last = s.operands.len() - first;
    let id = s.src(first, WORD, symbols)?;
    let threads = if last > first + 1 { Some(s.src(first + 1, WORD, symbols)?) } else { None };
    let reduce = match reduction {
        None => None,
        Some((_, BarrierReduction::Popc)) => {
            Some((BarrierReduction::Popc, Answer::Value(s.dst(0)?), s.pred(last)?))
        }
        Some((_, reduction)) => match s.pred_dst(s.operand(0)?)? {
            Some(dst) => Some((reduction, Answer::Truth(dst), s.pred(last)?)),
            None => return s.error("an answer into nothing"),
        },
    };
    Ok(Op::Barrier { id, threads, wait: !opcode.has("arrive"), reduce })
}

fn shuffle(s: &Statement, opcode: &Opcode<'_>, symbols: &Symbols) -> Result<Op> {
    let modes = [
        ("idx", ShuffleMode::Index),
        ("up", ShuffleMode::Up),
        ("down", ShuffleMode::Down),
        ("bfly", ShuffleMode::Butterfly),
    ];
    let Some((_, mode)) = modes.into_iter().find(|(name, _)| opcode.has(name)) else {
        return s.error("no mode");
    };
    let (dst, valid) = match s.operand(0)? {
        Operand::Pair(d, p) => (s.dst_of(d)?.0, s.pred_dst(p)?),
        one => (s.dst_of(one)?.0, None),
    };
    let word = |i| s.src(i, WORD, symbols);
    Ok(Op::Shuffle { mode, dst, valid, a: word(1)?, lane: word(2)?, clamp: word(3)?, mask: word(4)? })
}

fn vote(s: &Statement, opcode: &Opcode<'_>, symbols: &Symbols) -> Result<Op> {
    let modes = [
        ("all", VoteMode::All),
        ("any", VoteMode::Any),
        ("uni", VoteMode::Uniform),
        ("ballot", VoteMode::Ballot),
    ];
    let Some((_, mode)) = modes.into_iter().find(|(name, _)| opcode.has(name)) else {
        return s.error("no mode");
    };
    let dst = match (mode, s.operand(0)?) {
        (VoteMode::Ballot, operand) => Answer::Value(s.dst_of(operand)?.0),
        (_, operand) => match s.pred_dst(operand)? {
            Some(p) => Answer::Truth(p),
            None => return s.error("an answer into nothing"),
        },
    };
    let pred: PredSrc = s.pred(1)?;
    Ok(Op::Vote { mode, dst, pred, mask: s.src(2, WORD, symbols)? })
}

fn mma(s: &Statement, opcode: &Opcode<'_>, symbols: &Symbols) -> Result<Op> {
    let types = opcode.types();
    let &[Ty::F32, a, b, Ty::F32] = types.as_slice() else {
        return s.error("only f32 accumulators and no block scales are supported");
    };
    let eight = |t| matches!(t, Ty::E4m3 | Ty::E5m2);
    let legal = opcode.has("row") && opcode.has("col");
    let row_bytes =
        if opcode.has("m16n8k32") && eight(a) && eight(b) || opcode.has("m16n8k16") && sixteen(a, b) {
            32
        } else if opcode.has("m16n8k8") && sixteen(a, b) || opcode.has("m16n8k16") && eight(a) && eight(b) {
            16
        } else {
            return s.error("unknown shape or types");
        };
    if !legal {
        return s.error("only .row.col is supported");
    }
    let four = |v: Vec<Src>| <[Src; 4]>::try_from(v).ok();
    let d: Vec<_> = s.registers(0)?.into_iter().flatten().map(|r| r.0).collect();
    let (left, right) = (s.sources(1, WORD, symbols)?, s.sources(2, WORD, symbols)?);
    let (Ok(d), Some(c)) = (<[u32; 4]>::try_from(d), four(s.sources(3, Ty::F32, symbols)?)) else {
        return s.error("C and D have four registers");
    };
    if (left.len(), right.len()) != (row_bytes / 8, row_bytes / 16) {
        return s.error(format!("A has {} registers, B has {}", left.len(), right.len()));
    }
    Ok(Op::Mma { shape: MmaShape { a, b, row_bytes }, d, a: left, b: right, c })
}

fn wgmma(s: &Statement, opcode: &Opcode<'_>, symbols: &Symbols) -> Result<Op> {
    if opcode.has("fence") {
        return Ok(Op::ProductFence);
    }
    if opcode.has("commit_group") {
        return Ok(Op::CommitProducts);
    }
    if opcode.has("wait_group") {
        return match s.src(0, WORD, symbols)? {
            Src::Imm(pending) => Ok(Op::WaitProducts(pending as u32)),
            _ => s.error("the number of groups is no constant"),
        };
    }
    let types = opcode.types();
    let &[Ty::F32, a, b] = types.as_slice() else { return s.error("only f32 accumulators are supported") };
    let eight = |t| matches!(t, Ty::E4m3 | Ty::E5m2);
    let columns =
        opcode.modifiers.iter().find_map(|m| m.strip_prefix("m64n")?.strip_suffix("k32")?.parse().ok());
    let Some(columns) =
        columns.filter(|n: &usize| (8..=256).contains(n) && n.is_multiple_of(8) && eight(a) && eight(b))
    else {
        return s.error("unknown shape or types");
    };
    let d: Vec<_> = s.registers(0)?.into_iter().flatten().map(|r| r.0).collect();
    if d.len() != columns / 2 {
        return s.error(format!("D has {} registers, expected {}", d.len(), columns / 2));
    }
    if matches!(s.operand(1)?, Operand::Vector(_)) {
        return s.error("A in registers is not supported");
    }
    for factor in [4, 5] {
        if s.src(factor, WORD, symbols)? != Src::Imm(1) {
            return s.error("negated operands are not supported");
        }
    }
    let descriptor = |i| s.src(i, Ty::U(64), symbols);
    let shape = MmaShape { a, b, row_bytes: 32 };
    Ok(Op::Product { shape, d, a: descriptor(1)?, b: descriptor(2)?, accumulate: s.pred(3)? })
}

fn sixteen(a: Ty, b: Ty) -> bool {
    a == b && matches!(a, Ty::F16 | Ty::Bf16)
}
