//! Writing what `torch.load(weights_only=True)` opens.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::Path;

use zip::result::ZipResult;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::names::Naming;
use super::pth::ATTRIBUTE;
use super::tensor::{StateDict, Tensor};
use crate::error::{Error, Result};
use crate::files::atomic;

/// How a `.pth` file is laid out. The default is a bare state dict in timm's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PthLayout<'a> {
    /// The entry that holds the tensors, such as `state_dict`; `None` for a file that is the state dict itself.
    pub entry: Option<&'a str>,
    /// What stands before each name, such as `backbone.`.
    pub prefix: &'a str,
    /// Of the names behind the prefix; `state` itself has timm's.
    pub naming: Naming,
}

/// Alignment of the tensors in the file, that of `torch.save`.
const ALIGNMENT: u16 = 64;

/// Writes `state`, which has timm's names, as a whole or not at all, with its [`metadata`](StateDict::metadata) as an attribute
/// of the state dict. The bytes depend on the arguments only.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for a tensor with NaN or infinite values, or when two would get the same name.
pub fn write_pth(path: impl AsRef<Path>, state: &StateDict, layout: &PthLayout<'_>) -> Result<()> {
    let path = path.as_ref();
    super::tensor::check_writable(path, state)?;
    let named = state.renamed(|name| Some(format!("{}{}", layout.prefix, layout.naming.from_timm(name))));
    if named.len() != state.len() {
        return Err(Error::file(
            path,
            format!("two tensors would have the same name in {} naming", layout.naming),
        ));
    }
    let mut pickle = Pickle::default();
    pickle.file(&named, layout.entry);
    let bytes =
        archive(&pickle.0, &named).map_err(|e| Error::file(path, format!("cannot be laid out: {e}")))?;
    atomic::write(path, &bytes)
}

fn archive(pickle: &[u8], state: &StateDict) -> ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = |len: usize| {
        SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(len as u64 >= u64::from(u32::MAX))
    };
    let mut part = |name: &str, bytes: &[u8]| -> ZipResult<()> {
        zip.start_file(format!("archive/{name}"), options(bytes.len()))?;
        Ok(zip.write_all(bytes)?)
    };
    part("data.pkl", pickle)?;
    part("byteorder", b"little")?;
    for (i, (_, tensor)) in state.iter().enumerate() {
        part(&format!("data/{i}"), tensor.bytes())?;
    }
    part("version", b"3\n")?;
    Ok(zip.finish()?.into_inner())
}

/// A pickle of protocol 2 without a memo: nothing in it occurs twice by identity.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn file(&mut self, state: &StateDict, entry: Option<&str>) {
        self.0.extend([0x80, 2]);
        match entry {
            Some(entry) => {
                self.0.push(b'}');
                self.text(entry);
                self.state_dict(state);
                self.0.push(b's');
            }
            None => self.state_dict(state),
        }
        self.0.push(b'.');
    }

    fn state_dict(&mut self, state: &StateDict) {
        self.global("collections", "OrderedDict");
        self.0.extend(*b")R(");
        for (i, (name, tensor)) in state.iter().enumerate() {
            self.text(name);
            self.tensor(i, tensor);
        }
        self.0.push(b'u');
        if !state.metadata.is_empty() {
            self.metadata(&state.metadata);
        }
    }

    /// What shapes do not tell, as an attribute of the `OrderedDict`, where `load_state_dict` does not see it.
    fn metadata(&mut self, metadata: &BTreeMap<String, String>) {
        self.0.push(b'}');
        self.text(ATTRIBUTE);
        self.0.extend(*b"}(");
        for (key, value) in metadata {
            self.text(key);
            self.text(value);
        }
        self.0.extend(*b"usb");
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)`.
    fn tensor(&mut self, key: usize, tensor: &Tensor) {
        let dims = tensor.shape().dims();
        let mut strides = vec![1u64; dims.len()];
        for d in (1..dims.len()).rev() {
            strides[d - 1] = strides[d].saturating_mul(dims[d].max(1) as u64);
        }
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.0.extend(*b"((");
        self.text("storage");
        self.global("torch", tensor.element().storage());
        self.text(&key.to_string());
        self.text("cpu");
        self.int((tensor.bytes().len() / tensor.element().bytes()) as u64);
        self.0.extend(*b"tQ");
        self.int(0);
        self.ints(dims.iter().map(|d| *d as u64));
        self.ints(strides.into_iter());
        self.0.push(0x89);
        self.global("collections", "OrderedDict");
        self.0.extend(*b")RtR");
    }

    fn global(&mut self, module: &str, name: &str) {
        self.0.extend(format!("c{module}\n{name}\n").as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        // Names are far shorter than 4 GiB.
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    fn ints(&mut self, values: impl Iterator<Item = u64>) {
        self.0.push(b'(');
        values.for_each(|v| self.int(v));
        self.0.push(b't');
    }

    fn int(&mut self, value: u64) {
        match i32::try_from(value) {
            Ok(v) => {
                self.0.push(b'J');
                self.0.extend(v.to_le_bytes());
            }
            // LONG1; sizes in memory stay below 2^63, so that the sign is right.
            Err(_) => {
                self.0.extend([0x8a, 8]);
                self.0.extend(value.to_le_bytes());
            }
        }
    }
}
