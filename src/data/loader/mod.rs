//! Batches in order, prepared ahead by worker threads. What a batch holds depends on the seed, the step and the source
//! alone: not on the number of workers, nor on where the run was started.

mod assemble;
mod order;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use rand::RngExt;

use crate::data::augment::Augmenter;
pub use crate::data::augment::normalize::{denormalise, eval_image};
use crate::data::batch::Batch;
use crate::data::left_out::LeftOut;
use crate::data::recipe::{Recipe, SampleKey};
use crate::data::rng::StreamRng;
use crate::data::sample::Sample;
use crate::data::source::{ImageSource, Quarantine};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use assemble::Assembly;
use order::Order;
pub use order::epoch_order;

/// How batches are made. `Default` is one rank, two workers, two batches ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Images per batch on this rank.
    pub batch: usize,
    pub seed: u64,
    /// Worker threads; 0 prepares each batch in the thread that asks for it.
    pub workers: usize,
    /// Batches in preparation or waiting at any time, at least 1. Each costs memory: 2.9 MB an image for the full recipe.
    pub prefetch: usize,
    /// First step to deliver, for a resumed run, counted on this rank.
    pub start_step: u64,
    /// Ranks take the batches of the run in turn: rank `rank < world` those whose number is `rank` modulo `world`. So the
    /// samples of an update are the same, however many ranks share it.
    pub rank: usize,
    pub world: usize,
    /// Batches of an update, on all ranks together: they have one bucket, so that ranks wait for each other as little as may be.
    pub micro_steps: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        LoaderConfig {
            batch: 256,
            seed: 0,
            workers: 2,
            prefetch: 2,
            start_step: 0,
            rank: 0,
            world: 1,
            micro_steps: 1,
        }
    }
}

/// What every thread needs.
struct Shared {
    source: Arc<dyn ImageSource>,
    recipe: Arc<dyn Recipe>,
    quarantine: Quarantine,
    seed: u64,
    stop: AtomicBool,
}

/// One batch to make: which samples of which epoch.
struct Job {
    step: u64,
    /// Its number among those of all ranks.
    batch: u64,
    epoch: u64,
    samples: Vec<u32>,
    assembly: Assembly,
}

type Finished = (u64, Result<Batch>);

/// Delivers the batches of a run, one per step.
pub struct Loader {
    shared: Arc<Shared>,
    cfg: LoaderConfig,
    order: Order,
    /// The step that `next` delivers, and the first one not yet handed to the workers.
    next_step: u64,
    issued: u64,
    ready: BTreeMap<u64, Result<Batch>>,
    pool: Vec<Batch>,
    threads: Option<Threads>,
    /// For 0 workers.
    augmenter: Augmenter,
    notes: Vec<String>,
    interrupt: Interrupt,
}

/// How long images may keep a signal waiting.
const PATIENCE: Duration = Duration::from_millis(100);

struct Threads {
    tasks: Sender<(Arc<Job>, usize)>,
    finished: Receiver<Finished>,
    handles: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts the workers. Fails on an empty source, on sizes of zero, and on a rank outside the world. No picture is
    /// read here: unusable ones turn up in [`Self::skipped`], and a source without any usable one fails in `next`.
    pub fn new(source: Arc<dyn ImageSource>, cfg: LoaderConfig, recipe: Arc<dyn Recipe>) -> Result<Self> {
        let images = source.len();
        if images == 0 {
            return Err(Error::usage("the image source is empty: there is nothing to train on"));
        }
        if u32::try_from(images).is_err() {
            return Err(Error::usage(format!("{images} images are more than a run can index (2^32)")));
        }
        if cfg.batch == 0 || cfg.prefetch == 0 {
            return Err(Error::config("batch", "the batch size and the prefetch depth must be at least 1"));
        }
        if cfg.rank >= cfg.world {
            return Err(Error::config(
                "rank",
                format!("rank {} is outside a world of {}", cfg.rank, cfg.world),
            ));
        }
        let per_step = cfg.batch.checked_mul(cfg.world).filter(|&n| u32::try_from(n).is_ok());
        let per_step =
            per_step.ok_or_else(|| Error::config("batch", format!("{} is too large", cfg.batch)))?;
        let mut notes = Vec::new();
        if images < per_step {
            notes.push(format!(
                "only {images} images for {per_step} samples a step: images repeat within a step, each with views of its own"
            ));
        }
        let order = Order::new(cfg.seed, images, cfg.batch);
        let shared = Shared {
            source,
            recipe,
            quarantine: Quarantine::new(),
            seed: cfg.seed,
            stop: AtomicBool::new(false),
        };
        let shared = Arc::new(shared);
        let threads = if cfg.workers == 0 { None } else { Some(Threads::start(&shared, cfg.workers)?) };
        let start = cfg.start_step;
        Ok(Loader {
            shared,
            cfg,
            order,
            next_step: start,
            issued: start,
            ready: BTreeMap::new(),
            pool: Vec::new(),
            threads,
            augmenter: Augmenter::new(),
            notes,
            interrupt: Interrupt::default(),
        })
    }

