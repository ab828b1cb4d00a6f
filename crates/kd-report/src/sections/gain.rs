//! Each student with a method against the same student on the labels alone.

use crate::charts::{self, Dot, DotRow};
use crate::experiment::Run;
use crate::format::{percent, percent_spread, points_spread, signed};
use crate::page::parts::{Figure, Section, Shown, Table, safe};
use crate::sections::classes;
use crate::statistics;

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
    let mut rows = Vec::new();
    let mut numbers = Table {
        head: ["Run", "Seed", "Alone %", "With method %", "Gain, points"]
            .map(str::to_owned)
            .to_vec(),
        ..Table::default()
    };
    let (mut over_seeds, mut one_seed) = (false, false);
    for shown in shown {
        let (arm, experiment) = (shown.arm, shown.experiment);
        let (Some(alone), Some(gain)) = (experiment.alone(arm), experiment.gain(arm)) else {
            continue;
        };
        let mut dots = Vec::new();
        for run in &arm.runs {
            let same_seed = |other: &&Run| other.start.seed == run.start.seed;
            let Some(twin) = alone.runs.iter().find(same_seed) else {
                continue;
            };
            let points = 100.0 * (run.test_accuracy() - twin.test_accuracy());
            numbers.rows.push(vec![
                shown.label.clone(),
                run.start.seed.to_string(),
                percent(twin.test_accuracy()),
                percent(run.test_accuracy()),
                signed(points, 2),
            ]);
            if gain.len() > 1 {
                dots.push(Dot {
                    slot: shown.slot,
                    value: points,
                    spread: None,
                    title: format!(
                        "{}, seed {}: {}",
                        shown.label,
                        run.start.seed,
                        signed(points, 2)
                    ),
                    faint: true,
                });
            }
        }
        let spread = match statistics::standard_deviation(&gain) {
            Some(deviation) => {
                over_seeds = true;
                numbers.rows.push(vec![
                    shown.label.clone(),
                    "mean ± sd".to_owned(),
                    percent_spread(&alone.values(Run::test_accuracy)),
                    percent_spread(&arm.values(Run::test_accuracy)),
                    points_spread(&gain),
                ]);
                deviation
            }
            None => {
                one_seed = true;
                statistics::difference_noise(
                    alone.first().test_accuracy(),
                    arm.first().test_accuracy(),
                    experiment.dataset.test as u64,
                )
            }
        };
        dots.push(Dot {
            slot: shown.slot,
            value: 100.0 * statistics::mean(&gain).unwrap_or(0.0),
            spread: Some(100.0 * spread),
            title: format!("{}: {} points", shown.label, points_spread(&gain)),
            faint: false,
        });
        rows.push(DotRow { label: shown.label.clone(), dots });
    }
    if rows.is_empty() {
        return None;
    }
    let mut intro = vec![
        "Test accuracy minus that of the same student trained on the labels alone.".to_owned(),
    ];
    if over_seeds {
        intro.push("Over seeds: small marks are single seeds, the large one their mean, the bar one standard deviation either way.".to_owned());
    }
    if one_seed {
        intro.push("One seed: the bar is what the choice of test images alone can do (95 %); where it crosses zero, this seed shows no difference.".to_owned());
    }
    let mut figures = vec![Figure {
        title: "Gain in test accuracy".to_owned(),
        svg: safe(charts::dot_plot(
            "Gain in test accuracy of each student with a method over the student alone, in percentage points",
            "percentage points",
            &rows,
            false,
        )),
        numbers,
        open: true,
        ..Figure::default()
    }];
    figures.extend(classes::figures(shown));
    if figures.len() > 1 {
        intro.push("Per class: the share of its test images recognised, minus the same for the student alone. A class has few images, so single classes scatter more than the whole.".to_owned());
    }
    Some(Section {
        id: "gain",
        title: "What the teacher's help was worth",
        intro,
        figures,
        ..Section::default()
    })
}
