//! Which images a run is trained on.

use crate::data::source::ImageSource;
use serde::{Deserialize, Serialize};

/// The images of a run, as its checkpoints remember them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSet {
    pub count: u64,
    /// CRC-32C of all names (and classes, where these are learned) in their order, eight hexadecimal digits.
    pub names: String,
}

impl ImageSet {
    /// The images of `source`; none is opened. With `classes` they are others where these are.
    pub fn of(source: &dyn ImageSource, classes: bool) -> Self {
        let crc = (0..source.len()).fold(0, |crc, i| {
            let crc = crc32c::crc32c_append(crc, source.name(i).as_bytes());
            // Names have no such byte: "ab", "c" are not "a", "bc".
            let crc = crc32c::crc32c_append(crc, &[0]);
            match source.labels(i).class.filter(|_| classes) {
                Some(class) => crc32c::crc32c_append(crc, &class.to_le_bytes()),
                None => crc,
            }
        });
        ImageSet { count: source.len() as u64, names: format!("{crc:08x}") }
    }
}
