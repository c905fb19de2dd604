//! A checkpoint as its tensors are read: one file, with the shards that belong to it, or all files of a folder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::file::TensorFile;
use super::header::TensorInfo;
use super::pairs::Pairs;
use super::tensor::Tensor;
use crate::error::{Error, Result};

/// What the name of an index ends in, and what the names of files do.
const INDEX_END: &str = ".safetensors.index.json";
const FILE_END: &str = ".safetensors";
/// Bytes of the largest index that is read: a hundred for each of a million tensors.
const MAX_INDEX: u64 = 100_000_000;

/// The tensors of a file, or of all files of a folder, and which of them are codes and scales. The other shards of a
/// file's checkpoint are looked into too, so that scales are known as such though their codes lie elsewhere, and are
/// found though they do; they are not among its own tensors.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<TensorFile>,
    /// Files that the checkpoint was opened for; those after them are other shards.
    own: usize,
    place: HashMap<String, usize>,
    names: Vec<String>,
    pairs: Pairs,
    duplicates: Vec<String>,
    missing: Vec<String>,
}

/// The file of each tensor, as an index says it.
type Index = BTreeMap<String, String>;

impl Checkpoint {
    /// Opens a file, or the safetensors files of a folder.
    ///
    /// The shards of a file are those of an index (`*.safetensors.index.json`) in its folder that lists it, or without one
    /// its siblings `NAME-00001-of-00009.safetensors`.
    ///
    /// # Errors
    /// [`Error::File`] as [`TensorFile::open`], and for a folder without such files. A shard beside the file that cannot be
    /// read is as if it were not there.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !path.is_dir() {
            let file = TensorFile::open(&path)?;
            let (shards, index) = shards_beside(&path);
            let shards = shards.into_iter().filter_map(|p| TensorFile::open(p).ok());
            return Ok(Self::of(path, std::iter::once(file).chain(shards).collect(), 1, &index));
        }
        let listed = listed(&path).map_err(|e| Error::file(&path, e))?;
        let files: Vec<PathBuf> = listed.into_iter().filter(|p| ends_in(p, FILE_END)).collect();
        if files.is_empty() {
            return Err(Error::file(&path, "is a folder without safetensors files"));
        }
        let files = files.into_iter().map(TensorFile::open).collect::<Result<Vec<_>>>()?;
        let index = indexes(&path).into_iter().next().unwrap_or_default();
        let own = files.len();
        Ok(Self::of(path, files, own, &index))
    }

    fn of(path: PathBuf, files: Vec<TensorFile>, own: usize, index: &Index) -> Self {
        let (mut place, mut names, mut duplicates) = (HashMap::new(), Vec::new(), Vec::new());
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                if place.contains_key(name) {
                    duplicates.extend((i < own).then(|| name.clone()));
                    continue;
                }
                place.insert(name.clone(), i);
                names.extend((i < own).then(|| name.clone()));
            }
        }
        let missing: Vec<String> = index.keys().filter(|name| !place.contains_key(*name)).cloned().collect();
        let each = |(i, file): (usize, &TensorFile)| -> Vec<(usize, String)> {
            file.names().iter().map(|name| (i, name.clone())).collect()
        };
        let all: Vec<(usize, String)> = files.iter().enumerate().flat_map(each).collect();
        let there = all.iter().filter(|(i, name)| place[name] == *i);
        let dtype = |i: usize, name: &str| files[i].info(name).ok().map(|info| info.dtype);
        let there = there.map(|(i, name)| (name.as_str(), dtype(*i, name)));
        let pairs = Pairs::of(there.chain(missing.iter().map(|name| (name.as_str(), None))));
        Checkpoint { path, files, own, place, names, pairs, duplicates, missing }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its own tensors: file after file, in the order of their data.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Which tensors are codes and which are scales.
    pub fn pairs(&self) -> &Pairs {
        &self.pairs
    }

    /// The free-form metadata of the (first) file.
    pub fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        self.files[0].metadata()
    }

    /// Names that stand in two of its files.
    pub fn duplicates(&self) -> &[String] {
        &self.duplicates
    }

    /// Names that the index lists and no file has.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Whether a tensor of this name is there, in any shard.
    pub fn contains(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    /// Whether a tensor is one of its own, not of another shard.
    pub fn owns(&self, name: &str) -> bool {
        self.place.get(name).is_some_and(|&i| i < self.own)
    }

    /// What the header says of a tensor.
    ///
    /// # Errors
    /// As [`TensorFile::info`].
    pub fn info(&self, name: &str) -> Result<TensorInfo> {
        self.file(name).info(name)
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn read(&self, name: &str) -> Result<Tensor> {
        self.file(name).read(name)
    }

    /// An error that blames a tensor.
    pub fn blame(&self, tensor: &str, message: impl ToString) -> Error {
        self.file(tensor).blame(tensor, message)
    }

    /// Bytes of all its own tensors.
    pub fn bytes(&self) -> u64 {
        let bytes = |name: &String| self.info(name).map_or(0, |info| info.bytes() as u64);
        self.names.iter().map(bytes).sum()
    }

    /// The file that has a tensor, or would have to.
    fn file(&self, name: &str) -> &TensorFile {
        &self.files[self.place.get(name).copied().unwrap_or(0)]
    }
}

fn ends_in(path: &Path, end: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(end))
}

