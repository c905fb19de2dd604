//! The arithmetic of floats, with the NaN that the machine gives, and conversions.

use finegrain::formats::{Format, Overflow, Rounding, Unpacked};
use half::{bf16, f16};

use super::inst::{Conversion, RoundMode};
use super::integer::{Binary, Relation, Ternary, Unary};
use super::types::Ty;

/// The NaN of every f32 operation.
const NAN: u32 = 0x7FFF_FFFF;
const NAN64: u64 = 0x7FF8_0000_0000_0000;
const NAN16: u16 = 0x7FFF;

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

fn bits(x: f32) -> u64 {
    u64::from(if x.is_nan() { NAN } else { x.to_bits() })
}

fn bits64(x: f64) -> u64 {
    if x.is_nan() { NAN64 } else { x.to_bits() }
}

/// Flushes a subnormal to a zero of its sign.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn flushed(x: u64) -> f32 {
    flush(f(x))
}

/// The exact sum a·b + c rounded in one direction.
fn directed(a: f32, b: f32, c: f32, direction: RoundMode) -> f32 {
    // The product is exact in f64; the sum and its error together are exact (two-sum).
    let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = p + c;
    if !sum.is_finite() {
        return sum as f32;
    }
    let back = sum - p;
    let error = (p - (sum - back)) + (c - back);
    let nearest = sum as f32;
    let above = f64::from(nearest) > sum || f64::from(nearest) == sum && error < 0.0;
    let below = f64::from(nearest) < sum || f64::from(nearest) == sum && error > 0.0;
    match direction {
        RoundMode::Down if above => nearest.next_down(),
        RoundMode::Up if below => nearest.next_up(),
        RoundMode::Zero if above && sum > 0.0 => nearest.next_down(),
        RoundMode::Zero if below && sum < 0.0 => nearest.next_up(),
        // An exact zero of unlike signs is −0 downward.
        RoundMode::Down if sum == 0.0 && error == 0.0 && (p.is_sign_negative() || c.is_sign_negative()) => {
            -0.0
        }
        _ => nearest,
    }
}

fn minimum(x: f32, y: f32) -> f32 {
    match (x.is_nan(), y.is_nan()) {
        (true, _) => y,
        (_, true) => x,
        // −0 < +0
        _ if x == y => {
            if x.is_sign_negative() {
                x
            } else {
                y
            }
        }
        _ => x.min(y),
    }
}

fn maximum(x: f32, y: f32) -> f32 {
    -minimum(-x, -y)
}

fn half2(x: u64, y: u64, f: fn(u16, u16) -> u16) -> u64 {
    u64::from(f(x as u16, y as u16)) | u64::from(f((x >> 16) as u16, (y >> 16) as u16)) << 16
}

fn half2_fma(x: u64, y: u64, z: u64, f: fn(u16, u16, u16) -> u16) -> u64 {
    let high = f((x >> 16) as u16, (y >> 16) as u16, (z >> 16) as u16);
    u64::from(f(x as u16, y as u16, z as u16)) | u64::from(high) << 16
}

/// bf16 from an exact or odd-rounded f64.
fn to_bf16(x: f64) -> u16 {
    if x.is_nan() {
        return NAN16;
    }
    Format::Bf16.cast(Unpacked::from_f64(x), Rounding::NearestEven, Overflow::NonSaturating).code as u16
}

fn to_f16(x: f64) -> u16 {
    if x.is_nan() {
        return NAN16;
    }
    Format::F16.cast(Unpacked::from_f64(x), Rounding::NearestEven, Overflow::NonSaturating).code as u16
}

fn b(x: u16) -> f64 {
    bf16::from_bits(x).to_f64()
}

fn h(x: u16) -> f64 {
    f16::from_bits(x).to_f64()
}

/// a·b + c of short floats. The product is exact in f64; the sum is made odd where it is not, so that rounding it
/// once more is right.
fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    let p = a * b;
    let sum = p + c;
    let back = sum - p;
    let error = (p - (sum - back)) + (c - back);
    if !sum.is_finite() || error == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    if (error > 0.0) == (sum > 0.0) {
        f64::from_bits(sum.to_bits() + 1)
    } else {
        f64::from_bits(sum.to_bits() - 1)
    }
}

fn f64_min16(x: f64, y: f64) -> f64 {
    if x == y && x.is_sign_negative() != y.is_sign_negative() { -0.0 } else { x.min(y) }
}

