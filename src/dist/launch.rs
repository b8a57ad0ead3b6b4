//! Who this process is among those of a run, as the launchers tell it in the environment: torchrun, srun, mpirun, Kubeflow, or
//! this program itself.

use super::hosts;
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
    /// What the launcher calls this launch; empty where it does not say. Ranks of another one are strangers.
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

/// Where ranks meet that this program started itself, as `--rendezvous` has it.
pub(super) const RENDEZVOUS: &str = "SAIP_RENDEZVOUS";
/// What it calls that launch.
pub(super) const LAUNCH: &str = "SAIP_LAUNCH";

const RANK: &[&str] = &["RANK", "PMI_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"];
const WORLD: &[&str] = &["WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"];
const LOCAL_RANK: &[&str] = &["LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"];
const LOCAL_WORLD: &[&str] = &["LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"];

/// A variable and its value.
type Number = Option<(&'static str, usize)>;

/// A look-up of variables; what is empty is not set.
struct Env<'a> {
    look: &'a dyn Fn(&str) -> Option<String>,
    /// Whether SLURM's variables are about this process.
    slurm: bool,
}

impl<'a> Env<'a> {
    fn new(look: &'a dyn Fn(&str) -> Option<String>) -> Self {
        let mut env = Env { look, slurm: true };
        // The script of sbatch and the shell of salloc count as steps without tasks, with numbers from here on, or have none.
        const NO_TASKS: u32 = 0xffff_fff0;
        let step = env.text("SLURM_STEP_ID").or_else(|| env.text("SLURM_STEPID"));
        let task = step.and_then(|id| id.trim().parse::<u32>().ok()).is_some_and(|id| id < NO_TASKS);
        // Open MPI starts its daemons by srun: what they hand down is about them.
        env.slurm = task && env.text("OMPI_COMM_WORLD_RANK").is_none();
        env
    }

    fn text(&self, name: &str) -> Option<String> {
        let foreign = !self.slurm && name.starts_with("SLURM_");
        (self.look)(name).filter(|value| !value.is_empty() && !foreign)
    }

    /// The first of `names` that is set.
    fn number(&self, names: &[&'static str]) -> Result<Number> {
        let set = names.iter().find_map(|name| Some((*name, self.text(name)?)));
        let Some((name, value)) = set else { return Ok(None) };
        match value.trim().parse() {
            Ok(number) => Ok(Some((name, number))),
            Err(_) => Err(wrong(name, &format!("`{value}` is not a number from 0 on"))),
        }
    }

    fn port(&self) -> Result<Option<u16>> {
        let Some((name, number)) = self.number(&["MASTER_PORT"])? else { return Ok(None) };
        let port = u16::try_from(number).ok().filter(|p| *p > 0);
        port.map(Some).ok_or_else(|| wrong(name, &format!("{number} is no port: they go from 1 to 65535")))
    }
}

fn wrong(variable: &str, message: &str) -> Error {
    Error::usage(format!("environment variable {variable}: {message}"))
}

impl Launch {
    /// What the environment says, and `--rendezvous`; None for a single process. `env` looks up a variable.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the variable that is missing, ill-formed or out of range.
    pub fn of(env: &dyn Fn(&str) -> Option<String>, rendezvous: Option<&str>) -> Result<Option<Launch>> {
        let tasks = env("SLURM_NTASKS").and_then(|n| n.trim().parse::<usize>().ok());
        let env = Env::new(env);
        let (by, rank, world) = match (env.number(RANK)?, env.number(WORLD)?) {
            (Some((by, rank)), Some((_, world))) if rank < world => (by, rank, world),
            (Some((by, rank)), Some((sized, world))) => {
                return Err(wrong(
                    by,
                    &format!("{rank} is no rank of {world} ({sized}): ranks count from 0"),
                ));
            }
            (Some((by, _)), None) => {
                return Err(wrong(
                    by,
                    &format!("is set, but the number of ranks is not: set one of {}", WORLD.join(", ")),
                ));
            }
            (None, Some((by, _))) => {
                let remedy = format!("set one of {}, or start by torchrun, srun or mpirun", RANK.join(", "));
                return Err(wrong(by, &format!("is set, but this process' rank is not: {remedy}")));
            }
            (None, None) if rendezvous.is_some() => {
                return Err(Error::usage(
                    "--rendezvous: is for several processes: set RANK, WORLD_SIZE and LOCAL_RANK of each",
                ));
            }
            (None, None) => {
                if let Some(tasks) = tasks.filter(|n| *n > 1) {
                    eprintln!(
                        "warning: a SLURM job of {tasks} tasks, but not started by srun: this is a single process"
                    );
                }
                return Ok(None);
            }
        };
        let (launcher, id) = launcher(&env, by);
        let meeting = match rendezvous.map(str::to_owned).or_else(|| env.text(RENDEZVOUS)) {
            Some(text) => Meeting::parse(&text)?,
            // Nobody to meet.
            None if world == 1 => Meeting::Address { host: "127.0.0.1".to_owned(), port: 0 },
            None => meeting(&env, by)?,
        };
        let (local_by, local_rank) = env.number(LOCAL_RANK)?.unwrap_or(("LOCAL_RANK", 0));
        let local_world = local_world(&env)?;
        if local_world > 0 && local_rank >= local_world {
            let text =
                format!("{local_rank} is no rank of the {local_world} on this host: they count from 0");
            return Err(wrong(local_by, &text));
        }
        Ok(Some(Launch { rank, world, local_rank, local_world, launcher, id, meeting }))
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
            n => {
                let (rank, local) = (self.rank, self.local_rank);
                let text = format!(
                    "rank {rank} is number {local} on its host, where {n} GPUs are visible: start as many processes on a host as \
                     it has GPUs, and look at LOCAL_RANK and CUDA_VISIBLE_DEVICES"
                );
                Err(Error::device(local.to_string(), text))
            }
        }
    }
}

