//! The drawn data set: the same bytes everywhere, and what it promises about its contents.

use kd_data::{SyntheticConfig, synthetic};

/// Changing how pictures are drawn changes every result on them: do it knowingly.
const PINNED: &str = "b314f8e7428bb0eea1b19498311b0f6d421bd6f881d11b1eff78aae1f0fb7f88";

#[test]
fn the_bytes_are_the_same_on_every_machine_and_with_any_number_of_threads() {
    let config = SyntheticConfig { train: 300, test: 100, seed: 0 };
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| synthetic(&config)).sha256, PINNED, "{threads} threads");
    }
}

#[test]
fn a_larger_set_begins_with_the_smaller() {
    let small = synthetic(&SyntheticConfig { train: 30, test: 10, seed: 4 });
    let large = synthetic(&SyntheticConfig { train: 50, test: 10, seed: 4 });
    assert_eq!(large.train.images[..small.train.images.len()], small.train.images);
    assert_eq!(large.test, small.test);
    assert_ne!(large.sha256, small.sha256);
}

#[test]
fn seeds_and_splits_hold_different_pictures() {
    let one = synthetic(&SyntheticConfig { train: 20, test: 20, seed: 1 });
    let two = synthetic(&SyntheticConfig { train: 20, test: 20, seed: 2 });
    assert_ne!(one.train.images, two.train.images);
    assert_ne!(one.train.images, one.test.images);
    for (i, j) in (0..20).flat_map(|i| (0..i).map(move |j| (i, j))) {
        assert_ne!(one.train.image(i), one.train.image(j));
    }
}

#[test]
fn ten_named_classes_in_equal_numbers_and_never_called_cifar() {
    let dataset = synthetic(&SyntheticConfig { train: 200, test: 50, seed: 0 });
    assert_eq!(dataset.name, "synthetic");
    assert_eq!(dataset.train.class_counts(10), [20; 10]);
    assert_eq!(dataset.test.class_counts(10), [5; 10]);
    let names: std::collections::BTreeSet<_> = dataset.classes.iter().collect();
    assert_eq!(names.len(), 10);
    assert!(names.iter().all(|name| !name.to_lowercase().contains("cifar")));
}

#[test]
fn pictures_are_colourful_and_use_the_whole_range() {
    let images = synthetic(&SyntheticConfig { train: 200, test: 0, seed: 0 }).train;
    for channel in 0..3 {
        let bytes: Vec<f64> = (0..images.len())
            .flat_map(|i| images.image(i)[channel * 1024..][..1024].iter().map(|&b| f64::from(b)))
            .collect();
        let mean = bytes.iter().sum::<f64>() / bytes.len() as f64;
        let variance = bytes.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / bytes.len() as f64;
        assert!((100.0..155.0).contains(&mean), "channel {channel}: mean {mean}");
        assert!((35.0..75.0).contains(&variance.sqrt()), "channel {channel}: {variance}");
    }
}
