//! Sums and broadcasts over data connections: each rank sends to the one after it and receives from the one before.
//!
//! A sum is a reduce-scatter and an all-gather (Patarasuk and Yuan 2009): values are cut into one segment per rank; segment `s`
//! starts at rank `s`, each rank on its way adds its own values, and the finished one goes around once more. So the order of
//! additions depends on nothing but the number of ranks, and all ranks receive the bits of one of them.

use super::frame::Call;
use super::lines::Line;
use super::link::Link;
use super::member::Failure;
use crate::error::{Error, Result};
use crate::tensor::DType;
use half::bf16;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Bytes that are sent on as soon as they are there.
const PIECE: usize = 1 << 18;

/// This rank's place in the ring.
#[derive(Debug)]
pub(super) struct Ring {
    link: Arc<Link>,
    from: TcpStream,
    to: Line,
    writer: Option<JoinHandle<()>>,
    received: Vec<u8>,
}

/// How values of a type travel: bytes of one, and what is done with a slice of them.
struct Codec<T> {
    bytes: usize,
    encode: fn(&[T], &mut Vec<u8>),
    /// Adds the received values; the result is one that can travel.
    add: fn(&mut [T], &[u8]),
    store: fn(&mut [T], &[u8]),
}

const F32: Codec<f32> = Codec {
    bytes: 4,
    encode: |values, bytes| values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes())),
    add: |values, bytes| each(values, bytes, |v, b| *v += f32::from_le_bytes(b)),
    store: |values, bytes| each(values, bytes, |v, b| *v = f32::from_le_bytes(b)),
};

const F64: Codec<f64> = Codec {
    bytes: 8,
    encode: |values, bytes| values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes())),
    add: |values, bytes| each(values, bytes, |v, b| *v += f64::from_le_bytes(b)),
    store: |values, bytes| each(values, bytes, |v, b| *v = f64::from_le_bytes(b)),
};

const F32_AS_BF16: Codec<f32> = Codec {
    bytes: 2,
    encode: |values, bytes| {
        values.iter().for_each(|v| bytes.extend_from_slice(&bf16::from_f32(*v).to_le_bytes()));
    },
    add: |values, bytes| {
        each(values, bytes, |v, b| *v = bf16::from_f32(*v + bf16::from_le_bytes(b).to_f32()).to_f32());
    },
    store: |values, bytes| each(values, bytes, |v, b| *v = bf16::from_le_bytes(b).to_f32()),
};

fn each<T, const N: usize>(values: &mut [T], bytes: &[u8], apply: impl Fn(&mut T, [u8; N])) {
    let (chunks, _) = bytes.as_chunks::<N>();
    values.iter_mut().zip(chunks).for_each(|(v, b)| apply(v, *b));
}

impl Ring {
    /// `from` the rank before, `to` the one after.
    ///
    /// # Errors
    /// The failure of the run; those of the system.
    pub fn new(link: &Arc<Link>, from: TcpStream, to: &TcpStream) -> Result<Ring> {
        let refused = |e| link.refused("use a data connection", &e);
        for stream in [&from, to] {
            stream.set_nodelay(true).map_err(refused)?;
            stream.set_read_timeout(None).map_err(refused)?;
            stream.set_write_timeout(None).map_err(refused)?;
            link.add_data(stream)?;
        }
        let (of, next) = (link.clone(), (link.rank + 1) % link.world());
        // Told to rank 0, so that a main thread that waits for something else learns of it.
        // Told to rank 0, so that a main thread that waits for something else learns of it.
        let broken = move |e| {
            of.suspect(Failure::new(&of.members[next], format!("the connection to it broke: {e}")));
        };
        let (to, writer) = Line::open(to, format!("data to rank {next}"), broken).map_err(refused)?;
        Ok(Ring { link: link.clone(), from, to, writer: Some(writer), received: Vec::new() })
    }

    /// Everything that was handed over is sent before this rank ends its part.
    pub fn finish(&mut self) {
        self.to.finish();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }

