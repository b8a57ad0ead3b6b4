//! What is said on a connection before it belongs to the run: `SAIPMEET`, the version of this protocol and the length of the rest
//! (u32, little-endian each), then JSON. Whoever says something else is a stranger.

use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

const MAGIC: [u8; 8] = *b"SAIPMEET";
/// Of this protocol and of the frames that follow it.
pub(super) const PROTOCOL: u32 = 1;
/// Bytes of JSON of somebody who may be a stranger.
pub(super) const SHORT: u32 = 1 << 14;
/// Bytes of JSON of rank 0: a table of many thousand ranks.
pub(super) const LONG: u32 = 4 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Greeting {
    /// A rank to rank 0.
    Hello(Guest),
    /// Rank 0: you are known, wait for the others.
    Noted,
    /// Rank 0: all are here.
    Welcome(Welcome),
    /// Rank 0: not with you. `again`: this is another run, yours may still come here.
    Refused { reason: String, again: bool },
    /// A rank to the one after it in the ring.
    Data { token: String, from: usize },
}

/// A rank that wants to take part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Guest {
    pub version: String,
    pub config: String,
    pub device: String,
    pub host: String,
    pub machine: String,
    pub pid: u32,
    pub world: usize,
    pub rank: usize,
    /// What the launcher calls this launch; empty where it does not say.
    pub launch: String,
    /// Of the file that told where rank 0 is; empty without one.
    pub nonce: String,
    /// Where it takes data connections.
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Welcome {
    /// Opens data connections.
    pub token: String,
    /// By rank.
    pub seats: Vec<Seat>,
}

/// Where a rank is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Seat {
    pub host: String,
    pub pid: u32,
    /// None: it runs on the host of rank 0, so that it is reached as rank 0 is.
    pub ip: Option<IpAddr>,
    pub port: u16,
}

/// Says `greeting` by `until`.
///
/// # Errors
/// Those of the connection.
pub(super) fn say(stream: &mut TcpStream, greeting: &Greeting, until: Instant) -> io::Result<()> {
    let json = serde_json::to_vec(greeting).map_err(io::Error::other)?;
    let length = u32::try_from(json.len()).ok().filter(|n| *n <= LONG);
    let length = length.ok_or_else(|| io::Error::other("the table of ranks is too long"))?;
    let mut bytes = Vec::with_capacity(json.len() + 16);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&PROTOCOL.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&json);
    stream.set_write_timeout(Some(left(until)?))?;
    stream.write_all(&bytes)
}

/// What the other side says by `until`, in at most `longest` bytes.
///
/// # Errors
/// `InvalidData` when it is a stranger, `Unsupported` when it is another version of this program; `TimedOut`; those of the connection.
pub(super) fn hear(stream: &mut TcpStream, longest: u32, until: Instant) -> io::Result<Greeting> {
    let mut head = [0; 16];
    fill(stream, &mut head, until)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let invalid = |text: String| io::Error::new(ErrorKind::InvalidData, text);
    if head[..8] != MAGIC {
        return Err(invalid("is no saip-engine".to_owned()));
    }
    if word(8) != PROTOCOL {
        let text = "is a saip-engine of another version: it meets by protocol";
        let text = format!("{text} {}, this one by {PROTOCOL}", word(8));
        return Err(io::Error::new(ErrorKind::Unsupported, text));
    }
    if word(12) > longest {
        return Err(invalid(format!("says {} bytes where at most {longest} are expected", word(12))));
    }
    // Room grows with what really comes.
    let mut json = Vec::new();
    let mut piece = [0; 4096];
    while json.len() < word(12) as usize {
        let want = piece.len().min(word(12) as usize - json.len());
        fill(stream, &mut piece[..want], until)?;
        json.extend_from_slice(&piece[..want]);
    }
    serde_json::from_slice(&json).map_err(|e| invalid(format!("says what cannot be read: {e}")))
}

/// Fills `bytes` by `until`.
///
/// # Errors
/// Those of [`hear`], and `UnexpectedEof`.
pub(super) fn fill(stream: &mut TcpStream, mut bytes: &mut [u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(bytes) {
            Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed the connection")),
            Ok(n) => bytes = &mut bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // What the system calls a time-out differs.
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(late()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What is left until `until`, never zero: a time-out of zero means none.
///
/// # Errors
/// `TimedOut` when nothing is.
pub(super) fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(late()) } else { Ok(left) }
}

fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "did not answer in time")
}
