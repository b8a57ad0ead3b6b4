//! What comes over control connections, and how they end.

use super::{Link, State};
use crate::dist::frame::{self, Frame, Status};
use crate::dist::member::Failure;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

impl Link {
    /// `bytes` of `peer` came, be it a part of a frame.
    pub fn heard(&self, peer: usize, bytes: usize) {
        self.lock().peers[peer].heard = Instant::now();
        if bytes == frame::PIECE {
            // A large frame on its way.
            self.touch(0);
        }
    }

    /// Does what a frame of `peer` asks for.
    pub fn receive(&self, peer: usize, frame: Frame) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut nonsense = false;
        match frame {
            Frame::Beat(status) => {
                let begun = state.peers[peer].status.begun;
                // What it has begun, it says by itself: a heartbeat may be older than what is known.
                state.peers[peer].status = Status { begun, ..status };
            }
            Frame::Begin { number, call } if self.rank == 0 && number == state.peers[peer].status.begun => {
                state.peers[peer].status.begun += 1;
                self.note_call(state, peer, number, call);
            }
            Frame::Part { number, bytes }
                if self.rank == 0 && number + 1 == state.peers[peer].status.begun =>
            {
                self.store_part(state, number, peer, bytes);
            }
            Frame::Whole { number, rank, bytes }
                if self.rank != 0 && number + 1 == state.begun && rank < self.world() =>
            {
                self.store_part(state, number, rank, bytes);
            }
            Frame::Suspect(failure) if self.rank == 0 => {
                state.suspicion.get_or_insert((Instant::now(), failure));
            }
            // A rank tells why it ends; rank 0 tells why all do.
            Frame::Abort(failure) if self.rank == 0 => {
                let text = format!("ended with an error: {}", failure.message);
                self.fail_locked(state, Failure::new(&self.members[peer], text));
            }
            Frame::Abort(failure) => self.fail_locked(state, failure),
            Frame::Leave { begun } => self.part(state, peer, begun),
            Frame::Bye => state.peers[peer].parted = true,
            _ => nonsense = true,
        }
        if nonsense {
            let text = "said what makes no sense at this point: is it the same version of this program?";
            self.fail_locked(state, Failure::new(&self.members[peer], text));
        }
        self.changed.notify_all();
    }

    /// `peer` takes no more part, after `begun` collectives.
    fn part(&self, state: &mut State, peer: usize, begun: u64) {
        state.peers[peer].left = true;
        state.peers[peer].status.begun = begun;
        if let Some((_, line)) = self.lines().iter().find(|(rank, _)| *rank == peer) {
            line.send(Frame::Bye.encode());
            line.finish();
        }
        let waiting = if self.rank == 0 {
            state.calls.range(begun..).next().map(|(_, pending)| pending.first)
        } else {
            (state.within && state.begun > begun).then_some(self.rank)
        };
        if let Some(rank) = waiting {
            self.fail_locked(state, self.gone(peer, rank));
        }
    }

    /// The control connection to `peer` ended.
    pub fn closed(&self, peer: usize, why: Option<std::io::Error>) {
        let mut state = self.lock();
        state.peers[peer].parted = true;
        if !state.peers[peer].left {
            let why = why.map_or_else(String::new, |e| format!(" ({e})"));
            let text = format!("ended without a word{why}: was it killed? Look at its own output");
            self.fail_locked(&mut state, Failure::new(&self.members[peer], text));
        }
        self.changed.notify_all();
    }

    /// This rank takes no more part; waits a moment until the others know.
    pub fn leave(&self, error: Option<&str>) {
        {
            let mut state = self.lock();
            state.seen = true;
            if state.left {
                return;
            }
            if let Some(message) = error {
                if self.rank == 0 {
                    let text = format!("ended with an error: {message}");
                    self.fail_locked(&mut state, Failure::new(&self.members[0], text));
                } else {
                    // Rank 0 knows whether this is the first cause.
                    self.tell_all(&Frame::Abort(Failure::new(&self.members[self.rank], message)));
                }
            }
            state.left = true;
            if let Some((_, failure)) = state.failure.as_ref().filter(|_| self.rank == 0) {
                // Once more, for those whose lines were not open yet.
                self.tell_all(&Frame::Abort(failure.clone()));
            }
            self.tell_all(&Frame::Leave { begun: state.begun });
        }
        let mut state = self.lock();
        // One that has failed may never answer.
        let patience = Duration::from_secs(if state.failure.is_some() { 1 } else { 5 });
        let until = Instant::now() + self.deadlines.silence.min(patience);
        loop {
            let parted = |rank: usize| rank == self.rank || state.peers[rank].parted;
            let all = if self.rank == 0 { (0..self.world()).all(parted) } else { parted(0) };
            let left = until.saturating_duration_since(Instant::now());
            if all || left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.cut_data();
        self.lines().iter().for_each(|(_, line)| line.cut());
    }
}