    /// Sums f32 values over all ranks; they travel as `wire`.
    ///
    /// # Errors
    /// Those of [`Collective`](crate::backend::Collective).
    pub fn sum_f32(&mut self, values: &mut [f32], wire: DType) -> Result<()> {
        let codec = match wire {
            DType::F32 => F32,
            DType::Bf16 => F32_AS_BF16,
            other => {
                return Err(Error::invariant("all_reduce", format!("f32 values do not travel as {other}")));
            }
        };
        self.sum(values, &codec, DType::F32, wire)
    }

    /// Sums f64 values over all ranks.
    ///
    /// # Errors
    /// Those of [`Collective`](crate::backend::Collective).
    pub fn sum_f64(&mut self, values: &mut [f64]) -> Result<()> {
        self.sum(values, &F64, DType::F64, DType::F64)
    }

    fn sum<T>(&mut self, values: &mut [T], codec: &Codec<T>, dtype: DType, wire: DType) -> Result<()> {
        let call = Call::AllReduce { dtype, wire, len: values.len() as u64 };
        let number = self.link.begin(call)?;
        let (rank, world) = (self.link.rank, self.link.world());
        self.to.send(header(number, call, 0).to_vec());
        let own = segment(values.len(), world, rank);
        for piece in pieces(own, codec.bytes) {
            self.send(&values[piece], codec);
        }
        self.expect(number, call)?;
        let rounds = 2 * (world - 1);
        for round in 0..rounds {
            let index = (rank + 2 * world - 1 - round) % world;
            for piece in pieces(segment(values.len(), world, index), codec.bytes) {
                let mut received = std::mem::take(&mut self.received);
                received.resize(piece.len() * codec.bytes, 0);
                self.receive(&mut received)?;
                let part = &mut values[piece];
                if round + 1 < world {
                    (codec.add)(part, &received)
                } else {
                    (codec.store)(part, &received)
                }
                self.received = received;
                if round + 1 < rounds {
                    self.send(part, codec);
                }
            }
        }
        self.link.end();
        Ok(())
    }

    /// What `root` has replaces `bytes` of the others.
    ///
    /// # Errors
    /// Those of [`Collective`](crate::backend::Collective).
    pub fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let (rank, world) = (self.link.rank, self.link.world());
        if root >= world {
            return Err(Error::invariant("broadcast", format!("there is no rank {root} among {world}")));
        }
        let call = Call::Broadcast { root: root as u64 };
        let number = self.link.begin(call)?;
        let passes_on = (rank + 1) % world != root;
        if rank == root {
            self.to.send(header(number, call, bytes.len() as u64).to_vec());
            bytes.chunks(PIECE).for_each(|piece| self.to.send(piece.to_vec()));
        } else {
            let length = self.expect(number, call)?;
            if passes_on {
                self.to.send(header(number, call, length).to_vec());
            }
            bytes.clear();
            let mut left = length;
            while left > 0 {
                let (at, more) = (bytes.len(), left.min(PIECE as u64) as usize);
                // Room grows with what really comes.
                bytes.try_reserve(more).map_err(|_| {
                    let text = format!("a broadcast of {length} bytes does not fit into this host's memory");
                    Error::distributed(self.link.members[rank].to_string(), text)
                })?;
                bytes.resize(at + more, 0);
                self.receive(&mut bytes[at..])?;
                if passes_on {
                    self.to.send(bytes[at..].to_vec());
                }
                left -= more as u64;
            }
        }
        self.link.end();
        Ok(())
    }

    fn send<T>(&self, values: &[T], codec: &Codec<T>) {
        let mut bytes = Vec::with_capacity(values.len() * codec.bytes);
        (codec.encode)(values, &mut bytes);
        self.to.send(bytes);
    }

    /// Fills `bytes` from the rank before.
    fn receive(&mut self, mut bytes: &mut [u8]) -> Result<()> {
        while !bytes.is_empty() {
            let what = match self.from.read(bytes) {
                Ok(0) => "its data connection ended".to_owned(),
                Ok(n) => {
                    self.link.touch(n);
                    bytes = &mut bytes[n..];
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => format!("the connection from it broke: {e}"),
            };
            return Err(self.link.broken(self.before(), &what));
        }
        Ok(())
    }

    fn before(&self) -> usize {
        (self.link.rank + self.link.world() - 1) % self.link.world()
    }

    /// The header of collective `number` from the rank before; the length that it tells.
    fn expect(&mut self, number: u64, call: Call) -> Result<u64> {
        let mut bytes = [0; HEADER];
        self.receive(&mut bytes)?;
        let (head, length) = bytes.split_at(HEADER - 8);
        let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
        if head == &header(number, call, 0)[..HEADER - 8] {
            return Ok(length);
        }
        let theirs = Call::decode(&head[8..]).map_or_else(|| "something else".to_owned(), |c| c.to_string());
        let text = format!(
            "{theirs} of its meets {call} of rank {}: ranks must do the same in the same order",
            self.link.rank
        );
        Err(self.link.broken(self.before(), &text))
    }
}

