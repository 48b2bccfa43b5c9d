//! Reads JSON straight from the bytes into borrowed fields, and writes it; no value tree.
//!
//! The reader is strict (RFC 8259), bounded in nesting, and never recurses deeper than that
//! bound. Numbers stay text: whoever knows the unit makes an exact integer of it
//! ([`super::decimal`]).

use std::borrow::Cow;

/// Why a text is not acceptable JSON, and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonError {
    /// What is wrong.
    pub kind: JsonErrorKind,
    /// Byte position in the text.
    pub position: usize,
}

/// What is wrong with a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonErrorKind {
    /// It breaks RFC 8259, or ends early.
    Malformed,
    /// It nests deeper than the reader allows.
    TooDeep,
    /// The value is of another type than the field wants.
    WrongType,
}

/// The type of the value that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// `-` or a digit
    Number,
    /// `true` or `false`
    Bool,
    /// `null`
    Null,
}

/// The result of a read.
pub type JsonResult<T> = Result<T, JsonError>;

/// A pull reader over one JSON text.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    text: &'a str,
    position: usize,
    depth: u32,
    depth_max: u32,
}

impl<'a> Reader<'a> {
    /// Reads `text`, refusing nesting deeper than `depth_max` objects and arrays.
    #[must_use]
    pub fn new(text: &'a str, depth_max: u32) -> Self {
        Self {
            text,
            position: 0,
            depth: 0,
            depth_max,
        }
    }

    fn error<T>(&self, kind: JsonErrorKind) -> JsonResult<T> {
        Err(JsonError {
            kind,
            position: self.position,
        })
    }

    fn malformed<T>(&self) -> JsonResult<T> {
        self.error(JsonErrorKind::Malformed)
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte() {
            self.position += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> JsonResult<()> {
        if self.byte() == Some(byte) {
            self.position += 1;
            Ok(())
        } else {
            self.malformed()
        }
    }

    /// The type of the next value.
    pub fn peek(&mut self) -> JsonResult<Kind> {
        self.skip_space();
        match self.byte() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            _ => self.malformed(),
        }
    }

    fn want(&mut self, kind: Kind) -> JsonResult<()> {
        if self.peek()? == kind {
            Ok(())
        } else {
            self.error(JsonErrorKind::WrongType)
        }
    }

    fn descend(&mut self) -> JsonResult<()> {
        self.depth += 1;
        if self.depth > self.depth_max {
            return self.error(JsonErrorKind::TooDeep);
        }
        self.position += 1;
        Ok(())
    }

    /// Reads an object, handing each key to `field`, which must consume the value.
    pub fn object<E: From<JsonError>>(
        &mut self,
        mut field: impl FnMut(&mut Self, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        self.want(Kind::Object)?;
        self.descend()?;
        self.skip_space();
        if self.byte() == Some(b'}') {
            self.position += 1;
            self.depth -= 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            if self.byte() != Some(b'"') {
                return Ok(self.malformed()?);
            }
            let key = self.string()?;
            self.skip_space();
            self.expect(b':')?;
            field(self, &key)?;
            self.skip_space();
            match self.byte() {
                Some(b',') => self.position += 1,
                Some(b'}') => break,
                _ => return Ok(self.malformed()?),
            }
        }
        self.position += 1;
        self.depth -= 1;
        Ok(())
    }

    fn array(&mut self) -> JsonResult<()> {
        self.descend()?;
        self.skip_space();
        if self.byte() == Some(b']') {
            self.position += 1;
            self.depth -= 1;
            return Ok(());
        }
        loop {
            self.skip()?;
            self.skip_space();
            match self.byte() {
                Some(b',') => self.position += 1,
                Some(b']') => break,
                _ => return self.malformed(),
            }
        }
        self.position += 1;
        self.depth -= 1;
        Ok(())
    }

    /// Reads a string; borrowed unless it holds an escape.
    pub fn string(&mut self) -> JsonResult<Cow<'a, str>> {
        // Most often it follows at once.
        if self.byte() != Some(b'"') {
            self.want(Kind::String)?;
        }
        self.position += 1;
        let start = self.position;
        self.position += plain_len(&self.text.as_bytes()[start..]);
        match self.byte() {
            Some(b'"') => {
                let text = &self.text[start..self.position];
                self.position += 1;
                Ok(Cow::Borrowed(text))
            }
            Some(b'\\') => self.escaped_string(start).map(Cow::Owned),
            _ => self.malformed(),
        }
    }

    fn escaped_string(&mut self, start: usize) -> JsonResult<String> {
        let mut out = String::from(&self.text[start..self.position]);
        loop {
            let plain = self.position;
            while !matches!(self.byte(), Some(b'"' | b'\\' | 0..=0x1f) | None) {
                self.position += 1;
            }
            out.push_str(&self.text[plain..self.position]);
            match self.byte() {
                Some(b'"') => {
                    self.position += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.position += 1;
                    out.push(self.escape()?);
                }
                _ => return self.malformed(),
            }
        }
    }

    fn escape(&mut self) -> JsonResult<char> {
        let Some(byte) = self.byte() else {
            return self.malformed();
        };
        self.position += 1;
        Ok(match byte {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return self.malformed(),
        })
    }

    fn unicode_escape(&mut self) -> JsonResult<char> {
        let high = self.hex4()?;
        let code = if (0xd800..0xdc00).contains(&high) {
            self.expect(b'\\')?;
            self.expect(b'u')?;
            let low = self.hex4()?;
            if !(0xdc00..0xe000).contains(&low) {
                return self.malformed();
            }
            0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)
        } else {
            high
        };
        // A lone low surrogate is no character.
        char::from_u32(code).map_or_else(|| self.malformed(), Ok)
    }

