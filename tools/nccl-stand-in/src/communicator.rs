//! A communicator: a thread that joins the other ranks, then does what is asked for, one thing after the other.

use crate::control::{Fault, IN_PROGRESS, INVALID_USAGE, SUCCESS, fault, refuse};
use crate::link::{Broken, Peer, gather, join};
use crate::numbers;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

/// Addresses from here on are a device's: no host of today has such.
const DEVICE: usize = 1 << 60;

/// Where the ranks meet.
pub enum Door {
    /// Rank 0 waits there.
    Open(TcpListener),
    At(u16),
}

/// What is asked of all ranks.
pub enum Job {
    Sum { from: usize, to: usize, count: usize, dtype: i32 },
    Finalize,
}

impl Job {
    fn function(&self) -> &'static str {
        match self {
            Job::Sum { .. } => "ncclAllReduce",
            Job::Finalize => "ncclCommFinalize",
        }
    }

    /// What must be the same on all ranks, and how many bytes follow.
    fn header(&self, following: usize) -> [u8; 16] {
        let (count, kind) = match self {
            Job::Sum { count, dtype, .. } => (*count as u64, *dtype),
            Job::Finalize => (0, -1),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&count.to_ne_bytes());
        bytes[8..12].copy_from_slice(&kind.to_ne_bytes());
        bytes[12..].copy_from_slice(&(following as u32).to_ne_bytes());
        bytes
    }
}

/// What caller and thread share.
pub struct Shared {
    pub rank: i32,
    pub world: i32,
    state: AtomicI32,
    unwanted: AtomicBool,
}

pub struct Communicator {
    pub shared: Arc<Shared>,
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Communicator {
    /// Begins to join the others.
    pub fn begin(door: Door, nonce: u64, rank: i32, world: i32) -> Self {
        let (state, unwanted) = (AtomicI32::new(IN_PROGRESS), AtomicBool::new(false));
        let shared = Arc::new(Shared { rank, world, state, unwanted });
        let (jobs, todo) = channel();
        let own = Arc::clone(&shared);
        let thread = spawn(move || work(&own, door, nonce, &todo));
        Communicator { shared, jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) }
    }

    pub fn state(&self) -> i32 {
        self.shared.state.load(Ordering::Acquire)
    }

    /// Begins `job`.
    pub fn ask(&self, job: Job) {
        self.shared.state.store(IN_PROGRESS, Ordering::Release);
        let jobs = crate::control::locked(&self.jobs);
        if jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
            self.shared.state.store(INVALID_USAGE, Ordering::Release);
        }
    }

    /// Ends the thread; what it does is broken off.
    pub fn stop(&self) {
        self.shared.unwanted.store(true, Ordering::Relaxed);
        drop(crate::control::locked(&self.jobs).take());
        if let Some(thread) = crate::control::locked(&self.thread).take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What a fault says about something that is under way; waits where it hangs.
fn spoilt(shared: &Shared, function: &str) -> Result<(), Broken> {
    match fault(function, Some(shared.rank)) {
        Some(Fault::Later(code)) => Err((code, format!("{function} is made to fail"))),
        Some(Fault::Hangs) => {
            while !shared.unwanted.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(1));
            }
            Err((IN_PROGRESS, "torn down".to_owned()))
        }
        _ => Ok(()),
    }
}

fn work(shared: &Shared, door: Door, nonce: u64, todo: &Receiver<Job>) {
    let settle = |result: Result<(), Broken>| {
        let code = result.map_or_else(|(code, why)| refuse(code, why), |()| SUCCESS);
        shared.state.store(code, Ordering::Release);
        code == SUCCESS
    };
    let (rank, world, unwanted) = (shared.rank, shared.world, &shared.unwanted);
    let joined = spoilt(shared, "ncclCommInitRankConfig").and_then(|()| match door {
        Door::Open(listener) => gather(&listener, nonce, world, unwanted),
        Door::At(port) => join(port, nonce, rank, world, unwanted).map(|peer| vec![peer]),
    });
    let mut peers = match joined {
        Ok(peers) => peers,
        Err(broken) => {
            settle(Err(broken));
            return;
        }
    };
    settle(Ok(()));
    for job in todo {
        let done = spoilt(shared, job.function()).and_then(|()| do_together(shared, &mut peers, &job));
        if !settle(done) {
            return;
        }
    }
}

fn do_together(shared: &Shared, peers: &mut [Peer], job: &Job) -> Result<(), Broken> {
    let unwanted = &shared.unwanted;
    let mut bytes = match job {
        Job::Sum { from, count, dtype, .. } if *from < DEVICE => {
            let len = count * numbers::bytes(*dtype).unwrap_or(0);
            // SAFETY: who asks for a sum promises that so many elements lie there until it is told that they are summed.
            unsafe { std::slice::from_raw_parts(*from as *const u8, len) }.to_vec()
        }
        _ => Vec::new(),
    };
    let dtype = if let Job::Sum { dtype, .. } = job { *dtype } else { 0 };
    if shared.rank == 0 {
        let mut alike = true;
        for peer in peers.iter_mut() {
            let mut header = [0; 16];
            peer.receive(&mut header, unwanted)?;
            alike &= header == job.header(bytes.len());
            // Read in any case: what is left unread when a stream ends takes the answer with it.
            let mut more = vec![0; u32::from_ne_bytes(std::array::from_fn(|i| header[12 + i])) as usize];
            peer.receive(&mut more, unwanted)?;
            if alike {
                numbers::add(&mut bytes, &more, dtype);
            }
        }
        let told = peers.iter_mut().try_for_each(|peer| {
            peer.send(&[u8::from(alike)], unwanted)?;
            if alike { peer.send(&bytes, unwanted) } else { Ok(()) }
        });
        let differ = || Err((INVALID_USAGE, "ranks ask for different things".to_owned()));
        if alike { told? } else { return differ() }
    } else {
        let peer = &mut peers[0];
        peer.send(&job.header(bytes.len()), unwanted)?;
        peer.send(&bytes, unwanted)?;
        let mut alike = [0];
        peer.receive(&mut alike, unwanted)?;
        if alike != [1] {
            return Err((INVALID_USAGE, "ranks ask for different things".to_owned()));
        }
        peer.receive(&mut bytes, unwanted)?;
    }
    if let Job::Sum { to, .. } = job
        && *to < DEVICE
    {
        // SAFETY: as above, of the place for the sum.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), *to as *mut u8, bytes.len()) };
    }
    Ok(())
}
