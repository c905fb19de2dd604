//! PTX text to kernels: lexer, parser, decoder, control flow.

mod cfg;
mod decode;
mod float;
mod inst;
mod integer;
mod lexer;
mod parser;
mod types;

pub(crate) use float::convert;
pub(crate) use inst::*;
pub(crate) use integer::{insert, lop3};
pub use types::Space;
pub(crate) use types::{Special, Ty, window};

use std::collections::HashMap;

/// What is wrong with a PTX text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct ParseError {
    line: u32,
    message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        ParseError { line, message: message.into() }
    }

    /// The line, from 1.
    pub fn line(&self) -> u32 {
        self.line
    }
}

/// A parsed PTX module.
///
/// ```
/// let module = ptx_emulator::Module::parse(".version 8.0\n.target sm_89\n.address_size 64\n\
///     .visible .entry nothing() { ret; }")?;
/// assert_eq!(module.kernel_names().collect::<Vec<_>>(), ["nothing"]);
/// # Ok::<(), ptx_emulator::ParseError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Module {
    /// The architecture that it is for: 90 for `.target sm_90a`.
    pub(crate) target: Option<u32>,
    pub(crate) kernels: HashMap<String, Kernel>,
    /// Variables of the module in `.const` and `.global`, from `window::CONST` on.
    pub(crate) constants: Vec<u8>,
}

impl Module {
    /// Parses a module.
    ///
    /// # Errors
    /// [`ParseError`] for text that is no PTX, and for instructions that the emulator does not know.
    pub fn parse(source: &str) -> Result<Module, ParseError> {
        parser::module(source)
    }

    /// The entries, in alphabetical order.
    pub fn kernel_names(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names.into_iter()
    }
}

/// A formal parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Param {
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

/// One entry, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) insts: Vec<Inst>,
    /// For each instruction that may diverge: where its paths meet again, or the number of instructions.
    pub(crate) reconverge: Vec<usize>,
    pub(crate) registers: usize,
    pub(crate) predicates: usize,
    pub(crate) static_shared: usize,
    /// Where dynamic shared memory starts, aligned as the kernel asks.
    pub(crate) dynamic_shared: usize,
    pub(crate) local_bytes: usize,
}