    fn hex4(&mut self) -> JsonResult<u32> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.byte().and_then(|b| char::from(b).to_digit(16)) else {
                return self.malformed();
            };
            code = code * 16 + digit;
            self.position += 1;
        }
        Ok(code)
    }

    /// Reads a number as its text.
    pub fn number(&mut self) -> JsonResult<&'a str> {
        self.want(Kind::Number)?;
        let start = self.position;
        if self.byte() == Some(b'-') {
            self.position += 1;
        }
        if self.byte() == Some(b'0') {
            self.position += 1;
        } else {
            self.digits()?;
        }
        if self.byte() == Some(b'.') {
            self.position += 1;
            self.digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.position += 1;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.position += 1;
            }
            self.digits()?;
        }
        Ok(&self.text[start..self.position])
    }

    fn digits(&mut self) -> JsonResult<()> {
        let start = self.position;
        while matches!(self.byte(), Some(b'0'..=b'9')) {
            self.position += 1;
        }
        if self.position == start {
            self.malformed()
        } else {
            Ok(())
        }
    }

    fn literal(&mut self) -> JsonResult<()> {
        let rest = &self.text.as_bytes()[self.position..];
        for word in [b"true".as_slice(), b"false", b"null"] {
            if rest.starts_with(word) {
                self.position += word.len();
                return Ok(());
            }
        }
        self.malformed()
    }

    /// Consumes `null` if that comes next.
    #[inline]
    pub fn null(&mut self) -> JsonResult<bool> {
        if self.byte() == Some(b'"') {
            return Ok(false);
        }
        if self.peek()? == Kind::Null {
            self.literal().map(|()| true)
        } else {
            Ok(false)
        }
    }

    /// Passes over one value of any type, checking it whole.
    pub fn skip(&mut self) -> JsonResult<()> {
        match self.peek()? {
            Kind::Object => self.object::<JsonError>(|reader, _| reader.skip()),
            Kind::Array => self.array(),
            Kind::String => self.string().map(drop),
            Kind::Number => self.number().map(drop),
            Kind::Bool | Kind::Null => self.literal(),
        }
    }

    /// Makes sure that nothing but white space is left.
    pub fn end(&mut self) -> JsonResult<()> {
        self.skip_space();
        if self.position == self.text.len() {
            Ok(())
        } else {
            self.malformed()
        }
    }
}

