//! Several teachers for one student.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use kd_data::BatchConfig;
use kd_loss::Needs;
use kd_run::teacher::{Ensemble, Teacher};
use kd_run::train::{Outcome, Progress, train};

use crate::resume::resolved;
use crate::workdir::{BATCHES, WorkDir, weights};

/// A student of two teachers with these lines in its data and in its run.
fn recipe(data: &str, lines: &str) -> String {
    format!(
        "format = 1\nname = 'r'\ndata = {{ {data} }}\n
[[run]]\nname = 'big'\nmodel = 'student'\ndropout = 0.0\n
[[run]]\nname = 'taught'\nmodel = 'student'\nteacher = ['t.safetensors', 'r.safetensors']\nlabels = 0.1\n{lines}\n[[run.method]]\nname = 'kd'\nweight = 1.0\ntemperature = 3.0\n"
    )
}

const LINE: &str = "distill --recipe r.toml --run taught --out";
const VIEWS: &str = "augment = { crop_padding = 4, flip = true, mixup = 0.5, views = 2 }";

/// A folder with two teachers of different networks.
fn two_teachers(recipe: &str) -> WorkDir {
    let dir = WorkDir::new();
    dir.teacher("t.safetensors", 10, 5);
    weights(&dir.path("r.safetensors"), "resnet8".parse().unwrap(), 10, 6, true);
    std::fs::write(dir.path("r.toml"), recipe).unwrap();
    dir
}

/// Softmax at a temperature of rows of logits, in f64.
fn softened(logits: &Tensor, temperature: f64) -> Vec<Vec<f64>> {
    let rows = logits.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
    let soften = |row: Vec<f64>| {
        let exponents: Vec<f64> = row.iter().map(|z| (z / temperature).exp()).collect();
        let sum: f64 = exponents.iter().sum();
        exponents.into_iter().map(|e| e / sum).collect()
    };
    rows.into_iter().map(soften).collect()
}

