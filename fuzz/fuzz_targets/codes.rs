//! Codes from elsewhere: LogFMT tiles and packed formats.
#![no_main]

use arbitrary::Arbitrary;
use finegrain::formats::logfmt::LogTile;
use finegrain::formats::{e5m6, packed};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    bits: u32,
    min: f32,
    step: f32,
    codes: Vec<u16>,
    words: Vec<u32>,
    bytes: Vec<u8>,
}

fuzz_target!(|input: Input| {
    if let Ok(tile) = LogTile::from_parts(input.bits, input.min, input.step, input.codes.clone()) {
        let values = tile.decode();
        assert_eq!(values.len(), input.codes.len());
        assert!(values.iter().all(|v| !v.is_nan()));
        LogTile::encode(&values, input.bits).unwrap();
    }
    if let Ok(codes) = e5m6::unpack(&input.words) {
        assert_eq!(e5m6::pack(&codes).unwrap(), input.words);
    }
    assert_eq!(packed::pack4(&packed::unpack4(&input.bytes)), input.bytes);
});
