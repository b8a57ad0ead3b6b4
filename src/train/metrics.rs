//! `metrics.jsonl`: one JSON object a line, each with the `step` it belongs to.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::atomic;
use crate::files::disk::Growing;

/// One line: `step` and whatever was measured. Values that are not finite are null.
pub type Record = Map<String, Value>;

/// No record is longer; a longer line is not one of ours and is not read into memory.
const MAX_LINE: u64 = 1 << 20;

/// Appends to `metrics.jsonl`. Each record is handed to the system at once, so that a reader, or a crash, finds it.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: Growing,
}

impl MetricsLog {
    /// Opens the log of a new run, or goes on at its end.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append_to(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = Growing::append(&path).map_err(|e| Error::io(&path, "open", e))?;
        Ok(MetricsLog { path, file })
    }

    /// Opens the log of a run that is resumed after `step` completed steps: lines of later steps, which will come again,
    /// and a torn last line are dropped. The file is replaced as a whole or not at all.
    ///
    /// # Errors
    /// As [`read`], and [`Error::Io`].
    pub fn resume(path: impl Into<PathBuf>, step: u64) -> Result<Self> {
        let path = path.into();
        if atomic::exists(&path)? {
            let mut kept = Vec::new();
            for record in read(&path)?.iter().filter(|r| step_of(r).is_some_and(|s| s <= step)) {
                push_line(&path, &mut kept, record)?;
            }
            atomic::write(&path, &kept)?;
        }
        Self::append_to(path)
    }

    /// Appends one record, which must serialise to an object with a whole number `step`.
    ///
    /// # Errors
    /// [`Error::File`] for anything else, [`Error::Io`] when the disk refuses.
    pub fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = Vec::new();
        let value = serde_json::to_value(record).map_err(|e| Error::file(&self.path, e.to_string()))?;
        match value {
            Value::Object(object) if step_of(&object).is_some() => push_line(&self.path, &mut line, &object)?,
            other => return Err(Error::file(&self.path, format!("a record needs a `step`, got {other}"))),
        }
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, "append to", e))
    }

    /// Makes all lines survive a power failure; to be called before a checkpoint that lies after them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|e| Error::io(&self.path, "flush", e))
    }
}

fn push_line(path: &Path, out: &mut Vec<u8>, record: &Record) -> Result<()> {
    serde_json::to_writer(&mut *out, record).map_err(|e| Error::file(path, e.to_string()))?;
    out.push(b'\n');
    Ok(())
}

fn step_of(record: &Record) -> Option<u64> {
    record.get("step").and_then(Value::as_u64)
}

/// All records in the order of writing. A last line that was cut short, as a crash leaves it, is left out; a log that does
/// not exist has no records.
///
/// # Errors
/// [`Error::File`] that names the line when one before the last is no record; [`Error::Io`].
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(path, "open", e)),
    };
    let mut reader = BufReader::new(file);
    let (mut records, mut line) = (Vec::new(), Vec::new());
    for number in 1.. {
        line.clear();
        let length = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        if length.map_err(|e| Error::io(path, "read", e))? == 0 {
            break;
        }
        let is_last = reader.fill_buf().map_err(|e| Error::io(path, "read", e))?.is_empty();
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Record>(&line) {
            // Without its line feed even a line that parses may be cut: 12 of 123.
            Ok(record) if line.ends_with(b"\n") && step_of(&record).is_some() => records.push(record),
            _ if is_last => break,
            Ok(_) => return Err(Error::file(path, format!("line {number} has no `step`: remove that line"))),
            Err(e) => {
                return Err(Error::file(path, format!("line {number} is damaged ({e}): remove that line")));
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn log_of(steps: &[u64]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::append_to(&path).unwrap();
        for step in steps {
            log.write(&json!({"step": step, "loss": *step as f64 / 2.0})).unwrap();
        }
        log.sync().unwrap();
        (dir, path)
    }

    fn steps(path: &Path) -> Vec<u64> {
        read(path).unwrap().iter().filter_map(step_of).collect()
    }

    #[test]
    fn resuming_drops_what_will_come_again() {
        let (_dir, path) = log_of(&[1, 2, 3, 4]);
        let mut log = MetricsLog::resume(&path, 2).unwrap();
        log.write(&json!({"step": 3, "loss": f64::NAN})).unwrap();
        assert_eq!(steps(&path), [1, 2, 3]);
        assert_eq!(read(&path).unwrap()[2]["loss"], Value::Null);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().nth(1).unwrap(), r#"{"step":2,"loss":1.0}"#);
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_then_gone() {
        for tear in ["{\"step\": 9, \"lo", "{\"step\":9}", "\u{0}\u{0}\u{0}", "{\"loss\":1}\n"] {
            let (_dir, path) = log_of(&[1, 2]);
            let mut raw = fs::read(&path).unwrap();
            raw.extend_from_slice(tear.as_bytes());
            fs::write(&path, raw).unwrap();
            assert_eq!(steps(&path), [1, 2], "{tear}");
            MetricsLog::resume(&path, 100).unwrap().write(&json!({"step": 3})).unwrap();
            assert_eq!(steps(&path), [1, 2, 3], "{tear}");
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named_and_the_file_kept() {
        let (_dir, path) = log_of(&[]);
        fs::write(&path, "{\"step\":1}\noops\n{\"step\":2}\n").unwrap();
        let e = MetricsLog::resume(&path, 5).unwrap_err().to_string();
        assert!(e.contains("line 2") && e.contains("metrics.jsonl"), "{e}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\noops\n{\"step\":2}\n");
    }

    #[test]
    fn records_need_a_step_and_missing_logs_are_empty() {
        let (dir, path) = log_of(&[]);
        let mut log = MetricsLog::append_to(&path).unwrap();
        assert!(log.write(&json!({"loss": 1})).unwrap_err().to_string().contains("`step`"));
        assert!(log.write(&json!({"step": -1})).is_err());
        let absent = dir.path().join("none.jsonl");
        assert!(read(&absent).unwrap().is_empty());
        MetricsLog::resume(&absent, 3).unwrap();
        assert!(absent.exists());
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (_dir, path) = log_of(&[]);
        let mut raw = vec![b'x'; 3 << 20];
        raw.push(b'\n');
        fs::write(&path, raw).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 1"));
    }
}
