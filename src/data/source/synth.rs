//! Synthetic persons as pictures.

use std::path::Path;
use std::sync::OnceLock;

use image::RgbImage;

use super::image_source::ImageSource;
use crate::data::synth::{SynthConfig, SynthPersons};
use crate::error::{Error, Result};

/// Pictures kept in memory after they were drawn; drawing one takes milliseconds.
const KEPT: usize = 4096;

/// Synthetic persons; the first [`KEPT`] pictures stay in memory once drawn.
pub struct SynthSource {
    persons: SynthPersons,
    drawn: Vec<OnceLock<RgbImage>>,
}

impl SynthSource {
    /// # Errors
    /// For numbers that are out of range.
    pub fn new(config: SynthConfig) -> Result<Self> {
        let persons = SynthPersons::new(config)?;
        let drawn = (0..persons.len().min(KEPT)).map(|_| OnceLock::new()).collect();
        Ok(SynthSource { persons, drawn })
    }

    /// Those that `key=value,...` tells; what it leaves out is as `saip-engine synth` has it.
    ///
    /// # Errors
    /// [`Error::Usage`] for a key that there is not, and a value that is no number; those of [`SynthSource::new`].
    pub fn told(text: &Path) -> Result<Self> {
        let text = text.to_string_lossy();
        let mut config = SynthConfig::default();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let wrong = |what: &str| {
                let message = format!(
                    "synth:{text}: `{pair}` {what}: write identities=N, images=N, cameras=N, seed=N, with commas between"
                );
                Error::usage(message)
            };
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong("is no key=value"))?;
            let number: u64 = value.trim().parse().map_err(|_| wrong("is no whole number"))?;
            let count = usize::try_from(number).map_err(|_| wrong("is too large"))?;
            match key.trim() {
                "identities" => config.identities = count,
                "images" => config.images_per_identity = count,
                "cameras" => config.cameras = count,
                "seed" => config.seed = number,
                _ => return Err(wrong("is none of its keys")),
            }
        }
        SynthSource::new(config)
    }

    /// Who is on the pictures, and what else is known of them.
    pub fn persons(&self) -> &SynthPersons {
        &self.persons
    }
}

impl ImageSource for SynthSource {
    fn len(&self) -> usize {
        self.persons.len()
    }
    fn name(&self, i: usize) -> String {
        format!("synthetic/{}", self.persons.name(i))
    }
    fn load(&self, i: usize) -> Result<RgbImage> {
        Ok(match self.drawn.get(i) {
            Some(cell) => cell.get_or_init(|| self.persons.image(i)).clone(),
            None => self.persons.image(i),
        })
    }
    /// A person is a class; of as many digits as the largest number has, so that classes are in the order of numbers.
    fn class(&self, i: usize) -> Option<String> {
        (i < self.len()).then(|| format!("{:09}", self.persons.identity_of(i)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_tells_what_is_drawn() {
        let source = SynthSource::told(Path::new("identities=3, images=2,seed=7")).unwrap();
        assert_eq!(source.len(), 6);
        assert_eq!(source.name(5), "synthetic/0003_c5s1_000001_00.jpg");
        assert_eq!(source.class(5).as_deref(), Some("000000003"));
        assert_eq!(source.class(6), None);
        let other = SynthSource::told(Path::new("identities=3,images=2,seed=8")).unwrap();
        assert_ne!(source.load(0).unwrap(), other.load(0).unwrap());
        for (text, says) in [
            ("identity=3", "none of its keys"),
            ("identities=many", "no whole number"),
            ("64", "no key=value"),
            ("identities=0", "identities"),
        ] {
            let e = SynthSource::told(Path::new(text)).err().unwrap().to_string();
            assert!(e.contains(says), "{e}");
        }
    }
}
