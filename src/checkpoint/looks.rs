//! What a file that is no safetensors file looks like: downloads go wrong in a few well-known ways.

/// The first bytes of files of a kind, and what to call it.
const MAGIC: &[(&[u8], &str)] = &[
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file it stands for"),
    (b"/annex/objects/", "a git-annex pointer; `git annex get` fetches the file it stands for"),
    (b"PK\x03\x04", "a zip archive, as PyTorch's .pt and .bin files (pickle) and numpy's .npz are"),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"lmgg", "a GGML file (llama.cpp)"),
    (b"tjgg", "a GGML file (llama.cpp)"),
    (b"\x93NUMPY", "a numpy array (.npy)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write them"),
    (b"\x1f\x8b", "gzip data; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data; unpack it first"),
    (b"\xfd7zXZ", "xz data; unpack it first"),
    (b"\x7fELF", "an executable"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
];
const PICKLE: &str = "a Python pickle, as old PyTorch files are";
/// Where the archives of `tar` say what they are.
const TAR: (usize, &[u8]) = (257, b"ustar");

/// Bytes of a file's beginning that are looked at.
pub(super) const LOOKED_AT: usize = 512;

/// What a file that begins so looks like, if it is anything well known.
pub(super) fn looks_like(beginning: &[u8]) -> Option<&'static str> {
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| beginning.starts_with(magic)) {
        return Some(what);
    }
    if beginning.get(TAR.0..).is_some_and(|rest| rest.starts_with(TAR.1)) {
        return Some("a tar archive; unpack it first");
    }
    let plain = |b: &u8| b.is_ascii_graphic() || b.is_ascii_whitespace() || *b >= 0x80;
    let text = beginning.trim_ascii_start();
    if text.len() < 2 || !beginning.iter().take(64).all(plain) {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    Some(match lower.as_slice() {
        html if [&b"<!doctype"[..], b"<html", b"<head"].iter().any(|tag| html.starts_with(tag)) => {
            "HTML: the page of a web site, not the file behind it"
        }
        [b'<', ..] => "XML, perhaps the error message of a server",
        [b'{' | b'[', ..] => "JSON: the index of a checkpoint, or the error message of a server",
        _ => "text",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_files_are_named() {
        for (beginning, word) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00"[..], "Git LFS"),
            (b"PK\x03\x04\x00\x00", "pickle"),
            (b"\x80\x02\x8a\x0a", "pickle"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"\n <!DOCTYPE html><html>", "HTML"),
            (b"<HTML lang=en>", "HTML"),
            (b"<?xml version='1.0'?><Error>", "XML"),
            (b"{\"error\": \"not found\"}", "JSON"),
            (b"Entry not found", "text"),
        ] {
            assert!(looks_like(beginning).unwrap().contains(word), "{word}");
        }
        let mut tar = vec![0; 300];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(looks_like(&tar).unwrap().contains("tar"));
        assert_eq!(looks_like(b"{\0\0\0\0\0\0\0{}"), None);
        assert_eq!(looks_like(b""), None);
    }
}
