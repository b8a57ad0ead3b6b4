//! What travels on control connections after the meeting: frames of a length (u32), a kind (u8) and what belongs to it, integers
//! little-endian.

use super::member::Failure;
use crate::backend::Phase;
use crate::tensor::DType;
use std::io::{self, ErrorKind, Read};

/// The largest frame, without its length.
pub(super) const LONGEST: usize = 1 << 30;
/// What is read at once; room for a frame grows by it, so that a length alone takes no memory.
pub(super) const PIECE: usize = 1 << 18;

/// A collective, as ranks must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Elements of type `dtype` that travel as `wire`.
    AllReduce {
        dtype: DType,
        wire: DType,
        len: u64,
    },
    AllGather,
    Broadcast {
        root: u64,
    },
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Call::AllReduce { dtype, wire, len } => {
                write!(f, "all_reduce of {len} {} values", dtype.name())?;
                if dtype == wire { Ok(()) } else { write!(f, " as {}", wire.name()) }
            }
            Call::AllGather => f.write_str("all_gather"),
            Call::Broadcast { root } => write!(f, "broadcast from rank {root}"),
        }
    }
}

impl Call {
    pub const BYTES: usize = 11;

    /// A kind, two element types, a number.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let (head, number) = match *self {
            Call::AllReduce { dtype, wire, len } => ([0, type_code(dtype), type_code(wire)], len),
            Call::AllGather => ([1, 0, 0], 0),
            Call::Broadcast { root } => ([2, 0, 0], root),
        };
        let mut bytes = [0; Self::BYTES];
        bytes[..3].copy_from_slice(&head);
        bytes[3..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Call> {
        let (head, rest) = bytes.split_at_checked(3)?;
        let number = u64::from_le_bytes(rest.try_into().ok()?);
        match *head {
            [0, dtype, wire] => {
                Some(Call::AllReduce { dtype: type_of(dtype)?, wire: type_of(wire)?, len: number })
            }
            [1, 0, 0] => Some(Call::AllGather),
            [2, 0, 0] => Some(Call::Broadcast { root: number }),
            _ => None,
        }
    }
}

const TYPES: [DType; 4] = [DType::Bf16, DType::F32, DType::F64, DType::I32];

fn type_code(dtype: DType) -> u8 {
    TYPES.iter().position(|t| *t == dtype).unwrap_or_default() as u8
}

fn type_of(code: u8) -> Option<DType> {
    TYPES.get(usize::from(code)).copied()
}

/// What a rank is busy with, as it tells the others with each heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub phase: Phase,
    /// Collectives that it has begun.
    pub begun: u64,
    /// Milliseconds since the collective that it is in has moved anything; None outside.
    pub stalled: Option<u64>,
    /// Bytes of data connections that it has received.
    pub moved: u64,
}

impl Status {
    pub const NEW: Status = Status { phase: Phase::Start, begun: 0, stalled: None, moved: 0 };
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Frame {
    Beat(Status),
    /// To rank 0: a collective begins, by its number.
    Begin {
        number: u64,
        call: Call,
    },
    /// To rank 0: what one has for an all_gather.
    Part {
        number: u64,
        bytes: Vec<u8>,
    },
    /// From rank 0: what `rank` had.
    Whole {
        number: u64,
        rank: usize,
        bytes: Vec<u8>,
    },
    /// To rank 0: somebody seems to be gone, unless you know better.
    Suspect(Failure),
    /// The run ends.
    Abort(Failure),
    /// The sender takes no more part, after as many collectives as it has begun.
    Leave {
        begun: u64,
    },
    /// Answers `Leave`; the sender says nothing after it.
    Bye,
}

const NO_STALL: u64 = u64::MAX;

impl Frame {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Frame::Beat(s) => {
                let phase = PHASES.iter().position(|p| *p == s.phase).unwrap_or_default() as u64;
                let numbers = [phase, s.begun, s.stalled.unwrap_or(NO_STALL), s.moved];
                framed(1, &[&numbers.map(u64::to_le_bytes).concat()])
            }
            Frame::Begin { number, call } => framed(2, &[&number.to_le_bytes(), &call.encode()]),
            Frame::Part { number, bytes } => framed(3, &[&number.to_le_bytes(), bytes]),
            Frame::Whole { number, rank, bytes } => whole(*number, *rank, bytes),
            Frame::Suspect(failure) => framed(5, &[&texts(failure)]),
            Frame::Abort(failure) => framed(6, &[&texts(failure)]),
            Frame::Leave { begun } => framed(7, &[&begun.to_le_bytes()]),
            Frame::Bye => framed(8, &[]),
        }
    }

    /// None: not a frame.
    fn decode(kind: u8, mut bytes: Vec<u8>) -> Option<Frame> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(match kind {
            1 if bytes.len() == 32 => Frame::Beat(Status {
                phase: *PHASES.get(usize::try_from(number(0)?).ok()?)?,
                begun: number(8)?,
                stalled: number(16).filter(|ms| *ms != NO_STALL),
                moved: number(24)?,
            }),
            2 => Frame::Begin { number: number(0)?, call: Call::decode(bytes.get(8..)?)? },
            3 => Frame::Part { number: number(0)?, bytes: bytes.split_off(8) },
            4 => {
                let (number, rank) = (number(0)?, usize::try_from(number(8)?).ok()?);
                Frame::Whole { number, rank, bytes: bytes.split_off(16) }
            }
            5 => Frame::Suspect(serde_json::from_slice(&bytes).ok()?),
            6 => Frame::Abort(serde_json::from_slice(&bytes).ok()?),
            7 if bytes.len() == 8 => Frame::Leave { begun: number(0)? },
            8 if bytes.is_empty() => Frame::Bye,
            _ => return None,
        })
    }

    /// The next frame of `from`; `heard` is told how many bytes have come whenever some have. None at the end, between two
    /// frames.
    ///
    /// # Errors
    /// `InvalidData` when it is no frame; those of the connection.
    pub fn read(from: &mut impl Read, heard: impl Fn(usize)) -> io::Result<Option<Frame>> {
        let invalid = |text: String| io::Error::new(ErrorKind::InvalidData, text);
        let mut head = [0; 5];
        loop {
            match from.read(&mut head[..1]) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        heard(1);
        from.read_exact(&mut head[1..])?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if length > LONGEST {
            return Err(invalid(format!("a frame of {length} bytes, where at most {LONGEST} are expected")));
        }
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let at = bytes.len();
            let more = PIECE.min(length - at);
            bytes.try_reserve(more).map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
            bytes.resize(at + more, 0);
            from.read_exact(&mut bytes[at..])?;
            heard(more);
        }
        let frame = Frame::decode(head[4], bytes);
        frame.map(Some).ok_or_else(|| invalid(format!("a frame of kind {} that makes no sense", head[4])))
    }
}

