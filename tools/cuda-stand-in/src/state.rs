//! The stand-in as a whole: one device, its primary context, everything that was given out.

use crate::codes::{Answer, Code, Refusal, refuse};
use crate::elf::{self, Kernel};
use crate::launch::{self, Function, Shape};
use crate::limits::{Limits, limits};
use crate::memory::{Memory, Pinned};
use crate::streams::{Graph, Node, Streams};
use crate::table::{Kind, Table};
use crate::text;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread::ThreadId;

/// What is stood in for.
#[derive(Clone, Debug)]
pub struct Config {
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes.
    pub memory: u64,
    pub name: String,
    /// Whether refusals are printed.
    pub verbose: bool,
}

impl Config {
    /// From the environment: `STAND_IN_CAPABILITY` such as 9.0, `STAND_IN_MULTIPROCESSORS`, `STAND_IN_MEMORY` in bytes,
    /// `STAND_IN_NAME`, `STAND_IN_VERBOSE`.
    pub fn from_environment() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let pair = |t: String| t.split_once('.').and_then(|(x, y)| Some((x.parse().ok()?, y.parse().ok()?)));
        let capability = text("STAND_IN_CAPABILITY").and_then(pair).unwrap_or((9, 0));
        let (x, y) = capability;
        Config {
            capability,
            multiprocessors: text("STAND_IN_MULTIPROCESSORS").and_then(|t| t.parse().ok()).unwrap_or(132),
            memory: text("STAND_IN_MEMORY").and_then(|t| t.parse().ok()).unwrap_or(80 << 30),
            name: text("STAND_IN_NAME").unwrap_or_else(|| format!("stand-in for sm_{x}{y}")),
            verbose: text("STAND_IN_VERBOSE").is_some(),
        }
    }
}

/// A loaded image.
#[derive(Debug)]
struct Module {
    kernels: BTreeMap<String, Arc<Kernel>>,
    /// Handle of each kernel that was asked for.
    functions: BTreeMap<String, u64>,
}

/// Kinds of things that are counted, as `stand_in_live` numbers them.
pub const KINDS: usize = 8;

/// Everything.
#[derive(Debug)]
pub struct State {
    pub config: Config,
    pub limits: Limits,
    pub initialised: bool,
    contexts: Table<()>,
    primary: Option<u64>,
    retains: u64,
    current: HashMap<ThreadId, u64>,
    pub memory: Memory,
    pub pinned: Pinned,
    pub streams: Streams,
    modules: Table<Module>,
    functions: Table<Function>,
    graphs: Table<Graph>,
    execs: Table<Graph>,
    /// What died with its context, by kind.
    orphans: [u64; KINDS],
    /// Calls by name.
    pub calls: HashMap<&'static str, u64>,
    /// Calls until the one that fails, and how.
    pub failing: Option<(u64, Code)>,
}

impl State {
    pub fn new(config: Config) -> Self {
        State {
            limits: limits(config.capability),
            memory: Memory::new(config.memory),
            config,
            initialised: false,
            contexts: Table::new(Kind::Context),
            primary: None,
            retains: 0,
            current: HashMap::new(),
            pinned: Pinned::default(),
            streams: Streams::default(),
            modules: Table::new(Kind::Module),
            functions: Table::new(Kind::Function),
            graphs: Table::new(Kind::Graph),
            execs: Table::new(Kind::Exec),
            orphans: [0; KINDS],
            calls: HashMap::new(),
            failing: None,
        }
    }

    /// Everything as it was at first, on another device. Handles and addresses of before stay used up.
    pub fn reset(&mut self, config: Config) {
        self.destroy_all();
        (self.limits, self.config) = (limits(config.capability), config);
        self.memory.resize(self.config.memory);
        (self.initialised, self.retains, self.orphans, self.failing) = (false, 0, [0; KINDS], None);
        self.current.clear();
        self.calls.clear();
        self.streams.trace = None;
    }

