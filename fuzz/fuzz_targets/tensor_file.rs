//! Whole files, as they would come from elsewhere: opened, every tensor read, decoded, cast and inspected.
#![no_main]

use std::io::Write;

use finegrain::checkpoint::{
    CastOptions, CastRounding, Checkpoint, ReadAs, ScaledTensor, cast_tensor, inspect,
};
use finegrain::formats::{Format, Overflow, TensorRounding};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    // Half of the inputs get a right length in front, so that they are not refused at the first byte.
    let (framed, bytes) = input;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    if framed {
        let header = bytes.iter().rposition(|&b| b == b'}').map_or(bytes.len(), |i| i + 1);
        file.write_all(&(header as u64).to_le_bytes()).unwrap();
    }
    file.write_all(bytes).unwrap();
    let Ok(tensors) = Checkpoint::open(file.path()) else { return };
    let stochastic = CastRounding::Tensor(TensorRounding::Stochastic { seed: 1 });
    let options = CastOptions::new(Format::E4M3, stochastic, Overflow::Saturate).unwrap();
    for name in tensors.names() {
        let tensor = tensors.read(name).unwrap();
        assert_eq!(tensor.data().len(), tensors.info(name).unwrap().bytes());
        if let Ok(values) = tensor.to_f32() {
            assert_eq!(values.len(), tensor.elements());
        }
        if let Ok((codes, stats)) = cast_tensor(&tensor, name, &options, &|_| ()) {
            assert_eq!((codes.elements(), stats.elements), (tensor.elements(), tensor.elements() as u64));
        }
        for (format, packed) in [(None, false), (Some(Format::E2M1), true)] {
            let read_as = ReadAs { format, packed, scale_format: Some(Format::E8M0), ..ReadAs::default() };
            let Ok(codes) = ScaledTensor::read(&tensors, name, &read_as) else { continue };
            if let Ok(values) = codes.dequantize() {
                assert_eq!(values.len(), codes.shape().iter().product::<usize>());
            }
        }
    }
    inspect(&tensors, &|_| ()).unwrap();
});
