//! How a flag's value is read from its text. A message says what is expected; clap names the flag and what was found.

use std::error::Error;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
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

pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1".into()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
