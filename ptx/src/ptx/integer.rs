//! The arithmetic of integers and bits, one plain function for each operation and type.

use super::types::Ty;

pub(crate) type Unary = fn(u64) -> u64;
pub(crate) type Binary = fn(u64, u64) -> u64;
pub(crate) type Ternary = fn(u64, u64, u64) -> u64;
pub(crate) type Relation = fn(u64, u64) -> bool;

/// `$body` with the operands cast to the Rust type of each PTX type.
macro_rules! by_type {
    ($ty:expr, |$($x:ident),+| $body:expr) => {{
        macro_rules! case {
            ($t:ty, $u:ty) => {
                Some(|$($x: u64),+| {
                    #[allow(dead_code)]
                    type T = $t;
                    $(let $x = $x as $t;)+
                    u64::from($body as $u)
                })
            };
        }
        match $ty {
            Ty::U(16) | Ty::B(16) => case!(u16, u16),
            Ty::U(32) | Ty::B(32) => case!(u32, u32),
            Ty::U(64) | Ty::B(64) => case!(u64, u64),
            Ty::S(16) => case!(i16, u16),
            Ty::S(32) => case!(i32, u32),
            Ty::S(64) => case!(i64, u64),
            _ => None,
        }
    }};
}

/// abs, neg, not, popc, clz, brev.
pub(crate) fn unary(op: &str, ty: Ty) -> Option<Unary> {
    match op {
        "neg" => by_type!(ty, |x| x.wrapping_neg()),
        "not" => by_type!(ty, |x| !x),
        "cnot" => by_type!(ty, |x| x == 0),
        "popc" => by_type!(ty, |x| x.count_ones()),
        "clz" => by_type!(ty, |x| x.leading_zeros()),
        "brev" => by_type!(ty, |x| x.reverse_bits()),
        "abs" => match ty {
            Ty::S(16) => Some(|x| u64::from((x as i16).wrapping_abs() as u16)),
            Ty::S(32) => Some(|x| u64::from((x as i32).wrapping_abs() as u32)),
            Ty::S(64) => Some(|x| (x as i64).wrapping_abs() as u64),
            _ => None,
        },
        "bfind" => match ty {
            Ty::U(32) => Some(|x| u64::from((x as u32).checked_ilog2().unwrap_or(u32::MAX))),
            Ty::U(64) => Some(|x| u64::from(x.checked_ilog2().unwrap_or(u32::MAX))),
            Ty::S(32) => Some(|x| {
                let x = x as i32;
                u64::from((if x < 0 { !x } else { x } as u32).checked_ilog2().unwrap_or(u32::MAX))
            }),
            _ => None,
        },
        "bfind.shiftamt" => match ty {
            Ty::U(32) => Some(|x| u64::from((x as u32).checked_ilog2().map_or(u32::MAX, |b| 31 - b))),
            _ => None,
        },
        _ => None,
    }
}

/// Two operands; `op` carries `.lo`, `.hi`, `.wide`, `.sat` and the way a funnel shift wraps.
pub(crate) fn binary(op: &str, ty: Ty) -> Option<Binary> {
    match op {
        "add" => by_type!(ty, |x, y| x.wrapping_add(y)),
        "sub" => by_type!(ty, |x, y| x.wrapping_sub(y)),
        "add.sat" if ty == Ty::S(32) => by_type!(ty, |x, y| x.saturating_add(y)),
        "sub.sat" if ty == Ty::S(32) => by_type!(ty, |x, y| x.saturating_sub(y)),
        "mul.lo" => by_type!(ty, |x, y| x.wrapping_mul(y)),
        "mul.hi" => match ty {
            Ty::U(32) => Some(|x, y| ((x & LOW) * (y & LOW)) >> 32),
            Ty::S(32) => Some(|x, y| (i64::from(x as i32) * i64::from(y as i32)) as u64 >> 32),
            Ty::U(64) => Some(|x, y| ((u128::from(x) * u128::from(y)) >> 64) as u64),
            Ty::S(64) => Some(|x, y| ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64),
            Ty::U(16) => Some(|x, y| ((x & 0xFFFF) * (y & 0xFFFF)) >> 16),
            _ => None,
        },
        "mul.wide" => match ty {
            Ty::U(16) => Some(|x, y| (x & 0xFFFF) * (y & 0xFFFF)),
            Ty::S(16) => Some(|x, y| u64::from((i32::from(x as i16) * i32::from(y as i16)) as u32)),
            Ty::U(32) => Some(|x, y| (x & LOW) * (y & LOW)),
            Ty::S(32) => Some(|x, y| (i64::from(x as i32) * i64::from(y as i32)) as u64),
            _ => None,
        },
        "mul24.lo" => match ty {
            Ty::U(32) => Some(|x, y| ((x & 0xFF_FFFF) * (y & 0xFF_FFFF)) & LOW),
            _ => None,
        },
        // Division by zero gives all ones on every GPU; PTX leaves it open.
        "div" => by_type!(ty, |x, y| if y == 0 { (0 as T).wrapping_sub(1) } else { x.wrapping_div(y) }),
        "rem" => by_type!(ty, |x, y| if y == 0 { x } else { x.wrapping_rem(y) }),
        "min" => by_type!(ty, |x, y| x.min(y)),
        "max" => by_type!(ty, |x, y| x.max(y)),
        "and" => by_type!(ty, |x, y| x & y),
        "or" => by_type!(ty, |x, y| x | y),
        "xor" => by_type!(ty, |x, y| x ^ y),
        "shl" => shift_left(ty),
        "shr" => shift_right(ty),
        _ => None,
    }
}

