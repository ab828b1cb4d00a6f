//! `kd report` on made-up run folders.

use std::path::{Path, PathBuf};

use kd_report as report;
use serde_json::Value;

mod fixture;
mod html;
mod outputs;
mod roles;
mod uneven;

use fixture::{FakeRun, dataset, tutorial};

struct Made {
    folder: tempfile::TempDir,
    table: String,
    page: String,
    summary: Value,
}

fn make(runs: &[FakeRun]) -> Made {
    let folder = tempfile::tempdir().unwrap();
    for run in runs {
        run.write(folder.path());
    }
    report_on(folder)
}

fn report_on(folder: tempfile::TempDir) -> Made {
    let table = report::write(&[folder.path().to_owned()]).unwrap();
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    let summary = std::fs::read_to_string(folder.path().join("summary.json")).unwrap();
    Made { table, page, summary: serde_json::from_str(&summary).unwrap(), folder }
}

fn error(folder: &Path) -> String {
    let error = report::write(&[folder.to_owned()]).unwrap_err().to_string();
    assert!(!folder.join("report.html").exists(), "wrote a report beside {error}");
    assert!(!folder.join("summary.json").exists(), "wrote a summary beside {error}");
    error
}

/// A run whose classes all have the same accuracy, a share of 1000.
fn flat(name: &str, per_mille: u32, seed: u64) -> FakeRun {
    let mut run = FakeRun::new(name, 600);
    run.right = vec![per_mille; 10];
    run.seed = seed;
    run
}

fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
}

#[test]
fn the_table_of_runs_shows_the_files_numbers() {
    let runs = tutorial(0, &dataset("cifar10"));
    let made = make(&runs);
    let rows = html::rows(html::section(&made.page, "runs"));
    assert_eq!(rows.len(), 1 + runs.len());
    for (run, row) in runs.iter().zip(&rows[1..]) {
        let last = run.epoch(10);
        assert_eq!(row[0], run.name);
        assert_eq!(row[1], format!("{:.2}", 100.0 * run.accuracy()));
        assert!(row.contains(&format!("{:.4}", last["test_loss"].as_f64().unwrap())), "{row:?}");
        assert!(made.table.contains(&row[1]));
    }
    assert!(rows[1].contains(&"1,186,986".to_owned()));
    // Ten epochs of 80 s.
    assert!(rows[1].contains(&"13 min 20 s".to_owned()));
    let gain = 100.0 * (runs[2].accuracy() - runs[1].accuracy());
    assert!(rows[3].contains(&format!("{gain:+.2}").replace('-', "−")));
}

#[test]
fn the_curves_tables_hold_every_epoch_of_every_run() {
    let runs = tutorial(0, &dataset("cifar10"));
    let made = make(&runs);
    let rows = html::rows(html::section(&made.page, "curves"));
    // Three charts, each a head and ten epochs.
    assert_eq!(rows.len(), 33);
    for (chart, field, scale, decimals) in
        [(0, "test_accuracy", 100.0, 2), (1, "test_loss", 1.0, 4), (2, "train_loss", 1.0, 4)]
    {
        for epoch in 1..=10 {
            let row = &rows[chart * 11 + epoch];
            assert_eq!(row[0], epoch.to_string());
            for (run, cell) in runs.iter().zip(&row[1..]) {
                let value = scale * run.epoch(epoch)[field].as_f64().unwrap();
                assert_eq!(*cell, format!("{value:.decimals$}"), "{field} of {}", run.name);
            }
        }
    }
}

#[test]
fn the_confusion_tables_are_the_evaluations() {
    let runs = tutorial(0, &dataset("cifar10"));
    let made = make(&runs);
    let rows = html::rows(html::section(&made.page, "confusion"));
    for (chart, run) in runs.iter().enumerate() {
        let evaluation = run.evaluation();
        for class in 0..10 {
            let row = &rows[chart * 11 + 1 + class];
            assert_eq!(row[0], fixture::CLASSES[class]);
            let counts = evaluation["confusion"][class].as_array().unwrap();
            let counts: Vec<String> = counts.iter().map(Value::to_string).collect();
            assert_eq!(row[1..], counts);
        }
    }
}

