//! How rank 0 receives the others, and how any rank takes the data connection of the one before it.

use super::greeting::{self, Greeting, Guest, Seat, Welcome};
use super::launch::Launch;
use super::member::{nonce, plain};
use crate::error::{Error, Result};
use crate::units::human_duration;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Between two looks for what has come.
const PAUSE: Duration = Duration::from_millis(5);
/// For whoever connects to say who it is.
const GREETING: Duration = Duration::from_secs(5);
/// Connections that may be open without having said who they are.
const UNKNOWN: usize = 256;

/// A connection, and what was said on it first.
type Visitor = (TcpStream, Greeting);

/// A listening socket whose visitors are heard in threads of their own: whoever says nothing, or nonsense, keeps nobody waiting.
pub(super) struct Door {
    listener: TcpListener,
    to: Sender<Visitor>,
    heard: Receiver<Visitor>,
    unknown: Arc<AtomicUsize>,
}

impl Door {
    /// # Errors
    /// Those of the system.
    pub fn new(listener: TcpListener) -> io::Result<Door> {
        listener.set_nonblocking(true)?;
        let (to, heard) = unbounded();
        Ok(Door { listener, to, heard, unknown: Arc::default() })
    }

    pub fn port(&self) -> io::Result<u16> {
        self.listener.local_addr().map(|a| a.port())
    }

    /// Who came and said something sensible, waiting a moment for it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn visitor(&self) -> io::Result<Option<Visitor>> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.hear(stream)?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                // A visitor that is gone already, or too many of them: the next look may be luckier.
                Err(_) => break,
            }
        }
        Ok(self.heard.recv_timeout(PAUSE).ok())
    }

    fn hear(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        if self.unknown.fetch_add(1, Ordering::Relaxed) >= UNKNOWN {
            self.unknown.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        let (to, unknown) = (self.to.clone(), self.unknown.clone());
        let listen = move || {
            let soon = Instant::now() + GREETING;
            match greeting::hear(&mut stream, greeting::SHORT, soon) {
                Ok(greeting) => drop(to.send((stream, greeting))),
                Err(e) if e.kind() == ErrorKind::Unsupported => {
                    let answer = Greeting::Refused { reason: format!("this rank {e}"), again: false };
                    let _ = greeting::say(&mut stream, &answer, soon);
                }
                // Strangers are shed by dropping the connection.
                Err(_) => {}
            }
            unknown.fetch_sub(1, Ordering::Relaxed);
        };
        std::thread::Builder::new().name("visitor".into()).spawn(listen).map(drop)
    }

    /// The data connection of rank `from`.
    ///
    /// # Errors
    /// Those of the system; those of `check`, which is asked while nobody comes.
    pub fn data_of(
        &self,
        from: usize,
        token: &str,
        refused: impl Fn(io::Error) -> Error,
        check: impl Fn() -> Result<()>,
    ) -> Result<TcpStream> {
        loop {
            check()?;
            match self.visitor().map_err(&refused)? {
                Some((stream, Greeting::Data { token: theirs, from: rank }))
                    if theirs == token && rank == from =>
                {
                    return Ok(stream);
                }
                Some((mut stream, Greeting::Hello(_))) => {
                    let reason = "has found all its ranks already".to_owned();
                    let answer = Greeting::Refused { reason, again: true };
                    let _ = greeting::say(&mut stream, &answer, Instant::now() + PAUSE);
                }
                _ => {}
            }
        }
    }
}

/// All ranks but 0, with their control connections, and what they were told.
pub(super) struct Received {
    pub controls: Vec<TcpStream>,
    pub welcome: Welcome,
    /// Where rank 0 reaches them.
    pub seen: Vec<IpAddr>,
}

struct Reception<'a> {
    launch: &'a Launch,
    /// Rank 0 itself, as a guest.
    own: &'a Guest,
    guests: Vec<Option<(Guest, TcpStream)>>,
    refused: Vec<String>,
}

