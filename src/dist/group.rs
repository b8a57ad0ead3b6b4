//! The ranks of a run as the training loop sees them.

use super::deadlines::Deadlines;
use super::frame::{Call, LONGEST};
use super::greeting::{self, Greeting, Guest, Welcome};
use super::heartbeat::{self, Heart};
use super::join;
use super::launch::{Launch, Meeting};
use super::link::Link;
use super::local::follow_parent;
use super::meeting::{self, Door};
use super::member::{Failure, Hello, Member, nonce, this_host};
use super::ring::Ring;
use super::whereabouts;
use crate::backend::{Collective, HostSliceMut, Phase};
use crate::error::{Error, Result};
use crate::tensor::DType;
use crate::units::human_duration;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Meets the other ranks of this launch. All come with the same version and configuration, within `deadlines.join`. They are in
/// [`Phase::Start`] then, where nobody is late: a rank says by [`Collective::enter`] that its steps begin.
///
/// # Errors
/// [`Error::Distributed`] with the ranks that are missing, differ, come twice or use the same GPU.
pub fn meet(launch: &Launch, hello: &Hello, deadlines: &Deadlines) -> Result<Box<dyn Collective>> {
    if launch.rank >= launch.world {
        return Err(Error::usage(format!(
            "there is no rank {} of {}: ranks count from 0",
            launch.rank, launch.world
        )));
    }
    follow_parent()?;
    if launch.world == 1 {
        return Ok(Box::new(Alone));
    }
    let start = Instant::now();
    let me = format!("rank {}", launch.rank);
    let refused = |e| Error::distributed(me.clone(), format!("cannot listen: {e}"));
    let door = Door::new(whereabouts::listen(launch)?).map_err(refused)?;
    let port = door.port().map_err(refused)?;
    let guest = guest(launch, hello, port);
    let (controls, welcome, addresses) = if launch.rank == 0 {
        let guest = Guest { nonce: nonce_for(launch), ..guest };
        let notice = whereabouts::announce(&launch.meeting, port, &guest.nonce, start + deadlines.join)?;
        let received = meeting::receive(launch, &guest, &door, start, deadlines.join)?;
        drop(notice);
        let own = IpAddr::from([127, 0, 0, 1]);
        let addresses = std::iter::once(own).chain(received.seen).collect();
        let controls = received.controls.into_iter().enumerate().map(|(at, c)| (at + 1, c)).collect();
        (controls, received.welcome, addresses)
    } else {
        let joined = join::join(launch, &guest, start, deadlines.join)?;
        let seats = joined.welcome.seats.iter();
        let addresses: Vec<IpAddr> = seats.map(|seat| seat.ip.unwrap_or(joined.hub)).collect();
        (vec![(0, joined.control)], joined.welcome, addresses)
    };
    if welcome.seats.len() != launch.world {
        let text = format!("knows {} ranks, this one {}", welcome.seats.len(), launch.world);
        return Err(Error::distributed("rank 0", text));
    }
    let link = Arc::new(Link::new(launch.rank, members(&welcome, &addresses), *deadlines));
    for (peer, control) in &controls {
        heartbeat::attend(&link, *peer, control)?;
    }
    let mut group = Group { heart: Some(Heart::start(&link)?), ring: None, link };
    group
        .connect(&door, &welcome.token, start + deadlines.join)
        .inspect_err(|e| group.link.leave(Some(&e.to_string())))?;
    Ok(Box::new(group))
}

fn guest(launch: &Launch, hello: &Hello, port: u16) -> Guest {
    let (host, machine) = this_host();
    let Hello { version, config, device } = hello.clone();
    let (world, rank, launch) = (launch.world, launch.rank, launch.id.clone());
    Guest {
        version,
        config,
        device,
        host,
        machine,
        pid: std::process::id(),
        world,
        rank,
        launch,
        nonce: String::new(),
        port,
    }
}

/// Told with the address, so that one of an older launch is not believed; not where the address is all that ranks know.
fn nonce_for(launch: &Launch) -> String {
    if matches!(launch.meeting, Meeting::Address { .. }) { String::new() } else { nonce() }
}

fn members(welcome: &Welcome, addresses: &[IpAddr]) -> Vec<Member> {
    let seats = welcome.seats.iter().zip(addresses).enumerate();
    let member = |(rank, (seat, ip)): (usize, (&greeting::Seat, &IpAddr))| Member {
        rank,
        host: seat.host.clone(),
        pid: seat.pid,
        address: SocketAddr::from((*ip, seat.port)),
    };
    seats.map(member).collect()
}