#[test]
fn the_class_gains_are_differences_of_the_evaluations() {
    let mut kd = flat("kd", 700, 0);
    kd.right[3] = 650; // cat
    kd.right[8] = 812; // ship
    let made = make(&[flat("student", 700, 0), kd]);
    let rows = html::rows(html::section(&made.page, "gain"));
    let row = |class: &str| rows.iter().find(|row| row[0] == class).unwrap()[1..].join(" ");
    assert_eq!(row("ship"), "70.00 81.20 +11.20");
    assert_eq!(row("cat"), "70.00 65.00 −5.00");
    assert_eq!(row("dog"), "70.00 70.00 0.00");
}

#[test]
fn a_class_without_test_images_has_no_figure_and_no_dot() {
    let folder = tempfile::tempdir().unwrap();
    for (name, per_mille) in [("student", 700), ("kd", 750)] {
        let run = flat(name, per_mille, 0);
        run.write(folder.path());
        // No test image is a ship; as version 0.2 wrote it.
        let mut evaluation = run.evaluation();
        evaluation["confusion"][8] = vec![0; 10].into();
        evaluation["per_class_accuracy"][8] = 0.0.into();
        let path = folder.path().join(name).join("evaluation.json");
        std::fs::write(path, evaluation.to_string()).unwrap();
    }
    let made = report_on(folder);
    let section = html::section(&made.page, "gain");
    let rows = html::rows(section);
    let row = |class: &str| rows.iter().find(|row| row[0] == class).unwrap()[1..].join(" ");
    assert_eq!(
        (row("ship").as_str(), row("cat").as_str()),
        ("none none none", "70.00 75.00 +5.00")
    );
    // A class that was not measured comes after those that were.
    assert_eq!(rows.iter().rfind(|row| row.len() == 4).unwrap()[0], "ship");
    assert!(!section.contains("ship, kd"), "a dot of a class without test images");
    assert!(made.page.contains("ship: no test image") && !made.page.contains("ship: 0 correct"));
}

#[test]
fn the_warnings_of_all_runs_are_shown_once_each() {
    let with = |name, warning: &str| {
        let mut run = flat(name, 700, 0);
        run.dataset["warning"] = warning.into();
        run
    };
    let made = make(&[
        with("student", "the images come from the hub"),
        with("teacher", "the images come from the hub; no training image is of class `cat`"),
    ]);
    let expected = "the images come from the hub; no training image is of class `cat`";
    assert!(made.table.contains(&format!("Warning: {expected}\n")), "{}", made.table);
}

