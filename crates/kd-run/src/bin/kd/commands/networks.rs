//! `kd networks`: every network that has a name, with its size and its feature places.

use std::fmt::Write;

use clap::Args;
use kd_models::{Architecture, Graph, ModelConfig};
use kd_report::format::grouped;
use serde_json::{Value, json};

use super::print;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct Networks {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(flags: &Networks) -> Result<(), Failure> {
    Ok(print(&list(flags.json)?)?)
}

/// The list as text, or as JSON.
fn list(as_json: bool) -> anyhow::Result<String> {
    let mut networks: Vec<(Architecture, Graph)> = Vec::new();
    for architecture in Architecture::all() {
        networks.push((
            architecture,
            ModelConfig::new(architecture, architecture.default_classes()).graph()?,
        ));
    }
    if as_json {
        let all: Vec<Value> = networks.iter().map(|(name, graph)| json(*name, graph)).collect();
        return Ok(serde_json::to_string_pretty(&all)? + "\n");
    }
    let mut text = String::new();
    for (architecture, graph) in &networks {
        write(&mut text, *architecture, graph)?;
    }
    text.push_str("\nParameters and multiply-adds (of the forward pass of one image) are those with these images and classes; a network takes the data's.\n");
    text.push_str("The feature places are where methods can look: --model NAME, and student and teacher in a method's options.\n");
    Ok(text)
}

fn json(architecture: Architecture, graph: &Graph) -> Value {
    let places: Vec<Value> = graph
        .places()
        .into_iter()
        .map(|place| json!({ "name": place.name, "shape": place.shape }))
        .collect();
    json!({
        "name": architecture.name(),
        "family": architecture.family(),
        "input": graph.input(),
        "classes": graph.classes(),
        "default_dropout": architecture.default_dropout(),
        "parameters": graph.parameter_count(),
        "multiply_adds": graph.multiply_adds(),
        "places": places,
    })
}

fn write(text: &mut String, architecture: Architecture, graph: &Graph) -> std::fmt::Result {
    writeln!(
        text,
        "{architecture}: family {}, images {}, {} classes, {} parameters, {} multiply-adds",
        architecture.family(),
        sides(&graph.input()),
        grouped(graph.classes() as u64),
        grouped(graph.parameter_count() as u64),
        grouped(graph.multiply_adds())
    )?;
    let place = |place: kd_models::Place| format!("{} {}", place.name, sides(&place.shape));
    let places: Vec<String> = graph.places().into_iter().map(place).collect();
    writeln!(text, "    places: {}", places.join(", "))
}

/// `[3, 32, 32]` as 3x32x32.
fn sides(shape: &[usize]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}
