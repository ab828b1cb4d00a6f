//! What sections are made of.

use minijinja::Value;
use serde::Serialize;

use crate::charts;
use crate::experiment::{Arm, Experiment};

/// A run name with its place in colours and legends, unique over all experiments of the page.
pub(crate) struct Shown<'a> {
    pub(crate) experiment: &'a Experiment,
    pub(crate) arm: &'a Arm,
    pub(crate) label: String,
    pub(crate) slot: usize,
}

#[derive(Serialize, Default)]
pub(crate) struct Section {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) intro: Vec<String>,
    pub(crate) legend: Vec<Key>,
    /// Three to a row where there is room, in place of two.
    pub(crate) small: bool,
    pub(crate) figures: Vec<Figure>,
    /// What the soft targets' slider shows, which is that section's own.
    pub(crate) soft: Option<Value>,
    pub(crate) tables: Vec<Table>,
    /// The tables stand before the figures.
    pub(crate) tables_first: bool,
    /// The tables hold numbers, which stand on the right.
    pub(crate) numeric: bool,
}

#[derive(Serialize)]
pub(crate) struct Key {
    pub(crate) mark: Value,
    pub(crate) label: String,
}

#[derive(Serialize, Default)]
pub(crate) struct Figure {
    pub(crate) title: String,
    pub(crate) legend: Vec<Key>,
    pub(crate) svg: Value,
    pub(crate) numbers: Table,
    /// Shows the numbers at once.
    pub(crate) open: bool,
    /// The numbers as text, where a table would have thousands of cells.
    pub(crate) csv: Option<String>,
}

#[derive(Serialize, Default)]
pub(crate) struct Table {
    pub(crate) caption: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

pub(crate) fn unique(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for text in texts {
        if !kept.contains(&text) {
            kept.push(text);
        }
    }
    kept
}

pub(crate) fn safe(svg: String) -> Value {
    Value::from_safe_string(svg)
}

pub(crate) fn key(slot: usize, label: &str) -> Key {
    Key { mark: safe(charts::legend_key(slot)), label: label.to_owned() }
}

pub(crate) fn legend<'a>(shown: impl Iterator<Item = &'a Shown<'a>>) -> Vec<Key> {
    shown.map(|shown| key(shown.slot, &shown.label)).collect()
}
