//! How a flag's value is read from its text. A message says what is expected; clap names the flag and what was found.

use std::collections::BTreeMap;
use std::error::Error;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use kd_loss::{ClassWeightRule, ClassWeights};
use kd_models::Architecture;
use kd_run::run::Every;

/// Part `.0` (from 1) of `.1` parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part(pub(crate) usize, pub(crate) usize);

/// One of `names`, which help, completions and the message about any other name list.
pub(crate) fn one_of<T>(
    names: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

pub(crate) fn architecture(text: &str) -> Result<Architecture, String> {
    text.parse().map_err(|error: kd_models::Error| error.to_string())
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("expected a whole number, at least 1".into()),
    }
}

/// TOML, and so a recipe, has no larger integers.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse().ok().and_then(|seed: i64| u64::try_from(seed).ok());
    seed.ok_or_else(|| format!("expected a whole number from 0 to {}", i64::MAX))
}

pub(super) fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=1024).contains(&number) => Ok(number),
        _ => Err("expected a whole number from 1 to 1024".into()),
    }
}

pub(crate) fn part(text: &str) -> Result<Part, String> {
    let parts = text.split_once('/').and_then(|(i, k)| Some((i.parse().ok()?, k.parse().ok()?)));
    match parts {
        Some((i, k)) if k >= 2 && (1..=k).contains(&i) => Ok(Part(i, k)),
        _ => Err("expected I/K with I from 1 to K, and K at least 2".into()),
    }
}

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".into()),
    }
}

pub(crate) fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=100.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 100".into()),
    }
}

pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

/// "balanced", numbers ("1,2.5") or classes with numbers ("cat=1,dog=2.5"). Whether the classes are the data's shows later.
pub(super) fn class_weights(text: &str) -> Result<ClassWeights, String> {
    const EXPECTED: &str = "expected \"balanced\", a number above 0 for each class (\"1,2.5\"), or each class with its number (\"cat=1,dog=2.5\")";
    if text == "balanced" {
        return Ok(ClassWeights::Rule(ClassWeightRule::Balanced));
    }
    let entries = || text.split(',').map(str::trim);
    if !text.contains('=') {
        let weights: Result<_, String> = entries().map(positive).collect();
        return weights.map(ClassWeights::List).map_err(|_| EXPECTED.into());
    }
    let mut weights = BTreeMap::new();
    for entry in entries() {
        let pair = entry.rsplit_once('=').and_then(|(class, n)| Some((class, positive(n).ok()?)));
        let (class, weight) = pair.ok_or(EXPECTED)?;
        if weights.insert(class.to_owned(), weight).is_some() {
            return Err(format!("class `{class}` has two numbers; expected one"));
        }
    }
    Ok(ClassWeights::Table(weights))
}

/// A layer with its share of the learning rate: "layer1=0.1".
pub(super) fn lr_scale(text: &str) -> Result<(String, f64), String> {
    let pair =
        text.split_once('=').and_then(|(layer, n)| Some((layer.trim(), positive(n.trim()).ok()?)));
    let (layer, share) =
        pair.ok_or("expected layers, each with a number above 0: \"layer1=0.1\"")?;
    Ok((layer.to_owned(), share))
}

/// Three numbers, one for each colour channel: "0.5,0.5,0.5".
pub(crate) fn channels(text: &str) -> Result<[f32; 3], String> {
    let values: Option<Vec<f32>> = text.split(',').map(|value| value.trim().parse().ok()).collect();
    let values: Option<[f32; 3]> = values.and_then(|values| values.try_into().ok());
    values.ok_or_else(|| "expected three numbers, for red, green and blue: \"0.5,0.5,0.5\"".into())
}

pub(super) fn every(text: &str) -> Result<Every, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = at_least_one(digits)? as u64;
    match &text[digits.len()..] {
        "" | "step" | "steps" => Ok(Every::Steps(number)),
        "epoch" | "epochs" => Ok(Every::Epochs(number as usize)),
        _ => Err("expected a number of steps (\"200\") or epochs (\"2epochs\")".into()),
    }
}

/// A number of bytes with its unit: "8GiB", "1.5 GB", "500MiB".
pub(super) fn memory_size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size above 0 with its unit, such as 8GiB, 500MiB or 2GB";
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().map_err(|_| EXPECTED)?;
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => f64::from(1 << 10),
        "m" | "mib" => f64::from(1 << 20),
        "g" | "gib" => f64::from(1 << 30),
        "t" | "tib" => f64::from(1 << 20) * f64::from(1 << 20),
        _ => return Err(EXPECTED.into()),
    };
    let bytes = number * scale;
    if !(1.0..1e18).contains(&bytes) {
        return Err(EXPECTED.into());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_weights_are_a_rule_a_list_or_a_table() {
        let table = BTreeMap::from([("a dog".to_owned(), 2.5), ("c=t".to_owned(), 1.0)]);
        for (text, expected) in [
            ("balanced", ClassWeights::Rule(ClassWeightRule::Balanced)),
            ("1, 2.5", ClassWeights::List(vec![1.0, 2.5])),
            ("a dog=2.5, c=t=1", ClassWeights::Table(table)),
        ] {
            assert_eq!(class_weights(text), Ok(expected));
        }
        for wrong in ["", "Balanced", "1,", "1,-2", "0", "a=1,b", "a=x", "nan"] {
            assert!(class_weights(wrong).unwrap_err().contains("cat=1,dog=2.5"), "{wrong}");
        }
        assert!(class_weights("a=1,a=2").unwrap_err().contains("class `a` has two numbers"));
    }

    #[test]
    fn memory_has_a_unit() {
        for (text, expected) in [
            ("8GiB", 8 << 30),
            ("1.5 GB", 1_500_000_000),
            ("500m", 500 << 20),
            ("2TiB", 2 << 40),
            ("64kb", 64_000),
        ] {
            assert_eq!(memory_size(text), Ok(expected));
        }
        for wrong in ["", "8", "GiB", "-1GiB", "0GiB", "1e3GiB", "1..2GiB", "9999999TiB", "8 GiBs"]
        {
            assert!(memory_size(wrong).unwrap_err().contains("such as 8GiB"), "{wrong}");
        }
    }

    #[test]
    fn colour_channels_are_three_numbers() {
        assert_eq!(channels("0.5, 0,1e-1"), Ok([0.5, 0.0, 0.1]));
        for wrong in ["", "1,2", "1,2,3,4", "a,b,c"] {
            assert!(channels(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn checkpoints_come_every_so_many_steps_or_epochs() {
        assert_eq!(every("200"), Ok(Every::Steps(200)));
        assert_eq!(every("1epoch"), Ok(Every::Epochs(1)));
        assert_eq!(every("3epochs"), Ok(Every::Epochs(3)));
        for wrong in ["", "0", "epochs", "-1", "3 weeks", "3weeks"] {
            assert!(every(wrong).is_err(), "{wrong}");
        }
    }
}
