//! Threads that write what others hand over, so that nobody waits for a connection that takes nothing.

use crossbeam_channel::{Receiver, Sender, unbounded};
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What is to be written: to one, or the same to several.
#[derive(Debug)]
pub(super) enum Bytes {
    Own(Vec<u8>),
    Shared(Arc<[u8]>),
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::Own(bytes)
    }
}

impl From<Arc<[u8]>> for Bytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Bytes::Shared(bytes)
    }
}

/// A connection that a thread writes to.
#[derive(Debug)]
pub(super) struct Line {
    stream: TcpStream,
    queue: Sender<Option<Bytes>>,
}

impl Line {
    /// Writes in a thread of its own, which calls `broken` when it cannot.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(
        stream: &TcpStream,
        name: String,
        broken: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<(Line, JoinHandle<()>)> {
        let (queue, waiting) = unbounded();
        let to = stream.try_clone()?;
        let write = move || {
            if let Err(e) = pass_on(&waiting, to) {
                broken(e);
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(write)?;
        Ok((Line { stream: stream.try_clone()?, queue }, thread))
    }

    /// Hands over bytes; if the connection is gone, its reader tells.
    pub fn send(&self, bytes: impl Into<Bytes>) {
        let _ = self.queue.send(Some(bytes.into()));
    }

    /// Nothing is waiting to be written.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Ends the connection's outgoing half once everything is written.
    pub fn finish(&self) {
        let _ = self.queue.send(None);
    }

    /// Ends both halves at once, whatever is under way.
    pub fn cut(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        self.finish();
    }
}

fn pass_on(waiting: &Receiver<Option<Bytes>>, mut to: TcpStream) -> io::Result<()> {
    while let Ok(Some(bytes)) = waiting.recv() {
        match bytes {
            Bytes::Own(bytes) => to.write_all(&bytes)?,
            Bytes::Shared(bytes) => to.write_all(&bytes)?,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    Ok(())
}
