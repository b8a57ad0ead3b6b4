//! The archive of a PyTorch file: a zip whose parts are stored as they are.
//!
//! Only what torch.save writes is understood. It pads every part to a multiple of 64 bytes by an extra field in front of it, whose
//! length depends on that of the part's name; what such fields hold is passed over.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::tensor::buffer;
use crate::error::{Error, Result};

/// A part takes some hundred bytes of the directory; checkpoints have thousands of parts.
const MAX_DIRECTORY: u64 = 64 << 20;
/// Bytes of the record at the end without its comment, and the most that the comment has.
const END: usize = 22;
const MAX_COMMENT: u64 = u16::MAX as u64;
/// Of one part: in the directory, and in front of its bytes; without names and extra fields.
const ENTRY: usize = 46;
const LOCAL: usize = 30;

pub(super) struct Archive<'a> {
    path: &'a Path,
    file: File,
    /// Where the directory begins: all parts lie before it.
    directory: u64,
    parts: BTreeMap<String, Part>,
    /// The folder in the archive, with its slash.
    folder: String,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    at: u64,
    size: u64,
    packed: u64,
    method: u16,
    flags: u16,
    crc: u32,
}

/// Where the directory is and how many parts it lists.
struct Directory {
    at: u64,
    size: u64,
    parts: u64,
}

impl<'a> Archive<'a> {
    pub(super) fn open(path: &'a Path, mut file: File, length: u64) -> Result<Self> {
        let directory = end(path, &mut file, length)?;
        let fits = directory.at.checked_add(directory.size).is_some_and(|end| end < length);
        if !fits || directory.size > MAX_DIRECTORY {
            return Err(broken(path, "its directory is not where its end says"));
        }
        let bytes = read(path, &mut file, directory.at, directory.size)?;
        let parts = parts(&bytes).ok_or_else(|| broken(path, "its directory is damaged"))?;
        if parts.len() as u64 != directory.parts {
            let message = format!("{} parts in its directory, {} are told", parts.len(), directory.parts);
            return Err(broken(path, &message));
        }
        let folder = parts.keys().find_map(|n| {
            let folder = n.strip_suffix("data.pkl")?;
            (folder.ends_with('/') && folder.matches('/').count() == 1).then(|| folder.to_owned())
        });
        let folder = folder.ok_or_else(|| {
            Error::file(path, "is a zip archive without `data.pkl`, not a file of torch.save")
        })?;
        let mut archive = Archive { path, file, directory: directory.at, parts, folder };
        if archive.part("constants.pkl").is_some() {
            return Err(Error::file(
                path,
                "is a TorchScript program: save its `state_dict()` with torch.save instead",
            ));
        }
        if archive.part("byteorder").is_some() && archive.read("byteorder", 16)? != b"little" {
            return Err(Error::file(path, "was written on a big-endian machine: save it again on another"));
        }
        Ok(archive)
    }

    fn part(&self, name: &str) -> Option<Part> {
        self.parts.get(&format!("{}{name}", self.folder)).copied()
    }

    /// A whole part of at most `limit` bytes.
    pub(super) fn read(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.path;
        let bad = |message: String| Error::file(path, format!("its part `{name}` {message}"));
        let part = self.part(name).ok_or_else(|| bad("is missing".into()))?;
        if part.method != 0 || part.flags & 1 != 0 {
            return Err(bad("is compressed or encrypted, which torch.save never does: save it again".into()));
        }
        let most = limit.min(self.directory);
        if part.size > most || part.size != part.packed {
            return Err(bad(format!("has {} bytes, at most {most} are possible", part.size)));
        }
        let outside = || bad("lies outside the file: was the copy or download cut off?".into());
        let body =
            part.at.checked_add(LOCAL as u64).filter(|at| *at <= self.directory).ok_or_else(outside)?;
        let local = read(path, &mut self.file, part.at, LOCAL as u64)?;
        if !local.starts_with(b"PK\x03\x04") {
            return Err(bad("is not where the directory says: was the copy or download damaged?".into()));
        }
        let lengths = u64::from(u16_at(&local, 26)) + u64::from(u16_at(&local, 28));
        let at = body + lengths;
        if at.checked_add(part.size).is_none_or(|end| end > self.directory) {
            return Err(outside());
        }
        let bytes = read(path, &mut self.file, at, part.size)?;
        match crc32fast::hash(&bytes) == part.crc {
            true => Ok(bytes),
            false => Err(bad("has not the checksum listed: was the copy or download damaged?".into())),
        }
    }
}

