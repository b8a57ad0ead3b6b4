//! Ranks as processes: what they add up, and what is said when one of them dies, stands still, is late or does not belong.
//!
//! Each rank is a copy of this very test program, told by the environment what to do ([`a_rank_of_another_test`]).

use saip_engine::backend::{Collective, HostSliceMut, Phase};
use saip_engine::dist::{Deadlines, Hello, Launch, Local, STUCK, meet};
use saip_engine::error::Result;
use saip_engine::tensor::DType;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Tells a copy of this program what to do.
const TASK: &str = "SAIP_DIST_TEST";
/// Tells it how long to wait: join, step, silence, grace in milliseconds.
const PATIENCE: &str = "SAIP_DIST_TEST_DEADLINES";
/// Tells it the hash of its configuration, and its device.
const CONFIG: &str = "SAIP_DIST_TEST_CONFIG";
const DEVICE: &str = "SAIP_DIST_TEST_DEVICE";
/// Exit status of a rank whose run fails.
const FAILED: i32 = 3;
/// For what takes moments, on a machine that is busy.
const SOON: Duration = Duration::from_secs(60);
/// No test waits for these.
const PATIENT: [u64; 4] = [100_000, 100_000, 100_000, 100_000];

/// Prints a line in one piece, so that lines of several processes do not mix.
macro_rules! tell {
    ($($text:tt)*) => {
        std::io::stderr().write_all(format!("{}\n", format_args!($($text)*)).as_bytes()).expect("somebody reads")
    };
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Arguments that make a copy of this program a rank.
fn arguments() -> Vec<OsString> {
    ["--exact", "a_rank_of_another_test", "--nocapture", "--test-threads=1"].map(OsString::from).to_vec()
}

/// Does nothing as a test; a rank, where another test has started this program as one.
#[test]
fn a_rank_of_another_test() {
    let Some(task) = variable(TASK) else { return };
    // A number of ranks to start, then what they do.
    let local = task.strip_prefix("local ").and_then(|of| of.split_once(' '));
    let code = match local {
        Some((ranks, _)) if variable("RANK").is_none() => launcher(ranks.parse().expect("a number")),
        Some((_, task)) => rank(task),
        None => rank(&task),
    };
    std::process::exit(code);
}

/// Starts ranks as the program does.
fn launcher(ranks: usize) -> i32 {
    saip_engine::interrupt::watch().expect("signals are watched");
    let local = Local { ranks, arguments: arguments(), patience: Duration::from_millis(1500) };
    local.run().unwrap_or_else(|e| {
        tell!("failed: {e}");
        FAILED
    })
}

fn rank(task: &str) -> i32 {
    saip_engine::interrupt::watch().expect("signals are watched");
    let ms = variable(PATIENCE).expect("deadlines");
    let ms: Vec<Duration> =
        ms.split(' ').map(|n| Duration::from_millis(n.parse().expect("a number"))).collect();
    let deadlines = Deadlines { join: ms[0], step: ms[1], silence: ms[2], grace: ms[3] };
    let hello = Hello {
        version: "1".to_owned(),
        config: variable(CONFIG).unwrap_or_default(),
        device: variable(DEVICE).unwrap_or_else(|| "cpu".to_owned()),
    };
    let launch =
        Launch::of(&variable, None).and_then(|l| meet(&l.expect("several ranks"), &hello, &deadlines));
    let ended = launch.and_then(|mut link| {
        let ended = work(task, link.as_mut());
        link.leave(ended.as_ref().err().map(ToString::to_string).as_deref());
        ended
    });
    match ended {
        Ok(()) => 0,
        Err(e) => {
            tell!("failed: {e}");
            FAILED
        }
    }
}

/// What rank `rank` of `world` has of a sum of four fixed shares.
fn share(rank: usize, world: usize, i: usize) -> f64 {
    let of = |share: usize| ((share * 31 + i * 7) % 1013) as f64;
    (0..4).filter(|s| s % world == rank).map(of).sum()
}

/// A value of a rank whose sums show the order in which they are added.
fn odd(rank: usize, i: usize) -> f32 {
    let mixed = (rank as u64 * 7919 + i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed >> 40) as f32 - 8_388_608.0) * (((mixed >> 20) as i32 % 20 - 10) as f32).exp2()
}

fn hash(values: &[f32]) -> u64 {
    values
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, v| (h ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3))
}

const LENGTH: usize = 300_007;