/// Who started this process, whose rank is in `by`, and what it calls the launch.
fn launcher(env: &Env<'_>, by: &str) -> (&'static str, String) {
    if let Some(id) = env.text(LAUNCH) {
        return ("saip-engine", id);
    }
    match by {
        "RANK" => match env.text("TORCHELASTIC_RUN_ID") {
            // What all are called that have no name.
            Some(id) if id == "none" => ("torchrun", String::new()),
            Some(_) => ("torchrun", store_key(env)),
            None => ("RANK and WORLD_SIZE", String::new()),
        },
        "SLURM_PROCID" => {
            let parts = ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"];
            ("srun", parts.map(|name| env.text(name).unwrap_or_default()).join("."))
        }
        _ => ("mpirun", String::new()),
    }
}

fn store_key(env: &Env<'_>) -> String {
    let part = |name, default: &str| env.text(name).unwrap_or_else(|| default.to_owned());
    format!("saip/{}/{}", part("TORCHELASTIC_RUN_ID", "none"), part("TORCHELASTIC_RESTART_COUNT", "0"))
}

/// Where the launcher lets ranks meet.
fn meeting(env: &Env<'_>, by: &str) -> Result<Meeting> {
    const REMEDY: &str = "set both, or tell where rank 0 listens by --rendezvous HOST:PORT";
    let first = match env.text("SLURM_STEP_NODELIST").or_else(|| env.text("SLURM_JOB_NODELIST")) {
        Some(list) => Some(hosts::first(&list).ok_or_else(|| {
            wrong("SLURM_STEP_NODELIST", &format!("`{list}` is no list of hosts: use --rendezvous HOST:PORT"))
        })?),
        None => None,
    };
    // The convention of Lightning: jobs of one host seldom share their last digits.
    let job = env.text("SLURM_JOB_ID").and_then(|id| id.trim().parse::<u64>().ok());
    let usual = job.filter(|_| first.is_some()).map(|id| 15_000 + (id % 10_000) as u16);
    let host = env.text("MASTER_ADDR");
    match (host.or(first), env.port()?.or(usual)) {
        (Some(host), Some(port)) => {
            let agent =
                env.text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v.eq_ignore_ascii_case("true"));
            let key = store_key(env);
            Ok(if agent { Meeting::Store { host, port, key } } else { Meeting::Address { host, port } })
        }
        (Some(_), None) => Err(wrong("MASTER_ADDR", &format!("is set, but MASTER_PORT is not: {REMEDY}"))),
        (None, Some(_)) => Err(wrong("MASTER_PORT", &format!("is set, but MASTER_ADDR is not: {REMEDY}"))),
        (None, None) => {
            let text = format!(
                "{by} tells a rank, but neither MASTER_ADDR nor MASTER_PORT where rank 0 listens: {REMEDY}"
            );
            Err(Error::usage(format!("environment variable {text}")))
        }
    }
}

