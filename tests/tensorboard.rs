//! TensorBoard event files, read back by a reader that shares nothing with the writer: bitwise CRC, hand-decoded wire
//! format with the field numbers of TensorBoard's published event.proto and summary.proto.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use saip_engine::train::tensorboard::EventWriter;
use tempfile::TempDir;

/// CRC32C bit by bit: reflected Castagnoli polynomial.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

// Written out as the format's description has it.
#[allow(clippy::manual_rotate)]
fn masked(bytes: &[u8]) -> u32 {
    let crc = crc32c(bytes);
    ((crc >> 15) | (crc << 17)).wrapping_add(0xa282ead8)
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(n);
    *bytes = tail;
    head
}

fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let length = take(&mut bytes, 8);
        assert_eq!(take(&mut bytes, 4), masked(length).to_le_bytes(), "checksum of the length");
        let payload = take(&mut bytes, u64::from_le_bytes(length.try_into().unwrap()) as usize);
        assert_eq!(take(&mut bytes, 4), masked(payload).to_le_bytes(), "checksum of the payload");
        out.push(payload.to_vec());
    }
    out
}

#[derive(Clone, Debug, PartialEq)]
enum Field {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
}

impl Field {
    fn bytes(&self) -> &[u8] {
        match self {
            Field::Bytes(b) => b,
            other => panic!("not bytes: {other:?}"),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn message(mut bytes: &[u8]) -> BTreeMap<u64, Field> {
    let mut fields = BTreeMap::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut bytes)),
            1 => Field::Fixed64(take(&mut bytes, 8).try_into().unwrap()),
            2 => {
                let n = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, n).to_vec())
            }
            5 => Field::Fixed32(take(&mut bytes, 4).try_into().unwrap()),
            wire => panic!("wire type {wire}"),
        };
        assert!(fields.insert(key >> 3, field).is_none(), "no field of these messages repeats here");
    }
    fields
}

fn events(path: &Path) -> Vec<BTreeMap<u64, Field>> {
    records(&fs::read(path).unwrap()).iter().map(|r| message(r)).collect()
}

/// Summary value of an event: (tag, fields of the value).
fn value(event: &BTreeMap<u64, Field>) -> (String, BTreeMap<u64, Field>) {
    let value = message(message(event[&5].bytes())[&1].bytes());
    (String::from_utf8(value[&1].bytes().to_vec()).unwrap(), value)
}

#[test]
fn the_independent_checksum_is_right() {
    // The check value of CRC-32C.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn everything_logged_is_read_back() {
    let dir = TempDir::new().unwrap();
    let mut writer = EventWriter::create(&dir.path().join("deep/tb")).unwrap();
    writer.scalar("loss/csm", 0, 1.5).unwrap();
    writer.scalar("loss/csm", 5_000_000_000, f32::NAN).unwrap();
    writer.flush().unwrap();

    let events = events(writer.path());
    assert_eq!(events.len(), 3);
    assert_eq!(events[0][&3].bytes(), b"brain.Event:2");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    for event in &events {
        let Field::Fixed64(bits) = event[&1] else { panic!("wall_time is no double") };
        assert!((f64::from_le_bytes(bits) - now).abs() < 60.0);
    }
    let (tag, first) = value(&events[1]);
    assert_eq!((tag.as_str(), &first[&2]), ("loss/csm", &Field::Fixed32(1.5f32.to_le_bytes())));
    assert_eq!(events[1].get(&2), None, "step 0 is the default");
    assert_eq!(events[2][&2], Field::Varint(5_000_000_000));
    let Field::Fixed32(bits) = value(&events[2]).1[&2] else { panic!("simple_value is no float") };
    assert!(f32::from_le_bytes(bits).is_nan());
}

#[test]
fn files_are_named_so_that_tensorboard_finds_them_and_none_is_reused() {
    let dir = TempDir::new().unwrap();
    let first = EventWriter::create(dir.path()).unwrap();
    let second = EventWriter::resume(dir.path(), 42).unwrap();
    assert_ne!(first.path(), second.path());
    let name = first.path().file_name().unwrap().to_str().unwrap();
    let rest = name.strip_prefix("events.out.tfevents.").unwrap();
    assert!(rest.len() > 11 && rest[..10].bytes().all(|b| b.is_ascii_digit()) && rest.as_bytes()[10] == b'.');
    assert!(rest.contains(&format!(".{}.", std::process::id())));
    // Both can be read while their writers are open.
    assert_eq!(events(first.path()).len(), 1);
    let events = events(second.path());
    assert_eq!(events[1][&2], Field::Varint(42));
    assert_eq!(message(events[1][&7].bytes())[&1], Field::Varint(1));
}

#[test]
fn what_cannot_be_logged_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let error = EventWriter::create(&dir.path().join("file")).unwrap_err().to_string();
    assert!(error.contains("file"), "{error}");
}

/// A file as a machine leaves it whose clock was far ahead, then set right.
#[test]
fn a_clock_that_is_set_back_does_not_disorder_the_curves() {
    let dir = TempDir::new().unwrap();
    let ahead = 4_000_000_000u64;
    let mut payload = vec![0x09];
    payload.extend((ahead as f64 + 0.5).to_le_bytes());
    payload.extend([0x10, 7]);
    let length = (payload.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked(&length).to_le_bytes());
    bytes.extend(&payload);
    bytes.extend(masked(&payload).to_le_bytes());
    // Torn, as a crash leaves it.
    bytes.extend(length);
    let old = dir.path().join(format!("events.out.tfevents.{ahead}.host.1.0"));
    fs::write(&old, bytes).unwrap();
    for junk in ["events.out.tfevents.", "events.out.tfevents.x", "events.out.tfevents.99999999999.h"] {
        fs::write(dir.path().join(junk), [0xff; 40]).unwrap();
    }
    let mut writer = EventWriter::resume(dir.path(), 8).unwrap();
    for step in 8..12 {
        writer.scalar("loss", step, 1.0).unwrap();
    }
    writer.flush().unwrap();
    let mut last = ahead as f64 + 0.5;
    for event in events(writer.path()) {
        let Field::Fixed64(bits) = event[&1] else { panic!("wall_time is no double") };
        let time = f64::from_le_bytes(bits);
        assert!(time >= last && time < ahead as f64 + 60.0, "{time} after {last}");
        last = time;
    }
    // TensorBoard reads files in the order of their names.
    assert!(writer.path() > old.as_path(), "{}", writer.path().display());
    let third = EventWriter::resume(dir.path(), 12).unwrap();
    assert!(third.path() > writer.path());
}
