//! One communicator of all ranks: joined, used and ended, each within a deadline. No call of the library blocks; what is under way
//! is asked for until it is done, as the library has no deadlines of its own.

use super::library::{Handle, IN_PROGRESS, Nccl, SUCCESS, UniqueId};
use crate::error::{Error, Result};
use crate::tensor::DType;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// How long one asks without a pause: most calls are done by then.
const EAGER: Duration = Duration::from_micros(200);
/// From one question to the next, afterwards.
const PAUSE: Duration = Duration::from_micros(100);
/// How long an end may take. Other ranks take part in it, and a call that tears a communicator down was seen to hang.
const ENDING: Duration = Duration::from_secs(5);

/// Asks until `done` says so or `limit` is over; whether it was done.
fn within(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let start = Instant::now();
    loop {
        if done()? {
            return Ok(true);
        }
        match start.elapsed() {
            elapsed if elapsed >= limit => return Ok(false),
            elapsed if elapsed < EAGER => thread::yield_now(),
            _ => thread::sleep(PAUSE),
        }
    }
}

/// What a rank joins a communicator by.
#[derive(Clone, Debug)]
pub struct Seat {
    pub nccl: Arc<Nccl>,
    pub id: UniqueId,
    pub rank: usize,
    pub world: usize,
    /// How long one waits for the other ranks.
    pub patience: Duration,
}

/// A communicator of all ranks, of which this is one.
#[derive(Debug)]
pub struct Communicator {
    seat: Seat,
    /// Null once it was given back.
    handle: Cell<Handle>,
}