#[test]
fn pages_are_well_formed_and_load_nothing() {
    let mut hundred = tutorial(1, &dataset("cifar100"));
    for run in &mut hundred {
        run.classes = (0..100).map(|class| format!("class {class}")).collect();
        run.right = (0..100).map(|class| 30 + class * 37 % 41).collect();
        run.images_per_class = 100;
    }
    let mut one_epoch = flat("kd", 700, 0);
    one_epoch.epochs = 1;
    let seeds = tempfile::tempdir().unwrap();
    for seed in 0..3 {
        for run in tutorial(seed, &dataset("synthetic")) {
            run.write(&seeds.path().join(format!("seed-{seed}")));
        }
    }
    let made = [
        make(&tutorial(0, &dataset("cifar10"))),
        make(&hundred),
        make(&[one_epoch]),
        make(&[flat("teacher", 700, 0)]),
        report_on(seeds),
    ];
    let outs: Vec<PathBuf> = made.iter().map(|made| made.folder.path().to_owned()).collect();
    report::write(&outs).unwrap();
    let comparison = std::fs::read_to_string(outs[0].join("comparison.html")).unwrap();
    let mut pages: Vec<&str> = made.iter().map(|made| made.page.as_str()).collect();
    pages.push(&comparison);
    for page in pages {
        let tags = html::checked_tags(page).unwrap();
        for tag in &tags {
            let from_outside = [" src=", " srcset=", " href=\"", " data=\"", "@import"];
            let loads = from_outside.iter().any(|part| tag.contains(part));
            assert!(!loads || tag.contains("href=\"data:,\""), "{tag}");
        }
        let lower = page.to_lowercase();
        for part in ["http:", "https:", "url(", "@import"] {
            assert!(!lower.contains(part), "{part}");
        }
        // A folder's name, made up by chance, may stand in a label.
        for tag in tags.iter().filter(|tag| !tag.contains("aria-label")) {
            assert!(!tag.contains("NaN") && !tag.contains("inf"), "{tag}");
        }
        let charts: Vec<&String> =
            tags.iter().filter(|tag| tag.starts_with("svg class=\"chart\"")).collect();
        assert!(!charts.is_empty());
        for chart in charts {
            assert!(chart.contains("role=\"img\"") && chart.contains("aria-label=\""), "{chart}");
        }
        let count = |name: &str| tags.iter().filter(|tag| tag.starts_with(name)).count();
        assert_eq!(count("figure"), count("svg class=\"chart\""));
        assert_eq!(page.matches("<summary>Numbers</summary>").count(), count("figure"));
    }
}

#[test]
fn the_sources_figures_stand_beside_cifar10_only() {
    let made = make(&tutorial(0, &dataset("cifar10")));
    let row = |name: &str| {
        let mut lines = made.table.lines();
        lines.find(|line| line.starts_with(name)).unwrap().to_owned()
    };
    assert!(row("teacher").contains(" 73  75.1, 75.6 "));
    assert!(row("student").contains(" 66  69.9, 70.4 "));
    assert!(row("kd").contains(" 66  70.8, 70.2 "));
    assert!(row("cosine").contains(" -  71.5, 70.9 "));
    assert!(row("regressor").contains(" -  70.8, 71.4 "));
    assert!(html::section(&made.page, "runs").contains("<td>75.1, 75.6</td>"));
    for name in ["cifar100", "synthetic"] {
        let made = make(&tutorial(0, &dataset(name)));
        for text in [&made.table, &made.page] {
            assert!(!text.contains("75.1, 75.6") && !text.to_lowercase().contains("lecture"));
        }
    }
}

#[test]
fn synthetic_and_doubtful_data_are_marked() {
    let marked = "Synthetic pictures, not CIFAR-10";
    let made = make(&tutorial(0, &dataset("synthetic")));
    assert!(made.page.contains(marked));
    assert!(made.table.contains("not CIFAR-10"));

    let made = make(&tutorial(0, &dataset("cifar10")));
    assert!(!made.page.contains(marked) && !made.page.contains("Check the data"));

    let mut doubtful = dataset("cifar10");
    doubtful["warning"] = "the archive's checksum is not the published one".into();
    let made = make(&tutorial(0, &doubtful));
    assert!(made.page.contains("Check the data"));
    assert!(made.table.contains("Warning: the archive's checksum is not the published one"));
    assert_eq!(made.summary["dataset"]["warning"], doubtful["warning"]);
}

