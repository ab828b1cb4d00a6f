//! `cargo xtask compare`: builds `kd` and starts `kd compare` with the same arguments.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;

use anyhow::ensure;
use kd_record::DeviceChoice;

use crate::reproduce::features;
use crate::{data, process, workspace};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// The arguments of `kd compare` (--help shows them), and with --device cuda also --cudnn: convolutions through cuDNN, which
    /// must be installed. Without --data and --out, the data lies in data/ of the checkout and results go to runs/ there
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    pub arguments: Vec<OsString>,
}

pub fn command(args: &Args) -> anyhow::Result<()> {
    let (features, arguments) = prepared(&args.arguments)?;
    let kd = workspace::build("kd-run", "kd", features)?;
    process::run(Command::new(kd).arg("compare").args(arguments))
}

/// The features to build kd with, and what kd is given.
fn prepared(given: &[OsString]) -> anyhow::Result<(&'static [&'static str], Vec<OsString>)> {
    let is_cudnn = |argument: &OsString| argument == "--cudnn";
    let cudnn = given.iter().any(is_cudnn);
    let mut arguments: Vec<OsString> =
        given.iter().filter(|argument| !is_cudnn(argument)).cloned().collect();
    let device = value_of(&arguments, "--device");
    let device = device.and_then(|name| name.to_str()?.parse::<DeviceChoice>().ok());
    let features = features(device, cudnn)?;
    ensure!(
        !arguments.is_empty(),
        "give recipes to compare; `cargo xtask compare --help` shows the arguments"
    );
    let has = |flag: &str| value_of(&arguments, flag).is_some();
    let about_kd = ["--help", "-h"].iter().any(|help| arguments.iter().any(|found| found == help));
    let mut added: Vec<(&str, PathBuf)> = Vec::new();
    if !about_kd && !has("--from") {
        let name = if has("--held-out") { "compare-held-out" } else { "compare" };
        added.push(("--data", data::default_folder()));
        added.push(("--out", workspace::root().join("runs").join(name)));
        added.retain(|(flag, _)| !has(flag));
    }
    for (flag, path) in added {
        arguments.extend([flag.into(), path.into()]);
    }
    Ok((features, arguments))
}

/// What a flag is given: `--flag value` or `--flag=value`.
fn value_of<'a>(arguments: &'a [OsString], flag: &str) -> Option<&'a OsStr> {
    let start = format!("{flag}=");
    arguments.iter().enumerate().find_map(|(place, argument)| {
        if argument == flag {
            return Some(arguments.get(place + 1).map_or(OsStr::new(""), OsString::as_os_str));
        }
        argument.to_str()?.strip_prefix(&start).map(OsStr::new)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> (&'static [&'static str], String) {
        let given: Vec<OsString> = text.split_whitespace().map(OsString::from).collect();
        let (features, arguments) = prepared(&given).unwrap();
        let root = workspace::root().display().to_string();
        let arguments: Vec<String> =
            arguments.iter().map(|a| a.to_string_lossy().replace(&root, "R")).collect();
        (features, arguments.join(" "))
    }

    #[test]
    fn kd_is_given_what_xtask_is_given_and_the_checkouts_folders() {
        let folders = "--data R/data --out R/runs/compare";
        assert_eq!(line("a.toml --seeds 2").1, format!("a.toml --seeds 2 {folders}"));
        let held_out = "--data R/data --out R/runs/compare-held-out";
        assert_eq!(line("a.toml --held-out=9").1, format!("a.toml --held-out=9 {held_out}"));
        for whole in ["a.toml --out o --data=d", "--from f.json --kd dkd", "--help"] {
            assert_eq!(line(whole).1, whole);
        }
    }

    #[test]
    fn a_gpu_decides_the_build_and_cudnn_is_no_argument_of_kds() {
        let (features, arguments) = line("a.toml --device cuda --cudnn --out o --data d");
        assert_eq!(features, ["cuda", "cudnn"]);
        assert_eq!(arguments, "a.toml --device cuda --out o --data d");
        assert!(line("a.toml --device=cpu").0.is_empty());
        assert!(prepared(&["a.toml".into(), "--cudnn".into()]).is_err());
        assert!(prepared(&[]).is_err());
    }
}
