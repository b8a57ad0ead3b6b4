//! Things that are known by handles. No handle is given out twice, so that one whose thing is gone never reaches another.

use crate::codes::{Answer, Code, refuse};
use std::collections::HashMap;

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    Context = 1,
    Stream,
    Event,
    Module,
    Function,
    Graph,
    Exec,
    Capture,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Context => "context",
            Kind::Stream => "stream",
            Kind::Event => "event",
            Kind::Module => "module",
            Kind::Function => "function",
            Kind::Graph => "graph",
            Kind::Exec => "executable graph",
            Kind::Capture => "capture",
        }
    }
}

/// Handles look like addresses, 16 apart, those of a kind above the same base.
const BASE: u32 = 40;
const APART: u64 = 16;

/// Everything of a kind.
#[derive(Debug)]
pub struct Table<T> {
    kind: Kind,
    live: HashMap<u64, T>,
    given: u64,
}

impl<T> Table<T> {
    pub fn new(kind: Kind) -> Self {
        Table { kind, live: HashMap::new(), given: 0 }
    }

    pub fn insert(&mut self, value: T) -> u64 {
        self.given += 1;
        let handle = ((self.kind as u64) << BASE) + self.given * APART;
        self.live.insert(handle, value);
        handle
    }

    fn missing<R>(&self, handle: u64) -> Answer<R> {
        let name = self.kind.name();
        let offset = handle.wrapping_sub((self.kind as u64) << BASE);
        let was = offset.is_multiple_of(APART) && (1..=self.given).contains(&(offset / APART));
        let why = match (handle, was) {
            (0, _) => format!("no {name}: the handle is null"),
            (_, true) => format!("{name} {handle:#x} is used after it was destroyed"),
            (_, false) => format!("{name} {handle:#x} was never given out"),
        };
        refuse(Code::InvalidHandle, why)
    }

    pub fn get(&self, handle: u64) -> Answer<&T> {
        self.live.get(&handle).map_or_else(|| self.missing(handle), Ok)
    }

    pub fn get_mut(&mut self, handle: u64) -> Answer<&mut T> {
        if !self.live.contains_key(&handle) {
            return self.missing(handle);
        }
        // Looked up twice, as the borrow of a miss would last.
        self.live.get_mut(&handle).map_or_else(|| refuse(Code::InvalidHandle, "gone"), Ok)
    }

    pub fn remove(&mut self, handle: u64) -> Answer<T> {
        self.live.remove(&handle).map_or_else(|| self.missing(handle), Ok)
    }

    pub fn len(&self) -> u64 {
        self.live.len() as u64
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.live.values_mut()
    }

    /// Removes all but what `keep` says.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.live.retain(|_, v| keep(v));
    }

    /// Removes all; handles stay used up.
    pub fn clear(&mut self) {
        self.live.clear();
    }
}