    /// What is live, with what died with its context: memory, pinned memory, streams, events, modules, graphs, executable
    /// graphs, retained contexts.
    pub fn live(&self) -> [u64; KINDS] {
        let mut counts = self.present();
        counts.iter_mut().zip(self.orphans).for_each(|(c, o)| *c += o);
        counts
    }

    fn present(&self) -> [u64; KINDS] {
        let [streams, events] = self.streams.counts();
        let (memory, pinned) = (self.memory.len(), self.pinned.len());
        let (graphs, execs) = (self.graphs.len(), self.execs.len());
        [memory, pinned, streams, events, self.modules.len(), graphs, execs, self.retains]
    }

    fn destroy_all(&mut self) {
        self.memory.clear();
        self.pinned.clear();
        self.streams.clear();
        self.modules.clear();
        self.functions.clear();
        self.graphs.clear();
        self.execs.clear();
        self.contexts.clear();
        self.primary = None;
    }

    pub fn device(&self, device: i32) -> Answer {
        if device == 0 {
            Ok(())
        } else {
            refuse(Code::InvalidDevice, format!("device {device}, there is only 0"))
        }
    }

    /// The primary context, made when it is first asked for.
    pub fn retain(&mut self) -> u64 {
        self.retains += 1;
        *self.primary.get_or_insert_with(|| self.contexts.insert(()))
    }

    /// Gives the primary context back; the last one takes everything with it.
    pub fn release(&mut self) -> Answer {
        if self.retains == 0 {
            return refuse(Code::InvalidContext, "the primary context is released more often than retained");
        }
        self.retains -= 1;
        if self.retains == 0 {
            let lost = self.present();
            self.orphans.iter_mut().zip(lost).for_each(|(o, n)| *o += n);
            self.destroy_all();
        }
        Ok(())
    }

    pub fn set_current(&mut self, context: u64, thread: ThreadId) -> Answer {
        if context == 0 {
            self.current.remove(&thread);
            return Ok(());
        }
        self.contexts.get(context).map_err(|r| Refusal { code: Code::InvalidContext, ..r })?;
        self.current.insert(thread, context);
        Ok(())
    }

    /// Whether the calling thread has a context to work in.
    pub fn has_context(&self, thread: ThreadId) -> Answer {
        match self.current.get(&thread) {
            None => refuse(Code::InvalidContext, "no context is current on this thread"),
            Some(c) => {
                self.contexts.get(*c).map(drop).map_err(|r| Refusal { code: Code::ContextDestroyed, ..r })
            }
        }
    }

    pub fn load(&mut self, image: &[u8]) -> Answer<u64> {
        let kernels = if image.starts_with(b"\x7fELF") {
            elf::kernels(image, self.config.capability)?
        } else {
            match std::str::from_utf8(image) {
                Ok(text) => text::kernels(text)?,
                Err(_) => return refuse(Code::InvalidImage, "the image is neither a cubin nor text"),
            }
        };
        let kernels = kernels.into_iter().map(|k| (k.name.clone(), Arc::new(k))).collect();
        Ok(self.modules.insert(Module { kernels, functions: BTreeMap::new() }))
    }

    /// The one function of a name of a module.
    pub fn function(&mut self, module: u64, name: &str) -> Answer<u64> {
        let Module { kernels, functions } = self.modules.get_mut(module)?;
        if let Some(known) = functions.get(name) {
            return Ok(*known);
        }
        let Some(kernel) = kernels.get(name) else {
            let have: Vec<&str> = kernels.keys().map(String::as_str).collect();
            return refuse(Code::NotFound, format!("no kernel {name} among {}", have.join(", ")));
        };
        let handle = self.functions.insert(Function::new(module, kernel.clone()));
        functions.insert(name.to_owned(), handle);
        Ok(handle)
    }

    pub fn unload(&mut self, module: u64) -> Answer {
        self.modules.remove(module)?;
        self.functions.retain(|f| f.module != module);
        Ok(())
    }

    pub fn called(&self, function: u64) -> Answer<&Function> {
        self.functions.get(function)
    }

    pub fn permit(&mut self, function: u64, bytes: i32) -> Answer {
        self.functions.get_mut(function)?.permit(bytes, &self.limits)
    }