    /// Waits for images no longer than until `interrupt` is raised: they may be on a disk that does not answer.
    pub fn stopped_by(mut self, interrupt: &Interrupt) -> Self {
        self.interrupt = interrupt.clone();
        self
    }

    /// The batch of the next step; blocks until it is ready. An error is final for its step: the following call goes on
    /// with the step after it.
    #[allow(clippy::should_implement_trait)] // an endless, fallible stream with recycling is not an iterator
    pub fn next(&mut self) -> Result<Batch> {
        let step = self.next_step;
        self.next_step += 1;
        if self.threads.is_none() {
            self.issued = self.next_step;
            let job = self.job(step);
            for slot in 0..self.cfg.batch {
                if sample(&self.shared, &job, slot, &mut self.augmenter) {
                    return job.assembly.take();
                }
            }
            return Err(Error::invariant("loading", "a batch without a last sample"));
        }
        self.issue(step);
        loop {
            if let Some(batch) = self.ready.remove(&step) {
                // The workers go on while the caller uses this batch.
                self.issue(step + 1);
                return batch;
            }
            let Some(threads) = &self.threads else {
                return Err(Error::invariant("loading", "no worker threads"));
            };
            match threads.finished.recv_timeout(PATIENCE) {
                Ok((done, batch)) => {
                    self.ready.insert(done, batch);
                }
                Err(RecvTimeoutError::Timeout) => self.interrupt.check()?,
                Err(_) => return Err(Error::invariant("loading", "all worker threads ended")),
            }
        }
    }

    /// Gives a used batch back, so that its memory serves a later one.
    pub fn recycle(&mut self, batch: Batch) {
        if self.pool.len() <= self.cfg.prefetch {
            self.pool.push(batch);
        }
    }

    /// Complete batches in one epoch, of all ranks together; the incomplete last one is dropped.
    pub fn batches_per_epoch(&self) -> u64 {
        self.order.batches_per_epoch()
    }

    /// The step that the next call of [`Self::next`] delivers.
    pub fn step(&self) -> u64 {
        self.next_step
    }

    /// All unusable pictures met so far, in the source's order.
    pub fn skipped(&self) -> Vec<LeftOut> {
        self.shared.quarantine.skipped()
    }

    /// Decodes up to `limit` pictures now, to know of a bad folder at the start; returns how many were tried.
    pub fn scan(&self, limit: usize) -> usize {
        self.shared.quarantine.scan(&*self.shared.source, limit)
    }

    /// What the user should know about the source, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Hands out jobs until `prefetch` batches from `first` on are under way.
    fn issue(&mut self, first: u64) {
        while self.issued < first.saturating_add(self.cfg.prefetch as u64) {
            let job = Arc::new(self.job(self.issued));
            self.issued += 1;
            if let Some(threads) = &self.threads {
                for slot in 0..self.cfg.batch {
                    // Fails only when all workers are gone, which `next` reports.
                    let _ = threads.tasks.send((job.clone(), slot));
                }
            }
        }
    }

