//! Writing tensor files: under a temporary name in the same folder, renamed when whole.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::header::{Header, HeaderFault};
use super::room::require_disk;
use super::temporary::Temporary;
use super::tensor::Tensor;
use crate::error::{Error, Result};

/// The header's length, and the alignment of the data after it.
const PREFIX: usize = 8;

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

/// A safetensors file in the making: the header is known from the start, the tensors come one at a time and in any
/// order, so memory holds one of them. The path keeps what it held until [`TensorWriter::finish`]; a writer that is
/// dropped before leaves nothing behind.
///
/// ```
/// use finegrain::checkpoint::{Dtype, Tensor, TensorFile, TensorWriter};
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("x.safetensors");
/// let mut out = TensorWriter::create(&path, vec![("a".into(), Dtype::U8, vec![2])], None)?;
/// out.put("a", &Tensor::new(Dtype::U8, vec![2], vec![1, 2])?)?;
/// out.finish()?;
/// assert_eq!(TensorFile::open(&path)?.read("a")?.data(), [1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TensorWriter {
    path: PathBuf,
    temporary: Temporary,
    header: Header,
    data_start: u64,
    missing: HashSet<String>,
}

impl TensorWriter {
    /// Begins a file that will hold these tensors. The widest elements are placed first, so that each tensor is aligned;
    /// otherwise they keep the order given.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be written, the path is no regular file, a name occurs twice or a size does
    /// not exist.
    pub fn create(
        path: &Path,
        tensors: Vec<(String, Dtype, Vec<usize>)>,
        metadata: Option<&BTreeMap<String, String>>,
    ) -> Result<Self> {
        let header = Header::lay_out(tensors, metadata).map_err(|f| blame(path, f))?;
        let mut json = header.to_json().map_err(|e| Error::file(path, e))?;
        json.resize(json.len().next_multiple_of(PREFIX), b' ');
        let temporary = Temporary::beside(path)?;
        let length = (json.len() as u64).to_le_bytes();
        require_disk(path, header.bytes().saturating_add((PREFIX + json.len()) as u64))?;
        let mut file = temporary.as_file();
        file.write_all(&length).and_then(|()| file.write_all(&json)).map_err(|e| Error::file(path, e))?;
        let missing = header.names().iter().cloned().collect();
        let data_start = (PREFIX + json.len()) as u64;
        Ok(TensorWriter { path: path.to_owned(), temporary, header, data_start, missing })
    }

    /// Writes one tensor.
    ///
    /// # Errors
    /// [`Error::File`] if writing fails, or if the tensor was not announced, has another dtype or shape than announced, or
    /// was written before.
    pub fn put(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let fail = |message: String| Error::tensor(&self.path, name, message);
        let info = self.header.info(name).ok_or_else(|| fail("was not announced".into()))?;
        if (info.dtype, info.shape.as_slice()) != (tensor.dtype(), tensor.shape()) {
            return Err(fail(format!(
                "is {} {:?}, announced was {} {:?}",
                tensor.dtype(),
                tensor.shape(),
                info.dtype,
                info.shape
            )));
        }
        if !self.missing.remove(name) {
            return Err(Error::tensor(&self.path, name, "is written twice"));
        }
        let start = self.data_start + info.offsets.0 as u64;
        let mut file = self.temporary.as_file();
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.write_all(tensor.data()))
            .map_err(|e| Error::tensor(&self.path, name, e))
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`Error::File`] if a tensor is missing or renaming fails.
    pub fn finish(self) -> Result<()> {
        if let Some(name) = self.header.names().iter().find(|name| self.missing.contains(*name)) {
            return Err(Error::tensor(&self.path, name, "was announced and never written"));
        }
        self.temporary.persist().map_err(|e| Error::file(&self.path, e))
    }
}

fn blame(path: &Path, fault: HeaderFault) -> Error {
    Error::File { path: path.to_owned(), tensor: fault.tensor, message: fault.message }
}

/// Writes a whole safetensors file; see [`TensorWriter`] for the order of the tensors.
///
/// # Errors
/// [`Error::File`] if the folder cannot be written or the names are not distinct.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let plan = tensors.iter().map(|(name, t)| (name.clone(), t.dtype(), t.shape().to_vec())).collect();
    let mut out = TensorWriter::create(path, plan, None)?;
    tensors.iter().try_for_each(|(name, tensor)| out.put(name, tensor))?;
    out.finish()
}

/// Calls `fill` on a temporary file beside `path`, then renames it to `path`.
///
/// # Errors
/// [`Error::File`] if creating, writing or renaming fails; the temporary file is gone then.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let fail = |e: std::io::Error| Error::file(path, e);
    let temporary = Temporary::beside(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut out).and_then(|()| out.flush()).map_err(fail)?;
    drop(out);
    temporary.persist().map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::super::TensorFile;
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn bytes(values: &[u8]) -> Tensor {
        Tensor::new(Dtype::U8, vec![values.len()], values.to_vec()).unwrap()
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
        write_tensors(&path, &[("b".into(), bytes(&[1, 2, 3])), ("a".into(), a.unwrap())]).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names(), ["a", "b"]);
        assert_eq!(file.read("a").unwrap().to_f32().unwrap(), [1.5, -2.0]);
        assert_eq!(file.read("b").unwrap().data(), [1, 2, 3]);
        assert!(file.read("c").unwrap_err().to_string().contains("it has a, b"));
        safetensors::SafeTensors::deserialize(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_writer_holds_to_what_was_announced() {
        let dir = folder();
        let path = dir.path().join("x");
        let plan = || vec![("a".to_owned(), Dtype::U8, vec![2]), ("b".to_owned(), Dtype::U8, vec![1])];
        let mut out = TensorWriter::create(&path, plan(), None).unwrap();
        let fault = |r: Result<()>| r.unwrap_err().to_string();
        assert!(fault(out.put("c", &bytes(&[0]))).contains("'c': was not announced"));
        assert!(fault(out.put("a", &bytes(&[0]))).contains("is U8 [1], announced was U8 [2]"));
        out.put("b", &bytes(&[7])).unwrap();
        assert!(fault(out.put("b", &bytes(&[7]))).contains("written twice"));
        assert!(fault(out.finish()).contains("'a': was announced and never written"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let mut out = TensorWriter::create(&path, plan(), None).unwrap();
        out.put("b", &bytes(&[7])).unwrap();
        out.put("a", &bytes(&[8, 9])).unwrap();
        out.finish().unwrap();
        assert_eq!(TensorFile::open(&path).unwrap().read("a").unwrap().data(), [8, 9]);
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
        let dir = folder();
        let path = dir.path().join("x");
        assert!(write_tensors(&path, &[("a".into(), bytes(&[0])), ("a".into(), bytes(&[0]))]).is_err());
        assert!(!path.exists());
    }
}