#[test]
fn the_summary_of_one_seed_has_the_agreed_fields() {
    let runs = tutorial(7, &dataset("cifar10"));
    let made = make(&runs);
    let summary = &made.summary;
    let keys = |value: &Value| -> Vec<String> {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(summary), ["dataset", "device", "format", "runs", "seed"]);
    assert_eq!(keys(&summary["dataset"]), ["name", "sha256", "test", "train"]);
    assert_eq!((&summary["format"], &summary["seed"]), (&1.into(), &7.into()));
    assert_eq!(summary["runs"].as_array().unwrap().len(), 5);
    for (run, found) in runs.iter().zip(summary["runs"].as_array().unwrap()) {
        assert_eq!(
            keys(found),
            [
                "best_test_accuracy",
                "epochs",
                "images_per_second",
                "method",
                "model",
                "name",
                "parameters",
                "seconds",
                "test_accuracy",
                "test_balanced_accuracy",
                "test_loss",
                "test_macro_f1",
                "train_loss"
            ]
        );
        assert_eq!(found["name"], *run.name);
        assert_eq!(found["method"], Value::from(run.method));
        close(&found["test_accuracy"], run.accuracy());
        close(&found["train_loss"][9], run.epoch(10)["train_loss"].as_f64().unwrap());
        close(&found["seconds"], if run.model == "teacher" { 800.0 } else { 125.0 });
        let epochs = (1..=10).map(|epoch| run.epoch(epoch)["test_accuracy"].as_f64().unwrap());
        close(&found["best_test_accuracy"], epochs.fold(0.0, f64::max));
    }
}

#[test]
fn several_seeds_give_mean_and_spread_and_paired_gains() {
    let folder = tempfile::tempdir().unwrap();
    let student = [690, 700, 710];
    let kd = [700, 720, 740];
    for seed in 0..3 {
        let above = folder.path().join(format!("seed-{seed}"));
        flat("student", student[seed], seed as u64).write(&above);
        flat("kd", kd[seed], seed as u64).write(&above);
    }
    let made = report_on(folder);
    // By hand: deviations -0.01, 0, 0.01 -> sd 0.01; -0.02, 0, 0.02 -> 0.02; gains 0.01, 0.02, 0.03.
    let over = made.summary["over_seeds"].as_array().unwrap();
    close(&over[0]["test_accuracy"]["mean"], 0.70);
    close(&over[0]["test_accuracy"]["standard_deviation"], 0.01);
    close(&over[1]["test_accuracy"]["mean"], 0.72);
    close(&over[1]["test_accuracy"]["standard_deviation"], 0.02);
    close(&over[1]["gain"]["mean"], 0.02);
    close(&over[1]["gain"]["standard_deviation"], 0.01);
    assert!(over[0].get("gain").is_none());
    assert_eq!(made.summary["seeds"], serde_json::json!([0, 1, 2]));
    let seeds: Vec<u64> = made.summary["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["seed"].as_u64().unwrap())
        .collect();
    assert_eq!(seeds, [0, 0, 1, 1, 2, 2]);

    for text in [&made.table, &made.page] {
        assert!(text.contains("70.00 ± 1.00"));
        assert!(text.contains("72.00 ± 2.00"));
        assert!(text.contains("+2.00 ± 1.00"));
    }
    assert!(made.page.contains("ahead in 3 of 3 seeds"));
    let confusion = html::rows(html::section(&made.page, "confusion"));
    // The diagonal, summed over the seeds.
    assert_eq!(confusion[1][1], (690 + 700 + 710).to_string());
}

#[test]
fn a_seed_that_only_one_arm_has_counts_for_its_mean_but_not_for_the_gain() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, student) in [690, 700].into_iter().enumerate() {
        let above = folder.path().join(format!("seed-{seed}"));
        flat("student", student, seed as u64).write(&above);
    }
    flat("kd", 720, 1).write(&folder.path().join("seed-1"));
    let made = report_on(folder);
    let kd = &made.summary["over_seeds"][1];
    close(&kd["gain"]["mean"], 0.02);
    assert_eq!(kd["gain"]["standard_deviation"], Value::Null);
}

#[test]
fn several_folders_are_compared_side_by_side() {
    let first = make(&[flat("student", 700, 0), flat("kd", 710, 0)]);
    let second = make(&[flat("student", 650, 0), flat("kd", 640, 0)]);
    let outs = [first.folder.path().to_owned(), second.folder.path().to_owned()];
    let table = report::write(&outs).unwrap();
    assert!(table.contains("+1.00") && table.contains("−1.00"));
    let page = std::fs::read_to_string(outs[0].join("comparison.html")).unwrap();
    let rows = html::rows(html::section(&page, "runs"));
    let labels: Vec<String> = outs
        .iter()
        .flat_map(|out| {
            let folder = out.file_name().unwrap().to_string_lossy();
            [format!("{folder}: student"), format!("{folder}: kd")]
        })
        .collect();
    let found: Vec<&String> = rows[1..].iter().map(|row| &row[0]).collect();
    assert_eq!(found, labels.iter().collect::<Vec<_>>());
}

