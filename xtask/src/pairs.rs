//! `cargo xtask pairs`: the recipes of the published pairs on CIFAR-100, and their page, from one table.

mod page;
mod recipe;
mod table;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::workspace;
pub use table::{Method, Pair, Table};

#[derive(clap::Args)]
pub struct Args {
    /// Write nothing, and fail where a file is not what the table gives
    #[arg(long)]
    check: bool,
}

/// The folder of the table and its recipes.
pub fn folder() -> PathBuf {
    workspace::root().join("recipes/cifar100")
}

/// The table of networks, pairs and methods, as its file has it.
///
/// # Errors
/// When it can't be read or makes no sense.
pub fn read() -> anyhow::Result<Table> {
    Table::read(&folder().join("pairs.toml"))
}

/// The files that a table gives, each with its text: a recipe for each pair, and the page.
fn files(table: &Table) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for pair in &table.pairs {
        let name = pair.name();
        let text = recipe::text(table, pair).with_context(|| format!("pair {name}"))?;
        files.push((folder().join(format!("{name}.toml")), text));
    }
    files.push((workspace::root().join("docs/cifar100.md"), page::text(table)));
    Ok(files)
}

pub fn command(args: &Args) -> anyhow::Result<()> {
    let files = files(&read()?)?;
    let stale = stale(&files);
    if args.check {
        ensure!(
            stale.is_empty(),
            "{} not what recipes/cifar100/pairs.toml gives; `cargo xtask pairs` writes it anew",
            stale.join(", ")
        );
        println!("{} files are what recipes/cifar100/pairs.toml gives", files.len());
        return Ok(());
    }
    for (path, text) in &files {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{} files, {} of them changed", files.len(), stale.len());
    Ok(())
}

/// The files that are not there, or not what the table gives.
fn stale(files: &[(PathBuf, String)]) -> Vec<String> {
    let is_stale =
        |(path, text): &&(PathBuf, String)| fs::read_to_string(path).ok().as_ref() != Some(text);
    files.iter().filter(is_stale).map(|(path, _)| workspace::short(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_and_the_page_are_what_the_table_gives() {
        let files = files(&read().unwrap()).unwrap();
        assert_eq!(files.len(), 13 + 1);
        assert_eq!(stale(&files), [""; 0], "`cargo xtask pairs` writes them anew");
        // Nothing lies there that no pair gives.
        let there = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
        let other: Vec<PathBuf> =
            there.filter(|path| files.iter().all(|(file, _)| file != path)).collect();
        assert_eq!(other, [folder().join("pairs.toml")]);
    }

    /// Figures read off the tables of HobbitLong/RepDistiller's README.md, two corners and the middle of each.
    #[test]
    fn the_published_figures_stand_under_their_pairs() {
        let table = read().unwrap();
        let of = |method: &str, pair: &str| {
            let method = table.methods.iter().find(|found| found.name == method).unwrap();
            method.published_of(pair).unwrap().0
        };
        assert_eq!(of("kd", "wrn-40-2-to-wrn-16-2"), 74.92);
        assert_eq!(of("vid", "resnet110-to-resnet20"), 70.16);
        assert_eq!(of("crd", "vgg13-to-vgg8"), 73.94);
        assert_eq!(of("kd", "vgg13-to-mobilenetv2"), 67.37);
        assert_eq!(of("rkd", "resnet50-to-vgg8"), 71.50);
        assert_eq!(of("crd", "wrn-40-2-to-shufflenetv1"), 76.05);
    }

    #[test]
    fn a_table_that_makes_no_sense_is_an_error_that_names_the_place() {
        let text = fs::read_to_string(folder().join("pairs.toml")).unwrap();
        let error = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            let table = Table::parse(&text.replacen(from, to, 1), "pairs.toml");
            let result = table.and_then(|table| files(&table).map(|_| ()));
            format!("{:#}", result.unwrap_err())
        };
        for (from, to, expected) in [
            (
                "[[pair]]\nteacher = \"wrn-40-2\"",
                "[[pair]]\nteacher = \"wrn-40\"",
                "wrn-40-to-wrn-16-2: there is no network \"wrn-40\"",
            ),
            (
                "wrn-40-2-to-wrn-16-2 = 74.92",
                "wrn-40-2-to-vgg8 = 74.92",
                "method kd: there is no pair \"wrn-40-2-to-vgg8\"",
            ),
            (
                "places = \"middle\"",
                "places = \"centre\"",
                "method fitnet: there are no places \"centre\"",
            ),
            ("alone = 75.61", "alone = \"75.61\"", "pairs.toml"),
            ("temperature = 4.0 }]", "temperature = 4.0, places = 3 }]", "method kd: places is 3"),
        ] {
            let message = error(from, to);
            assert!(message.contains(expected), "{message}");
        }
    }
}