/// The frame [`Frame::Whole`] of bytes that one does not own.
pub(super) fn whole(number: u64, rank: usize, bytes: &[u8]) -> Vec<u8> {
    framed(4, &[&number.to_le_bytes(), &(rank as u64).to_le_bytes(), bytes])
}

fn framed(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut bytes = Vec::with_capacity(length + 5);
    // Whoever hands over more than `LONGEST` bytes is refused before.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    bytes.push(kind);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn texts(failure: &Failure) -> Vec<u8> {
    serde_json::to_vec(failure).unwrap_or_default()
}

const PHASES: [Phase; 3] = [Phase::Start, Phase::Step, Phase::Aside];

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let failure = Failure::new("rank 2 (node7, pid 123)", "no sign of life");
        let stalled = Status { phase: Phase::Aside, begun: 7, stalled: Some(250), moved: 1 << 40 };
        let sum = |wire| Call::AllReduce { dtype: DType::F32, wire, len: 64 << 20 };
        let calls = [sum(DType::Bf16), sum(DType::F32), Call::AllGather, Call::Broadcast { root: 3 }];
        let mut frames: Vec<Frame> = calls.map(|call| Frame::Begin { number: 1 << 33, call }).into();
        frames.extend([
            Frame::Beat(Status::NEW),
            Frame::Beat(stalled),
            Frame::Part { number: 5, bytes: Vec::new() },
            Frame::Whole { number: 6, rank: 2, bytes: vec![7; PIECE + 5] },
            Frame::Suspect(failure.clone()),
            Frame::Abort(failure),
            Frame::Leave { begun: 9 },
            Frame::Bye,
        ]);
        frames
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let bytes: Vec<u8> = frames().iter().flat_map(Frame::encode).collect();
        let mut from = &bytes[..];
        for frame in frames() {
            assert_eq!(Frame::read(&mut from, |_| {}).expect("a frame"), Some(frame));
        }
        assert_eq!(Frame::read(&mut from, |_| {}).expect("the end"), None);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let kind = |mut from: &[u8]| Frame::read(&mut from, |_| {}).expect_err("no frame").kind();
        for frame in frames() {
            let bytes = frame.encode();
            for end in [1, 4, bytes.len() - 1] {
                assert_eq!(kind(&bytes[..end]), ErrorKind::UnexpectedEof, "{frame:?} to {end}");
            }
            // Shorter than its kind needs.
            let mut short = bytes.clone();
            short.truncate(8);
            short[..4].copy_from_slice(&3_u32.to_le_bytes());
            if short.len() == 8 {
                assert_eq!(kind(&short), ErrorKind::InvalidData, "{frame:?}");
            }
        }
        // A length alone takes no memory.
        assert_eq!(kind(&[&(LONGEST as u32).to_le_bytes()[..], &[3, 0]].concat()), ErrorKind::UnexpectedEof);
        assert_eq!(kind(&[&u32::MAX.to_le_bytes()[..], &[3, 0]].concat()), ErrorKind::InvalidData);
        for kind_byte in 0..=255 {
            for length in [0_u32, 7, 8, 11, 16, 19, 32] {
                let bytes = [&length.to_le_bytes()[..], &[kind_byte], &vec![0xaa; length as usize]].concat();
                // No panic, whatever it is.
                let _ = Frame::read(&mut &bytes[..], |_| {});
            }
        }
    }
}
