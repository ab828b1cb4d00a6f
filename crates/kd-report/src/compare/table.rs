//! The comparison as a table: for `kd report`, for the terminal, and in Markdown.

use kd_record::Comparison;

use super::document::{Arm, Figures};
use super::figure::Figure;
use super::published::Published;
use super::statistics::{Sample, gap_closed, sample, sign_flip_p};
use crate::{Error, Result};

/// What the arms are set beside.
#[derive(Clone, Copy, Debug, Default)]
pub struct Baselines<'a> {
    /// The student on the labels alone; found by itself where that is clear.
    pub alone: Option<&'a str>,
    /// The student with KD.
    pub kd: Option<&'a str>,
    /// What the gap is closed towards.
    pub teacher: Option<&'a str>,
}

/// Makes the table of one figure of the runs. Arms come in the document's order, teachers first.
///
/// Where figures were published of arms, the table of the accuracy has two columns more: the best epoch on the test images, and the
/// published figure; an arm with one that was not run has a row that says so.
///
/// # Errors
/// When a baseline that was asked for is no arm, or a run has no such figure.
pub fn table(figures: &Figures, baselines: &Baselines<'_>, figure: Figure) -> Result<Comparison> {
    if let Some(run) = figures.runs.iter().find(|run| figure.of(run).is_none()) {
        return Err(Error::Comparison(format!(
            "{} with seed {} has no {}, which versions of kd before 0.3 did not record; give the recipes and another --json: the figures of runs that are at hand are then read anew from their folders",
            run.arm,
            run.seed,
            figure.title()
        )));
    }
    let named = |name: Option<&str>, found: Option<&'_ Arm>| match name {
        Some(name) => match figures.arms.iter().find(|arm| arm.name == name) {
            Some(arm) => Ok(Some(arm.name.clone())),
            None => {
                let known: Vec<_> = figures.arms.iter().map(|arm| arm.name.as_str()).collect();
                let found = format!("{name}: no such arm; the arms are {}", known.join(", "));
                Err(Error::Comparison(found))
            }
        },
        None => Ok(found.map(|arm| arm.name.clone())),
    };
    let alone = |arm: &&Arm| !arm.teaches && arm.method.is_none();
    let alone = named(baselines.alone, figures.arms.iter().find(alone))?;
    let is_kd = |arm: &&Arm| !arm.teaches && arm.method.as_deref() == Some("kd");
    let by_name = figures.arms.iter().filter(is_kd).find(|arm| arm.name == "kd");
    let kd = named(baselines.kd, by_name.or(figures.arms.iter().find(is_kd)))?;
    // Of several teachers the one with the most pupils is not known here; the first is what recipes mean.
    let teacher = named(baselines.teacher, figures.arms.iter().find(|arm| arm.teaches))?;

    let by_seed = |name: &str| -> Vec<(u64, f64)> {
        let runs = figures.runs.iter().filter(|run| run.arm == name);
        runs.filter_map(|run| Some((run.seed, 100.0 * figure.of(run)?))).collect()
    };
    let mean_on = |name: &Option<String>, seeds: &[u64]| {
        let values = by_seed(name.as_deref()?);
        let values: Option<Vec<f64>> = seeds
            .iter()
            .map(|seed| values.iter().find(|(other, _)| other == seed).map(|(_, value)| *value))
            .collect();
        Some(sample(&values?)?.mean)
    };

    let mut rows = Vec::new();
    let mut arms: Vec<&Arm> = figures.arms.iter().collect();
    arms.sort_by_key(|arm| !arm.teaches);
    let says = figures.runs.iter().any(|run| run.teacher.is_some());
    let shows =
        figure == Figure::Accuracy && figures.arms.iter().any(|arm| arm.published.is_some());
    for arm in arms {
        let values = by_seed(&arm.name);
        let accuracies: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
        let Some(all) = sample(&accuracies) else {
            if let Some(published) = arm.published.as_ref().filter(|_| shows) {
                rows.push(not_run(&arm.name, published, says));
            }
            continue;
        };
        let mut row =
            vec![arm.name.clone(), all.count.to_string(), mean(&all), interval(&all, false)];
        if shows {
            row.extend([best_epochs(figures, &arm.name), published_cell(arm)]);
        }
        for other in [&alone, &kd] {
            let beside = other.as_deref().filter(|other| *other != arm.name && !arm.teaches);
            let differences: Vec<f64> = beside.map_or_else(Vec::new, |other| {
                let others = by_seed(other);
                let twin = |seed| others.iter().find(|(other, _)| *other == seed);
                values.iter().filter_map(|(seed, value)| Some(value - twin(*seed)?.1)).collect()
            });
            match (sample(&differences), sign_flip_p(&differences)) {
                (Some(found), Some(p)) => {
                    let missing = if found.count < all.count {
                        format!(" ({} seeds)", found.count)
                    } else {
                        String::new()
                    };
                    row.push(format!("{:+.2} {}{missing}", found.mean, interval(&found, true)));
                    row.push(format!("{p:.3}"));
                }
                _ => row.extend([String::new(), String::new()]),
            }
        }
        let seeds: Vec<u64> = values.iter().map(|(seed, _)| *seed).collect();
        let gap = match (mean_on(&alone, &seeds), mean_on(&teacher, &seeds)) {
            (Some(alone), Some(teacher)) if !arm.teaches => gap_closed(all.mean, alone, teacher),
            _ => None,
        };
        row.push(gap.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share)));
        if says {
            row.push(teacher_says(figures, &arm.name));
        }
        rows.push(row);
    }

    let beside = |name: &Option<String>, otherwise: &str| {
        name.as_deref().map_or(otherwise.to_owned(), str::to_owned)
    };
    let (alone_title, kd_title) = (beside(&alone, "labels alone"), beside(&kd, "kd"));
    let value = format!("{}, %", figure.title());
    let mut head: Vec<String> = ["arm", "seeds", &value, "95 % interval"].map(str::to_owned).into();
    if shows {
        head.extend([format!("best epoch on {}, %", images(figures)), "published, %".into()]);
    }
    head.extend([format!("− {alone_title}"), "p".into(), format!("− {kd_title}"), "p".into()]);
    head.push("gap closed".into());
    if says {
        head.push("teacher right, entropy".into());
    }
    let mut notes = notes(figures, figure, says);
    if shows {
        notes.extend(notes_on_published(figures));
    }
    Ok(Comparison { title: title(figures), head, rows, notes })
}

