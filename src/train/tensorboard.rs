//! TensorBoard event files: a sequence of framed protocol buffers.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};

/// Appends scalars and images to one event file; TensorBoard reads all files of a folder as one run.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
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
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create the folder", e))?;
        let host =
            hostname::get().map_or_else(|_| "localhost".to_owned(), |h| h.to_string_lossy().into_owned());
        // A name with a slash would lead elsewhere.
        let host = host.replace(['/', '\\'], "_");
        let count = OPENED.fetch_add(1, Ordering::Relaxed);
        let name =
            format!("events.out.tfevents.{:010}.{host}.{}.{count}", wall_time() as u64, std::process::id());
        let path = dir.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| Error::io(&path, "create", e))?;
        let mut writer = EventWriter { path, file: BufWriter::new(file) };
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
        self.summary(tag, step, Content::SimpleValue(value))
    }

    /// Logs a picture: `png` is a complete PNG file of `height` x `width` pixels in RGB.
    ///
    /// # Errors
    /// `png` is no PNG file, the sizes are beyond the format, or the file cannot be written.
    pub fn image_png(&mut self, tag: &str, step: u64, png: &[u8], height: u32, width: u32) -> Result<()> {
        if !png.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Err(Error::usage(format!("the picture logged as `{tag}` is no PNG file")));
        }
        let side = |v: u32| {
            i32::try_from(v)
                .map_err(|_| Error::usage(format!("the picture logged as `{tag}` is too large: {v} pixels")))
        };
        let image =
            Image { height: side(height)?, width: side(width)?, colorspace: RGB, encoded: png.to_vec() };
        self.summary(tag, step, Content::Image(image))
    }

    /// Hands everything to the operating system; what was logged before is visible to TensorBoard afterwards.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io(&self.path, "write", e))
    }

    fn summary(&mut self, tag: &str, step: u64, content: Content) -> Result<()> {
        let value = Value { tag: tag.to_owned(), content: Some(content) };
        self.write(step, What::Summary(Summary { value: vec![value] }))
    }

    /// One record: length, masked checksum of the length, payload, masked checksum of the payload.
    fn write(&mut self, step: u64, what: What) -> Result<()> {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        let payload = Event { wall_time: wall_time(), step, what: Some(what) }.encode_to_vec();
        let length = (payload.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(payload.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc(&length).to_le_bytes());
        record.extend_from_slice(&payload);
        record.extend_from_slice(&masked_crc(&payload).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, "write", e))
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
/// `Summary.Image.colorspace` of RGB.
const RGB: i32 = 3;

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
    #[prost(oneof = "Content", tags = "2, 4")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Content {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "4")]
    Image(Image),
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded: Vec<u8>,
}
