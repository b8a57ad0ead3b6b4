//! Streams, events, captures and the graphs that they make. Nothing waits: work counts as done once somebody waited for it.

use crate::codes::{Answer, Code, refuse};
use crate::elf::Kernel;
use crate::table::{Kind, Table};
use std::sync::Arc;
use std::thread::ThreadId;

/// Invented time of a piece of work, milliseconds.
const WORK_MS: f64 = 0.002;
/// Invented time of an event, milliseconds: no two are at the same time.
const EVENT_MS: f64 = 0.0005;

/// How strict a capture is with what else its program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

/// A piece of work.
#[derive(Clone, Debug)]
pub struct Node {
    /// Module and kernel of a launch; None for copies and sets.
    pub launch: Option<(u64, Arc<Kernel>)>,
    /// Starts of the allocations that it is known to use.
    pub memory: Vec<u64>,
    /// Start of the pinned memory that it uses.
    pub pinned: Option<u64>,
    /// The event that it records whenever its graph runs.
    pub signal: Option<u64>,
}

/// A graph, or an executable one.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub nodes: Arc<[Node]>,
}

#[derive(Debug, Default)]
struct Stream {
    /// Whether it waits for the legacy stream, and that for it.
    blocking: bool,
    /// Pieces of work so far, and how many are known to be done.
    queued: u64,
    done: u64,
    /// Where it waits for another: own position, other stream, its position.
    waits: Vec<(u64, u64, u64)>,
    /// The capture that it is part of.
    capture: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Moment {
    #[default]
    Never,
    /// Stream, position, milliseconds.
    At(u64, u64, f64),
    Captured(u64),
}

#[derive(Debug)]
struct Event {
    timed: bool,
    moment: Moment,
}

#[derive(Debug)]
struct Capture {
    origin: u64,
    mode: Mode,
    thread: ThreadId,
    nodes: Vec<Node>,
    /// Why it can no longer become a graph.
    spoilt: Option<String>,
    /// Other streams that were drawn in, and whether the origin waits for all of their work.
    others: Vec<(u64, bool)>,
    /// Events of the capture: event and stream.
    events: Vec<(u64, u64)>,
}

/// All of them.
#[derive(Debug)]
pub struct Streams {
    legacy: Stream,
    streams: Table<Stream>,
    events: Table<Event>,
    captures: Table<Capture>,
    /// Copies of pinned memory that nobody is known to have waited for: stream, position, start of the memory.
    copying: Vec<(u64, u64, u64)>,
    clock: f64,
    /// What streams were asked for, in words; None where nobody wants to know.
    pub trace: Option<Vec<String>>,
}

impl Default for Streams {
    fn default() -> Self {
        Streams {
            legacy: Stream { blocking: true, ..Stream::default() },
            streams: Table::new(Kind::Stream),
            events: Table::new(Kind::Event),
            captures: Table::new(Kind::Capture),
            copying: Vec::new(),
            clock: 1.0,
            trace: None,
        }
    }
}

impl Streams {
    /// Live streams and events.
    pub fn counts(&self) -> [u64; 2] {
        [self.streams.len(), self.events.len()]
    }

    /// Destroys all.
    pub fn clear(&mut self) {
        self.streams.clear();
        self.events.clear();
        self.captures.clear();
        self.copying.clear();
    }

    /// Writes down what a stream is asked for.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    pub fn create(&mut self, blocking: bool) -> u64 {
        self.streams.insert(Stream { blocking, ..Stream::default() })
    }

    pub fn destroy(&mut self, stream: u64) -> Answer {
        if let Some(capture) = self.stream(stream)?.capture {
            self.spoil(capture, "a stream of it was destroyed");
        }
        self.streams.remove(stream).map(drop)
    }

    fn stream(&self, stream: u64) -> Answer<&Stream> {
        if stream == 0 { Ok(&self.legacy) } else { self.streams.get(stream) }
    }

    fn stream_mut(&mut self, stream: u64) -> Answer<&mut Stream> {
        if stream == 0 { Ok(&mut self.legacy) } else { self.streams.get_mut(stream) }
    }

