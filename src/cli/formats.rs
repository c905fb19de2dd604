//! `finegrain formats`: the number formats, and the codes of one.

use crate::formats::{Format, FormatSpec, Specials, Unpacked};
use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::output::{Table, number, print, print_json};

/// Columns of the code table: 256 codes in 64 lines.
const CODE_COLUMNS: usize = 4;
/// The widest format whose codes are listed.
const LISTED_BITS: u32 = 8;

/// The number formats and their facts; with a name, every code of a format of at most 8 bits
#[derive(clap::Args)]
#[command(after_help = "Example:\n  finegrain formats e4m3")]
pub(crate) struct Args {
    /// Show this format in detail: e4m3, e5m2, e5m6, e3m2, e2m3, e2m1, e8m0, bf16 …
    name: Option<Format>,
}

#[derive(Serialize)]
struct Facts {
    name: &'static str,
    bits: u32,
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    emax: i32,
    emin: i32,
    max: f64,
    min_normal: f64,
    min_subnormal: Option<f64>,
    specials: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    codes: Option<Vec<Code>>,
}

/// A code; the value is a number, or the word NaN, inf or -inf, which JSON has no numbers for.
#[derive(Serialize)]
struct Code {
    code: u64,
    bits: String,
    value: Value,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Value {
    Number(f64),
    Word(&'static str),
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    match (args.name, json) {
        (None, true) => print_json(&Format::ALL.iter().map(|&f| facts(f)).collect::<Vec<_>>()),
        (None, false) => print(&overview()),
        (Some(format), true) => print_json(&Facts { codes: codes(format.spec()), ..facts(format) }),
        (Some(format), false) => print(&detail(format)),
    }
}

fn facts(format: Format) -> Facts {
    let s = format.spec();
    Facts {
        name: s.name,
        bits: s.bits(),
        exponent_bits: s.exponent_bits,
        mantissa_bits: s.mantissa_bits,
        bias: s.bias,
        emax: s.emax(),
        emin: s.emin(),
        max: s.max_finite(),
        min_normal: s.min_normal(),
        min_subnormal: s.has_subnormals().then(|| s.min_subnormal()),
        specials: specials(s),
        codes: None,
    }
}

fn specials(s: &FormatSpec) -> String {
    let magnitude = s.code_mask() & !s.sign_mask();
    let infinity = s.max_code() + 1;
    let sign = s.sign_mask();
    match s.specials {
        Specials::Ieee => {
            format!("inf {infinity:X}, NaN {:X}-{magnitude:X}, also with sign {sign:X}", infinity + 1)
        }
        Specials::NanOnly => format!("NaN {magnitude:X} and {:X}, no infinity", s.code_mask()),
        Specials::Fnuz => format!("NaN {sign:X}, no -0, no infinity"),
        Specials::None => "none".to_owned(),
        Specials::Scale => format!("NaN {magnitude:X}, no zero, no sign"),
    }
}

fn overview() -> String {
    let titles = ["<name", "bits", "bias", "emax", "max", "min normal", "min subnormal", "<specials"];
    let mut table = Table::new(&titles);
    for &format in Format::ALL {
        let f = facts(format);
        table.row([
            f.name.to_owned(),
            f.bits.to_string(),
            f.bias.to_string(),
            f.emax.to_string(),
            number(f.max),
            number(f.min_normal),
            f.min_subnormal.map_or("-".to_owned(), number),
            f.specials,
        ]);
    }
    table.render()
}

fn detail(format: Format) -> String {
    let (f, s) = (facts(format), format.spec());
    let sign = if s.signed() { "1 sign + " } else { "" };
    let lines = [
        ("name", f.name.to_owned()),
        ("bits", format!("{} = {sign}{} exponent + {} fraction", f.bits, f.exponent_bits, f.mantissa_bits)),
        ("bias", f.bias.to_string()),
        ("exponents", format!("{} to {}", f.emin, f.emax)),
        ("max", number(f.max)),
        ("min normal", number(f.min_normal)),
        ("min subnormal", f.min_subnormal.map_or("-".to_owned(), number)),
        ("specials", f.specials),
    ];
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<14} {value}\n")).collect();
    if let Some(codes) = codes(s) {
        text.push('\n');
        text.push_str(&code_table(&codes));
    }
    text
}

fn codes(s: &FormatSpec) -> Option<Vec<Code>> {
    if s.bits() > LISTED_BITS {
        return None;
    }
    let code = |code: u64| {
        let value = match s.decode(code) {
            Unpacked::Nan { .. } => Value::Word("NaN"),
            Unpacked::Infinite { negative } => Value::Word(if negative { "-inf" } else { "inf" }),
            value => Value::Number(value.to_f64()),
        };
        Code { code, bits: fields(s, code), value }
    };
    Some((0..=s.code_mask()).map(code).collect())
}

/// The bits of a code, sign, exponent and fraction apart.
fn fields(s: &FormatSpec, code: u64) -> String {
    let field = |shift: u32, width: u32| {
        let bits = code >> shift & ((1 << width) - 1);
        format!("{bits:0width$b}", width = width as usize)
    };
    let sign = s.signed().then(|| field(s.bits() - 1, 1));
    let exponent = Some(field(s.mantissa_bits, s.exponent_bits));
    let fraction = (s.mantissa_bits > 0).then(|| field(0, s.mantissa_bits));
    [sign, exponent, fraction].into_iter().flatten().collect::<Vec<_>>().join(".")
}

/// Codes in columns that read downward.
fn code_table(codes: &[Code]) -> String {
    let lines = codes.len() / CODE_COLUMNS;
    let titles: Vec<&str> = (0..CODE_COLUMNS).flat_map(|_| ["  code", "<bits", "value"]).collect();
    let mut table = Table::new(&titles);
    for line in 0..lines {
        let cells = codes.iter().skip(line).step_by(lines).flat_map(|c| {
            let value = match &c.value {
                Value::Number(x) => number(*x),
                Value::Word(word) => (*word).to_owned(),
            };
            [format!("{:02X}", c.code), c.bits.clone(), value]
        });
        table.row(cells);
    }
    table.render()
}