#[test]
fn a_student_learns_from_the_mean_of_its_teachers() {
    let dir = two_teachers(&recipe("", "combine = { name = 'probabilities' }"));
    dir.train(&format!("{LINE} out"));
    let text = String::from_utf8(dir.read("out/taught/recipe.toml")).unwrap();
    let written: toml::Table = text.parse().unwrap();
    let run = &written["run"][0];
    // The method's temperature is written down.
    assert_eq!(run["combine"]["temperature"].as_float(), Some(3.0));
    assert_eq!(run["teacher"].as_array().unwrap().len(), 2);
    let start = &dir.events("out/taught")[0];
    let teachers = [&start["roles"]["teacher"], &start["roles"]["further_teachers"][0]];
    for (teacher, file) in teachers.into_iter().zip(["t.safetensors", "r.safetensors"]) {
        assert!(teacher["file"].as_str().unwrap().ends_with(file), "{teacher}");
        let expected = kd_record::hash::sha256(&dir.path(file)).unwrap();
        assert_eq!(teacher["sha256"].as_str(), Some(expected.as_str()));
    }
    let summary = dir.json("out/summary.json");
    let named = summary["runs"][0]["teachers"].to_string();
    assert!(named.contains("t.safetensors") && named.contains("r.safetensors"), "{named}");
    let page = String::from_utf8(dir.read("out/report.html")).unwrap();
    assert!(page.contains("r.safetensors"), "the page names the teachers");

    // What the ensemble says is the mean of what its networks say.
    let run = resolved(&dir, "out/taught", "again");
    let teacher = run.teacher.as_ref().unwrap();
    let needs = Needs { teacher_logits: true, ..Needs::default() };
    let ensemble = Ensemble::new(teacher, &needs, &Device::Cpu).unwrap();
    let config =
        BatchConfig { normalization: run.recipe.data.normalization(), ..BatchConfig::default() };
    let batches = kd_data::batches(&run.data.train, &config, &Device::Cpu);
    let batch = batches.unwrap().next().unwrap().unwrap();
    let answers = softened(&ensemble.answer(&batch, &needs).unwrap().logits.unwrap(), 3.0);
    let each: Vec<_> = teacher
        .members
        .iter()
        .map(|member| {
            let network = member.network(&Device::Cpu).unwrap();
            softened(&network.evaluate(&batch.images, &[]).unwrap().logits, 3.0)
        })
        .collect();
    for (image, row) in answers.iter().enumerate() {
        for (class, found) in row.iter().enumerate() {
            let mean = (each[0][image][class] + each[1][image][class]) / 2.0;
            assert!((found - mean).abs() < 1e-6, "image {image}: {found}, mean {mean}");
        }
    }
    // Given on the command line it is the same run, and finished.
    let line = "distill --recipe r.toml --run taught --teacher t.safetensors --teacher r.safetensors --out out";
    let output = dir.command(line).args(crate::workdir::TINY).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("finished before"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    // In another order, or combined otherwise, it is another.
    let message =
        dir.train_fails(&line.replace("t.safetensors --teacher r", "r.safetensors --teacher t"), 1);
    assert!(message.contains("run.teacher_sha256"), "{message}");
    let message = dir.train_fails(&format!("{line} --combine logits"), 1);
    assert!(message.contains("run.combine"), "{message}");
}

#[test]
fn each_way_to_combine_trains_and_is_another_student() {
    let dir = two_teachers(&recipe("", ""));
    let mut students = Vec::new();
    for how in ["logits", "probabilities", "confidence", "choice"] {
        dir.train(&format!("{LINE} out --combine {how} --name {how}"));
        students.push(dir.read(&format!("out/{how}.safetensors")));
    }
    dir.train(&format!("{LINE} out"));
    // The mean of the logits is what is taken where nothing is said.
    assert!(students[0] == dir.read("out/taught.safetensors"));
    for (place, student) in students.iter().enumerate() {
        assert!(!students[..place].contains(student), "{place}");
    }
}

#[test]
fn a_student_of_two_teachers_ends_the_same_wherever_it_stops_and_with_kept_views() {
    let dir = two_teachers(&recipe(VIEWS, ""));
    dir.train(&format!("{LINE} asked"));
    std::fs::write(dir.path("r.toml"), recipe(VIEWS, "keep = { type = 'f32' }")).unwrap();
    dir.train(&format!("{LINE} whole"));
    assert!(dir.read("asked/taught.safetensors") == dir.read("whole/taught.safetensors"));
    let run = resolved(&dir, "whole/taught", "stopped");
    let outcome = train(&run, &mut |progress| match progress {
        Progress::Step { step, .. } if step == BATCHES as u64 + 2 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(outcome, Ok(Outcome::Stopped { .. })));
    dir.train(&format!("{LINE} stopped"));
    assert!(dir.read("whole/taught.safetensors") == dir.read("stopped/taught.safetensors"));
}

#[test]
fn an_interrupted_student_of_cached_logits_ends_the_same() {
    let dir = two_teachers(&recipe("", "combine = { name = 'confidence' }"));
    dir.train(&format!("{LINE} whole"));
    let run = resolved(&dir, "whole/taught", "stopped");
    let outcome = train(&run, &mut |progress| match progress {
        Progress::Step { step: 3, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(outcome, Ok(Outcome::Stopped { .. })));
    let run = resolved(&dir, "whole/taught", "stopped");
    let outcome = train(&run, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(outcome, Ok(Outcome::Finished(_))));
    assert!(dir.read("whole/taught.safetensors") == dir.read("stopped/taught.safetensors"));
}

#[test]
fn a_plan_counts_every_teacher_and_a_comparison_trains_those_of_the_recipe_first() {
    let dir = two_teachers(&recipe("", "").replace("'t.safetensors'", "'big'"));
    let planned =
        dir.stdout("plan r.toml --json --device cpu --dataset synthetic --train-limit 100");
    let planned: serde_json::Value = serde_json::from_str(&planned).unwrap();
    let memory = |run: usize| planned["runs"][run]["memory"].clone();
    let resnet8 = std::fs::metadata(dir.path("r.safetensors")).unwrap().len() as f64;
    let found = memory(1)["teacher_weights"].as_f64().unwrap();
    let own = memory(0)["weights"].as_f64().unwrap();
    assert!((found - own) > 0.8 * resnet8 && (found - own) < resnet8, "{found}");

    let line = "compare r.toml --seeds 1 --device cpu --dataset synthetic --train-limit 100 --test-limit 40 --epochs 1 --batch-size 16 --out both";
    dir.stdout(line);
    let start = &dir.events("both/seed-0/taught")[0];
    assert_eq!(start["roles"]["teacher"]["run"], "big");
    let second = &start["roles"]["further_teachers"][0]["file"];
    assert!(second.as_str().unwrap().ends_with("r.safetensors"), "{second}");
}

#[test]
fn teachers_that_can_not_answer_as_one_are_refused_with_the_reason() {
    let refused = |text: &str, flags: &str, code| {
        let dir = two_teachers(text);
        dir.teacher("again.safetensors", 10, 5);
        dir.train_fails(&format!("{LINE} out {flags}"), code)
    };
    let good = recipe("", "");
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let one = "['t.safetensors', 'r.safetensors']";
    for (text, expected) in [
        (
            with("name = 'kd'\nweight = 1.0\ntemperature = 3.0", "name = 'cosine'\nweight = 1.0"),
            "expected one teacher beside the method cosine: it learns from feature maps",
        ),
        (with(one, "[]"), "run[2].teacher: is empty; expected at least one teacher"),
        (with(one, "['t.safetensors', 't.safetensors']"), "expected each teacher once"),
        (with(one, "['t.safetensors', 'again.safetensors']"), "both teachers are the same weights"),
        (with(one, "5"), "expected the name of a run or a weights file, or a list of these"),
        (with(one, "['t.safetensors', 'nowhere']"), "nowhere"),
        (with("labels = 0.1", "cross_fit = 2"), "run[2].cross_fit: is 2; expected none beside"),
        (recipe("", "combine = { name = 'median' }"), "unknown variant `median`"),
        (recipe("", "combine = { name = 'logits', temperature = 2.0 }"), "temperature"),
        (recipe("", "combine = { name = 'confidence', temperature = 0.0 }"), "temperature is 0"),
        (
            recipe(VIEWS, "combine = { name = 'choice' }"),
            "expected logits or probabilities beside mixup or cutmix",
        ),
        (
            recipe("", "combine = { name = 'logits' }").replace(one, "'t.safetensors'"),
            "expected none in a run that has not several teachers",
        ),
    ] {
        let message = refused(&text, "", 1);
        assert!(message.contains(expected), "{message}\nexpected: {expected}");
    }
    let message = refused(&good, "--teacher t.safetensors --combine choice", 2);
    assert!(message.contains("expected none in a run that has not several teachers"), "{message}");
    let several =
        with("name = 'kd'\nweight = 1.0\ntemperature = 3.0", "name = 'mlkd'\nweight = 1.0");
    let message = refused(&several, "--combine probabilities", 2);
    assert!(message.contains("expected combine.temperature beside methods that"), "{message}");
    let message = refused(&good, "--combine median", 2);
    assert!(message.contains("logits, probabilities, confidence or choice"), "{message}");
}
