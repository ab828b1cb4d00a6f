//! The losses and gradients of cases that a file describes, for comparing kd-loss with another implementation.
//!
//! ```text
//! cargo run -p kd-loss --example losses_of_file -- cases.json inputs.safetensors outputs.safetensors
//! ```
//!
//! `cases.json` is a list of cases, each with a name, the method as a recipe's table has it, and what the loss is multiplied by
//! before its gradient is taken:
//!
//! ```text
//! [{"name": "dist 3", "method": {"name": "dist", "temperature": 4.0}, "upstream": 1.75}]
//! ```
//!
//! The tensors of a case are `<case>/student_logits`, `<case>/teacher_logits` `[B, C]`, `<case>/labels` (i64 `[B]`),
//! `<case>/student/<place>`, `<case>/teacher/<place>` and `<case>/helper/<name>`. For each case the program writes
//! `<case>/loss`, and `<case>/gradient/<tensor>` for every tensor of the student and every helper that has one.
//! `parity/peers.py` is its caller.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use kd_loss::{Inputs, MethodConfig, Setup, build};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    method: MethodConfig,
    upstream: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let [cases, inputs, outputs] = &files[..] else {
        return Err(
            "expected three files: cases.json inputs.safetensors outputs.safetensors".into()
        );
    };
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(cases)?)?;
    let tensors = candle_core::safetensors::load(inputs, &Device::Cpu)?;
    let mut found = HashMap::new();
    for case in &cases {
        let prefix = format!("{}/", case.name);
        let of_case = tensors
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor)));
        let values = evaluate(case, of_case.collect())
            .map_err(|error| format!("case {}: {error}", case.name))?;
        found.extend(values.into_iter().map(|(name, tensor)| (prefix.clone() + &name, tensor)));
    }
    candle_core::safetensors::save(&found, outputs)?;
    Ok(())
}

/// The loss of a case, and the gradients of what can learn, by name.
fn evaluate(
    case: &Case,
    tensors: BTreeMap<String, &Tensor>,
) -> Result<Vec<(String, Tensor)>, Box<dyn Error>> {
    let get = |name: &str| tensors.get(name).copied().ok_or(format!("there is no tensor {name}"));
    let learns = |name: &str| name.starts_with("student") || name.starts_with("helper/");
    let mut vars = BTreeMap::new();
    for (name, tensor) in tensors.iter().filter(|(name, _)| learns(name)) {
        vars.insert(name.clone(), Var::from_tensor(tensor)?);
    }
    let below = |folder: &str| -> BTreeMap<String, Tensor> {
        let tensor = |name: &str| match vars.get(name) {
            Some(var) => var.as_tensor().clone(),
            None => tensors[name].clone(),
        };
        let names = tensors.keys().filter_map(|name| Some((name, name.strip_prefix(folder)?)));
        names.map(|(name, short)| (short.to_owned(), tensor(name))).collect()
    };
    let (student, teacher, helpers) = (below("student/"), below("teacher/"), below("helper/"));
    let logits = vars.get("student_logits").ok_or("there is no tensor student_logits")?;
    let shapes = |features: &BTreeMap<String, Tensor>| {
        features.iter().map(|(place, map)| (place.clone(), map.dims()[1..].to_vec())).collect()
    };
    let setup = Setup {
        student: shapes(&student),
        teacher: shapes(&teacher),
        classes: logits.dims()[1],
        train_labels: Vec::new(),
    };
    let vb = VarBuilder::from_tensors(helpers.into_iter().collect(), logits.dtype(), &Device::Cpu);
    let method = build(&case.method.resolve(&setup)?, &setup, vb)?;
    let labels = get("labels")?.to_dtype(DType::U32)?;
    let inputs = Inputs {
        teacher_logits: Some(get("teacher_logits")?),
        student_features: &student,
        teacher_features: &teacher,
        ..Inputs::new(logits, &labels)
    };
    let loss = method.loss(&inputs)?;
    let gradients = (&loss * case.upstream)?.backward()?;
    let mut found = vec![("loss".to_owned(), loss)];
    for (name, var) in &vars {
        if let Some(gradient) = gradients.get(var) {
            found.push((format!("gradient/{name}"), gradient.contiguous()?));
        }
    }
    Ok(found)
}
