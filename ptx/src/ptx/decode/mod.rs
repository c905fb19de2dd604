//! Statements to instructions.

mod memory;
mod value;
mod warp;

use std::collections::HashMap;

use super::ParseError;
use super::inst::{Address, Op, Pred, PredSrc, Reg, Src};
use super::types::{Special, Ty};

type Result<T> = std::result::Result<T, ParseError>;
pub(super) type Symbols = HashMap<String, u64>;

/// A declared register.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RegRef {
    Pred(Pred),
    Value(Reg, Ty),
}

impl RegRef {
    pub(super) fn of(slot: u32, ty: Ty) -> RegRef {
        if ty == Ty::Pred { RegRef::Pred(slot) } else { RegRef::Value(slot, ty) }
    }
}

/// An operand as written, registers resolved.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Reg(RegRef),
    NotPred(Pred),
    Pair(Box<Operand>, Box<Operand>),
    Vector(Vec<Operand>),
    Int(u64),
    F32(u32),
    F64(u64),
    Address(Box<Operand>, i64),
    Symbol(String),
    Special(Special),
    Sink,
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub(super) line: u32,
    pub(super) guard: Option<(Pred, bool)>,
    pub(super) opcode: String,
    pub(super) operands: Vec<Operand>,
}

impl Statement {
    /// Whether an operand names the symbol.
    pub(super) fn names(&self, symbol: &str) -> bool {
        fn within(operand: &Operand, symbol: &str) -> bool {
            match operand {
                Operand::Symbol(name) => name == symbol,
                Operand::Address(base, _) => within(base, symbol),
                _ => false,
            }
        }
        self.operands.iter().any(|o| within(o, symbol))
    }

    pub(super) fn error<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        Err(ParseError::new(self.line, format!("{}: {what}", self.opcode)))
    }

    fn operand(&self, i: usize) -> Result<&Operand> {
        match self.operands.get(i) {
            Some(operand) => Ok(operand),
            None => self.error(format!("{} operands are too few", self.operands.len())),
        }
    }

    pub(super) fn symbol(&self, i: usize) -> Result<&str> {
        match self.operand(i)? {
            Operand::Symbol(name) => Ok(name),
            other => self.error(format!("expected a label, found {other:?}")),
        }
    }

    /// A source of type `ty`; integers are cut to it.
    pub(super) fn src(&self, i: usize, ty: Ty, symbols: &Symbols) -> Result<Src> {
        self.src_of(self.operand(i)?, ty, symbols)
    }

    fn src_of(&self, operand: &Operand, ty: Ty, symbols: &Symbols) -> Result<Src> {
        let cut = |n: u64| if ty.bits() >= 64 { n } else { n & ((1 << ty.bits()) - 1) };
        Ok(match operand {
            Operand::Reg(RegRef::Value(reg, _)) => Src::Reg(*reg),
            Operand::Int(n) if ty == Ty::F32 => Src::Imm(u64::from((*n as i64 as f32).to_bits())),
            Operand::Int(n) => Src::Imm(cut(*n)),
            Operand::F32(n) => Src::Imm(u64::from(*n)),
            Operand::F64(n) if ty == Ty::F32 => Src::Imm(u64::from((f64::from_bits(*n) as f32).to_bits())),
            Operand::F64(n) => Src::Imm(*n),
            Operand::Special(special) => Src::Special(*special),
            Operand::Symbol(name) => match symbols.get(name) {
                Some(&address) => Src::Imm(address),
                None => return self.error(format!("unknown name {name}")),
            },
            other => return self.error(format!("{other:?} is no source of type {ty:?}")),
        })
    }

    fn dst(&self, i: usize) -> Result<Reg> {
        self.dst_of(self.operand(i)?).map(|(reg, _)| reg)
    }

    fn dst_of(&self, operand: &Operand) -> Result<(Reg, Ty)> {
        match operand {
            Operand::Reg(RegRef::Value(reg, ty)) => Ok((*reg, *ty)),
            other => self.error(format!("{other:?} is no register to write")),
        }
    }

    fn pred(&self, i: usize) -> Result<PredSrc> {
        match self.operand(i)? {
            Operand::Reg(RegRef::Pred(pred)) => Ok(PredSrc::Reg { pred: *pred, negated: false }),
            Operand::NotPred(pred) => Ok(PredSrc::Reg { pred: *pred, negated: true }),
            Operand::Int(n) => Ok(PredSrc::Const(*n != 0)),
            other => self.error(format!("{other:?} is no predicate")),
        }
    }

    fn pred_dst(&self, operand: &Operand) -> Result<Option<Pred>> {
        match operand {
            Operand::Reg(RegRef::Pred(pred)) => Ok(Some(*pred)),
            Operand::Sink => Ok(None),
            other => self.error(format!("{other:?} is no predicate to write")),
        }
    }

    /// The registers of `{…}`, or of a single operand; `None` is the sink.
    fn registers(&self, i: usize) -> Result<Vec<Option<(Reg, Ty)>>> {
        let one = |o: &Operand| if *o == Operand::Sink { Ok(None) } else { self.dst_of(o).map(Some) };
        match self.operand(i)? {
            Operand::Vector(parts) => parts.iter().map(one).collect(),
            other => Ok(vec![one(other)?]),
        }
    }

    fn sources(&self, i: usize, ty: Ty, symbols: &Symbols) -> Result<Vec<Src>> {
        match self.operand(i)? {
            Operand::Vector(parts) => parts.iter().map(|o| self.src_of(o, ty, symbols)).collect(),
            other => Ok(vec![self.src_of(other, ty, symbols)?]),
        }
    }

    fn address(&self, i: usize, symbols: &Symbols) -> Result<Address> {
        match self.operand(i)? {
            Operand::Address(base, offset) => {
                Ok(Address { base: self.src_of(base, Ty::U(64), symbols)?, offset: *offset })
            }
            other => self.error(format!("{other:?} is no address")),
        }
    }
}

/// An opcode in parts: `cvt.rn.satfinite.e4m3x2.f32`.
struct Opcode<'a> {
    base: &'a str,
    modifiers: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    fn of(text: &'a str) -> Self {
        let mut parts = text.split('.');
        Opcode { base: parts.next().unwrap_or(""), modifiers: parts.collect() }
    }

    fn has(&self, modifier: &str) -> bool {
        self.modifiers.contains(&modifier)
    }

    /// The types written, in order.
    fn types(&self) -> Vec<Ty> {
        self.modifiers.iter().filter_map(|m| Ty::by_name(m)).collect()
    }

    /// The modifiers that are no types.
    fn others(&self) -> Vec<&'a str> {
        self.modifiers.iter().copied().filter(|m| Ty::by_name(m).is_none()).collect()
    }
}

/// Decodes one statement; branches are the parser's, which knows the labels.
pub(super) fn decode(statement: &Statement, symbols: &Symbols) -> Result<Op> {
    let opcode = Opcode::of(&statement.opcode);
    let decoders = [value::decode, memory::decode, warp::decode];
    for decoder in decoders {
        if let Some(op) = decoder(statement, &opcode, symbols)? {
            return Ok(op);
        }
    }
    match opcode.base {
        "mbarrier" | "tcgen05" | "setmaxnreg" => {
            statement.error("Hopper's and Blackwell's asynchronous instructions are not supported")
        }
        "call" => statement.error("calls are not supported: inline the function"),
        _ => statement.error("unknown instruction"),
    }
}
