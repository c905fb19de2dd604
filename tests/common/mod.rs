//! What the test binaries share. Each uses a part of it.
#![allow(dead_code, unreachable_pub)]

pub mod golden;
pub mod isas;
pub mod operands;
pub(crate) mod runner;
