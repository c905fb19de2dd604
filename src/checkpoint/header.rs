//! The header of a safetensors file: parsed and checked from bytes alone, before anything else of the file is read.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use safetensors::Dtype;
use serde::de::{self, DeserializeSeed, MapAccess, Visitor};
use serde::ser::SerializeMap;

/// The one name of a header that is no tensor.
const METADATA: &str = "__metadata__";

/// What the header says of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// First byte and one past the last, counted from the end of the header.
    pub(super) offsets: (usize, usize),
}

impl TensorInfo {
    /// Bytes of data.
    pub fn bytes(&self) -> usize {
        self.offsets.1 - self.offsets.0
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A checked header: names are distinct, offsets cover the data without gap or overlap, and every tensor has the bytes
/// that its dtype and shape ask for.
#[derive(Clone, Debug, Default)]
pub struct Header {
    tensors: HashMap<String, TensorInfo>,
    names: Vec<String>,
    metadata: Option<BTreeMap<String, String>>,
}

/// Why a header was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderFault {
    /// The tensor to blame, where there is one.
    pub tensor: Option<String>,
    /// What is wrong, with both numbers.
    pub message: String,
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tensor {
            Some(tensor) => write!(f, "tensor '{tensor}': {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for HeaderFault {}

/// Bytes that a tensor of this dtype and shape takes; the message says why there is no such number.
pub(super) fn byte_size(dtype: Dtype, shape: &[usize]) -> Result<usize, String> {
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
    match bits {
        None => Err(format!("{dtype} {shape:?} has more bits than 64-bit numbers count")),
        Some(bits) if !bits.is_multiple_of(8) => Err(format!("{dtype} {shape:?} ends inside a byte")),
        Some(bits) => Ok(bits / 8),
    }
}

impl Header {
    /// Parses the JSON of a header and checks it against the number of data bytes that follow it.
    ///
    /// ```
    /// use finegrain::checkpoint::Header;
    /// let json = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    /// assert_eq!(Header::parse(json, 8)?.names(), ["a"]);
    /// assert_eq!(Header::parse(json, 9).unwrap_err().message, "9 bytes of data, the header describes 8");
    /// # Ok::<(), finegrain::checkpoint::HeaderFault>(())
    /// ```
    ///
    /// # Errors
    /// [`HeaderFault`] for anything but a header as [`Header`] promises.
    pub fn parse(json: &[u8], data_bytes: u64) -> Result<Self, HeaderFault> {
        let mut entries = Entries::default();
        let mut json = serde_json::Deserializer::from_slice(json);
        let parsed = Fill(&mut entries).deserialize(&mut json);
        if let Err(e) = parsed {
            return Err(HeaderFault { tensor: entries.current, message: format!("header: {e}") });
        }
        json.end().map_err(|e| HeaderFault { tensor: None, message: format!("header: {e}") })?;

        let Entries { mut tensors, metadata, .. } = entries;
        // Stable: tensors without bytes keep the order of the header among themselves.
        tensors.sort_by_key(|(_, info)| info.offsets);
        let mut end = 0;
        for (name, info) in &tensors {
            let blame = |message| Err(HeaderFault { tensor: Some(name.clone()), message });
            let (first, last) = info.offsets;
            if first != end {
                let what = if first < end { "overlaps" } else { "leaves a gap after" };
                return blame(format!(
                    "begins at byte {first}, {what} the tensors before it, which end at {end}"
                ));
            }
            if last < first {
                return blame(format!("begins at byte {first} and ends at {last}"));
            }
            match byte_size(info.dtype, &info.shape) {
                Err(message) => return blame(message),
                Ok(size) if size != last - first => {
                    return blame(format!(
                        "{} bytes of data, {} {:?} asks for {size}",
                        last - first,
                        info.dtype,
                        info.shape
                    ));
                }
                Ok(_) => end = last,
            }
        }
        if end as u64 != data_bytes {
            let message = format!("{data_bytes} bytes of data, the header describes {end}");
            return Err(HeaderFault { tensor: None, message });
        }
        let names: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(HeaderFault {
                tensor: Some(twice.clone()),
                message: "is in the header twice".into(),
            });
        }
        Ok(Header { tensors: tensors.into_iter().collect(), names, metadata })
    }

    /// The tensors' names in the order of their data.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What the header says of a tensor, if it has one of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The free-form metadata, if any.
    pub fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        self.metadata.as_ref()
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.offsets.1 as u64).max().unwrap_or(0)
    }

    /// Lays tensors out one after the other. The widest elements come first, so that each tensor begins at a multiple of
    /// its element size (readers that map a file need that); within a width the order is the one given.
    pub(super) fn lay_out(
        tensors: Vec<(String, Dtype, Vec<usize>)>,
        metadata: Option<&BTreeMap<String, String>>,
    ) -> Result<Self, HeaderFault> {
        let mut header = Header { metadata: metadata.cloned(), ..Header::default() };
        let mut ordered = tensors;
        ordered.sort_by_key(|(_, dtype, _)| std::cmp::Reverse(dtype.bitsize()));
        let mut end = 0usize;
        for (name, dtype, shape) in ordered {
            let blame = |message: String| HeaderFault { tensor: Some(name.clone()), message };
            let size = byte_size(dtype, &shape).map_err(blame)?;
            let first = end;
            end = end.checked_add(size).ok_or_else(|| blame(format!("ends beyond byte {}", usize::MAX)))?;
            if name == METADATA {
                return Err(blame("is the header's own name, not a tensor's".into()));
            }
            let info = TensorInfo { dtype, shape, offsets: (first, end) };
            if header.tensors.insert(name.clone(), info).is_some() {
                return Err(blame("would be written twice".into()));
            }
            header.names.push(name);
        }
        Ok(header)
    }

    /// The JSON of the header; the same header gives the same bytes.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

impl serde::Serialize for Header {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(metadata) = &self.metadata {
            map.serialize_entry(METADATA, metadata)?;
        }
        for name in &self.names {
            let info = &self.tensors[name];
            let entry = safetensors::tensor::TensorInfo {
                dtype: info.dtype,
                shape: info.shape.clone(),
                data_offsets: info.offsets,
            };
            map.serialize_entry(name, &entry)?;
        }
        map.end()
    }
}

/// The entries of a header as they stand in it, a name that occurs twice included.
#[derive(Default)]
struct Entries {
    tensors: Vec<(String, TensorInfo)>,
    metadata: Option<BTreeMap<String, String>>,
    /// The entry being read, so that an error can name it.
    current: Option<String>,
}

struct Fill<'a>(&'a mut Entries);

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fill<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let entries = self.0;
        while let Some(name) = map.next_key::<String>()? {
            entries.current = Some(name.clone());
            if name == METADATA {
                if entries.metadata.is_some() {
                    return Err(de::Error::custom("metadata given twice"));
                }
                // The reference reader takes null for none.
                entries.metadata = map.next_value::<Option<BTreeMap<String, String>>>()?;
            } else {
                let info: safetensors::tensor::TensorInfo = map.next_value()?;
                let info = TensorInfo { dtype: info.dtype, shape: info.shape, offsets: info.data_offsets };
                entries.tensors.push((name, info));
            }
            entries.current = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(json: &str, data: u64) -> String {
        Header::parse(json.as_bytes(), data).unwrap_err().to_string()
    }

    #[test]
    fn faults_name_the_tensor_and_both_numbers() {
        let of =
            |body: &str| format!(r#"{{"a":{{"dtype":"U8","shape":[16],"data_offsets":[0,16]}},{body}}}"#);
        let overlap = of(r#""b":{"dtype":"U8","shape":[16],"data_offsets":[8,24]}"#);
        assert!(fault(&overlap, 24).starts_with("tensor 'b': begins at byte 8, overlaps"));
        let gap = of(r#""b":{"dtype":"U8","shape":[1],"data_offsets":[17,18]}"#);
        assert!(fault(&gap, 18).contains("17, leaves a gap after the tensors before it, which end at 16"));
        let size = of(r#""b":{"dtype":"F32","shape":[3],"data_offsets":[16,20]}"#);
        assert_eq!(fault(&size, 20), "tensor 'b': 4 bytes of data, F32 [3] asks for 12");
        let backward = of(r#""b":{"dtype":"F32","shape":[0],"data_offsets":[16,3]}"#);
        assert!(fault(&backward, 16).contains("begins at byte 16 and ends at 3"));
        let dtype = of(r#""b":{"dtype":"Q3","shape":[0],"data_offsets":[16,16]}"#);
        assert!(fault(&dtype, 16).starts_with("tensor 'b': header: unknown variant `Q3`"));
    }

    #[test]
    fn a_name_stands_once() {
        let empty = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
        let json = format!(r#"{{"a":{empty},"b":{empty},"a":{empty}}}"#);
        assert_eq!(fault(&json, 0), "tensor 'a': is in the header twice");
        let json = r#"{"__metadata__":{"k":"1"},"__metadata__":{"k":"2"}}"#;
        assert!(fault(json, 0).contains("metadata given twice"));
    }

    #[test]
    fn sizes_that_do_not_exist_are_refused() {
        for shape in ["[4611686018427387904,4611686018427387904]", "[4611686018427387904,8,0]"] {
            let json = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
            assert!(fault(&json, 0).contains("more bits than"), "{shape}");
        }
        let nibbles = r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#;
        assert!(fault(nibbles, 1).contains("ends inside a byte"));
    }

    #[test]
    fn nesting_and_trailing_bytes_are_refused() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(Header::parse(deep.as_bytes(), 0).is_err());
        assert!(fault("{} x", 0).contains("trailing characters"));
        assert!(fault("[1]", 0).contains("an object of tensors"));
        assert!(Header::parse(b"{}   ", 0).unwrap().names().is_empty());
    }

    #[test]
    fn layouts_are_aligned_and_survive_parsing() {
        let tensors =
            [("odd", Dtype::U8, vec![3]), ("wide", Dtype::F64, vec![]), ("half", Dtype::BF16, vec![5])];
        let tensors = tensors.map(|(name, dtype, shape)| (name.to_owned(), dtype, shape)).to_vec();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let header = Header::lay_out(tensors.clone(), Some(&metadata)).unwrap();
        assert_eq!(header.names(), ["wide", "half", "odd"]);
        let back = Header::parse(&header.to_json().unwrap(), 8 + 10 + 3).unwrap();
        assert_eq!((back.names(), back.metadata()), (header.names(), Some(&metadata)));
        assert_eq!(back.info("half"), header.info("half"));
        let twice = Header::lay_out([tensors.clone(), tensors].concat(), None);
        assert_eq!(twice.unwrap_err().message, "would be written twice");
    }
}