    fn spoil(&mut self, capture: u64, why: &str) {
        if let Ok(capture) = self.captures.get_mut(capture) {
            capture.spoilt.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Spoils the capture that `stream` is part of, if any.
    pub fn spoil_of(&mut self, stream: u64, why: &str) {
        if let Some(capture) = self.stream(stream).ok().and_then(|s| s.capture) {
            self.spoil(capture, why);
        }
    }

    /// The capture that `stream` is part of; refused when it is spoilt.
    pub fn capture_of(&self, stream: u64) -> Answer<Option<u64>> {
        let Some(at) = self.stream(stream)?.capture else { return Ok(None) };
        match &self.captures.get(at)?.spoilt {
            Some(why) => refuse(Code::CaptureInvalidated, format!("the capture was spoilt: {why}")),
            None => Ok(Some(at)),
        }
    }

    /// A call that CUDA lists as potentially unsafe while streams capture.
    pub fn potentially_unsafe(&mut self, call: &str, thread: ThreadId) -> Answer {
        let forbids = |c: &Capture| match c.mode {
            Mode::Global => true,
            Mode::ThreadLocal => c.thread == thread,
            Mode::Relaxed => false,
        };
        let why = format!("{call} while a stream captures");
        spoil_where(&mut self.captures, Code::CaptureUnsupported, why, forbids)
    }

    /// Something that waits for the whole context.
    pub fn context_wide(&mut self, call: &str) -> Answer {
        let why = format!("{call} while a stream captures");
        spoil_where(&mut self.captures, Code::CaptureUnsupported, why, |_| true)
    }

    /// Something that goes to the legacy stream: blocking streams would have to wait for it.
    pub fn legacy_wide(&mut self, call: &str) -> Answer {
        let streams = &self.streams;
        let blocking = |c: &Capture| streams.get(c.origin).is_ok_and(|s| s.blocking);
        let why = format!("{call} goes to the legacy stream while a blocking one captures");
        spoil_where(&mut self.captures, Code::CaptureImplicit, why, blocking)
    }

    /// Puts work on a stream, or into its capture.
    pub fn queue(&mut self, stream: u64, node: Node) -> Answer {
        if stream == 0 {
            self.legacy_wide("work")?;
        }
        if let Some(at) = self.capture_of(stream)? {
            let capture = self.captures.get_mut(at)?;
            capture.nodes.push(node);
            capture.others.iter_mut().filter(|o| o.0 == stream).for_each(|o| o.1 = false);
            return Ok(());
        }
        self.clock += WORK_MS;
        let s = self.stream_mut(stream)?;
        s.queued += 1;
        let position = s.queued;
        if let Some(pinned) = node.pinned {
            self.forget_copied();
            self.copying.push((stream, position, pinned));
        }
        Ok(())
    }

    fn forget_copied(&mut self) {
        let copying = std::mem::take(&mut self.copying);
        self.copying = copying.into_iter().filter(|c| !self.is_done(c.0, c.1)).collect();
    }

    /// Whether a copy of the pinned memory at `start` may be under way.
    pub fn is_copying(&mut self, start: u64) -> bool {
        self.forget_copied();
        self.copying.iter().any(|c| c.2 == start)
    }

    /// Puts a whole graph on a stream.
    pub fn queue_all(&mut self, stream: u64, graph: &Graph) -> Answer {
        match self.capture_of(stream)? {
            Some(_) => graph.nodes.iter().try_for_each(|n| self.queue(stream, n.clone())),
            None => {
                self.clock += WORK_MS * graph.nodes.len() as f64;
                self.note(|| format!("graph {stream:#x} of {}", graph.nodes.len()));
                let s = self.stream_mut(stream)?;
                s.queued += 1;
                let moment = Moment::At(stream, s.queued, self.clock);
                let signals = graph.nodes.iter().enumerate().filter_map(|(i, n)| Some((i, n.signal?)));
                for (node, event) in signals {
                    self.note(|| format!("signal {event:#x} at node {node}"));
                    self.events.get_mut(event)?.moment = moment;
                }
                Ok(())
            }
        }
    }

    /// Everything up to `position` of `stream` is done, and so is what it waited for.
    fn complete(&mut self, stream: u64, position: u64) {
        let mut left = vec![(stream, position)];
        while let Some((stream, position)) = left.pop() {
            let Ok(s) = self.stream_mut(stream) else { continue };
            s.done = s.done.max(position);
            left.extend(s.waits.extract_if(.., |w| w.0 <= position).map(|w| (w.1, w.2)));
        }
    }

    pub fn synchronize(&mut self, stream: u64) -> Answer {
        self.refuse_captured(stream, "is waited for")?;
        let position = self.stream(stream)?.queued;
        self.complete(stream, position);
        Ok(())
    }

    /// Whether all of a stream's work is done. What is asked for is done by the next time.
    pub fn query(&mut self, stream: u64) -> Answer {
        self.refuse_captured(stream, "is asked for its state")?;
        let s = self.stream(stream)?;
        let (queued, done) = (s.queued, s.done);
        self.complete(stream, queued);
        if done == queued { Ok(()) } else { refuse(Code::NotReady, "the stream still works") }
    }

    fn refuse_captured(&mut self, stream: u64, how: &str) -> Answer {
        match self.capture_of(stream)? {
            None => Ok(()),
            Some(capture) => {
                let why = format!("stream {stream:#x} {how} while it captures");
                self.spoil(capture, &why);
                refuse(Code::CaptureUnsupported, why)
            }
        }
    }

    /// Waits for everything.
    pub fn synchronize_all(&mut self) {
        self.legacy.done = self.legacy.queued;
        for s in self.streams.values_mut() {
            (s.done, s.waits) = (s.queued, Vec::new());
        }
    }

    pub fn create_event(&mut self, timed: bool) -> u64 {
        self.events.insert(Event { timed, moment: Moment::Never })
    }

    pub fn destroy_event(&mut self, event: u64) -> Answer {
        self.events.remove(event).map(drop)
    }

    pub fn has_event(&self, event: u64) -> Answer {
        self.events.get(event).map(drop)
    }

    /// Has the graph that `stream` is captured for record an event whenever it runs.
    pub fn record_from_graph(&mut self, event: u64, stream: u64) -> Answer {
        self.has_event(event)?;
        if self.capture_of(stream)?.is_none() {
            return refuse(Code::InvalidValue, "an external record is of captures only");
        }
        self.queue(stream, Node { launch: None, memory: Vec::new(), pinned: None, signal: Some(event) })
    }

    pub fn record(&mut self, event: u64, stream: u64) -> Answer {
        self.events.get(event)?;
        if self.capture_of(stream)?.is_none() {
            self.note(|| format!("record {event:#x} on {stream:#x}"));
        }
        let moment = match self.capture_of(stream)? {
            Some(at) => {
                let events = &mut self.captures.get_mut(at)?.events;
                events.retain(|e| e.0 != event);
                events.push((event, stream));
                Moment::Captured(at)
            }
            None => {
                self.clock += EVENT_MS;
                let time = self.clock;
                let s = self.stream_mut(stream)?;
                s.queued += 1;
                Moment::At(stream, s.queued, time)
            }
        };
        self.events.get_mut(event)?.moment = moment;
        Ok(())
    }

    /// Makes what comes on `stream` wait for an event; draws it into the event's capture.
    pub fn wait_event(&mut self, stream: u64, event: u64) -> Answer {
        let moment = self.events.get(event)?.moment;
        let own = self.capture_of(stream)?;
        self.note(|| format!("wait {stream:#x} for {event:#x}"));
        match (moment, own) {
            (Moment::Never, _) => Ok(()),
            (Moment::At(other, position, _), None) => {
                let s = self.stream_mut(stream)?;
                if s.waits.last().is_none_or(|w| (w.1, w.2) != (other, position)) {
                    s.queued += 1;
                    s.waits.push((s.queued, other, position));
                }
                Ok(())
            }
            (Moment::At(..), Some(_)) => refuse(
                Code::CaptureIsolation,
                format!("a capture is to wait for event {event:#x}, which was recorded outside of it"),
            ),
            (Moment::Captured(capture), own) => self.join_capture(stream, event, capture, own),
        }
    }

    fn join_capture(&mut self, stream: u64, event: u64, at: u64, own: Option<u64>) -> Answer {
        let Ok(capture) = self.captures.get_mut(at) else {
            return refuse(
                Code::CapturedEvent,
                format!("event {event:#x} belongs to a capture that has ended"),
            );
        };
        if let Some(why) = &capture.spoilt {
            return refuse(Code::CaptureInvalidated, format!("the capture was spoilt: {why}"));
        }
        match own {
            Some(own) if own != at => {
                refuse(Code::CaptureMerge, format!("event {event:#x} would join two captures"))
            }
            Some(_) => {
                // What the origin waits for is joined, as is what others wait for on its behalf once they are.
                let from = capture.events.iter().find(|e| e.0 == event).map(|e| e.1);
                if stream == capture.origin {
                    capture.others.iter_mut().filter(|o| Some(o.0) == from).for_each(|o| o.1 = true);
                }
                Ok(())
            }
            None => {
                capture.others.push((stream, false));
                self.stream_mut(stream)?.capture = Some(at);
                Ok(())
            }
        }
    }

    fn moment(&mut self, event: u64, how: &str) -> Answer<Moment> {
        let moment = self.events.get(event)?.moment;
        if let Moment::Captured(capture) = moment {
            let why = format!("event {event:#x} {how}, it was last recorded in a capture");
            self.spoil(capture, &why);
            return refuse(Code::CapturedEvent, why);
        }
        Ok(moment)
    }

    pub fn synchronize_event(&mut self, event: u64) -> Answer {
        if let Moment::At(stream, position, _) = self.moment(event, "is waited for")? {
            self.complete(stream, position);
        }
        Ok(())
    }

    /// Whether an event has happened; one that was never recorded has.
    pub fn query_event(&mut self, event: u64) -> Answer {
        match self.moment(event, "is asked for its state")? {
            Moment::At(stream, position, _) if !self.is_done(stream, position) => {
                self.complete(stream, position);
                refuse(Code::NotReady, format!("event {event:#x} has not happened"))
            }
            _ => Ok(()),
        }
    }

    fn is_done(&self, stream: u64, position: u64) -> bool {
        // A stream that is destroyed ends its work first.
        self.stream(stream).map_or(true, |s| s.done >= position)
    }

    /// Milliseconds from one event to another.
    pub fn elapsed(&mut self, start: u64, end: u64) -> Answer<f32> {
        let mut times = [0.0; 2];
        for (time, event) in times.iter_mut().zip([start, end]) {
            if !self.events.get(event)?.timed {
                return refuse(Code::InvalidHandle, format!("event {event:#x} was made without a time"));
            }
            match self.moment(event, "is asked for its time")? {
                Moment::At(stream, position, at) if self.is_done(stream, position) => *time = at,
                Moment::At(..) => {
                    return refuse(Code::NotReady, format!("event {event:#x} was not waited for"));
                }
                _ => return refuse(Code::InvalidHandle, format!("event {event:#x} was never recorded")),
            }
        }
        Ok((times[1] - times[0]) as f32)
    }

    pub fn begin_capture(&mut self, stream: u64, mode: Mode, thread: ThreadId) -> Answer {
        if stream == 0 {
            return refuse(Code::CaptureUnsupported, "the legacy stream cannot be captured");
        }
        if self.stream(stream)?.capture.is_some() {
            return refuse(Code::IllegalState, format!("stream {stream:#x} captures already"));
        }
        let (nodes, others, events) = (Vec::new(), Vec::new(), Vec::new());
        let capture = Capture { origin: stream, mode, thread, nodes, spoilt: None, others, events };
        let at = self.captures.insert(capture);
        self.stream_mut(stream)?.capture = Some(at);
        Ok(())
    }

    pub fn end_capture(&mut self, stream: u64, thread: ThreadId) -> Answer<Graph> {
        let Some(at) = self.stream(stream)?.capture else {
            return refuse(Code::IllegalState, format!("stream {stream:#x} does not capture"));
        };
        let capture = self.captures.get(at)?;
        if capture.origin != stream {
            let why = format!("the capture was begun on stream {:#x}", capture.origin);
            self.spoil(at, &why);
            return refuse(Code::CaptureUnmatched, why);
        }
        if capture.thread != thread && capture.mode != Mode::Relaxed {
            let why = "a capture of one thread is ended by another";
            self.spoil(at, why);
            return refuse(Code::CaptureWrongThread, why);
        }
        let capture = self.captures.remove(at)?;
        for stream in capture.others.iter().map(|o| o.0).chain([stream]) {
            if let Ok(s) = self.stream_mut(stream) {
                s.capture = None;
            }
        }
        if let Some(why) = capture.spoilt {
            return refuse(Code::CaptureInvalidated, format!("the capture was spoilt: {why}"));
        }
        if let Some((other, _)) = capture.others.iter().find(|o| !o.1) {
            return refuse(Code::CaptureUnjoined, format!("the capture does not wait for stream {other:#x}"));
        }
        Ok(Graph { nodes: capture.nodes.into() })
    }
}

/// Spoils the captures that forbid something, which is refused if there are any.
fn spoil_where(
    captures: &mut Table<Capture>,
    code: Code,
    why: String,
    forbids: impl Fn(&Capture) -> bool,
) -> Answer {
    let mut any = false;
    for capture in captures.values_mut().filter(|c| forbids(c)) {
        capture.spoilt.get_or_insert_with(|| why.clone());
        any = true;
    }
    if any { refuse(code, why) } else { Ok(()) }
}