/// abs, neg, sqrt, rcp.
pub(crate) fn unary(op: &str, ty: Ty) -> Option<Unary> {
    Some(match (op, ty) {
        ("abs", Ty::F32) => |x| x & 0x7FFF_FFFF,
        ("neg", Ty::F32) => |x| (x as u32 ^ 0x8000_0000).into(),
        ("abs.ftz", Ty::F32) => |x| u64::from(flushed(x).abs().to_bits()),
        ("neg.ftz", Ty::F32) => |x| u64::from((-flushed(x)).to_bits()),
        ("abs", Ty::F64) => |x| x & !(1 << 63),
        ("neg", Ty::F64) => |x| x ^ 1 << 63,
        ("abs", Ty::F16 | Ty::Bf16) => |x| x & 0x7FFF,
        ("neg", Ty::F16 | Ty::Bf16) => |x| x & 0xFFFF ^ 0x8000,
        ("abs", Ty::F16x2 | Ty::Bf16x2) => |x| x & 0x7FFF_7FFF,
        ("neg", Ty::F16x2 | Ty::Bf16x2) => |x| x & 0xFFFF_FFFF ^ 0x8000_8000,
        ("sqrt.rn", Ty::F32) => |x| bits(f(x).sqrt()),
        ("sqrt.rn.ftz", Ty::F32) => |x| bits(flushed(x).sqrt()),
        ("rcp.rn", Ty::F32) => |x| bits(1.0 / f(x)),
        ("rcp.rn.ftz", Ty::F32) => |x| bits(flush(1.0 / flushed(x))),
        ("sqrt.rn", Ty::F64) => |x| bits64(d(x).sqrt()),
        ("rcp.rn", Ty::F64) => |x| bits64(1.0 / d(x)),
        _ => return None,
    })
}

