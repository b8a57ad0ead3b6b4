//! Ranks as threads of one process: what they agree on, what they add up, and what they say when something is wrong.

use super::{Deadlines, Hello, Launch, Meeting, meet};
use crate::backend::{Collective, HostSliceMut, Phase};
use crate::error::{Error, Result};
use crate::tensor::DType;
use half::bf16;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Long enough for a loaded machine, short enough to wait for.
const PATIENT: Deadlines = Deadlines {
    join: Duration::from_secs(60),
    step: Duration::from_secs(60),
    silence: Duration::from_secs(60),
    grace: Duration::from_secs(600),
};

fn launch(rank: usize, world: usize, meeting: Meeting) -> Launch {
    let id = String::new();
    Launch { rank, world, local_rank: rank, local_world: world, launcher: "test", id, meeting }
}

fn hello() -> Hello {
    Hello { version: "1".to_owned(), config: "c".to_owned(), device: "cpu".to_owned() }
}

/// A port that nobody gets by chance: below those that systems hand out.
fn free_port() -> u16 {
    let drawn = || u64::from_str_radix(&super::member::nonce()[..8], 16).expect("hexadecimal");
    let mut port = (0..1000).map(|_| 15_000 + (drawn() % 15_000) as u16);
    port.find(|p| TcpListener::bind(("127.0.0.1", *p)).is_ok()).expect("a free port")
}

fn local(port: u16) -> Meeting {
    Meeting::Address { host: "127.0.0.1".to_owned(), port }
}

/// What `body` gives on each rank of a world, by rank.
fn ranks<T: Send>(
    world: usize,
    deadlines: Deadlines,
    body: impl Fn(Box<dyn Collective>) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let folder = tempfile::tempdir().expect("a folder");
    let each = |rank| {
        let meeting = Meeting::File(folder.path().to_owned());
        meet(&launch(rank, world, meeting), &hello(), &deadlines).and_then(&body)
    };
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..world).map(|rank| s.spawn(move || each(rank))).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    })
}

fn all<T>(results: Vec<Result<T>>) -> Vec<T> {
    results.into_iter().map(|r| r.expect("all is well")).collect()
}

