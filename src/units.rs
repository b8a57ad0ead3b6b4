//! One way to write bytes, counts, durations and file names for people.

use std::fmt::Write;
use std::path::Path;

/// `bytes` in binary units with three significant digits: `512 B`, `1.50 GiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    scaled(bytes as f64 / 1024.0, 1024.0, &UNITS)
}

/// `count` with three significant digits: `999`, `65.5 k`, `5.52 M`.
pub fn human_count(count: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if count < 1000 {
        return count.to_string();
    }
    scaled(count as f64 / 1000.0, 1000.0, &UNITS)
}

/// `value` in the largest of `units` (each `base` times the one before) that keeps it at or above one.
fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    // 999.5 would be printed as 1000: it belongs to the next unit.
    while value >= base.min(999.5) && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {}", units[unit])
}

/// Wall-clock `seconds` at the precision a reader needs: `412 us`, `3.21 s`, `9 min 27 s`, `2 h 05 min`, `3 d 04 h`.
pub fn human_duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "n/a".to_owned();
    }
    // Units are chosen on the rounded value: 59.996 s is one minute, not "60.0 s".
    match seconds {
        0.0 => "0 s".to_owned(),
        s if s < 0.9995e-3 => format!("{:.0} us", s * 1e6),
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 59.95 => format!("{s:.1} s"),
        s if s < 3599.5 => pair(s.round() as u64, 60, ["min", "s"]),
        s if s < 86_370.0 => pair((s / 60.0).round() as u64, 60, ["h", "min"]),
        s => pair((s / 3600.0).round() as u64, 24, ["d", "h"]),
    }
}

fn pair(total: u64, base: u64, units: [&str; 2]) -> String {
    format!("{} {} {:02} {}", total / base, units[0], total % base, units[1])
}

/// The median of `values`, which are sorted: the middle one, or the mean of the two in the middle. NaN without any.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => values[middle - 1].midpoint(values[middle]),
    }
}

/// `count` with thousands separators: `1,234,567`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `path` as text that tells any two paths apart and is safe on a terminal: a byte that is no UTF-8, or a control
/// character, is written `\xNN`. A backslash is doubled only where it would read as part of such an escape.
pub fn shown(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let escaped = |c: char| c.is_control() || c == '\\';
        let mut rest = chunk.valid();
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            let before_escape = match rest.chars().next() {
                Some(next) => escaped(next) || is_escape(rest),
                None => !chunk.invalid().is_empty(),
            };
            match c {
                '\\' if before_escape => out.push_str("\\\\"),
                c if c.is_control() => escape(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => out.push(c),
            }
        }
        escape(&mut out, chunk.invalid());
    }
    out
}

/// `bytes` of a text file without the UTF-8 byte order mark that tools on Windows write.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

fn is_escape(text: &str) -> bool {
    matches!(text.as_bytes(), [b'x', a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
}

fn escape(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(out, "\\x{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_even_counts_lie_between() {
        assert_eq!(median(&mut [3.0]), 3.0);
        assert_eq!(median(&mut [9.0, 1.0]), 5.0);
        assert_eq!(median(&mut [5.0, 1.0, 100.0]), 5.0);
        assert_eq!(median(&mut [8.0, 2.0, 100.0, 4.0]), 6.0);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn units() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1024), "1.00 KiB");
        assert_eq!(human_bytes(1_610_612_736), "1.50 GiB");
        assert_eq!(human_bytes(u64::MAX), "16.0 EiB");
        assert_eq!(human_count(999), "999");
        assert_eq!(human_count(65_536), "65.5 k");
        assert_eq!(human_count(999_999), "1.00 M");
        assert_eq!(human_duration(4.12e-4), "412 us");
        assert_eq!(human_duration(59.99), "1 min 00 s");
        assert_eq!(human_duration(567.0), "9 min 27 s");
        assert_eq!(human_duration(7500.0), "2 h 05 min");
        assert_eq!(human_duration(86_399.0), "1 d 00 h");
        assert_eq!(human_duration(f64::NAN), "n/a");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(123), "123");
    }

    #[cfg(unix)]
    #[test]
    fn paths_are_told_apart_whatever_their_bytes() {
        use std::collections::HashSet;
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let text = |bytes: &[u8]| shown(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(text("straße/ü 1.jpg".as_bytes()), "straße/ü 1.jpg");
        assert_eq!(text(b"a\\b.jpg"), "a\\b.jpg");
        assert_eq!(text(b"m\xfcller\n\x1b[31m.jpg"), r"m\xFCller\x0A\x1B[31m.jpg");
        // Every string of up to five of these, none written like another.
        let parts: [&[u8]; 6] = [b"\\", b"\xff", b"x", b"F", b"\n", "ü".as_bytes()];
        let (mut all, mut last) = (HashSet::new(), vec![Vec::new()]);
        for _ in 0..5 {
            last = last.iter().flat_map(|s| parts.map(|p| [s.as_slice(), p].concat())).collect();
            for bytes in &last {
                assert!(all.insert(text(bytes)), "{bytes:?}");
            }
        }
    }
}
