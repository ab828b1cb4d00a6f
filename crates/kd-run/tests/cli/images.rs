//! CIFAR's batch files, read by `kd`.

use crate::workdir::WorkDir;

const LENGTH: usize = 2 + 3072;

/// CIFAR-100's two files, whole, with pictures that say little, below `data/cifar-100-binary`.
fn cifar100(dir: &WorkDir) {
    let folder = dir.path("data/cifar-100-binary");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, records) in [("train.bin", 50_000), ("test.bin", 10_000)] {
        let mut bytes = vec![0; records * LENGTH];
        for (record, image) in bytes.chunks_exact_mut(LENGTH).enumerate() {
            let fine = record % 100;
            (image[0], image[1]) = ((fine / 5) as u8, fine as u8);
            image[2..].fill((record % 100 + record % 7) as u8);
        }
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

const FEW: &str =
    "--dataset cifar100 --train-limit 200 --test-limit 100 --epochs 1 --batch-size 50";

#[test]
fn cifar_100_is_trained_on_from_its_folder_or_the_one_above() {
    let dir = WorkDir::new();
    cifar100(&dir);
    let source = r#"{"warning": "not the published bytes"}"#;
    std::fs::write(dir.path("data/cifar-100-binary/source.json"), source).unwrap();
    dir.stdout(&format!("train --model student --data data --out above {FEW}"));
    dir.stdout(&format!("train --model student --data data/cifar-100-binary --out in {FEW}"));
    assert_eq!(dir.read("above/student.safetensors"), dir.read("in/student.safetensors"));
    let summary = dir.json("above/summary.json");
    assert_eq!(summary["dataset"]["name"], "cifar100");
    assert_eq!(summary["dataset"]["warning"], "not the published bytes");
    assert_eq!(summary["runs"][0]["parameters"], 267_738 + 90 * 257);
    let page = String::from_utf8(dir.read("above/report.html")).unwrap();
    assert!(page.contains("not the published bytes"));

    // A label that no class has, in a record that the limits leave out.
    let path = dir.path("data/cifar-100-binary/train.bin");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = 40_000 * LENGTH + 1;
    bytes[at] = 100;
    std::fs::write(&path, bytes).unwrap();
    let message = dir.fails(&format!("train --model student --data data --out bad {FEW}"), 1);
    for part in ["train.bin", &at.to_string(), "100"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}