/// Values of a rank, of many magnitudes, so that the order of additions shows.
fn value(rank: usize, i: usize) -> f64 {
    let mixed = (rank as u64 * 7919 + i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let exponent = (mixed >> 58) as i32 % 24 - 12;
    ((mixed >> 11) as f64 / (1_u64 << 53) as f64 - 0.5) * f64::from(exponent).exp2()
}

/// The sum as the ring is documented to add it: segment `s` from rank `s` on.
fn reference<T: Copy>(
    len: usize,
    world: usize,
    of: impl Fn(usize, usize) -> T,
    start: impl Fn(T) -> T,
    add: impl Fn(T, T) -> T,
) -> Vec<T> {
    let bounds: Vec<usize> = (0..=world).map(|s| len / world * s + s.min(len % world)).collect();
    let segment = |i: usize| bounds.windows(2).position(|w| (w[0]..w[1]).contains(&i)).expect("in a segment");
    let sum = |i: usize| {
        let s = segment(i);
        (1..world).fold(start(of(s, i)), |sum, k| add(of((s + k) % world, i), sum))
    };
    (0..len).map(sum).collect()
}

#[test]
fn sums_are_those_of_a_fixed_order_on_all_ranks() {
    for world in [2, 3, 4] {
        let lengths = [0, 1, world - 1, world, 1000, 70_001 * world + 1];
        let sums = all(ranks(world, PATIENT, |mut link| {
            let rank = link.rank();
            let mut sums = Vec::new();
            for len in lengths {
                let mut wide: Vec<f64> = (0..len).map(|i| value(rank, i)).collect();
                let mut narrow: Vec<f32> = wide.iter().map(|v| *v as f32).collect();
                let mut short = narrow.clone();
                link.all_reduce(HostSliceMut::F64(&mut wide), DType::F64)?;
                link.all_reduce(HostSliceMut::F32(&mut narrow), DType::F32)?;
                link.all_reduce(HostSliceMut::F32(&mut short), DType::Bf16)?;
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                sums.push((
                    wide.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
                    bits(&narrow),
                    bits(&short),
                ));
            }
            link.leave(None);
            Ok(sums)
        }));
        let round = |v: f32| bf16::from_f32(v).to_f32();
        for (at, len) in lengths.into_iter().enumerate() {
            let wide = reference(len, world, value, |v| v, |own, sum| own + sum);
            let of = |rank, i| value(rank, i) as f32;
            let narrow = reference(len, world, of, |v| v, |own, sum| own + sum);
            let short = reference(len, world, of, round, |own, sum| round(own + sum));
            for (rank, sums) in sums.iter().enumerate() {
                let (w, n, s) = &sums[at];
                let what = format!("rank {rank} of {world}, {len} values");
                assert!(
                    w.iter().eq(wide.iter().map(|v| v.to_bits()).collect::<Vec<_>>().iter()),
                    "f64, {what}"
                );
                assert!(
                    n.iter().eq(narrow.iter().map(|v| v.to_bits()).collect::<Vec<_>>().iter()),
                    "f32, {what}"
                );
                assert!(
                    s.iter().eq(short.iter().map(|v| v.to_bits()).collect::<Vec<_>>().iter()),
                    "bf16, {what}"
                );
            }
        }
    }
}

#[test]
fn a_single_rank_is_left_as_it_is() {
    let mut link = meet(&launch(0, 1, local(1)), &hello(), &PATIENT).expect("nobody to meet");
    let mut values = [0.1_f32, f32::NAN];
    link.all_reduce(HostSliceMut::F32(&mut values), DType::Bf16).expect("nothing to do");
    assert_eq!(values[0], 0.1);
    assert_eq!(link.all_gather(b"own").expect("nothing to do"), [b"own"]);
    let mut bytes = vec![1, 2];
    link.broadcast(0, &mut bytes).expect("nothing to do");
    link.barrier().expect("nothing to do");
    assert_eq!((bytes, link.rank(), link.world()), (vec![1, 2], 0, 1));
}

#[test]
fn bytes_are_gathered_and_broadcast() {
    let world = 3;
    let results = all(ranks(world, PATIENT, |mut link| {
        let rank = link.rank();
        link.enter(Phase::Step);
        let mut gathered = Vec::new();
        for round in 0..20 {
            gathered.push(link.all_gather(&vec![rank as u8; rank * round])?);
        }
        let mut broadcast = Vec::new();
        for root in 0..world {
            let mut bytes = if rank == root { vec![root as u8 + 1; 700_001 * root] } else { vec![9; 5] };
            link.broadcast(root, &mut bytes)?;
            broadcast.push(bytes);
        }
        link.barrier()?;
        link.leave(None);
        Ok((gathered, broadcast))
    }));
    for (gathered, broadcast) in results {
        for (round, all) in gathered.iter().enumerate() {
            let expected: Vec<Vec<u8>> = (0..world).map(|rank| vec![rank as u8; rank * round]).collect();
            assert_eq!(*all, expected);
        }
        for (root, bytes) in broadcast.iter().enumerate() {
            assert!(*bytes == vec![root as u8 + 1; 700_001 * root], "from {root}");
        }
    }
}

fn told<T>(result: Result<T>) -> String {
    match result {
        Err(e @ Error::Distributed { .. }) => e.to_string(),
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("no error"),
    }
}

/// What each rank is told when rank 1 of three does something else than the others.
fn disagreement(odd: impl Fn(&mut dyn Collective) -> Result<()> + Sync) -> Vec<String> {
    let results = ranks(3, PATIENT, |mut link| {
        if link.rank() == 1 {
            odd(link.as_mut())?;
            // Its own call may be complete before the others' answer comes.
            return link.barrier();
        }
        link.all_reduce(HostSliceMut::F32(&mut [1.0; 100]), DType::F32)?;
        link.barrier()
    });
    results.into_iter().map(told).collect()
}

#[test]
fn ranks_that_do_different_things_are_told_so() {
    for (odd, what) in [
        (
            (|link: &mut dyn Collective| link.all_reduce(HostSliceMut::F32(&mut [1.0; 99]), DType::F32))
                as fn(&mut dyn Collective) -> Result<()>,
            "all_reduce of 99 f32 values",
        ),
        (|link| link.all_reduce(HostSliceMut::F32(&mut [1.0; 100]), DType::Bf16), "100 f32 values as bf16"),
        (|link| link.all_reduce(HostSliceMut::F64(&mut [1.0; 100]), DType::F64), "100 f64 values"),
        (|link| link.barrier(), "all_gather"),
        (|link| link.broadcast(1, &mut vec![0; 400]), "broadcast from rank 1"),
    ] {
        for text in disagreement(odd) {
            assert!(text.contains("all_reduce of 100 f32 values") && text.contains(what), "{text}");
            assert!(text.contains("same order"), "{text}");
        }
    }
}

#[test]
fn a_rank_that_ends_with_an_error_tells_all_why() {
    for failing in [0, 2] {
        let results = ranks(3, PATIENT, |mut link| {
            if link.rank() == failing {
                link.leave(Some("data/x.jpg: is no picture"));
                return Ok(String::new());
            }
            Ok(told(link.all_reduce(HostSliceMut::F32(&mut [1.0; 100]), DType::F32)))
        });
        for (rank, text) in all(results).into_iter().enumerate().filter(|(rank, _)| *rank != failing) {
            assert!(text.starts_with(&format!("rank {failing} (")), "{rank}: {text}");
            assert!(text.contains("data/x.jpg: is no picture"), "{rank}: {text}");
        }
    }
}

#[test]
fn a_rank_that_has_ended_is_not_waited_for() {
    // It ends while another one waits for it, or before.
    for (gone, pauses) in [(0, [300, 0]), (0, [0, 300]), (1, [0, 300]), (1, [300, 0])] {
        let results = ranks(2, PATIENT, |mut link| {
            let rank = link.rank();
            std::thread::sleep(Duration::from_millis(pauses[rank]));
            if rank == gone {
                link.leave(None);
                return Ok(String::new());
            }
            Ok(told(link.barrier()))
        });
        let text = &all(results)[1 - gone];
        assert!(text.starts_with(&format!("rank {gone} (")) && text.contains("ended its part"), "{text}");
    }
}

#[test]
fn missing_ranks_are_listed() {
    let port = free_port();
    let short = Deadlines { join: Duration::from_millis(2500), ..PATIENT };
    let start = Instant::now();
    let texts = std::thread::scope(|s| {
        let come = |rank| s.spawn(move || meet(&launch(rank, 4, local(port)), &hello(), &short).map(drop));
        [come(0), come(2)].map(|t| told(t.join().expect("no panic")))
    });
    assert!(start.elapsed() < Duration::from_secs(20), "within the deadline");
    for text in texts {
        assert!(text.contains("ranks 1, 3") && text.contains("did not come to the meeting"), "{text}");
    }
    let alone = told(meet(&launch(1, 2, local(port)), &hello(), &short).map(drop));
    assert!(alone.contains("rank 0") && alone.contains(&format!("127.0.0.1:{port}")), "{alone}");
}

#[test]
fn strangers_do_no_harm() {
    let port = free_port();
    let met = std::thread::scope(|s| {
        let hub = s.spawn(|| meet(&launch(0, 2, local(port)), &hello(), &PATIENT).map(drop));
        let mut strangers = Vec::new();
        for said in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"",
            b"SAIPMEET\x01\0\0\0\xff\xff\xff\xff{}",
            b"SAIPMEET\x01\0\0\0\x02\0\0\0{}",
        ] {
            let mut stream = loop {
                match TcpStream::connect(("127.0.0.1", port)) {
                    Ok(stream) => break stream,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            };
            stream.write_all(said).expect("taken");
            strangers.push(stream);
        }
        let guest = meet(&launch(1, 2, local(port)), &hello(), &PATIENT).map(drop);
        [guest, hub.join().expect("no panic")]
    });
    for result in met {
        result.expect("they met");
    }
}

/// A folder holds what an older launch left there, whose rank 0 still listens, then half a file: neither is believed.
#[test]
fn notices_of_other_launches_are_not_believed() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let notice = |at: usize| folders[at].path().join("saip-engine-rendezvous.json");
    let come = |rank, at: usize| {
        let meeting = Meeting::File(folders[at].path().to_owned());
        meet(&launch(rank, 2, meeting), &hello(), &PATIENT).map(drop)
    };
    std::thread::scope(|s| {
        let old = s.spawn(|| come(0, 0));
        while !notice(0).exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let json = std::fs::read_to_string(notice(0)).expect("a notice");
        let nonce: serde_json::Value = serde_json::from_str(&json).expect("well-formed");
        let other = json.replace(nonce["nonce"].as_str().expect("a text"), "older");
        std::fs::write(notice(1), &other).expect("written");
        let guest = s.spawn(|| come(1, 1));
        std::thread::sleep(Duration::from_millis(200));
        std::fs::write(notice(1), &other[..other.len() / 2]).expect("written");
        std::thread::sleep(Duration::from_millis(100));
        assert!(!guest.is_finished(), "it waits for its own rank 0");
        come(0, 1).expect("they met");
        guest.join().expect("no panic").expect("they met");
        assert!(!notice(1).exists(), "nothing is left for the next launch to find");
        come(1, 0).expect("the older launch took no harm");
        old.join().expect("no panic").expect("they met");
    });
}

#[test]
fn another_version_of_the_protocol_is_told_so() {
    let port = free_port();
    std::thread::scope(|s| {
        let hub = s.spawn(|| meet(&launch(0, 2, local(port)), &hello(), &PATIENT).map(drop));
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.write_all(b"SAIPMEET\x07\0\0\0\x02\0\0\0").expect("taken");
        let mut answer = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.contains("it meets by protocol 7, this one by 1"), "{answer}");
        meet(&launch(1, 2, local(port)), &hello(), &PATIENT).map(drop).expect("they met");
        hub.join().expect("no panic").expect("they met");
        // The other way around: a rank 0 of another version.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let guest = s.spawn(move || told(meet(&launch(1, 2, local(port)), &hello(), &PATIENT).map(drop)));
        let (mut stream, _) = listener.accept().expect("a guest");
        stream.write_all(b"SAIPMEET\x07\0\0\0\x02\0\0\0{}").expect("taken");
        let text = guest.join().expect("no panic");
        assert!(text.contains("it meets by protocol 7, this one by 1"), "{text}");
    });
}