const LOW: u64 = 0xFFFF_FFFF;

/// Amounts beyond the width count as the width.
fn shift_left(ty: Ty) -> Option<Binary> {
    match ty.bits() {
        16 => Some(|x, n| u64::from((x as u16).checked_shl(n as u32).unwrap_or(0))),
        32 => Some(|x, n| u64::from((x as u32).checked_shl(n as u32).unwrap_or(0))),
        64 => Some(|x, n| x.checked_shl(n as u32).unwrap_or(0)),
        _ => None,
    }
}

fn shift_right(ty: Ty) -> Option<Binary> {
    match ty {
        Ty::S(16) => Some(|x, n| u64::from((x as i16 >> (n as u32).min(15)) as u16)),
        Ty::S(32) => Some(|x, n| u64::from((x as i32 >> (n as u32).min(31)) as u32)),
        Ty::S(64) => Some(|x, n| (x as i64 >> (n as u32).min(63)) as u64),
        _ => match ty.bits() {
            16 => Some(|x, n| u64::from((x as u16).checked_shr(n as u32).unwrap_or(0))),
            32 => Some(|x, n| u64::from((x as u32).checked_shr(n as u32).unwrap_or(0))),
            64 => Some(|x, n| x.checked_shr(n as u32).unwrap_or(0)),
            _ => None,
        },
    }
}

