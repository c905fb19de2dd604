//! PTX types and special registers.

/// The type of a register, of memory, or of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    Pred,
    /// Untyped, of so many bits.
    B(u8),
    U(u8),
    S(u8),
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    E4m3,
    E5m2,
    E4m3x2,
    E5m2x2,
}

impl Ty {
    /// From the name without its dot.
    pub(crate) fn by_name(name: &str) -> Option<Ty> {
        Some(match name {
            "pred" => Ty::Pred,
            "b8" => Ty::B(8),
            "b16" => Ty::B(16),
            "b32" => Ty::B(32),
            "b64" => Ty::B(64),
            "b128" => Ty::B(128),
            "u8" => Ty::U(8),
            "u16" => Ty::U(16),
            "u32" => Ty::U(32),
            "u64" => Ty::U(64),
            "s8" => Ty::S(8),
            "s16" => Ty::S(16),
            "s32" => Ty::S(32),
            "s64" => Ty::S(64),
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "e4m3" => Ty::E4m3,
            "e5m2" => Ty::E5m2,
            "e4m3x2" => Ty::E4m3x2,
            "e5m2x2" => Ty::E5m2x2,
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Ty::Pred => 1,
            Ty::B(n) | Ty::U(n) | Ty::S(n) => u32::from(n),
            Ty::E4m3 | Ty::E5m2 => 8,
            Ty::F16 | Ty::Bf16 | Ty::E4m3x2 | Ty::E5m2x2 => 16,
            Ty::F16x2 | Ty::Bf16x2 | Ty::F32 => 32,
            Ty::F64 => 64,
        }
    }

    pub(crate) fn bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Ty::S(_))
    }
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// `.global`
    Global,
    /// `.shared`
    Shared,
    /// `.local`
    Local,
    /// `.param`
    Param,
    /// `.const`, and variables of the module in `.global`
    Const,
    /// No space written: the address says which.
    Generic,
}

impl Space {
    pub(crate) fn by_name(name: &str) -> Option<Space> {
        Some(match name {
            "global" => Space::Global,
            "shared" | "shared::cta" => Space::Shared,
            "local" => Space::Local,
            "param" | "param::entry" => Space::Param,
            "const" => Space::Const,
            _ => return None,
        })
    }
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Space::Global => "global",
            Space::Shared => "shared",
            Space::Local => "local",
            Space::Param => "param",
            Space::Const => "const",
            Space::Generic => "generic",
        })
    }
}

/// Where the windows of the spaces lie in generic addresses. Constants have the same address in both.
pub(crate) mod window {
    pub(crate) const SHARED: u64 = 1 << 40;
    pub(crate) const LOCAL: u64 = 2 << 40;
    pub(crate) const PARAM: u64 = 3 << 40;
    pub(crate) const CONST: u64 = 4 << 40;
    /// Allocations start here; so far up that no 32-bit arithmetic reaches it by accident.
    pub(crate) const GLOBAL: u64 = 0x7F00_0000_0000;
    pub(crate) const SIZE: u64 = 1 << 40;
}

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    /// %lanemask_{eq,le,lt,ge,gt}
    LaneMask(std::cmp::Ordering, bool),
    DynamicShared,
    TotalShared,
}

impl Special {
    /// `Ok(None)` if the name is no special register, `Err` if it is one whose value no two runs share.
    pub(crate) fn by_name(name: &str) -> Result<Option<Special>, String> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let axis = |suffix: &str| match suffix {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        if let Some((base, suffix)) = name.split_once('.') {
            return Ok(axis(suffix).and_then(|axis| match base {
                "%tid" => Some(Special::Tid(axis)),
                "%ntid" => Some(Special::Ntid(axis)),
                "%ctaid" => Some(Special::Ctaid(axis)),
                "%nctaid" => Some(Special::Nctaid(axis)),
                _ => None,
            }));
        }
        Ok(Some(match name {
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NWarpId,
            "%lanemask_eq" => Special::LaneMask(Equal, false),
            "%lanemask_le" => Special::LaneMask(Less, true),
            "%lanemask_lt" => Special::LaneMask(Less, false),
            "%lanemask_ge" => Special::LaneMask(Greater, true),
            "%lanemask_gt" => Special::LaneMask(Greater, false),
            "%dynamic_smem_size" => Special::DynamicShared,
            "%total_smem_size" => Special::TotalShared,
            "%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo" | "%globaltimer_hi"
            | "%smid" | "%nsmid" | "%gridid" => {
                return Err(format!("{name} is not reproducible: kernels that read it are not executed"));
            }
            _ => return Ok(None),
        }))
    }
}
