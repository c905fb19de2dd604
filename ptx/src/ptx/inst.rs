//! The instructions as the executor runs them: decoded once, no names left.

use super::types::{Space, Special, Ty};

/// A slot in the register file.
pub(crate) type Reg = u32;
/// A slot in the file of predicates.
pub(crate) type Pred = u32;

/// A source operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Src {
    Reg(Reg),
    Imm(u64),
    Special(Special),
}

/// A predicate as it is read: perhaps negated, perhaps a constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PredSrc {
    Reg { pred: Pred, negated: bool },
    Const(bool),
}

/// base + offset; a symbol has become a constant base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Address {
    pub(crate) base: Src,
    pub(crate) offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Index,
    Up,
    Down,
    Butterfly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierReduction {
    Popc,
    And,
    Or,
}

/// How an integer or float is brought to another type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoundMode {
    /// None written: exact conversions, and truncation of integers.
    None,
    NearestEven,
    Zero,
    Down,
    Up,
    /// `.rni` and its kin: to an integral value.
    IntNearest,
    IntZero,
    IntDown,
    IntUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conversion {
    pub(crate) to: Ty,
    pub(crate) from: Ty,
    pub(crate) round: RoundMode,
    pub(crate) saturate: bool,
    pub(crate) relu: bool,
    pub(crate) ftz: bool,
}

/// What `mma.sync` multiplies; every row of A and B is 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MmaShape {
    pub(crate) a: Ty,
    pub(crate) b: Ty,
    /// Bytes of K in a row: 32, or 16 for m16n8k8 of 16-bit elements.
    pub(crate) row_bytes: usize,
}

/// One instruction's work.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Unary {
        f: fn(u64) -> u64,
        dst: Reg,
        a: Src,
    },
    Binary {
        f: fn(u64, u64) -> u64,
        dst: Reg,
        a: Src,
        b: Src,
    },
    Ternary {
        f: fn(u64, u64, u64) -> u64,
        dst: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    /// bfi: insert a into b at c, d bits.
    BitInsert {
        wide: bool,
        dst: Reg,
        a: Src,
        b: Src,
        c: Src,
        d: Src,
    },
    Lop3 {
        table: u8,
        dst: Reg,
        a: Src,
        b: Src,
        c: Src,
    },
    Convert {
        conversion: Conversion,
        dst: Reg,
        dst_bits: u32,
        a: Src,
        b: Option<Src>,
    },
    /// One wide register from several narrow ones, the first lowest.
    Pack {
        dst: Reg,
        parts: Vec<Src>,
        part_bits: u32,
    },
    /// Several narrow ones from a wide one; `None` is the sink `_`.
    Unpack {
        parts: Vec<Option<Reg>>,
        part_bits: u32,
        a: Src,
    },
    Compare {
        f: fn(u64, u64) -> bool,
        dst: Option<Pred>,
        complement: Option<Pred>,
        a: Src,
        b: Src,
        combine: Option<(Logic, PredSrc)>,
    },
    /// set: all ones (or 1.0) where the comparison holds.
    Set {
        f: fn(u64, u64) -> bool,
        yes: u64,
        dst: Reg,
        a: Src,
        b: Src,
    },
    Select {
        dst: Reg,
        a: Src,
        b: Src,
        pred: PredSrc,
    },
    PredLogic {
        logic: Logic,
        dst: Pred,
        a: PredSrc,
        b: PredSrc,
    },
    PredMove {
        dst: Pred,
        a: PredSrc,
    },
    Load {
        space: Space,
        ty: Ty,
        dst: Vec<Option<Reg>>,
        dst_bits: u32,
        address: Address,
        strong: bool,
    },
    Store {
        space: Space,
        ty: Ty,
        src: Vec<Src>,
        address: Address,
        strong: bool,
    },
    Atomic {
        space: Space,
        ty: Ty,
        f: fn(u64, u64, u64) -> u64,
        dst: Option<Reg>,
        address: Address,
        b: Src,
        c: Src,
    },
    /// cp.async; `copied` bytes are read, the rest of `bytes` is zero.
    AsyncCopy {
        to: Address,
        from: Address,
        bytes: u32,
        copied: Src,
        ignore: PredSrc,
    },
    CommitGroup,
    /// Waits until at most so many groups are pending; `None` also waits for what was never committed.
    WaitGroup(Option<u32>),
    LoadMatrix {
        dst: Vec<Reg>,
        transposed: bool,
        address: Address,
    },
    Mma {
        shape: MmaShape,
        d: [Reg; 4],
        a: Vec<Src>,
        b: Vec<Src>,
        c: [Src; 4],
    },
    /// wgmma.mma_async with both operands in shared memory.
    Product {
        shape: MmaShape,
        d: Vec<Reg>,
        a: Src,
        b: Src,
        accumulate: PredSrc,
    },
    /// wgmma.fence
    ProductFence,
    CommitProducts,
    /// Waits until at most so many groups of products are pending.
    WaitProducts(u32),
    Branch {
        target: usize,
    },
    BranchIndexed {
        index: Src,
        targets: Vec<usize>,
    },
    Exit,
    Barrier {
        id: Src,
        threads: Option<Src>,
        wait: bool,
        reduce: Option<(BarrierReduction, Answer, PredSrc)>,
    },
    SyncWarp {
        mask: Src,
    },
    Fence,
    /// fence.proxy.async
    ProxyFence,
    Shuffle {
        mode: ShuffleMode,
        dst: Reg,
        valid: Option<Pred>,
        a: Src,
        lane: Src,
        clamp: Src,
        mask: Src,
    },
    Vote {
        mode: VoteMode,
        dst: Answer,
        pred: PredSrc,
        mask: Src,
    },
    /// match.any, or match.all with its predicate.
    Match {
        all: bool,
        dst: Reg,
        pred: Option<Pred>,
        a: Src,
        mask: Src,
    },
    /// redux.sync
    Reduce {
        f: fn(u64, u64) -> u64,
        dst: Reg,
        a: Src,
        mask: Src,
    },
    ActiveMask {
        dst: Reg,
    },
    Trap,
    /// Defined by no standard: no two machines need agree on its bits.
    Irreproducible,
}

/// A collective's answer: a number or a truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Answer {
    Value(Reg),
    Truth(Pred),
}

/// An instruction with its guard and its place in the text.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: Option<(Pred, bool)>,
    pub(crate) line: u32,
    /// The opcode as written, for reports.
    pub(crate) opcode: String,
}
