//! The state of a run as one process knows it, shared by its main thread, the readers of its control connections and its
//! heartbeat.

mod control;

use super::deadlines::Deadlines;
use super::frame::{self, Call, Frame, Status};
use super::lines::Line;
use super::member::{Failure, Member};
use crate::backend::Phase;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What all threads of a process share. Rank 0 has a line to everybody, the others have one to rank 0.
#[derive(Debug)]
pub(super) struct Link {
    pub rank: usize,
    pub members: Vec<Member>,
    pub deadlines: Deadlines,
    state: Mutex<State>,
    changed: Condvar,
    lines: Mutex<Vec<(usize, Line)>>,
    /// Data connections, to be cut when the run fails: a main thread that waits for them then wakes up.
    data: Mutex<Vec<TcpStream>>,
    began: Instant,
    /// Milliseconds since `began` when the collective under way last moved something.
    touched: AtomicU64,
    /// Bytes that came by data connections.
    moved: AtomicU64,
}

#[derive(Debug)]
pub(super) struct State {
    pub failure: Option<(Instant, Failure)>,
    /// Whether the main thread knows of the failure.
    pub seen: bool,
    /// What seems to be, and since when; rank 0 waits a moment for better evidence.
    pub suspicion: Option<(Instant, Failure)>,
    pub phase: Phase,
    /// Collectives that this rank has begun.
    begun: u64,
    within: bool,
    /// By rank. Rank 0 knows all, the others rank 0 only.
    pub peers: Vec<Peer>,
    /// On rank 0: collectives that some have begun and some have not.
    pub calls: BTreeMap<u64, Pending>,
    /// What ranks have for an all_gather, by its number and by rank.
    parts: BTreeMap<u64, Vec<Option<Vec<u8>>>>,
    left: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub heard: Instant,
    pub status: Status,
    /// It said that it takes no more part.
    pub left: bool,
    /// It has answered that this one takes no more part, or is gone.
    pub parted: bool,
}

/// A collective that not all have begun.
#[derive(Debug)]
pub(super) struct Pending {
    pub call: Call,
    /// Who began it first.
    pub first: usize,
    came: usize,
}

impl Link {
    pub fn new(rank: usize, members: Vec<Member>, deadlines: Deadlines) -> Self {
        let now = Instant::now();
        let peer = Peer { heard: now, status: Status::NEW, left: false, parted: false };
        let state = State {
            failure: None,
            seen: false,
            suspicion: None,
            phase: Phase::Start,
            begun: 0,
            within: false,
            peers: vec![peer; members.len()],
            calls: BTreeMap::new(),
            parts: BTreeMap::new(),
            left: false,
        };
        Link {
            rank,
            members,
            deadlines,
            state: Mutex::new(state),
            changed: Condvar::new(),
            lines: Mutex::default(),
            data: Mutex::default(),
            began: now,
            touched: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }
    }

