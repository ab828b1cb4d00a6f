//! Recipes: an error that names the file, or a recipe that reads back the same.

#![no_main]

use kd_run::recipe::Recipe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Recipe::parse(text, "fuzzed.toml") {
        Ok(recipe) => {
            let again = toml::to_string(&recipe).unwrap();
            // NaN is no value that a recipe may have, so equal means the same.
            assert_eq!(Recipe::parse(&again, "again").unwrap(), recipe);
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("fuzzed.toml"));
            let lines = 1 + text.bytes().filter(|byte| *byte == b'\n').count();
            assert!(error.line.is_none_or(|line| (1..=lines).contains(&line)), "{message}");
        }
    }
});
