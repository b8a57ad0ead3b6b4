//! Who this process is among those of a run, as the launchers tell it in the environment: torchrun, srun, mpirun, Kubeflow.

use crate::error::{Error, Result};
use std::path::PathBuf;

/// This process among those of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    pub rank: usize,
    pub world: usize,
    /// Among the processes of its host; 0 where the launcher does not say.
    pub local_rank: usize,
    /// How many there are on its host; 0 where the launcher does not say.
    pub local_world: usize,
    /// Who started it, for messages.
    pub launcher: &'static str,
    /// What the launcher calls this launch; empty where it does not say.
    pub id: String,
    pub meeting: Meeting,
}

/// Where ranks find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// Rank 0 listens there.
    Address { host: String, port: u16 },
    /// Rank 0 says in this folder where it listens.
    File(PathBuf),
    /// Rank 0 says it in torchrun's store, which listens there, under this key.
    Store { host: String, port: u16, key: String },
}

/// A look-up of variables; what is empty is not set.
struct Env<'a>(&'a dyn Fn(&str) -> Option<String>);

const RANK: &[&str] = &["RANK", "PMI_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"];
const WORLD: &[&str] = &["WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"];
const LOCAL_RANK: &[&str] = &["LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"];

impl Env<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    /// The first of `names` that is set, as a number.
    fn number(&self, names: &[&'static str]) -> Result<Option<(&'static str, usize)>> {
        for name in names {
            let Some(value) = self.text(name) else { continue };
            let number = value.trim().parse().map_err(|_| {
                Error::usage(format!("environment variable {name}: `{value}` is not a number from 0 on"))
            })?;
            return Ok(Some((name, number)));
        }
        Ok(None)
    }
}

impl Launch {
    /// What the environment says, and `--rendezvous`; None for a single process. `env` looks up a variable.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the variable that is missing, ill-formed or out of range.
    pub fn of(env: &dyn Fn(&str) -> Option<String>, rendezvous: Option<&str>) -> Result<Option<Launch>> {
        let env = Env(env);
        let (Some((by, rank)), Some((sized_by, world))) = (env.number(RANK)?, env.number(WORLD)?) else {
            return Ok(None);
        };
        if rank >= world {
            return Err(Error::usage(format!(
                "environment variable {by}: rank {rank} of {world} ({sized_by}): ranks count from 0"
            )));
        }
        let local_rank = env.number(LOCAL_RANK)?.map_or(0, |n| n.1);
        let meeting = match rendezvous {
            Some(text) => Meeting::parse(text)?,
            None if world == 1 => Meeting::Address { host: "127.0.0.1".to_owned(), port: 0 },
            None => {
                let (Some(host), Some((_, port))) = (env.text("MASTER_ADDR"), env.number(&["MASTER_PORT"])?)
                else {
                    return Err(Error::usage(
                        "MASTER_ADDR and MASTER_PORT are not set: tell where rank 0 listens by --rendezvous HOST:PORT",
                    ));
                };
                Meeting::Address { host, port: port as u16 }
            }
        };
        let id = String::new();
        Ok(Some(Launch { rank, world, local_rank, local_world: 0, launcher: "torchrun", id, meeting }))
    }

    /// The device of this rank among the `visible` ones of its host: by its local rank if there are that many, the only one if
    /// the launcher shows each rank its own.
    ///
    /// # Errors
    /// [`Error::Device`] if neither is so.
    pub fn device(&self, visible: usize) -> Result<usize> {
        match visible {
            n if self.local_rank < n => Ok(self.local_rank),
            1 => Ok(0),
            n => Err(Error::device(
                format!("{}", self.local_rank),
                format!(
                    "rank {} has local rank {}, but {n} GPUs are visible: start as many processes on a host as it has GPUs, \
                     or look at CUDA_VISIBLE_DEVICES",
                    self.rank, self.local_rank
                ),
            )),
        }
    }
}

impl Meeting {
    /// `HOST:PORT` or `file:FOLDER`.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is neither.
    pub fn parse(text: &str) -> Result<Meeting> {
        if let Some(folder) = text.strip_prefix("file:").filter(|f| !f.is_empty()) {
            return Ok(Meeting::File(folder.into()));
        }
        let parts = text.rsplit_once(':').and_then(|(host, port)| {
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            Some((host.to_owned(), port.parse::<u16>().ok().filter(|p| *p > 0)?))
        });
        match parts {
            Some((host, port)) if !host.is_empty() => Ok(Meeting::Address { host, port }),
            _ => Err(Error::usage(format!(
                "--rendezvous: `{text}` is neither HOST:PORT (where rank 0 listens) nor file:FOLDER (one that all ranks see)"
            ))),
        }
    }
}