/// Two operands; `op` carries rounding, `.ftz`, `.NaN` and `.sat`.
pub(crate) fn binary(op: &str, ty: Ty) -> Option<Binary> {
    Some(match (op, ty) {
        ("add" | "add.rn", Ty::F32) => |x, y| bits(f(x) + f(y)),
        ("sub" | "sub.rn", Ty::F32) => |x, y| bits(f(x) - f(y)),
        ("mul" | "mul.rn", Ty::F32) => |x, y| bits(f(x) * f(y)),
        ("add.ftz" | "add.rn.ftz", Ty::F32) => |x, y| bits(flush(flushed(x) + flushed(y))),
        ("sub.ftz" | "sub.rn.ftz", Ty::F32) => |x, y| bits(flush(flushed(x) - flushed(y))),
        ("mul.ftz" | "mul.rn.ftz", Ty::F32) => |x, y| bits(flush(flushed(x) * flushed(y))),
        ("add.rz", Ty::F32) => |x, y| bits(directed(f(x), 1.0, f(y), RoundMode::Zero)),
        ("add.rm", Ty::F32) => |x, y| bits(directed(f(x), 1.0, f(y), RoundMode::Down)),
        ("add.rp", Ty::F32) => |x, y| bits(directed(f(x), 1.0, f(y), RoundMode::Up)),
        ("mul.rz", Ty::F32) => |x, y| bits(directed(f(x), f(y), product_zero(x, y), RoundMode::Zero)),
        ("mul.rm", Ty::F32) => |x, y| bits(directed(f(x), f(y), product_zero(x, y), RoundMode::Down)),
        ("mul.rp", Ty::F32) => |x, y| bits(directed(f(x), f(y), product_zero(x, y), RoundMode::Up)),
        ("div.rn", Ty::F32) => |x, y| bits(f(x) / f(y)),
        ("div.rn.ftz", Ty::F32) => |x, y| bits(flush(flushed(x) / flushed(y))),
        ("min", Ty::F32) => |x, y| bits(minimum(f(x), f(y))),
        ("max", Ty::F32) => |x, y| bits(maximum(f(x), f(y))),
        ("min.ftz", Ty::F32) => |x, y| bits(minimum(flushed(x), flushed(y))),
        ("max.ftz", Ty::F32) => |x, y| bits(maximum(flushed(x), flushed(y))),
        ("min.NaN", Ty::F32) => {
            |x, y| bits(if f(x).is_nan() || f(y).is_nan() { f32::NAN } else { minimum(f(x), f(y)) })
        }
        ("max.NaN", Ty::F32) => {
            |x, y| bits(if f(x).is_nan() || f(y).is_nan() { f32::NAN } else { maximum(f(x), f(y)) })
        }
        ("add" | "add.rn", Ty::F64) => |x, y| bits64(d(x) + d(y)),
        ("sub" | "sub.rn", Ty::F64) => |x, y| bits64(d(x) - d(y)),
        ("mul" | "mul.rn", Ty::F64) => |x, y| bits64(d(x) * d(y)),
        ("div.rn", Ty::F64) => |x, y| bits64(d(x) / d(y)),
        ("min", Ty::F64) => |x, y| bits64(d(x).min(d(y))),
        ("max", Ty::F64) => |x, y| bits64(d(x).max(d(y))),
        ("add" | "add.rn", Ty::Bf16x2) => |x, y| half2(x, y, |x, y| to_bf16(b(x) + b(y))),
        ("sub" | "sub.rn", Ty::Bf16x2) => |x, y| half2(x, y, |x, y| to_bf16(b(x) - b(y))),
        ("mul" | "mul.rn", Ty::Bf16x2) => |x, y| half2(x, y, |x, y| to_bf16(b(x) * b(y))),
        ("min", Ty::Bf16x2) => |x, y| half2(x, y, |x, y| to_bf16(f64_min16(b(x), b(y)))),
        ("max", Ty::Bf16x2) => |x, y| half2(x, y, |x, y| to_bf16(-f64_min16(-b(x), -b(y)))),
        ("min", Ty::Bf16) => |x, y| u64::from(to_bf16(f64_min16(b(x as u16), b(y as u16)))),
        ("max", Ty::Bf16) => |x, y| u64::from(to_bf16(-f64_min16(-b(x as u16), -b(y as u16)))),
        ("add" | "add.rn", Ty::F16x2) => |x, y| half2(x, y, |x, y| to_f16(h(x) + h(y))),
        ("sub" | "sub.rn", Ty::F16x2) => |x, y| half2(x, y, |x, y| to_f16(h(x) - h(y))),
        ("mul" | "mul.rn", Ty::F16x2) => |x, y| half2(x, y, |x, y| to_f16(h(x) * h(y))),
        ("min", Ty::F16x2) => |x, y| half2(x, y, |x, y| to_f16(f64_min16(h(x), h(y)))),
        ("max", Ty::F16x2) => |x, y| half2(x, y, |x, y| to_f16(-f64_min16(-h(x), -h(y)))),
        ("add" | "add.rn", Ty::F16) => |x, y| u64::from(to_f16(h(x as u16) + h(y as u16))),
        ("mul" | "mul.rn", Ty::F16) => |x, y| u64::from(to_f16(h(x as u16) * h(y as u16))),
        _ => return None,
    })
}

/// The zero that does not change a product's sign when it is added.
fn product_zero(x: u64, y: u64) -> f32 {
    if (x ^ y) >> 31 & 1 == 1 { -0.0 } else { 0.0 }
}

/// fma.
pub(crate) fn ternary(op: &str, ty: Ty) -> Option<Ternary> {
    Some(match (op, ty) {
        ("fma.rn", Ty::F32) => |x, y, z| bits(f(x).mul_add(f(y), f(z))),
        ("fma.rn.ftz", Ty::F32) => |x, y, z| bits(flush(flushed(x).mul_add(flushed(y), flushed(z)))),
        ("fma.rz", Ty::F32) => |x, y, z| bits(directed(f(x), f(y), f(z), RoundMode::Zero)),
        ("fma.rm", Ty::F32) => |x, y, z| bits(directed(f(x), f(y), f(z), RoundMode::Down)),
        ("fma.rp", Ty::F32) => |x, y, z| bits(directed(f(x), f(y), f(z), RoundMode::Up)),
        ("fma.rn", Ty::F64) => |x, y, z| bits64(d(x).mul_add(d(y), d(z))),
        ("fma.rn", Ty::Bf16x2) => |x, y, z| half2_fma(x, y, z, |x, y, z| to_bf16(fma_odd(b(x), b(y), b(z)))),
        ("fma.rn", Ty::Bf16) => |x, y, z| u64::from(to_bf16(fma_odd(b(x as u16), b(y as u16), b(z as u16)))),
        ("fma.rn", Ty::F16x2) => |x, y, z| half2_fma(x, y, z, |x, y, z| to_f16(fma_odd(h(x), h(y), h(z)))),
        ("fma.rn", Ty::F16) => |x, y, z| u64::from(to_f16(fma_odd(h(x as u16), h(y as u16), h(z as u16)))),
        _ => return None,
    })
}

