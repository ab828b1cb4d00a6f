//! The HTML page: what stands in it, in order. `page.html` lays it out.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::Serialize;

use super::charts::{self, Dot, DotRow, Point, Series};
use super::experiment::{Arm, Comparison, Epoch, Evaluation, Experiment, Run};
use super::format::{
    bytes, duration, grouped, millions, percent_spread, points_spread, rate, seeds, signed,
};
use super::soft_targets::{self, SoftTargets};
use super::{Error, agreement, calibration, source, statistics, terminal};

/// A run name with its place in colours and legends, unique over all experiments of the page.
pub(super) struct Shown<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) arm: &'a Arm,
    pub(super) label: String,
    pub(super) slot: usize,
}

#[derive(Serialize)]
struct Page {
    title: String,
    css: Value,
    script: Value,
    groups: Vec<Group>,
    runs: Table,
    notes: Vec<String>,
    sections: Vec<Section>,
    recipes: Vec<RecipeText>,
    version: &'static str,
}

/// One experiment's headline.
#[derive(Serialize)]
struct Group {
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

#[derive(Serialize, Default)]
pub(super) struct Section {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) intro: Vec<String>,
    pub(super) legend: Vec<Key>,
    /// Three to a row where there is room, in place of two.
    pub(super) small: bool,
    pub(super) figures: Vec<Figure>,
    pub(super) soft: Option<SoftTargets>,
    pub(super) tables: Vec<Table>,
    /// The tables stand before the figures.
    pub(super) tables_first: bool,
    /// The tables hold numbers, which stand on the right.
    pub(super) numeric: bool,
}

#[derive(Serialize)]
pub(super) struct Key {
    pub(super) mark: Value,
    pub(super) label: String,
}

#[derive(Serialize, Default)]
pub(super) struct Figure {
    pub(super) title: String,
    pub(super) legend: Vec<Key>,
    pub(super) svg: Value,
    pub(super) numbers: Table,
    /// Shows the numbers at once.
    pub(super) open: bool,
    /// The numbers as text, where a table would have thousands of cells.
    pub(super) csv: Option<String>,
}

#[derive(Serialize, Default)]
pub(super) struct Table {
    pub(super) caption: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

#[derive(Serialize)]
struct RecipeText {
    label: String,
    text: String,
}

/// The page for one experiment, or for several side by side.
pub(super) fn render(experiments: &[Experiment]) -> Result<String, Error> {
    let several = experiments.len() > 1;
    let pairs = experiments
        .iter()
        .flat_map(|experiment| experiment.arms.iter().map(move |arm| (experiment, arm)));
    let shown: Vec<Shown<'_>> = pairs
        .enumerate()
        .map(|(slot, (experiment, arm))| Shown {
            experiment,
            arm,
            label: if several {
                format!("{}: {}", experiment.label, arm.name)
            } else {
                arm.name.clone()
            },
            slot,
        })
        .collect();

    let sections = [
        comparison(experiments),
        gains(&shown),
        curves(&shown),
        confusions(&shown),
        calibration::section(&shown),
        agreement::section(&shown),
        soft_targets::section(&shown),
        loss_parts(&shown),
        teachers(&shown),
        settings(&shown),
        machine(&shown),
    ];
    let first = experiments.first();
    let page = Page {
        title: match first {
            Some(first) if !several && first.dataset.name == "synthetic" => {
                "Distillation on synthetic pictures".to_owned()
            }
            Some(first) if !several => format!("Distillation on {}", first.dataset.title()),
            _ => "Distillations compared".to_owned(),
        },
        css: Value::from_safe_string(include_str!("page.css").to_owned()),
        script: Value::from_safe_string(include_str!("page.js").to_owned()),
        groups: experiments.iter().map(|experiment| group(experiment, &shown, several)).collect(),
        runs: runs_table(&shown),
        notes: unique(experiments.iter().flat_map(terminal::notes)),
        sections: sections.into_iter().flatten().collect(),
        recipes: shown
            .iter()
            .map(|shown| RecipeText {
                label: shown.label.clone(),
                text: shown.arm.first().recipe_text.clone(),
            })
            .collect(),
        version: env!("CARGO_PKG_VERSION"),
    };
    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    // The name's ending turns escaping on.
    environment.add_template("page.html", include_str!("page.html"))?;
    Ok(environment.get_template("page.html")?.render(Serde(&page))?)
}

fn unique(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for text in texts {
        if !kept.contains(&text) {
            kept.push(text);
        }
    }
    kept
}

pub(super) fn safe(svg: String) -> Value {
    Value::from_safe_string(svg)
}

fn key(slot: usize, label: &str) -> Key {
    Key { mark: safe(charts::legend_key(slot)), label: label.to_owned() }
}

fn legend<'a>(shown: impl Iterator<Item = &'a Shown<'a>>) -> Vec<Key> {
    shown.map(|shown| key(shown.slot, &shown.label)).collect()
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.2}", share * 100.0)
}

