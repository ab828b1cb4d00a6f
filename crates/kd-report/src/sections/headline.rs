//! The headline of an experiment: the answer in a few sentences, and a card each for the teacher, the student alone and the
//! student distilled.

use serde::Serialize;

use crate::charts;
use crate::experiment::{Arm, Experiment, Run};
use crate::format::{
    bytes, dataset_title, duration, grouped, millions, percent, points_spread, rate, seeds,
};
use crate::page::parts::Shown;
use crate::statistics;

/// One experiment's headline.
#[derive(Serialize)]
pub(crate) struct Group {
    /// Only where several experiments stand on the page.
    label: Option<String>,
    data: String,
    synthetic: bool,
    warning: Option<String>,
    unfinished: Vec<String>,
    lede: Vec<String>,
    cards: Vec<Card>,
}

#[derive(Serialize)]
struct Card {
    role: &'static str,
    name: String,
    colour: String,
    accuracy: String,
    spread: Option<String>,
    gain: Option<String>,
    facts: Vec<Fact>,
}

#[derive(Serialize)]
struct Fact {
    label: &'static str,
    value: String,
    /// How it stands to the teacher's.
    beside: Option<String>,
}

pub(crate) fn group(experiment: &Experiment, shown: &[Shown<'_>], several: bool) -> Group {
    let dataset = &experiment.dataset;
    let slot = |arm: &Arm| {
        let found = shown.iter().find(|shown| std::ptr::eq(shown.arm, arm));
        found.map_or(0, |shown| shown.slot)
    };
    let teacher = experiment.teacher();
    let roles = [
        ("Teacher", teacher),
        ("Student alone", experiment.student()),
        ("Student distilled", experiment.distilled()),
    ];
    let cards =
        roles.into_iter().filter_map(|(role, arm)| Some(card(role, arm?, experiment, slot(arm?))));
    Group {
        label: several.then(|| experiment.label.clone()),
        data: format!(
            "{}: {} training and {} test images · {} · {}",
            dataset_title(&dataset.name),
            grouped(dataset.train as u64),
            grouped(dataset.test as u64),
            experiment.device,
            seeds(&experiment.seeds)
        ),
        synthetic: dataset.name == "synthetic",
        warning: dataset.warning.clone(),
        unfinished: experiment
            .arms
            .iter()
            .filter(|arm| arm.unfinished())
            .map(|arm| arm.name.clone())
            .collect(),
        lede: lede(experiment),
        cards: cards.collect(),
    }
}

/// The answer in a few sentences.
fn lede(experiment: &Experiment) -> Vec<String> {
    let accuracy = |arm: &Arm| format!("{:.1} %", 100.0 * arm.mean(Run::test_accuracy));
    let mut sentences = Vec::new();
    if let (Some(teacher), Some(student)) =
        (experiment.teacher(), experiment.student().or(experiment.distilled()))
    {
        let times =
            teacher.first().start.parameters as f64 / student.first().start.parameters as f64;
        if times > 1.05 {
            sentences.push(format!(
                "The student has {times:.1} times fewer parameters than its teacher, which classifies {} of the test images correctly.",
                accuracy(teacher)
            ));
        }
    }
    if let (Some(student), Some(distilled)) = (experiment.student(), experiment.distilled()) {
        let gains = distilled.paired(student, |run| Some(run.test_accuracy()));
        if let Some(mean) = statistics::mean(&gains) {
            let points = mean * 100.0;
            let more = match points {
                _ if points.abs() < 0.05 => "about the same as".to_owned(),
                _ if points > 0.0 => format!("{points:.1} points more than"),
                _ => format!("{:.1} points fewer than", -points),
            };
            sentences.push(format!(
                "Alone the student reaches {}; taught with {} it reaches {}, {more} alone.",
                accuracy(student),
                distilled.name,
                accuracy(distilled)
            ));
            sentences.push(verdict(experiment, student, distilled, &gains));
        }
    }
    sentences
}

/// Whether the difference is more than chance.
fn verdict(experiment: &Experiment, student: &Arm, distilled: &Arm, gains: &[f64]) -> String {
    if gains.len() > 1 {
        let better = gains.iter().filter(|gain| **gain > 0.0).count();
        return format!(
            "Seed by seed the difference is {} points (mean ± standard deviation); the taught student is ahead in {better} of {} seeds.",
            points_spread(gains),
            gains.len()
        );
    }
    let noise = 100.0
        * statistics::difference_noise(
            student.first().test_accuracy(),
            distilled.first().test_accuracy(),
            experiment.dataset.test as u64,
        );
    let within = gains.iter().all(|gain| gain.abs() * 100.0 < noise);
    if within {
        format!(
            "That is within what chance alone does with one seed and {} test images (± {noise:.1} points).",
            grouped(experiment.dataset.test as u64)
        )
    } else {
        format!(
            "The choice of {} test images alone explains at most ± {noise:.1} points of it; one seed says nothing of the spread over seeds.",
            grouped(experiment.dataset.test as u64)
        )
    }
}

fn card(role: &'static str, arm: &Arm, experiment: &Experiment, slot: usize) -> Card {
    let run = arm.first();
    let teacher = experiment.teacher().filter(|teacher| {
        teacher.name != arm.name && teacher.first().start.parameters != run.start.parameters
    });
    let beside = |of: fn(&Run) -> Option<f64>, word: &str| {
        let times = of(teacher?.first())? / of(run)?;
        (times.is_finite() && times > 1.05).then(|| format!("{times:.1}× {word}"))
    };
    let mut facts = vec![Fact {
        label: "Parameters",
        value: grouped(run.start.parameters as u64),
        beside: beside(|run| Some(run.start.parameters as f64), "fewer"),
    }];
    if let Some(number) = run.start.multiply_adds {
        facts.push(Fact {
            label: "Multiply-adds",
            value: millions(number),
            beside: beside(|run| Some(run.start.multiply_adds? as f64), "fewer"),
        });
    }
    if let Some(number) = run.weights_bytes {
        facts.push(Fact {
            label: "File size",
            value: bytes(number),
            beside: beside(|run| Some(run.weights_bytes? as f64), "smaller"),
        });
    }
    facts.push(Fact {
        label: "Training time",
        value: duration(arm.mean(Run::seconds)),
        beside: beside(|run| Some(run.seconds()), "shorter"),
    });
    facts.push(Fact {
        label: "Training images/s",
        value: rate(arm.mean(Run::images_per_second)),
        beside: None,
    });
    let answers: Option<Vec<f64>> = arm.runs.iter().map(Run::test_images_per_second).collect();
    if let Some(mean) = answers.and_then(|answers| statistics::mean(&answers)) {
        facts.push(Fact {
            label: "Test images/s",
            value: rate(mean),
            beside: beside(|run| Some(1.0 / run.test_images_per_second()?), "faster"),
        });
    }
    Card {
        role,
        name: arm.name.clone(),
        colour: charts::colour(slot),
        accuracy: percent(arm.mean(Run::test_accuracy)),
        spread: statistics::standard_deviation(&arm.values(Run::test_accuracy)).map(percent),
        gain: experiment.gain(arm).map(|gain| format!("gain {} points", points_spread(&gain))),
        facts,
    }
}