/// setp on floats; those with `u` also hold where a NaN takes part.
#[expect(clippy::double_comparisons, reason = "x != y would hold for NaN")]
pub(crate) fn relation(op: &str, ty: Ty) -> Option<Relation> {
    macro_rules! relate {
        ($($name:literal |$x:ident, $y:ident| $body:expr),+) => {
            match (op, ty) {
                $(($name, Ty::F32) => Some(|x, y| { let ($x, $y) = (f(x), f(y)); $body }),
                ($name, Ty::F64) => Some(|x, y| { let ($x, $y) = (d(x), d(y)); $body }),
                ($name, Ty::F16) => Some(|x, y| { let ($x, $y) = (h(x as u16), h(y as u16)); $body }),
                ($name, Ty::Bf16) => Some(|x, y| { let ($x, $y) = (b(x as u16), b(y as u16)); $body }),)+
                _ => None,
            }
        };
    }
    relate!(
        "eq" | x,
        y | x == y,
        "ne" | x,
        y | x < y || x > y,
        "lt" | x,
        y | x < y,
        "le" | x,
        y | x <= y,
        "gt" | x,
        y | x > y,
        "ge" | x,
        y | x >= y,
        "equ" | x,
        y | !(x < y || x > y),
        "neu" | x,
        y | x != y,
        "ltu" | x,
        y | x.partial_cmp(&y).is_none_or(|o| o.is_lt()),
        "leu" | x,
        y | x.partial_cmp(&y).is_none_or(|o| o.is_le()),
        "gtu" | x,
        y | x.partial_cmp(&y).is_none_or(|o| o.is_gt()),
        "geu" | x,
        y | x.partial_cmp(&y).is_none_or(|o| o.is_ge()),
        "num" | x,
        y | !x.is_nan() && !y.is_nan(),
        "nan" | x,
        y | x.is_nan() || y.is_nan()
    )
}

/// Atomic additions of floats: old value, operand → new value.
pub(crate) fn atomic(op: &str, ty: Ty) -> Option<Ternary> {
    match (op, ty) {
        ("add", Ty::F32) => Some(|x, y, _| bits(f(x) + f(y))),
        ("add", Ty::F64) => Some(|x, y, _| bits64(d(x) + d(y))),
        _ => None,
    }
}

/// A float of any type as f64, exactly.
fn widen(x: u64, ty: Ty) -> Option<f64> {
    Some(match ty {
        Ty::F32 => f64::from(f(x)),
        Ty::F64 => d(x),
        Ty::F16 => h(x as u16),
        Ty::Bf16 => b(x as u16),
        _ => return None,
    })
}

fn integral(x: f64, round: RoundMode) -> f64 {
    match round {
        RoundMode::IntNearest | RoundMode::NearestEven => x.round_ties_even(),
        RoundMode::IntDown | RoundMode::Down => x.floor(),
        RoundMode::IntUp | RoundMode::Up => x.ceil(),
        _ => x.trunc(),
    }
}

fn is_float(ty: Ty) -> bool {
    matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64)
}

fn is_scalar(ty: Ty) -> bool {
    is_float(ty) || matches!(ty, Ty::U(_) | Ty::S(_))
}

