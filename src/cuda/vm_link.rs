//! What the interpreter sums with others by. Its addresses mean nothing to a library, which is given copies on the host.

use super::driver::Sum;
use super::nccl::{Communicator, Seat};
use crate::error::{Error, Result};
use ptx_vm::Memory;
use std::collections::BTreeMap;
use std::ptr;

/// Its place among the others.
pub struct VmLink {
    communicator: Communicator,
    signals: usize,
    /// What lay where a signal said that it is final, by signal: a GPU may sum it from then on, whatever is written later.
    final_bytes: BTreeMap<usize, (u64, Vec<u8>)>,
}

fn failed(e: ptx_vm::Error) -> Error {
    Error::device("ptx-vm", e.to_string())
}

impl VmLink {
    /// Joins the others.
    ///
    /// # Errors
    /// Those of the library.
    pub fn open(seat: &Seat, signals: usize) -> Result<Self> {
        Ok(VmLink { communicator: Communicator::open(seat)?, signals, final_bytes: BTreeMap::new() })
    }

    /// Takes what lies at `at` for final.
    ///
    /// # Errors
    /// A signal that was never made; memory that is not there, or was never written.
    pub fn signal(&mut self, signal: usize, at: u64, bytes: usize, memory: &Memory) -> Result<()> {
        if signal >= self.signals {
            return Err(Error::device("ptx-vm", format!("signal {signal} was never made")));
        }
        self.final_bytes.insert(signal, (at, contents(at, bytes, memory)?));
        Ok(())
    }

    /// Puts back what the sum's signal found, each time once: later writes come too late for a GPU, too.
    ///
    /// # Errors
    /// The signal was not given.
    pub fn recall(&mut self, sum: &Sum, memory: &mut Memory) -> Result<()> {
        let Some(signal) = sum.after else { return Ok(()) };
        let Some((at, bytes)) = self.final_bytes.remove(&signal) else {
            return Err(Error::device("ptx-vm", format!("signal {signal} was not given")));
        };
        memory.write(at, &bytes).map_err(failed)
    }

    /// Sums over all ranks.
    ///
    /// # Errors
    /// Those of the library; memory that is not there, or was never written.
    pub fn sum(&self, sum: &Sum, memory: &mut Memory) -> Result<()> {
        let mut bytes = contents(sum.at, sum.elements * sum.dtype.bytes(), memory)?;
        let at = bytes.as_mut_ptr() as usize as u64;
        // SAFETY: as many bytes are there, which nobody else uses; the call returns when the library is done with them, or has
        // been torn down. Only a library that sums memory of the host is joined: it was named for that.
        unsafe { self.communicator.all_reduce(at, sum.elements, sum.dtype, ptr::null_mut()) }?;
        memory.write(sum.at, &bytes).map_err(failed)
    }

    /// Takes part in no sum any more.
    pub fn abort(&self) {
        self.communicator.abort();
    }

    /// Ends within seconds.
    pub fn end(&self) {
        self.communicator.end(|| Ok(true));
    }
}

fn contents(at: u64, bytes: usize, memory: &Memory) -> Result<Vec<u8>> {
    if let Some(first) = memory.unwritten(at, bytes as u64).map_err(failed)? {
        let message = format!("byte {first} of {bytes} at {at:#x} is summed, but nobody wrote it");
        return Err(Error::device("ptx-vm", message));
    }
    let mut contents = vec![0; bytes];
    memory.read(at, &mut contents).map_err(failed)?;
    Ok(contents)
}