// SAFETY: the library's handles may be used from any thread, from one at a time.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Joins the communicator, on the device that is current on this thread; all ranks come here.
    ///
    /// # Errors
    /// [`Error::Distributed`] with the library's words, or when the others do not come in time.
    pub fn open(seat: &Seat) -> Result<Self> {
        let number = |n: usize| c_int::try_from(n).unwrap_or(c_int::MAX);
        let (handle, code) = seat.nccl.begin(number(seat.world), number(seat.rank), seat.id);
        // Owned from here on: whatever fails, it is torn down.
        let communicator = Communicator { seat: seat.clone(), handle: Cell::new(handle) };
        communicator.settle("ncclCommInitRankConfig", code)?;
        if handle.is_null() {
            return Err(communicator.failed(format!("{} gives no communicator", seat.nccl)));
        }
        // SAFETY: it was given out above, and given back by nobody.
        let place = unsafe { seat.nccl.place(handle) }.map_err(|why| communicator.failed(why))?;
        if place != [number(seat.world), number(seat.rank)] {
            let [count, rank] = place;
            let why = format!("{} takes this for rank {rank} of {count}", seat.nccl);
            return Err(communicator.failed(why));
        }
        Ok(communicator)
    }

    /// An error of this rank; the communicator is of no use afterwards, and torn down.
    fn failed(&self, why: impl Into<String>) -> Error {
        self.abort();
        Error::distributed(format!("rank {} of {}", self.seat.rank, self.seat.world), why)
    }

    /// Waits for what `call` began.
    fn settle(&self, call: &str, code: c_int) -> Result<()> {
        let nccl = &self.seat.nccl;
        let settled = match code {
            SUCCESS => return Ok(()),
            // A handle is given out at once; without one there is nobody to ask.
            IN_PROGRESS if !self.handle.get().is_null() => {
                within(self.seat.patience, || Ok(!self.is_busy(call)?))?
            }
            code => return Err(self.failed(nccl.failure(call, code))),
        };
        if settled {
            return Ok(());
        }
        Err(self.failed(format!(
            "{nccl}: {call} is not done after {}: another rank has not come, or cannot be reached by the interface that NCCL \
             chose; set NCCL_SOCKET_IFNAME to the one between the machines (NCCL_DEBUG=INFO tells the choice), \
             NCCL_P2P_DISABLE=1 where GPUs of one machine do not reach each other",
            seconds(self.seat.patience)
        )))
    }

    /// Whether something is still under way.
    fn is_busy(&self, call: &str) -> Result<bool> {
        // SAFETY: the handle is not null, so nobody gave it back.
        match unsafe { self.seat.nccl.state(self.handle.get()) } {
            SUCCESS => Ok(false),
            IN_PROGRESS => Ok(true),
            code => Err(self.failed(self.seat.nccl.failure(call, code))),
        }
    }

    /// Fails when a network or another rank was found to have failed, or when it was torn down before.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        if self.handle.get().is_null() {
            return Err(self.failed("the sums over all ranks have failed before: start the run again"));
        }
        self.is_busy("a sum over all ranks").map(drop)
    }

    /// Sums over all ranks in place, on `stream`; returns when the library has put it there.
    ///
    /// # Errors
    /// The library's, and when it is not done with that in time.
    ///
    /// # Safety
    /// `elements` of `dtype` must lie at `at` in memory of this rank's device and stay until the stream has come past them; the
    /// stream must be of that device.
    pub unsafe fn all_reduce(
        &self,
        at: u64,
        elements: usize,
        dtype: DType,
        stream: *mut c_void,
    ) -> Result<()> {
        self.check()?;
        // SAFETY: the handle was just found to be there; the rest is the caller's promise.
        let code = unsafe { self.seat.nccl.all_reduce(self.handle.get(), at, elements, dtype, stream) };
        self.settle("ncclAllReduce", code.map_err(|why| self.failed(why))?)
    }

    /// Waits until `done` says that a device has come past the sums.
    ///
    /// # Errors
    /// Those of `done`, of [`Communicator::check`], and when it takes longer than the others are waited for. What a device has
    /// come past after that are no sums.
    pub fn wait(&self, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        self.check()?;
        let patience = self.seat.patience;
        let arrived = within(patience, || match done()? {
            true => Ok(true),
            false => self.check().map(|()| false),
        })?;
        if arrived {
            return Ok(());
        }
        Err(self.failed(format!(
            "the sums over all ranks are not there after {}: another rank has stopped or stands still, see its own messages",
            seconds(patience)
        )))
    }

    /// Ends it within seconds: in order, once `done` says that a device has come past the sums, else by force.
    pub fn end(&self, done: impl FnMut() -> Result<bool>) {
        let (nccl, handle) = (&self.seat.nccl, self.handle.get());
        if handle.is_null() {
            return;
        }
        if !within(ENDING, done).unwrap_or(false) {
            return self.abort();
        }
        // SAFETY: it is not null, so nobody gave it back.
        let begun = unsafe { nccl.finalize(handle) };
        // SAFETY: as above.
        let asked = || Ok(unsafe { nccl.state(handle) } != IN_PROGRESS);
        let ended = match begun {
            SUCCESS => true,
            IN_PROGRESS => within(ENDING, asked).unwrap_or(false),
            _ => false,
        };
        // SAFETY: as above.
        let whole = ended && unsafe { nccl.state(handle) } == SUCCESS;
        self.give_back(!whole);
    }

    /// Tears it down, with whatever of it is on streams.
    pub fn abort(&self) {
        self.give_back(true);
    }

    /// By a thread of its own, as the call may hang: it is then left behind.
    fn give_back(&self, torn: bool) {
        /// A handle on its way to another thread.
        struct Parcel(Handle);
        // SAFETY: the library's handles may be used from any thread; the sender has forgotten it.
        unsafe impl Send for Parcel {}
        impl Parcel {
            fn give_back(self, nccl: &Nccl, torn: bool) {
                // SAFETY: it was a communicator's, taken out of it just before.
                let _ = unsafe { nccl.give_back(self.0, torn) };
            }
        }
        let parcel = Parcel(self.handle.replace(std::ptr::null_mut()));
        if parcel.0.is_null() {
            return;
        }
        let (nccl, (sender, done)) = (Arc::clone(&self.seat.nccl), channel());
        let work = move || {
            parcel.give_back(&nccl, torn);
            let _ = sender.send(());
        };
        if thread::Builder::new().name("nccl-end".to_owned()).spawn(work).is_ok() {
            let _ = done.recv_timeout(ENDING);
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.end(|| Ok(true));
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
