//! Messages between ranks over TCP: each wait looks whether it is still wanted.

use crate::control::{INVALID_USAGE, REMOTE_ERROR, SYSTEM_ERROR};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// How long one waits before one looks whether the wait is still wanted.
const GLANCE: Duration = Duration::from_millis(20);
/// From one look at the door to the next.
const PAUSE: Duration = Duration::from_millis(1);

/// A failed exchange: result and why.
pub type Broken = (i32, String);

/// A stream to another rank.
pub struct Peer {
    stream: TcpStream,
}

fn lost(e: &std::io::Error) -> Broken {
    (REMOTE_ERROR, format!("a rank went away: {e}"))
}

impl Peer {
    fn over(stream: TcpStream) -> Result<Self, Broken> {
        let set = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| stream.set_read_timeout(Some(GLANCE)))
            .and_then(|()| stream.set_write_timeout(Some(GLANCE)));
        set.map_err(|e| (SYSTEM_ERROR, e.to_string()))?;
        Ok(Peer { stream })
    }

    /// Moves `len` bytes by `step`, which tells how many it moved from a place on.
    fn moved(
        &mut self,
        len: usize,
        unwanted: &AtomicBool,
        mut step: impl FnMut(&mut TcpStream, usize) -> std::io::Result<usize>,
    ) -> Result<(), Broken> {
        let mut at = 0;
        while at < len {
            if unwanted.load(Ordering::Relaxed) {
                return Err((REMOTE_ERROR, "the communicator is torn down".to_owned()));
            }
            match step(&mut self.stream, at) {
                Ok(0) => return Err((REMOTE_ERROR, "a rank went away".to_owned())),
                Ok(n) => at += n,
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Err(lost(&e)),
                },
            }
        }
        Ok(())
    }

    pub fn send(&mut self, bytes: &[u8], unwanted: &AtomicBool) -> Result<(), Broken> {
        self.moved(bytes.len(), unwanted, |stream, at| stream.write(&bytes[at..]))
    }

    pub fn receive(&mut self, bytes: &mut [u8], unwanted: &AtomicBool) -> Result<(), Broken> {
        self.moved(bytes.len(), unwanted, |stream, at| stream.read(&mut bytes[at..]))
    }
}

/// Rank and number of ranks, as they greet each other.
fn greeting(nonce: u64, rank: i32, world: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&nonce.to_ne_bytes());
    bytes[8..12].copy_from_slice(&rank.to_ne_bytes());
    bytes[12..].copy_from_slice(&world.to_ne_bytes());
    bytes
}

/// Waits for all other ranks; theirs, by rank.
pub fn gather(
    listener: &TcpListener,
    nonce: u64,
    world: i32,
    unwanted: &AtomicBool,
) -> Result<Vec<Peer>, Broken> {
    listener.set_nonblocking(true).map_err(|e| (SYSTEM_ERROR, e.to_string()))?;
    let mut peers: Vec<Option<Peer>> = (1..world).map(|_| None).collect();
    while peers.iter().any(Option::is_none) {
        if unwanted.load(Ordering::Relaxed) {
            return Err((REMOTE_ERROR, "the communicator is torn down".to_owned()));
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                sleep(PAUSE);
                continue;
            }
            Err(e) => return Err((SYSTEM_ERROR, e.to_string())),
        };
        let mut peer = Peer::over(stream)?;
        let mut bytes = [0; 16];
        peer.receive(&mut bytes, unwanted)?;
        let known = (1..world).find(|rank| bytes == greeting(nonce, *rank, world));
        match known.map(|rank| &mut peers[rank as usize - 1]) {
            Some(place @ None) => *place = Some(peer),
            _ => return Err((INVALID_USAGE, "a rank came twice, or counts other ranks".to_owned())),
        }
    }
    let mut peers: Vec<Peer> = peers.into_iter().flatten().collect();
    peers.iter_mut().try_for_each(|peer| peer.send(&[1], unwanted))?;
    Ok(peers)
}

/// Joins those who wait at `port`.
pub fn join(port: u16, nonce: u64, rank: i32, world: i32, unwanted: &AtomicBool) -> Result<Peer, Broken> {
    let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| lost(&e))?;
    let mut peer = Peer::over(stream)?;
    peer.send(&greeting(nonce, rank, world), unwanted)?;
    peer.receive(&mut [0], unwanted)?;
    Ok(peer)
}