/// Three operands: mad, bfe, prmt, shf, sad, dp4a.
pub(crate) fn ternary(op: &str, ty: Ty) -> Option<Ternary> {
    match op {
        "mad.lo" => by_type!(ty, |x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        "mad.wide" => match ty {
            Ty::U(16) => Some(|x, y, z| ((x & 0xFFFF) * (y & 0xFFFF)).wrapping_add(z) & LOW),
            Ty::U(32) => Some(|x, y, z| ((x & LOW) * (y & LOW)).wrapping_add(z)),
            Ty::S(32) => Some(|x, y, z| ((i64::from(x as i32) * i64::from(y as i32)) as u64).wrapping_add(z)),
            _ => None,
        },
        "mad.hi" => match ty {
            Ty::U(32) => Some(|x, y, z| ((((x & LOW) * (y & LOW)) >> 32) + z) & LOW),
            Ty::S(32) => Some(|x, y, z| {
                ((i64::from(x as i32) * i64::from(y as i32)) as u64 >> 32).wrapping_add(z) & LOW
            }),
            _ => None,
        },
        "bfe" => match ty {
            Ty::U(32) => Some(|x, at, n| extract(x & LOW, at, n, 32, false)),
            Ty::S(32) => Some(|x, at, n| extract(x & LOW, at, n, 32, true)),
            Ty::U(64) => Some(|x, at, n| extract(x, at, n, 64, false)),
            Ty::S(64) => Some(|x, at, n| extract(x, at, n, 64, true)),
            _ => None,
        },
        "prmt" => Some(|x, y, selector| {
            let bytes = (y & LOW) << 32 | x & LOW;
            (0..4).fold(0, |sum, i| {
                let nibble = selector >> (4 * i);
                let byte = bytes >> (8 * (nibble & 7)) & 0xFF;
                // Bit 3 replicates the sign.
                let byte = if nibble & 8 == 0 {
                    byte
                } else if byte & 0x80 != 0 {
                    0xFF
                } else {
                    0
                };
                sum | byte << (8 * i)
            })
        }),
        "shf.l.wrap" => Some(|lo, hi, n| ((hi & LOW) << 32 | lo & LOW) << (n & 31) >> 32),
        "shf.l.clamp" => Some(|lo, hi, n| ((hi & LOW) << 32 | lo & LOW) << (n & LOW).min(32) >> 32),
        "shf.r.wrap" => Some(|lo, hi, n| (((hi & LOW) << 32 | lo & LOW) >> (n & 31)) & LOW),
        "shf.r.clamp" => Some(|lo, hi, n| (((hi & LOW) << 32 | lo & LOW) >> (n & LOW).min(32)) & LOW),
        "sad" => by_type!(ty, |x, y, z| (if x > y { x.wrapping_sub(y) } else { y.wrapping_sub(x) })
            .wrapping_add(z)),
        "dp4a.u32" => Some(|x, y, z| dot4(x, y, z, i64::from, i64::from)),
        "dp4a.s32" => Some(|x, y, z| dot4(x, y, z, |b| i64::from(b as i8), |b| i64::from(b as i8))),
        _ => None,
    }
}

fn dot4(x: u64, y: u64, z: u64, f: fn(u8) -> i64, g: fn(u8) -> i64) -> u64 {
    let products = (0..4).map(|i| f((x >> (8 * i)) as u8) * g((y >> (8 * i)) as u8));
    (z as i64).wrapping_add(products.sum()) as u64 & LOW
}

fn extract(x: u64, at: u64, n: u64, width: u64, signed: bool) -> u64 {
    let (at, n) = (at & 0xFF, n & 0xFF);
    if n == 0 {
        return 0;
    }
    // Beyond the top the sign, or zero, goes on.
    let wide = if signed { i128::from((x << (64 - width)) as i64 >> (64 - width)) } else { i128::from(x) };
    let field = wide >> at.min(width - 1 + u64::from(!signed));
    let last = (at + n - 1).min(width - 1);
    let n = if at > last { 1 } else { n };
    let mask = if n >= 64 { u64::MAX } else { (1 << n) - 1 };
    let value = field as u64 & mask;
    let sign = signed && x >> last & 1 == 1;
    let value = if sign && n < 64 { value | !mask } else { value };
    if width == 32 { value & LOW } else { value }
}

/// bfi: the low `n` bits of `a` into `b` at `at`.
pub(crate) fn insert(wide: bool, a: u64, b: u64, at: u64, n: u64) -> u64 {
    let (at, n, width) = (at & 0xFF, n & 0xFF, if wide { 64 } else { 32 });
    if at >= width || n == 0 {
        return b;
    }
    let mask = if n >= 64 { u64::MAX } else { (1 << n) - 1 } << at;
    let value = b & !mask | a << at & mask;
    if wide { value } else { value & LOW }
}

/// lop3: bit by bit, the entry of `table` at index a b c.
pub(crate) fn lop3(table: u8, a: u64, b: u64, c: u64) -> u64 {
    let minterm = |i: u8| {
        let pick = |x: u64, bit: u8| if i & bit != 0 { x } else { !x };
        if table >> i & 1 == 1 { pick(a, 4) & pick(b, 2) & pick(c, 1) } else { 0 }
    };
    (0..8).fold(0, |sum, i| sum | minterm(i)) & LOW
}

/// setp on integers and bits.
pub(crate) fn relation(op: &str, ty: Ty) -> Option<Relation> {
    macro_rules! relate {
        ($($name:literal $op:tt),+) => {
            match (op, ty) {
                $(($name, Ty::U(16) | Ty::B(16)) => Some(|x, y| (x as u16) $op (y as u16)),
                ($name, Ty::U(32) | Ty::B(32)) => Some(|x, y| (x as u32) $op (y as u32)),
                ($name, Ty::U(64) | Ty::B(64)) => Some(|x, y| x $op y),
                ($name, Ty::S(16)) => Some(|x, y| (x as i16) $op (y as i16)),
                ($name, Ty::S(32)) => Some(|x, y| (x as i32) $op (y as i32)),
                ($name, Ty::S(64)) => Some(|x, y| (x as i64) $op (y as i64)),)+
                _ => None,
            }
        };
    }
    relate!("eq" ==, "ne" !=, "lt" <, "le" <=, "gt" >, "ge" >=, "lo" <, "ls" <=, "hi" >, "hs" >=)
}

/// Atomic read-modify-write: old value, operand, second operand (cas) → new value.
pub(crate) fn atomic(op: &str, ty: Ty) -> Option<Ternary> {
    match op {
        "add" => by_type!(ty, |x, y, _z| x.wrapping_add(y)),
        "min" => by_type!(ty, |x, y, _z| x.min(y)),
        "max" => by_type!(ty, |x, y, _z| x.max(y)),
        "and" => by_type!(ty, |x, y, _z| x & y),
        "or" => by_type!(ty, |x, y, _z| x | y),
        "xor" => by_type!(ty, |x, y, _z| x ^ y),
        "exch" => by_type!(ty, |_x, y, _z| y),
        "cas" => by_type!(ty, |x, y, z| if x == y { z } else { x }),
        "inc" => by_type!(ty, |x, y, _z| if x >= y { 0 } else { x.wrapping_add(1) }),
        "dec" => by_type!(ty, |x, y, _z| if x == 0 || x > y { y } else { x.wrapping_sub(1) }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run2(op: &str, ty: Ty, x: u64, y: u64) -> u64 {
        binary(op, ty).unwrap()(x, y)
    }

    #[test]
    fn integers_wrap_and_widen() {
        assert_eq!(run2("add", Ty::U(32), LOW, 2), 1);
        assert_eq!(run2("sub", Ty::S(32), 0, 1), LOW);
        assert_eq!(run2("mul.wide", Ty::S(32), LOW, 3), (-3i64) as u64);
        assert_eq!(run2("mul.hi", Ty::U(32), LOW, LOW), LOW - 1);
        assert_eq!(run2("mul.hi", Ty::S(64), u64::MAX, 5), u64::MAX);
        assert_eq!(run2("div", Ty::S(32), (-7i32) as u32 as u64, 2), (-3i32) as u32 as u64);
        assert_eq!(run2("rem", Ty::S(32), (-7i32) as u32 as u64, 2), LOW);
        assert_eq!(run2("div", Ty::U(32), 7, 0), LOW);
        assert_eq!(run2("min", Ty::S(32), LOW, 1), LOW);
        assert_eq!(run2("min", Ty::U(32), LOW, 1), 1);
        assert_eq!(run2("shl", Ty::B(32), 1, 32), 0);
        assert_eq!(run2("shr", Ty::S(32), 1 << 31, 40), LOW);
        assert_eq!(run2("shr", Ty::U(32), 1 << 31, 31), 1);
        assert_eq!(ternary("mad.lo", Ty::S(32)).unwrap()(LOW, 3, 4), 1);
    }

    #[test]
    fn bits_move() {
        let bfe = |ty, x, at, n| ternary("bfe", ty).unwrap()(x, at, n);
        assert_eq!(bfe(Ty::U(32), 0xABCD, 4, 8), 0xBC);
        assert_eq!(bfe(Ty::S(32), 0xABCD, 4, 8), 0xFFFF_FFBC);
        assert_eq!(bfe(Ty::S(32), 0x8000_0000, 28, 8), 0xFFFF_FFF8);
        assert_eq!(bfe(Ty::U(32), 0x8000_0000, 28, 8), 8);
        assert_eq!(bfe(Ty::S(32), 0x8000_0000, 40, 8), LOW);
        assert_eq!(insert(false, 0xFF, 0x1234_5678, 8, 8), 0x1234_FF78);
        assert_eq!(insert(true, 1, 0, 63, 4), 1 << 63);
        assert_eq!(lop3(0x96, 0b1100, 0b1010, 0b1001), 0b1111 & (0b1100 ^ 0b1010 ^ 0b1001));
        assert_eq!(lop3(0xE8, LOW, 0, LOW), LOW);
        let prmt = ternary("prmt", Ty::B(32)).unwrap();
        assert_eq!(prmt(0x3322_1100, 0x7766_5544, 0x7610), 0x7766_1100);
        assert_eq!(prmt(0x0000_0080, 0, 0x0008), 0xFF | 0x8080_8000);
        assert_eq!(ternary("shf.l.wrap", Ty::B(32)).unwrap()(0x8000_0000, 1, 1), 3);
        assert_eq!(ternary("shf.r.clamp", Ty::B(32)).unwrap()(7, 9, 32), 9);
        assert_eq!(ternary("dp4a.s32", Ty::S(32)).unwrap()(0x01FF_0203, 0x0101_0101, 10), 15);
        let one = |op: &str, ty, x| unary(op, ty).unwrap()(x);
        assert_eq!(
            (one("popc", Ty::B(32), 0xF0), one("clz", Ty::B(32), 1), one("brev", Ty::B(32), 1)),
            (4, 31, 1 << 31)
        );
        assert_eq!(one("bfind.shiftamt", Ty::U(32), 1), 31);
        assert_eq!(one("neg", Ty::S(32), 1), LOW);
    }

    #[test]
    fn relations_know_their_type() {
        let is = |op: &str, ty, x, y| relation(op, ty).unwrap()(x, y);
        assert!(is("lt", Ty::S(32), LOW, 0) && !is("lt", Ty::U(32), LOW, 0));
        assert!(is("hs", Ty::U(64), 5, 5) && is("ne", Ty::B(16), 1, 2));
        assert!(is("eq", Ty::B(16), 0x1_0001, 1));
    }
}