#[test]
fn what_files_say_is_escaped() {
    let hostile = "<img src=x onerror=alert(1)>&\"'";
    let folder = tempfile::tempdir().unwrap();
    let mut run = flat("kd", 700, 0);
    run.classes[0] = hostile.to_owned();
    run.dataset["warning"] = hostile.into();
    flat("student", 700, 0).write(folder.path());
    run.write(folder.path());
    let of_run = folder.path().join("kd");
    let edit = |name: &str, change: &dyn Fn(String) -> String| {
        let path = of_run.join(name);
        std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
    };
    let quoted = Value::from(hostile).to_string();
    edit("recipe.toml", &|text| text + "# </pre><script>alert(2)</script>\n");
    edit("events.jsonl", &|text| {
        text.replace("\"labels\":", "\"<i>labels\":")
            .replace("\"run\":\"kd\"", &format!("\"run\":{quoted}"))
    });
    let made = report_on(folder);
    html::checked_tags(&made.page).unwrap();
    assert!(!made.page.contains("<img") && !made.page.contains("<i>"));
    assert_eq!(made.page.matches("<script>").count(), 1);
    assert!(made.page.contains("&lt;img src=x onerror=alert(1)&gt;&amp;&quot;&#x27;"));
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    flat("kd", 700, 0).write(folder.path());
    let path = folder.path().join("kd/events.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"run\":\"kd\"", "\"run\":\"k\\u001b[2Jd\"")).unwrap();
    let made = report_on(folder);
    assert!(made.table.contains("k?[2Jd"));
    assert!(!made.table.contains('\u{1b}'));
}

#[test]
fn a_running_run_is_shown_as_far_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    flat("student", 700, 0).write(folder.path());
    let kd = flat("kd", 700, 0);
    kd.write(folder.path());
    let of_run = folder.path().join("kd");
    let path = of_run.join("events.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    // Start, three epochs with their steps, and a line that the kill cut in two.
    let mut kept: String = text.split_inclusive('\n').take(7).collect();
    kept.push_str("{\"event\":\"epo");
    std::fs::write(&path, kept).unwrap();
    std::fs::remove_file(of_run.join("evaluation.json")).unwrap();
    let made = report_on(folder);
    assert!(made.page.contains("Not finished:</strong> kd"));
    assert!(made.table.contains("3 (running)"));
    assert_eq!(made.summary["runs"][1]["epochs"], 3);
    close(
        &made.summary["runs"][1]["test_accuracy"],
        kd.epoch(3)["test_accuracy"].as_f64().unwrap(),
    );
}