/// Number, call and length.
const HEADER: usize = 8 + Call::BYTES + 8;

fn header(number: u64, call: Call, length: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..8 + Call::BYTES].copy_from_slice(&call.encode());
    bytes[8 + Call::BYTES..].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Segment `index` of `len` values, of as many as there are ranks; lengths differ by one at most.
fn segment(len: usize, world: usize, index: usize) -> Range<usize> {
    let start = |i: usize| len / world * i + i.min(len % world);
    start(index)..start(index + 1)
}

/// `range` in pieces of about [`PIECE`] bytes.
fn pieces(range: Range<usize>, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let step = PIECE / bytes;
    range.clone().step_by(step).map(move |start| start..range.end.min(start + step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::Deadlines;
    use crate::dist::member::Member;
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    /// What rank 1 of two makes of `said`, which rank 0 sends before its values, when nobody else tells what is wrong.
    fn summed(said: &[u8]) -> Result<Vec<f32>> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let member = |rank| Member { rank, host: "h".to_owned(), pid: 1, address };
        let deadlines = Deadlines { silence: Duration::from_millis(50), ..Deadlines::default() };
        let link = Arc::new(Link::new(1, vec![member(0), member(1)], deadlines));
        let mut before = TcpStream::connect(address).expect("taken");
        let (from, _) = listener.accept().expect("a connection");
        let mut ring = Ring::new(&link, from, &before)?;
        before.write_all(said).expect("taken");
        for value in [1.0_f32, 2.0, 30.0, 40.0] {
            before.write_all(&value.to_le_bytes()).expect("taken");
        }
        let mut values = vec![10.0, 20.0, 3.0, 4.0];
        ring.sum_f32(&mut values, DType::F32).map(|()| values)
    }

    #[test]
    fn another_collective_is_not_summed() {
        let call = |len| Call::AllReduce { dtype: DType::F32, wire: DType::F32, len };
        let sum = summed(&header(0, call(4), 0)).expect("the same collective");
        assert_eq!(sum, [11.0, 22.0, 30.0, 40.0]);
        for (number, other, what) in [
            (0, call(5), "all_reduce of 5 f32 values"),
            (1, call(4), "all_reduce of 4 f32 values"),
            (0, Call::Broadcast { root: 0 }, "broadcast from rank 0"),
        ] {
            let error = summed(&header(number, other, 0)).expect_err("another collective").to_string();
            assert!(error.starts_with("rank 0 (h") && error.contains(what), "{error}");
            assert!(error.contains("meets all_reduce of 4 f32 values of rank 1"), "{error}");
        }
        let error = summed(&[0xff; HEADER]).expect_err("nothing of the kind").to_string();
        assert!(error.contains("something else"), "{error}");
    }
}
