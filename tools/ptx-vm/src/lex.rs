//! Splits PTX text into tokens. Words keep their dots, so an opcode with its modifiers is one token.

use crate::error::{Error, Result};

/// One token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Tok<'a> {
    /// Opcode, directive, register, label or symbol.
    Word(&'a str),
    /// Unsigned integer literal.
    Int(u64),
    /// `0f` literal: the bits of an f32.
    F32(u32),
    /// `0d` or decimal literal: the bits of an f64.
    F64(u64),
    /// String literal without its quotes.
    Str,
    /// One character of punctuation.
    Punct(u8),
}

/// A token and the line it starts on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub tok: Tok<'a>,
    pub line: u32,
}

fn error(line: u32, message: String) -> Error {
    Error::Parse { line, function: String::new(), message }
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.' | b'%')
}

/// Tokenises the whole text.
pub(crate) fn tokenise(text: &str) -> Result<Vec<Token<'_>>> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4);
    let (mut i, mut line) = (0, 1u32);
    while let Some(&c) = bytes.get(i) {
        let next = bytes.get(i + 1).copied();
        match c {
            b'\n' => {
                line += 1;
                i += 1;
            }
            b' ' | b'\t' | b'\r' => i += 1,
            b'/' if next == Some(b'/') => {
                i += bytes[i..].iter().position(|&c| c == b'\n').unwrap_or(bytes.len() - i)
            }
            b'/' if next == Some(b'*') => {
                let end = text.get(i + 2..).and_then(|t| t.find("*/"));
                let end = end.ok_or_else(|| error(line, "comment without end".into()))? + i + 4;
                line += bytes[i..end].iter().filter(|&&c| c == b'\n').count() as u32;
                i = end;
            }
            b'"' => {
                let end = bytes[i + 1..].iter().position(|&c| c == b'"' || c == b'\n');
                let end = end.filter(|&e| bytes[i + 1 + e] == b'"');
                i += end.ok_or_else(|| error(line, "string without end".into()))? + 2;
                out.push(Token { tok: Tok::Str, line });
            }
            b'0'..=b'9' => {
                let end = i + bytes[i..].iter().position(|&c| !is_word(c)).unwrap_or(bytes.len() - i);
                out.push(Token { tok: number(&text[i..end], line)?, line });
                i = end;
            }
            _ if is_word(c) => {
                let end = word_end(bytes, i);
                out.push(Token { tok: Tok::Word(&text[i..end]), line });
                i = end;
            }
            _ if b",;{}[]()<>+-=!|@:*~&".contains(&c) => {
                out.push(Token { tok: Tok::Punct(c), line });
                i += 1;
            }
            _ => {
                let shown = text[i..].chars().next().unwrap_or('?');
                return Err(error(line, format!("unexpected character {shown:?}")));
            }
        }
    }
    Ok(out)
}

/// `::` belongs to a word (`.shared::cta`), a single `:` ends a label.
fn word_end(bytes: &[u8], start: usize) -> usize {
    let mut i = start;
    while let Some(&c) = bytes.get(i) {
        if is_word(c) {
            i += 1;
        } else if c == b':' && bytes.get(i + 1) == Some(&b':') {
            i += 2;
        } else {
            break;
        }
    }
    i
}

fn number(word: &str, line: u32) -> Result<Tok<'_>> {
    let bad = || error(line, format!("malformed number `{word}`"));
    let lower = word.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0f").filter(|h| h.len() == 8) {
        return Ok(Tok::F32(u32::from_str_radix(hex, 16).map_err(|_| bad())?));
    }
    if let Some(hex) = lower.strip_prefix("0d").filter(|h| h.len() == 16) {
        return Ok(Tok::F64(u64::from_str_radix(hex, 16).map_err(|_| bad())?));
    }
    if let Some(hex) = lower.strip_prefix("0x") {
        return Ok(Tok::Int(u64::from_str_radix(hex.trim_end_matches('u'), 16).map_err(|_| bad())?));
    }
    if let Some(bin) = lower.strip_prefix("0b") {
        return Ok(Tok::Int(u64::from_str_radix(bin.trim_end_matches('u'), 2).map_err(|_| bad())?));
    }
    if lower.contains(['.', 'e']) {
        return Ok(Tok::F64(lower.parse::<f64>().map_err(|_| bad())?.to_bits()));
    }
    let digits = lower.trim_end_matches('u');
    let radix = if digits.len() > 1 && digits.starts_with('0') { 8 } else { 10 };
    Ok(Tok::Int(u64::from_str_radix(digits, radix).map_err(|_| bad())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_dots_and_double_colons_but_not_label_colons() {
        let toks: Vec<_> = tokenise("$L1: ld.shared::cta.u32 %r1, [%rd2+-16];").unwrap();
        let words: Vec<_> = toks.iter().map(|t| t.tok).collect();
        assert_eq!(words[0], Tok::Word("$L1"));
        assert_eq!(words[1], Tok::Punct(b':'));
        assert_eq!(words[2], Tok::Word("ld.shared::cta.u32"));
        assert_eq!(words[7], Tok::Punct(b'+'));
        assert_eq!(words[9], Tok::Int(16));
    }

    #[test]
    fn numbers_of_every_form() {
        let get = |s| tokenise(s).map(|t| t[0].tok);
        assert_eq!(get("0f3F800000"), Ok(Tok::F32(0x3f80_0000)));
        assert_eq!(get("0d3FF0000000000000"), Ok(Tok::F64(1f64.to_bits())));
        assert_eq!(get("0xffU"), Ok(Tok::Int(255)));
        assert_eq!(get("1.5"), Ok(Tok::F64(1.5f64.to_bits())));
        assert!(get("12ab").is_err());
    }

    #[test]
    fn lines_are_counted_through_comments() {
        let toks = tokenise("/* a\nb */ x // y\nz").unwrap();
        assert_eq!((toks[0].line, toks[1].line), (2, 3));
        assert!(tokenise("/* open").is_err());
    }
}
