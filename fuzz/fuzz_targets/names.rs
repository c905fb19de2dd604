//! Words from a command line: what parses prints as something that parses to the same.
#![no_main]

use finegrain::formats::Format;
use finegrain::gemm::Arithmetic;
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
    if let Ok(arithmetic) = text.parse::<Arithmetic>() {
        assert_eq!(arithmetic.to_string().parse::<Arithmetic>().unwrap(), arithmetic);
    }
});
