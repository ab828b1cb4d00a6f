//! What the page and the table say of uneven classes and of pictures that were left out.

use serde_json::Value;

use super::fixture::{dataset, tutorial};
use super::{close, flat, make, report_on};

/// Two classes of 100 and 5 test images and one without; scikit-learn 1.9.1's figures of these predictions.
#[test]
fn uneven_classes_have_balanced_accuracy_and_macro_f1() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = flat("student", 600, 0);
    run.classes = ["common", "rare", "absent"].map(str::to_owned).to_vec();
    run.right = vec![600; 3];
    run.write(folder.path());
    let evaluation = serde_json::json!({
        "format": 1, "accuracy": 93.0 / 105.0, "loss": 0.5, "classes": run.classes,
        "confusion": [[90, 5, 5], [2, 3, 0], [0, 0, 0]], "per_class_accuracy": [0.9, 0.6, null],
    });
    let path = folder.path().join("student/evaluation.json");
    std::fs::write(path, evaluation.to_string()).unwrap();
    let made = report_on(folder);
    let found = &made.summary["runs"][0];
    close(&found["test_balanced_accuracy"], 0.75);
    close(&found["test_macro_f1"], 0.4663461538461539);
    let line = made.table.lines().find(|line| line.starts_with("student")).unwrap();
    assert!(line.contains("88.57       75.00       46.63"), "{}", made.table);
    assert!(made.table.contains("balanced %  macro F1 %  gain"), "{}", made.table);
    assert!(made.table.contains("classes without test images: absent."), "{}", made.table);
    for part in [">Balanced\u{a0}%<", ">Macro F1\u{a0}%<", ">75.00<", ">46.63<"] {
        assert!(made.page.contains(part), "{part}");
    }
    // Evenly many images of each class need no further column in the terminal.
    assert!(!make(&[flat("student", 600, 0)]).table.contains("balanced"));
}

#[test]
fn pictures_that_were_left_out_are_listed() {
    let mut runs = tutorial(0, &dataset("folder"));
    let skipped: Vec<Value> = (0..250)
        .map(|i| serde_json::json!({"path": format!("train/a<b/{i}.png"), "reason": "the file is empty"}))
        .collect();
    for run in &mut runs {
        run.dataset["skipped"] = skipped.clone().into();
    }
    let made = make(&runs);
    assert!(made.page.contains(">Pictures left out<"));
    assert!(
        made.page.contains(">250 pictures, the first 200; skipped-pictures.txt in a run&#x27;s")
    );
    assert_eq!(made.page.matches(">the file is empty<").count(), 200);
    assert!(made.page.contains("train&#x2f;a&lt;b&#x2f;199.png") && !made.page.contains("a<b"));
    assert_eq!(made.summary["dataset"]["skipped"].as_array().unwrap().len(), 250);
    // Folders of versions before 0.3 name none.
    assert!(!make(&tutorial(0, &dataset("folder"))).page.contains("Pictures left out"));
}
