//! Matrix products: what is legal, what the reference says, and every backend held to it.

#[path = "../common/mod.rs"]
mod common;
mod conformance;
mod conforming;
mod emulated;
mod engine;
mod fold;
mod gemm;
mod gemm_refusals;
mod grouped;
mod parts;
mod sanitize;
mod silicon;
mod silicon_products;
mod tensor_core;
