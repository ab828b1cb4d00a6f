//! A recipe as a file.

use anyhow::Context;

use super::types::RunRecipe;

impl RunRecipe {
    /// The recipe's file.
    ///
    /// # Errors
    /// When a value can't be written as TOML.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        toml::to_string(&self.to_recipe()).context("the recipe can't be written as TOML")
    }
}
