//! What a GPU sums with others by: a communicator, a stream beside the one that programs share, and the events that order the two.

use super::gpu_handles::{Event, Stream, failed};
use super::nccl::{Communicator, Seat};
use crate::error::{Error, Result};
use crate::tensor::DType;
use std::cell::Cell;

/// Dropped before the context that it is of.
pub struct Link {
    communicator: Communicator,
    pub stream: Stream,
    /// Recorded where no signal tells that elements are final, and behind the last sum.
    now: Event,
    summed: Event,
    signals: Vec<Event>,
    /// Whether sums were asked for since somebody waited last.
    pending: Cell<bool>,
}

impl Link {
    /// Joins the others, on the device whose context is current.
    ///
    /// # Errors
    /// Those of the library and the driver.
    pub fn open(seat: &Seat, signals: usize) -> Result<Self> {
        let signals = (0..signals).map(|_| Event::ordering()).collect::<Result<_>>()?;
        let (stream, now, summed) = (Stream::new()?, Event::ordering()?, Event::ordering()?);
        let communicator = Communicator::open(seat)?;
        Ok(Link { communicator, stream, now, summed, signals, pending: Cell::new(false) })
    }

    /// An event that graphs record.
    ///
    /// # Errors
    /// There is none of that number.
    pub fn signal(&self, signal: usize) -> Result<&Event> {
        let lost = || Error::device("cuda", format!("signal {signal} was never made"));
        self.signals.get(signal).ok_or_else(lost)
    }

    /// What is put on the link's stream from now on comes after a signal, or after all that is on `computing`.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn wait_for(&self, signal: Option<usize>, computing: &Stream) -> Result<()> {
        let refused = |e| failed("cannot order the sums", e);
        let event = match signal {
            Some(signal) => self.signal(signal)?,
            None => {
                self.now.record(computing).map_err(refused)?;
                &self.now
            }
        };
        self.stream.wait_for(event).map_err(refused)
    }

    /// Puts a sum on the link's stream.
    ///
    /// # Errors
    /// Those of the library.
    pub fn sum(&self, at: u64, elements: usize, dtype: DType) -> Result<()> {
        // SAFETY: the elements were planned within live allocations of this GPU, which are freed after the streams have come
        // past everything; the stream is of the GPU's context.
        unsafe { self.communicator.all_reduce(at, elements, dtype, self.stream.0.cast()) }
    }

    /// What is put on `computing` from now on comes after all sums.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn hand_back(&self, computing: &Stream) -> Result<()> {
        let ordered = self.summed.record(&self.stream).and_then(|()| computing.wait_for(&self.summed));
        self.pending.set(true);
        ordered.map_err(|e| failed("cannot order the sums", e))
    }

    /// Waits until `computing` has come past the sums, as long as the other ranks are waited for.
    ///
    /// # Errors
    /// Those of the library, and when it takes longer.
    pub fn wait(&self, computing: &Stream) -> Result<()> {
        if self.pending.get() {
            self.communicator.wait(|| computing.is_done().map_err(|e| failed("a kernel failed", e)))?;
            self.pending.set(false);
        }
        Ok(())
    }

    /// Takes part in no sum any more: some may be half done.
    pub fn abort(&self) {
        self.pending.set(true);
        self.communicator.abort();
    }

    /// Ends within seconds what is under way on both streams.
    pub fn end(&self, computing: &Stream) {
        self.communicator.end(|| {
            let both = computing.is_done().and_then(|done| Ok(done && self.stream.is_done()?));
            both.map_err(|e| failed("a kernel failed", e))
        });
    }
}
