//! Casts on every instruction set give the reference's codes and statistics: every format of at most 16 bits, every
//! deterministic rounding and both overflow modes, over all bf16 and f16, a dense stride of all f32, and around every
//! midpoint.
//!
//! `FINEGRAIN_ISA` and `FINEGRAIN_REQUIRE_ISA` as in the other conformance suites.

use crate::common::runner::{self, on_cpu};
use finegrain::formats::{Format, Overflow, Rounding, TensorRounding};
use finegrain::quant::{Caster, Element};
use half::{bf16, f16};

const ROUNDINGS: [Rounding; 5] =
    [Rounding::NearestEven, Rounding::TowardZero, Rounding::Up, Rounding::Down, Rounding::NearestAway];
const OVERFLOWS: [Overflow; 2] = [Overflow::Saturate, Overflow::NonSaturating];

fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|f| f.spec().bits() <= 16)
}

/// Compares every instruction set with the definition, in every rounding and overflow mode; returns how many ran.
fn conforms<T: Element>(what: &str, format: Format, x: &[T], show: fn(&T) -> u32) -> usize {
    let mut ran = 0;
    for rounding in ROUNDINGS {
        for overflow in OVERFLOWS {
            let caster = Caster::new(format, TensorRounding::Fixed(rounding), overflow);
            let what = format!("{what} to {format}, {rounding:?}, {overflow:?}");
            ran += runner::cast(&on_cpu("cpu"), &what, (&caster, format), x, show);
        }
    }
    ran
}

fn all_ran(ran: usize, inputs: usize) {
    assert_eq!(ran, inputs * formats().count() * ROUNDINGS.len() * OVERFLOWS.len() * on_cpu("cpu").len());
}

/// In the order of their bits, so that most groups of registers have no infinity or NaN.
#[test]
fn every_bf16_and_f16() {
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    let (narrow, half): (Vec<_>, Vec<_>) =
        bits.iter().map(|&b| (bf16::from_bits(b), f16::from_bits(b))).unzip();
    let mut ran = 0;
    for format in formats() {
        ran += conforms("bf16", format, &narrow, |v| u32::from(v.to_bits()));
        ran += conforms("f16", format, &half, |v| u32::from(v.to_bits()));
    }
    all_ran(ran, 2);
}

/// Every 8191st f32, in the order of its bits.
#[test]
fn a_stride_of_all_f32() {
    let x: Vec<f32> = (0..=u32::MAX).step_by(8191).map(f32::from_bits).collect();
    let mut ran = 0;
    for format in formats() {
        ran += conforms("f32", format, &x, |v| v.to_bits());
    }
    all_ran(ran, 1);
}

/// Every value and every midpoint between neighbours, the largest value and one step beyond included, with the two f32 on
/// either side. Lengths around a group of registers.
#[test]
fn around_every_midpoint() {
    let mut ran = 0;
    for format in formats() {
        let codes = 0..=format.spec().code_mask() as u16;
        let mut values: Vec<f32> =
            codes.map(|c| format.decode_f32(c)).filter(|v| v.is_finite() && *v >= 0.0).collect();
        values.sort_by(f32::total_cmp);
        let top = values[values.len() - 1];
        let beyond = top + (top - values[values.len() - 2]);
        values.push(if beyond.is_finite() { beyond } else { top });
        let near = |v: f32| (-2..=2).map(move |d: i32| f32::from_bits(v.to_bits().saturating_add_signed(d)));
        let midpoints = values.windows(2).map(|w| ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32);
        let points: Vec<f32> =
            values.iter().copied().chain(midpoints).flat_map(near).flat_map(|v| [v, -v]).collect();
        ran += conforms("midpoints", format, &points, |v| v.to_bits());
        for len in [0, 1, 15, 16, 17, 63, 64, 65, 127, 129] {
            conforms("some midpoints", format, &points[..len.min(points.len())], |v| v.to_bits());
        }
    }
    all_ran(ran, 1);
}

/// One infinity or NaN takes its group to the definition; its neighbours stay what they are.
#[test]
fn specials_among_numbers() {
    let mut x: Vec<f32> = (0..70_000).map(|i| (i as f32 - 35_000.0) / 100.0).collect();
    for i in [0, 100, 5_003, 66_666, 69_999] {
        x[i] = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 4];
    }
    for format in formats() {
        assert!(conforms("specials", format, &x, |v| v.to_bits()) > 0);
    }
}

/// Random bits belong to the element, whatever runs.
#[test]
fn stochastic_rounding_is_the_definition() {
    let x: Vec<f32> = (0..100_000).map(|i| i as f32 / 321.0).collect();
    let rounding = TensorRounding::Stochastic { seed: 5 };
    for format in formats() {
        let caster = Caster::new(format, rounding, Overflow::Saturate);
        let ran = runner::cast(&on_cpu("cpu"), "stochastic", (&caster, format), &x, |v| v.to_bits());
        assert_eq!(ran, on_cpu("cpu").len());
    }
}

#[test]
fn misuse_is_told_with_both_numbers() {
    let caster = Caster::new(Format::E5M6, TensorRounding::Fixed(Rounding::NearestEven), Overflow::Saturate);
    let message = caster.bytes(&[1.0f32], &mut [0]).unwrap_err().to_string();
    assert!(message.contains("12 bits") && message.contains("in 8"), "{message}");
    let message = caster.words(&[1.0f32], &mut [0, 0]).unwrap_err().to_string();
    assert!(message.contains("2 codes") && message.contains("1 elements"), "{message}");
}
