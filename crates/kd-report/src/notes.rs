//! The sentences below a table of runs, on the page and on the terminal.

use kd_record::Evaluation;

use crate::experiment::{Arm, Experiment, Run};
use crate::format::{grouped, percent_spread};
use crate::{statistics, text};

/// Sentences below the table: what the columns mean and how far chance goes.
pub(crate) fn notes(experiment: &Experiment) -> Vec<String> {
    let mut notes = Vec::new();
    let chosen = experiment.arms.iter().flat_map(|arm| &arm.runs).any(Run::chose_its_epoch);
    let accuracy = match chosen {
        false => "accuracy is the last epoch's",
        true => {
            "accuracy is the last epoch's, or that of the epoch which a run chose on held-out training images"
        }
    };
    let gains = experiment.arms.iter().any(|arm| experiment.gain(arm).is_some());
    if experiment.seeds.len() > 1 {
        notes.push(format!(
            "Mean ± standard deviation over {} seeds; {accuracy}; time is one seed's, of the training steps alone.",
            experiment.seeds.len()
        ));
        if gains {
            notes.push("Gain: percentage points over the same student trained alone, paired seed by seed (same initial weights, batch order and dropout).".to_owned());
        }
    } else {
        notes.push(format!("One seed; {accuracy}; time is of the training steps alone."));
        if gains {
            notes.push(
                "Gain: percentage points over the same student trained alone, from the same seed."
                    .to_owned(),
            );
        }
        if let Some(points) = noise(experiment) {
            notes.push(format!(
                "The choice of {} test images alone can move a difference by {points:.1} points (95 %); initial weights and batch order add to that. To tell methods apart, run several seeds (--seeds N).",
                grouped(experiment.dataset.test as u64)
            ));
        }
    }
    if experiment.evaluations().any(Evaluation::is_uneven) {
        notes.push("The classes have different numbers of test images. Balanced accuracy (mean of the classes' accuracies) and macro F1 (mean of the classes' F1 scores) count each class the same.".to_owned());
    }
    let untested =
        experiment.evaluations().map(Evaluation::untested).find(|names| !names.is_empty());
    if let Some(untested) = untested {
        notes.push(format!(
            "Balanced accuracy leaves out the classes without test images: {}.",
            text::plain(&untested.join(", "))
        ));
    }
    notes.extend(flipped(experiment));
    notes.extend(extended(experiment));
    if experiment.dataset.name == "cifar10" {
        notes.push("Lecture and tutorial: accuracies in % that the source printed; the tutorial's from two releases, one seed each.".to_owned());
    }
    if experiment.dataset.name == "synthetic" {
        notes.push("Synthetic pictures are drawn by program so that everything runs without a download; these figures say nothing about CIFAR-10.".to_owned());
    }
    notes
}

/// What test-time flipping gives, which no figure of the table contains.
fn flipped(experiment: &Experiment) -> Option<String> {
    let of = |arm: &Arm| {
        let values = arm.known(Run::test_flip_accuracy)?;
        Some(format!("{} {} %", text::plain(&arm.name), percent_spread(&values)))
    };
    let known: Vec<String> = experiment.arms.iter().filter_map(of).collect();
    (!known.is_empty()).then(|| {
        format!(
            "With test-time flipping (the mean of the logits of each test image and of its mirror image, two forward passes), beside the figures of the table: {}.",
            known.join(", ")
        )
    })
}

/// A sentence for each run that was trained on for more epochs than it was started for.
fn extended(experiment: &Experiment) -> Vec<String> {
    let seeds = experiment.seeds.len() > 1;
    let runs = experiment.arms.iter().flat_map(|arm| &arm.runs);
    let sentence = |run: &Run| {
        let first = run.extensions.first()?;
        let seed = if seeds { format!(", seed {},", run.start.seed) } else { String::new() };
        let steps = run.extensions.iter().map(|extension| extension.to.to_string());
        let steps = steps.collect::<Vec<_>>().join(", then to ");
        let begun = run.start.version.as_deref().unwrap_or("of an early version");
        let other = run.extensions.iter().find(|extension| extension.version != begun);
        let exact = match other {
            None => {
                "from its last checkpoint, which gives what training without a stop gives".into()
            }
            Some(other) => format!(
                "by kd {}; it was begun by kd {begun}, so neither version alone need give the same figures",
                other.version
            ),
        };
        Some(format!(
            "{}{seed} was started for {} epochs and trained on to {steps} {exact}.",
            run.start.run, first.from
        ))
    };
    runs.filter_map(sentence).collect()
}

/// In points, for the student and its distilled twin.
fn noise(experiment: &Experiment) -> Option<f64> {
    let (distilled, student) = (experiment.distilled()?, experiment.student()?);
    let a = distilled.first().test_accuracy();
    let b = student.first().test_accuracy();
    Some(100.0 * statistics::difference_noise(a, b, experiment.dataset.test as u64))
}