/// `69.57 ± 0.41`, or of one value the value alone.
fn mean(sample: &Sample) -> String {
    match sample.deviation {
        Some(deviation) => format!("{:.2} ± {deviation:.2}", sample.mean),
        None => format!("{:.2}", sample.mean),
    }
}

/// What the runs were tested on.
fn images(figures: &Figures) -> &'static str {
    match figures.dataset.as_ref().is_some_and(|dataset| dataset.held_out) {
        true => "the held-out images",
        false => "the test images",
    }
}

/// The mean over an arm's seeds of the highest accuracy that an epoch had.
fn best_epochs(figures: &Figures, arm: &str) -> String {
    let runs = figures.runs.iter().filter(|run| run.arm == arm);
    let best = runs.filter_map(|run| run.test_accuracy.iter().copied().reduce(f64::max));
    let best: Vec<f64> = best.map(|share| 100.0 * share).collect();
    sample(&best).map_or_else(String::new, |best| mean(&best))
}

fn published_cell(arm: &Arm) -> String {
    arm.published.as_ref().map_or_else(String::new, Published::cell)
}

/// The row of an arm that has a published figure and none of ours.
fn not_run(name: &str, published: &Published, says: bool) -> Vec<String> {
    let mut row = vec![name.to_owned(), "0".into(), "not run".into()];
    // No interval, no best epoch.
    row.extend([String::new(), String::new()]);
    row.push(published.cell());
    // No differences and p-values, no share of the gap, nothing of its teacher.
    row.resize(row.len() + if says { 6 } else { 5 }, String::new());
    row
}

