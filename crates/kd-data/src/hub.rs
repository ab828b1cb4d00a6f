//! CIFAR-10 from a hub, through candle-datasets: a second way to get it where the authors' site is out of
//! reach. It needs the feature `hub`, which brings some 200 more packages.
//!
//! The hub keeps the images as PNG in parquet files, in another order than the binary version has them.

use candle_core::{DType, Device, Tensor};
use candle_datasets::vision;
use sha2::{Digest, Sha256};

use crate::cifar::CIFAR10_CLASSES;
use crate::labels;
use crate::{Dataset, Error, Result, Split};
use kd_record::hash::hex;

/// Downloads CIFAR-10 into the hub's local cache, or takes it from there, and reads it. The images are
/// transposed, since `candle_datasets::vision::cifar::load` returns them with rows and columns exchanged.
///
/// [`Dataset::sha256`] is that of training images, training labels, test images and test labels,
/// for there are no batch files.
///
/// # Errors
/// When the hub is out of reach, or numbers of images, sizes or labels aren't those of CIFAR-10.
pub fn cifar10() -> Result<Dataset> {
    let loaded = vision::cifar::load().map_err(|error| Error::Hub { reason: error.to_string() })?;
    let dataset = from_loaded(&loaded)?;
    for (split, expected) in [(&dataset.train, 50_000), (&dataset.test, 10_000)] {
        if split.len() != expected {
            let reason = format!("found {} images, expected {expected}", split.len());
            return Err(Error::Hub { reason });
        }
    }
    Ok(dataset)
}

/// The data set that `candle_datasets::vision::cifar::load` returned, of any length, with rows and columns put back.
///
/// # Errors
/// When shapes, numbers or labels aren't those of CIFAR-10.
pub fn from_loaded(loaded: &vision::Dataset) -> Result<Dataset> {
    let train = split(&loaded.train_images, &loaded.train_labels)?;
    let test = split(&loaded.test_images, &loaded.test_labels)?;
    let mut hash = Sha256::new();
    let (of_train, of_test) = (labels::bytes(&train.labels), labels::bytes(&test.labels));
    for bytes in [&train.images, &of_train, &test.images, &of_test] {
        hash.update(bytes);
    }
    Ok(Dataset {
        name: "cifar10".into(),
        classes: CIFAR10_CLASSES.iter().map(|&class| class.into()).collect(),
        train,
        test,
        sha256: hex(hash),
        skipped: Vec::new(),
        names: None,
    })
}

fn split(images: &Tensor, labels: &Tensor) -> Result<Split> {
    let wrong = |reason| Err(Error::Hub { reason });
    let labels = labels.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    if images.dims() != [labels.len(), 3, 32, 32] {
        return wrong(format!(
            "found images of shape {:?}, expected [{}, 3, 32, 32]",
            images.dims(),
            labels.len()
        ));
    }
    if let Some(record) = labels.iter().position(|&label| label > 9) {
        let label = labels[record];
        return wrong(format!("found label {label} in image {record}, expected 0 to 9"));
    }
    // Rows and columns change places. Bytes divided by 255 come back exactly by rounding.
    let images = images.to_device(&Device::Cpu)?.transpose(2, 3)?.flatten_all()?;
    let images = images.to_vec1::<f32>()?;
    let images = images.into_iter().map(|value| (value * 255.0).round() as u8).collect();
    Ok(Split { images, labels, coarse_labels: None, shape: [3, 32, 32] })
}