/// Waits at the door of rank 0 until all ranks are there, and tells them.
///
/// # Errors
/// [`Error::Distributed`] after `join` with the ranks that are missing; when a rank of this very launch does not fit.
pub(super) fn receive(
    launch: &Launch,
    own: &Guest,
    door: &Door,
    start: Instant,
    join: Duration,
) -> Result<Received> {
    let refused = |e| Error::distributed("rank 0", format!("cannot listen: {e}"));
    let guests = (1..launch.world).map(|_| None).collect();
    let mut reception = Reception { launch, own, guests, refused: Vec::new() };
    while !reception.is_complete() {
        if start.elapsed() >= join {
            return Err(reception.give_up(join));
        }
        let Some((stream, Greeting::Hello(guest))) = door.visitor().map_err(refused)? else { continue };
        reception.admit(guest, stream)?;
    }
    reception.welcome(door.port().map_err(refused)?)
}

/// Why a guest may not take part.
enum Refusal {
    /// It belongs to another launch.
    Stranger(String),
    /// It is one of this launch, as far as one can know.
    Unfit(String),
}

impl Reception<'_> {
    /// Whether all are there, and still are.
    fn is_complete(&mut self) -> bool {
        if self.guests.iter().any(Option::is_none) {
            return false;
        }
        for seat in &mut self.guests {
            if seat.as_ref().is_some_and(|(_, stream)| !is_open(stream)) {
                *seat = None;
            }
        }
        self.guests.iter().all(Option::is_some)
    }

    fn admit(&mut self, guest: Guest, mut stream: TcpStream) -> Result<()> {
        let soon = Instant::now() + GREETING;
        let name = format!("rank {} ({}, pid {})", guest.rank, plain(&guest.host), guest.pid);
        let (reason, again) = match self.fits(&guest) {
            Ok(()) => {
                if greeting::say(&mut stream, &Greeting::Noted, soon).is_ok() {
                    let seat = guest.rank - 1;
                    self.guests[seat] = Some((guest, stream));
                }
                return Ok(());
            }
            Err(Refusal::Stranger(reason)) => (reason, true),
            Err(Refusal::Unfit(reason)) => (reason, false),
        };
        let answer = Greeting::Refused { reason: reason.clone(), again };
        let _ = greeting::say(&mut stream, &answer, soon);
        let refusal = format!("{name}: {}", plain(&reason));
        if !again && !self.launch.id.is_empty() && guest.launch == self.launch.id {
            self.tell(&format!("the run ends, since rank 0 refuses {refusal}"));
            return Err(Error::distributed(name, plain(&reason)));
        }
        // Its rank may still come: this may have been one of another run, or one that was started anew. It may also try again.
        const NAMED: usize = 8;
        if self.refused.len() < NAMED && !self.refused.contains(&refusal) {
            eprintln!("warning: rank 0 refuses {refusal}");
            self.refused.push(refusal);
        }
        Ok(())
    }

    fn fits(&self, guest: &Guest) -> std::result::Result<(), Refusal> {
        let own = self.own;
        if guest.nonce != own.nonce
            || (!guest.launch.is_empty() && !own.launch.is_empty() && guest.launch != own.launch)
        {
            return Err(Refusal::Stranger("waits for ranks of another launch".to_owned()));
        }
        let unfit = |text| Err(Refusal::Unfit(text));
        let differ = |what: &str, theirs: &str, remedy: &str| {
            Err(Refusal::Unfit(format!("{what} is {theirs} on rank {}, {remedy}", guest.rank)))
        };
        if guest.version != own.version {
            let rest = format!("{} on rank 0: install the same one everywhere", own.version);
            return differ("the version of the engine", &guest.version, &rest);
        }
        if guest.world != own.world {
            let rest = format!("{} on rank 0: start all ranks with the same number", own.world);
            return differ("the number of ranks", &guest.world.to_string(), &rest);
        }
        if guest.config != own.config {
            let rest = format!("{} on rank 0: start all ranks with the same configuration", own.config);
            return differ("the hash of the configuration", &guest.config, &rest);
        }
        if guest.rank == 0 || guest.rank >= own.world {
            return unfit(format!(
                "there is no place for rank {} beside rank 0 of {}",
                guest.rank, own.world
            ));
        }
        for (other, stream) in std::iter::once((own, None)).chain(self.known()) {
            if other.rank == guest.rank {
                // One that is gone gives its place to whoever replaces it.
                if stream.is_some_and(is_open) {
                    let [host, theirs] = [&other.host, &guest.host].map(|h| plain(h));
                    let (pid, new) = (other.pid, guest.pid);
                    let text = format!(
                        "rank {} is there twice: {host}, pid {pid}, and {theirs}, pid {new}",
                        guest.rank
                    );
                    return unfit(text);
                }
            } else if other.machine == guest.machine
                && other.device == guest.device
                && !is_shared(&guest.device)
            {
                let (device, host) = (plain(&guest.device), plain(&guest.host));
                return unfit(format!(
                    "ranks {} and {} both use {device} of {host}: each rank needs its own; set LOCAL_RANK or \
                     CUDA_VISIBLE_DEVICES",
                    other.rank, guest.rank
                ));
            }
        }
        Ok(())
    }

    fn known(&self) -> impl Iterator<Item = (&Guest, Option<&TcpStream>)> {
        self.guests.iter().flatten().map(|(guest, stream)| (guest, Some(stream)))
    }

    fn tell(&mut self, reason: &str) {
        let answer = Greeting::Refused { reason: reason.to_owned(), again: false };
        for (_, stream) in self.guests.iter_mut().flatten() {
            let _ = greeting::say(stream, &answer, Instant::now() + Duration::from_secs(1));
        }
    }

    fn give_up(&mut self, join: Duration) -> Error {
        let missing: Vec<String> = (1..self.launch.world)
            .filter(|rank| self.guests[rank - 1].is_none())
            .map(|rank| rank.to_string())
            .collect();
        let ranks = format!("{} {}", if missing.len() == 1 { "rank" } else { "ranks" }, missing.join(", "));
        let waited = human_duration(join.as_secs_f64());
        let mut text = format!(
            "did not come to the meeting within {waited}: were they started, and can they reach rank 0?"
        );
        if !self.refused.is_empty() {
            text = format!("{text} Refused: {}", self.refused.join("; "));
        }
        self.tell(&format!("{ranks} {text}"));
        Error::distributed(ranks, text)
    }

    fn welcome(self, port: u16) -> Result<Received> {
        let token = nonce();
        let own = Seat { host: self.own.host.clone(), pid: self.own.pid, ip: None, port };
        let mut received =
            Received { controls: Vec::new(), welcome: Welcome { token, seats: vec![own] }, seen: Vec::new() };
        for (guest, stream) in self.guests.into_iter().flatten() {
            let name = format!("rank {} ({}, pid {})", guest.rank, plain(&guest.host), guest.pid);
            let seen =
                stream.peer_addr().map_err(|e| Error::distributed(name, format!("is gone already: {e}")))?;
            let seen = seen.ip().to_canonical();
            // Reached through this host alone: others reach it as they reach rank 0.
            let ip = (!seen.is_loopback()).then_some(seen);
            received.welcome.seats.push(Seat { host: guest.host, pid: guest.pid, ip, port: guest.port });
            received.seen.push(seen);
            received.controls.push(stream);
        }
        let greeting = Greeting::Welcome(received.welcome.clone());
        for (at, stream) in received.controls.iter_mut().enumerate() {
            greeting::say(stream, &greeting, Instant::now() + GREETING).map_err(|e| {
                let seat = &received.welcome.seats[at + 1];
                let name = format!("rank {} ({}, pid {})", at + 1, plain(&seat.host), seat.pid);
                Error::distributed(name, format!("came to the meeting and is gone again: {e}"))
            })?;
        }
        Ok(received)
    }
}

/// Whether ranks may share a device.
fn is_shared(device: &str) -> bool {
    device.is_empty() || device.starts_with("cpu")
}

/// Whether the other side still is there; it has nothing to say while it waits.
fn is_open(stream: &TcpStream) -> bool {
    let mut byte = [0];
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut byte));
    let _ = stream.set_nonblocking(false);
    matches!(peeked, Err(e) if e.kind() == ErrorKind::WouldBlock)
}
