//! Names that are values: copied with what they name, whether from the source or made at run time.
#![forbid(unsafe_code)]

use crate::error::{Error, Result};

/// A short text without a heap: the name of a recipe or of a tensor core.
///
/// ```
/// use finegrain::name::Name;
/// const V3: Name = Name::literal("deepseek-v3");
/// assert_eq!(V3, "deepseek-v3");
/// assert_eq!(Name::new(&format!("tiles-of-{}", 64))?.as_str(), "tiles-of-64");
/// assert!(Name::new(&"x".repeat(64)).unwrap_err().to_string().contains("64 bytes, at most 63"));
/// # Ok::<(), finegrain::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    /// Valid UTF-8 up to `len`, zeros beyond.
    bytes: [u8; Name::MAX],
    len: u8,
}

impl Name {
    /// The most bytes that a name may have.
    pub const MAX: usize = 63;

    /// A name made at run time.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is longer than [`Name::MAX`].
    pub fn new(text: &str) -> Result<Self> {
        Name::fitting(text).ok_or_else(|| {
            Error::Invalid(format!("the name '{text}' has {} bytes, at most {} fit", text.len(), Name::MAX))
        })
    }

    /// A name in the source.
    ///
    /// # Panics
    /// If it is longer than [`Name::MAX`]: at compile time in a constant.
    pub const fn literal(text: &'static str) -> Self {
        Name::fitting(text).expect("a name has at most 63 bytes")
    }

    const fn fitting(text: &str) -> Option<Self> {
        if text.len() > Name::MAX {
            return None;
        }
        let mut bytes = [0; Name::MAX];
        bytes.split_at_mut(text.len()).0.copy_from_slice(text.as_bytes());
        Some(Name { bytes, len: text.len() as u8 })
    }

    /// The text.
    pub const fn as_str(&self) -> &str {
        match std::str::from_utf8(self.bytes.split_at(self.len as usize).0) {
            Ok(text) => text,
            Err(_) => unreachable!(),
        }
    }
}

impl std::ops::Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self)
    }
}

impl std::str::FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Name::new(text)
    }
}

impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

/// For a type with a list `ALL` whose members have a `name()`: [`FromStr`](std::str::FromStr) looks the name up,
/// [`Display`](std::fmt::Display) prints it.
macro_rules! by_name {
    ($type:ty, $kind:literal) => {
        impl std::str::FromStr for $type {
            type Err = $crate::error::Error;

            /// Looks the name up.
            fn from_str(name: &str) -> $crate::error::Result<Self> {
                let found = <$type>::ALL.iter().find(|x| x.name() == name);
                let known = || <$type>::ALL.iter().map(|x| x.name());
                found.copied().ok_or_else(|| $crate::error::Error::unknown($kind, name, known()))
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
pub(crate) use by_name;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_their_text() {
        for text in ["", "te", "größe", &"n".repeat(63)] {
            let name = Name::new(text).unwrap();
            assert_eq!(
                (name.as_str(), name.to_string().as_str(), format!("{name:?}")),
                (text, text, format!("{text:?}"))
            );
            assert_eq!(name, text.parse::<Name>().unwrap());
        }
        assert_ne!(Name::new("te").unwrap(), Name::new("te\0").unwrap());
        assert_eq!(format!("[{:4}]", Name::literal("te")), "[te  ]");
    }
}