fn broken(path: &Path, message: &str) -> Error {
    Error::file(path, format!("is no intact zip archive ({message}): was the copy or download cut off?"))
}

/// `len` bytes of the file, which must be there.
fn read(path: &Path, file: &mut File, at: u64, len: u64) -> Result<Vec<u8>> {
    let io_error = |e| Error::io(path, "read", e);
    let size = usize::try_from(len).map_err(|_| Error::file(path, "is larger than this machine's memory"))?;
    file.seek(SeekFrom::Start(at)).map_err(io_error)?;
    let mut bytes = buffer(path, size)?;
    file.take(len).read_to_end(&mut bytes).map_err(io_error)?;
    match bytes.len() == size {
        true => Ok(bytes),
        false => Err(broken(path, &format!("{} bytes of {size}", bytes.len()))),
    }
}

/// The record at the end, and that of large archives if this one is told in it.
fn end(path: &Path, file: &mut File, length: u64) -> Result<Directory> {
    let none = || broken(path, "its end is missing");
    let tail = length.min(END as u64 + MAX_COMMENT);
    let bytes = read(path, file, length - tail, tail)?;
    // The comment, of which torch writes none, fills what is behind the record.
    let at = (0..(bytes.len() + 1).saturating_sub(END)).rev().find(|&i| {
        bytes[i..].starts_with(b"PK\x05\x06") && i + END + usize::from(u16_at(&bytes, i + 20)) == bytes.len()
    });
    let at = at.ok_or_else(none)?;
    let [parts, size, start] = [
        u64::from(u16_at(&bytes, at + 10)),
        u64::from(u32_at(&bytes, at + 12)),
        u64::from(u32_at(&bytes, at + 16)),
    ];
    if parts != u64::from(u16::MAX) && ![size, start].contains(&u64::from(u32::MAX)) {
        return Ok(Directory { at: start, size, parts });
    }
    let locator = at.checked_sub(20).map(|i| &bytes[i..at]).filter(|l| l.starts_with(b"PK\x06\x07"));
    let large = u64_at(locator.ok_or_else(none)?, 8);
    if large.checked_add(56).is_none_or(|end| end > length) {
        return Err(none());
    }
    let record = read(path, file, large, 56)?;
    match record.starts_with(b"PK\x06\x06") {
        true => {
            Ok(Directory { at: u64_at(&record, 48), size: u64_at(&record, 40), parts: u64_at(&record, 32) })
        }
        false => Err(none()),
    }
}

/// The parts by name; `None` for a directory that is no sequence of entries, or lists a name twice.
fn parts(mut bytes: &[u8]) -> Option<BTreeMap<String, Part>> {
    let mut all = BTreeMap::new();
    while !bytes.is_empty() {
        let (entry, rest) = bytes.split_at_checked(ENTRY)?;
        if !entry.starts_with(b"PK\x01\x02") {
            return None;
        }
        let (name, rest) = rest.split_at_checked(u16_at(entry, 28).into())?;
        let (extra, rest) = rest.split_at_checked(u16_at(entry, 30).into())?;
        bytes = rest.get(usize::from(u16_at(entry, 32))..)?;
        let mut wide = large_fields(extra);
        // Sizes and places beyond 4 GiB stand in an extra field, in this order.
        let mut field = |at: usize| match u32_at(entry, at) {
            u32::MAX => wide.next(),
            small => Some(u64::from(small)),
        };
        let (size, packed, at) = (field(24)?, field(20)?, field(42)?);
        let part = Part {
            at,
            size,
            packed,
            method: u16_at(entry, 10),
            flags: u16_at(entry, 8),
            crc: u32_at(entry, 16),
        };
        if all.insert(String::from_utf8_lossy(name).into_owned(), part).is_some() {
            return None;
        }
    }
    Some(all)
}

/// The numbers of the extra field of large archives (id 1).
fn large_fields(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut found: &[u8] = &[];
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((field, rest)) = rest.split_at_checked(u16_at(head, 2).into()) else { break };
        if u16_at(head, 0) == 1 {
            found = field;
        }
        extra = rest;
    }
    found.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b))
}

/// Little-endian numbers; 0 beyond the end, which callers have checked.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u64_of(bytes, at, 2) as u16
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u64_of(bytes, at, 4) as u32
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64_of(bytes, at, 8)
}

fn u64_of(bytes: &[u8], at: usize, width: usize) -> u64 {
    let bytes = bytes.get(at..at.saturating_add(width)).unwrap_or_default();
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}