fn work(task: &str, link: &mut dyn Collective) -> Result<()> {
    let (rank, world) = (link.rank(), link.world());
    link.enter(Phase::Step);
    let sum = |link: &mut dyn Collective| link.all_reduce(HostSliceMut::F32(&mut [1.0; 10]), DType::F32);
    let words: Vec<&str> = task.split(' ').collect();
    let me = words.get(1).and_then(|n| n.parse().ok()) == Some(rank);
    match words[0] {
        "sums" => {
            let mut shares: Vec<f32> = (0..LENGTH).map(|i| share(rank, world, i) as f32).collect();
            link.all_reduce(HostSliceMut::F32(&mut shares), DType::F32)?;
            let mut values: Vec<f32> = (0..LENGTH).map(|i| odd(rank, i)).collect();
            link.all_reduce(HostSliceMut::F32(&mut values), DType::F32)?;
            tell!("sums {:x} {:x}", hash(&shares), hash(&values));
        }
        // Until something is wrong.
        "loop" => {
            sum(link)?;
            tell!("ready");
            loop {
                sum(link)?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // One comes late to a sum, and says before that it will or does not.
        "late" | "aside" => {
            sum(link)?;
            if me {
                if words[0] == "aside" {
                    link.enter(Phase::Aside);
                }
                std::thread::sleep(Duration::from_millis(words[2].parse().expect("milliseconds")));
                link.enter(Phase::Step);
            }
            sum(link)?;
            tell!("done");
        }
        // One never looks at the run again, the others wait for it.
        "stuck" if me => loop {
            std::thread::sleep(SOON);
        },
        "stuck" => sum(link)?,
        // One ends its process at once, the others notice a while later, or not at all.
        "exit" | "vanish" if me => std::process::exit(words[2].parse().expect("a code")),
        "exit" => {
            std::thread::sleep(Duration::from_secs(1));
            link.barrier()?;
        }
        "vanish" => std::thread::sleep(SOON),
        // Until a signal asks it to stop.
        "wait" => {
            let interrupt = saip_engine::interrupt::Interrupt::default();
            let _answering = interrupt.answer();
            link.barrier()?;
            tell!("waits {}", std::process::id());
            while !interrupt.requested() {
                std::thread::sleep(Duration::from_millis(5));
            }
            tell!("asked to stop: {}", interrupt.exit_code());
            link.barrier()?;
        }
        other => panic!("no task {other}"),
    }
    Ok(())
}

/// A copy of this program whose lines are read as they come.
struct Rank {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rank {
    fn start(mut command: Command) -> Rank {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let stderr = child.stderr.take().expect("piped");
        let (to, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(|line| line.ok()) {
                let _ = to.send(line);
            }
        });
        Rank { child, lines, said: Vec::new() }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The rest of the first line that has `start` in it.
    fn line(&mut self, start: &str) -> String {
        let until = Instant::now() + SOON;
        loop {
            if let Some(line) = self.said.iter().find_map(|l| l.split_once(start)) {
                return line.1.to_owned();
            }
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(e) => panic!("no line `{start}` ({e}), but {:?}", self.said),
            }
        }
    }

    fn code(&mut self) -> Option<i32> {
        let until = Instant::now() + SOON;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("still runs after {SOON:?}")
    }

    fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status().expect("a shell");
    assert!(sent.success(), "{name} to {pid}");
}

/// A rank that does `task`, and meets the others as `meeting` has it.
fn command(task: &str, rank: usize, world: usize, meeting: &str, deadlines: [u64; 4]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(arguments()).env(TASK, task).env("SAIP_RENDEZVOUS", meeting);
    command.env(PATIENCE, deadlines.map(|ms| ms.to_string()).join(" "));
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string()).env_remove("LOCAL_WORLD_SIZE");
    command
}

fn file(folder: &Path) -> String {
    format!("file:{}", folder.display())
}

/// All ranks of a world that does `task`.
fn world(task: &str, world: usize, deadlines: [u64; 4]) -> (Vec<Rank>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let meeting = file(folder.path());
    let ranks = (0..world).map(|rank| Rank::start(command(task, rank, world, &meeting, deadlines)));
    (ranks.collect(), folder)
}

/// A port that nobody gets by chance: below those that systems hand out.
fn free_port() -> u16 {
    let start =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").subsec_nanos();
    let mut ports =
        (0..1000).map(|i| 15_000 + ((start.wrapping_mul(31) >> 8).wrapping_add(i * 97) % 15_000) as u16);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

#[test]
fn sums_of_one_two_and_four_ranks_are_equal_and_of_a_fixed_order() {
    let mut equal = Vec::new();
    for n in [1, 2, 4] {
        let (mut ranks, _folder) = world("sums", n, PATIENT);
        let lines: Vec<String> = ranks.iter_mut().map(|rank| rank.line("sums ")).collect();
        assert!(ranks.iter_mut().all(|rank| rank.code() == Some(0)), "all end in order");
        assert!(lines.iter().all(|line| *line == lines[0]), "all ranks have the same: {lines:?}");
        let (shares, values) = lines[0].split_once(' ').expect("two hashes");
        equal.push(shares.to_owned());
        let bounds: Vec<usize> = (0..=n).map(|s| LENGTH / n * s + s.min(LENGTH % n)).collect();
        let mut sequential = Vec::new();
        for segment in 0..n {
            for i in bounds[segment]..bounds[segment + 1] {
                sequential.push((1..n).fold(odd(segment, i), |sum, k| odd((segment + k) % n, i) + sum));
            }
        }
        assert_eq!(values, format!("{:x}", hash(&sequential)), "{n} ranks");
    }
    let shares: Vec<f32> = (0..LENGTH).map(|i| share(0, 1, i) as f32).collect();
    assert!(equal.iter().all(|h| *h == format!("{:x}", hash(&shares))), "{equal:?}");
}

/// A run of three whose rank `victim` gets `name`; what the others say, and the victim.
fn struck(victim: usize, name: &str, deadlines: [u64; 4]) -> (Vec<String>, Rank) {
    let (mut ranks, _folder) = world("loop", 3, deadlines);
    ranks.iter_mut().for_each(|rank| drop(rank.line("ready")));
    let start = Instant::now();
    ranks[victim].signal(name);
    let victim = ranks.remove(victim);
    let said = ranks.iter_mut().map(|rank| {
        let text = rank.line("failed: ");
        assert_eq!(rank.code(), Some(FAILED));
        text
    });
    let said = said.collect();
    assert!(start.elapsed() < Duration::from_secs(40), "within the deadline");
    (said, victim)
}

/// `check` of each, at the same time.
fn at_once<const N: usize>(of: [usize; N], check: impl Fn(usize) + Sync) {
    std::thread::scope(|s| {
        let threads = of.map(|n| {
            let check = &check;
            s.spawn(move || check(n))
        });
        threads.into_iter().for_each(|t| t.join().expect("the check holds"));
    });
}

fn names(text: &str, rank: usize, pid: u32) -> bool {
    text.starts_with(&format!("rank {rank} (")) && text.contains(&format!("pid {pid})"))
}

#[test]
fn a_killed_rank_is_named_at_once() {
    at_once([0, 1], |victim| {
        let (said, rank) = struck(victim, "KILL", PATIENT);
        for text in said {
            assert!(names(&text, victim, rank.pid()) && text.contains("ended without a word"), "{text}");
        }
    });
}

#[test]
fn a_stopped_rank_is_named_within_the_deadline_and_learns_of_it() {
    at_once([0, 2], |victim| {
        let (said, mut rank) = struck(victim, "STOP", [100_000, 100_000, 4000, 100_000]);
        for text in said {
            assert!(
                names(&text, victim, rank.pid()) && text.contains("no sign of life for 4.00 s"),
                "{text}"
            );
        }
        rank.signal("CONT");
        let own = rank.line("failed: ");
        assert_eq!(rank.code(), Some(FAILED));
        if victim != 0 {
            assert!(names(&own, victim, rank.pid()) && own.contains("no sign of life"), "{own}");
        }
    });
}

#[test]
fn a_late_rank_is_named_unless_it_is_aside() {
    let deadlines = [100_000, 1500, 100_000, 100_000];
    at_once([0, 1, 2], |case| {
        if case == 2 {
            let (mut ranks, _folder) = world("late 1 20000", 3, deadlines);
            for rank in [0, 2] {
                let text = ranks[rank].line("failed: ");
                let late = "is alive, but did not come to all_reduce of 10 f32";
                assert!(text.starts_with("rank 1 (") && text.contains(late), "{text}");
            }
            return;
        }
        let (mut ranks, _folder) = world(&format!("aside {case} 4000"), 2, deadlines);
        for rank in &mut ranks {
            rank.line("done");
            assert_eq!(rank.code(), Some(0));
        }
    });
}

#[test]
fn a_stuck_process_is_ended_by_its_heartbeat() {
    let (mut ranks, _folder) = world("stuck 1", 2, [100_000, 1000, 100_000, 1000]);
    let text = ranks[0].line("failed: ");
    assert!(text.starts_with("rank 1 ("), "{text}");
    let last = ranks[1].line("error: ");
    assert!(last.starts_with("rank 1 (") && last.contains("did not notice within 1.00 s"), "{last}");
    assert_eq!(ranks[1].code(), Some(STUCK));
}

#[test]
fn ranks_that_do_not_fit_are_refused_by_both_values() {
    let short = [8000, 100_000, 100_000, 100_000];
    let folder = tempfile::tempdir().expect("a folder");
    let meeting = file(folder.path());
    let start = |rank, world, config: &str, device: &str| {
        let mut command = command("loop", rank, world, &meeting, short);
        command.env(CONFIG, config).env(DEVICE, device);
        Rank::start(command)
    };
    let mut hub = start(0, 4, "a1", "GPU-0");
    let mut world = start(1, 3, "a1", "GPU-1");
    let text = world.line("failed: ");
    assert!(text.contains("the number of ranks is 3 on rank 1, 4 on rank 0"), "{text}");
    let mut config = start(1, 4, "b2", "GPU-1");
    let text = config.line("failed: ");
    assert!(text.contains("the hash of the configuration is b2 on rank 1, a1 on rank 0"), "{text}");
    let mut device = start(1, 4, "a1", "GPU-0");
    let text = device.line("failed: ");
    assert!(text.contains("ranks 0 and 1 both use GPU-0"), "{text}");
    let text = hub.line("failed: ");
    assert!(text.starts_with("ranks 1, 2, 3: did not come to the meeting within 8.00 s"), "{text}");
    assert!(text.contains("b2 on rank 1, a1 on rank 0"), "{text}");
    assert!([world, config, device].iter().all(|r| text.contains(&format!("pid {})", r.pid()))), "{text}");
}

#[test]
fn a_rank_that_comes_twice_is_refused_and_the_run_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let meeting = file(folder.path());
    let start = |rank| Rank::start(command("sums", rank, 3, &meeting, PATIENT));
    let (mut hub, mut twins) = (start(0), [start(1), start(1)]);
    let said = hub.line("warning: rank 0 refuses rank 1 (");
    assert!(said.contains("rank 1 is there twice"), "{said}");
    let [a, b] = twins.each_ref().map(|t| t.pid().to_string());
    assert!(said.contains(&a) && said.contains(&b), "{said}");
    let mut last = start(2);
    let sums = hub.line("sums ");
    assert_eq!(last.line("sums "), sums);
    let codes: Vec<Option<i32>> = twins.iter_mut().map(Rank::code).collect();
    assert!(codes.contains(&Some(0)) && codes.contains(&Some(FAILED)), "{codes:?}");
}

#[test]
fn two_jobs_on_one_port_do_each_other_no_harm() {
    let port = free_port();
    let meeting = format!("127.0.0.1:{port}");
    let start = |rank, job: &str| {
        let mut command = command("sums", rank, 2, &meeting, PATIENT);
        command.env("SAIP_LAUNCH", job);
        Rank::start(command)
    };
    let mut first = start(0, "first");
    while TcpListener::bind(("127.0.0.1", port)).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut other = start(0, "second");
    let text = other.line("failed: ");
    assert!(
        text.contains(&format!("cannot listen on port {port}")) && text.contains("MASTER_PORT"),
        "{text}"
    );
    // Of the wrong job: it is neither let in nor does it end the run.
    let mut stray = start(1, "second");
    first.line("warning: rank 0 refuses rank 1 (");
    let mut second = start(1, "first");
    assert_eq!(first.line("sums "), second.line("sums "));
    assert!(stray.child.try_wait().expect("a child").is_none(), "it waits for its own rank 0");
}

/// A process that starts `ranks` of its own, which do `task`.
fn local(ranks: usize, task: &str) -> Rank {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(arguments()).env(TASK, format!("local {ranks} {task}")).env_remove("RANK");
    command.env(PATIENCE, PATIENT.map(|ms| ms.to_string()).join(" "));
    Rank::start(command)
}

#[test]
fn ranks_of_one_host_are_started_and_their_end_is_told() {
    let mut fine = local(3, "sums");
    let sums = fine.line("sums ");
    for rank in [1, 2] {
        assert_eq!(fine.line(&format!("[rank {rank}] sums ")), sums);
    }
    assert_eq!(fine.code(), Some(0));
    let mut failing = local(2, "exit 1 7");
    let text = failing.line("failed: rank 1 (");
    assert!(text.contains("ended without a word"), "{text}");
    assert_eq!(failing.code(), Some(7), "the first one's, though the other ended with {FAILED}");
    let start = Instant::now();
    let mut waiting = local(3, "vanish 1 9");
    assert_eq!(waiting.line("are killed: "), "0, 2");
    assert_eq!(waiting.code(), Some(9));
    assert!(start.elapsed() < Duration::from_secs(40), "they are not waited for");
}

#[test]
fn a_signal_is_handed_to_all_ranks_once() {
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let mut local = local(2, "wait");
        local.line("[rank 1] waits ");
        local.signal(name);
        assert_eq!(local.line("[rank 1] asked to stop: "), code.to_string());
        assert_eq!(local.code(), Some(0), "both have ended in order");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn ranks_do_not_outlive_a_killed_launcher() {
    let mut local = local(2, "wait");
    let pid = local.line("[rank 1] waits ");
    local.signal("KILL");
    let until = Instant::now() + SOON;
    // A process that nobody has asked for its end is left as a zombie.
    let runs = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    };
    while runs() {
        assert!(Instant::now() < until, "rank 1 lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Two hosts with a cable between them: network namespaces of this one.
struct Hosts(String);

impl Hosts {
    /// None where this is not allowed.
    fn new(name: &str) -> Option<Hosts> {
        let hosts = Hosts(format!("saip{}{name}", std::process::id()));
        let [a, b] = hosts.names();
        for rest in [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("-n {a} link add wire type veth peer name wire netns {b}"),
            format!("-n {a} addr add 10.77.0.1/24 dev wire"),
            format!("-n {b} addr add 10.77.0.2/24 dev wire"),
            format!("-n {a} link set lo up"),
            format!("-n {b} link set lo up"),
            format!("-n {a} link set wire up"),
            format!("-n {b} link set wire up"),
            format!("-n {a} route add default dev wire"),
        ] {
            if !ip(&rest) {
                eprintln!("skipped: no hosts can be made of network namespaces here (`ip {rest}` fails)");
                return None;
            }
        }
        Some(hosts)
    }

    fn names(&self) -> [String; 2] {
        ["a", "b"].map(|end| format!("{}{end}", self.0))
    }

    /// Ranks on the first or the second host.
    fn start(&self, places: &[usize], task: &str, meeting: &str, deadlines: [u64; 4]) -> Vec<Rank> {
        let names = self.names();
        let start = |(rank, place): (usize, &usize)| {
            let of = command(task, rank, places.len(), meeting, deadlines);
            let mut inside = Command::new("ip");
            inside.args(["netns", "exec", &names[*place]]).arg(of.get_program()).args(of.get_args());
            of.get_envs().for_each(|(name, value)| match value {
                Some(value) => drop(inside.env(name, value)),
                None => drop(inside.env_remove(name)),
            });
            Rank::start(inside)
        };
        places.iter().enumerate().map(start).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.names().iter().for_each(|name| {
            ip(&format!("netns del {name}"));
        });
    }
}

fn ip(arguments: &str) -> bool {
    let run =
        Command::new("ip").args(arguments.split(' ')).stdout(Stdio::null()).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

#[test]
fn a_dead_link_between_hosts_is_told_on_both_sides() {
    let Some(hosts) = Hosts::new("dead") else { return };
    let mut ranks = hosts.start(&[0, 1], "loop", "10.77.0.1:29500", [100_000, 100_000, 3000, 100_000]);
    ranks.iter_mut().for_each(|rank| drop(rank.line("ready")));
    assert!(ip(&format!("-n {} link set wire down", hosts.names()[1])));
    for (rank, other) in ranks.iter_mut().zip([1, 0]) {
        let text = rank.line("failed: ");
        assert!(
            text.starts_with(&format!("rank {other} (")) && text.contains("no sign of life for 3.00 s"),
            "{text}"
        );
    }
}

#[test]
fn a_slow_link_is_no_dead_one() {
    let Some(hosts) = Hosts::new("slow") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    // 1.2 MB take more than two seconds each way.
    for name in hosts.names() {
        let limit =
            format!("netns exec {name} tc qdisc add dev wire root tbf rate 4mbit burst 32kbit latency 400ms");
        if !ip(&limit) {
            eprintln!("skipped: no link can be made slow here");
            return;
        }
    }
    let start = Instant::now();
    let mut ranks = hosts.start(&[0, 0, 1], "sums", &file(folder.path()), [100_000, 1500, 100_000, 100_000]);
    // By the folder, one finds rank 0 on its own host, the other over the cable; both find each other.
    let sums: Vec<String> = ranks.iter_mut().map(|rank| rank.line("sums ")).collect();
    assert!(sums.iter().all(|s| *s == sums[0]), "{sums:?}");
    assert!(ranks.iter_mut().all(|rank| rank.code() == Some(0)), "all end in order");
    assert!(start.elapsed() > Duration::from_secs(3), "the link is slow");
}
