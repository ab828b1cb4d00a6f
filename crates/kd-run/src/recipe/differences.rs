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
        .filter(|key| !["run.teacher", "run.init"].contains(&key.as_str()))
        .filter(|key| value(&a, key) != value(&b, key))
        .map(|key| format!("{key} ({} there, {} asked for)", value(&a, key), value(&b, key)))
        .collect()
}

/// The [`differences`] of two recipes given as text, of which messages call the first `file`. A setting that is not written counts
/// with its default, so that a recipe which an earlier version wrote still equals today's.
pub(crate) fn differences_in_text(
    there: &str,
    file: &str,
    asked: &str,
) -> anyhow::Result<Vec<String>> {
    let whole = |text: &str, file: &str| {
        let recipe = Recipe::parse(text, file)?;
        let text = toml::to_string(&recipe).context("the recipe can't be written as TOML")?;
        anyhow::Ok(text.parse::<toml::Table>()?)
    };
    Ok(differences(&whole(there, file)?, &whole(asked, "the run's recipe")?))
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