/// Sentences on the two columns: what the best epoch is worth, and where the published figures stand.
fn notes_on_published(figures: &Figures) -> Vec<String> {
    let images = images(figures);
    let mut notes = vec![format!(
        "Best epoch on {images}: the highest accuracy among a run's epochs, mean and standard deviation over the seeds. The epoch is chosen on the images that it is measured on, so this figure reads too high and is there only to be set beside published figures of that kind; the one that counts is the accuracy of the last epoch."
    )];
    let mut sources: Vec<(&str, Vec<&str>)> = Vec::new();
    for arm in &figures.arms {
        let Some(published) = &arm.published else { continue };
        match sources.iter_mut().find(|(source, _)| *source == published.source) {
            Some((_, arms)) => arms.push(&arm.name),
            None => sources.push((&published.source, vec![&arm.name])),
        }
    }
    let sources = sources.iter().map(|(source, arms)| format!("{source} ({})", arms.join(", ")));
    let sources: Vec<String> = sources.collect();
    notes.push(format!(
        "Published: {}. In parentheses the epoch that the figure is of, where its source or the code says so.",
        sources.join("; ")
    ));
    notes
}

/// `[69.12, 70.02]`
fn interval(sample: &Sample, signed: bool) -> String {
    match sample.half_width {
        Some(half) if signed => format!("[{:+.2}, {:+.2}]", sample.mean - half, sample.mean + half),
        Some(half) => format!("[{:.2}, {:.2}]", sample.mean - half, sample.mean + half),
        None => String::new(),
    }
}

fn teacher_says(figures: &Figures, arm: &str) -> String {
    let says: Vec<_> = figures
        .runs
        .iter()
        .filter(|run| run.arm == arm)
        .filter_map(|run| run.teacher.as_ref())
        .collect();
    if says.is_empty() {
        return String::new();
    }
    let mean = |of: fn(&super::document::TeacherFigures) -> f64| {
        says.iter().map(|says| of(says)).sum::<f64>() / says.len() as f64
    };
    format!("{:.1} %, {:.3}", 100.0 * mean(|says| says.accuracy), mean(|says| says.entropy))
}

fn title(figures: &Figures) -> String {
    let Some(dataset) = &figures.dataset else { return "Nothing has been run yet".into() };
    match dataset.held_out {
        true => format!(
            "{}: {} images held out of the training set (for choosing settings)",
            dataset.name, dataset.test
        ),
        false => format!("{}: {} test images", dataset.name, dataset.test),
    }
}

fn notes(figures: &Figures, figure: Figure, says: bool) -> Vec<String> {
    let mut notes = vec![
        "Mean and standard deviation over the seeds, each at the end of its run; intervals by Student's t.".to_owned(),
        "Differences are paired: with one seed all arms start from the same weights, see the same batches and drop the same units, and have the same teacher. p is of the exact two-sided sign-flip test (at least 2/2^n with n seeds), not corrected for the number of arms.".to_owned(),
        "Gap closed: (arm - labels alone) / (teacher - labels alone), of the means over the arm's seeds.".to_owned(),
    ];
    match figure {
        Figure::Accuracy => {}
        Figure::BalancedAccuracy => notes.push("Balanced accuracy: mean of the classes' accuracies, each class counting the same; classes without test images are left out.".into()),
        Figure::MacroF1 => notes.push("Macro F1: mean of the classes' F1 scores, each class counting the same; classes without test images that nothing is predicted to be are left out.".into()),
    }
    if says {
        notes.push("Teacher right, entropy: its share of right answers and the mean entropy of its softmax (nats) on the images that it teaches with.".into());
    }
    if let Some(dataset) = &figures.dataset {
        if dataset.name == "synthetic" {
            notes.push("Synthetic pictures: these figures say nothing about CIFAR-10.".into());
        }
        notes.extend(dataset.warning.iter().map(|warning| format!("{}: {warning}.", dataset.name)));
    }
    notes
}