fn group(experiment: &Experiment, shown: &[Shown<'_>], several: bool) -> Group {
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
            dataset.title(),
            grouped(dataset.train),
            grouped(dataset.test),
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
                "The student has {times:.1} times fewer parameters than its teacher, which is right on {} of the test images.",
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
            experiment.dataset.test,
        );
    let within = gains.iter().all(|gain| gain.abs() * 100.0 < noise);
    if within {
        format!(
            "That is within what chance alone does with one seed and {} test images (± {noise:.1} points).",
            grouped(experiment.dataset.test)
        )
    } else {
        format!(
            "The choice of {} test images alone explains at most ± {noise:.1} points of it; one seed says nothing of the spread over seeds.",
            grouped(experiment.dataset.test)
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
        value: grouped(run.start.parameters),
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
    let answers: Option<Vec<f64>> = arm.runs.iter().map(Run::answers_per_second).collect();
    if let Some(mean) = answers.and_then(|answers| statistics::mean(&answers)) {
        facts.push(Fact {
            label: "Test images/s",
            value: rate(mean),
            beside: beside(|run| Some(1.0 / run.answers_per_second()?), "faster"),
        });
    }
    Card {
        role,
        name: arm.name.clone(),
        colour: charts::colour(slot),
        accuracy: percent(arm.mean(Run::test_accuracy)),
        spread: statistics::standard_deviation(&arm.values(Run::test_accuracy)).map(percent),
        gain: terminal::gain(experiment, arm)
            .map(|gain| format!("gain {} points", points_spread(&gain))),
        facts,
    }
}

fn runs_table(shown: &[Shown<'_>]) -> Table {
    let with_source = shown.iter().any(|shown| shown.experiment.dataset.name == "cifar10");
    let mut head = vec!["Run", "Accuracy\u{a0}%", "Best epoch\u{a0}%", "Gain, points"];
    if with_source {
        head.extend(["Lecture\u{a0}%", "Tutorial\u{a0}%"]);
    }
    head.extend(["Test loss", "Parameters", "Epochs", "Time", "Images/s"]);
    let dash = || "–".to_owned();
    let row = |shown: &Shown<'_>| {
        let arm = shown.arm;
        let mut row = vec![
            shown.label.clone(),
            percent_spread(&arm.values(Run::test_accuracy)),
            percent_spread(&arm.values(Run::best_test_accuracy)),
            terminal::gain(shown.experiment, arm).map_or_else(dash, |gain| points_spread(&gain)),
        ];
        if with_source {
            let own = shown.experiment.dataset.name == "cifar10";
            let figures = source::figures(&arm.name).filter(|_| own);
            let lecture = figures.as_ref().and_then(|figures| figures.lecture);
            row.push(lecture.map_or_else(dash, str::to_owned));
            row.push(figures.map_or_else(dash, |figures| figures.tutorial.to_owned()));
        }
        row.extend([
            format!("{:.4}", arm.mean(Run::test_loss)),
            grouped(arm.first().start.parameters),
            terminal::epochs(arm),
            duration(arm.mean(Run::seconds)),
            rate(arm.mean(Run::images_per_second)),
        ]);
        row
    };
    Table {
        caption: "All runs".to_owned(),
        head: head.into_iter().map(str::to_owned).collect(),
        rows: shown.iter().map(row).collect(),
    }
}

/// The tables of `cargo xtask compare`.
fn comparison(experiments: &[Experiment]) -> Option<Section> {
    let found: Vec<_> = experiments.iter().filter_map(|e| e.comparison.as_ref()).collect();
    let table = |comparison: &&Comparison| Table {
        caption: comparison.title.clone(),
        head: comparison.head.clone(),
        rows: comparison.rows.clone(),
    };
    (!found.is_empty()).then(|| Section {
        id: "comparison",
        title: "Arms compared, seed by seed",
        numeric: true,
        intro: unique(found.iter().flat_map(|comparison| comparison.notes.clone())),
        tables: found.iter().map(table).collect(),
        ..Section::default()
    })
}

/// Each student with a method against the same student on the labels alone.
fn gains(shown: &[Shown<'_>]) -> Option<Section> {
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
        let (Some(alone), Some(gain)) = (experiment.alone(arm), terminal::gain(experiment, arm))
        else {
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
                    experiment.dataset.test,
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
    figures.extend(class_figures(shown));
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

/// One value of every run's epochs, as lines and as a table.
fn curve(
    shown: &[Shown<'_>],
    title: &str,
    unit: &str,
    decimals: usize,
    of: impl Fn(&Epoch) -> f64,
) -> Figure {
    let mut series = Vec::new();
    let mut cells: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for (column, shown) in shown.iter().enumerate() {
        let mut by_epoch: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for epoch in shown.arm.runs.iter().flat_map(|run| &run.epochs) {
            by_epoch.entry(epoch.epoch).or_default().push(of(epoch));
        }
        let mut points = Vec::new();
        for (epoch, values) in &by_epoch {
            let Some(mean) = statistics::mean(values) else {
                continue;
            };
            let spread = statistics::standard_deviation(values);
            let row = cells.entry(*epoch).or_default();
            row.resize(column, "–".to_owned());
            row.push(match spread {
                Some(spread) => format!("{mean:.decimals$} ± {spread:.decimals$}"),
                None => format!("{mean:.decimals$}"),
            });
            points.push(Point { x: *epoch as f64, y: mean, spread });
        }
        series.push(Series { label: shown.label.clone(), slot: shown.slot, points });
    }
    let mut head = vec!["Epoch".to_owned()];
    head.extend(shown.iter().map(|shown| shown.label.clone()));
    let rows = cells.into_iter().map(|(epoch, mut cells)| {
        cells.resize(shown.len(), "–".to_owned());
        cells.insert(0, epoch.to_string());
        cells
    });
    Figure {
        title: title.to_owned(),
        svg: safe(charts::line_chart(
            &format!("{title} after each epoch, a line per run"),
            unit,
            &series,
        )),
        numbers: Table { head, rows: rows.collect(), ..Table::default() },
        ..Figure::default()
    }
}

fn curves(shown: &[Shown<'_>]) -> Option<Section> {
    let several = shown.iter().any(|shown| shown.arm.runs.len() > 1);
    let mut intro = vec!["Training loss is each run's own objective, so a distilled run's is not on the scale of the others; test loss is cross-entropy for all.".to_owned()];
    if several {
        intro.push("Lines are means over the seeds, bands one standard deviation.".to_owned());
    }
    Some(Section {
        id: "curves",
        title: "Learning curves",
        intro,
        legend: legend(shown.iter()),
        small: true,
        figures: vec![
            curve(shown, "Test accuracy, %", " %", 2, |epoch| 100.0 * epoch.test_accuracy),
            curve(shown, "Test loss", "", 4, |epoch| epoch.test_loss),
            curve(shown, "Training loss", "", 4, |epoch| epoch.train_loss),
        ],
        ..Section::default()
    })
}

/// Accuracy per class, mean over the seeds.
fn class_accuracy(arm: &Arm, class: usize) -> Option<f64> {
    let value = |evaluation: &Evaluation| evaluation.per_class_accuracy.get(class).copied();
    let evaluations = arm.runs.iter().filter_map(|run| run.evaluation.as_ref());
    let values: Vec<f64> = evaluations.filter_map(value).collect();
    statistics::mean(&values)
}

/// Which classes gain from distillation: one figure per experiment.
fn class_figures(shown: &[Shown<'_>]) -> Vec<Figure> {
    let same = |a: &Shown<'_>, b: &Shown<'_>| std::ptr::eq(a.experiment, b.experiment);
    let of_one = shown.chunk_by(same);
    of_one.filter_map(class_figure).collect()
}

fn class_figure(shown: &[Shown<'_>]) -> Option<Figure> {
    /// With more classes only the ends of the order are drawn.
    const DRAWN: usize = 20;
    let experiment = shown.first()?.experiment;
    let distilled: Vec<&Shown<'_>> = shown
        .iter()
        .filter(|shown| experiment.alone(shown.arm).is_some() && shown.arm.confusion().is_some())
        .collect();
    let alone = experiment.alone(distilled.first()?.arm)?;
    let (names, _) = alone.confusion()?;
    let gain = |arm: &Arm, class: usize| {
        let value = |run: &Run| {
            let values = &run.evaluation.as_ref()?.per_class_accuracy;
            values.get(class).copied()
        };
        let gains = arm.paired(experiment.alone(arm)?, value);
        Some(100.0 * statistics::mean(&gains)?)
    };
    let headline = experiment.distilled()?;
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by(|a, b| {
        let of = |class| gain(headline, class).unwrap_or(0.0);
        of(*b).total_cmp(&of(*a))
    });

    let mut numbers =
        Table { head: vec!["Class".to_owned(), format!("{} %", alone.name)], ..Table::default() };
    for shown in &distilled {
        numbers.head.push(format!("{} %", shown.arm.name));
        numbers.head.push("gain".to_owned());
    }
    let mut rows = Vec::new();
    for (place, class) in order.iter().copied().enumerate() {
        let known = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), percent);
        let mut row = vec![names[class].clone(), known(class_accuracy(alone, class))];
        let mut dots = Vec::new();
        for shown in &distilled {
            let points = gain(shown.arm, class);
            row.push(known(class_accuracy(shown.arm, class)));
            row.push(points.map_or_else(|| "–".to_owned(), |points| signed(points, 2)));
            dots.extend(points.map(|points| Dot {
                slot: shown.slot,
                value: points,
                spread: None,
                title: format!("{}, {}: {} points", names[class], shown.label, signed(points, 2)),
                faint: false,
            }));
        }
        numbers.rows.push(row);
        if names.len() <= DRAWN || place < DRAWN / 2 || place >= names.len() - DRAWN / 2 {
            rows.push(DotRow { label: names[class].clone(), dots });
        }
    }
    let ends = if names.len() > DRAWN {
        ", the ten that gain most and the ten that gain least"
    } else {
        ""
    };
    let subject = match shown.first() {
        Some(first) if first.label != first.arm.name => {
            format!("{}: gain per class{ends}", experiment.label)
        }
        _ => format!("Gain per class{ends}"),
    };
    Some(Figure {
        svg: safe(charts::dot_plot(
            "Gain of each class from distillation, in percentage points",
            "percentage points",
            &rows,
            true,
        )),
        title: subject,
        legend: legend(distilled.into_iter()),
        numbers,
        ..Figure::default()
    })
}

fn confusions(shown: &[Shown<'_>]) -> Option<Section> {
    let mut figures = Vec::new();
    for shown in shown {
        let Some((classes, counts)) = shown.arm.confusion() else {
            continue;
        };
        let (mut numbers, mut csv) = (Table::default(), None);
        let rows = || {
            classes.iter().zip(&counts).map(|(class, row)| {
                let mut cells = vec![class.clone()];
                cells.extend(row.iter().map(u64::to_string));
                cells
            })
        };
        if classes.len() <= 20 {
            numbers.head.push("True ↓ predicted →".to_owned());
            numbers.head.extend(classes.iter().cloned());
            numbers.rows = rows().collect();
        } else {
            let mut text = format!("true,{}\n", classes.join(","));
            for row in rows() {
                text.push_str(&row.join(","));
                text.push('\n');
            }
            csv = Some(text);
        }
        figures.push(Figure {
            title: shown.label.clone(),
            svg: safe(charts::confusion_matrix(
                &format!("Confusion matrix of {}", shown.label),
                classes,
                &counts,
            )),
            numbers,
            csv,
            ..Figure::default()
        });
    }
    let several = shown.iter().any(|shown| shown.arm.runs.len() > 1);
    let mut intro = vec!["Test images by true and predicted class. Blue: right; orange: mistaken; the shade grows with the root of the share of the row.".to_owned()];
    if several {
        intro.push("Counts are summed over the seeds.".to_owned());
    }
    (!figures.is_empty()).then(|| Section {
        id: "confusion",
        title: "Confusion matrices",
        intro,
        figures,
        ..Section::default()
    })
}

fn loss_parts(shown: &[Shown<'_>]) -> Option<Section> {
    let mut figures = Vec::new();
    for shown in shown {
        let mut names: Vec<&String> = Vec::new();
        for name in shown.arm.first().epochs.iter().flat_map(|e| e.parts.keys()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if names.len() < 2 {
            continue;
        }
        // The labels' part first, in one colour on all charts.
        names.sort_by_key(|name| name.as_str() != "labels");
        let mut numbers = Table::default();
        numbers.head.push("Epoch".to_owned());
        numbers.head.extend(names.iter().map(|name| (*name).clone()));
        let part = |epoch: u64, name: &String| {
            let runs = shown.arm.runs.iter();
            let found = runs.filter_map(|run| run.epochs.iter().find(|e| e.epoch == epoch));
            let values: Vec<f64> = found.filter_map(|e| e.parts.get(name).copied()).collect();
            statistics::mean(&values)
        };
        let epochs: Vec<u64> = shown.arm.first().epochs.iter().map(|e| e.epoch).collect();
        for epoch in &epochs {
            let mut row = vec![epoch.to_string()];
            row.extend(names.iter().map(|name| {
                part(*epoch, name).map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"))
            }));
            numbers.rows.push(row);
        }
        let series: Vec<Series> = names
            .iter()
            .enumerate()
            .map(|(place, name)| Series {
                label: (*name).clone(),
                slot: if place == 0 { 0 } else { shown.slot + place - 1 },
                points: epochs
                    .iter()
                    .filter_map(|epoch| {
                        Some(Point { x: *epoch as f64, y: part(*epoch, name)?, spread: None })
                    })
                    .collect(),
            })
            .collect();
        figures.push(Figure {
            title: shown.label.clone(),
            legend: series.iter().map(|line| key(line.slot, &line.label)).collect(),
            svg: safe(charts::line_chart(
                &format!("Parts of the training loss of {} after each epoch", shown.label),
                "",
                &series,
            )),
            numbers,
            ..Figure::default()
        });
    }
    (!figures.is_empty()).then(|| Section {
        id: "loss",
        title: "Parts of the loss",
        intro: vec!["Each part as it is before its weight, mean over the epoch's batches. The recipe below gives the weights.".to_owned()],
        small: true,
        figures,
        ..Section::default()
    })
}

/// What the students' teachers say of the images that they teach with.
fn teachers(shown: &[Shown<'_>]) -> Option<Section> {
    let row = |shown: &Shown<'_>, run: &Run| {
        let says = run.teacher?;
        let (label, seed) = (shown.label.clone(), run.start.seed.to_string());
        let entropy = format!("{:.3}", says.entropy);
        Some(vec![label, seed, grouped(says.images), percent(says.accuracy), entropy])
    };
    let rows: Vec<_> = shown
        .iter()
        .flat_map(|shown| shown.arm.runs.iter().filter_map(move |run| row(shown, run)))
        .collect();
    let classes = shown.iter().find_map(|shown| shown.arm.confusion().map(|(c, _)| c.len()));
    let most = classes.map_or(String::new(), |classes| {
        format!(" A teacher that knows nothing has {:.3} (ln {classes}).", (classes as f64).ln())
    });
    let head = ["Run", "Seed", "Images", "Teacher right %", "Entropy, nats"].map(str::to_owned);
    (!rows.is_empty()).then(|| Section {
        id: "teachers",
        title: "What the teachers say of the training images",
        numeric: true,
        intro: vec![format!(
            "On the images that each student learns from: how often its teacher is right, and the mean entropy of the teacher's softmax. The nearer to 100 % and to 0, the less its answers say beyond the labels.{most}"
        )],
        tables: vec![Table { head: head.to_vec(), rows, ..Table::default() }],
        ..Section::default()
    })
}

/// The recipe: what all runs share once, then what each adds.
fn settings(shown: &[Shown<'_>]) -> Option<Section> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for run in shown.iter().flat_map(|shown| &shown.arm.runs) {
        for (name, value) in &run.recipe {
            if name != "run" && name != "format" {
                flatten(name, value, &mut values);
            }
        }
    }
    let mut shared: Vec<Vec<String>> = Vec::new();
    for (name, values) in values {
        let (part, setting) = name.split_once('.').unwrap_or(("", &name));
        let text = format!("{setting} = {}", unique(values.into_iter()).join(" / "));
        match shared.last_mut() {
            Some(row) if row[0] == part => row[1] = format!("{}; {text}", row[1]),
            _ => shared.push(vec![part.to_owned(), text]),
        }
    }
    // Settings outside any part, such as the recipe's name, come first.
    shared.sort_by_key(|row| !row[0].is_empty());
    let own = shown.iter().map(|shown| {
        let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let runs = shown.arm.first().recipe.get("run");
        let run = runs.and_then(|runs| runs.get(0));
        for (name, value) in run.and_then(toml::Value::as_table).into_iter().flatten() {
            if !["name", "model", "teacher_sha256"].contains(&name.as_str()) {
                flatten(name, value, &mut settings);
            }
        }
        let settings =
            settings.into_iter().map(|(name, values)| format!("{name} = {}", values.join(", ")));
        vec![
            shown.label.clone(),
            shown.arm.model().to_owned(),
            settings.collect::<Vec<_>>().join("; "),
        ]
    });
    Some(Section {
        id: "recipe",
        title: "Recipe",
        tables: vec![
            Table {
                caption: "Shared by the runs".to_owned(),
                head: vec!["Part".to_owned(), "Settings".to_owned()],
                rows: shared,
            },
            Table {
                caption: "Of each run".to_owned(),
                head: ["Run", "Network", "Settings"].map(str::to_owned).to_vec(),
                rows: own.collect(),
            },
        ],
        ..Section::default()
    })
}

/// Nested tables as dotted names with their values as text.
fn flatten(name: &str, value: &toml::Value, into: &mut BTreeMap<String, Vec<String>>) {
    match value {
        toml::Value::Table(table) => {
            for (inner, value) in table {
                flatten(&format!("{name}.{inner}"), value, into);
            }
        }
        toml::Value::Array(list) if list.iter().any(toml::Value::is_table) => {
            for value in list {
                flatten(name, value, into);
            }
        }
        toml::Value::String(text) => into.entry(name.to_owned()).or_default().push(text.clone()),
        // As short as it can be read back: 1e-8, not 0.00000001.
        toml::Value::Float(number) => {
            into.entry(name.to_owned()).or_default().push(format!("{number:?}"));
        }
        other => into.entry(name.to_owned()).or_default().push(other.to_string()),
    }
}

fn machine(shown: &[Shown<'_>]) -> Option<Section> {
    let starts = || shown.iter().flat_map(|s| &s.arm.runs).map(|run| &run.start);
    let lines: [(&str, Vec<String>); 5] = [
        ("Device", starts().map(|s| s.device.clone()).collect()),
        ("Machine", starts().filter_map(|s| s.machine.clone()).collect()),
        ("Threads", starts().filter_map(|s| Some(s.threads?.to_string())).collect()),
        ("kd", starts().filter_map(|s| s.version.clone()).collect()),
        ("Data, sha256 of the files", starts().map(|s| s.dataset.sha256.clone()).collect()),
    ];
    let mut rows: Vec<Vec<String>> = lines
        .into_iter()
        .map(|(name, values)| vec![name.to_owned(), unique(values.into_iter()).join(" / ")])
        .filter(|row| !row[1].is_empty())
        .collect();
    let seconds = shown.iter().flat_map(|s| &s.arm.runs).map(Run::seconds);
    rows.push(vec!["Training, all runs".to_owned(), duration(seconds.sum())]);
    Some(Section {
        id: "machine",
        title: "Machine",
        tables: vec![Table { head: vec!["".to_owned(), "".to_owned()], rows, ..Table::default() }],
        ..Section::default()
    })
}
