//! One table style for the whole command line.

use std::io::IsTerminal;

use comfy_table::presets::{ASCII_MARKDOWN, UTF8_HORIZONTAL_ONLY};
use comfy_table::{CellAlignment, ContentArrangement, Table};

/// Formats `rows` under `headers`; columns whose cells are numbers (a unit may follow) are right-aligned.
///
/// Box-drawing characters are used when standard output is a terminal in a UTF-8 locale, plain ASCII elsewhere, so
/// that redirected output stays easy to `grep` and `cut`. Missing cells are empty; the text has no final newline.
pub fn table<H: AsRef<str>, R: AsRef<[String]>>(headers: &[H], rows: &[R]) -> String {
    let style = if std::io::stdout().is_terminal() && locale_is_utf8(|name| std::env::var(name).ok()) {
        Style::Unicode
    } else {
        Style::Ascii
    };
    render(headers, rows, style)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Unicode,
    Ascii,
}

fn render<H: AsRef<str>, R: AsRef<[String]>>(headers: &[H], rows: &[R], style: Style) -> String {
    let mut table = Table::new();
    match style {
        Style::Unicode => {
            table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic)
        }
        Style::Ascii => table
            .load_style(ASCII_MARKDOWN)
            .set_content_arrangement(ContentArrangement::Disabled)
            .force_no_tty(),
    };
    table.set_header(headers.iter().map(|h| plain(h.as_ref())).collect::<Vec<_>>());
    for row in rows {
        let cells = (0..headers.len()).map(|i| row.as_ref().get(i).map_or(String::new(), |c| plain(c)));
        table.add_row(cells.collect::<Vec<_>>());
    }
    for index in 0..headers.len() {
        let cells = || rows.iter().filter_map(|row| row.as_ref().get(index)).map(|c| c.trim());
        let numeric = cells().any(is_number) && cells().all(|c| is_number(c) || is_missing(c));
        if let Some(column) = table.column_mut(index).filter(|_| numeric) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Cells may hold file names: a control character must not reach the terminal.
fn plain(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

/// A number such as `-1,234.5e-3`, perhaps with a short unit (`%`, `MiB`, `img/s`) or several of them (`2 h 05 min`).
fn is_number(cell: &str) -> bool {
    let mut words = cell.split_whitespace();
    let Some(first) = words.next() else { return false };
    let digits = first.trim_start_matches(['+', '-', '~']);
    let unit = digits.trim_start_matches(|c: char| c.is_ascii_digit() || ".,_".contains(c));
    let exponent = unit.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i32>().is_ok());
    let is_unit = |w: &str| w.len() <= 6 && !w.contains(|c: char| c.is_ascii_digit());
    digits.starts_with(|c: char| c.is_ascii_digit())
        && (exponent || is_unit(unit))
        && words.all(|w| is_unit(w) || w.bytes().all(|b| b.is_ascii_digit()))
}

fn is_missing(cell: &str) -> bool {
    matches!(cell.to_ascii_lowercase().as_str(), "" | "-" | "—" | "n/a" | "nan" | "inf" | "-inf")
}

/// The first of LC_ALL, LC_CTYPE and LANG that is set decides, as POSIX says.
fn locale_is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| variable(name).filter(|v| !v.is_empty()))
        .is_some_and(|v| v.to_ascii_lowercase().replace('-', "").contains("utf8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_align_right_and_text_left() {
        let rows = [
            vec!["weights".to_owned(), "1.50 GiB".to_owned(), "256x128".to_owned()],
            vec!["x".to_owned(), "9 B".to_owned(), "64x32".to_owned()],
        ];
        let text = render(&["region", "bytes", "size"], &rows, Style::Ascii);
        assert!(text.is_ascii(), "{text}");
        let last = text.lines().last().unwrap();
        assert_eq!(last, "| x       |      9 B | 64x32   |");
        assert!(render(&["a"], &rows, Style::Unicode).contains('─'));
    }

    #[test]
    fn control_characters_and_ragged_rows_are_harmless() {
        let rows = [vec!["\u{1b}[31mred\n".to_owned()], vec![]];
        let text = render(&["name", "other"], &rows, Style::Unicode);
        assert!(!text.contains('\u{1b}'));
        assert_eq!(render(&["only"], &Vec::<Vec<String>>::new(), Style::Ascii).lines().count(), 2);
    }

    #[test]
    fn what_counts_as_a_number() {
        for yes in ["1", "-1.5", "1,234", "3.2e-4", "41.2 %", "98%", "2 h 05 min", "5 img/s", "~3", "2.6x"] {
            assert!(is_number(yes), "{yes}");
        }
        for no in ["", "abc", "256x128", "12 photographs", "-", "v1.2"] {
            assert!(!is_number(no), "{no}");
        }
    }

    #[test]
    fn locale() {
        let with = |all: &'static str, lang: &'static str| {
            move |name: &str| match name {
                "LC_ALL" => Some(all.to_owned()),
                "LANG" => Some(lang.to_owned()),
                _ => None,
            }
        };
        assert!(locale_is_utf8(with("", "en_GB.UTF-8")));
        assert!(!locale_is_utf8(with("C", "en_GB.UTF-8")));
        assert!(!locale_is_utf8(|_| None));
    }
}