/// The table with its columns in line.
pub fn terminal(table: &Comparison) -> String {
    let width = |column: usize| {
        let cells = std::iter::once(&table.head).chain(&table.rows);
        cells.map(|row| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.head.len()).map(width).collect();
    let mut text = format!("{}\n\n", table.title);
    for row in std::iter::once(&table.head).chain(&table.rows) {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            // Names to the left, figures to the right.
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text.push('\n');
    for note in &table.notes {
        text += note;
        text.push('\n');
    }
    text
}

/// The table in Markdown.
pub fn markdown(table: &Comparison) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = |(column, _): (usize, &String)| if column == 0 { "---" } else { "---:" };
    let rule: Vec<&str> = table.head.iter().enumerate().map(rule).collect();
    let mut text = format!("{}\n\n{}| {} |\n", table.title, line(&table.head), rule.join(" | "));
    text.extend(table.rows.iter().map(|row| line(row)));
    text.push('\n');
    text += &table.notes.join("\n\n");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::super::document::tests::{arm, dataset, run};
    use super::super::published::PublishedEpoch;
    use super::*;

    /// Three seeds: KD 0.5, 0.7, 0.9 points over labels alone, and one arm that is half done.
    fn figures() -> Figures {
        let mut figures = Figures { format: 1, ..Figures::default() };
        let path = std::path::Path::new("f");
        for arm in [
            arm("student", false, None),
            arm("kd", false, Some("kd")),
            arm("dkd", false, Some("dkd")),
            arm("teacher", true, None),
        ] {
            figures.add_arm(arm, path).unwrap();
        }
        for (seed, gain) in [(0, 0.005), (1, 0.007), (2, 0.009)] {
            let base = 0.68 + 0.001 * seed as f64;
            figures.add_run(run("student", seed, base), dataset()).unwrap();
            figures.add_run(run("kd", seed, base + gain), dataset()).unwrap();
            figures.add_run(run("teacher", seed, base + 0.028), dataset()).unwrap();
        }
        figures.add_run(run("dkd", 1, 0.69), dataset()).unwrap();
        figures
    }

    #[test]
    fn its_markdown_is_known_as_kds() {
        let table = table(&figures(), &Baselines::default(), Figure::Accuracy).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = &folder.path().join("t.md");
        std::fs::write(path, markdown(&table)).unwrap();
        let kind = kd_record::own::MARKDOWN;
        kd_record::own::Output { path, kind, others: &[], force: None }.check().unwrap();
    }

    #[test]
    fn every_figure_is_where_it_belongs() {
        let table = table(&figures(), &Baselines::default(), Figure::Accuracy).unwrap();
        let text = markdown(&table);
        let expected = [
            "| arm | seeds | accuracy, % | 95 % interval | − student | p | − kd | p | gap closed |",
            // scipy: sem([70.8, 70.9, 71.0]) * t.ppf(0.975, 2) = 0.2484.
            "| teacher | 3 | 70.90 ± 0.10 | [70.65, 71.15] |  |  |  |  |  |",
            "| student | 3 | 68.10 ± 0.10 | [67.85, 68.35] |  |  | -0.70 [-1.20, -0.20] | 0.250 | 0 % |",
            // Accuracies 68.5, 68.8, 69.1; differences 0.5, 0.7, 0.9 with half width 0.4968.
            "| kd | 3 | 68.80 ± 0.30 | [68.05, 69.55] | +0.70 [+0.20, +1.20] | 0.250 |  |  | 25 % |",
            // One seed: no spread; paired with the twins of that seed, 68.1 and 68.8.
            "| dkd | 1 | 69.00 |  | +0.90  | 1.000 | +0.20  | 1.000 | 32 % |",
        ];
        for line in expected {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.contains("say nothing about CIFAR-10"), "{text}");
    }

    #[test]
    fn published_figures_stand_beside_the_last_and_the_best_epoch() {
        let mut figures = figures();
        let published = |accuracy, epoch| Published { accuracy, source: "README".into(), epoch };
        for (arm, epoch) in [(1, Some(PublishedEpoch::Last)), (2, Some(PublishedEpoch::BestOnTest))]
        {
            figures.arms[arm].published = Some(published(70.66, epoch));
        }
        let mut ofd = arm("ofd", false, Some("ofd"));
        ofd.published = Some(published(70.98, None));
        figures.add_arm(ofd, std::path::Path::new("f")).unwrap();
        figures.add_arm(arm("nst", false, Some("nst")), std::path::Path::new("f")).unwrap();
        for run in figures.runs.iter_mut().filter(|run| run.arm == "kd") {
            run.test_accuracy = vec![0.1, run.accuracy + 0.01, run.accuracy];
        }
        let table_of = |figure| table(&figures, &Baselines::default(), figure);
        let text = markdown(&table_of(Figure::Accuracy).unwrap());
        for line in [
            "| 95 % interval | best epoch on the test images, % | published, % | − student |",
            "| kd | 3 | 68.80 ± 0.30 | [68.05, 69.55] | 69.80 ± 0.30 | 70.66 (last epoch) | +0.70",
            "| dkd | 1 | 69.00 |  | 69.00 | 70.66 (best epoch on test) | +0.90  |",
            "| student | 3 | 68.10 ± 0.10 | [67.85, 68.35] | 68.10 ± 0.10 |  |",
            // An arm that was not run is a row where there is a published figure, and none where there is not.
            "| ofd | 0 | not run |  |  | 70.98 |  |  |  |  |  |",
            "The epoch is chosen on the images that it is measured on",
            "Published: README (kd, dkd, ofd).",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("| nst |"), "{text}");
        // Published figures are accuracies.
        assert!(!markdown(&table_of(Figure::BalancedAccuracy).unwrap()).contains("published"));
    }

    #[test]
    fn the_terminals_columns_line_up() {
        let table = table(&figures(), &Baselines::default(), Figure::Accuracy).unwrap();
        let text = terminal(&table);
        let lines: Vec<&str> = text.lines().skip(2).take(5).collect();
        let end = |line: &str| line.find("0.").or(line.find("accuracy")).is_some();
        assert!(lines.iter().all(|line| end(line)), "{text}");
        assert!(lines[0].starts_with("arm  ") && lines[1].starts_with("teacher  "), "{text}");
    }

    #[test]
    fn baselines_can_be_named_and_must_exist() {
        let figures = figures();
        let other = Baselines { kd: Some("dkd"), ..Baselines::default() };
        assert_eq!(table(&figures, &other, Figure::Accuracy).unwrap().head[6], "− dkd");
        let wrong = Baselines { alone: Some("nobody"), ..Baselines::default() };
        let message = table(&figures, &wrong, Figure::Accuracy).unwrap_err().to_string();
        assert!(message.contains("the arms are student, kd, dkd, teacher"), "{message}");
    }

    #[test]
    fn another_figure_takes_the_place_of_the_accuracy() {
        let figures = figures();
        let table_of = |figure| table(&figures, &Baselines::default(), figure);
        let balanced = markdown(&table_of(Figure::BalancedAccuracy).unwrap());
        // Ten points below the accuracy, with the same differences.
        for line in [
            "| arm | seeds | balanced accuracy, % | 95 % interval | − student |",
            "| kd | 3 | 58.80 ± 0.30 | [58.05, 59.55] | +0.70 [+0.20, +1.20] | 0.250 |",
            "Balanced accuracy: mean of the classes' accuracies",
        ] {
            assert!(balanced.contains(line), "{line}\n{balanced}");
        }
        let message = table_of(Figure::MacroF1).unwrap_err().to_string();
        assert!(message.contains("student with seed 0 has no macro F1"), "{message}");
        assert_eq!("macro-f1".parse(), Ok(Figure::MacroF1));
        assert!("f1".parse::<Figure>().unwrap_err().contains("accuracy, balanced-accuracy"));
    }
}
