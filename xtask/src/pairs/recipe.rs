//! The recipe of a published pair: its teacher, its student alone, and the student by every method.

use std::fmt::Write;

use anyhow::{Context, bail};
use toml::Value;

use super::table::{Method, Network, Pair, Protocol, Table, VECTOR};

/// The recipe's text.
///
/// # Errors
/// When a term's places are none that the table knows.
pub(super) fn text(table: &Table, pair: &Pair) -> anyhow::Result<String> {
    let (teacher, student) = (table.network(&pair.teacher)?, table.network(&pair.student)?);
    let mut text = head(table, pair, [teacher, student])?;
    for network in [teacher, student] {
        write!(text, "\n[[run]]\nname = {:?}\nmodel = {:?}\n", network.id, network.model)?;
        if network.lr != student.lr {
            writeln!(text, "lr = {}", number(network.lr))?;
        }
        let source = (network.alone, &*table.alone.source, table.alone.epoch.as_deref());
        text += &published(source);
    }
    for method in &table.methods {
        let run = run(method, pair, [teacher, student]);
        text += &run.with_context(|| format!("method {}", method.name))?;
    }
    Ok(text)
}

fn head(table: &Table, pair: &Pair, [teacher, student]: [&Network; 2]) -> anyhow::Result<String> {
    let Protocol { source, epochs, batch_size, milestones, factor, .. } = &table.protocol;
    let Protocol { momentum, weight_decay, crop_padding, mean, std, .. } = &table.protocol;
    let milestones: Vec<f64> = milestones.iter().map(|epoch| *epoch as f64).collect();
    let mut text = format!(
        "# {} teaches {} on CIFAR-100, in the protocol of {source}.\n",
        teacher.title, student.title
    );
    text += "# Each method has its authors' settings; docs/cifar100.md says whose, and where kd departs from them. Not run yet where that page says so.\n";
    text += "# Written by `cargo xtask pairs` from pairs.toml: change that, not this.\n";
    write!(text, "format = 1\nname = {:?}\n", pair.name())?;
    write!(text, "\n[data]\ndataset = \"cifar100\"\nmean = {mean:?}\nstd = {std:?}\n")?;
    writeln!(text, "augment = {{ crop_padding = {crop_padding}, flip = true }}")?;
    write!(text, "\n[training]\nepochs = {epochs}\nbatch_size = {batch_size}\n")?;
    writeln!(
        text,
        "schedule = {{ name = \"step\", milestones = {milestones:?}, factor = {} }}",
        number(*factor)
    )?;
    write!(text, "\n[optimizer]\nname = \"sgd\"\nlr = {}\n", number(student.lr))?;
    writeln!(text, "momentum = {}\nnesterov = false", number(*momentum))?;
    writeln!(text, "weight_decay = {}", number(*weight_decay))?;
    Ok(text)
}

/// The runs of a method: one, or two where it has a first stage.
fn run(method: &Method, pair: &Pair, networks: [&Network; 2]) -> anyhow::Result<String> {
    let [teacher, student] = networks;
    let mut terms = method.terms.clone();
    let (mut labels, mut lr, mut epochs) =
        (method.labels.map(Value::from), method.lr.map(Value::from), None);
    for (key, value) in method.settings.get(&pair.name()).into_iter().flatten() {
        let value = value.clone();
        match &**key {
            "labels" => labels = Some(value),
            "lr" => lr = Some(value),
            "epochs" => epochs = Some(value),
            _ => {
                let first = terms.first_mut().context("it has no term")?;
                first.insert(key.clone(), value);
            }
        }
    }
    let first = method.first.map(|epochs| (format!("{}-first", method.name), epochs));
    let mut text = String::new();
    if let Some((name, epochs)) = &first {
        write!(text, "\n[[run]]\nname = {name:?}\nmodel = {:?}\n", student.model)?;
        write!(text, "teacher = {:?}\nepochs = {epochs}\n", teacher.id)?;
        write!(text, "freeze = {:?}\nlabels = 0.0\n", student.frozen)?;
        text += &methods(&terms, networks)?;
    }
    write!(text, "\n[[run]]\nname = {:?}\nmodel = {:?}\n", method.name, student.model)?;
    match &first {
        Some((name, _)) => writeln!(text, "init = {name:?}")?,
        None => writeln!(text, "teacher = {:?}", teacher.id)?,
    }
    for (key, value) in [("epochs", epochs), ("lr", lr), ("labels", labels)] {
        if let Some(value) = value {
            writeln!(text, "{key} = {value}")?;
        }
    }
    text += &method.published_of(&pair.name()).map_or_else(String::new, published);
    if first.is_none() {
        text += &methods(&terms, networks)?;
    }
    Ok(text)
}