fn local_world(env: &Env<'_>) -> Result<usize> {
    if let Some((_, number)) = env.number(LOCAL_WORLD)? {
        return Ok(number);
    }
    let counts = env.text("SLURM_STEP_TASKS_PER_NODE");
    let node = env.number(&["SLURM_NODEID"])?.map(|n| n.1);
    Ok(counts.zip(node).and_then(|(counts, node)| hosts::tasks(&counts, node)).unwrap_or(0))
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
            let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
            let host = bare.or_else(|| (!host.contains(':')).then_some(host))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// `text`: variables as `A=1 B=2`.
    fn launch(text: &str, rendezvous: Option<&str>) -> Result<Option<Launch>> {
        let table: BTreeMap<&str, &str> = text.split(' ').filter_map(|pair| pair.split_once('=')).collect();
        Launch::of(&|name| table.get(name).map(|v| (*v).to_owned()), rendezvous)
    }

    fn address(host: &str, port: u16) -> Meeting {
        Meeting::Address { host: host.to_owned(), port }
    }

    /// What is expected of an environment: rank, world, local rank, local world, launcher, id, where they meet.
    type Expected = (usize, usize, usize, usize, &'static str, &'static str, Meeting);

    fn check(rows: &[(&str, Option<&str>, Expected)]) {
        for (env, rendezvous, (rank, world, local_rank, local_world, launcher, id, meeting)) in rows {
            let got = launch(env, *rendezvous).unwrap_or_else(|e| panic!("{env}: {e}"));
            let expected = Launch {
                rank: *rank,
                world: *world,
                local_rank: *local_rank,
                local_world: *local_world,
                launcher,
                id: (*id).to_owned(),
                meeting: meeting.clone(),
            };
            assert_eq!(got, Some(expected), "{env}");
        }
    }

    const TORCHRUN: &str = "RANK=5 LOCAL_RANK=1 WORLD_SIZE=8 LOCAL_WORLD_SIZE=4 GROUP_RANK=1 MASTER_ADDR=n7 MASTER_PORT=29500 \
                            TORCHELASTIC_USE_AGENT_STORE=True TORCHELASTIC_RUN_ID=job TORCHELASTIC_RESTART_COUNT=2";
    const SRUN: &str = "SLURM_PROCID=5 SLURM_LOCALID=1 SLURM_NTASKS=8 SLURM_NODEID=1 SLURM_JOB_ID=1234567 SLURM_STEP_ID=0 \
                        SLURM_STEP_NODELIST=gpu-[007-008] SLURM_STEP_TASKS_PER_NODE=4(x2)";

    #[test]
    fn environments_of_torchrun_and_kubeflow_are_read() {
        let store = |key: &str| Meeting::Store { host: "n7".to_owned(), port: 29500, key: key.to_owned() };
        let key = "saip/job/2";
        check(&[
            (TORCHRUN, None, (5, 8, 1, 4, "torchrun", key, store(key))),
            (TORCHRUN, Some("h:7"), (5, 8, 1, 4, "torchrun", key, address("h", 7))),
            // --virtual-local-rank
            (
                "RANK=1 LOCAL_RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=n7 MASTER_PORT=29500 \
                 TORCHELASTIC_USE_AGENT_STORE=True TORCHELASTIC_RUN_ID=none",
                None,
                (1, 2, 0, 2, "torchrun", "", store("saip/none/0")),
            ),
            // TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
            (
                "RANK=1 LOCAL_RANK=1 WORLD_SIZE=2 MASTER_ADDR=n7 MASTER_PORT=1 TORCHELASTIC_USE_AGENT_STORE=False \
                 TORCHELASTIC_RUN_ID=none TORCHELASTIC_RESTART_COUNT=0",
                None,
                (1, 2, 1, 0, "torchrun", "", address("n7", 1)),
            ),
            // Kubeflow, or by hand.
            (
                "RANK=1 WORLD_SIZE=2 MASTER_ADDR=job-master-0 MASTER_PORT=23456",
                None,
                (1, 2, 0, 0, "RANK and WORLD_SIZE", "", address("job-master-0", 23456)),
            ),
            ("RANK=0 WORLD_SIZE=1", None, (0, 1, 0, 0, "RANK and WORLD_SIZE", "", address("127.0.0.1", 0))),
            (
                "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 SAIP_LAUNCH=x SAIP_RENDEZVOUS=file:/t/r",
                None,
                (1, 2, 1, 2, "saip-engine", "x", Meeting::File("/t/r".into())),
            ),
        ]);
    }

    #[test]
    fn environments_of_srun_and_mpirun_are_read() {
        let id = "1234567.0.";
        check(&[
            (SRUN, None, (5, 8, 1, 4, "srun", id, address("gpu-007", 19567))),
            (&format!("{SRUN} MASTER_PORT=99"), None, (5, 8, 1, 4, "srun", id, address("gpu-007", 99))),
            (&format!("{SRUN} MASTER_ADDR=h"), None, (5, 8, 1, 4, "srun", id, address("h", 19567))),
            // What many batch scripts export.
            (&format!("{SRUN} WORLD_SIZE=6"), None, (5, 6, 1, 4, "srun", id, address("gpu-007", 19567))),
            (
                &format!("{SRUN} RANK=0 WORLD_SIZE=6 LOCAL_RANK=2"),
                None,
                (0, 6, 2, 4, "RANK and WORLD_SIZE", "", address("gpu-007", 19567)),
            ),
            // srun --mpi=pmi2
            (
                &format!("{SRUN} PMI_RANK=3 PMI_SIZE=8"),
                None,
                (3, 8, 1, 4, "mpirun", "", address("gpu-007", 19567)),
            ),
            (
                "PMI_RANK=3 PMI_SIZE=4 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2",
                Some("[fe80::1]:29501"),
                (3, 4, 1, 2, "mpirun", "", address("fe80::1", 29501)),
            ),
            (
                "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 RANK=",
                Some("file:/shared"),
                (3, 4, 1, 2, "mpirun", "", Meeting::File("/shared".into())),
            ),
            // Its daemons are started by srun.
            (
                &format!("{SRUN} OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4"),
                Some("h:1"),
                (3, 4, 0, 0, "mpirun", "", address("h", 1)),
            ),
        ]);
    }

    #[test]
    fn a_single_process_has_no_launch() {
        for env in [
            "",
            "RANK=",
            "LOCAL_RANK=0",
            "MASTER_ADDR=h MASTER_PORT=1",
            // The script of sbatch, and the shell of salloc.
            "SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_JOB_ID=1 SLURM_LOCALID=0",
            "SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_JOB_ID=1 SLURM_STEP_ID=4294967290",
        ] {
            assert_eq!(launch(env, None).expect("no error"), None, "{env}");
        }
    }

    #[test]
    fn what_is_wrong_in_an_environment_is_named() {
        let torchrun = |change: &str| format!("{TORCHRUN} {change}");
        for (env, rendezvous, parts) in [
            ("RANK=1", None, &["RANK", "WORLD_SIZE"][..]),
            ("WORLD_SIZE=2", None, &["WORLD_SIZE", "RANK", "srun"]),
            ("PMI_RANK=1", None, &["PMI_RANK", "PMI_SIZE"]),
            (&torchrun("RANK=8"), None, &["RANK", "8 is no rank of 8", "WORLD_SIZE"]),
            (&torchrun("WORLD_SIZE=0"), None, &["RANK", "WORLD_SIZE"]),
            (&torchrun("RANK=-1"), None, &["RANK", "`-1`"]),
            (&torchrun("WORLD_SIZE=two"), None, &["WORLD_SIZE", "`two`"]),
            (&torchrun("LOCAL_RANK=x"), None, &["LOCAL_RANK", "`x`"]),
            (&torchrun("LOCAL_RANK=4"), None, &["LOCAL_RANK", "4 is no rank of the 4"]),
            (&torchrun("MASTER_PORT=0"), None, &["MASTER_PORT", "65535"]),
            (&torchrun("MASTER_PORT=65536"), None, &["MASTER_PORT", "65535"]),
            (&torchrun("MASTER_PORT="), None, &["MASTER_ADDR", "MASTER_PORT", "--rendezvous"]),
            (&torchrun("MASTER_ADDR="), None, &["MASTER_ADDR", "MASTER_PORT", "--rendezvous"]),
            ("PMI_RANK=1 PMI_SIZE=2", None, &["PMI_RANK", "--rendezvous"]),
            (
                "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2",
                None,
                &["OMPI_COMM_WORLD_RANK", "--rendezvous"],
            ),
            (&format!("{SRUN} SLURM_STEP_NODELIST=n[1"), None, &["SLURM_STEP_NODELIST", "`n[1`"]),
            ("", Some("h:1"), &["--rendezvous", "RANK"]),
            (TORCHRUN, Some("h"), &["--rendezvous", "`h`", "file:"]),
            (TORCHRUN, Some("h:0"), &["--rendezvous", "`h:0`"]),
            (TORCHRUN, Some(":5"), &["--rendezvous", "`:5`"]),
            (TORCHRUN, Some("fe80::1:5"), &["--rendezvous"]),
            (TORCHRUN, Some("file:"), &["--rendezvous", "`file:`"]),
        ] {
            let error = launch(env, rendezvous).expect_err(env).to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{env}: {error}");
        }
    }

    #[test]
    fn devices_go_by_local_rank_or_are_the_only_one() {
        let mut launch = launch(TORCHRUN, None).expect("well-formed").expect("several");
        for (local, visible, device) in
            [(0, 1, Some(0)), (3, 4, Some(3)), (3, 1, Some(0)), (3, 3, None), (0, 0, None)]
        {
            launch.local_rank = local;
            assert_eq!(launch.device(visible).ok(), device, "{local} of {visible}");
        }
        launch.local_rank = 3;
        let error = launch.device(2).expect_err("too few").to_string();
        assert!(error.contains("rank 5") && error.contains("2 GPUs"), "{error}");
    }
}
