//! The headline of an experiment: the answer in a few sentences, and a card each for the teacher, the student alone, the student
//! distilled, and the student taught in the best way that is known.

use serde::Serialize;

use crate::charts;
use crate::experiment::{Arm, Experiment, Run};
use crate::findings::findings;
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
        ("Student, best way known", experiment.best()),
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
        lede: findings(experiment),
        cards: cards.collect(),
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
