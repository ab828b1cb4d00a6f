//! A recipe as text.

use anyhow::Context;

use super::types::RunRecipe;
use crate::Result;

impl RunRecipe {
    /// The recipe as TOML, which [`Recipe::parse`](super::Recipe::parse) reads back the same.
    ///
    /// # Errors
    /// When a value can't be written as TOML.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(&self.to_recipe()).context("the recipe can't be written as TOML")?)
    }
}