    pub fn world(&self) -> usize {
        self.members.len()
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> MutexGuard<'_, Vec<(usize, Line)>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A control connection that is written to from here on.
    pub fn add_line(&self, rank: usize, line: Line) {
        self.lines().push((rank, line));
    }

    /// A data connection that is cut when the run fails.
    ///
    /// # Errors
    /// The failure, if there is one already; those of the system.
    pub fn add_data(&self, stream: &TcpStream) -> Result<()> {
        let copy = stream.try_clone().map_err(|e| self.refused("share a connection", &e))?;
        self.data.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
        self.check()
    }

    /// An error of this process' own system.
    pub fn refused(&self, action: &str, e: &std::io::Error) -> Error {
        Error::distributed(self.members[self.rank].to_string(), format!("cannot {action}: {e}"))
    }

    /// To everybody that this rank has a line to.
    pub fn tell_all(&self, frame: &Frame) {
        self.send_all(frame.encode().into());
    }

    fn send_all(&self, bytes: Arc<[u8]>) {
        self.lines().iter().for_each(|(_, line)| line.send(bytes.clone()));
    }

    /// A heartbeat, to those that have no other bytes coming.
    pub fn beat(&self) {
        let status = self.status(&self.lock());
        let bytes: Arc<[u8]> = Frame::Beat(status).encode().into();
        self.lines().iter().filter(|(_, line)| line.is_idle()).for_each(|(_, line)| line.send(bytes.clone()));
    }

    /// Something was moved by the collective under way.
    pub fn touch(&self, bytes: usize) {
        self.touched.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn status(&self, state: &State) -> Status {
        let now = self.began.elapsed().as_millis() as u64;
        let stalled = now.saturating_sub(self.touched.load(Ordering::Relaxed));
        Status {
            phase: state.phase,
            begun: state.begun,
            stalled: state.within.then_some(stalled),
            moved: self.moved.load(Ordering::Relaxed),
        }
    }

    /// This rank does something else from here on.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = phase;
        // By the line itself, whatever else waits in it: the others judge by what they know.
        self.tell_all(&Frame::Beat(self.status(&state)));
    }

    /// The run has failed; what was said first stays said. Rank 0 tells everybody.
    pub fn fail(&self, failure: Failure) {
        self.fail_locked(&mut self.lock(), failure);
    }

    pub fn fail_locked(&self, state: &mut State, failure: Failure) {
        if state.failure.is_some() || state.left {
            return;
        }
        if self.rank == 0 {
            self.tell_all(&Frame::Abort(failure.clone()));
        }
        state.failure = Some((Instant::now(), failure));
        self.changed.notify_all();
        self.cut_data();
    }

    fn cut_data(&self) {
        for stream in self.data.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Somebody seems to be gone. Whoever has better evidence, such as the reason that it gave, may say so for a moment.
    pub fn suspect(&self, failure: Failure) {
        let mut state = self.lock();
        if state.failure.is_some() || state.left {
            return;
        }
        if self.rank == 0 {
            state.suspicion.get_or_insert((Instant::now(), failure));
        } else {
            self.tell_all(&Frame::Suspect(failure));
        }
    }

    /// What a broken data connection to `peer` means: the verdict of rank 0, or what it looks like from here.
    pub fn broken(&self, peer: usize, what: &str) -> Error {
        if let Err(e) = self.check() {
            return e;
        }
        let failure = Failure::new(&self.members[peer], what);
        self.suspect(failure.clone());
        let until = Instant::now() + self.deadlines.silence + self.deadlines.beat() * 4;
        let waited: Result<bool> = self.wait(Some(until), |_| None::<bool>, || failure.clone());
        waited.err().unwrap_or_else(|| failure.error())
    }

    /// # Errors
    /// The failure of the run.
    pub fn check(&self) -> Result<()> {
        self.check_locked(&mut self.lock())
    }

    fn check_locked(&self, state: &mut State) -> Result<()> {
        let Some((_, failure)) = &state.failure else { return Ok(()) };
        state.seen = true;
        Err(failure.error())
    }

    /// Waits until `ready` gives something. `late` says why that took too long.
    ///
    /// # Errors
    /// The failure of the run; `late` after `until`, if there is such a time.
    pub fn wait<T>(
        &self,
        until: Option<Instant>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
        late: impl FnOnce() -> Failure,
    ) -> Result<T> {
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            self.check_locked(&mut state)?;
            let left =
                until.map_or(Duration::from_secs(3600), |t| t.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                drop(state);
                let failure = late();
                self.fail(failure);
                return self.check().and_then(|()| Err(Error::distributed("this rank", "has left the run")));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A collective begins on this rank; its number.
    ///
    /// # Errors
    /// The failure of the run, such as that others do something else.
    pub fn begin(&self, call: Call) -> Result<u64> {
        let mut state = self.lock();
        if state.left {
            return Err(Error::distributed(self.members[self.rank].to_string(), "has left the run already"));
        }
        self.check_locked(&mut state)?;
        let number = state.begun;
        state.begun += 1;
        state.within = true;
        self.touch(0);
        if self.rank == 0 {
            self.note_call(&mut state, 0, number, call);
            self.check_locked(&mut state)?;
        } else if let Some(gone) = self.left_before(&state, number) {
            self.fail_locked(&mut state, self.gone(gone, self.rank));
            self.check_locked(&mut state)?;
        } else {
            self.tell_all(&Frame::Begin { number, call });
        }
        Ok(number)
    }

    /// The collective under way is done.
    pub fn end(&self) {
        self.lock().within = false;
    }

    /// On rank 0: `rank` begins a collective. All must begin the same ones.
    fn note_call(&self, state: &mut State, rank: usize, number: u64, call: Call) {
        let world = self.world();
        let pending = state.calls.entry(number).or_insert(Pending { call, first: rank, came: 0 });
        pending.came += 1;
        let (before, first, all) = (pending.call, pending.first, pending.came == world);
        if all {
            state.calls.remove(&number);
        }
        if before != call {
            let text = format!(
                "{call} meets {before} of rank {first}, each its collective number {}: ranks must do the same in the same order \
                 (configurations or data differ, or a defect of this program)",
                number + 1
            );
            self.fail_locked(state, Failure::new(&self.members[rank], text));
        } else if let Some(gone) = self.left_before(state, number) {
            self.fail_locked(state, self.gone(gone, rank));
        }
    }

    /// A rank that takes no part in collective `number`.
    fn left_before(&self, state: &State, number: u64) -> Option<usize> {
        state.peers.iter().position(|p| p.left && p.status.begun <= number)
    }

    fn gone(&self, peer: usize, waiting: usize) -> Failure {
        let text = format!(
            "has ended its part, but rank {waiting} goes on: ranks must do the same in the same order"
        );
        Failure::new(&self.members[peer], text)
    }

    /// Puts `own` among what the ranks have for the all_gather `number`; what they all have.
    ///
    /// # Errors
    /// The failure of the run; `late` after `until`.
    pub fn gather(
        &self,
        number: u64,
        own: &[u8],
        until: Option<Instant>,
        late: impl FnOnce(Vec<usize>) -> Failure,
    ) -> Result<Vec<Vec<u8>>> {
        if self.rank == 0 {
            self.store_part(&mut self.lock(), number, 0, own.to_vec());
        } else {
            self.tell_all(&Frame::Part { number, bytes: own.to_vec() });
        }
        let world = self.world();
        let complete = |state: &mut State| {
            let parts = state.parts.get(&number)?;
            if parts.len() < world || parts.iter().any(Option::is_none) {
                return None;
            }
            state.parts.remove(&number).map(|parts| parts.into_iter().flatten().collect::<Vec<_>>())
        };
        let missing = || {
            let state = self.lock();
            let here = |rank: usize| {
                state.parts.get(&number).and_then(|parts| parts.get(rank)).is_some_and(Option::is_some)
            };
            (0..world).filter(|rank| !here(*rank)).collect()
        };
        let all = self.wait(until, complete, || late(missing()))?;
        if self.rank == 0 {
            for (rank, bytes) in all.iter().enumerate() {
                self.send_all(frame::whole(number, rank, bytes).into());
            }
        }
        Ok(all)
    }

    fn store_part(&self, state: &mut State, number: u64, rank: usize, bytes: Vec<u8>) {
        let world = self.world();
        let parts = state.parts.entry(number).or_insert_with(|| vec![None; world]);
        if let Some(part) = parts.get_mut(rank) {
            *part = Some(bytes);
        }
        self.touch(0);
        self.changed.notify_all();
    }
}