fn published((accuracy, source, epoch): (f64, &str, Option<&str>)) -> String {
    let epoch = epoch.map_or_else(String::new, |epoch| format!(", epoch = {epoch:?}"));
    format!("published = {{ accuracy = {accuracy:.2}, source = {source:?}{epoch} }}\n")
}

/// The terms as tables of a recipe, with the places that the networks have.
fn methods(terms: &[toml::Table], networks: [&Network; 2]) -> anyhow::Result<String> {
    let mut text = String::new();
    for term in terms {
        for places in places(term.get("places"), networks)? {
            text += "[[run.method]]\n";
            let ahead = ["name", "weight"];
            let others =
                term.iter().filter(|(key, _)| !ahead.contains(&&***key) && *key != "places");
            for key in ahead {
                writeln!(text, "{key} = {}", term.get(key).with_context(|| format!("no {key}"))?)?;
            }
            for (key, value) in others {
                writeln!(text, "{key} = {value}")?;
            }
            if let Some([student, teacher]) = places {
                writeln!(text, "student = {student}\nteacher = {teacher}")?;
            }
        }
    }
    Ok(text)
}

/// The student's and the teacher's places for each of the methods that a term becomes; `None` for a method that has none.
fn places(
    wanted: Option<&Value>,
    [teacher, student]: [&Network; 2],
) -> anyhow::Result<Vec<Option<[Value; 2]>>> {
    let Some(wanted) = wanted else { return Ok(vec![None]) };
    let Some(wanted) = wanted.as_str() else { bail!("places is {wanted}; expected a text") };
    let networks = [student, teacher];
    let all = |of: fn(&Network) -> Vec<Value>| -> Vec<Option<[Value; 2]>> {
        let [student, teacher] = networks.map(of);
        student.into_iter().zip(teacher).map(|(s, t)| Some([s, t])).collect()
    };
    let texts = |names: &[String]| -> Vec<Value> {
        names.iter().map(|name| Value::from(name.as_str())).collect()
    };
    let one = |of: [Value; 2]| vec![Some(of)];
    let stages = |network: &Network| texts(&network.stages);
    let last = |network: &Network| stages(network).pop().unwrap_or_else(|| VECTOR.into());
    let with_vector = |names: &[String]| {
        let mut names = texts(names);
        names.push(VECTOR.into());
        Value::Array(names)
    };
    Ok(match wanted {
        "vector" => one([VECTOR.into(), VECTOR.into()]),
        "middle" => one(networks.map(|network| stages(network).swap_remove(1))),
        "last-stage" => one(networks.map(last)),
        "stages" => one(networks.map(|network| Value::Array(stages(network)))),
        "before-relu" => one(networks.map(|network| Value::Array(texts(&network.before_relu)))),
        "review" => one([with_vector(&student.stages), with_vector(&teacher.before_relu)]),
        "each-stage" => {
            all(|network| network.stages.iter().map(|name| Value::from(name.as_str())).collect())
        }
        "neighbours" => all(|network| {
            let stem = std::iter::once(&network.stem);
            let earlier = stem.chain(&network.stages).zip(&network.stages);
            let pair = |(earlier, later): (&String, &String)| {
                Value::Array(vec![earlier.as_str().into(), later.as_str().into()])
            };
            earlier.map(pair).collect()
        }),
        other => bail!("there are no places {other:?}"),
    })
}

/// A number as TOML writes it, with a point.
fn number(value: f64) -> Value {
    Value::from(value)
}
