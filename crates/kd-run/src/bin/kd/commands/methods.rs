//! `kd methods`: every distillation method with its options.

use std::fmt::Write;

use anyhow::Context;
use clap::Args;
use kd_loss::{Kind, METHODS, MethodConfig, MethodInfo};
use serde_json::{Value, json};

use super::print;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct Methods {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(flags: &Methods) -> Result<(), Failure> {
    Ok(print(&list(flags.json)?)?)
}

/// The list as text, or as JSON.
fn list(as_json: bool) -> anyhow::Result<String> {
    let methods: Vec<Method> = METHODS.iter().map(Method::new).collect::<anyhow::Result<_>>()?;
    if as_json {
        let all: Vec<Value> = methods.iter().map(Method::json).collect();
        return Ok(serde_json::to_string_pretty(&all)? + "\n");
    }
    let mut text = String::new();
    for (kind, title) in [
        (Kind::Response, "Knowledge in responses (logits)"),
        (Kind::Feature, "Knowledge in features"),
        (Kind::Relation, "Knowledge in relations"),
        (Kind::Control, "Controls, without a teacher"),
    ] {
        writeln!(text, "{title}")?;
        for method in methods.iter().filter(|method| method.info.about.kind == kind) {
            method.write(&mut text)?;
        }
        text.push('\n');
    }
    text.push_str(
        "weight and labels are what the method and the cross-entropy with the labels are multiplied with where nothing else is said; whose numbers these and the\n",
    );
    text.push_str("options' defaults are, and where kd departs from them, stands below them.\n");
    text.push_str("In a recipe, a method is a table [[run.method]] with name, weight, warmup (share of the epochs), decay (none, linear, cosine)\n");
    text.push_str("and the options above; recipes/methods/ has an example of each.\n");
    Ok(text)
}

struct Method {
    info: &'static MethodInfo,
    /// Each option's name, meaning and default.
    options: Vec<(&'static str, &'static str, Value)>,
}

impl Method {
    fn new(info: &'static MethodInfo) -> anyhow::Result<Self> {
        let defaults = serde_json::to_value(MethodConfig::from_name(info.name)?)
            .context("a method's options can't be written as JSON")?;
        // A written recipe leaves out a switch that is off, and a feature place that is chosen automatically.
        let default = |name: &str| match name {
            "standardize" => Value::Bool(false),
            _ => defaults[name].clone(),
        };
        let options = info.about.options.iter();
        let options = options.map(|&(name, meaning)| (name, meaning, default(name))).collect();
        Ok(Self { info, options })
    }

    fn json(&self) -> Value {
        let about = &self.info.about;
        let options: Vec<Value> = self
            .options
            .iter()
            .map(|(name, summary, default)| json!({ "name": name, "summary": summary, "default": default }))
            .collect();
        json!({
            "name": self.info.name,
            "kind": about.kind,
            "across_images": about.across_images,
            "summary": about.summary,
            "paper": about.paper,
            "weight": about.weight,
            "labels": about.labels,
            "source": about.source,
            "options": options,
        })
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let about = &self.info.about;
        writeln!(text, "  {}: {} ({})", self.info.name, about.summary, about.paper)?;
        writeln!(text, "      weight {}, labels {}", about.weight, about.labels)?;
        for (name, meaning, default) in &self.options {
            write!(text, "      {name}: {meaning}")?;
            if !default.is_null() {
                write!(text, " [default: {default}]")?;
            }
            text.push('\n');
        }
        writeln!(text, "      from {}", about.source)?;
        Ok(())
    }
}
