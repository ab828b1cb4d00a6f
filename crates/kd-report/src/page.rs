//! The HTML page: which sections stand in it, in order. `page/page.html` lays it out.

pub(crate) mod parts;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::Serialize;

use crate::Result;
use crate::experiment::Experiment;
use crate::format::dataset_title;
use crate::notes;
use crate::sections::{
    agreement, calibration, comparison, confusion, curves, gain, headline, loss_parts, machine,
    profile, recipe, runs, skipped, soft_targets, teachers,
};
use parts::{Section, Shown, Table, unique};

#[derive(Serialize)]
struct Page {
    title: String,
    css: Value,
    script: Value,
    groups: Vec<headline::Group>,
    runs: Table,
    notes: Vec<String>,
    sections: Vec<Section>,
    recipes: Vec<RecipeText>,
    version: &'static str,
}

#[derive(Serialize)]
struct RecipeText {
    label: String,
    text: String,
}

/// The page for one experiment, or for several side by side.
pub(crate) fn render(experiments: &[Experiment]) -> Result<String> {
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
        comparison::section(experiments),
        gain::section(&shown),
        curves::section(&shown),
        confusion::section(&shown),
        calibration::section(&shown),
        agreement::section(&shown),
        soft_targets::section(&shown),
        loss_parts::section(&shown),
        teachers::section(&shown),
        profile::section(experiments),
        recipe::section(&shown),
        skipped::section(experiments),
        machine::section(&shown),
    ];
    let first = experiments.first();
    let page = Page {
        title: match first {
            Some(first) if !several && first.dataset.name == "synthetic" => {
                "Distillation on synthetic pictures".to_owned()
            }
            Some(first) if !several => {
                format!("Distillation on {}", dataset_title(&first.dataset.name))
            }
            _ => "Distillations compared".to_owned(),
        },
        css: Value::from_safe_string(include_str!("page/page.css").to_owned()),
        script: Value::from_safe_string(include_str!("page/page.js").to_owned()),
        groups: experiments
            .iter()
            .map(|experiment| headline::group(experiment, &shown, several))
            .collect(),
        runs: runs::table(&shown),
        notes: unique(experiments.iter().flat_map(notes::notes)),
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
    environment.add_template("page.html", include_str!("page/page.html"))?;
    Ok(environment.get_template("page.html")?.render(Serde(&page))?)
}