/// cvt; the second operand is the low half of packed results. `None` if there is no such conversion.
pub(crate) fn convert(c: Conversion, a: u64, low: Option<u64>) -> Option<u64> {
    let relu = |x: f32| if c.relu && (x < 0.0 || x.is_nan() && x.is_sign_negative()) { 0.0 } else { x };
    if let Some(low) = low {
        let half = |x: u64| match c.to {
            Ty::Bf16x2 => Some(u64::from(to_bf16(f64::from(relu(f(x)))))),
            Ty::F16x2 => Some(u64::from(to_f16(f64::from(relu(f(x)))))),
            _ => None,
        };
        let byte = |x: u64, format: Format| {
            let x = relu(f(x));
            if x.is_nan() { 0x7F } else { format.cast_f32(x, Overflow::Saturate).code }
        };
        return match c.to {
            Ty::E4m3x2 => Some(byte(a, Format::E4M3) << 8 | byte(low, Format::E4M3)),
            Ty::E5m2x2 => Some(byte(a, Format::E5M2) << 8 | byte(low, Format::E5M2)),
            _ => Some(half(a)? << 16 | half(low)?),
        };
    }
    match (c.to, c.from) {
        (Ty::F16x2, Ty::E4m3x2 | Ty::E5m2x2) => {
            let format = if c.from == Ty::E4m3x2 { Format::E4M3 } else { Format::E5M2 };
            let half = |code: u64| u64::from(to_f16(f64::from(format.decode_f32(code as u16 & 0xFF))));
            Some(half(a >> 8) << 16 | half(a))
        }
        (Ty::E4m3x2 | Ty::E5m2x2, Ty::F16x2) => {
            let format = if c.to == Ty::E4m3x2 { Format::E4M3 } else { Format::E5M2 };
            let byte = |x: u64| {
                let x = relu(h(x as u16) as f32);
                if x.is_nan() { 0x7F } else { format.cast_f32(x, Overflow::Saturate).code }
            };
            Some(byte(a >> 16) << 8 | byte(a))
        }
        (to, from) if !is_scalar(to) || !is_scalar(from) => None,
        (to, from) if is_float(from) && is_float(to) => {
            let mut x = widen(a, from)?;
            if c.ftz && from == Ty::F32 {
                x = f64::from(flush(x as f32));
            }
            if matches!(
                c.round,
                RoundMode::IntNearest | RoundMode::IntZero | RoundMode::IntDown | RoundMode::IntUp
            ) {
                x = integral(x, c.round);
            }
            if c.saturate {
                x = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 };
            }
            if c.relu && x < 0.0 {
                x = 0.0;
            }
            narrow(x, to, c.round)
        }
        (to, from) if is_float(from) => to_integer(integral(widen(a, from)?, c.round), to),
        (to, from) if is_float(to) => {
            let value = integer(a, from);
            match (to, c.round) {
                (Ty::F32, RoundMode::NearestEven) => Some(u64::from((value as f32).to_bits())),
                (Ty::F64, _) if (value as f64) as i128 == value => Some((value as f64).to_bits()),
                (Ty::F64, RoundMode::NearestEven) => Some((value as f64).to_bits()),
                (Ty::F16, RoundMode::NearestEven) if from.bits() <= 32 => {
                    Some(u64::from(to_f16(value as f64)))
                }
                (Ty::Bf16, RoundMode::NearestEven) if from.bits() <= 32 => {
                    Some(u64::from(to_bf16(value as f64)))
                }
                (Ty::F32, round) if from.bits() <= 32 => narrow(value as f64, Ty::F32, round),
                _ => None,
            }
        }
        (to, from) => {
            let value = integer(a, from);
            let value = if c.saturate { value.clamp(lowest(to), highest(to)) } else { value };
            // A wider register than the type takes the sign along.
            Some(if to.is_signed() { value as u64 } else { value as u64 & mask(to.bits()) })
        }
    }
}

fn narrow(x: f64, to: Ty, round: RoundMode) -> Option<u64> {
    let directed_up_to = |round| {
        let nearest = x as f32;
        match round {
            RoundMode::Zero if f64::from(nearest).abs() > x.abs() && x.is_finite() => {
                f32::from_bits(nearest.to_bits() - 1)
            }
            RoundMode::Down if f64::from(nearest) > x => nearest.next_down(),
            RoundMode::Up if f64::from(nearest) < x => nearest.next_up(),
            _ => nearest,
        }
    };
    Some(match to {
        Ty::F32 => bits(directed_up_to(round)),
        Ty::F64 => bits64(x),
        Ty::F16 if !matches!(round, RoundMode::Zero | RoundMode::Down | RoundMode::Up) => {
            u64::from(to_f16(x))
        }
        Ty::Bf16 if !matches!(round, RoundMode::Zero | RoundMode::Down | RoundMode::Up) => {
            u64::from(to_bf16(x))
        }
        _ => return None,
    })
}

fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn integer(x: u64, ty: Ty) -> i128 {
    let unused = 64 - ty.bits();
    if ty.is_signed() { i128::from((x << unused) as i64 >> unused) } else { i128::from(x & mask(ty.bits())) }
}

fn lowest(ty: Ty) -> i128 {
    if ty.is_signed() { -(1 << (ty.bits() - 1)) } else { 0 }
}

