//! How good the students' teachers are on the images that they teach with.

use kd_record::roles::WeightsSource;

use crate::experiment::Run;
use crate::format::{grouped, percent};
use crate::page::parts::{Section, Shown, Table};

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
    let row = |shown: &Shown<'_>, run: &Run| {
        let quality = run.teacher?;
        let (label, seed) = (shown.label.clone(), run.start.seed.to_string());
        let entropy = format!("{:.3}", quality.entropy);
        let roles = run.start.roles();
        let teachers = roles.teachers().map(WeightsSource::shown).collect::<Vec<_>>().join(" + ");
        let images = grouped(quality.images as u64);
        Some(vec![label, teachers, seed, images, percent(quality.accuracy), entropy])
    };
    let rows: Vec<_> = shown
        .iter()
        .flat_map(|shown| shown.arm.runs.iter().filter_map(move |run| row(shown, run)))
        .collect();
    let classes = shown.iter().find_map(|shown| shown.arm.confusion().map(|(c, _)| c.len()));
    let most = classes.map_or(String::new(), |classes| {
        format!(" A teacher that knows nothing has {:.3} (ln {classes}).", (classes as f64).ln())
    });
    let head = ["Run", "Teacher", "Seed", "Images", "Teacher accuracy %", "Entropy, nats"]
        .map(str::to_owned);
    (!rows.is_empty()).then(|| Section {
        id: "teachers",
        title: "How good the teachers are on the training images",
        numeric: true,
        intro: vec![format!(
            "On the images that each student learns from: its teacher's accuracy, and the mean entropy of the teacher's softmax. The nearer these are to 100 % and to 0, the less its soft targets say beyond the labels.{most}"
        )],
        tables: vec![Table { head: head.to_vec(), rows, ..Table::default() }],
        ..Section::default()
    })
}
