//! The recipe: what all runs share once, then what each adds.

use std::collections::BTreeMap;

use crate::page::parts::{Section, Shown, Table, unique};

pub(crate) fn section(shown: &[Shown<'_>]) -> Option<Section> {
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
