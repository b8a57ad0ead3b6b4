//! Where rank 0 listens: how it lets the others know, and how they find out.

use super::launch::{Launch, Meeting};
use super::member::this_host;
use crate::error::{Error, Result};
use crate::files::{atomic, disk};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};

/// The file of a `file:` meeting.
const FILE: &str = "saip-engine-rendezvous.json";
/// Bytes of it that are read.
const LONGEST: u64 = 1 << 16;

/// Addresses under which rank 0 may be found, best first, and what it calls this launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Place {
    pub addresses: Vec<SocketAddr>,
    pub nonce: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    nonce: String,
    /// What tells its machine from others.
    machine: String,
    host: String,
    /// By the route that the host takes to others.
    ip: Option<IpAddr>,
    port: u16,
}

/// The file that tells where rank 0 is, as long as it waits for the others.
#[derive(Debug)]
pub(super) struct Notice(Option<PathBuf>);

impl Drop for Notice {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = disk::remove_file(path);
        }
    }
}

/// Where this process listens, for a meeting at an address: that port. Everywhere, since an interface is chosen by whoever
/// connects; but on this host alone if the meeting is.
///
/// # Errors
/// [`Error::Distributed`] when the port is taken.
pub(super) fn listen(launch: &Launch) -> Result<TcpListener> {
    let port = match &launch.meeting {
        Meeting::Address { port, .. } if launch.rank == 0 => *port,
        _ => 0,
    };
    let local = matches!(&launch.meeting, Meeting::Address { host, .. } if is_loopback(host));
    let listener = if local {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))
    } else {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|e| match e.kind() {
            ErrorKind::AddrInUse => Err(e),
            // A host without IPv6.
            _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
        })
    };
    listener.map_err(|e| {
        let remedy = "another run may use it, or torchrun itself: choose another one by MASTER_PORT or --rendezvous HOST:PORT";
        Error::distributed(format!("rank {}", launch.rank), format!("cannot listen on port {port}: {e}; {remedy}"))
    })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Rank 0 listens on `port`: lets the others know.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn announce(meeting: &Meeting, port: u16, nonce: &str) -> Result<Notice> {
    let Meeting::File(folder) = meeting else { return Ok(Notice(None)) };
    disk::create_dir_all(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
    let (host, machine) = this_host();
    let note = Note { nonce: nonce.to_owned(), machine, host, ip: route_ip(), port };
    let path = folder.join(FILE);
    let json = serde_json::to_vec(&note).unwrap_or_default();
    atomic::write(&path, &json)?;
    Ok(Notice(Some(path)))
}

/// Where rank 0 may be found now; no addresses while nobody knows.
///
/// # Errors
/// What cannot be read, in words.
pub(super) fn place(meeting: &Meeting) -> std::result::Result<Place, String> {
    match meeting {
        Meeting::Address { host, port } => {
            let addresses = resolve(host, *port)?;
            Ok(Place { addresses, nonce: String::new() })
        }
        Meeting::File(folder) => read(&folder.join(FILE)),
        Meeting::Store { .. } => Err("is told by a store, which is not asked yet".to_owned()),
    }
}

fn resolve(host: &str, port: u16) -> std::result::Result<Vec<SocketAddr>, String> {
    let found =
        (host, port).to_socket_addrs().map_err(|e| format!("the name `{host}` has no address: {e}"))?;
    Ok(found.collect())
}

fn read(path: &Path) -> std::result::Result<Place, String> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(facts) if facts.len() > LONGEST => return Err(format!("{shown}: is no file of rank 0")),
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(format!("{shown}: rank 0 has not written it"));
        }
        Err(e) => return Err(format!("{shown}: cannot read: {e}")),
    }
    let json = std::fs::read(path).map_err(|e| format!("{shown}: cannot read: {e}"))?;
    let note: Note = serde_json::from_slice(&json).map_err(|e| format!("{shown}: cannot be read: {e}"))?;
    let mut addresses = Vec::new();
    if note.machine == this_host().1 {
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, note.port)));
    }
    addresses.extend(note.ip.map(|ip| SocketAddr::from((ip, note.port))));
    addresses.extend(resolve(&note.host, note.port).unwrap_or_default());
    Ok(Place { addresses, nonce: note.nonce })
}

/// The address of this host on the way to others, if it has one. Nothing is sent: a datagram socket only looks up its route.
fn route_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address for documentation (RFC 5737).
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_loopback())
}