/// How many bytes from the start stand for themselves in a JSON string: no quote, no backslash, no
/// control character.
fn plain_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk() {
        let found = special_in(*word);
        if found != 0 {
            return at + first_byte(found);
        }
        at += 8;
    }
    match bytes.last_chunk() {
        // The last word overlaps what is known to be plain.
        Some(word) if at < bytes.len() => {
            let found = special_in(*word);
            let last = bytes.len() - 8;
            if found == 0 {
                bytes.len()
            } else {
                last + first_byte(found)
            }
        }
        Some(_) => at,
        None => {
            let is_special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
            bytes.iter().position(is_special).unwrap_or(bytes.len())
        }
    }
}

/// The top bit of every byte that is special, found out for eight bytes at once: a byte that equals
/// or lies below a bound borrows from its top bit when the bound is taken off it. Behind the first
/// one found there may be false ones.
fn special_in(word: [u8; 8]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let word = u64::from_le_bytes(word);
    let zero_in = |word: u64| word.wrapping_sub(ONES) & !word;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = zero_in(word ^ (ONES * b'"' as u64));
    let backslash = zero_in(word ^ (ONES * b'\\' as u64));
    (control | quote | backslash) & TOPS
}

fn first_byte(found: u64) -> usize {
    found.trailing_zeros() as usize / 8
}

/// Whether every byte stands for itself in a JSON string.
fn is_plain(bytes: &[u8]) -> bool {
    // Blocks of a known size, and no way out of them: the compiler compares all bytes at once. The
    // last block overlaps the one before.
    let all = |block: &[u8; 16]| {
        let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
        !block
            .iter()
            .fold(false, |found, byte| found | special(*byte))
    };
    if let Some(last) = bytes.last_chunk() {
        bytes.as_chunks().0.iter().all(all) && all(last)
    } else if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        special_in(*first) | special_in(*last) == 0
    } else {
        plain_len(bytes) == bytes.len()
    }
}

/// Appends `text` as a JSON string, quotes included.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    write_inside(out, text);
    out.push(b'"');
}

/// Appends `,"name":"text"`; the name stands for itself.
// With the name known, all that stands before the text is put down at once.
#[inline(always)]
pub fn write_text_field(out: &mut Vec<u8>, name: &'static str, text: &str) {
    const LONGEST: usize = 40;
    let (mut head, end) = ([b'"'; LONGEST + 5], name.len() + 5);
    head[0] = b',';
    head[2..end - 3].copy_from_slice(name.as_bytes());
    head[end - 2] = b':';
    out.extend_from_slice(&head[..end]);
    write_inside(out, text);
    out.push(b'"');
}

fn write_inside(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        write_escaped(out, bytes);
    }
}

