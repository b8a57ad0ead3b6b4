//! TensorBoard event files: a sequence of framed protocol buffers.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};
use crate::files::disk::{self, Growing};

/// Appends scalars and images to one event file; TensorBoard reads all files of a folder as one run.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<Growing>,
    clock: Clock,
}

/// The time of day as events have it: it never goes back, also when the machine's clock does.
#[derive(Debug)]
struct Clock {
    last: f64,
    read: Instant,
}

impl Clock {
    /// Goes on behind `last`, seconds since 1970.
    fn after(last: f64) -> Self {
        Clock { last, read: Instant::now() }
    }

    fn now(&mut self) -> f64 {
        let read = Instant::now();
        self.last = wall_time().max(self.last + read.duration_since(self.read).as_secs_f64());
        self.read = read;
        self.last
    }
}

/// Tells apart the files that one process opens within a second.
static OPENED: AtomicU64 = AtomicU64::new(0);

impl EventWriter {
    /// Opens a new file `events.out.tfevents.<unix seconds>.<host>.<process>.<count>` in `dir`, which is made if need
    /// be. Never touches an existing file.
    ///
    /// # Errors
    /// The folder or the file cannot be made.
    pub fn create(dir: &Path) -> Result<Self> {
        disk::create_dir_all(dir).map_err(|e| Error::io(dir, "create the folder", e))?;
        let host =
            hostname::get().map_or_else(|_| "localhost".to_owned(), |h| h.to_string_lossy().into_owned());
        // A name with a slash would lead elsewhere.
        let host = host.replace(['/', '\\'], "_");
        let count = OPENED.fetch_add(1, Ordering::Relaxed);
        let earlier = earlier(dir)?;
        let mut clock = Clock::after(earlier.time);
        // TensorBoard reads the files of a folder by name, and leaves out one whose turn has passed.
        let seconds = match earlier.stamp {
            Some(stamp) => (clock.now() as u64).max(stamp.saturating_add(1)),
            None => clock.now() as u64,
        };
        let name = format!("{PREFIX}{seconds:010}.{host}.{}.{count}", std::process::id());
        let path = dir.join(name);
        let file = Growing::create_new(&path).map_err(|e| Error::io(&path, "create", e))?;
        let mut writer = EventWriter { path, file: BufWriter::new(file), clock };
        writer.write(0, What::FileVersion("brain.Event:2".to_owned()))?;
        writer.flush()?;
        Ok(writer)
    }

    /// As [`create`](Self::create), for a run that goes on at `step`: TensorBoard drops what earlier files of the
    /// folder hold from that step on, which an interrupted run had logged after its last checkpoint.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn resume(dir: &Path, step: u64) -> Result<Self> {
        let mut writer = EventWriter::create(dir)?;
        writer.write(step, What::SessionLog(SessionLog { status: SESSION_START }))?;
        writer.flush()?;
        Ok(writer)
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Logs `value` under `tag`; slashes in the tag group charts.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f32) -> Result<()> {
        let value = Value { tag: tag.to_owned(), simple_value: Some(value) };
        self.write(step, What::Summary(Summary { value: vec![value] }))
    }

    /// Hands everything to the operating system; what was logged before is visible to TensorBoard afterwards.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io(&self.path, "write", e))
    }

    /// One record: length, masked checksum of the length, payload, masked checksum of the payload.
    fn write(&mut self, step: u64, what: What) -> Result<()> {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        let payload = Event { wall_time: self.clock.now(), step, what: Some(what) }.encode_to_vec();
        let length = (payload.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(payload.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc(&length).to_le_bytes());
        record.extend_from_slice(&payload);
        record.extend_from_slice(&masked_crc(&payload).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// What the names of event files begin with; seconds since 1970 follow.
const PREFIX: &str = "events.out.tfevents.";

/// What the event files of a folder end with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Earlier {
    /// The latest time of an event.
    time: f64,
    /// The latest time in the name of a file.
    stamp: Option<u64>,
}

fn earlier(dir: &Path) -> Result<Earlier> {
    let list = fs::read_dir(dir).map_err(|e| Error::io(dir, "list the folder", e))?;
    let mut all = Earlier::default();
    for entry in list {
        let entry = entry.map_err(|e| Error::io(dir, "list the folder", e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let stamp = rest.split('.').next().and_then(|s| s.parse().ok());
        // Ten digits, as all have: the order of longer ones is not that of their numbers.
        all.stamp = all.stamp.max(stamp.filter(|s| *s < 9_999_999_999));
        // A file that cannot be read tells nothing; TensorBoard cannot read it either.
        all.time = all.time.max(File::open(entry.path()).map_or(0.0, latest_event));
    }
    Ok(all)
}

/// The latest time among the events of a file, up to the first that is damaged.
fn latest_event(file: File) -> f64 {
    let mut reader = BufReader::new(file);
    let mut latest = 0f64;
    loop {
        let (mut length, mut crc, mut head) = ([0; 8], [0; 4], [0; 9]);
        let read = reader.read_exact(&mut length).and_then(|()| reader.read_exact(&mut crc));
        let intact = read.is_ok() && u32::from_le_bytes(crc) == masked_crc(&length);
        let length = u64::from_le_bytes(length);
        if !intact || length < head.len() as u64 || reader.read_exact(&mut head).is_err() {
            return latest;
        }
        // The first field of an event: number 1, eight bytes.
        let [0x09, time @ ..] = head else { return latest };
        let time = f64::from_le_bytes(time);
        let rest = i64::try_from(length - head.len() as u64 + 4);
        if !time.is_finite() || !rest.is_ok_and(|n| reader.seek_relative(n).is_ok()) {
            return latest;
        }
        latest = latest.max(time);
    }
}

/// Seconds since 1970; 0 on a machine whose clock stands before that.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// TFRecord's checksum: CRC32C, rotated and shifted, so that a checksum of data with checksums in it stays sound.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// `SessionLog.SessionStatus.START`
const SESSION_START: i32 = 1;

// The parts of tensorboard's event.proto and summary.proto in use.

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}
