//! Formats, recipes, casts and quantisers: what a number is, held to golden values and to the reference.

mod cast_conformance;
#[path = "../common/mod.rs"]
mod common;
mod formats;
mod quantize_conformance;
mod recipes;
mod silicon_casts;
