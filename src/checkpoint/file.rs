//! safetensors files: the header is checked whole before any tensor is read, each tensor is read on its own.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::tensor::Tensor;
use crate::error::{Error, Result};

/// The format's own limit on the length of a header.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes before the header: its length.
const PREFIX: u64 = 8;

/// What the header says of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// First byte and one past the last, counted from the end of the header.
    offsets: (usize, usize),
}

impl TensorInfo {
    /// Bytes of data.
    pub fn bytes(&self) -> usize {
        self.offsets.1 - self.offsets.0
    }
}

/// An open safetensors file whose header has been read and checked: offsets cover the file without gap or overlap,
/// every shape and dtype agrees with its offsets.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    names: Vec<String>,
    metadata: Metadata,
}

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read, is truncated, or its header is not that of a safetensors file.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let fail = |message: String| Error::file(&path, message);
        let mut file = File::open(&path).map_err(|e| fail(e.to_string()))?;
        let meta = file.metadata().map_err(|e| fail(e.to_string()))?;
        if !meta.is_file() {
            return Err(fail("not a regular file".into()));
        }
        let length = meta.len();
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
        let metadata = parse_header(&header).map_err(&fail)?;
        let data_start = PREFIX + header_length;
        let (found, expected) = (length - data_start, metadata.data_len() as u64);
        if found != expected {
            return Err(fail(format!("{found} bytes of data, the header describes {expected}")));
        }
        let names = metadata.offset_keys();
        Ok(TensorFile { path, file, data_start, names, metadata })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names in the order of their data.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether the file has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// The free-form metadata of the header, if any.
    pub fn metadata(&self) -> Option<&std::collections::HashMap<String, String>> {
        self.metadata.metadata().as_ref()
    }

    /// What the header says of a tensor.
    ///
    /// # Errors
    /// [`Error::File`] that lists what the file has instead.
    pub fn info(&self, name: &str) -> Result<TensorInfo> {
        let Some(info) = self.metadata.info(name) else {
            return Err(Error::tensor(
                &self.path,
                name,
                format!("not in the file; it has {}", self.some_names()),
            ));
        };
        Ok(TensorInfo { dtype: info.dtype, shape: info.shape.clone(), offsets: info.data_offsets })
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// [`Error::File`] if there is no such tensor or reading fails.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let info = self.info(name)?;
        let fail = |e: std::io::Error| Error::tensor(&self.path, name, e);
        let mut data = vec![0; info.bytes()];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.data_start + info.offsets.0 as u64)).map_err(fail)?;
        file.read_exact(&mut data).map_err(fail)?;
        Tensor::new(info.dtype, info.shape, data)
    }

    /// An error that blames a tensor of this file.
    pub fn blame(&self, tensor: &str, message: impl ToString) -> Error {
        Error::tensor(&self.path, tensor, message)
    }

    fn some_names(&self) -> String {
        const SHOWN: usize = 12;
        let shown: Vec<_> = self.names.iter().take(SHOWN).map(String::as_str).collect();
        match (shown.len(), self.names.len()) {
            (0, _) => "no tensors".to_owned(),
            (shown_count, all) if all > shown_count => {
                format!("{} and {} more", shown.join(", "), all - shown_count)
            }
            _ => shown.join(", "),
        }
    }
}

/// Parses and checks the JSON of a header. The message names what is wrong.
fn parse_header(header: &[u8]) -> std::result::Result<Metadata, String> {
    serde_json::from_slice(header).map_err(|e| format!("header: {e}"))
}

/// Whether `output` would overwrite `input`: the same file under any name.
///
/// # Errors
/// [`Error::File`] if so.
pub fn refuse_same_file(input: &Path, output: &Path) -> Result<()> {
    let same = match (input.canonicalize(), output.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if same {
        return Err(Error::file(output, format!("output equals input ({})", input.display())));
    }
    Ok(())
}

/// Writes a safetensors file under a temporary name in the same folder and renames it: the path holds the whole file or
/// what it held before. Tensors keep the order given.
///
/// # Errors
/// [`Error::File`] if the folder cannot be written or the names are not distinct.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let fail = |message: String| Error::file(path, message);
    let mut end = 0;
    let mut seen = std::collections::HashSet::new();
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if !seen.insert(name) {
            return Err(Error::tensor(path, name, "would be written twice"));
        }
        let data_offsets = (end, end + tensor.data().len());
        end = data_offsets.1;
        let info = safetensors::tensor::TensorInfo {
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            data_offsets,
        };
        infos.push((name.clone(), info));
    }
    let metadata = Metadata::new(None, infos).map_err(|e| fail(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| fail(e.to_string()))?;
    header.resize(header.len().next_multiple_of(PREFIX as usize), b' ');

    write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors.iter().try_for_each(|(_, tensor)| out.write_all(tensor.data()))
    })
}

/// Calls `fill` on a temporary file beside `path`, then renames it to `path`.
///
/// # Errors
/// [`Error::File`] if creating, writing or renaming fails; the temporary file is gone then.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let fail = |e: std::io::Error| Error::file(path, e);
    if path.is_dir() {
        return Err(Error::file(path, "is a folder"));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".finegrain-");
    // Plain 0666 less the umask, as any program creates files; the default of a temporary file is private.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder).map_err(fail)?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut out).and_then(|()| out.flush()).map_err(fail)?;
    drop(out);
    temporary.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = folder();
        let path = dir.path().join("x.safetensors");
        let a = Tensor::new(
            Dtype::F32,
            vec![2, 1],
            [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect(),
        );
        let b = Tensor::new(Dtype::U8, vec![3], vec![1, 2, 3]);
        write_tensors(&path, &[("b".into(), b.unwrap()), ("a".into(), a.unwrap())]).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names(), ["b", "a"]);
        assert_eq!(file.read("a").unwrap().to_f32().unwrap(), [1.5, -2.0]);
        assert_eq!(file.read("b").unwrap().data(), [1, 2, 3]);
        assert!(file.read("c").unwrap_err().to_string().contains("it has b, a"));
        safetensors::SafeTensors::deserialize(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let dir = folder();
        let path = dir.path().join("x");
        std::fs::write(&path, "before").unwrap();
        let fill = |out: &mut dyn Write| {
            out.write_all(b"half")?;
            Err(std::io::Error::other("disk full"))
        };
        assert!(write_atomically(&path, fill).unwrap_err().to_string().ends_with("disk full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn names_are_written_once() {
        let t = Tensor::new(Dtype::U8, vec![1], vec![0]).unwrap();
        let dir = folder();
        let path = dir.path().join("x");
        assert!(write_tensors(&path, &[("a".into(), t.clone()), ("a".into(), t)]).is_err());
        assert!(!path.exists());
    }
}
