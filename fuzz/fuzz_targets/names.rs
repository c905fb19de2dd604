//! Words from a command line: what parses prints as something that parses to the same.
#![no_main]

use finegrain::formats::Format;
use finegrain::quant::Recipe;
use finegrain::scaled::Granule;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(granule) = text.parse::<Granule>() {
        assert_eq!(granule.to_string().parse::<Granule>().unwrap(), granule);
    }
    if let Ok(format) = Format::by_name(text) {
        assert_eq!(Format::by_name(format.name()).unwrap(), format);
    }
    if let Ok(recipe) = Recipe::by_name(text) {
        assert_eq!(Recipe::by_name(recipe.name).unwrap(), recipe);
    }
});
