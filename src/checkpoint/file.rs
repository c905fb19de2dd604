//! safetensors files: the header is checked whole before any tensor is read, each tensor is read on its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::header::{Header, HeaderFault, TensorInfo};
use super::looks::{LOOKED_AT, looks_like};
use super::tensor::Tensor;
use crate::error::{Error, Result};

/// The format's own limit on the length of a header.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes before the header: its length.
const PREFIX: u64 = 8;

/// An open safetensors file whose header has been read and checked: offsets cover the file without gap or overlap,
/// every shape and dtype agrees with its offsets.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    header: Header,
}

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read, is truncated, or its header is not that of a safetensors file.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let fail = |message: String| Error::file(&path, message);
        // Asked before opening: a pipe would block there.
        let meta = std::fs::metadata(&path).map_err(|e| fail(e.to_string()))?;
        if !meta.is_file() {
            return Err(fail(if meta.is_dir() { "is a folder" } else { "is not a regular file" }.into()));
        }
        let mut file = File::open(&path).map_err(|e| fail(e.to_string()))?;
        match Self::read_header(&mut file, meta.len()) {
            Ok((header, data_start)) => Ok(TensorFile { path, file, data_start, header }),
            Err(fault) => {
                let message = match beginning(&mut file).as_deref().and_then(looks_like) {
                    None => fault.message,
                    Some(what) => {
                        format!("not a safetensors file: looks like {what} ({})", fault.message)
                    }
                };
                Err(Error::File { path, tensor: fault.tensor, message })
            }
        }
    }

    /// The header of a file of `length` bytes, and where the data begin.
    fn read_header(file: &mut File, length: u64) -> std::result::Result<(Header, u64), HeaderFault> {
        let fail = |message: String| HeaderFault { tensor: None, message };
        let mut prefix = [0; PREFIX as usize];
        if length < PREFIX {
            return Err(fail(format!("{length} bytes, a safetensors file has at least {PREFIX}")));
        }
        file.read_exact(&mut prefix).map_err(|e| fail(e.to_string()))?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > MAX_HEADER {
            return Err(fail(format!("header of {header_length} bytes, at most {MAX_HEADER} are allowed")));
        }
        if header_length > length - PREFIX {
            return Err(fail(format!(
                "header of {header_length} bytes, the file ends {} after its length",
                length - PREFIX
            )));
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header).map_err(|e| fail(e.to_string()))?;
        let data_start = PREFIX + header_length;
        Ok((Header::parse(&header, length - data_start)?, data_start))
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names in the order of their data.
    pub fn names(&self) -> &[String] {
        self.header.names()
    }

    /// Whether the file has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The free-form metadata of the header, if any.
    pub fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        self.header.metadata()
    }

    /// What the header says of a tensor.
    ///
    /// # Errors
    /// [`Error::File`] that lists what the file has instead.
    pub fn info(&self, name: &str) -> Result<TensorInfo> {
        let info = self.header.info(name).cloned();
        info.ok_or_else(|| self.blame(name, format!("not in the file; it has {}", self.some_names())))
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// [`Error::File`] if there is no such tensor, it does not fit in memory or reading fails.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        let fail = |e: std::io::Error| self.blame(name, e);
        let size = info.bytes();
        let mut data = Vec::new();
        data.try_reserve_exact(size)
            .map_err(|_| self.blame(name, format!("{size} bytes do not fit in memory")))?;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.data_start + info.offsets.0 as u64)).map_err(fail)?;
        file.take(size as u64).read_to_end(&mut data).map_err(fail)?;
        if data.len() != size {
            return Err(self.blame(name, format!("the file ends after {} of {size} bytes", data.len())));
        }
        Tensor::new(info.dtype, info.shape, data)
    }

    /// An error that blames a tensor of this file.
    pub fn blame(&self, tensor: &str, message: impl ToString) -> Error {
        Error::tensor(&self.path, tensor, message)
    }

    fn some_names(&self) -> String {
        const SHOWN: usize = 12;
        let shown: Vec<_> = self.names().iter().take(SHOWN).map(String::as_str).collect();
        match (shown.len(), self.names().len()) {
            (0, _) => "no tensors".to_owned(),
            (shown_count, all) if all > shown_count => {
                format!("{} and {} more", shown.join(", "), all - shown_count)
            }
            _ => shown.join(", "),
        }
    }
}

/// The first bytes of a file.
fn beginning(file: &mut File) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(LOOKED_AT as u64).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
