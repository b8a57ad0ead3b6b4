//! Before the ranks join a communicator: whether all have the library, in one version, under the same settings, for the same sums.

use super::communicator::Seat;
use super::environment::settings;
use super::find::NcclChoice;
use super::library::{UniqueId, version_text};
use crate::backend::Collective;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The longest text of another rank that is passed on, characters.
const MOST_TEXT: usize = 500;

/// What a rank tells the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    host: String,
    /// Of the library; None where this rank goes without.
    version: Option<i32>,
    /// Why it cannot be used, if it was to be.
    why: Option<String>,
    settings: String,
    /// What is summed, in words.
    sums: String,
}

impl Hello {
    /// Of this rank, whose device can be joined to others if `joins`.
    pub fn new(choice: &NcclChoice, joins: bool, sums: String) -> Self {
        let host = hostname::get().map_or("unknown host".to_owned(), |h| h.to_string_lossy().into_owned());
        let (version, why) = match choice {
            NcclChoice::Named(nccl) | NcclChoice::Found(nccl) if joins => (Some(nccl.version()), None),
            NcclChoice::Missing { why, .. } if joins => (None, Some(why.clone())),
            _ => (None, None),
        };
        Hello { host, version, why, settings: settings(), sums }
    }
}

/// Compares what the ranks told; whether they sum by the library.
fn agreed(hellos: &[Hello]) -> Result<bool> {
    let names = |rank: usize| format!("rank {rank} ({})", hellos[rank].host);
    // A single rank has nothing to sum, so it needs none.
    if let Some(rank) = hellos.iter().position(|h| h.why.is_some()).filter(|_| hellos.len() > 1) {
        let why = hellos[rank].why.clone().unwrap_or_default();
        return Err(Error::distributed(names(rank), why));
    }
    let Some(first) = hellos.first() else { return Ok(false) };
    for (rank, hello) in hellos.iter().enumerate() {
        let differ = |what: &str, own: &str, others: &str, remedy: &str| {
            let message = format!("{what} {own}, on {} {others}: {remedy}", names(0));
            Err(Error::distributed(names(rank), message))
        };
        let version =
            |h: &Hello| h.version.map_or("none (SAIP_NCCL=none, or a device without)".into(), version_text);
        if hello.version != first.version {
            return differ("NCCL is", &version(hello), &version(first), "install the same everywhere");
        }
        if hello.version.is_some() && hello.settings != first.settings {
            return differ("NCCL has", &hello.settings, &first.settings, "set the same everywhere");
        }
        if hello.sums != first.sums {
            return differ("summed is", &hello.sums, &first.sums, "start all with the same configuration");
        }
    }
    Ok(first.version.is_some())
}

/// The text that a rank sent, not longer than [`MOST_TEXT`].
fn cut(text: String) -> String {
    if text.chars().count() <= MOST_TEXT {
        text
    } else {
        text.chars().take(MOST_TEXT).chain("...".chars()).collect()
    }
}

fn read(rank: usize, bytes: &[u8]) -> Result<Hello> {
    let hello: Hello = serde_json::from_slice(bytes).map_err(|e| {
        let message = format!("what it tells of NCCL cannot be read ({e}): start all with the same program");
        Error::distributed(format!("rank {rank}"), message)
    })?;
    let Hello { host, version, why, settings, sums } = hello;
    Ok(Hello { host: cut(host), version, why: why.map(cut), settings: cut(settings), sums: cut(sums) })
}

/// Meets the other ranks of `group`: a place in a communicator that is about to be made, or None where the ranks go without.
///
/// # Errors
/// Those of `group`; ranks that differ, or lack the library, by name, with what to do.
pub fn meet(group: &mut dyn Collective, choice: &NcclChoice, own: &Hello) -> Result<Option<Seat>> {
    let (rank, world) = (group.rank(), group.world());
    let own = serde_json::to_vec(own).map_err(|e| Error::invariant("meeting", e.to_string()))?;
    let told = group.all_gather(&own)?;
    let hellos: Vec<Hello> =
        told.iter().enumerate().map(|(rank, bytes)| read(rank, bytes)).collect::<Result<_>>()?;
    let (true, NcclChoice::Named(nccl) | NcclChoice::Found(nccl)) = (agreed(&hellos)?, choice) else {
        return Ok(None);
    };
    // Made at the last moment: its maker listens from now on. One that could not be made is told as nothing.
    let made = if rank == 0 { Some(nccl.unique_id()) } else { None };
    let mut bytes = match &made {
        Some(Ok(id)) => id.0.to_vec(),
        _ => Vec::new(),
    };
    group.broadcast(0, &mut bytes)?;
    let names = |rank: usize| format!("rank {rank} ({})", hellos[rank].host);
    if let Some(Err(why)) = made {
        return Err(Error::distributed(names(0), why));
    }
    let Ok(id) = <[u8; 128]>::try_from(&*bytes) else {
        return Err(Error::distributed(
            names(0),
            "NCCL gave it no name for the communicator: see its own message",
        ));
    };
    let patience = group.patience();
    Ok(Some(Seat { nccl: nccl.clone(), id: UniqueId(id), rank, world, patience }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(host: &str) -> Hello {
        let (settings, sums) = ("NCCL_ALGO=Ring".to_owned(), "f32".to_owned());
        Hello { host: host.into(), version: Some(23007), why: None, settings, sums }
    }

    #[test]
    fn ranks_that_differ_are_named_with_what_to_do() {
        let refused = |hellos: &[Hello]| agreed(hellos).unwrap_err().to_string();
        let [a, b] = [hello("one"), hello("two")];
        assert!(agreed(&[a.clone(), b.clone()]).unwrap());
        let older = Hello { version: Some(22703), ..b.clone() };
        let message = refused(&[a.clone(), older]);
        assert_eq!(
            message,
            "rank 1 (two): NCCL is 2.27.3, on rank 0 (one) 2.30.7: install the same everywhere"
        );
        let none = Hello { version: None, ..b.clone() };
        assert!(refused(&[a.clone(), none.clone()]).contains("rank 1 (two): NCCL is none"));
        assert!(!agreed(&[none.clone(), none.clone()]).unwrap());
        let lacks = Hello { why: Some("is not found".into()), ..none };
        assert_eq!(refused(&[a.clone(), lacks.clone()]), "rank 1 (two): is not found");
        assert!(!agreed(&[lacks]).unwrap(), "alone it goes without");
        let tree = Hello { settings: "NCCL_ALGO=Tree".into(), ..b.clone() };
        assert!(refused(&[a.clone(), tree]).contains("NCCL_ALGO=Tree, on rank 0 (one) NCCL_ALGO=Ring"));
        let other = Hello { sums: "bf16".into(), ..b };
        assert!(refused(&[a, other]).contains("same configuration"));
    }

    #[test]
    fn what_others_send_is_read_with_care() {
        let sent = serde_json::to_vec(&Hello { host: "x".repeat(10_000), ..hello("") }).unwrap();
        assert_eq!(read(3, &sent).unwrap().host.len(), MOST_TEXT + 3);
        for bytes in [&b""[..], b"\xff\xff", b"{}", b"[1,2]"] {
            let message = read(3, bytes).unwrap_err().to_string();
            assert!(message.starts_with("rank 3: ") && message.contains("same program"), "{message}");
        }
    }
}