    /// A launch with its parameters; what looks like an address of memory that was freed is one.
    pub fn launch(&mut self, function: u64, shape: &Shape, params: &[u64], stream: u64) -> Answer {
        self.streams.capture_of(stream)?;
        let function = self.functions.get(function)?;
        launch::check(function, shape, &self.limits)?;
        if let Some(at) = params.iter().find(|p| self.memory.is_freed(**p)) {
            let why = format!("kernel {} is given {at:#x}, which was freed", function.kernel.name);
            return refuse(Code::IllegalAddress, why);
        }
        let memory = params.iter().filter_map(|p| self.memory.owner(*p)).collect();
        let launch = Some((function.module, function.kernel.clone()));
        let name = &function.kernel.name;
        self.streams.note(|| format!("kernel {name} on {stream:#x}"));
        self.streams.queue(stream, Node { launch, memory, pinned: None, signal: None })
    }

    /// A copy or a set on a stream, between stretches of the device's memory and of the host's.
    pub fn transfer(&mut self, device: &[u64], host: Option<u64>, bytes: u64, stream: u64) -> Answer {
        self.streams.capture_of(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let memory = device.iter().map(|at| self.memory.range(*at, bytes)).collect::<Answer<Vec<_>>>()?;
        let pinned = match host {
            Some(at) => self.pinned.range(at, bytes)?,
            None => None,
        };
        self.streams.queue(stream, Node { launch: None, memory, pinned, signal: None })
    }

    /// Work of a library on a stream, which may not be captured.
    pub fn library_work(&mut self, at: u64, bytes: u64, stream: u64) -> Answer {
        if self.streams.capture_of(stream)?.is_some() {
            return refuse(Code::CaptureUnsupported, "a library's work is captured");
        }
        self.streams.note(|| format!("library {stream:#x} at {at:#x}, {bytes} bytes"));
        self.transfer(&[at], None, bytes, stream)
    }

    pub fn add_graph(&mut self, graph: Graph) -> u64 {
        self.graphs.insert(graph)
    }

    pub fn instantiate(&mut self, graph: u64) -> Answer<u64> {
        let graph = self.graphs.get(graph)?.clone();
        self.check_nodes(&graph)?;
        Ok(self.execs.insert(graph))
    }

    pub fn destroy_graph(&mut self, graph: u64) -> Answer {
        self.graphs.remove(graph).map(drop)
    }

    pub fn destroy_exec(&mut self, exec: u64) -> Answer {
        self.execs.remove(exec).map(drop)
    }

    pub fn launch_graph(&mut self, exec: u64, stream: u64) -> Answer {
        let graph = self.execs.get(exec)?.clone();
        self.check_nodes(&graph)?;
        self.streams.queue_all(stream, &graph)
    }

    /// Whether all that a graph uses is still there.
    fn check_nodes(&self, graph: &Graph) -> Answer {
        for (i, node) in graph.nodes.iter().enumerate() {
            let name = node.launch.as_ref().map_or("a copy", |(_, k)| k.name.as_str());
            if let Some((module, _)) = &node.launch {
                self.modules
                    .get(*module)
                    .map_err(|r| Refusal { why: format!("node {i} of a graph, {name}: {}", r.why), ..r })?;
            }
            if let Some(event) = node.signal {
                self.streams
                    .has_event(event)
                    .map_err(|r| Refusal { why: format!("node {i} of a graph records: {}", r.why), ..r })?;
            }
            if let Some(at) = node.memory.iter().find(|at| !self.memory.is_live(**at)) {
                let why = format!("node {i} of a graph, {name}, uses {at:#x}, which was freed");
                return refuse(Code::IllegalAddress, why);
            }
            if let Some(at) = node.pinned.filter(|at| !self.pinned.is_live(*at)) {
                let why = format!("node {i} of a graph, {name}, uses pinned memory {at:#x}, which was freed");
                return refuse(Code::IllegalAddress, why);
            }
        }
        Ok(())
    }
}
