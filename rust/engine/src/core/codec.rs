//! State bytes: the small vocabulary in which entities are written to the changelog.

use std::fmt;

/// State bytes that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateError {
    /// They end early.
    Truncated,
    /// Bytes are left over.
    Trailing(usize),
    /// A version that this program does not know.
    Version(u8),
    /// A value that no version of this program writes, or a name that the set-up lacks.
    Invalid(String),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "state bytes end early"),
            Self::Trailing(bytes) => write!(f, "{bytes} bytes are left over behind the state"),
            Self::Version(version) => {
                write!(
                    f,
                    "state version {version} is unknown: a newer program wrote it, so upgrade this one"
                )
            }
            Self::Invalid(what) => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for StateError {}

/// Writes state bytes.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// One byte.
    pub fn byte(&mut self, value: u8) {
        self.out.push(value);
    }

    /// An unsigned integer, seven bits a byte.
    pub fn uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.out.push(value.to_le_bytes()[0]);
    }

    /// A signed integer, small magnitudes short.
    pub fn int(&mut self, value: i64) {
        self.uint((value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned());
    }

    /// A number of things that follow.
    pub fn count(&mut self, count: usize) {
        self.uint(count as u64);
    }

    /// Eight bytes, as they are.
    pub fn fixed64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// Bytes of a length that the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// A text with its length.
    pub fn text(&mut self, text: &str) {
        self.count(text.len());
        self.raw(text.as_bytes());
    }

    /// A text or nothing.
    pub fn optional_text(&mut self, text: Option<&str>) {
        match text {
            Some(text) => {
                self.byte(1);
                self.text(text);
            }
            None => self.byte(0),
        }
    }
}

/// Bytes of the longest integer.
const UINT_BYTES_MAX: usize = 10;

/// Reads state bytes.
///
/// Strictly: what it takes is what [`Writer`] writes, byte for byte, so one state has one spelling.
#[derive(Debug)]
pub struct Decode<'a> {
    bytes: &'a [u8],
}

impl<'a> Decode<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Bytes of a known length.
    ///
    /// # Errors
    /// [`StateError::Truncated`], as of all readers here.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], StateError> {
        let (head, rest) = self
            .bytes
            .split_at_checked(len)
            .ok_or(StateError::Truncated)?;
        self.bytes = rest;
        Ok(head)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`StateError::Truncated`].
    pub fn byte(&mut self) -> Result<u8, StateError> {
        self.raw(1).map(|bytes| bytes[0])
    }

    /// One byte of which only the bits of `known` may be set.
    ///
    /// # Errors
    /// [`StateError::Truncated`], or [`StateError::Invalid`] for other bits.
    pub fn bits(&mut self, known: u8) -> Result<u8, StateError> {
        let bits = self.byte()?;
        if bits & !known == 0 {
            Ok(bits)
        } else {
            Err(StateError::Invalid(format!(
                "flags {bits:#010b} hold more than {known:#010b}"
            )))
        }
    }

    /// A yes or no.
    ///
    /// # Errors
    /// As [`Self::bits`].
    pub fn flag(&mut self) -> Result<bool, StateError> {
        self.bits(1).map(|bit| bit != 0)
    }

    /// An unsigned integer.
    ///
    /// # Errors
    /// [`StateError::Truncated`], or [`StateError::Invalid`] beyond 64 bits and for more bytes than
    /// it takes.
    #[inline]
    pub fn uint(&mut self) -> Result<u64, StateError> {
        // Most are small.
        if let [byte @ 0..0x80, rest @ ..] = self.bytes {
            self.bytes = rest;
            return Ok(u64::from(*byte));
        }
        self.long_uint()
    }

    fn long_uint(&mut self) -> Result<u64, StateError> {
        let mut value = 0;
        for (at, byte) in self.bytes.iter().enumerate().take(UINT_BYTES_MAX) {
            let bits = u64::from(byte & 0x7f);
            if at + 1 == UINT_BYTES_MAX && bits > 1 {
                break;
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                if at > 0 && *byte == 0 {
                    return Err(StateError::Invalid(
                        "an integer has more bytes than it takes".into(),
                    ));
                }
                self.bytes = &self.bytes[at + 1..];
                return Ok(value);
            }
        }
        if self.bytes.len() < UINT_BYTES_MAX {
            return Err(StateError::Truncated);
        }
        Err(StateError::Invalid(
            "an integer has more than 64 bits".into(),
        ))
    }

    /// A signed integer.
    ///
    /// # Errors
    /// As [`Self::uint`].
    #[inline]
    pub fn int(&mut self) -> Result<i64, StateError> {
        let value = self.uint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A number of things that follow, each of at least one byte.
    ///
    /// # Errors
    /// [`StateError::Truncated`] if so many cannot follow.
    pub fn count(&mut self) -> Result<usize, StateError> {
        let count = usize::try_from(self.uint()?).map_err(|_| StateError::Truncated)?;
        if count > self.bytes.len() {
            Err(StateError::Truncated)
        } else {
            Ok(count)
        }
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`StateError::Truncated`].
    pub fn fixed64(&mut self) -> Result<u64, StateError> {
        self.array().map(u64::from_le_bytes)
    }

    /// An array of bytes.
    ///
    /// # Errors
    /// [`StateError::Truncated`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N)?);
        Ok(array)
    }

    /// A text.
    ///
    /// # Errors
    /// [`StateError::Truncated`], or [`StateError::Invalid`] if it is not UTF-8.
    pub fn text(&mut self) -> Result<&'a str, StateError> {
        let len = self.count()?;
        std::str::from_utf8(self.raw(len)?)
            .map_err(|_| StateError::Invalid("a text is not UTF-8".into()))
    }

    /// A text or nothing.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub fn optional_text(&mut self) -> Result<Option<&'a str>, StateError> {
        if self.flag()? {
            self.text().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Makes sure that nothing is left.
    ///
    /// # Errors
    /// [`StateError::Trailing`].
    pub fn end(&self) -> Result<(), StateError> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(StateError::Trailing(self.bytes.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_come_back(u: u64, i: i64, text: String, optional: Option<String>) {
            let mut bytes = Vec::new();
            let mut out = Writer::new(&mut bytes);
            out.uint(u);
            out.int(i);
            out.text(&text);
            out.optional_text(optional.as_deref());
            let mut input = Decode::new(&bytes);
            prop_assert_eq!(input.uint(), Ok(u));
            prop_assert_eq!(input.int(), Ok(i));
            prop_assert_eq!(input.text(), Ok(text.as_str()));
            prop_assert_eq!(input.optional_text(), Ok(optional.as_deref()));
            prop_assert_eq!(input.end(), Ok(()));
        }

        #[test]
        fn any_bytes_end_without_panic(bytes: Vec<u8>) {
            let mut input = Decode::new(&bytes);
            while input.text().is_ok() && input.end().is_err() {}
            let _ = Decode::new(&bytes).uint();
        }
    }
}
