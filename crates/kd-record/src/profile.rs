//! `profile.json`: what `kd profile` measured of networks side by side.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::read::read_json;
use crate::{Error, Result};

/// The version of this description.
pub const FORMAT: u32 = 1;
/// A thousand networks' figures are far smaller.
const MAX_BYTES: u64 = 64 << 20;

/// Networks side by side, measured one after another on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The version of this description: [`FORMAT`].
    pub format: u32,
    /// The version of kd that measured them.
    pub version: String,
    /// The processor, where the system names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The networks, in the order in which they were given.
    pub networks: Vec<NetworkProfile>,
}

/// A network's size, and the time and memory of its forward pass on the CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkProfile {
    /// The weights file, as it was given.
    pub file: String,
    /// The network's name, as `kd networks` lists it.
    pub network: String,
    /// Channels, height and width of an image.
    pub input: [usize; 3],
    /// The number of classes.
    pub classes: usize,
    /// The number of trained values.
    pub parameters: u64,
    /// Multiply-adds of the forward pass of one image.
    pub multiply_adds: u64,
    /// The weights file's bytes.
    pub file_bytes: u64,
    /// The forward passes that were timed.
    pub passes: Vec<PassProfile>,
    /// Share of correct predictions on test images, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
}

/// A forward pass, timed some number of times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassProfile {
    /// Images of the batch.
    pub batch: usize,
    /// Threads that compute.
    pub threads: usize,
    /// How many passes were timed, after some that were not.
    pub timed: usize,
    /// The median of their times, in milliseconds for the whole batch.
    pub median_ms: f64,
    /// Nine of ten passes took at most this many milliseconds.
    pub p90_ms: f64,
    /// Bytes at the pass's peak, weights and images included, as found from the network's graph.
    pub peak_bytes: u64,
}

/// Where a network's accuracy comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Share of correct predictions, from 0 to 1.
    pub share: f64,
    /// Test images that it is of; `None` where somebody said the accuracy without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// The data set's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
}

impl Profile {
    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    /// When it can't be read, is no profile, or is of another format.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let profile: Self = read_json(path, MAX_BYTES, "a profile")?;
        match profile.format {
            FORMAT => Ok(Some(profile)),
            other => Err(Error::corrupt(
                path,
                None,
                format!("format {other}; expected {FORMAT}: make it again with `kd profile --out`"),
            )),
        }
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

impl NetworkProfile {
    /// The pass of one image whose median is shortest.
    pub fn of_one_image(&self) -> Option<&PassProfile> {
        let of_one = self.passes.iter().filter(|pass| pass.batch == 1);
        of_one.min_by(|a, b| a.median_ms.total_cmp(&b.median_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_and_another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.json");
        assert_eq!(Profile::read(&path).unwrap(), None);
        let pass = PassProfile {
            batch: 1,
            threads: 2,
            timed: 50,
            median_ms: 1.25,
            p90_ms: 1.5,
            peak_bytes: 1 << 20,
        };
        let network = NetworkProfile {
            file: "student.safetensors".into(),
            network: "student".into(),
            input: [3, 32, 32],
            classes: 10,
            parameters: 267_738,
            multiply_adds: 1_296_896,
            file_bytes: 1_072_000,
            passes: vec![PassProfile { threads: 1, median_ms: 2.0, ..pass }, pass],
            accuracy: Some(Accuracy {
                share: 0.71,
                images: Some(10_000),
                dataset: Some("cifar10".into()),
            }),
        };
        let mut profile = Profile {
            format: FORMAT,
            version: "0.2.0".into(),
            machine: None,
            networks: vec![network],
        };
        std::fs::write(&path, profile.to_json()).unwrap();
        assert_eq!(Profile::read(&path).unwrap().as_ref(), Some(&profile));
        assert_eq!(profile.networks[0].of_one_image(), Some(&pass), "the faster of both");
        profile.format = 2;
        std::fs::write(&path, profile.to_json()).unwrap();
        let message = Profile::read(&path).unwrap_err().to_string();
        assert!(message.contains("format 2; expected 1"), "{message}");
        std::fs::write(&path, "{").unwrap();
        assert!(Profile::read(&path).unwrap_err().to_string().contains("profile.json"));
    }
}
