//! In what two recipes differ.

use anyhow::Context;

use super::types::Recipe;

/// The keys in which two recipes of one run differ, each with both values. The paths of weights files are left out, since their
/// hashes say whether they are the same.
pub fn differences(there: &toml::Table, asked: &toml::Table) -> Vec<String> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    flatten("", &toml::Value::Table(there.clone()), &mut a);
    flatten("", &toml::Value::Table(asked.clone()), &mut b);
    let mut keys: Vec<&String> = a.iter().chain(&b).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let value = |of: &[(String, String)], key: &str| {
        of.iter()
            .find(|(other, _)| other == key)
            .map_or("not set".into(), |(_, value)| value.clone())
    };
    keys.into_iter()
        .filter(|key| !["run.teacher", "run.teacher_logits", "run.init"].contains(&key.as_str()))
        .filter(|key| value(&a, key) != value(&b, key))
        .map(|key| format!("{key} ({} there, {} asked for)", value(&a, key), value(&b, key)))
        .collect()
}

/// How a recipe that lies in a run's folder relates to the one that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Both are the same.
    Same,
    /// They differ in the number of epochs alone, which is `from` there and `to` in the one that is asked for.
    Epochs { from: usize, to: usize },
    /// They differ in these keys.
    Differs(String),
}

/// The relation of two recipes of one run given as text, of which messages call the first `file`. A setting that is not written counts
/// with its default, so that a recipe which an earlier version wrote still equals today's.
pub(crate) fn relation(there: &str, file: &str, asked: &str) -> anyhow::Result<Relation> {
    if there == asked {
        return Ok(Relation::Same);
    }
    let table = |recipe: &Recipe| {
        let text = toml::to_string(recipe).context("the recipe can't be written as TOML")?;
        anyhow::Ok(text.parse::<toml::Table>()?)
    };
    let mut there = Recipe::parse(there, file)?;
    let asked = Recipe::parse(asked, "the run's recipe")?;
    let all = differences(&table(&there)?, &table(&asked)?);
    if all.is_empty() {
        return Ok(Relation::Same);
    }
    let (from, to) = (there.training.epochs, asked.training.epochs);
    there.training.epochs = to;
    match differences(&table(&there)?, &table(&asked)?).is_empty() {
        true => Ok(Relation::Epochs { from, to }),
        false => Ok(Relation::Differs(all.join(", "))),
    }
}

/// Collects every value below `value` with its dotted key.
fn flatten(prefix: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    let below = |key: &str| match prefix {
        "" => key.to_string(),
        _ => format!("{prefix}.{key}"),
    };
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                flatten(&below(key), value, out);
            }
        }
        toml::Value::Array(array) if array.iter().all(toml::Value::is_table) => match &array[..] {
            // The keys of an array with one table, such as the one [[run]], need no number.
            [one] => flatten(prefix, one, out),
            several => {
                for (index, value) in several.iter().enumerate() {
                    flatten(&below(&(index + 1).to_string()), value, out);
                }
            }
        },
        other => out.push((prefix.to_string(), other.to_string())),
    }
}
