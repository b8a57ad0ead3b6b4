//! What is left out of a set of pictures: said and listed in one way by every command.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::atomic;
use crate::units::shown;

/// What kind of loss an entry is; messages count each apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A picture that is not used.
    Picture,
    /// A folder, link or file that cannot be opened: nobody knows how many pictures it holds.
    Unopened,
    /// What operating systems and network storage add, and what is hidden: no picture of the user's is lost.
    System,
}

/// Something that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub kind: Kind,
    /// As [`shown`](crate::units::shown) writes it.
    pub name: String,
    pub reason: String,
}

impl LeftOut {
    pub fn new(kind: Kind, name: String, reason: impl Into<String>) -> Self {
        LeftOut { kind, name, reason: reason.into() }
    }

    /// A picture that an attempt to use it failed for.
    pub fn picture(name: String, why: Error) -> Self {
        LeftOut::new(Kind::Picture, name, reason(why))
    }
}

/// The message without the path, which is listed beside it.
pub fn reason(e: Error) -> String {
    match e {
        Error::File { message, .. } => message,
        Error::Io { action, source, .. } => format!("cannot {action}: {source}"),
        other => other.to_string(),
    }
}

/// Entries that a message names; the list has all.
const NAMED: usize = 5;

/// `3 of 4 images are left out (all are listed in skipped.csv):` with the first names and reasons below; `None` where
/// nothing is. `what` names the pictures in the plural, `used` of which are left, and `list` is where [`write`] put the list.
pub fn summary(what: &str, used: usize, left_out: &[LeftOut], list: Option<&Path>) -> Option<String> {
    let counts = counts(what, used, left_out)?;
    let list = list.map(|path| format!(" (all are listed in {})", shown(path))).unwrap_or_default();
    Some(format!("{counts}{list}:\n  {}", first_names(left_out).join("\n  ")))
}

/// The same as the end of an error's only line, where nothing is left to use; empty where nothing was left out.
pub fn clause(what: &str, left_out: &[LeftOut]) -> String {
    let clause = |counts| format!("; {counts}: {}", first_names(left_out).join("; "));
    counts(what, 0, left_out).map(clause).unwrap_or_default()
}

fn counts(what: &str, used: usize, left_out: &[LeftOut]) -> Option<String> {
    let count = |kind: Kind| left_out.iter().filter(|l| l.kind == kind).count();
    let mut parts = Vec::new();
    match count(Kind::Picture) {
        0 => {}
        1 => parts.push(format!("1 of {} {what} is left out", used + 1)),
        n => parts.push(format!("{n} of {} {what} are left out", used + n)),
    }
    match count(Kind::Unopened) {
        0 => {}
        1 => parts.push("1 folder or file cannot be opened".to_owned()),
        n => parts.push(format!("{n} folders or files cannot be opened")),
    }
    match count(Kind::System) {
        0 => {}
        1 => parts.push("1 hidden or system entry is passed over".to_owned()),
        n => parts.push(format!("{n} hidden or system entries are passed over")),
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The first entries with their reasons, pictures before others, and how many more there are.
fn first_names(left_out: &[LeftOut]) -> Vec<String> {
    let mut ordered: Vec<&LeftOut> = left_out.iter().collect();
    ordered.sort_by_key(|l| l.kind);
    let mut names: Vec<String> =
        ordered.iter().take(NAMED).map(|l| format!("{}: {}", l.name, l.reason)).collect();
    if ordered.len() > NAMED {
        names.push(format!("and {} more", ordered.len() - NAMED));
    }
    names
}

/// The whole list as CSV with the columns `file` and `reason`.
///
/// # Errors
/// [`Error::Invariant`]: memory takes all of it.
pub fn table(left_out: &[LeftOut]) -> Result<Vec<u8>> {
    let failed = |e: csv::Error| Error::invariant("listing what is left out", e.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["file", "reason"]).map_err(failed)?;
    for entry in left_out {
        writer.write_record([&entry.name, &entry.reason]).map_err(failed)?;
    }
    writer.into_inner().map_err(|e| Error::invariant("listing what is left out", e.to_string()))
}

/// Writes [`table`].
///
/// # Errors
/// Where `path` cannot be written; what was there then stays.
pub fn write(path: &Path, left_out: &[LeftOut]) -> Result<()> {
    atomic::write(path, &table(left_out)?)
}

/// Tells of a list that grows while a command runs, whenever it has grown.
#[derive(Debug)]
pub struct Teller {
    what: &'static str,
    list: PathBuf,
    told: usize,
}

impl Teller {
    /// `what` names the pictures in the plural, `list` is the file that is written.
    pub fn new(what: &'static str, list: PathBuf) -> Self {
        Teller { what, list, told: 0 }
    }

    /// Writes the list and gives the [`summary`] where `left_out` is longer than it was.
    ///
    /// # Errors
    /// Those of [`write`].
    pub fn news(&mut self, used: usize, left_out: &[LeftOut]) -> Result<Option<String>> {
        if left_out.len() <= self.told {
            return Ok(None);
        }
        self.told = left_out.len();
        write(&self.list, left_out)?;
        Ok(summary(self.what, used, left_out, Some(&self.list)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_counted_apart_and_pictures_come_first() {
        let entry = |kind, name: &str| LeftOut::new(kind, name.to_owned(), "because");
        assert_eq!(summary("images", 3, &[], None), None);
        let one = [entry(Kind::Picture, "a.heic")];
        assert_eq!(
            summary("images", 3, &one, Some(Path::new("f/skipped.csv"))).unwrap(),
            "1 of 4 images is left out (all are listed in f/skipped.csv):\n  a.heic: because"
        );
        let mut many = vec![entry(Kind::System, "@eaDir"), entry(Kind::Unopened, "private")];
        many.extend((0..6).map(|i| entry(Kind::Picture, &format!("{i}.ppm"))));
        let text = summary("images", 1, &many, None).unwrap();
        let head = "6 of 7 images are left out, 1 folder or file cannot be opened, 1 hidden or system entry is passed over:\n  0.ppm";
        assert!(text.starts_with(head) && text.ends_with("\n  and 3 more"), "{text}");
        assert_eq!(clause("images", &one), "; 1 of 1 images is left out: a.heic: because");
    }

    #[test]
    fn the_list_has_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skipped.csv");
        let entry = LeftOut::new(Kind::Picture, "a, b.jpg".to_owned(), "it says \"no\"");
        write(&path, &[entry]).unwrap();
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "file,reason\n\"a, b.jpg\",\"it says \"\"no\"\"\"\n"
        );
    }
}
