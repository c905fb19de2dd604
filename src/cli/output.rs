//! What is printed: aligned tables, JSON, errors.

use std::borrow::Cow;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use crate::checkpoint::TensorWriter;
use crate::cli::{Failure, Outcome};

/// The longest cell of a table, and the longest message: names and shapes from a file may have millions of characters.
const LONGEST_CELL: usize = 120;
const LONGEST_MESSAGE: usize = 4000;

/// Text of at most so many characters: of longer ones the middle is left out, and how much it was.
fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    let count = text.chars().count();
    if count <= most {
        return text.into();
    }
    let (first, last) = (most * 2 / 3, most / 6);
    let head: String = text.chars().take(first).collect();
    let tail: String = text.chars().skip(count - last).collect();
    format!("{head}...({} more)...{tail}", count - first - last).into()
}

/// Text in which names from a file cannot move the cursor or fake a second line: control characters are escaped.
pub(crate) fn printable(text: &str) -> String {
    let escape = |c: char| {
        if c.is_control() { c.escape_default().collect::<String>() } else { c.to_string() }
    };
    text.chars().map(escape).collect()
}

/// The one line of a failure.
pub(crate) fn error(message: &str) {
    line_on_stderr("error", message);
}

/// The one line of something that is not as it should be and did not stop the work.
pub(crate) fn warning(message: &str) {
    line_on_stderr("warning", message);
}

fn line_on_stderr(kind: &str, message: &str) {
    // A closed stderr is no reason to panic.
    let _ = writeln!(std::io::stderr(), "{kind}: {}", self::message(message));
}

/// A sentence that fits a screen.
pub(crate) fn message(text: &str) -> String {
    shortened(&printable(text), LONGEST_MESSAGE).into_owned()
}

/// A name as a progress bar shows it.
pub(crate) fn title(name: &str) -> String {
    shortened(&printable(name), LONGEST_CELL).into_owned()
}

/// Prints what clap says: help on stdout, a refusal on stderr.
pub(crate) fn usage(refused: &clap::Error) -> ExitCode {
    // Nowhere to report a failure to.
    let _ = refused.print();
    ExitCode::from(u8::try_from(refused.exit_code()).unwrap_or(2))
}

/// Writes to stdout. A reader that has gone away has what it wanted.
pub(crate) fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::Failed(format!("standard output: {e}"))),
        _ => Ok(()),
    }
}

/// One JSON document.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Outcome {
    print(&to_json(value)?)
}

fn to_json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Failed(format!("JSON: {e}")))?;
    Ok(text + "\n")
}

/// Gives an output its name and prints what is to be said of it. The text stands before that: what cannot be said is not
/// done.
pub(crate) fn finish<R: serde::Serialize>(
    out: TensorWriter,
    report: &R,
    json: bool,
    text: impl Fn(&R) -> String,
    warnings: &[String],
) -> Outcome {
    let text = if json { to_json(report)? } else { text(report) };
    out.finish()?;
    warnings.iter().for_each(|w| warning(w));
    print(&text)
}

/// A table with a title line. Columns are as wide as their widest cell.
pub(crate) struct Table {
    /// Whether a column is text, which aligns left; numbers align right.
    left: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these titles; a title that begins with `<` (dropped) makes a text column.
    pub(crate) fn new(titles: &[&str]) -> Self {
        let left = titles.iter().map(|t| t.starts_with('<')).collect();
        let titles = titles.iter().map(|t| t.trim_start_matches('<').to_owned()).collect();
        Table { left, rows: vec![titles] }
    }

    /// Adds a row with as many cells as there are titles.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|c| title(&c)).collect());
    }

    /// The lines of the table.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().map(|row| row.get(column).map_or(0, |c| c.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.left.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).zip(&self.left);
            let line: Vec<String> = cells
                .map(|((cell, &width), left)| {
                    let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
                    if *left { format!("{cell}{gap}") } else { format!("{gap}{cell}") }
                })
                .collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number as people read it: plain where that is short, a power of two as such, scientific elsewhere.
pub(crate) fn number(x: f64) -> String {
    let magnitude = x.abs();
    if x == 0.0 || !x.is_finite() || (1e-3..1e6).contains(&magnitude) {
        return format!("{x}");
    }
    match exact_log2(magnitude) {
        Some(exponent) => format!("{}2^{exponent}", if x < 0.0 { "-" } else { "" }),
        None => format!("{x:e}"),
    }
}

/// A measured number, to six digits.
pub(crate) fn measured(x: f64) -> String {
    let magnitude = x.abs();
    if x == 0.0 || !x.is_finite() || (1e-3..1e6).contains(&magnitude) {
        let digits = if magnitude >= 1.0 { 5 - magnitude.log10() as usize } else { 6 };
        return format!("{x:.digits$}");
    }
    format!("{x:.5e}")
}

/// A share in percent.
pub(crate) fn percent(part: u64, all: u64) -> String {
    if all == 0 { "-".to_owned() } else { format!("{:.2}%", 100.0 * part as f64 / all as f64) }
}

fn exact_log2(x: f64) -> Option<i32> {
    use crate::formats::Unpacked;
    match Unpacked::from_f64(x) {
        Unpacked::Finite { significand, exponent, .. } if significand.is_power_of_two() => {
            Some(exponent + significand.trailing_zeros() as i32)
        }
        _ => None,
    }
}

/// A shape as it is written in the header: `[512, 384]`.
pub(crate) fn shape(sizes: &[usize]) -> String {
    format!("{sizes:?}")
}
