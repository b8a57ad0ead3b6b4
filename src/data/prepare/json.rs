//! JSON as Python's `json` module writes it, with the bare words `NaN`, `Infinity` and `-Infinity`, and as tools on
//! Windows do, with a byte order mark.

use std::io::{self, Read};

/// Passes JSON through, with each of the three words replaced by `null`, which keeps the rest readable by a strict
/// parser. Capital N and I start nothing in JSON outside of strings, so valid JSON passes unchanged. A UTF-8 byte order mark
/// at the start is left out.
pub struct PythonJson<R> {
    inner: R,
    buffer: Vec<u8>,
    /// Translated bytes that did not fit into the caller's buffer, and how many of them were handed out.
    pending: Vec<u8>,
    taken: usize,
    state: State,
    /// A minus sign held back until it is known whether a number follows.
    minus: bool,
    /// How many bytes of the mark were met at the start; `None` once something else was.
    mark: Option<usize>,
}

const MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

#[derive(Clone, Copy, PartialEq)]
enum State {
    Plain,
    Text,
    Escape,
    Word,
}

impl<R: Read> PythonJson<R> {
    pub fn new(inner: R) -> Self {
        PythonJson {
            inner,
            buffer: vec![0; 1 << 16],
            pending: Vec::with_capacity(1 << 16),
            taken: 0,
            state: State::Plain,
            minus: false,
            mark: Some(0),
        }
    }

    fn translate(&mut self, length: usize) {
        for &byte in &self.buffer[..length] {
            if let Some(met) = self.mark {
                if MARK.get(met) == Some(&byte) {
                    self.mark = Some(met + 1);
                    continue;
                }
                // Part of a mark alone is no text: it is passed on, for the parser to refuse.
                self.pending.extend_from_slice(if met < MARK.len() { &MARK[..met] } else { &[] });
                self.mark = None;
            }
            if self.state == State::Word {
                if byte.is_ascii_alphabetic() {
                    continue;
                }
                self.state = State::Plain;
            }
            match (self.state, byte) {
                (State::Plain, b'N' | b'I') => {
                    self.minus = false;
                    self.pending.extend_from_slice(b"null");
                    self.state = State::Word;
                    continue;
                }
                (State::Plain, b'"') => self.state = State::Text,
                (State::Text, b'"') => self.state = State::Plain,
                (State::Text, b'\\') => self.state = State::Escape,
                (State::Escape, _) => self.state = State::Text,
                _ => {}
            }
            if std::mem::take(&mut self.minus) {
                self.pending.push(b'-');
            }
            if self.state == State::Plain && byte == b'-' {
                self.minus = true;
            } else {
                self.pending.push(byte);
            }
        }
    }
}

impl<R: Read> Read for PythonJson<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.pending.len() {
            self.pending.clear();
            self.taken = 0;
            let length = self.inner.read(&mut self.buffer)?;
            if length == 0 {
                if std::mem::take(&mut self.minus) {
                    self.pending.push(b'-');
                    break;
                }
                return Ok(0);
            }
            self.translate(length);
        }
        let count = out.len().min(self.pending.len() - self.taken);
        out[..count].copy_from_slice(&self.pending[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out one byte at a time, so that every word is cut at every place.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.0.read(&mut out[..1])
        }
    }

    #[test]
    fn only_bare_words_become_null() {
        let text = r#"{"NaN \" -Infinity": [NaN, -Infinity, Infinity, -1.5e-3, "\\", NaN], "I": "N-"} -"#;
        let want = r#"{"NaN \" -Infinity": [null, null, null, -1.5e-3, "\\", null], "I": "N-"} -"#;
        let mut whole = String::new();
        PythonJson::new(text.as_bytes()).read_to_string(&mut whole).unwrap();
        assert_eq!(whole, want);
        let mut dripped = String::new();
        PythonJson::new(Drip(text.as_bytes())).read_to_string(&mut dripped).unwrap();
        assert_eq!(dripped, want);
        for (text, want) in [("\u{feff}{\"a\": 1}", "{\"a\": 1}"), ("\"\u{feff}\"", "\"\u{feff}\"")] {
            let mut read = String::new();
            PythonJson::new(Drip(text.as_bytes())).read_to_string(&mut read).unwrap();
            assert_eq!(read, want);
        }
    }
}
