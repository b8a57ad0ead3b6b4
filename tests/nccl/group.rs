//! Ranks that are threads of the test, and the link between them.

use saip_engine::backend::{Collective, HostSliceMut, Phase};
use saip_engine::error::{Error, Result};
use saip_engine::tensor::DType;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// Longer than anything takes, whatever else the machine does.
const LINK: Duration = Duration::from_secs(120);

/// A rank's end of channels to all others.
pub struct Channels {
    rank: usize,
    to: Vec<Option<Sender<Vec<u8>>>>,
    from: Vec<Option<Receiver<Vec<u8>>>>,
    patience: Duration,
}

impl Channels {
    fn lost(rank: usize) -> Error {
        Error::distributed(format!("rank {rank} (here)"), "has left")
    }
}

impl Collective for Channels {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.to.len()
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn all_reduce(&mut self, _values: HostSliceMut<'_>, _wire: DType) -> Result<()> {
        panic!("the devices sum themselves")
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        for (rank, to) in self.to.iter().enumerate() {
            to.iter().try_for_each(|to| to.send(own.to_vec())).map_err(|_| Channels::lost(rank))?;
        }
        let receive = |(rank, from): (usize, &Option<Receiver<Vec<u8>>>)| match from {
            Some(from) => from.recv_timeout(LINK).map_err(|_| Channels::lost(rank)),
            None => Ok(own.to_vec()),
        };
        self.from.iter().enumerate().map(receive).collect()
    }

    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        *bytes = self.all_gather(bytes)?.swap_remove(root);
        Ok(())
    }

    fn enter(&mut self, _phase: Phase) {}

    fn leave(&mut self, _error: Option<&str>) {
        self.to.iter_mut().for_each(|to| *to = None);
    }
}

/// Links of `world` ranks, whose devices wait for each other as long as `patience`.
pub fn links(world: usize, patience: Duration) -> Vec<Channels> {
    let nobody = |rank| Channels { rank, to: Vec::new(), from: Vec::new(), patience };
    let mut all: Vec<Channels> = (0..world).map(nobody).collect();
    for a in 0..world {
        for b in 0..world {
            let (to, from) = if a == b { (None, None) } else { Some(channel()).unzip() };
            all[a].to.push(to);
            all[b].from.push(from);
        }
    }
    all
}

/// What each of `world` ranks comes to, by rank.
pub fn ranks<R: Send>(world: usize, patience: Duration, work: impl Fn(&mut Channels) -> R + Sync) -> Vec<R> {
    let work = &work;
    thread::scope(|scope| {
        let spawn = |mut link: Channels| scope.spawn(move || work(&mut link));
        let threads: Vec<_> = links(world, patience).into_iter().map(spawn).collect();
        threads.into_iter().map(|t| t.join().expect("a rank panics")).collect()
    })
}
