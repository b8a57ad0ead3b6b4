//! Where rank 0 listens: how it lets the others know, and how they find out.

use super::launch::{Launch, Meeting};
use super::member::this_host;
use super::store::Store;
use crate::error::{Error, Result};
use crate::files::{atomic, disk};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Instant;

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
pub(super) struct Notice(Option<(PathBuf, Vec<u8>)>);

impl Drop for Notice {
    fn drop(&mut self) {
        if let Some((path, json)) = self.0.take()
            // Unless another launch has put its own in its place.
            && read(&path).is_ok_and(|there| there == json)
        {
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
    let local = match &launch.meeting {
        Meeting::Address { host, .. } => loopback(host),
        // All ranks are here, and look here first.
        _ => (launch.local_world == launch.world).then_some(Ipv4Addr::LOCALHOST.into()),
    };
    let listener = if let Some(local) = local {
        TcpListener::bind((local, port))
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

/// The address that `host` stands for, if only this host reaches it.
fn loopback(host: &str) -> Option<IpAddr> {
    let ip = if host == "localhost" { Ok(Ipv4Addr::LOCALHOST.into()) } else { host.parse::<IpAddr>() };
    ip.ok().filter(|ip| ip.is_loopback())
}

/// Rank 0 listens on `port`: lets the others know, by `until`.
///
/// # Errors
/// When the file cannot be written, or the store does not take it.
pub(super) fn announce(meeting: &Meeting, port: u16, nonce: &str, until: Instant) -> Result<Notice> {
    let (host, machine) = this_host();
    let note = |ip| {
        let note = Note { nonce: nonce.to_owned(), machine, host, ip, port };
        serde_json::to_vec(&note).unwrap_or_default()
    };
    match meeting {
        Meeting::Address { .. } => Ok(Notice(None)),
        Meeting::File(folder) => {
            disk::create_dir_all(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
            let path = folder.join(FILE);
            let json = note(route_ip());
            atomic::write(&path, &json)?;
            Ok(Notice(Some((path, json))))
        }
        Meeting::Store { host, port, key } => {
            let told = stores(host, *port, until, |store, own| {
                // Here the store is on this host: others reach this process as they reach it.
                let value = note.clone()((!own.is_loopback()).then_some(own));
                store.set(key, &value)?;
                // Whether it was taken, and not by somebody else for something else.
                if store.get(key)? == value {
                    Ok(())
                } else {
                    Err(io::Error::other("another run has set the same key"))
                }
            });
            told.map(|()| Notice(None)).map_err(|text| {
                let remedy = "is torchrun's agent there? Or use --rendezvous HOST:PORT";
                Error::distributed("rank 0", format!("cannot tell where it listens: {text}; {remedy}"))
            })
        }
    }
}

/// What `ask` gets from the store, which is told by which address of its own this host reaches it.
///
/// # Errors
/// What was in the way, in words.
fn stores<T>(
    host: &str,
    port: u16,
    until: Instant,
    ask: impl Fn(&mut Store, IpAddr) -> io::Result<T>,
) -> std::result::Result<T, String> {
    let mut trouble = String::new();
    for address in resolve(host, port)? {
        let asked = Store::open(address, until).and_then(|mut store| {
            let own = store.own_ip()?;
            ask(&mut store, own)
        });
        match asked {
            Ok(value) => return Ok(value),
            Err(e) => trouble = format!("the store at {address}: {e}"),
        }
    }
    Err(trouble)
}

/// Where rank 0 may be found now; it may say so until `until`.
///
/// # Errors
/// Why that is not known, in words.
pub(super) fn place(meeting: &Meeting, until: Instant) -> std::result::Result<Place, String> {
    match meeting {
        Meeting::Address { host, port } => {
            let addresses = resolve(host, *port)?;
            Ok(Place { addresses, nonce: String::new() })
        }
        Meeting::File(folder) => {
            let path = folder.join(FILE);
            let json = read(&path)?;
            noted(&json, None).map_err(|e| format!("{}: {e}", path.display()))
        }
        Meeting::Store { host, port, key } => {
            let json = stores(host, *port, until, |store, _| store.get(key))?;
            noted(&json, Some(host)).map_err(|e| format!("the store at {host}:{port}, key {key}: {e}"))
        }
    }
}

fn resolve(host: &str, port: u16) -> std::result::Result<Vec<SocketAddr>, String> {
    let found =
        (host, port).to_socket_addrs().map_err(|e| format!("the name `{host}` has no address: {e}"))?;
    Ok(found.collect())
}

fn read(path: &Path) -> std::result::Result<Vec<u8>, String> {
    let shown = path.display();
    let mut json = Vec::new();
    match File::open(path) {
        Ok(file) => match file.take(LONGEST).read_to_end(&mut json) {
            Ok(_) => Ok(json),
            Err(e) => Err(format!("{shown}: cannot read: {e}")),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Err(format!("{shown}: rank 0 has not written it")),
        Err(e) => Err(format!("{shown}: cannot read: {e}")),
    }
}

/// What a note tells; `store`, if it was not by a file.
fn noted(json: &[u8], store: Option<&str>) -> std::result::Result<Place, String> {
    let note: Note =
        serde_json::from_slice(json).map_err(|e| format!("does not tell where rank 0 is: {e}"))?;
    let mut addresses = Vec::new();
    if note.machine == this_host().1 {
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, note.port)));
    }
    addresses.extend(note.ip.map(|ip| SocketAddr::from((ip, note.port))));
    for host in store.filter(|_| note.ip.is_none()).into_iter().chain([note.host.as_str()]) {
        addresses.extend(resolve(host, note.port).unwrap_or_default());
    }
    Ok(Place { addresses, nonce: note.nonce })
}

/// The address of this host on the way to others, if it has one. Nothing is sent: a datagram socket only looks up its route.
fn route_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address for documentation (RFC 5737).
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_loopback())
}
