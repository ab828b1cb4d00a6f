//! What computed, and for how long.

use crate::experiment::Run;
use crate::format::duration;
use crate::page::parts::{Section, Shown, Table, unique};

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
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
