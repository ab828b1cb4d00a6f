//! What an experiment found, in a few sentences: the page begins with them, and the terminal where there is a run called "best".

use crate::experiment::{Arm, Experiment, Run};
use crate::format::{grouped, points_spread};
use crate::statistics;

/// The answer in a few sentences: what the best way of teaching gained, if there is a run called "best", then what the tutorial's
/// soft targets gained.
pub(crate) fn findings(experiment: &Experiment) -> Vec<String> {
    let mut sentences = best(experiment);
    let led = !sentences.is_empty();
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
    if let (Some(student), Some(distilled)) = (experiment.student(), experiment.distilled())
        && let Some((gains, more)) = gained(student, distilled)
    {
        let name = &distilled.name;
        sentences.push(match led {
            false => format!(
                "Alone the student reaches {}; taught with {name} it reaches {}, {more} alone.",
                accuracy(student),
                accuracy(distilled)
            ),
            true => format!(
                "Taught with {name}, as in the lecture, it reaches {}, {more} alone.",
                accuracy(distilled)
            ),
        });
        sentences.push(verdict(experiment, student, distilled, &gains));
    }
    sentences
}

/// What the run called "best" gained, by what method; nothing where there is none.
pub(crate) fn best(experiment: &Experiment) -> Vec<String> {
    let Some((best, alone)) =
        experiment.best().and_then(|best| Some((best, experiment.alone(best)?)))
    else {
        return Vec::new();
    };
    let Some((gains, more)) = gained(alone, best) else { return Vec::new() };
    let roles = best.roles();
    let methods: Vec<&str> = roles.methods.iter().map(|method| method.name.as_str()).collect();
    let teacher = experiment.teacher_of(best).map_or_else(String::new, |teacher| {
        format!(
            ", by {} with {} parameters and {}",
            teacher.name,
            grouped(teacher.first().start.parameters as u64),
            accuracy(teacher)
        )
    });
    vec![
        format!(
            "Taught in the best way that kd knows for it ({}{teacher}), the student reaches {}, {more} alone ({}).",
            methods.join(" + "),
            accuracy(best),
            accuracy(alone)
        ),
        verdict(experiment, alone, best, &gains),
    ]
}

fn accuracy(arm: &Arm) -> String {
    format!("{:.1} %", 100.0 * arm.mean(Run::test_accuracy))
}

/// The differences in test accuracy, one for each common seed, and their mean in words that end in "than" or "as".
fn gained(alone: &Arm, taught: &Arm) -> Option<(Vec<f64>, String)> {
    let gains = taught.paired(alone, |run| Some(run.test_accuracy()));
    let points = 100.0 * statistics::mean(&gains)?;
    let more = match points {
        _ if points.abs() < 0.05 => "about the same as".to_owned(),
        _ if points > 0.0 => format!("{points:.1} points more than"),
        _ => format!("{:.1} points fewer than", -points),
    };
    Some((gains, more))
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
