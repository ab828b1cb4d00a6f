//! candle-datasets' own reader of the binary files agrees with ours, and what its hub loader returns is turned.
#![cfg(feature = "hub")]

mod common;

use candle_core::{Device, Tensor};
use candle_datasets::vision;
use kd_data::{Split, cifar10, hub};

/// Bytes as candle-datasets gives them: divided by 255.
fn bytes(images: &Tensor) -> Vec<u8> {
    let values = images.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(|value| (value * 255.0).round() as u8).collect()
}

#[test]
fn every_image_and_label_is_that_of_load_dir() {
    let dir = common::cifar10();
    let ours = cifar10(dir.path()).unwrap();
    let theirs = vision::cifar::load_dir(dir.path()).unwrap();
    for (ours, images, labels) in [
        (&ours.train, &theirs.train_images, &theirs.train_labels),
        (&ours.test, &theirs.test_images, &theirs.test_labels),
    ] {
        assert_eq!(images.dims(), [ours.len(), 3, 32, 32]);
        assert!(ours.images == bytes(images), "an image differs");
        assert_eq!(
            ours.labels,
            labels.to_dtype(candle_core::DType::U32).unwrap().to_vec1::<u32>().unwrap()
        );
    }
}

/// Two images as `load` returns them: rows and columns changed.
fn loaded(labels: [u8; 2]) -> vision::Dataset {
    let values: Vec<f32> = (0..2 * 3072u32).map(|at| (at * 7 % 256) as f32 / 255.0).collect();
    let images = Tensor::from_vec(values, (2, 3, 32, 32), &Device::Cpu).unwrap();
    let images = images.transpose(2, 3).unwrap().contiguous().unwrap();
    let labels = Tensor::new(&labels, &Device::Cpu).unwrap();
    vision::Dataset {
        train_images: images.clone(),
        train_labels: labels.clone(),
        test_images: images,
        test_labels: labels,
        labels: 10,
    }
}

#[test]
fn the_hubs_images_come_back_the_right_way_round() {
    let dataset = hub::from_loaded(&loaded([3, 9])).unwrap();
    let Split { images, labels, .. } = &dataset.train;
    let expected: Vec<u8> = (0..2 * 3072u32).map(|at| (at * 7 % 256) as u8).collect();
    assert!(*images == expected, "an image is not as it was before it was turned");
    assert_eq!(*labels, [3, 9]);
}

#[test]
fn a_label_out_of_range_and_a_wrong_shape_are_errors() {
    let message = hub::from_loaded(&loaded([3, 10])).unwrap_err().to_string();
    assert!(message.contains("label 10 in image 1, expected 0 to 9"), "{message}");
    let mut small = loaded([0, 1]);
    small.test_images = small.test_images.narrow(2, 0, 31).unwrap();
    let message = hub::from_loaded(&small).unwrap_err().to_string();
    assert!(message.contains("[2, 3, 31, 32], expected [2, 3, 32, 32]"), "{message}");
}