/// Ranks that have met.
struct Group {
    link: Arc<Link>,
    ring: Option<Ring>,
    heart: Option<Heart>,
}

impl Group {
    /// Connects the ring, and waits until all have.
    fn connect(&mut self, door: &Door, token: &str, until: Instant) -> Result<()> {
        let (rank, world) = (self.link.rank, self.link.world());
        let next = &self.link.members[(rank + 1) % world];
        let to = self.data_to(next, token, until)?;
        let before = (rank + world - 1) % world;
        let check = || {
            if Instant::now() > until {
                let text = format!(
                    "did not reach rank {rank} to send data to it: is there a firewall between the two?"
                );
                return Err(self.link.broken(before, &text));
            }
            self.link.check()
        };
        let from = door.data_of(before, token, |e| self.link.refused("listen", &e), check)?;
        self.ring = Some(Ring::new(&self.link, from, &to)?);
        self.gathered(&[], Some(until)).map(drop)
    }

    fn data_to(&self, next: &Member, token: &str, until: Instant) -> Result<TcpStream> {
        loop {
            self.link.check()?;
            let soon = Duration::from_secs(5).min(until.saturating_duration_since(Instant::now()));
            let soon = soon.max(Duration::from_millis(10));
            let greeting = Greeting::Data { token: token.to_owned(), from: self.link.rank };
            let said = TcpStream::connect_timeout(&next.address, soon).and_then(|mut stream| {
                greeting::say(&mut stream, &greeting, Instant::now() + soon).map(|()| stream)
            });
            match said {
                Ok(stream) => return Ok(stream),
                Err(e) if Instant::now() > until => {
                    let text = format!(
                        "rank {} cannot reach it at {}: {e}; is there a firewall between the two?",
                        self.link.rank, next.address
                    );
                    return Err(self.link.broken(next.rank, &text));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn gathered(&mut self, own: &[u8], until: Option<Instant>) -> Result<Vec<Vec<u8>>> {
        let link = &self.link;
        let number = link.begin(Call::AllGather)?;
        let waited = human_duration(link.deadlines.join.as_secs_f64());
        let late = |missing: Vec<usize>| {
            // The others hear from rank 0 who is missing; if not, it is what they miss.
            let missing = if link.rank == 0 { missing } else { vec![0] };
            let names: Vec<String> = missing.iter().map(|rank| link.members[*rank].to_string()).collect();
            Failure::new(names.join(", "), format!("did not complete the meeting within {waited}"))
        };
        let more = if link.rank == 0 { Duration::ZERO } else { Duration::from_secs(2) };
        let all = link.gather(number, own, until.map(|t| t + more), late)?;
        link.end();
        Ok(all)
    }

    fn ring(&mut self) -> Result<&mut Ring> {
        self.link.check()?;
        let rank = self.link.rank;
        self.ring
            .as_mut()
            .ok_or_else(|| Error::distributed(format!("rank {rank}"), "has left the run already"))
    }
}

impl Collective for Group {
    fn rank(&self) -> usize {
        self.link.rank
    }

    fn world(&self) -> usize {
        self.link.world()
    }

    fn all_reduce(&mut self, values: HostSliceMut<'_>, wire: DType) -> Result<()> {
        match values {
            HostSliceMut::F32(values) => self.ring()?.sum_f32(values, wire),
            HostSliceMut::F64(values) => self.ring()?.sum_f64(values),
            HostSliceMut::I32(_) => {
                Err(Error::invariant("all_reduce", "i32 values are not summed over ranks"))
            }
        }
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        const MOST: usize = LONGEST - 64;
        if own.len() > MOST {
            return Err(Error::invariant(
                "all_gather",
                format!("{} bytes at once, at most {MOST} travel", own.len()),
            ));
        }
        self.gathered(own, None)
    }

    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self.ring()?.broadcast(root, bytes)
    }

    fn enter(&mut self, phase: Phase) {
        self.link.enter(phase);
    }

    fn leave(&mut self, error: Option<&str>) {
        if error.is_none()
            && let Some(ring) = &mut self.ring
        {
            ring.finish();
        }
        self.link.leave(error);
        self.ring = None;
        self.heart = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.leave(Some("it stopped without saying why"));
    }
}

/// The only rank of a run.
struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn all_reduce(&mut self, _values: HostSliceMut<'_>, _wire: DType) -> Result<()> {
        Ok(())
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn broadcast(&mut self, _root: usize, _bytes: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn enter(&mut self, _phase: Phase) {}

    fn leave(&mut self, _error: Option<&str>) {}
}