    fn job(&mut self, step: u64) -> Job {
        let (recipe, cfg) = (&self.shared.recipe, &self.cfg);
        let batch = step * cfg.world as u64 + cfg.rank as u64;
        let bucket = recipe.bucket(cfg.seed, batch / cfg.micro_steps.max(1) as u64);
        let (epoch, samples) = self.order.samples(batch);
        let assembly = Assembly::new(bucket, recipe.tensors(bucket, cfg.batch), cfg.batch, self.pool.pop());
        Job { step, batch, epoch, samples, assembly }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(Threads { tasks, finished, handles }) = self.threads.take() {
            drop((tasks, finished));
            // The process is about to end, and a worker may wait for a disk that does not answer.
            if self.interrupt.requested() {
                return;
            }
            for handle in handles {
                // Workers catch panics; a failed join has nothing left to report to.
                let _ = handle.join();
            }
        }
    }
}

impl Threads {
    fn start(shared: &Arc<Shared>, workers: usize) -> Result<Self> {
        let (tasks, inbox) = unbounded();
        let (outbox, finished) = unbounded();
        let mut threads = Threads { tasks, finished, handles: Vec::with_capacity(workers) };
        for i in 0..workers {
            let (shared, inbox, outbox) = (shared.clone(), inbox.clone(), outbox.clone());
            let spawned = std::thread::Builder::new()
                .name(format!("loader-{i}"))
                .spawn(move || work(&shared, &inbox, &outbox));
            threads
                .handles
                .push(spawned.map_err(|e| Error::usage(format!("cannot start loader thread {i}: {e}")))?);
        }
        Ok(threads)
    }
}

fn work(shared: &Shared, inbox: &Receiver<(Arc<Job>, usize)>, outbox: &Sender<Finished>) {
    let mut augmenter = Augmenter::new();
    // The queue is first in, first out: the workers finish the earliest batch together before they begin the next.
    while let Ok((job, slot)) = inbox.recv() {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        if sample(shared, &job, slot, &mut augmenter) && outbox.send((job.step, job.assembly.take())).is_err()
        {
            return;
        }
    }
}

/// Makes sample `slot` of the job; true when it was the batch's last. A panic (in a source, say) is an error of the
/// batch, so that the consumer never waits for a thread that died.
fn sample(shared: &Shared, job: &Job, slot: usize, augmenter: &mut Augmenter) -> bool {
    let made = catch_unwind(AssertUnwindSafe(|| render(shared, job, slot, augmenter)));
    match made {
        Ok(Ok(())) => {}
        Ok(Err(e)) => job.assembly.fail(slot, e),
        Err(_) => {
            // Its scratch memory may be half-written.
            *augmenter = Augmenter::new();
            job.assembly.fail(
                slot,
                Error::invariant("loading", format!("a panic in sample {slot} of step {}", job.step)),
            );
        }
    }
    job.assembly.done()
}

fn render(shared: &Shared, job: &Job, slot: usize, augmenter: &mut Augmenter) -> Result<()> {
    let (source, quarantine) = (&*shared.source, &shared.quarantine);
    let number = job.samples[slot] as usize;
    // A repeated picture is another sample of the epoch: same pixels, other random numbers.
    let (index, image) = quarantine.load(source, number % source.len())?;
    let sample = Sample { image, labels: source.labels(index) };
    let key = SampleKey { seed: shared.seed, epoch: job.epoch, sample: number as u64, batch: job.batch };
    let mut another = |rng: &mut StreamRng| {
        let (behind, scenery) = quarantine.load(source, other(index, source.len(), rng))?;
        // An unusable choice may be replaced by the very picture that is asked for: then the one after it.
        let again = behind == index && source.len() > 1;
        Ok(if again { quarantine.load(source, index + 1)?.1 } else { scenery })
    };
    let parts = shared.recipe.paint(augmenter, job.assembly.bucket, key, &sample, &mut another)?;
    job.assembly.fill(slot, parts, source.name(index))
}

/// Uniform over the other indices; the same one only when there is no other.
fn other(own: usize, n: usize, rng: &mut StreamRng) -> usize {
    if n < 2 {
        return own;
    }
    (own + 1 + rng.random_range(0..n as u64 - 1) as usize) % n
}
