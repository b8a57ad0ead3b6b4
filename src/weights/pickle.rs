//! A pickle as `torch.save` writes it, taken as data: tensors and the dictionaries around them. Nothing is ever imported or
//! called. A name that tensors need is understood, objects of other classes are skipped, and a file that would call a function
//! that is not known to be harmless is refused all the same: it was not made to be read as data.
//!
//! Opcodes: Python's `pickletools`. All values live in one list and refer to each other by index, so that neither nesting nor
//! cycles cost stack.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::objects::{Global, global, refusal};
use super::tensor::Element;

/// Opcodes of one pickle; a checkpoint of a thousand tensors with its optimizer has some 200 thousand.
const MAX_OPS: usize = 2_000_000;
/// PyTorch's own limit is 64; all that is read here has at most 4.
const MAX_RANK: usize = 16;

/// Where the elements of a tensor are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorRef {
    pub storage: Rc<StorageRef>,
    /// In elements, as are the strides.
    pub offset: u64,
    pub shape: Vec<usize>,
    pub strides: Vec<u64>,
}

#[derive(Debug, PartialEq)]
pub(super) struct StorageRef {
    pub element: Element,
    /// Name of its file in `data/`.
    pub key: String,
    /// Number of elements.
    pub len: u64,
}

/// What a dictionary can hold that matters here.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Lists, sets, byte strings, objects of other classes, large integers.
    Skipped,
    Constant,
    Int(i64),
    Text(Rc<str>),
    Global(Global),
    /// A place in [`Pickle::tuples`].
    Tuple(usize),
    /// A place in [`Pickle::dicts`].
    Dict(usize),
    Storage(Rc<StorageRef>),
    Tensor(Rc<TensorRef>),
}

/// A pickle that was read.
#[derive(Debug, Default)]
pub(super) struct Pickle {
    pub dicts: Vec<Vec<(Rc<str>, Value)>>,
    tuples: Vec<Vec<Value>>,
    /// Of dictionaries with attributes (an `OrderedDict` can have some), the dictionary of these.
    attributes: HashMap<usize, usize>,
}

impl Pickle {
    /// The texts in the dictionary that is the attribute `name` of a dictionary.
    pub(super) fn attribute(&self, dict: usize, name: &str) -> BTreeMap<String, String> {
        let of = |dict: usize| self.dicts.get(dict).map(Vec::as_slice).unwrap_or_default();
        let found = self.attributes.get(&dict).and_then(|all| {
            of(*all).iter().rev().find_map(|(key, value)| match value {
                Value::Dict(inner) if **key == *name => Some(*inner),
                _ => None,
            })
        });
        let texts = found.map(of).unwrap_or_default().iter().filter_map(|(key, value)| match value {
            Value::Text(text) => Some((key.to_string(), text.to_string())),
            _ => None,
        });
        texts.collect()
    }
}

