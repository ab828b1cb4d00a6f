//! Which classes gain from distillation.

use kd_record::Evaluation;

use crate::charts::{self, Dot, DotRow};
use crate::experiment::{Arm, Run};
use crate::format::{percent, signed};
use crate::page::parts::{Figure, Shown, Table, legend, safe};
use crate::statistics;

/// One figure for each experiment.
pub(crate) fn figures(shown: &[Shown<'_>]) -> Vec<Figure> {
    let same = |a: &Shown<'_>, b: &Shown<'_>| std::ptr::eq(a.experiment, b.experiment);
    let of_one = shown.chunk_by(same);
    of_one.filter_map(figure).collect()
}

fn figure(shown: &[Shown<'_>]) -> Option<Figure> {
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
            values.get(class).copied().flatten()
        };
        let gains = arm.paired(experiment.alone(arm)?, value);
        Some(100.0 * statistics::mean(&gains)?)
    };
    let headline = experiment.distilled()?;
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by(|a, b| {
        // Classes without test images come last.
        let of = |class| gain(headline, class).unwrap_or(f64::NEG_INFINITY);
        of(*b).total_cmp(&of(*a))
    });

    let mut numbers =
        Table { head: vec!["Class".to_owned(), format!("{} %", alone.name)], ..Table::default() };
    for shown in &distilled {
        numbers.head.push(format!("{} %", shown.arm.name));
        numbers.head.push("gain".to_owned());
    }
    let tested = order.iter().filter(|class| accuracy(alone, **class).is_some()).count();
    let mut rows = Vec::new();
    for (place, class) in order.iter().copied().enumerate() {
        let known = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), percent);
        let mut row = vec![names[class].clone(), known(accuracy(alone, class))];
        let mut dots = Vec::new();
        for shown in &distilled {
            let points = gain(shown.arm, class);
            row.push(known(accuracy(shown.arm, class)));
            row.push(points.map_or_else(|| "none".to_owned(), |points| signed(points, 2)));
            dots.extend(points.map(|points| Dot {
                slot: shown.slot,
                value: points,
                spread: None,
                title: format!("{}, {}: {} points", names[class], shown.label, signed(points, 2)),
                faint: false,
            }));
        }
        numbers.rows.push(row);
        // A class without test images has no gain to draw.
        let at_an_end = place < DRAWN / 2 || place + DRAWN / 2 >= tested;
        if place < tested && (names.len() <= DRAWN || at_an_end) {
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

/// Accuracy of a class, mean over the seeds; `None` without test images of it.
fn accuracy(arm: &Arm, class: usize) -> Option<f64> {
    let value = |evaluation: &Evaluation| evaluation.per_class_accuracy.get(class).copied()?;
    let evaluations = arm.runs.iter().filter_map(|run| run.evaluation.as_ref());
    let values: Vec<f64> = evaluations.filter_map(value).collect();
    statistics::mean(&values)
}