/// What lies in a folder, sorted.
fn listed(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The indexes that lie in a folder and can be read.
fn indexes(folder: &Path) -> Vec<Index> {
    #[derive(serde::Deserialize)]
    struct File {
        weight_map: Index,
    }
    let small = |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.len() <= MAX_INDEX);
    let read = |path: PathBuf| serde_json::from_slice::<File>(&std::fs::read(path).ok()?).ok();
    let paths = listed(folder).unwrap_or_default().into_iter().filter(|p| ends_in(p, INDEX_END));
    paths.filter(small).filter_map(read).map(|file| file.weight_map).collect()
}

/// The other shards of the checkpoint that a file is one of, and its index.
fn shards_beside(path: &Path) -> (Vec<PathBuf>, Index) {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Default::default() };
    if let Some(index) = indexes(folder).into_iter().find(|index| index.values().any(|file| file == name)) {
        // A name with a separator would lead out of the folder.
        let beside = |file: &&String| *file != name && Path::new(file).components().count() == 1;
        let files: BTreeSet<&String> = index.values().filter(beside).collect();
        let shards = files.into_iter().map(|file| folder.join(file)).collect();
        return (shards, index);
    }
    let Some((stem, of)) = numbered(name) else { return Default::default() };
    let sibling = |p: &PathBuf| {
        let other = p.file_name().and_then(|other| other.to_str());
        other.is_some_and(|other| other != name && numbered(other) == Some((stem, of)))
    };
    (listed(folder).unwrap_or_default().into_iter().filter(sibling).collect(), Index::new())
}

/// Stem and count of `STEM-00001-of-00009.safetensors`.
fn numbered(name: &str) -> Option<(&str, &str)> {
    let (rest, of) = name.strip_suffix(FILE_END)?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(of) && digits(number)).then_some((stem, of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Dtype, Part, write_tensors};

    fn tensor(dtype: Dtype, shape: &[usize]) -> Tensor {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        Tensor::new(dtype, shape.to_vec(), vec![0; bytes]).unwrap()
    }

    fn write(folder: &Path, file: &str, tensors: &[(&str, Dtype)]) {
        let tensors: Vec<_> = tensors.iter().map(|(n, d)| ((*n).to_owned(), tensor(*d, &[2, 2]))).collect();
        write_tensors(&folder.join(file), &tensors).unwrap();
    }

    #[test]
    fn scales_are_known_though_their_codes_lie_in_another_shard() {
        let dir = tempfile::tempdir().unwrap();
        let name = |i: usize| format!("model-0000{i}-of-00003.safetensors");
        write(dir.path(), &name(1), &[("a.weight", Dtype::F8_E4M3), ("b.weight_scale_inv", Dtype::F32)]);
        write(dir.path(), &name(2), &[("b.weight", Dtype::F8_E4M3), ("a.weight_scale_inv", Dtype::F32)]);
        let check = || {
            let first = Checkpoint::open(dir.path().join(name(1))).unwrap();
            assert_eq!(first.pairs().owner("b.weight_scale_inv"), Some(("b.weight", Part::Block)));
            assert_eq!(first.pairs().partners("a.weight")[0].name, "a.weight_scale_inv");
            assert!(first.contains("b.weight") && !first.owns("b.weight"));
            assert_eq!(first.names().len(), 2);
            first
        };
        check();
        // The same by an index; a shard that is not there is known by name.
        std::fs::rename(dir.path().join(name(2)), dir.path().join("away")).unwrap();
        let alone = Checkpoint::open(dir.path().join(name(1))).unwrap();
        assert_eq!(alone.pairs().owner("b.weight_scale_inv"), None);
        let index = serde_json::json!({"weight_map": {
            "a.weight": name(1), "b.weight_scale_inv": name(1), "b.weight": name(2), "a.weight_scale_inv": name(2),
        }});
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let indexed = Checkpoint::open(dir.path().join(name(1))).unwrap();
        assert_eq!(indexed.pairs().owner("b.weight_scale_inv"), Some(("b.weight", Part::Block)));
        assert_eq!(indexed.missing().len(), 2);
        std::fs::rename(dir.path().join("away"), dir.path().join(name(2))).unwrap();
        assert!(check().missing().is_empty());

        let folder = Checkpoint::open(dir.path()).unwrap();
        assert_eq!((folder.names().len(), folder.duplicates().len()), (4, 0));
        write(dir.path(), &name(3), &[("a.weight", Dtype::F8_E4M3)]);
        assert_eq!(Checkpoint::open(dir.path()).unwrap().duplicates(), ["a.weight"]);
    }
}