/// Reads a pickle; returns it and the value that it stands for.
///
/// # Errors
/// A sentence that names the place and what was expected.
pub(super) fn read(bytes: &[u8]) -> Result<(Pickle, Value), String> {
    let mut machine = Machine { bytes, ..Machine::default() };
    for _ in 0..MAX_OPS {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(Value::Global(Global::Unknown(name)))) => return Err(refusal(&name)),
            Ok(Some(value)) => return Ok((machine.pickle, value)),
            Err(message) => return Err(format!("byte {at} of its pickle: {message}")),
        }
    }
    Err(format!("its pickle has more than {MAX_OPS} steps: save `model.state_dict()` alone"))
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    pickle: Pickle,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Step<&'a [u8]> {
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let taken = rest.get(..n).ok_or_else(|| format!("{n} bytes expected, {} left", rest.len()))?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| format!("{N} bytes expected"))
    }

    /// A length in `N` little-endian bytes.
    fn length<const N: usize>(&mut self) -> Step<usize> {
        let raw = self.array::<N>()?;
        let n = raw.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        usize::try_from(n).map_err(|_| format!("a length of {n}"))
    }

    /// Up to the next line end, which is taken too.
    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let n = rest.iter().position(|b| *b == b'\n').ok_or("a line without an end")?;
        let line = self.take(n + 1)?;
        std::str::from_utf8(&line[..n]).map_err(|_| "a name that is not UTF-8".into())
    }

    fn text(&mut self, n: usize) -> Step<Value> {
        let raw = self.take(n)?;
        let text = std::str::from_utf8(raw).map_err(|_| "a text that is not UTF-8")?;
        Ok(Value::Text(text.into()))
    }

    fn pop(&mut self) -> Step<Value> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > bottom {
            true => self.stack.pop().ok_or_else(|| "an empty stack".into()),
            false => Err("an empty stack".into()),
        }
    }

    fn pop_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    fn new_dict(&mut self) -> Value {
        self.pickle.dicts.push(Vec::new());
        Value::Dict(self.pickle.dicts.len() - 1)
    }

    fn new_tuple(&mut self, values: Vec<Value>) -> Value {
        self.pickle.tuples.push(values);
        Value::Tuple(self.pickle.tuples.len() - 1)
    }

    fn pop_tuple(&mut self, n: usize) -> Step<()> {
        let mut values = (0..n).map(|_| self.pop()).collect::<Step<Vec<_>>>()?;
        values.reverse();
        let tuple = self.new_tuple(values);
        self.push(tuple);
        Ok(())
    }

    /// One opcode; the value of the pickle at its end.
    fn step(&mut self) -> Step<Option<Value>> {
        let [op] = self.array()?;
        match op {
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.pop()?;
                self.push(top.clone());
                self.push(top);
            }
            0x80 => self.protocol()?,
            0x95 => drop(self.take(8)?),
            _ => {
                if !(self.scalar(op)? || self.container(op)? || self.memory(op)?) {
                    self.object(op)?;
                }
            }
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Step<()> {
        match self.array()? {
            [2..=5] => Ok(()),
            [n] => Err(format!("pickle protocol {n}, 2 to 5 are read")),
        }
    }

    /// Constants, numbers and texts; whether `op` is one of their opcodes.
    fn scalar(&mut self, op: u8) -> Step<bool> {
        let value = match op {
            b'N' | 0x88 | 0x89 => Value::Constant,
            b'K' => Value::Int(self.length::<1>()? as i64),
            b'M' => Value::Int(self.length::<2>()? as i64),
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'I' | b'L' => {
                let line = self.line()?.trim_end_matches('L');
                line.parse().map(Value::Int).map_err(|_| format!("`{line}` is no integer"))?
            }
            0x8a => {
                let n = self.length::<1>()?;
                self.long(n)?
            }
            0x8b => {
                let n = self.length::<4>()?;
                self.long(n)?
            }
            b'G' => {
                self.take(8)?;
                Value::Constant
            }
            b'F' => {
                self.line()?;
                Value::Constant
            }
            b'X' => {
                let n = self.length::<4>()?;
                self.text(n)?
            }
            0x8c => {
                let n = self.length::<1>()?;
                self.text(n)?
            }
            0x8d => {
                let n = self.length::<8>()?;
                self.text(n)?
            }
            b'U' | b'C' => {
                let n = self.length::<1>()?;
                self.bytes_value(n)?
            }
            b'T' | b'B' => {
                let n = self.length::<4>()?;
                self.bytes_value(n)?
            }
            0x8e | 0x96 => {
                let n = self.length::<8>()?;
                self.bytes_value(n)?
            }
            _ => return Ok(false),
        };
        self.push(value);
        Ok(true)
    }

    fn bytes_value(&mut self, n: usize) -> Step<Value> {
        self.take(n)?;
        Ok(Value::Skipped)
    }

    /// Two's complement in `n` bytes.
    fn long(&mut self, n: usize) -> Step<Value> {
        let raw = self.take(n)?;
        if n > 8 {
            return Ok(Value::Skipped);
        }
        let fill = if raw.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..n].copy_from_slice(raw);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    /// Tuples, lists, sets and dictionaries; whether `op` is one of their opcodes.
    fn container(&mut self, op: u8) -> Step<bool> {
        match op {
            b')' => self.pop_tuple(0)?,
            0x85 => self.pop_tuple(1)?,
            0x86 => self.pop_tuple(2)?,
            0x87 => self.pop_tuple(3)?,
            b't' => {
                let values = self.pop_mark()?;
                let tuple = self.new_tuple(values);
                self.push(tuple);
            }
            b']' | 0x8f => self.push(Value::Skipped),
            b'l' | 0x91 => {
                self.pop_mark()?;
                self.push(Value::Skipped);
            }
            b'a' => drop(self.pop()?),
            b'e' | 0x90 => drop(self.pop_mark()?),
            b'}' => {
                let dict = self.new_dict();
                self.push(dict);
            }
            b'd' => {
                let items = self.pop_mark()?;
                let dict = self.new_dict();
                self.push(dict);
                self.set_items(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Puts keys and values, alternating, into the dictionary on top of the stack.
    fn set_items(&mut self, items: Vec<Value>) -> Step<()> {
        let dict = match self.stack.last() {
            Some(Value::Dict(i)) => Some(*i),
            Some(Value::Skipped) => None,
            _ => return Err("items for something that is no dictionary".into()),
        };
        if !items.len().is_multiple_of(2) {
            return Err("a key without a value".into());
        }
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            // Optimizers number their parameters; only names matter here.
            if let (Some(i), Value::Text(key)) = (dict, key) {
                self.pickle.dicts[i].push((key, value));
            }
        }
        Ok(())
    }

    /// The memo; whether `op` is one of its opcodes.
    fn memory(&mut self, op: u8) -> Step<bool> {
        let (store, index) = match op {
            b'q' => (true, self.length::<1>()? as u32),
            b'r' => (true, u32::from_le_bytes(self.array()?)),
            0x94 => (true, u32::try_from(self.memo.len()).map_err(|_| "too many memo entries")?),
            b'h' => (false, self.length::<1>()? as u32),
            b'j' => (false, u32::from_le_bytes(self.array()?)),
            b'p' | b'g' => {
                let line = self.line()?;
                (op == b'p', line.parse().map_err(|_| format!("`{line}` is no memo entry"))?)
            }
            _ => return Ok(false),
        };
        if store {
            let top = self.pop()?;
            self.push(top.clone());
            self.memo.insert(index, top);
        } else {
            let value = self.memo.get(&index).ok_or_else(|| format!("no memo entry {index}"))?.clone();
            self.push(value);
        }
        Ok(true)
    }

    /// Names, persistent ids, and the construction of objects.
    fn object(&mut self, op: u8) -> Step<()> {
        let value = match op {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Value::Global(global(module, name))
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => Value::Global(global(&module, &name)),
                _ => return Err("a Python object without a name".into()),
            },
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?
            }
            b'R' => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(&callable, &args)?
            }
            0x81 => {
                let (args, class) = (self.pop()?, self.pop()?);
                self.instance(&class, &args)?
            }
            0x92 => {
                let (_, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.instance(&class, &args)?
            }
            b'b' => {
                // The state of an object, such as the `_metadata` of a state dict.
                let (state, object) = (self.pop()?, self.pop()?);
                if let (Value::Dict(state), Value::Dict(dict)) = (state, &object) {
                    self.pickle.attributes.insert(*dict, state);
                }
                object
            }
            op => return Err(format!("opcode 0x{op:02x} is none that torch.save writes")),
        };
        // BUILD leaves the object where it was.
        self.push(value);
        Ok(())
    }

    fn tuple(&self, value: &Value) -> Step<&[Value]> {
        match value {
            Value::Tuple(i) => Ok(&self.pickle.tuples[*i]),
            _ => Err("a tuple was expected".into()),
        }
    }

    fn storage(&self, id: Value) -> Step<Value> {
        let [Value::Text(kind), Value::Global(class), Value::Text(key), _, Value::Int(len)] =
            self.tuple(&id)?
        else {
            return Err("a persistent id that is no storage".into());
        };
        let Global::Storage(element) = class else {
            return Err(format!("the storage `{key}` has a type that is not read: save it as float32"));
        };
        let len = u64::try_from(*len).map_err(|_| format!("the storage `{key}` has {len} elements"))?;
        match &**kind {
            "storage" => {
                Ok(Value::Storage(Rc::new(StorageRef { element: *element, key: (**key).to_owned(), len })))
            }
            other => Err(format!("a persistent id of kind `{other}`, `storage` was expected")),
        }
    }

    /// An object of a class: of one that is not known nothing is wanted, and nothing would be run to make it.
    fn instance(&mut self, class: &Value, args: &Value) -> Step<Value> {
        match class {
            Value::Global(Global::Unknown(name)) if !name.starts_with("torch._") => Ok(Value::Skipped),
            _ => self.call(class, args),
        }
    }

    fn call(&mut self, callable: &Value, args: &Value) -> Step<Value> {
        let Value::Global(callable) = callable else {
            return Err("a call of something that cannot be called".into());
        };
        match callable {
            // The argument of a `defaultdict` makes its missing values.
            Global::Dictionary => match self.tuple(args)? {
                [] | [Value::Global(_) | Value::Constant] => Ok(self.new_dict()),
                _ => Err("an OrderedDict made from a list: save it with a newer PyTorch".into()),
            },
            Global::Inert => Ok(Value::Skipped),
            Global::Unknown(name) => Err(refusal(name)),
            Global::Size => self.tuple(args)?.first().cloned().ok_or_else(|| "an empty size".into()),
            Global::RebuildParameter => match self.tuple(args)?.first() {
                Some(Value::Tensor(t)) => Ok(Value::Tensor(t.clone())),
                _ => Err("a parameter without a tensor".into()),
            },
            Global::RebuildTensor => self.tensor(args),
            Global::RebuildFromType => match self.tuple(args)? {
                [Value::Global(Global::RebuildTensor), _, args, ..] => self.tensor(args),
                _ => Err("a tensor of a class that is not read: save it as a plain tensor".into()),
            },
            Global::Storage(_) => Err("a storage that is not in a file of its own".into()),
        }
    }

    fn tensor(&self, args: &Value) -> Step<Value> {
        let [Value::Storage(storage), Value::Int(offset), size, stride, ..] = self.tuple(args)? else {
            return Err("a tensor without a storage, offset, size and stride".into());
        };
        let numbers = |v: &Value| {
            let values = self.tuple(v)?;
            if values.len() > MAX_RANK {
                return Err(format!("a tensor of rank {}, at most {MAX_RANK} are read", values.len()));
            }
            let number = |v: &Value| match v {
                Value::Int(n) => u64::try_from(*n).map_err(|_| format!("a size or stride of {n}")),
                _ => Err("a size or stride that is no integer".into()),
            };
            values.iter().map(number).collect::<Step<Vec<u64>>>()
        };
        let (sizes, strides) = (numbers(size)?, numbers(stride)?);
        if sizes.len() != strides.len() {
            return Err(format!("{} sizes with {} strides", sizes.len(), strides.len()));
        }
        let offset = u64::try_from(*offset).map_err(|_| format!("a storage offset of {offset}"))?;
        let shape = sizes
            .iter()
            .map(|n| usize::try_from(*n).map_err(|_| format!("a size of {n}")))
            .collect::<Step<Vec<_>>>()?;
        Ok(Value::Tensor(Rc::new(TensorRef { storage: storage.clone(), offset, shape, strides })))
    }
}
