//! Headers: any JSON and any length of data. A header that passes keeps its promises.
#![no_main]

use finegrain::checkpoint::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, &[u8])| {
    let (data_bytes, json) = input;
    let Ok(header) = Header::parse(json, u64::from(data_bytes)) else { return };
    let described: usize = header.names().iter().map(|name| header.info(name).unwrap().bytes()).sum();
    assert_eq!(described as u64, u64::from(data_bytes));
});
