//! Distances from the exact result, the budget of where they come from, bounds and tolerances.

mod accuracy;
mod bounds;
#[path = "../common/mod.rs"]
mod common;
mod identify;
mod identify_recipes;
mod tolerance;