fn highest(ty: Ty) -> i128 {
    (1 << (ty.bits() - u32::from(ty.is_signed()))) - 1
}

/// Saturating; NaN is 0 in 32 bits and below, and the top bit alone in 64.
fn to_integer(x: f64, to: Ty) -> Option<u64> {
    if x.is_nan() {
        return Some(if to.bits() == 64 { 1 << 63 } else { 0 });
    }
    // `as` saturates at the ends of i128, far outside every target.
    Some((x as i128).clamp(lowest(to), highest(to)) as u64 & mask(to.bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x(value: f32) -> u64 {
        u64::from(value.to_bits())
    }

    #[test]
    fn nan_is_canonical_and_min_max_pass_it_by() {
        let nan = 0x7FC0_1234;
        assert_eq!(binary("add", Ty::F32).unwrap()(nan, x(1.0)), 0x7FFF_FFFF);
        assert_eq!(binary("max", Ty::F32).unwrap()(nan, x(1.0)), x(1.0));
        assert_eq!(binary("max", Ty::F32).unwrap()(nan, nan), 0x7FFF_FFFF);
        assert_eq!(binary("max.NaN", Ty::F32).unwrap()(nan, x(1.0)), 0x7FFF_FFFF);
        assert_eq!(binary("max", Ty::F32).unwrap()(x(-0.0), x(0.0)), x(0.0));
        assert_eq!(binary("min", Ty::F32).unwrap()(x(0.0), x(-0.0)), x(-0.0));
        assert!(relation("neu", Ty::F32).unwrap()(nan, nan) && !relation("ne", Ty::F32).unwrap()(nan, nan));
    }

    #[test]
    fn directed_rounding_brackets_the_exact_value() {
        let third = |op: &str| f(ternary(op, Ty::F32).unwrap()(x(1.0 / 3.0), x(3.0), x(2f32.powi(-60))));
        assert!(third("fma.rm") < third("fma.rp"));
        assert_eq!(third("fma.rp"), third("fma.rm").next_up());
        assert_eq!(f(binary("add.rz", Ty::F32).unwrap()(x(1.0), x(-(2f32.powi(-60))))), 1f32.next_down());
        assert_eq!(binary("mul.rz", Ty::F32).unwrap()(x(f32::MAX), x(2.0)), x(f32::MAX));
        assert_eq!(binary("add.ftz", Ty::F32).unwrap()(1, x(0.0)), 0);
    }

    #[test]
    fn conversions() {
        let base = Conversion {
            to: Ty::S(32),
            from: Ty::F32,
            round: RoundMode::IntZero,
            saturate: false,
            relu: false,
            ftz: false,
        };
        assert_eq!(convert(base, x(-2.7), None), Some((-2i32) as u32 as u64));
        assert_eq!(convert(base, x(3e9), None), Some(i32::MAX as u64));
        assert_eq!(convert(base, x(f32::NAN), None), Some(0));
        let e4m3 = Conversion { to: Ty::E4m3x2, round: RoundMode::NearestEven, saturate: true, ..base };
        assert_eq!(convert(e4m3, x(1.0), Some(x(-1e9))), Some(0x38FE));
        assert_eq!(convert(e4m3, x(f32::NAN), Some(x(0.0))), Some(0x7F00));
        let bf = Conversion { to: Ty::Bf16, round: RoundMode::NearestEven, ..base };
        assert_eq!(convert(bf, x(1.0 + 2f32.powi(-8)), None), Some(0x3F80));
        assert_eq!(convert(bf, x(f32::NAN), None), Some(0x7FFF));
        let back = Conversion { to: Ty::F16x2, from: Ty::E4m3x2, round: RoundMode::NearestEven, ..base };
        assert_eq!(convert(back, 0x7F38, None), Some(0x7FFF_3C00));
        let signed = Conversion { to: Ty::S(64), from: Ty::S(32), round: RoundMode::None, ..base };
        assert_eq!(convert(signed, 0xFFFF_FFFF, None), Some(u64::MAX));
        let even = Conversion { to: Ty::F32, from: Ty::F32, round: RoundMode::IntNearest, ..base };
        assert_eq!(convert(even, x(2.5), None), Some(x(2.0)));
        let down = Conversion { to: Ty::F32, from: Ty::F64, round: RoundMode::Down, ..base };
        assert_eq!(convert(down, 0.1f64.to_bits(), None), Some(x(0.1f32.next_down())));
    }
}