#[cold]
fn write_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
            _ => out.push(byte),
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// A hash in lower-case hexadecimal digits.
#[must_use]
pub fn hex(hash: &[u8; 32]) -> [u8; 64] {
    let mut text = [0; 64];
    // Four bytes at a time: their nibbles are spread over the bytes of a word, and become digits side
    // by side.
    let fours = hash.as_chunks::<4>().0.iter();
    for (four, digits) in fours.zip(text.as_chunks_mut::<8>().0) {
        let word = u64::from(u32::from_le_bytes(*four));
        let pairs = (word | word << 16) & 0x0000_ffff_0000_ffff;
        let bytes = (pairs | pairs << 8) & 0x00ff_00ff_00ff_00ff;
        let nibbles = (bytes >> 4 & 0x000f_000f_000f_000f) | (bytes & 0x000f_000f_000f_000f) << 8;
        let letters = (nibbles + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
        let ascii = nibbles + ASCII_ZEROS + letters * u64::from(b'a' - b'9' - 1);
        *digits = ascii.to_le_bytes();
    }
    text
}

/// Appends a whole number.
#[inline]
pub fn write_int(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    write_digits(out, value.unsigned_abs());
}

/// Appends an unsigned whole number.
#[inline]
pub fn write_digits(out: &mut Vec<u8>, value: u64) {
    if value < 10 {
        out.push(ASCII_ZEROS.to_le_bytes()[0] | value.to_le_bytes()[0]);
    } else {
        write_long(out, value);
    }
}

fn write_long(out: &mut Vec<u8>, value: u64) {
    const EIGHT: u64 = 100_000_000;
    if value < EIGHT {
        let digits = eight_digits(value);
        // The first digit lies lowest.
        let zeros = digits.trailing_zeros() / 8;
        let end = out.len() + 8 - zeros as usize;
        let text = (digits | ASCII_ZEROS) >> (8 * zeros);
        out.extend_from_slice(&text.to_le_bytes());
        out.truncate(end);
    } else {
        write_digits(out, value / EIGHT);
        let text = eight_digits(value % EIGHT) | ASCII_ZEROS;
        out.extend_from_slice(&text.to_le_bytes());
    }
}

const ASCII_ZEROS: u64 = 0x3030_3030_3030_3030;

/// The eight decimal digits of a number below 10^8, one a byte, the first lowest: halves are taken
/// apart side by side in one register.
fn eight_digits(value: u64) -> u64 {
    let fours = (value / 10_000) | ((value % 10_000) << 32);
    // x * 10486 >> 20 is x / 100 for every x below 10^4.
    let hundreds = ((fours * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let twos = hundreds | ((fours - 100 * hundreds) << 16);
    // x * 103 >> 10 is x / 10 for every x below 100.
    let tens = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | ((twos - 10 * tens) << 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepts(text: &str) -> JsonResult<()> {
        let mut reader = Reader::new(text, 32);
        reader.skip()?;
        reader.end()
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn every_digit_of_four_is_right() {
        for value in 0..10_000_u64 {
            let mut out = Vec::new();
            write_digits(&mut out, value * 10_000 + value);
            write_digits(&mut out, value);
            let want = format!("{}{value}", value * 10_000 + value);
            assert_eq!(out, want.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_are_written_as_they_read(value: u64, shift in 0u32..64) {
            let mut out = Vec::new();
            write_digits(&mut out, value >> shift);
            prop_assert_eq!(out, (value >> shift).to_string().into_bytes());
        }

        #[test]
        fn reads_what_serde_json_writes(value in json()) {
            prop_assert_eq!(accepts(&value.to_string()), Ok(()));
            prop_assert_eq!(accepts(&serde_json::to_string_pretty(&value).unwrap_or_default()), Ok(()));
        }

        #[test]
        fn a_cut_or_changed_text_agrees_with_serde_json(
            value in json(), at: prop::sample::Index, byte in 0x20u8..0x7f
        ) {
            let mut text = value.to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            if let Ok(text) = String::from_utf8(text) {
                let oracle = serde_json::from_str::<serde::de::IgnoredAny>(&text);
                prop_assert_eq!(accepts(&text).is_ok(), oracle.is_ok(), "{}", text);
                if let Some(cut) = text.get(..at) {
                    let oracle = serde_json::from_str::<serde::de::IgnoredAny>(cut);
                    prop_assert_eq!(accepts(cut).is_ok(), oracle.is_ok(), "{}", cut);
                }
            }
        }

        #[test]
        fn strings_survive_write_and_read(text: String) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            let written = String::from_utf8(out).expect("writes UTF-8");
            prop_assert_eq!(serde_json::from_str::<String>(&written).ok(), Some(text.clone()));
            let read = Reader::new(&written, 1).string().map(Cow::into_owned);
            prop_assert_eq!(read, Ok(text));
        }

        #[test]
        fn escapes_read_as_serde_json_reads_them(text in r#"(\\u[0-9a-fA-F]{4}|\\["\\/bfnrt]|[a-z])*"#) {
            let quoted = format!("\"{text}\"");
            let read = Reader::new(&quoted, 1).string().map(Cow::into_owned).ok();
            prop_assert_eq!(read, serde_json::from_str::<String>(&quoted).ok());
        }

        #[test]
        fn integers_print_as_the_standard_library_prints_them(value: i64) {
            let mut out = Vec::new();
            write_int(&mut out, value);
            prop_assert_eq!(String::from_utf8(out).ok(), Some(value.to_string()));
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(accepts(&deep(32)), Ok(()));
        assert_eq!(
            accepts(&deep(33)).map_err(|e| e.kind),
            Err(JsonErrorKind::TooDeep)
        );
        assert_eq!(
            accepts(&"[".repeat(1_000_000)).map_err(|e| e.kind),
            Err(JsonErrorKind::TooDeep)
        );
    }
}
