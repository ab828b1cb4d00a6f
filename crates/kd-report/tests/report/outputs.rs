//! Sections made from the networks' logits of the test images.

use crate::fixture::{FakeRun, dataset, tutorial};
use crate::{close, error, html, make, report_on};

/// Teacher, student and kd with outputs, 200 test images.
fn with_outputs() -> ([FakeRun; 3], tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, right: [u32; 10]| {
        let mut run = FakeRun::new(name, 600);
        (run.images_per_class, run.right) = (20, right.to_vec());
        run.dataset["test"] = 200.into();
        run
    };
    let runs = [
        run("teacher", [15, 18, 12, 11, 14, 13, 17, 16, 18, 17]),
        run("student", [13, 16, 11, 10, 12, 12, 16, 15, 16, 15]),
        run("kd", [14, 17, 11, 11, 14, 12, 17, 15, 17, 16]),
    ];
    for run in &runs {
        run.write_with_outputs(folder.path());
    }
    (runs, folder)
}

fn answer(logits: &[f32]) -> usize {
    logits.iter().position(|logit| *logit == 4.0).unwrap()
}

#[test]
fn agreement_with_the_teacher_is_counted_image_by_image() {
    let (runs, folder) = with_outputs();
    let made = report_on(folder);
    let rows = html::rows(html::section(&made.page, "agreement"));
    let (taught, labels) = runs[0].answers();
    for (place, run) in runs[1..].iter().enumerate() {
        let (said, _) = run.answers();
        let mut counts = [0; 5];
        for ((said, taught), label) in said.iter().zip(&taught).zip(&labels) {
            let (said, taught, label) = (answer(said), answer(taught), usize::from(*label));
            let part = match (said == label, taught == label, said == taught) {
                (true, true, _) => 0,
                (false, false, true) => 1,
                (true, false, _) => 2,
                (false, true, _) => 3,
                (false, false, false) => 4,
            };
            counts[part] += 1;
        }
        assert!(counts[1] > 0 && counts[3] > 0, "{counts:?}");
        let agreement = f64::from(counts[0] + counts[1]) / 200.0;
        assert_eq!(rows[1 + place][..2], [run.name.clone(), format!("{:.2}", 100.0 * agreement)]);
        close(&made.summary["runs"][1 + place]["teacher_agreement"], agreement);
        let counts = counts.map(|count| count.to_string());
        assert_eq!(rows[4 + place][1..6], counts);
    }
    assert!(made.summary["runs"][0].get("teacher_agreement").is_none());
}

#[test]
fn calibration_is_that_of_the_outputs() {
    let (runs, folder) = with_outputs();
    let made = report_on(folder);
    let rows = html::rows(html::section(&made.page, "calibration"));
    // Each answer has the same confidence, so all images are in one interval.
    let e = std::f64::consts::E;
    let confidence = e.powi(4) / (e.powi(4) + e + 8.0);
    for (place, run) in runs.iter().enumerate() {
        let error = (run.accuracy() - confidence).abs();
        assert_eq!(rows[1 + place][1], format!("{:.2}", 100.0 * error));
        let found = &made.summary["runs"][place]["expected_calibration_error"];
        assert!((found.as_f64().unwrap() - error).abs() < 1e-9);
    }
}

#[test]
fn soft_targets_stand_on_the_page_at_the_methods_temperature() {
    let (_, folder) = with_outputs();
    let made = report_on(folder);
    html::checked_tags(&made.page).unwrap();
    let part = html::section(&made.page, "soft");
    // The fixture's method has T = 2: logits 4, 1 and eight 0 become these shares.
    let weights = [2f64.exp(), 0.5f64.exp(), 1.0];
    let sum = weights[0] + weights[1] + 8.0;
    for weight in weights {
        assert!(part.contains(&format!(">{:.1} %<", 100.0 * weight / sum)), "{part}");
    }
    assert!(part.contains("data:image/bmp;base64,Qk"));
    assert!(part.contains("data-value=\"2.0\""));
    // Without outputs the page has none of this.
    let made = make(&tutorial(0, &dataset("cifar10")));
    assert!(!made.page.contains("id=\"soft\"") && !made.page.contains("id=\"calibration\""));
}

#[test]
fn outputs_that_are_damaged_or_of_other_weights_are_not_used() {
    let (_, folder) = with_outputs();
    let path = folder.path().join("student/test-outputs.safetensors");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let message = error(folder.path());
    assert!(message.contains("student/test-outputs.safetensors: not a network's outputs"));

    // Those of another run: answers that the evaluation does not have.
    std::fs::copy(folder.path().join("teacher/test-outputs.safetensors"), &path).unwrap();
    assert!(error(folder.path()).contains("not those of evaluation.json"));

    // A teacher trained anew since: it is not the one that kd learnt from.
    std::fs::write(&path, whole).unwrap();
    let recipe = folder.path().join("kd/recipe.toml");
    let text = std::fs::read_to_string(&recipe).unwrap();
    std::fs::write(&recipe, text.replace("teacher_sha256 = \"teacher\"", "teacher_sha256 = \"x\""))
        .unwrap();
    let made = report_on(folder);
    assert!(made.summary["runs"][2].get("teacher_agreement").is_none());
    assert!(made.summary["runs"][1].get("teacher_agreement").is_some());
}
