//! Progress bars, on stderr and for people only.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// A bar with rate and time left; invisible unless stderr is a terminal. It is wiped when dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn bytes(bytes: u64) -> Self {
        Self::new(bytes, "[{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {wide_msg}")
    }

    /// A bar over multiply-adds of GEMMs.
    pub(crate) fn multiply_adds(count: u64) -> Self {
        Self::new(count, "[{bar:30}] {percent}%  {giga} G multiply-adds/s  {eta} left  {wide_msg}")
    }

    /// A bar over steps of some seconds each.
    pub(crate) fn steps(count: u64) -> Self {
        Self::new(count, "[{bar:30}] {pos}/{len}  {eta} left  {wide_msg}")
    }

    fn new(length: u64, template: &str) -> Self {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        let giga = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // Nowhere to report a failure to, and a bar is not worth one.
            let _ = write!(out, "{:.2}", state.per_sec() / 1e9);
        };
        let style =
            ProgressStyle::with_template(template).map(|s| s.with_key("giga", giga).progress_chars("=> "));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress(bar)
    }

    /// So much more is done.
    pub(crate) fn advance(&self, amount: u64) {
        self.0.inc(amount);
    }

    /// What is being worked on.
    pub(crate) fn on(&self, tensor: &str) {
        self.0.set_message(crate::cli::output::title(tensor));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