#[test]
fn after_a_resume_the_last_report_of_an_epoch_counts() {
    let folder = tempfile::tempdir().unwrap();
    let run = flat("student", 700, 0);
    run.write(folder.path());
    let path = folder.path().join("student/events.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut again = run.epoch(2);
    again["train_loss"] = 1.25.into();
    let lines: Vec<&str> = text.lines().collect();
    // Epochs 1 and 2, then 2 once more and the rest.
    let (before, after) = lines.split_at(5);
    let resumed =
        format!("{}\n{{\"event\":\"resume\"}}\n{again}\n{}\n", before.join("\n"), after.join("\n"));
    std::fs::write(&path, resumed).unwrap();
    let made = report_on(folder);
    let losses = made.summary["runs"][0]["train_loss"].as_array().unwrap();
    assert_eq!(losses.len(), 10);
    close(&losses[1], 1.25);
    close(&made.summary["runs"][0]["seconds"], 125.0);
}

#[test]
fn missing_and_damaged_files_are_named() {
    let damage = |file: &str, contents: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        flat("student", 700, 0).write(folder.path());
        let path = folder.path().join("student").join(file);
        match contents {
            Some(contents) => std::fs::write(&path, contents).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let message = error(folder.path());
        assert!(message.starts_with(&*path.to_string_lossy()), "{message}");
        message
    };
    assert!(damage("recipe.toml", None).contains("missing"));
    assert!(damage("recipe.toml", Some("[[run")).contains("not a recipe"));
    assert!(damage("evaluation.json", None).contains("missing"));
    assert!(damage("evaluation.json", Some("{\"format\":1")).contains("not an evaluation"));
    let events = "{\"event\":\"step\",\"epoch\":1,\"step\":1,\"loss\":1.0}\n{\"event\": oh}\n{\"event\":\"end\"}\n";
    assert!(damage("events.jsonl", Some(events)).contains("line 2: not an event"));
    assert!(
        damage("events.jsonl", Some("{\"kind\":\"x\"}\n"))
            .contains("line 1: not an event: no field \"event\"")
    );

    let run = flat("student", 700, 0);
    let start = "{\"event\":\"start\",\"run\":\"student\"}\n";
    assert!(damage("events.jsonl", Some(start)).contains("missing field"));
    assert!(
        damage("events.jsonl", Some(&format!("{}\n", run.epoch(1))))
            .contains("without a \"start\"")
    );
    let evaluation = |change: &dyn Fn(&mut Value)| {
        let mut value = run.evaluation();
        change(&mut value);
        damage("evaluation.json", Some(&value.to_string()))
    };
    let message = evaluation(&|value| value["accuracy"] = 0.71.into());
    assert!(
        message.contains("accuracy 0.71 is not the confusion matrix's, 7000 of 10000"),
        "{message}"
    );
    assert!(
        evaluation(&|value| value["format"] = 2.into())
            .contains("format is 2; this version reads format 1")
    );
    let message = evaluation(&|value| value["confusion"] = serde_json::json!([[1, 2], [3, 4]]));
    assert!(message.contains("2 rows") && message.contains("expected 10 of 10"), "{message}");
    let message = evaluation(&|value| value["per_class_accuracy"] = serde_json::json!([0.5]));
    assert!(message.contains("1 per_class_accuracy values; expected 10"), "{message}");
}

#[test]
fn folders_without_runs_are_named_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    assert!(error(folder.path()).contains("no run folder here"));
    assert!(error(&folder.path().join("absent")).contains("absent"));
    flat("student", 700, 0).write(folder.path());
    let message = error(&folder.path().join("student"));
    assert!(message.contains("folder of one run"), "{message}");
    assert!(message.ends_with(&*folder.path().to_string_lossy()), "{message}");
}

#[test]
fn runs_on_different_data_are_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    flat("student", 700, 0).write(folder.path());
    let mut kd = flat("kd", 700, 0);
    kd.dataset = dataset("synthetic");
    kd.write(folder.path());
    let message = error(folder.path());
    assert!(message.contains("synthetic") && message.contains("cifar10"), "{message}");
}

#[test]
fn a_comparisons_table_stands_on_the_page() {
    let folder = tempfile::tempdir().unwrap();
    FakeRun::new("student", 690).write(folder.path());
    let comparison = serde_json::json!({
        "title": "cifar10: 10000 test images", "head": ["arm", "p"],
        "rows": [["kd <b>", "0.031"]], "notes": ["Differences are paired."],
    });
    let path = folder.path().join("comparison.json");
    std::fs::write(&path, comparison.to_string()).unwrap();
    let made = report_on(folder);
    assert!(made.page.contains("Arms compared, seed by seed"));
    assert!(made.page.contains("kd &lt;b&gt;") && made.page.contains("0.031"));

    let folder = tempfile::tempdir().unwrap();
    FakeRun::new("student", 690).write(folder.path());
    std::fs::write(folder.path().join("comparison.json"), "{").unwrap();
    assert!(error(folder.path()).contains("comparison.json: not a comparison"));
}
