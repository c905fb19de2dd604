//! `finegrain recipe list`: every recipe and where its arithmetic comes from.

use clap::Subcommand;
use finegrain::quant::{ElementCast, NanAmax, Recipe, ScaleFormat};
use serde::Serialize;

use crate::Outcome;
use crate::output::{Table, print, print_json};

const EXAMPLE: &str = "\
Example:
  finegrain recipe list";

/// Show the recipes
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every recipe: formats, granules, amax floor, and the source of its arithmetic
    List,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    element: &'static str,
    gradient: &'static str,
    scale: &'static str,
    activation: String,
    weight: String,
    amax_floor: f32,
    nan_in_amax: &'static str,
    overflow: String,
    source: &'static str,
}

pub(crate) fn run(args: Args, json: bool) -> Outcome {
    let Command::List = args.command;
    let lines: Vec<Line> = Recipe::ALL.iter().map(line).collect();
    if json {
        return print_json(&lines);
    }
    let mut table = Table::new(&[
        "<recipe",
        "<codes",
        "<scales",
        "<activation",
        "<weight",
        "floor",
        "<NaN in amax",
        "<source",
    ]);
    for l in lines {
        let codes = if l.gradient == l.element {
            l.element.to_owned()
        } else {
            format!("{}/{}", l.element, l.gradient)
        };
        let floor = if l.amax_floor == 0.0 { "-".to_owned() } else { format!("{:e}", l.amax_floor) };
        let text = [l.scale, l.nan_in_amax, l.source].map(str::to_owned);
        let [scale, nan, source] = text;
        table.row([l.name.to_owned(), codes, scale, l.activation, l.weight, floor, nan, source]);
    }
    print(&table.render())
}

fn line(recipe: &Recipe) -> Line {
    Line {
        name: recipe.name,
        element: recipe.element.name(),
        gradient: recipe.gradient.name(),
        scale: match recipe.scale_format() {
            ScaleFormat::F32 => "f32",
            ScaleFormat::PowerOfTwoF32 => "f32, 2^n",
            ScaleFormat::E8M0 => "e8m0",
            ScaleFormat::E4M3 => "e4m3",
        },
        activation: recipe.activation.to_string(),
        weight: recipe.weight.to_string(),
        amax_floor: recipe.amax.floor,
        nan_in_amax: match recipe.amax.nan {
            NanAmax::Ignored => "ignored",
            NanAmax::Propagates => "propagates",
        },
        overflow: match recipe.cast {
            ElementCast::Plain(overflow) => format!("{overflow:?}"),
            ElementCast::PositiveZero | ElementCast::E5m6(_) => "Saturate".to_owned(),
        },
        source: recipe.source,
    }
}
