//! Who taught whom: as the runs record it, and for version 0.1 as their names say.

use serde_json::json;

use crate::fixture::FakeRun;
use crate::{flat, make};

/// A network of the teacher's size that learnt from the labels alone, with this accuracy in thousandths.
fn large(name: &str, per_mille: u32) -> FakeRun {
    let mut run = flat(name, per_mille, 0);
    (run.model, run.method) = ("teacher", None);
    run
}

/// The sentence about the headline's teacher, of this accuracy.
fn taught_by(percent: &str) -> String {
    format!(
        "fewer parameters than its teacher, which classifies {percent} % of the test images correctly"
    )
}

#[test]
fn the_headlines_teacher_is_the_run_that_the_student_recorded() {
    let mut kd = flat("taught", 700, 0);
    kd.roles = Some(json!({
        "labels": 0.75,
        "methods": [{"name": "kd", "weight": 0.25, "asks_teacher": true}],
        "teacher": {"file": "../big.safetensors", "run": "big", "sha256": "ab"},
    }));
    let mut runs = vec![flat("student", 690, 0), large("big", 910), large("teacher", 820), kd];
    runs[0].method = None;
    let made = make(&runs);
    assert!(made.page.contains(&taught_by("91.0")), "not the run that is called teacher");

    // Version 0.1 recorded nothing: its report took the run called teacher, or of the network teacher.
    runs[3].roles = None;
    runs[1].model = "resnet56";
    assert!(make(&runs).page.contains(&taught_by("82.0")));
}

#[test]
fn a_teacher_from_elsewhere_is_none_of_the_runs() {
    let mut kd = flat("taught", 700, 0);
    kd.roles = Some(json!({
        "methods": [{"name": "kd", "weight": 0.25, "asks_teacher": true}],
        "teacher": {"file": "/elsewhere/t.safetensors", "sha256": "ab"},
    }));
    let made = make(&[flat("student", 690, 0), large("teacher", 820), kd]);
    assert!(!made.page.contains("which classifies"), "the run called teacher taught nobody");
}

#[test]
fn a_student_is_measured_against_one_that_starts_from_the_same_weights() {
    let roles = |method: Option<&str>, init: Option<&str>| {
        let methods: Vec<_> =
            method.map(|name| json!({"name": name, "asks_teacher": true})).into_iter().collect();
        let mut roles = json!({"labels": 1.0, "methods": methods});
        if let Some(file) = init {
            roles["init"] = json!({"file": file, "sha256": "ab"});
        }
        Some(roles)
    };
    let mut fresh = flat("fresh", 600, 0);
    (fresh.method, fresh.roles) = (None, roles(None, None));
    let mut tuned = flat("tuned", 680, 0);
    (tuned.method, tuned.roles) = (None, roles(None, Some("../other.safetensors")));
    let mut kd = flat("kd", 700, 0);
    kd.roles = roles(Some("kd"), Some("../other.safetensors"));
    let made = make(&[fresh, tuned, kd]);
    let row = made.table.lines().find(|line| line.starts_with("kd")).unwrap().to_owned();
    assert!(row.contains("+2.00"), "{row}");
}

#[test]
fn the_run_called_best_leads_page_and_terminal_and_the_lectures_finding_stands_beside_it() {
    let taught = |name: &str, method: &str, per_mille: u32| {
        let mut run = flat(name, per_mille, 0);
        run.roles = Some(json!({
            "labels": 1.0,
            "methods": [{"name": method, "weight": 2.0, "asks_teacher": true}],
            "teacher": {"file": "../teacher.safetensors", "run": "teacher", "sha256": "ab"},
        }));
        run
    };
    let mut student = flat("student", 600, 0);
    student.method = None;
    let lecture = vec![student, large("teacher", 820), taught("kd", "kd", 593)];
    let best = "Taught in the best way that kd knows for it (dist, by teacher with 1,186,986 parameters and 82.0 %), the student reaches 64.5 %, 4.5 points more than alone (60.0 %).";
    let beside =
        "Taught with kd, as in the lecture, it reaches 59.3 %, 0.7 points fewer than alone.";
    let with_best = [&lecture[..], &[taught("best", "dist", 645)]].concat();
    let made = make(&with_best);
    for text in [&made.page, &made.table] {
        let (first, second) = (text.find(best).unwrap(), text.find(beside).unwrap());
        assert!(first < second, "the best comes first");
    }
    assert!(made.table.find(beside).unwrap() < made.table.find("accuracy %").unwrap());
    assert!(made.page.contains("Student, best way known"));
    let made = make(&lecture);
    assert!(
        made.page.contains("Alone the student reaches 60.0 %; taught with kd it reaches 59.3 %")
    );
    assert!(!made.table.contains("reaches"), "{}", made.table);
}

#[test]
fn several_teachers_are_named_and_none_of_them_is_the_student_alone() {
    let own = |name: &str, per_mille: u32| {
        let mut run = flat(name, per_mille, 0);
        (run.method, run.roles) = (None, Some(json!({"labels": 1.0, "methods": []})));
        run
    };
    let mut taught = flat("taught", 700, 0);
    taught.roles = Some(json!({
        "labels": 0.5,
        "methods": [{"name": "kd", "weight": 0.5, "asks_teacher": true}],
        "teacher": {"file": "../big.safetensors", "run": "big", "sha256": "ab"},
        "further_teachers": [
            {"file": "../twin.safetensors", "run": "twin", "sha256": "cd"},
            {"file": "/elsewhere/t.safetensors", "sha256": "ef"},
        ],
    }));
    // `twin` has the student's network and comes first, but it is a teacher.
    let made = make(&[own("twin", 680), own("alone", 690), large("big", 910), taught]);
    let row = made.table.lines().find(|line| line.starts_with("taught")).unwrap().to_owned();
    assert!(row.contains("+1.00"), "{row}");
    let runs = made.summary["runs"].as_array().unwrap();
    let of = |name: &str| runs.iter().find(|run| run["name"] == name).unwrap();
    assert_eq!(of("taught")["teachers"], json!(["big", "twin", "/elsewhere/t.safetensors"]));
    assert!(of("alone").get("teachers").is_none());
}
