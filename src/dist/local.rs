//! Ranks on this host alone: copies of this very program, started and watched by it.

use super::launch::{LAUNCH, RENDEZVOUS};
use super::member::nonce;
use crate::error::{Error, Result};
use crate::files::atomic::Unfinished;
use crate::interrupt::Interrupt;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Process id of the one that started this rank.
const PARENT: &str = "SAIP_PARENT";
/// Between two looks at the ranks.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a line that are passed on at once.
const LINE: u64 = 1 << 14;

/// Copies of this program to be started, one a rank.
#[derive(Clone, Debug)]
pub struct Local {
    pub ranks: usize,
    /// Of each copy, without the name of the program.
    pub arguments: Vec<OsString>,
    /// For the others to end once one has failed; then they are killed.
    pub patience: Duration,
}

impl Local {
    /// Starts the ranks, and waits for them: the exit status of the one that failed first, 0 if none did. What rank 0 prints
    /// passes as it is; of the others, what they print as errors, with their names before it. The first SIGINT, SIGTERM or SIGHUP
    /// is handed to all, if [`interrupt::watch`](crate::interrupt::watch) is at work; a second one ends this process, and with
    /// it the ranks.
    ///
    /// # Errors
    /// [`Error::Usage`] without ranks; those of the system.
    pub fn run(&self) -> Result<i32> {
        if self.ranks == 0 {
            return Err(Error::usage("0 processes: start at least one"));
        }
        let interrupt = Interrupt::default();
        let _answering = interrupt.answer();
        let refused =
            |e| Error::device("processes", format!("cannot make a folder for them to meet in: {e}"));
        let folder = tempfile::Builder::new().prefix("saip-engine-").tempdir().map_err(refused)?;
        let _unfinished = Unfinished::whole(folder.path());
        let mut ranks = Ranks(Vec::new());
        let launch = nonce();
        for rank in 0..self.ranks {
            let mut child = self.command(rank, folder.path(), &launch)?.spawn().map_err(|e| {
                Error::device("processes", format!("cannot start rank {rank} of {}: {e}", self.ranks))
            })?;
            if let Some(lines) = child.stderr.take() {
                let pass = move || pass_on(rank, lines);
                let thread = std::thread::Builder::new().name(format!("lines of rank {rank}")).spawn(pass);
                thread.map_err(|e| Error::device("processes", format!("cannot start a thread: {e}")))?;
            }
            ranks.0.push(Rank { child, status: None });
        }
        Ok(ranks.wait(&interrupt, self.patience))
    }

    fn command(&self, rank: usize, folder: &Path, launch: &str) -> Result<Command> {
        let program = std::env::current_exe()
            .map_err(|e| Error::device("processes", format!("cannot tell where this program is: {e}")))?;
        let mut command = Command::new(program);
        let [rank_text, world] = [rank, self.ranks].map(|n| n.to_string());
        let mut meeting = OsString::from("file:");
        meeting.push(folder);
        command.args(&self.arguments).stdin(Stdio::null());
        command.env("RANK", &rank_text).env("LOCAL_RANK", &rank_text).env("WORLD_SIZE", &world);
        command.env("LOCAL_WORLD_SIZE", &world).env("MASTER_ADDR", "127.0.0.1").env(RENDEZVOUS, meeting);
        command.env(LAUNCH, launch).env(PARENT, std::process::id().to_string());
        if rank > 0 {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        }
        // In a group of its own, a rank does not get the terminal's Ctrl-C beside the one that is handed to it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(command)
    }
}

struct Rank {
    child: Child,
    status: Option<ExitStatus>,
}

/// What is still running when this is dropped is killed.
struct Ranks(Vec<Rank>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in self.0.iter_mut().filter(|rank| rank.status.is_none()) {
            let _ = rank.child.kill();
            let _ = rank.child.wait();
        }
    }
}

impl Ranks {
    /// The exit status of the run.
    fn wait(&mut self, interrupt: &Interrupt, patience: Duration) -> i32 {
        let mut failed: Option<(i32, Instant)> = None;
        let mut handed_on = false;
        loop {
            if let Some(code) = self.look()
                && failed.is_none()
            {
                failed = Some((code, Instant::now()));
            }
            if self.0.iter().all(|rank| rank.status.is_some()) {
                return failed.map_or(0, |f| f.0);
            }
            if interrupt.requested() && !handed_on {
                handed_on = true;
                self.hand_on(interrupt.exit_code());
            }
            // Asked to end, each may still have something to save.
            if let Some((code, since)) = failed
                && since.elapsed() > patience
                && !handed_on
            {
                let left = (0..self.0.len()).filter(|r| self.0[*r].status.is_none());
                let left = left.map(|r| r.to_string()).collect::<Vec<_>>().join(", ");
                eprintln!("warning: ranks that did not end after another one failed are killed: {left}");
                return code;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Notes who has ended; the status of one that has failed. One that a signal ended comes first: the others end as they see
    /// that it is gone.
    fn look(&mut self) -> Option<i32> {
        let mut failed: Option<(bool, i32)> = None;
        for rank in self.0.iter_mut().filter(|rank| rank.status.is_none()) {
            let Ok(Some(status)) = rank.child.try_wait() else { continue };
            rank.status = Some(status);
            let code = exit_code(status);
            let found = (status.code().is_none(), code);
            if code != 0 && failed.is_none_or(|f| found.0 && !f.0) {
                failed = Some(found);
            }
        }
        failed.map(|f| f.1)
    }

    /// Sends the signal that `exit_code` stands for to all that run.
    #[cfg(unix)]
    fn hand_on(&self, exit_code: i32) {
        use rustix::process::{Pid, Signal, kill_process};
        let signals = [Signal::HUP, Signal::INT, Signal::TERM];
        let signal = signals.into_iter().find(|s| s.as_raw() + 128 == exit_code).unwrap_or(Signal::TERM);
        for rank in self.0.iter().filter(|rank| rank.status.is_none()) {
            let _ = kill_process(Pid::from_child(&rank.child), signal);
        }
    }

    #[cfg(not(unix))]
    fn hand_on(&self, _exit_code: i32) {}
}

/// As shells have it: 128 and the signal for a process that one ended.
fn exit_code(status: ExitStatus) -> i32 {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal: Option<i32> = None;
    status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0))
}

fn pass_on(rank: usize, lines: ChildStderr) {
    let mut lines = BufReader::new(lines);
    let mut line = Vec::new();
    while (&mut lines).take(LINE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line);
        eprintln!("[rank {rank}] {}", text.trim_end_matches(['\n', '\r']));
        line.clear();
    }
}

/// Lets the system kill this process when the one that started it as a rank ends, be it killed itself. For the beginning of the
/// program; [`meet`](super::meet) does it if nobody has.
///
/// # Errors
/// [`Error::Distributed`] when that one is gone already.
pub fn follow_parent() -> Result<()> {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|pid| pid.parse::<i32>().ok()) else {
        return Ok(());
    };
    // Only systems that know how do it.
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};
        let refused =
            |e| Error::device("processes", format!("cannot follow the one that started this rank: {e}"));
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(refused)?;
        // It may have ended before.
        if getppid().is_none_or(|pid| pid.as_raw_pid() != parent) {
            let text = format!(
                "started this rank and is gone: unset {PARENT} if this process was started by something else"
            );
            return Err(Error::distributed(format!("process {parent}"), text));
        }
    }
    let _ = parent;
    Ok(())
}
