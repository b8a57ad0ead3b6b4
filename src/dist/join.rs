//! How a rank other than 0 comes to the meeting.

use super::greeting::{self, Greeting, Guest, Welcome};
use super::launch::{Launch, Meeting};
use super::member::plain;
use super::whereabouts;
use crate::error::{Error, Result};
use crate::units::human_duration;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Between two tries: twice as long each time.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// For a connection, and for the first answer on it.
const ANSWER: Duration = Duration::from_secs(10);
/// Beyond the deadline of the meeting: rank 0, whose own ends about then, may still say who is missing.
const LAST_WORD: Duration = Duration::from_secs(2);

/// What a rank knows after the meeting.
pub(super) struct Joined {
    pub control: TcpStream,
    pub welcome: Welcome,
    /// Where rank 0 was reached.
    pub hub: IpAddr,
}

enum Trouble {
    /// No use to try again.
    Refused(String),
    Again(String),
}

/// Finds rank 0 and waits until it has found all. `start` is when this rank began.
///
/// # Errors
/// [`Error::Distributed`] after `join`, with what was in the way; when rank 0 refuses.
pub(super) fn join(launch: &Launch, guest: &Guest, start: Instant, join: Duration) -> Result<Joined> {
    let until = start + join + LAST_WORD;
    let mut trouble = String::new();
    let mut pause = PAUSES[0];
    while start.elapsed() < join {
        match whereabouts::place(&launch.meeting, start + join) {
            Ok(place) => {
                for address in place.addresses {
                    let guest = Guest { nonce: place.nonce.clone(), ..guest.clone() };
                    match attempt(address, guest, until) {
                        Ok(joined) => return Ok(joined),
                        Err(Trouble::Again(text)) => trouble = format!("{address} {text}"),
                        Err(Trouble::Refused(text)) => {
                            let hub = format!("rank 0 (at {address})");
                            return Err(Error::distributed(
                                hub,
                                format!("turns rank {} away: {text}", launch.rank),
                            ));
                        }
                    }
                }
            }
            Err(text) => trouble = text,
        }
        std::thread::sleep(pause);
        pause = PAUSES[1].min(pause * 2);
    }
    let place = match &launch.meeting {
        Meeting::Address { host, port } => format!("{host}:{port}"),
        Meeting::File(folder) => format!("as {} tells", folder.display()),
        Meeting::Store { host, port, key } => format!("as the store at {host}:{port} tells under {key}"),
    };
    let waited = human_duration(join.as_secs_f64());
    let text =
        format!("rank {} did not meet it within {waited}: {trouble}; is rank 0 running there?", launch.rank);
    Err(Error::distributed(format!("rank 0 (at {place})"), text))
}

fn attempt(address: SocketAddr, guest: Guest, until: Instant) -> std::result::Result<Joined, Trouble> {
    let again = |e: io::Error| Trouble::Again(e.to_string());
    let soon = until.min(Instant::now() + ANSWER);
    let patience = greeting::left(soon).map_err(again)?;
    let mut control = TcpStream::connect_timeout(&address, patience).map_err(again)?;
    greeting::say(&mut control, &Greeting::Hello(guest), soon).map_err(again)?;
    let mut noted = false;
    loop {
        // Whoever knows this rank and ends is the right one, and will not come back.
        let gone = |e: io::Error| match e.kind() {
            ErrorKind::TimedOut if noted => Trouble::Again("has not found all others in time".to_owned()),
            ErrorKind::Unsupported => Trouble::Refused(e.to_string()),
            _ if noted => Trouble::Refused(format!("it ended while it waited for the others: {e}")),
            _ => again(e),
        };
        match greeting::hear(&mut control, greeting::LONG, if noted { until } else { soon }).map_err(gone)? {
            Greeting::Noted => noted = true,
            Greeting::Welcome(welcome) => {
                let hub = control.peer_addr().map_err(again)?.ip();
                return Ok(Joined { control, welcome, hub });
            }
            Greeting::Refused { reason, again: true } => return Err(Trouble::Again(plain(&reason))),
            Greeting::Refused { reason, again: false } => return Err(Trouble::Refused(plain(&reason))),
            _ => return Err(Trouble::Again("is no rank 0".to_owned())),
        }
    }
}
