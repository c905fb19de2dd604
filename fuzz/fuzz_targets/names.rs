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
    if let Ok(format) = text.parse::<Format>() {
        assert_eq!(format.name().parse::<Format>().unwrap(), format);
    }
    if let Ok(recipe) = text.parse::<Recipe>() {
        assert_eq!(recipe.to_string().parse::<Recipe>().unwrap(), recipe);
    }
    if let Ok(arithmetic) = text.parse::<Arithmetic>() {
        assert_eq!(arithmetic.to_string().parse::<Arithmetic>().unwrap(), arithmetic);
    }
});
