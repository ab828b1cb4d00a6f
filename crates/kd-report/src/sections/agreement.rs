//! How far the students predict what their teacher predicts.

use crate::charts::{self, StackedRow};
use crate::experiment::{Experiment, Run};
use crate::format::grouped;
use crate::format::percent;
use crate::page::parts::{Figure, Key, Section, Shown, Table, safe};
use crate::softmax::{argmax, divergence};
use crate::statistics;

/// Test images by what teacher and student predict.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
struct Counts {
    both_right: u64,
    same_mistake: u64,
    other_mistakes: u64,
    teacher_alone_right: u64,
    student_alone_right: u64,
    /// KL(teacher || student) at temperature 1 in nats, summed over the images.
    divergence: f64,
}

const PARTS: [(&str, &str); 5] = [
    ("both correct", "a0"),
    ("the same mistake", "a1"),
    ("only the student correct", "a2"),
    ("only the teacher correct", "a3"),
    ("different mistakes", "a4"),
];

impl Counts {
    fn of(experiment: &Experiment, run: &Run) -> Option<Counts> {
        let outputs = run.outputs.as_ref()?;
        let teacher = experiment.teacher_logits(run)?;
        let mut counts = Counts::default();
        let teacher = teacher.chunks_exact(outputs.classes.max(1));
        for ((student, label), teacher) in outputs.rows().zip(teacher) {
            let (said, taught) = (argmax(student), argmax(teacher));
            let count = match (taught == label, said == label) {
                (true, true) => &mut counts.both_right,
                (true, false) => &mut counts.teacher_alone_right,
                (false, true) => &mut counts.student_alone_right,
                (false, false) if said == taught => &mut counts.same_mistake,
                (false, false) => &mut counts.other_mistakes,
            };
            *count += 1;
            counts.divergence += divergence(teacher, student);
        }
        Some(counts)
    }

    /// In the order of [`PARTS`].
    fn parts(&self) -> [u64; 5] {
        [
            self.both_right,
            self.same_mistake,
            self.student_alone_right,
            self.teacher_alone_right,
            self.other_mistakes,
        ]
    }

    fn images(&self) -> f64 {
        self.parts().iter().sum::<u64>().max(1) as f64
    }

    /// Share of the images with the teacher's prediction, correct or wrong.
    fn agreement(&self) -> f64 {
        (self.both_right + self.same_mistake) as f64 / self.images()
    }

    /// Of the teacher's mistakes, those that the student makes too; `None` where the teacher makes none.
    fn mistakes_shared(&self) -> Option<f64> {
        let all = self.same_mistake + self.other_mistakes + self.student_alone_right;
        (all > 0).then(|| self.same_mistake as f64 / all as f64)
    }
}

/// Share of the test images on which a run predicts what its teacher predicts.
pub(crate) fn of(experiment: &Experiment, run: &Run) -> Option<f64> {
    Some(Counts::of(experiment, run)?.agreement())
}

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
    let mut rows = Vec::new();
    let mut numbers = Table { head: vec!["Run".to_owned()], ..Table::default() };
    numbers.head.extend(PARTS.map(|(name, _)| name.to_owned()));
    numbers.head.push("images".to_owned());
    let mut table = Table {
        head: ["Run", "Agreement %", "Teacher's mistakes shared %", "KL to the teacher, nats"]
            .map(str::to_owned)
            .to_vec(),
        ..Table::default()
    };
    for shown in shown {
        let counts: Vec<Counts> =
            shown.arm.runs.iter().filter_map(|run| Counts::of(shown.experiment, run)).collect();
        if counts.is_empty() {
            continue;
        }
        let spread = |scale: f64, decimals: usize, of: &dyn Fn(&Counts) -> Option<f64>| {
            let values: Vec<f64> =
                counts.iter().filter_map(|counts| Some(scale * of(counts)?)).collect();
            let Some(mean) = statistics::mean(&values) else { return "none".to_owned() };
            match statistics::standard_deviation(&values) {
                Some(deviation) => format!("{mean:.decimals$} ± {deviation:.decimals$}"),
                None => format!("{mean:.decimals$}"),
            }
        };
        table.rows.push(vec![
            shown.label.clone(),
            spread(100.0, 2, &|counts| Some(counts.agreement())),
            spread(100.0, 2, &Counts::mistakes_shared),
            spread(1.0, 4, &|counts| Some(counts.divergence / counts.images())),
        ]);
        let mut sums = [0; 5];
        for part in counts.iter().flat_map(|counts| counts.parts().into_iter().enumerate()) {
            sums[part.0] += part.1;
        }
        let images = sums.iter().sum::<u64>();
        let mut row = vec![shown.label.clone()];
        row.extend(sums.map(grouped));
        row.push(grouped(images));
        numbers.rows.push(row);
        let share = |count: u64| count as f64 / images.max(1) as f64;
        rows.push(StackedRow {
            label: shown.label.clone(),
            parts: PARTS
                .iter()
                .zip(sums)
                .map(|((name, class), count)| {
                    let title = format!(
                        "{}, {name}: {} % of the images",
                        shown.label,
                        percent(share(count))
                    );
                    (*class, share(count), title)
                })
                .collect(),
        });
    }
    let keys = PARTS
        .map(|(name, class)| Key { mark: safe(charts::swatch(class)), label: name.to_owned() });
    (!rows.is_empty()).then(|| Section {
        id: "agreement",
        title: "Agreement with the teacher",
        intro: vec![
            "Test images on which student and teacher make the same prediction, correct or wrong. A student alone agrees with it as far as both are correct and some images mislead everybody; what a distilled one has beyond that, it took from its teacher.".to_owned(),
        ],
        tables_first: true,
        numeric: true,
        tables: vec![table],
        figures: vec![Figure {
            title: "Predictions of teacher and student".to_owned(),
            legend: keys.into_iter().collect(),
            svg: safe(charts::stacked_bars(
                "Shares of the test images by the predictions of teacher and student",
                &rows,
            )),
            numbers,
            ..Figure::default()
        }],
        ..Section::default()
    })
}
