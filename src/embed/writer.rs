//! Arrays that grow while they are written.

use crate::error::{Error, Result};
use crate::files::atomic::Temporary;
use crate::files::output_folder::OutputFolder;
use serde_json::json;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

/// Bytes before the values, whatever their number turns out to be. Of both formats the header may be filled up with spaces.
const HEADER: usize = 256;

/// A format of arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ArrayFormat {
    /// numpy.load opens it
    Npy,
    /// safetensors.torch.load_file opens it
    Safetensors,
}

impl ArrayFormat {
    /// The file of an array called `name`.
    pub fn file_name(self, name: &str) -> String {
        match self {
            ArrayFormat::Npy => format!("{name}.npy"),
            ArrayFormat::Safetensors => format!("{name}.safetensors"),
        }
    }
}

/// An f32 array `[n, ..]` whose `n` is known at the end. Its file is there as a whole or not at all.
pub struct ArrayWriter {
    path: PathBuf,
    name: String,
    file: Temporary,
    shape: Vec<usize>,
    format: ArrayFormat,
    values: usize,
}

impl ArrayWriter {
    /// An array called `name` below `folder`, each row of `shape`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &OutputFolder, name: &str, shape: &[usize], format: ArrayFormat) -> Result<Self> {
        let path = folder.path().join(format.file_name(name));
        let mut file = folder.temporary()?;
        file.write_all(&[b' '; HEADER]).map_err(|e| Error::io(&path, "write", e))?;
        Ok(ArrayWriter { path, name: name.to_owned(), file, shape: shape.to_vec(), format, values: 0 })
    }

    /// Appends rows.
    ///
    /// # Errors
    /// [`Error::Io`], such as for a full disk.
    pub fn append(&mut self, values: &[f32]) -> Result<()> {
        self.values += values.len();
        // Both formats say that numbers are little-endian.
        let written = match cfg!(target_endian = "little") {
            true => self.file.write_all(bytemuck::cast_slice(values)),
            false => values.iter().try_for_each(|v| self.file.write_all(&v.to_le_bytes())),
        };
        written.map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Writes the header and adds the file to its folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for a shape that the header has no room for.
    pub fn finish(mut self, folder: &mut OutputFolder) -> Result<()> {
        let header = self.header()?;
        let failed = |e| Error::io(&self.path, "write", e);
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.file.write_all(&header).map_err(failed)?;
        folder.add(&self.format.file_name(&self.name), self.file)
    }

    fn header(&self) -> Result<Vec<u8>> {
        let row: usize = self.shape.iter().product();
        let mut shape = vec![self.values / row.max(1)];
        shape.extend(&self.shape);
        let (mut bytes, text) = match self.format {
            // Version 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
            ArrayFormat::Npy => {
                let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
                let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}");
                let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
                bytes.extend(((HEADER - 10) as u16).to_le_bytes());
                (bytes, text)
            }
            ArrayFormat::Safetensors => {
                let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [0, self.values * size_of::<f32>()] });
                let text = json!({ (self.name.clone()): entry }).to_string();
                (((HEADER - 8) as u64).to_le_bytes().to_vec(), text)
            }
        };
        bytes.extend(text.as_bytes());
        if bytes.len() >= HEADER {
            return Err(Error::file(&self.path, format!("a shape of {} numbers is too long", shape.len())));
        }
        bytes.resize(HEADER, b' ');
        if self.format == ArrayFormat::Npy {
            bytes[HEADER - 1] = b'\n';
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: ArrayFormat) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = OutputFolder::open(dir.path(), "embed").unwrap();
        let mut writer = ArrayWriter::create(&folder, "x", &[2, 3], format).unwrap();
        writer.append(&[0.5; 6]).unwrap();
        writer.append(&[-1.0; 12]).unwrap();
        writer.finish(&mut folder).unwrap();
        std::fs::read(folder.commit().unwrap().remove(0)).unwrap()
    }

    #[test]
    fn npy_has_numpys_header() {
        let bytes = written(ArrayFormat::Npy);
        assert_eq!(bytes.len(), HEADER + 18 * 4);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\xf6\x00");
        let text = String::from_utf8(bytes[10..HEADER].to_vec()).unwrap();
        assert_eq!(text.trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2, 3, ), }");
        assert!(text.ends_with('\n'));
        assert_eq!(bytes[HEADER..HEADER + 4], 0.5f32.to_le_bytes());
    }

    #[test]
    fn safetensors_read_back() {
        let bytes = written(ArrayFormat::Safetensors);
        let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let x = all.tensor("x").unwrap();
        assert_eq!((x.shape(), x.data().len()), (&[3, 2, 3][..], 72));
    }

    #[test]
    fn an_unfinished_array_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = OutputFolder::open(dir.path(), "embed").unwrap();
        let mut writer = ArrayWriter::create(&folder, "x", &[1], ArrayFormat::Npy).unwrap();
        writer.append(&[1.0]).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
