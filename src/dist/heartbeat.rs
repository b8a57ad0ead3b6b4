//! The threads behind a [`Link`]: those that read control connections, and the heartbeat, which tells the others that this
//! process lives, and judges (on rank 0) who does not.

use super::deadlines::Deadlines;
use super::frame::{Frame, Status};
use super::lines::Line;
use super::link::{Link, State};
use super::member::Failure;
use crate::backend::Phase;
use crate::error::Result;
use crate::units::human_duration;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Exit status of a process whose run has failed while its main thread was stuck, such as in a device's library: it cannot end
/// in order. The reason is on standard error.
pub const STUCK: i32 = 75;

/// Reads and writes the control connection to `peer` in threads of their own.
///
/// # Errors
/// Those of the system.
pub(super) fn attend(link: &Arc<Link>, peer: usize, stream: &TcpStream) -> Result<()> {
    let refused = |e: io::Error| link.refused("start a thread for a connection", &e);
    stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None)).map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    let to = link.clone();
    // What cannot be written is no news: the reader sees the same end of the connection.
    let (line, _) = Line::open(stream, format!("to rank {peer}"), drop).map_err(refused)?;
    link.add_line(peer, line);
    let mut from = stream.try_clone().map_err(refused)?;
    let read = move || {
        let end = loop {
            match Frame::read(&mut from, |bytes| to.heard(peer, bytes)) {
                Ok(Some(frame)) => to.receive(peer, frame),
                Ok(None) => break None,
                Err(e) => break Some(e),
            }
        };
        to.closed(peer, end);
    };
    std::thread::Builder::new().name(format!("from rank {peer}")).spawn(read).map(drop).map_err(refused)
}

/// The thread that says "I live" until it is dropped.
#[derive(Debug)]
pub(super) struct Heart {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heart {
    /// # Errors
    /// Those of the system.
    pub fn start(link: &Arc<Link>) -> Result<Heart> {
        let (stop, stopped) = bounded(0);
        let of = link.clone();
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || beat(&of, &stopped));
        let thread = thread.map_err(|e| link.refused("start a thread", &e))?;
        Ok(Heart { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn beat(link: &Link, stopped: &Receiver<()>) {
    let tick = link.deadlines.beat();
    let mut last = Instant::now();
    let mut aside = last;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(tick) {
        let now = Instant::now();
        let mut state = link.lock();
        if now - last > link.deadlines.silence / 2 {
            // This process itself was stopped: what the others said meanwhile waits to be read.
            state.peers.iter_mut().for_each(|p| p.heard = now);
            aside = now;
        }
        last = now;
        if let Some(failure) = judge(link, &state, now, &mut aside) {
            link.fail_locked(&mut state, failure);
        }
        let stuck = is_stuck(link, &state, now);
        drop(state);
        if let Some(failure) = stuck {
            end_process(link, &failure);
        }
        link.beat();
    }
}

/// What is wrong with the others, if something is. `aside`: when somebody last was in a phase of its own.
fn judge(link: &Link, state: &State, now: Instant, aside: &mut Instant) -> Option<Failure> {
    let Deadlines { silence, step, .. } = link.deadlines;
    let known = if link.rank == 0 { 1..link.world() } else { 0..1 };
    let present: Vec<usize> = known.filter(|rank| !state.peers[*rank].left).collect();
    let silent: Vec<usize> =
        present.iter().copied().filter(|r| now - state.peers[*r].heard > silence).collect();
    if !silent.is_empty() {
        let text = format!(
            "no sign of life for {}: the process stands still, or its host or the network to it is down",
            human_duration(silence.as_secs_f64())
        );
        return Some(Failure::new(names(link, &silent), text));
    }
    if link.rank != 0 {
        return None;
    }
    if let Some((since, failure)) = &state.suspicion
        && now - *since > link.deadlines.beat() * 2
    {
        return Some(failure.clone());
    }
    let status = |rank: usize| if rank == 0 { link.status(state) } else { state.peers[rank].status };
    let all: Vec<(usize, Status)> = std::iter::once(0).chain(present).map(|r| (r, status(r))).collect();
    if all.iter().any(|(_, s)| s.phase != Phase::Step) {
        *aside = now;
    }
    let limit = step.as_millis() as u64;
    let since_aside = (now - *aside).as_millis() as u64;
    let waits = |s: &Status| s.stalled.is_some_and(|ms| ms.min(since_aside) >= limit);
    let waiting: Vec<&(usize, Status)> = all.iter().filter(|(_, s)| waits(s)).collect();
    late(link, state, &all, &waiting, step)
}

/// Who is to blame that `waiting` wait for longer than `step`.
fn late(
    link: &Link,
    state: &State,
    all: &[(usize, Status)],
    waiting: &[&(usize, Status)],
    step: Duration,
) -> Option<Failure> {
    let (first, furthest) = waiting.iter().map(|(r, s)| (*r, s.begun)).max_by_key(|(_, begun)| *begun)?;
    let step = human_duration(step.as_secs_f64());
    let late: Vec<usize> = all.iter().filter(|(_, s)| s.begun < furthest).map(|(r, _)| *r).collect();
    if late.is_empty() {
        // All are there, so a connection is what stands: whoever got least is behind it.
        let behind = waiting.iter().min_by_key(|(_, s)| s.moved).map_or(first, |(r, _)| *r);
        let before = (behind + link.world() - 1) % link.world();
        let text = format!(
            "receives nothing from rank {before} for {step}, though both live: look at the network between the two"
        );
        return Some(Failure::new(&link.members[behind], text));
    }
    let what =
        state.calls.get(&(furthest - 1)).map_or_else(|| "a collective".to_owned(), |p| p.call.to_string());
    let text = format!("is alive, but did not come to {what} within {step}, where rank {first} waits");
    Some(Failure::new(names(link, &late), text))
}

fn names(link: &Link, ranks: &[usize]) -> String {
    let names: Vec<String> = ranks.iter().map(|r| link.members[*r].to_string()).collect();
    names.join(", ")
}

/// The failure that the main thread has not noticed in time. In a phase of its own it may be writing what is worth keeping.
fn is_stuck(link: &Link, state: &State, now: Instant) -> Option<Failure> {
    let (since, failure) = state.failure.as_ref().filter(|_| !state.seen)?;
    let more = if state.phase == Phase::Step { Duration::ZERO } else { link.deadlines.step };
    (now - *since > link.deadlines.grace + more).then(|| failure.clone())
}

fn end_process(link: &Link, failure: &Failure) {
    crate::files::atomic::remove_unfinished(|| {
        let me = &link.members[link.rank];
        let waited = human_duration(link.deadlines.grace.as_secs_f64());
        let stuck = format!("{me} did not notice within {waited} and is ended with exit status {STUCK}");
        eprintln!("error: {}; {stuck}", failure.error());
        #[cfg(unix)]
        signal_hook::low_level::exit(STUCK);
        #[cfg(not(unix))]
        std::process::exit(STUCK);
    });
}
